"""robomimic's HDF5, and robosuite's `demo.hdf5` that it is made from.

Layout (robomimic, "Dataset structure"): `data/demo_i/{actions,rewards,dones,states}` [T, ...], `obs/<key>` and `next_obs/<key>`
[T, ...], attributes `num_samples`, `model_file`; `data` has `total` and `env_args`; `mask/<filter>` lists demos.
A robosuite file has only actions and simulator states, and its models lie beside it as xml files.

What becomes of it:
- `<cam>_image` is `images.<cam>`, `<cam>_depth` is `depth.<cam>` in millimetres, every other key keeps its name; `state` joins some.
- The observation after the last action is the last `next_obs`. A file without `next_obs` has none: `last="repeat"` says the last
  observation twice and keeps every action, `last="drop"` leaves the last action out.
- A reward of 0 or 1 is robomimic's sparse reward: 1 means success. A last `dones` counts as termination when that step
  succeeded, or when the reward is dense; else somebody ended the demonstration and it is truncated.
- A robosuite file has no observations: `state` is the simulator's positions and velocities (its time left out).
- `extra["sim_state"]` [T, S] float64 and `extra["model_file"]` (xml, a string array of no dimension) are kept for replay,
  `extra["recorded_action"]` [T, A] too, in the file's own precision and range.

Export writes the same layout, and next to it a group `realrl` per demo with what robomimic has no room for (who acted, time,
success, ...), which robomimic ignores and `read` restores.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from realrl.data.formats import common, hdf5
from realrl.data.formats.common import Imported
from realrl.data.formats.hdf5 import library as library
from realrl.types import Array, Episode, Obs, RealrlError, Source

NAME = "robomimic"
USUAL_STATE = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "robot1_eef_pos", "robot1_eef_quat",
               "robot1_gripper_qpos", "object")  # what robomimic's low-dimensional policies look at
MILLIMETRES = 1000.0  # robomimic's depth is in metres
NOTHING_AFTER = ("no observation after an episode's last action: the one before it is repeated (last='repeat'), "
                 "last='drop' leaves that action out")
GYM = 2  # robomimic's number for an environment that gymnasium makes


def detect(path: Path) -> bool:
    """An HDF5 file that is not the inside of a Minari dataset."""
    return hdf5.is_hdf5(path) and path.name != "main_data.hdf5"


def read(path: Path, *, task: str | None = None, fps: float | None = None, keys: Sequence[str] | None = None,
         state: Sequence[str] | None = None, filter: str | None = None, action_range: tuple[float, float] | None = None,
         source: str = "human", success: bool = False, last: str = "repeat") -> Imported:
    """Open a robomimic or robosuite file.

    task: its text, by default the environment's name; fps: by default the file's control frequency; keys: which observations
    (the file's own names), by default all; state: which of them make up obs["state"]; filter: a name in `mask`, e.g. "train";
    action_range: (low, high) mapped onto [-1, 1]; source: who acted (human, policy, script); success: count each demonstration
    as ended in success, for a file without rewards; last: "repeat" or "drop", see the module. Raises RealrlError.
    """
    who, span, ending = common.source_of(source), common.check_range(action_range), common.check_last(last)
    with hdf5.open_file(path) as file:
        data = hdf5.subgroup(file, "data")
        demos = _demos(data) if data is not None else []
        if data is None or not demos:
            raise RealrlError(f"{path} holds no data/demo_0, data/demo_1, ... as robomimic's files do; it holds "
                              f"{', '.join(ascii(n)[1:-1] for n in hdf5.names(file)[:8]) or 'nothing'}")
        masks = _masks(file)
        if filter is not None:
            demos = [d for d in demos if d in masks[common.only([filter], list(masks), "filter", path)[0]]]
        env = hdf5.json_attribute(data, "env_args") or _robosuite_env(data)
        first = hdf5.subgroup(data, demos[0]) if demos else None
        if first is None:
            raise RealrlError(f"{path}: filter {filter!r} names no demonstration of this file; choose another")
        rate, note = _rate(path, env, first, hdf5.attribute(data, "fps") if fps is None else fps)
        layout, said = _layout(path, first, keys, state)
        low, high, rewarded = _scan(data, demos)
    plan = _Plan(path, demos, layout, task, task or _text(env.get("env_name")) or path.stem, rate, span, who, success, ending)
    notes = [*note, *said, *common.range_note(low, high, span)]
    if masks:
        notes.append("filters of this file: " + ", ".join(f"{k} ({len(v)} demos)" for k, v in masks.items()))
    if not rewarded and not success:
        notes.append("no rewards in this file: they are 0, and success is unknown; success=True counts every last step")
    meta = {"env_args": env, "masks": {k: sorted(v) for k, v in masks.items()}, "demos": demos}
    return Imported(plan.task, rate, _robot(env), _episodes(plan), notes, meta, len(demos))


# ---- reading


@dataclass(frozen=True)
class _Layout:
    """keys: the file's name -> ours; state: ours that make up obs["state"]; closed: whether next_obs is there."""

    keys: dict[str, str]
    state: list[str]
    closed: bool


@dataclass(frozen=True)
class _Plan:
    path: Path
    demos: list[str]
    layout: _Layout
    renamed: str | None  # the task's text, when the caller gave one
    task: str
    fps: float
    action_range: tuple[float, float] | None
    source: Source
    success: bool
    last: common.Last


def _demos(data: Any) -> list[str]:
    found = [(int(m[1]), n) for n in hdf5.names(data) if (m := re.fullmatch(r"demo_(\d{1,9})", n))]
    return [name for _, name in sorted(found)]


def _masks(file: Any) -> dict[str, set[str]]:
    """Filters by name, each a set of demos."""
    group = hdf5.subgroup(file, "mask")
    return {name: set(hdf5.texts(group, name)) for name in hdf5.names(group)} if group is not None else {}


def _robosuite_env(data: Any) -> dict[str, Any]:
    """What robosuite's own collection script writes, in the shape of env_args."""
    info = hdf5.json_attribute(data, "env_info")
    name = _text(hdf5.attribute(data, "env")) or _text(info.get("env_name"))
    return {"env_name": name, "env_kwargs": info, "env_version": hdf5.attribute(data, "repository_version")} if name else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _robot(env: dict[str, Any]) -> str:
    options = env.get("env_kwargs")
    robots = options.get("robots") if isinstance(options, dict) else None
    return "+".join(str(r) for r in robots) if isinstance(robots, list) and robots else _text(robots) or "unknown"


def _rate(path: Path, env: dict[str, Any], demo: Any, fps: Any) -> tuple[float, list[str]]:
    """Control steps a second and what to say: as asked, or the file's, or from the simulator's clock, or robosuite's 20."""
    if asked := common.rate_of(fps, path):
        return asked, []
    options = env.get("env_kwargs")
    told = options.get("control_freq") if isinstance(options, dict) else None
    if told is not None:
        return common.rate_of(told, path) or 0, []
    states = hdf5.array(demo, "states")
    if states is not None and states.ndim == 2 and len(states) > 2 and states.dtype.kind == "f":
        tick = float(np.median(np.diff(states[:, 0])))  # MuJoCo states begin with the time
        if 1e-4 < tick < 10 and abs(round(1 / tick) * tick - 1) < 1e-3:
            return round(1 / tick), []
    return 20, ["the file does not say how many steps a second it has; 20, as robosuite does by default: give fps= if it is another"]


def _layout(path: Path, demo: Any, keys: Sequence[str] | None, state: Sequence[str] | None) -> tuple[_Layout, list[str]]:
    obs = hdf5.subgroup(demo, "obs")
    if obs is None:
        if keys is not None or state is not None:
            raise RealrlError(f"{path} has no observations to choose from, only simulator states; leave out keys= and state=")
        return _Layout({}, [], False), ["no observations in this file: obs['state'] is the simulator's positions and velocities; "
                                        "robomimic's dataset_states_to_obs.py makes a file with real ones", NOTHING_AFTER]
    there = hdf5.names(obs)
    ours = {n: _our_name(path, obs, n) for n in common.only(keys, there, "observation", path)}
    low_dim = [n for n in ours.values() if not n.startswith(("images.", "depth."))]
    picked = common.state_keys(state, USUAL_STATE, low_dim, path)
    closed = hdf5.subgroup(demo, "next_obs") is not None
    said = [] if picked == ["state"] or not picked else [f"obs['state'] is {' + '.join(picked)}; state= chooses others"]
    if not closed:
        said.append(NOTHING_AFTER)
    return _Layout(ours, picked, closed), said


def _our_name(path: Path, obs: Any, name: str) -> str:
    common.key_name(name, path)
    shape = () if (entry := hdf5.dataset(obs, name)) is None else entry.shape
    if common.is_image(shape):
        return f"images.{name.removesuffix('_image')}"
    if name.endswith("_depth") and len(shape) in (3, 4):
        return f"depth.{name.removesuffix('_depth')}"
    return name


def _scan(data: Any, demos: list[str]) -> tuple[float, float, bool]:
    """(least action, greatest action, whether there are rewards): every demo is looked at, so damage shows before any work."""
    low, high, rewarded = np.inf, -np.inf, True
    for name in demos:
        demo = hdf5.subgroup(data, name)
        action = None if demo is None else hdf5.array(demo, "actions")
        if demo is None or action is None or action.ndim < 1 or not action.size:
            raise RealrlError(f"{hdf5.where(data)}/{name} has no actions; leave it out or restore the file from a copy")
        low, high = common.wider(low, high, action)
        rewarded = rewarded and hdf5.member(demo, "rewards") is not None
    return low, high, rewarded


def _episodes(plan: _Plan) -> Iterator[Episode]:
    with hdf5.open_file(plan.path) as file:
        data = hdf5.subgroup(file, "data")
        for name in plan.demos:
            demo = hdf5.subgroup(data, name)
            if demo is None:
                raise RealrlError(f"{plan.path}: data/{name} is gone; was the file rewritten meanwhile? open it again")
            yield _episode(plan, demo, f"{plan.path}: data/{name}")


def _episode(plan: _Plan, demo: Any, where: str) -> Episode:
    action, states = hdf5.array(demo, "actions"), hdf5.array(demo, "states")
    if action is None or action.ndim < 1:
        raise RealrlError(f"{where} has no actions; leave it out or restore the file from a copy")
    extra = {"recorded_action": action} | ({} if states is None else {"sim_state": states})
    if (model := _model(plan.path, demo)) is not None:
        extra["model_file"] = np.array(model)
    reward, done = hdf5.array(demo, "rewards"), hdf5.array(demo, "dones")
    sparse = reward is not None and bool(np.isin(reward, (0.0, 1.0)).all())
    won = reward == 1.0 if reward is not None and sparse else None
    over = bool(done[-1]) if done is not None and done.ndim == 1 and len(done) else False
    terminated = over and (won is None or bool(won[-1])) and reward is not None
    made = common.episode(
        _obs(plan.layout, demo, states, where), common.scale_actions(action, plan.action_range), fps=plan.fps, task=plan.task,
        policy=plan.source.name.lower(), source=plan.source, reward=reward, success=won, terminated=terminated,
        truncated=not terminated, extra=extra, last=plan.last, where=where)
    if plan.success and reward is None:
        made = common.with_success(made)
    return _restored(plan, made, demo, where)


def _obs(layout: _Layout, demo: Any, states: Array | None, where: str) -> Obs:
    """obs with the last row of next_obs behind it, each [T+1, ...] or, where there is no next_obs, [T, ...]."""
    if not layout.keys:
        if states is None or states.ndim != 2 or states.shape[1] < 2:
            raise RealrlError(f"{where} has neither observations nor states; leave it out")
        return {"state": states[:, 1:].astype(np.float32)}
    now, after = hdf5.subgroup(demo, "obs"), hdf5.subgroup(demo, "next_obs") if layout.closed else None
    found: Obs = {}
    for theirs, ours in layout.keys.items():
        rows = None if now is None else hdf5.array(now, theirs)
        if rows is None or rows.ndim < 1:
            raise RealrlError(f"{where}/obs has no {theirs!r}, the first demonstration has; read with keys= that all of them have")
        if layout.closed:
            following = None if after is None else hdf5.array(after, theirs)
            if following is None or following.shape != rows.shape or not len(rows):
                raise RealrlError(f"{where}/next_obs has no {theirs!r} as long as obs; restore the file from a copy")
            rows = np.concatenate([rows, following[-1:]])
        found[ours] = _pixels(rows, ours, f"{where}/obs/{theirs}")
    return common.with_state(found, layout.state)


def _pixels(rows: Array, ours: str, where: str) -> Array:
    if ours.startswith("images."):
        return common.to_images(rows, 1.0, where)
    if not ours.startswith("depth."):
        return common.numbers(rows)
    if rows.ndim == 4 and rows.shape[3] != 1:
        raise RealrlError(f"{where}: depth has shape {list(rows.shape)}, not [T, H, W, 1]; leave it out with keys=")
    rows = rows.reshape(rows.shape[:3])
    if rows.dtype == np.uint16:
        return rows
    if not np.isfinite(rows).all():
        raise RealrlError(f"{where}: depth is NaN or infinite somewhere; leave it out with keys=")
    return np.clip(np.rint(rows.astype(np.float64) * MILLIMETRES), 0, 65535).astype(np.uint16)


def _model(path: Path, demo: Any) -> str | None:
    """The MuJoCo xml of a demonstration: in the attribute itself, or in the folder `models` beside robosuite's file."""
    text = _text(hdf5.attribute(demo, "model_file"))
    if text is None or text.lstrip().startswith("<"):
        return text
    beside = path.parent / "models" / text
    if Path(text).name != text or not beside.is_file() or not beside.resolve().is_relative_to(path.parent.resolve()):
        return None
    if beside.stat().st_size > 64 * 2**20:
        return None
    return beside.read_text(encoding="utf-8", errors="replace")


def _restored(plan: _Plan, made: Episode, demo: Any, where: str) -> Episode:
    """The episode with what our own export kept in the demo's group `realrl`."""
    own = hdf5.subgroup(demo, "realrl")
    if own is None:
        return made
    columns = {n: x for n in common.COLUMNS if (x := hdf5.array(own, n)) is not None}
    if "proposed" in columns:
        columns["proposed"] = common.scale_actions(columns["proposed"], plan.action_range)
    told = hdf5.json_attribute(own, "facts") | ({} if plan.renamed is None else {"task": plan.renamed})
    return common.restored(made, {n: x[:len(made)] for n, x in columns.items()}, told, f"{where}/realrl")


# ---- writing


def write(episodes: Iterable[Episode], path: Path, *, fps: float, env_args: dict[str, Any] | None = None,
          action_range: tuple[float, float] | None = None) -> None:
    """Write a robomimic file, one episode in memory at a time.

    env_args: how robomimic builds the environment ({"env_name", "type", "env_kwargs"}), e.g. `Imported.meta["env_args"]`; by
    default a gymnasium environment named after the task; action_range: (low, high) that [-1, 1] is mapped back onto. Simulator
    states and the model are written where `extra` has them. Raises RealrlError when `path` exists, without episodes, or on a
    full disk.
    """
    span, rate, total, task = common.check_range(action_range), common.rate_of(fps, path), 0, ""
    with common.published(path) as temporary, hdf5.create(temporary) as file:
        data = file.create_group("data")
        for number, one in enumerate(episodes):
            demo = data.create_group(f"demo_{number}")
            _write_demo(demo, one, span)
            total, task = total + len(one), task or one.task
        if not total:
            raise RealrlError(f"{path}: there are no episodes to write")
        data.attrs["total"], data.attrs["fps"] = total, rate
        data.attrs["env_args"] = json.dumps(env_args or {"env_name": task, "type": GYM, "env_kwargs": {}})


def _write_demo(demo: Any, one: Episode, span: tuple[float, float] | None) -> None:
    demo.attrs["num_samples"] = len(one)
    demo["actions"] = common.unscale_actions(one.action, span)
    demo["rewards"] = one.reward
    demo["dones"] = np.append(np.zeros(len(one) - 1, np.int64), int(one.terminated or one.truncated))
    states = one.extra.get("sim_state")
    if states is not None:
        demo["states"] = states[:len(one)]
    if "model_file" in one.extra:
        demo.attrs["model_file"] = str(one.extra["model_file"])
    for key, x in one.obs.items():
        theirs = _their_name(key)
        rows = x[..., None] if key.startswith("depth.") else x
        options = {"compression": "gzip", "compression_opts": 1, "chunks": (1, *rows.shape[1:])} if rows.ndim > 3 else {}
        demo.create_dataset(f"obs/{theirs}", data=rows[:-1], **options)
        demo.create_dataset(f"next_obs/{theirs}", data=rows[1:], **options)
    own = demo.create_group("realrl")
    for name in common.COLUMNS:
        own[name] = getattr(one, name)
    own["proposed"][...] = common.unscale_actions(one.proposed, span)
    own.attrs["facts"] = json.dumps(common.facts(one))


def _their_name(key: str) -> str:
    if key.startswith("images."):
        return f"{key.removeprefix('images.')}_image"
    return f"{key.removeprefix('depth.')}_depth" if key.startswith("depth.") else key

