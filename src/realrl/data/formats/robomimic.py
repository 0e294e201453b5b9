"""robomimic's HDF5, and robosuite's `demo.hdf5` that it is made from.

Layout (robomimic, "Dataset structure"): `data/demo_i/{actions,rewards,dones,states}` [T, ...], `obs/<key>` and `next_obs/<key>`
[T, ...], attributes `num_samples`, `model_file`; `data` has `total` and `env_args`; `mask/<filter>` lists demos.
A robosuite file has only actions and simulator states, and its models lie beside it as xml files.

IsaacLab's files are alike, but `obs` and `states` hold groups of groups, and whether a demonstration succeeded is an attribute of it.

What becomes of it:
- Pictures, distances and clouds are found by shape and name (`senses`): `<cam>_image` is `images.<cam>`, `<cam>_depth` is
  `depth.<cam>`; every other key keeps its name, that of a group's member is `group.member`; `state` joins some.
- MimicGen's `datagen_info` (its poses and targets) is no observation, unless `keys` names it.
- The observation after the last action is the last `next_obs`. A file without `next_obs` has none: `last="repeat"` says the last
  observation twice and keeps every action, `last="drop"` leaves the last action out.
- A reward of 0 or 1 is robomimic's sparse reward: 1 means success. A last `dones` counts as termination when that step
  succeeded, or when the reward is dense; else somebody ended the demonstration and it is truncated.
- Without observations `state` is what the simulator kept: robosuite's positions and velocities (its time left out), or IsaacLab's
  `states`, which are those after each step, behind its `initial_state`.
- `extra["sim_state"]` [T, S] float64 and `extra["model_file"]` (xml, a string array of no dimension) are kept for replay,
  `extra["recorded_action"]` [T, A] too, in the file's own precision and range.

Export writes the same layout, and next to it a group `realrl` per demo with what robomimic has no room for (who acted, time,
success, ...), which robomimic ignores and `read` restores.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from realrl.data import words
from realrl.data.formats import actions, common, episode_files, hdf5, pictures, senses
from realrl.data.formats.common import Imported
from realrl.data.formats.hdf5 import library as library
from realrl.data.schema import outcome
from realrl.data.words import OUTCOMES
from realrl.types import Array, Episode, Obs, RealrlError, Source

NAME = "robomimic"
USUAL_STATE = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "robot1_eef_pos", "robot1_eef_quat",
               "robot1_gripper_qpos", "eef_pos", "eef_quat", "gripper_pos", "left_eef_pos", "left_eef_quat", "right_eef_pos",
               "right_eef_quat", "hand_joint_state", "object")  # what robomimic's low-dimensional policies look at, and IsaacLab's
BOOKKEEPING = "datagen_info"
BESIDE = {"obs": "next_obs", "observations": "next_observations", "states": "initial_state"}  # what is observed, and what lies beside it
CODED, CODED_DEPTH = ((1, 64, 64, 3), np.uint8), ((1, 64, 64), np.uint16)  # what compressed pictures are, whatever their size
DEMO = re.compile(r"(?:(?:demo|episode|traj|ep|trajectory|rollout)_?)?(\d{1,9})")
GYM = 2  # robomimic's number for an environment that gymnasium makes


def detect(path: Path) -> bool:
    """An HDF5 file that is not the inside of a Minari dataset."""
    return hdf5.is_hdf5(path) and path.name != "main_data.hdf5"


def read(path: Path, *, task: str | None = None, fps: float | None = None, keys: Sequence[str] | None = None,
         state: Sequence[str] | None = None, action: str | Sequence[str] | None = None, filter: str | None = None,
         action_range: tuple[float, float] | None = None, source: str = "human", success: bool = False, last: str = "repeat") -> Imported:
    """Open a robomimic or robosuite file.

    task: its text, by default the environment's name; fps: by default the file's control frequency; keys: which observations
    (the file's own names), by default all; state: which of them make up obs["state"]; action: the arrays of a group of actions that are
    read, side by side, by default all; filter: a name in `mask`, e.g. "train";
    action_range: (low, high) mapped onto [-1, 1]; source: who acted (human, policy, script); success: count each demonstration
    as ended in success, for a file without rewards; last: "repeat" or "drop", see the module. Raises RealrlError.
    """
    who, span, ending = common.source_of(source), common.check_range(action_range), common.check_last(last)
    with hdf5.open_file(path) as file:
        data = hdf5.subgroup(file, "data")
        demos = _demos(data) if data is not None else []
        if data is None or not demos:
            raise _other(path, file)
        masks = _masks(file)
        others = [name for name in hdf5.names(file) if name != "data" and (g := hdf5.subgroup(file, name)) is not None and _demos(g)]
        if filter is not None:
            demos = [d for d in demos if d in masks[common.only([filter], list(masks), "filter", path)[0]]]
        env = hdf5.json_attribute(data, "env_args") or _robosuite_env(data)
        parts, wide = _parts(data, demos, action, path)
        every, (demos, low, high, rewarded, won) = demos, _scan(data, demos, parts)
        if not demos:
            raise RealrlError(f"{path}: none of {len(every)} demonstrations has actions; "
                              + ("record them again" if filter is None else f"choose another filter than {filter!r}"))
        first = hdf5.subgroup(data, demos[0])
        rate, note = _rate(path, env, first, hdf5.attribute(data, "fps") if fps is None else fps)
        layout, said = _layout(path, first, keys, state)
        spoken = hdf5.json_attribute(data, "problem_info").get("language_instruction")  # LIBERO's
    text = task or _text(spoken) or _text(env.get("env_name")) or path.stem
    plan = _Plan(path, demos, layout, parts, task, text, rate, span, who, success, ending)
    notes = [*note, *said, *actions.said(parts), *common.range_note(low, high, span)]
    if others:
        notes.append(f"left out: {', '.join(others)} (other groups of demonstrations; those in data are read)")
    if masks:
        notes.append("filters of this file: " + ", ".join(f"{k} ({len(v)} demos)" for k, v in masks.items()))
    if lost := [n for n in every if n not in demos]:
        notes.append(f"left out, as they have no actions: {', '.join(lost)}")
    if won:
        notes.append(f"{won.count(True)} of {len(demos)} demonstrations succeeded, as their attribute `success` says")
    elif not rewarded and not success:
        notes.append("no rewards in this file: they are 0, and success is unknown; success=True counts every last step")
    called = actions.names(parts, wide)
    meta = {"env_args": env, "masks": {k: sorted(v) for k, v in masks.items()}, "demos": demos} | (
        {"names": {"action": called}} if called else {})
    return Imported(plan.task, rate, _robot(env), _episodes(plan), notes, meta, len(demos))


def _other(path: Path, file: Any) -> RealrlError:
    """What to say of a file in another layout."""
    found = hdf5.names(file)
    many = any(re.fullmatch(r"traj_\d+", name) for name in found)
    one = any(re.fullmatch(r"(joint_|q)?actions?|observations?|obs", name) for name in found)
    if several := [name for name in found if name in episode_files.ENDS or name == "episode_ends"]:
        return RealrlError(f"{path} holds many episodes one after another, by its {several[0]}, not in groups data/demo_0, data/demo_1 ... "
                           "as robomimic's files do; write it so, or as a zarr of diffusion_policy's with meta/episode_ends")
    like, name = ("ManiSkill's", "maniskill") if many else ("one episode of ALOHA's", "aloha")
    mend = (f"it looks like {like}: format={name}" if many or one else
            "convert it to LeRobot's or robomimic's layout first; of HDF5 ALOHA's (format=aloha) and ManiSkill's are read, too")
    return RealrlError(f"{path} holds no data/demo_0, data/demo_1, ... as robomimic's files do; it holds "
                       f"{', '.join(ascii(n)[1:-1] for n in found[:8]) or 'nothing'}; {mend}")


# ---- reading


@dataclass(frozen=True)
class _Layout:
    """keys: path in the group `base` -> our name; state: ours that make up obs["state"]; beside: the group of the same paths that has
    what base lacks, "next_obs" its last row, "initial_state" its first, "" where there is none."""

    keys: dict[str, str]
    state: list[str]
    base: str = "obs"
    beside: str = ""


@dataclass(frozen=True)
class _Plan:
    path: Path
    demos: list[str]
    layout: _Layout
    actions: list[str]
    renamed: str | None  # the task's text, when the caller gave one
    task: str
    fps: float
    action_range: tuple[float, float] | None
    source: Source
    success: bool
    last: common.Last
    levels: senses.Levels = field(default_factory=senses.Levels)


def _demos(data: Any) -> list[str]:
    """The demonstrations in a group, in the order of their numbers."""
    found = [(int(m[1]), n) for n in hdf5.names(data) if (m := DEMO.fullmatch(n))]
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
    sim = env.get("sim_args")
    try:
        period = float(sim["dt"]) * float(sim.get("decimation", 1)) if isinstance(sim, dict) else 0.0  # IsaacLab
    except (KeyError, TypeError, ValueError):
        period = 0.0
    states = _states(demo)
    if not period and states is not None and states.ndim == 2 and len(states) > 2 and states.dtype.kind == "f":
        period = float(np.median(np.diff(states[:, 0])))  # MuJoCo states begin with the time
    if 1e-4 < period < 10:
        return common.rate_from(period), []
    return 20, ["the file does not say how many steps a second it has; 20, as robosuite does by default: give fps= if it is another"]


def _states(demo: Any) -> Array | None:
    """The simulator's state [T, S], as robosuite keeps it; None for IsaacLab's groups."""
    found = hdf5.member(demo, "states")
    return None if found is None or isinstance(found, library().Group) else hdf5.array(demo, "states")


def _layout(path: Path, demo: Any, keys: Sequence[str] | None, state: Sequence[str] | None) -> tuple[_Layout, list[str]]:
    base = next((n for n in BESIDE if isinstance(hdf5.member(demo, n), library().Group)), None)
    if base is None:
        if keys is not None or state is not None:
            raise RealrlError(f"{path} has no observations to choose from, only simulator states; leave out the options keys and state")
        return _Layout({}, []), ["no observations in this file: obs['state'] is the simulator's positions and velocities; "
                                 "robomimic's dataset_states_to_obs.py makes a file with real ones", common.NOTHING_AFTER]
    group = hdf5.subgroup(demo, base)
    found = {p.replace("/", "."): (p, x) for p, x in hdf5.leaves(group).items()}
    if keys is None:
        usable = {n: x for n, x in found.items() if not n.startswith(f"{BOOKKEEPING}.") and (
            pictures.compressed(x[1]) or (x[1].dtype.kind in "biuf" and x[1].ndim and all(x[1].shape[1:])))}
    else:
        usable = {n: found[n] for n in common.only(keys, list(found), "observation", path)}
    coded = {n: (CODED_DEPTH if senses.DEPTH.search(n) else CODED) for n, (_, x) in usable.items() if pictures.compressed(x)}
    checked = {n: x for n, (p, _) in usable.items() if n not in coded and (x := hdf5.dataset(group, p)) is not None}
    ours = senses.names(coded | {n: (x.shape, x.dtype) for n, x in checked.items()}, path, "_image", senses.KEYS)
    picked = common.state_keys(state, USUAL_STATE, [n for n in ours.values() if not n.startswith(senses.SENSES)], path)
    said = [] if picked == ["state"] or not picked else [f"obs['state'] is {' + '.join(picked)}; state=NAME,NAME chooses others"]
    if lost := sorted({n.partition(".")[0] for n in found if n not in usable and keys is None}):
        said.append(f"left out: {', '.join(lost)} (no numbers, empty, or MimicGen's bookkeeping); keys=NAME,NAME names what to read")
    beside = BESIDE[base]
    there = hdf5.subgroup(demo, beside) is not None
    if base == "states":
        if not there:
            raise RealrlError(f"{path} has neither observations nor an initial_state before its states; record it with observations")
        said.append("no observations in this file: the simulator's states stand for them, behind its initial_state")
    elif not there:
        said.append(common.NOTHING_AFTER)
    return _Layout({usable[n][0]: own for n, own in ours.items()}, picked, base, beside if there else ""), said


def _scan(data: Any, demos: Sequence[str], parts: Sequence[str]) -> tuple[list[str], float, float, bool, list[bool]]:
    """(demos that have actions, least action, greatest action, whether all have rewards, what their attributes `success` say): every demo
    is looked at, so damage shows before any work."""
    low, high, rewarded = np.inf, -np.inf, True
    acting: list[str] = []
    won: list[bool] = []
    for name in demos:
        demo = hdf5.subgroup(data, name)
        action = None if demo is None else _actions(demo, parts)
        if demo is None or action is None or action.ndim < 1 or not action.size:
            continue
        acting.append(name)
        low, high = common.wider(low, high, action)
        rewarded = rewarded and hdf5.member(demo, "rewards") is not None
        won += [] if (told := _told(demo)) is None else [told]
    return acting, low, high, rewarded, won


def _told(demo: Any) -> bool | None:
    """Whether a demonstration succeeded, by its attribute, or by an array of that name; None where it has none."""
    found: dict[str, Any] = {name: hdf5.attribute(demo, name) for name in OUTCOMES}
    there = hdf5.names(demo)
    found |= {n: bool(won.any()) for n in OUTCOMES if found[n] is None and n in there and (x := hdf5.array(demo, n)) is not None
              and (won := words.frames(x)) is not None}
    return outcome(found)


def _spoken(demo: Any) -> str | None:
    """What a demonstration is told to do, in its own words or robosuite's (`ep_meta`); None where it has none."""
    own = next((text for name in common.TEXTS if (text := hdf5.text(demo, name))), None)
    return own or _text(hdf5.json_attribute(demo, "ep_meta").get("lang"))


def _parts(data: Any, demos: Sequence[str], asked: str | Sequence[str] | None, where: Path) -> tuple[list[str], dict[str, int]]:
    """(the arrays that are the action, numbers in a row of each), as the first demonstration with any has them."""
    there = [demo for name in demos if (demo := hdf5.subgroup(data, name)) is not None]
    wide = next((wide for demo in there if (wide := actions.held(demo))), {})
    if there and (asked is not None or not wide):
        wide = wide | actions.near(there[0], every=asked is not None)
    return (actions.parts(asked, wide, where), wide) if wide else ([], {})


def _actions(demo: Any, parts: Sequence[str]) -> Array | None:
    """The actions of a demonstration, None where it has none."""
    found = [hdf5.array(demo, name) for name in parts]
    columns = [x for x in found if x is not None and x.ndim]
    return actions.column(columns, parts, hdf5.where(demo)) if columns and len(columns) == len(parts) else None


def _column(demo: Any, name: str) -> Array | None:
    """A column of one number a step [T], however it is laid out."""
    found = hdf5.array(demo, name)
    return found.reshape(-1) if found is not None and found.ndim == 2 and found.shape[1] == 1 else found


def _episodes(plan: _Plan) -> Iterator[Episode]:
    plan.levels.episodes = lambda: _episodes(plan)
    with hdf5.open_file(plan.path) as file:
        data = hdf5.subgroup(file, "data")
        for name in plan.demos:
            demo = hdf5.subgroup(data, name)
            if demo is None:
                raise RealrlError(f"{plan.path}: data/{name} is gone; was the file rewritten meanwhile? open it again")
            yield _episode(plan, demo, f"{plan.path}: data/{name}")


def _episode(plan: _Plan, demo: Any, where: str) -> Episode:
    action, states, told = _actions(demo, plan.actions), _states(demo), _told(demo)
    if action is None or action.ndim < 1:
        raise RealrlError(f"{where} has no actions any more; was the file rewritten meanwhile? open it again")
    extra = {"recorded_action": action} | ({} if states is None else {"sim_state": states})
    if (model := _model(plan.path, demo)) is not None:
        extra["model_file"] = np.array(model)
    reward, done = _column(demo, "rewards"), _column(demo, "dones")
    sparse = reward is not None and bool(np.isin(reward, (0.0, 1.0)).all())
    won = reward == 1.0 if reward is not None and sparse else None if told is None else np.zeros(len(action), bool)
    over = bool(done[-1]) if done is not None and done.ndim == 1 and len(done) else False
    terminated = over and (won is None or bool(won[-1])) and reward is not None
    made = common.episode(
        _obs(plan, demo, states, where), common.scale_actions(action, plan.action_range), fps=plan.fps,
        task=plan.renamed or _spoken(demo) or plan.task, policy=plan.source.name.lower(), source=plan.source, reward=reward, success=won,
        terminated=terminated, truncated=not terminated, extra=extra, last=plan.last, where=where)
    if (plan.success and reward is None) or (told and not made.success.any()):
        made = common.with_success(made)
    return _restored(plan, made, demo, where)


def _obs(plan: _Plan, demo: Any, states: Array | None, where: str) -> Obs:
    """obs with the last row of next_obs behind it, each [T+1, ...] or, where there is no next_obs, [T, ...]."""
    layout = plan.layout
    if not layout.keys:
        if states is None or states.ndim != 2 or states.shape[1] < 2:
            raise RealrlError(f"{where} has neither observations nor states; write the file without it")
        return {"state": states[:, 1:].astype(np.float32)}
    now, beside = hdf5.subgroup(demo, layout.base), hdf5.subgroup(demo, layout.beside) if layout.beside else None
    found: Obs = {}
    for theirs, ours in layout.keys.items():
        rows = None if now is None else _rows(now, theirs)
        if rows is None or rows.ndim < 1:
            raise RealrlError(f"{where}/{layout.base} has no {theirs!r}, the first one has; name what all have with keys=NAME,NAME")
        if layout.beside:
            other = None if beside is None else _rows(beside, theirs)
            fits = other is not None and other.shape[1:] == rows.shape[1:]
            if other is None or not fits or len(other) not in ((len(rows),) if layout.beside == "next_obs" else (1, len(rows))):
                raise RealrlError(f"{where}/{layout.beside} has no {theirs!r} like that of {layout.base}; {senses.KEYS}")
            rows = np.concatenate([rows, other[-1:]] if layout.beside == "next_obs" else [other[:1], rows])
        found[ours] = senses.converted(rows, ours, f"{where}/{layout.base}/{theirs}", mend=senses.KEYS, levels=plan.levels)
    return common.with_state(found, layout.state)


def _rows(group: Any, name: str) -> Array | None:
    """An observation [T, ...], its pictures decoded where they are compressed; None where there is none."""
    found = hdf5.member(group, name)
    return pictures.rows(group, name) if isinstance(found, library().Dataset) and pictures.compressed(found) else hdf5.array(group, name)


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

