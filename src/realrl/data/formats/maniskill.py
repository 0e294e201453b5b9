"""ManiSkill's demonstrations: `trajectory*.h5` with its description `trajectory*.json` beside it (versions 2 and 3).

Layout (ManiSkill, "Trajectory Format"): `traj_i/actions` [T, A], `obs` and `env_states` (arrays or groups of groups) [T+1, ...],
`terminated`, `truncated`, `success`, `fail`, `rewards` [T]; the JSON has `env_info` and of each episode `episode_id`, `episode_seed`,
`control_mode`, `success`.

What becomes of it:
- `obs` is the state itself, or a tree: `agent` and `extra` side by side are `state`, in the file's order; pictures, distances and clouds
  are found by shape and name (`senses`), `sensor_data/base_camera/rgb` is `images.base_camera`; segmentations and the cameras' matrices are
  left out. `pointcloud/xyzw` [T+1, N, 4] is a cloud of its first three numbers.
- A file without observations, as they are handed out, has `env_states` instead: they are the state, and a note says so.
- Success is the array's, else the JSON's, else not known. A last step that succeeds, fails or is `terminated` ends the task; every other
  end is a cut.
- The observation after the last action is in the file. `extra["sim_state"]` [T, S] keeps the simulator's state before each action where it
  is numbers, `extra["recorded_action"]` the actions in their own precision and range.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from realrl.data.formats import actions, common, hdf5, senses
from realrl.data.formats.common import Imported
from realrl.data.formats.hdf5 import library as library
from realrl.files import read_plain
from realrl.types import Array, Episode, Obs, RealrlError, Source

NAME = "maniskill"
FPS = 20  # ManiSkill's default control frequency
NO_OBSERVATION = re.compile(r"(.*\.)?(sensor_param|camera_param|segmentation|seg|Segmentation)(\..*)?|pointcloud\.rgb|"
                            r".*(in|ex)trinsic.*|.*cam2world.*")
KINDS = {"motionplanning": "script", "rl": "policy", "human": "human", "teleoperation": "human"}


def detect(path: Path) -> bool:
    """Such a file with its description beside it, or a folder with one of them."""
    return _file(path) is not None


def read(path: Path, *, task: str | None = None, fps: float | None = None, keys: Sequence[str] | None = None,
         state: Sequence[str] | None = None, action: str | Sequence[str] | None = None, action_range: tuple[float, float] | None = None,
         source: str | None = None, success: bool = False) -> Imported:
    """Open a ManiSkill file.

    task: its text, by default the environment's name; fps: by default the environment's control frequency; keys: which observations (paths
    below obs, "agent.qpos"), by default all; state: which of them make up obs["state"]; action: the arrays of a group of actions that are
    read; action_range: (low, high) mapped onto [-1, 1]; source: who acted (human, policy, script), by default as the description says;
    success: count each demonstration as ended in success. Raises RealrlError.
    """
    span = common.check_range(action_range)
    found = _file(path) or path
    about, notes = _described(found.with_suffix(".json"))
    env = _entry(about.get("env_info"))
    who = common.source_of(source or KINDS.get(str(about.get("source_type")).lower(), "human"))
    told = {f"traj_{e.get('episode_id')}": e for e in about.get("episodes") or [] if isinstance(e, dict)}
    with hdf5.open_file(found) as file:
        every = sorted((n for n in hdf5.names(file) if re.fullmatch(r"traj_\d{1,9}", n)), key=lambda n: int(n[5:]))
        if not every:
            raise RealrlError(f"{found} holds no traj_0, traj_1, ... as ManiSkill's files do; give format= if it is of another kind")
        lengths = {name: _length(hdf5.subgroup(file, name)) for name in every}
        if not (kept := [name for name, n in lengths.items() if n]):
            raise RealrlError(f"{found}: none of {len(every)} episodes has actions; record them again")
        first = hdf5.subgroup(file, kept[0])
        wide = actions.held(first)
        parts = actions.parts(action, wide, found)
        keyed, picked, said = _layout(found, first, keys, state)
    rate, guess = _rate(found, env, fps)
    plan = _Plan(found, kept, parts, keyed, picked, task or str(env.get("env_id") or found.stem), rate, span, who, success, told)
    notes += [*guess, *said, *actions.said(parts)]
    if lost := [name for name in every if name not in kept]:
        notes.append(f"left out: {len(lost)} episodes without a step ({', '.join(lost[:9])})")
    if gone := [name for name in told if name not in every]:
        notes.append(f"the description lists {len(gone)} episodes that the file lacks ({', '.join(gone[:9])})")
    called = actions.names(parts, wide)
    meta = {"env_info": env, "demos": kept, **({"names": {"action": called}} if called else {})}
    return Imported(plan.task, rate, str(_entry(env.get("env_kwargs")).get("robot_uids") or "unknown"), _episodes(plan, notes), notes, meta,
                    len(kept))


# ---- the description


def _file(path: Path) -> Path | None:
    """The HDF5 file, None where this is none with a description."""
    try:
        files = [path] if path.is_file() else sorted(path.glob("*.h5"))
        found = [p for p in files if p.suffix in (".h5", ".hdf5") and p.with_suffix(".json").is_file() and hdf5.is_hdf5(p)]
    except OSError:
        return None
    return found[0] if len(found) == 1 else None


def _described(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The JSON beside the file and what to say. Raises RealrlError for a damaged one."""
    if not path.is_file():
        return {}, [f"{path.name} is not there, which tells the environment, seeds and who acted"]
    try:
        found: Any = json.loads(read_plain(path))
    except (OSError, ValueError, RecursionError) as error:
        raise RealrlError(f"{path} is not readable ({common.line(error)}); {common.AGAIN}") from error
    if not isinstance(found, dict) or not isinstance(found.get("episodes", []), list):
        raise RealrlError(f"{path} does not describe episodes as ManiSkill does; {common.AGAIN}")
    return found, []


def _entry(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _rate(path: Path, env: dict[str, Any], fps: float | None) -> tuple[float, list[str]]:
    """Control steps a second, and what to say."""
    options = _entry(env.get("env_kwargs"))
    known = (fps, options.get("control_freq"), _entry(options.get("sim_config")).get("control_freq"))
    told = next((x for x in known if x is not None), None)
    if rate := common.rate_of(told, path):
        return rate, []
    return FPS, [f"the description does not say how many steps a second it has; {FPS}, ManiSkill's default: give fps= if it is another"]


# ---- the file


@dataclass(frozen=True)
class _Plan:
    """One import. parts: of the action; keys: path in the trajectory -> our name; told: what the description says of each trajectory."""

    path: Path
    names: list[str]
    parts: list[str]
    keys: dict[str, str]
    state: list[str]
    task: str
    fps: float
    action_range: tuple[float, float] | None
    source: Source
    success: bool
    told: dict[str, dict[str, Any]]
    levels: senses.Levels = field(default_factory=senses.Levels)


def _length(one: Any) -> int:
    """Actions in a trajectory."""
    found = next((hdf5.member(one, name) for name in actions.held(one)), None)
    return 0 if found is None else int(found.shape[0])


def _layout(path: Path, one: Any, keys: Sequence[str] | None, state: Sequence[str] | None) -> tuple[dict[str, str], list[str], list[str]]:
    """(path in the trajectory -> our name, ours that make up the state, what to say)."""
    said = []
    there = _leaves(one, "obs")
    if not there:
        there = _leaves(one, "env_states")
        said.append("no observations in this file: the simulator's env_states stand for them; ManiSkill's replay_trajectory makes a "
                    "file with real ones (-o state, -o rgbd)")
    if list(there) in (["obs"], ["env_states"]):
        return {next(iter(there)): "state"}, ["state"], said
    short = {name.partition("/")[2].replace("/", "."): name for name in there}
    usual = [s for s in short if not NO_OBSERVATION.fullmatch(s)]
    chosen = common.only(keys, list(short), "observation", path) if keys is not None else usual
    if keys is None and len(usual) < len(short):
        said.append(f"left out: {', '.join(s for s in short if s not in usual)}; keys=NAME,NAME names what to read")
    ours = senses.names({_sense(s): (_shape(there[short[s]]), there[short[s]].dtype) for s in chosen}, path, mend=senses.KEYS)
    numbers = [n for n in ours.values() if not n.startswith(senses.SENSES)]
    picked = common.state_keys(state, (), numbers, path) if numbers else []
    if not ours:
        raise RealrlError(f"{path} holds no observation that can be read; {senses.KEYS}")
    if picked and picked != ["state"]:
        said.append(f"obs['state'] is {' + '.join(picked)}; state=NAME,NAME chooses others")
    return {short[s]: ours[_sense(s)] for s in chosen}, picked, said


def _leaves(one: Any, name: str) -> dict[str, Any]:
    """Arrays of numbers below a group by their path, or the one array of this name."""
    found = hdf5.member(one, name)
    if found is None:
        return {}
    below = {f"{name}/{n}": x for n, x in hdf5.leaves(found, order=hdf5.in_order).items()} if isinstance(found, library().Group) else {
        name: found}
    return {n: x for n, x in below.items() if x.shape and x.dtype.kind in "biuf"}


def _sense(name: str) -> str:
    """sensor_data.base_camera.rgb as base_camera, its depth as base_camera_depth."""
    if name == "pointcloud.xyzw":
        return "pointcloud"
    m = re.fullmatch(r"(?:sensor_data|image)\.(.+)\.(rgb|Color|depth)", name)
    return name if m is None else f"{m[1]}_depth" if m[2] == "depth" else f"images.{m[1]}"


def _shape(found: Any) -> tuple[int, ...]:
    """The shape of an array as it is read: xyzw without w."""
    return (*found.shape[:-1], 3) if found.name.endswith("/xyzw") else tuple(found.shape)


# ---- episodes


def _episodes(plan: _Plan, notes: list[str]) -> Iterator[Episode]:
    plan.levels.episodes = lambda: _episodes(plan, [])
    low, high, ended = np.inf, -np.inf, list[bool | None]()
    with hdf5.open_file(plan.path) as file:
        for name in plan.names:
            one = hdf5.subgroup(file, name)
            if one is None:
                raise RealrlError(f"{plan.path}: {name} is gone; was the file rewritten meanwhile? open it again")
            made = _episode(plan, name, one)
            low, high = common.wider(low, high, made.extra["recorded_action"])
            ended.append(made.succeeded if made.judged else None)
            yield made
    notes += common.range_note(low, high, plan.action_range)
    unknown = ended.count(None)
    notes.append(f"{ended.count(True)} of {len(ended)} episodes succeeded" + (
        f", of {unknown} the file does not say it; success=True counts every last step" if unknown else ""))


def _episode(plan: _Plan, name: str, one: Any) -> Episode:
    where, told = f"{plan.path}: {name}", plan.told.get(name, {})
    action = actions.column([_array(one, part, where) for part in plan.parts], plan.parts, where)
    action = action.reshape(len(action), -1)
    steps = len(action)
    obs: Obs = {}
    for path, ours in plan.keys.items():
        rows = _array(one, path, where)
        rows = rows[..., :3] if path.endswith("/xyzw") else rows
        obs[ours] = senses.converted(rows, ours, f"{where}/{path}", mend=senses.KEYS, levels=plan.levels)
    flags = {n: x.reshape(-1) for n in ("success", "fail", "terminated", "truncated", "rewards") if (x := hdf5.array(one, n)) is not None}
    if wrong := [n for n, x in flags.items() if len(x) != steps]:
        raise RealrlError(f"{where}: {steps} actions but {len(flags[wrong[0]])} of {wrong[0]}; write one number an action")
    won = flags["success"] > 0 if "success" in flags else None
    known = won is not None or isinstance(told.get("success"), bool)
    over = any(n in flags and bool(flags[n][-1]) for n in ("success", "fail", "terminated"))
    states = _leaves(one, "env_states")
    kept = {"sim_state": x[:steps].astype(np.float64)} if list(states) == ["env_states"] and (
        x := hdf5.array(one, "env_states")) is not None else {}
    made = common.episode(
        common.with_state(obs, plan.state), common.scale_actions(action, plan.action_range), fps=plan.fps, task=plan.task,
        policy=plan.source.name.lower(), source=plan.source, reward=flags.get("rewards"), terminated=over, truncated=not over,
        success=(np.zeros(steps, bool) if won is None else won) if known else None, extra={"recorded_action": action} | kept, where=where)
    seed = told.get("episode_seed")
    made = replace(made, seed=seed) if type(seed) is int and abs(seed) < 2**62 else made
    return common.with_success(made) if plan.success or (won is None and told.get("success") is True) else made


def _array(one: Any, path: str, where: str) -> Array:
    found = hdf5.array(one, path)
    if found is None or not found.ndim:
        raise RealrlError(f"{where} has no {path}, the first one has; name what all have with keys=NAME,NAME")
    return found
