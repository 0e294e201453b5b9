"""Minari's datasets: the folder `name-v0/data` with `metadata.json` and `main_data.hdf5`, or its arrow and parquet form.

Read here without the library, which would build whatever environment the metadata name; nothing is downloaded.
Layout (Minari 0.4 and 0.5): an episode has T+1 `observations` and T `actions`, `rewards`, `terminations`, `truncations`, and
`infos`. Observations are an array or a tree of them; colour pictures may be JPEG.

What becomes of it:
- A single array is `state` (or `images.image`), a tree's leaves are named by their path, `a.b`; `state` joins some of them. Pictures,
  distances and clouds are found by shape and name (`senses`).
- `infos/success` or `infos/is_success` is success; without it success is unknown.
- Actions of several parts lie side by side, whole numbers stay whole numbers; `action_range` maps (low, high) onto [-1, 1].
- Who acted is not told: a human, if the dataset's name says "human", else a policy; `source` says otherwise.
- Text in the observations is left out.

Export writes the HDF5 form with pictures uncompressed, so nothing changes; `minari.load_dataset` opens it where
`MINARI_DATASETS_PATH` is the folder around it. What Minari has no room for goes into `infos/realrl`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from realrl.data.formats import common, hdf5, senses
from realrl.data.formats.common import Imported
from realrl.data.formats.hdf5 import library as library
from realrl.data.formats.minari_files import MAIN, Hdf5Episodes, TableEpisodes, read_json
from realrl.types import Array, Episode, Obs, RealrlError, Source

NAME = "minari"
USUAL_STATE = ("observation", "desired_goal")  # of environments with goals
FPS = 20
ID = re.compile(r"(?:[-\w]+/)*[-\w]+-v\d+")
WRITES = "0.5.4"  # the version whose layout `write` follows


def detect(path: Path) -> bool:
    """A dataset's folder or the `data` in it."""
    try:
        data = path / "data" if (path / "data").is_dir() else path
        if not (data / "metadata.json").is_file():
            return False
        return (data / MAIN).is_file() or b'"data_format"' in (data / "metadata.json").open("rb").read(2**26)
    except (OSError, ValueError):
        return False


def read(path: Path, *, task: str | None = None, fps: float | None = None, keys: Sequence[str] | None = None,
         state: Sequence[str] | None = None, action_range: tuple[float, float] | None = None,
         source: str | None = None) -> Imported:
    """Open a Minari dataset's folder.

    task: its text, by default the dataset's id; fps: by default 20, Minari does not say; keys: which observations, by default all;
    state: which of them make up obs["state"]; action_range: (low, high) mapped onto [-1, 1]; source: who acted (human, policy,
    script). Raises RealrlError.
    """
    root = path / "data" if (path / "data").is_dir() else path
    told, span = read_json(root, root / "metadata.json"), common.check_range(action_range)
    name = told["dataset_id"] if isinstance(told.get("dataset_id"), str) else path.name
    who = common.source_of(source or ("human" if "human" in name.lower() else "policy"))
    form = told.get("data_format", "hdf5")
    if form not in ("hdf5", "arrow", "parquet"):
        raise RealrlError(f"{root}/metadata.json: data_format is {ascii(form)[:40]}, must be hdf5, arrow or parquet")
    reader = Hdf5Episodes(root) if form == "hdf5" else TableEpisodes(root, form, _spaces(told))
    numbers = reader.numbers()
    if not numbers:
        raise RealrlError(f"{root} holds no episode; nothing to import")
    low, high = reader.reach(numbers)
    columns = reader.columns(numbers[0])
    names = _names(columns["observations"], root)
    kept = common.only(keys, list(names), "observation", root)
    picked = common.state_keys(state, USUAL_STATE, [k for k in kept if not k.startswith(senses.SENSES)], root)
    rate = common.rate_of(told.get("realrl_fps") if fps is None else fps, root)
    algorithm = told.get("algorithm_name")
    policy = algorithm if isinstance(algorithm, str) and algorithm else who.name.lower()
    plan = _Plan(root, kept, picked, task or name, task is not None, rate or FPS, span, who, policy)
    notes = common.range_note(low, high, span) + _notes(plan, told, columns, rate, len(numbers))
    meta = {k: v for k, v in told.items() if k not in ("observation_space", "action_space")} | {"spaces": _spaces(told)}
    return Imported(plan.task, plan.fps, _robot(told), _episodes(plan, reader, numbers), notes, meta, len(numbers))


# ---- metadata


@dataclass(frozen=True)
class _Plan:
    root: Path
    keys: list[str]
    state: list[str]
    task: str
    renamed: bool  # whether the caller gave the task's text
    fps: float
    action_range: tuple[float, float] | None
    source: Source
    policy: str
    levels: senses.Levels = field(default_factory=senses.Levels)


def _spaces(told: dict[str, Any]) -> dict[str, Any]:
    """The observation and action spaces as plain JSON; empty where they are not told."""
    spaces: dict[str, Any] = {}
    for name in ("observation_space", "action_space"):
        try:
            value = json.loads(told[name]) if isinstance(told.get(name), str) else None
        except (ValueError, RecursionError):
            value = None
        spaces[name] = value if isinstance(value, dict) else {}
    return spaces


def _robot(told: dict[str, Any]) -> str:
    try:
        spec = json.loads(told.get("env_spec") or "{}")
    except (TypeError, ValueError, RecursionError):
        return "unknown"
    return str(spec.get("id") or "unknown")[:120] if isinstance(spec, dict) else "unknown"


def _notes(plan: _Plan, told: dict[str, Any], columns: dict[str, Any], rate: float | None, count: int) -> list[str]:
    said = [] if rate else [f"Minari does not say how many steps a second there are; {FPS}: give fps= if it is another"]
    if plan.state not in ([], ["state"]):
        said.append(f"obs['state'] is {' + '.join(plan.state)}; state=NAME,NAME chooses others")
    if len(columns["actions"]) > 1:
        said.append(f"actions are {' + '.join(columns['actions'])}, side by side")
    if any(np.asarray(a).dtype.kind in "iu" for a in columns["actions"].values()):
        said.append("actions are whole numbers (a discrete space); policies here want numbers in [-1, 1]")
    if columns["success"] is None:
        said.append("no success among the infos, so that stays unknown")
    if columns["left_out"]:
        said.append(f"left out, as they are not numbers: {', '.join(columns['left_out'])}")
    if told.get("total_episodes", count) != count:
        said.append(f"metadata.json counts {told['total_episodes']} episodes, there are {count}")
    return said


# ---- reading


def _names(arrays: dict[str, Array], root: Path) -> dict[str, str]:
    """Our name of each observation -> its path."""
    if not arrays:
        raise RealrlError(f"{root} has no observations of numbers; it can not be imported")
    paths = {path or ("image" if senses.kind("", x.shape, x.dtype) == "images" else "state"): path for path, x in arrays.items()}
    named = senses.names({name: (arrays[path].shape, arrays[path].dtype) for name, path in paths.items()}, root, mend=senses.KEYS)
    return {ours: paths[name] for name, ours in named.items()}


def _episodes(plan: _Plan, reader: Hdf5Episodes | TableEpisodes, numbers: list[int]) -> Iterator[Episode]:
    plan.levels.episodes = lambda: _episodes(plan, reader, numbers)
    for number in numbers:
        yield _episode(plan, reader.columns(number), f"{plan.root}: episode {number}")


def _episode(plan: _Plan, columns: dict[str, Any], where: str) -> Episode:
    names = _names(columns["observations"], plan.root)
    if lost := [k for k in plan.keys if k not in names]:
        raise RealrlError(f"{where} has no observation {lost[0]!r}, the first episode has; read with keys=NAME,NAME that all of them have")
    obs: Obs = {k: senses.converted(columns["observations"][names[k]], k, f"{where}: {names[k]}", mend=senses.KEYS, levels=plan.levels)
                for k in plan.keys}
    obs = {k: x.reshape(len(x), -1) if x.ndim == 1 or k == "state" else x for k, x in obs.items()}
    parts = list(columns["actions"].values())
    if not parts or len({len(x) for x in parts}) > 1 or not len(parts[0]):
        raise RealrlError(f"{where} has no actions, or parts of several lengths; write the set without it")
    action = np.concatenate([x.reshape(len(x), -1) for x in parts], axis=1)
    steps, ends = len(action), {}
    if any(len(x) != steps + 1 for x in obs.values()):
        raise RealrlError(f"{where}: {steps} actions need {steps + 1} observations, there are {len(next(iter(obs.values())))}")
    for name in ("terminations", "truncations"):
        flags = columns[name]
        if flags is None or flags.shape != (steps,):
            raise RealrlError(f"{where}: {steps} actions but no {name} for each of them; write one a step")
        ends[name] = bool(flags[-1])
    won = columns["success"]
    won = won.reshape(len(won), -1)[-steps:, 0].astype(bool) if won is not None and len(won) in (steps, steps + 1) and won.size else None
    made = common.episode(
        obs=common.with_state(obs, plan.state), action=common.scale_actions(action, plan.action_range), fps=plan.fps, task=plan.task,
        policy=plan.policy, source=plan.source, reward=columns["rewards"], success=won, terminated=ends["terminations"],
        truncated=ends["truncations"] or not ends["terminations"], extra={"recorded_action": action}, where=where)
    ours = columns["ours"]
    if "proposed" in ours:
        ours["proposed"] = common.scale_actions(ours["proposed"], plan.action_range)
    return common.restored(made, ours, columns["facts"] | ({"task": plan.task} if plan.renamed else {}), where)


# ---- writing


def write(episodes: Iterable[Episode], path: Path, *, fps: float, dataset_id: str | None = None,
          action_range: tuple[float, float] | None = None) -> None:
    """Write a Minari dataset, HDF5 form, one episode in memory at a time; `path` becomes its folder, e.g. `door-human-v0`.

    dataset_id: by default the folder's name; with namespaces ("ours/door-human-v0") the folders around it must have their names,
    for Minari to find it. action_range: (low, high) that [-1, 1] is mapped back onto. Raises RealrlError when `path` exists,
    for a name Minari would refuse, without episodes, when episodes differ in their observations, or on a full disk.
    """
    name = dataset_id or path.name
    if not ID.fullmatch(name) or name.split("/")[-1] != path.name:
        raise RealrlError(f"{path}: Minari wants the folder named like door-human-v0, and the id {name!r} to end with that; rename it")
    span, rate, count, steps, reach = common.check_range(action_range), common.rate_of(fps, path), 0, 0, 0.0
    shapes: dict[str, tuple[list[int], str]] = {}
    with common.published(path) as temporary:
        data = temporary / "data"
        data.mkdir(parents=True)
        with hdf5.create(data / MAIN) as file:
            for one in episodes:
                mine = {k: (list(x.shape[1:]), str(x.dtype)) for k, x in one.obs.items()} | {
                    "": (list(one.action.shape[1:]), "float32")}
                if count and mine != shapes:
                    raise RealrlError(f"{path}: episode {count} has other observations or actions than the first; write them apart")
                reach, shapes = max(reach, float(np.abs(common.unscale_actions(one.action, span)).max(initial=0))), mine
                _write_episode(file.create_group(f"episode_{count}"), one, count, span)
                count, steps = count + 1, steps + len(one)
        if not count:
            raise RealrlError(f"{path}: there are no episodes to write")
        told = {"total_episodes": count, "total_steps": steps, "data_format": "hdf5", "jpeg_encoding": False, "dataset_id": name,
                "minari_version": WRITES, "realrl_fps": rate, **_written_spaces(shapes, 1.0 if reach <= 1 else np.inf),
                "dataset_size": round((data / MAIN).stat().st_size / 1e6, 1)}
        (data / "metadata.json").write_text(json.dumps(told))


def _write_episode(group: Any, one: Episode, number: int, span: tuple[float, float] | None) -> None:
    group.attrs["id"], group.attrs["total_steps"] = number, len(one)
    if one.seed is not None:
        group.attrs["seed"] = one.seed
    group.attrs["realrl"] = json.dumps(common.facts(one))
    last = np.arange(len(one)) == len(one) - 1
    group["actions"], group["rewards"] = common.unscale_actions(one.action, span), one.reward
    group["terminations"], group["truncations"] = last & one.terminated, last & one.truncated
    if list(one.obs) == ["state"]:
        group["observations"] = one.obs["state"]
    else:
        for key, x in one.obs.items():
            group[f"observations/{key}"] = x
    group["infos/success"] = _after_reset(one.success)
    for name in common.COLUMNS:
        x = common.unscale_actions(one.proposed, span) if name == "proposed" else getattr(one, name)
        group[f"infos/realrl/{name}"] = _after_reset(x)


def _after_reset(x: Array) -> Array:
    """Infos have a row for the reset too."""
    return np.concatenate([np.zeros_like(x[:1]), x])


def _written_spaces(shapes: dict[str, tuple[list[int], str]], reach: float) -> dict[str, str]:
    """The two spaces as Minari spells them."""
    boxes = {k: _box(shape, dtype, reach if k == "" else np.inf) for k, (shape, dtype) in shapes.items()}
    action = boxes.pop("")
    observation = boxes["state"] if list(boxes) == ["state"] else {"type": "Dict", "subspaces": boxes}
    return {"observation_space": json.dumps(observation), "action_space": json.dumps(action)}


def _box(shape: list[int], dtype: str, reach: float) -> dict[str, Any]:
    kind = np.dtype(dtype)
    low, high = (-reach, reach) if kind.kind == "f" else (0, 1) if kind.kind == "b" else (np.iinfo(kind).min, np.iinfo(kind).max)
    return {"type": "Box", "dtype": dtype, "shape": shape, "low": np.full(shape, low).tolist(), "high": np.full(shape, high).tolist()}
