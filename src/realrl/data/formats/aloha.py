"""HDF5 with one file an episode: ACT's and ALOHA's `episode_0.hdf5`, and what others made of it.

Layout (ACT, `record_sim_episodes`): `/action` [T, A], `/observations/{qpos,qvel,effort}` [T, J], `/observations/images/<cam>` [T, H, W, 3],
attribute `sim`. ALOHA's recorder writes JPEG rows [T, L], zeros behind each, with `/compress_len` and the attribute `compress`. Others keep
the pictures as bytes (RDT, RoboTwin, RoboMIND) and the action as a group (RoboTwin `joint_action/left_arm`, DROID `action/joint_position`).
numpy's npz is read alike, its arrays as if they were in such a file.

What becomes of it:
- `observations/`, `observation/` and `obs/` are left off, a path "a/b" is called "a.b"; without such a group every array beside the action
  is an observation. Pictures, distances and clouds are found by shape and name (`senses`). `state` is `qpos`, or the joints' and
  the gripper's positions, else what `state` names.
- `compress_len` is not needed, and not believed: its rows are in the order of the recorder's cameras, which the file does not keep.
- Pictures are read as JPEG means them. OpenCV's encoder takes blue for the first colour, so whoever gave it RGB has red and blue exchanged
  in the file: `colours="bgr"` exchanges them back, also of pictures that are not compressed.
- Success is an attribute or an array of this name, or a folder `success` or `failure` that the file lies in; else it is not known.
- There is no observation after the last action: `last="repeat"` says the last one twice, `last="drop"` leaves that action out.
- `extra["recorded_action"]` [T, A] keeps the action in the file's own precision and range.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from realrl.data import words
from realrl.data.formats import actions, common, episode_files, hdf5, pictures, senses
from realrl.data.formats.common import Imported
from realrl.data.formats.hdf5 import library as library
from realrl.data.schema import outcome
from realrl.data.words import OUTCOMES, VERDICTS
from realrl.files import within
from realrl.types import Array, Episode, RealrlError, Source

NAME = "aloha"
FPS = 50  # of ALOHA's arms
BASES = ("observations", "observation", "obs")
USUAL_STATE = ("qpos", "joint_positions", "joint_position", "gripper_position")
BESIDE = re.compile(r"(.*[./])?(.*_)?(actions?|rewards?|dones?|time|timestamps?|compress_len|index|frame_id|master|leader|"
                    r"(in|ex)trinsics?)([._/].*)?|"
                    rf"({'|'.join(OUTCOMES)})")  # no observations, unless named
SENT = re.compile(r"(^|[._])actions?$")
RATES = ("fps", "frequency", "control_freq", "control_frequency", "hz")
REWARDS = ("reward", "rewards")
MISSING = ("error", "episodes", "camera")
LEAVE = "missing=episodes leaves out the episodes that lack something"


def detect(path: Path) -> bool:
    """A folder with HDF5 or npz files, or such a file called episode_N."""
    try:
        if path.is_dir():
            return any(episode_files.is_one(file) for file in _files(path)[:1])
        named = path.suffix == ".npz" or re.fullmatch(r"episode_?\d+", path.stem) is not None
        return named and episode_files.is_one(path)
    except (OSError, RealrlError):  # a link that leads out of the folder
        return False


def read(path: Path, *, task: str | None = None, fps: float | None = None, keys: Sequence[str] | None = None,
         state: Sequence[str] | None = None, action: str | Sequence[str] | None = None, action_range: tuple[float, float] | None = None,
         colours: str = "rgb", missing: str = "error", source: str = "human", success: bool = False, last: str = "repeat") -> Imported:
    """Open a folder of episodes, or one.

    task: its text, by default the file's attribute or the folder's name; fps: by default an attribute's, or ALOHA's 50; keys: which
    observations, by default all; state: which of them make up obs["state"]; action: the arrays that are the action, side by side;
    action_range: (low, high) mapped onto [-1, 1]; colours: "rgb", or "bgr" to exchange red and blue; missing: what to do about an
    episode that is damaged or lacks an array: "error", leave out its "episodes", or the "camera" (of arrays, those that some lack);
    source: who acted (human, policy, script); success: count each episode as ended in success; last: "repeat" or "drop". Raises
    RealrlError.
    """
    who, span, ending = common.source_of(source), common.check_range(action_range), common.check_last(last)
    for name, value, known in (("colours", colours, ("rgb", "bgr")), ("missing", missing, MISSING)):
        if value not in known:
            raise RealrlError(f"{name} is {value!r}, must be one of {', '.join(known)}")
    root = path if path.is_dir() else path.parent
    files = _files(path) if path.is_dir() else [path]
    if not files:
        raise RealrlError(f"{path} holds no HDF5 or npz file; give the folder that holds episode_0.hdf5, episode_1.hdf5, ...")
    takes, notes = _scan(files, missing)
    first = next(iter(takes.values()))
    parts = actions.parts(action, {n: a.width for n, a in first.arrays.items() if a.plain}, path)
    ours = _named(path, takes, parts, keys, missing, notes)
    picked = common.state_keys(state, USUAL_STATE, [n for n in ours.values() if not n.startswith(senses.SENSES)], path)
    plan = _Plan(root, parts, ours, picked, task, common.rate_of(first.fps if fps is None else fps, path) or FPS, span, colours == "bgr",
                 who, success, ending)
    takes, said = _whole(plan, takes, missing)
    notes += actions.said(parts) + said + _notes(plan, first, fps)
    if unread := [*dict.fromkeys(hdf5.shown(name) for take in takes.values() for name in take.unread)]:
        notes.append(f"left out: {', '.join(unread[:9])}, which hold no plain numbers (records, Python objects, rows of several lengths)")
    called = actions.names(parts, {n: first.arrays[n].width for n in parts})
    return Imported(task or _text(first, root), plan.fps, first.robot, _episodes(plan, takes, notes), notes,
                    {"files": [str(f) for f in takes], **({"names": {"action": called}} if called else {})}, len(takes))


# ---- what the files hold


@dataclass(frozen=True)
class _Held:
    """An array of a file: rows [T, ...] of numbers (plain), or T encoded pictures."""

    shape: tuple[int, ...]
    dtype: Any
    plain: bool

    @property
    def width(self) -> int:
        return int(np.prod(self.shape[1:]))


@dataclass(frozen=True)
class _Take:
    """One file: its arrays by their path, those that nobody can read, and what its attributes say."""

    arrays: dict[str, _Held]
    unread: list[str]
    fps: Any
    text: str | None
    robot: str
    won: bool | None


@dataclass(frozen=True)
class _Plan:
    """One import. parts: of the action; ours: path -> our name of an observation; swap: whether red and blue change places."""

    root: Path
    parts: list[str]
    ours: dict[str, str]
    state: list[str]
    task: str | None
    fps: float
    action_range: tuple[float, float] | None
    swap: bool
    source: Source
    success: bool
    last: common.Last
    levels: senses.Levels = field(default_factory=senses.Levels)


def _files(folder: Path) -> list[Path]:
    """HDF5 and npz files of a folder, at most three folders down, in the order of the numbers in their names. Raises RealrlError for a link
    that leads out of it: without that episode the set would be another one."""
    found = {p for depth in ("*", "*/*", "*/*/*", "*/*/*/*") for ending in episode_files.ENDINGS for p in folder.glob(f"{depth}.{ending}")}
    there = sorted((p for p in found if p.is_file()), key=_number)
    for path in there:
        within(folder, path)
    return there


def _number(path: Path) -> list[tuple[int, int, str]]:
    """episode_2 before episode_10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d{1,18})", str(path))]


def _scan(files: Sequence[Path], missing: str) -> tuple[dict[Path, _Take], list[str]]:
    """What each file holds, and what to say of those that are left out."""
    takes: dict[Path, _Take] = {}
    lost: list[str] = []
    for path in files:
        try:
            with episode_files.opened(path) as file:
                takes[path] = _take(file, path)
        except RealrlError as error:
            if missing != "episodes":
                raise RealrlError(f"{error} ({LEAVE})" if common.AGAIN in str(error) and len(files) > 1 else str(error)) from error
            lost.append(path.name)
    if not takes:
        raise RealrlError(f"{files[0].parent}: none of {len(files)} files can be read; copy them again")
    return takes, [f"left out: {len(lost)} files that cannot be read ({', '.join(lost[:9])})"] if lost else []


def _take(file: Any, path: Path) -> _Take:
    there = hdf5.leaves(file, order=hdf5.in_order)
    arrays = {name: held for name, found in there.items() if (held := _held(found)) is not None}
    unread = [name for name, found in there.items() if name not in arrays and _strange(found)]
    told = {name: hdf5.attribute(file, name) for name in (*OUTCOMES, *RATES, "robot_type", "robot")}
    told |= {n: bool(won.any()) for n in OUTCOMES if told[n] is None and n in arrays and (x := hdf5.array(file, n)) is not None
             and (won := words.frames(x)) is not None}
    for folder in (part.lower() for part in reversed(path.parts[-4:-1])):
        if folder in VERDICTS and folder.startswith(("succ", "fail")) and outcome(told) is None:
            told["success"] = VERDICTS[folder]
    robot = next((t for n in ("robot_type", "robot") if isinstance(t := told[n], str) and t), "unknown")
    return _Take(arrays, unread, next((told[n] for n in RATES if told[n] is not None), None) or _clocked(file, arrays),
                 next((text for name in common.TEXTS if (text := hdf5.text(file, name))), None), robot, outcome(told))


def _clocked(file: Any, arrays: dict[str, _Held]) -> int | float | None:
    """Steps a second by an array of times, None where there is none that says it."""
    clocks = [n for n, held in arrays.items() if n.rpartition("/")[2] in common.CLOCKS and held.plain and held.width == 1]
    found = hdf5.array(file, clocks[0]) if clocks else None
    return None if found is None else common.rate_by(np.diff(found.reshape(-1).astype(np.float64)))


def _held(found: Any) -> _Held | None:
    """An array as it can be read, None for texts and single numbers."""
    with common.damage(hdf5.where(found)):
        shape, dtype = found.shape, found.dtype
    if not shape:
        return None
    if pictures.compressed(found):
        return _Held(tuple(shape[:1]), dtype, False)
    return _Held(tuple(shape), dtype, True) if dtype.kind in "biuf" else None


def _strange(found: Any) -> bool:
    """Whether a dataset holds neither numbers nor texts: records, rows of several lengths, objects."""
    return bool(found.shape) and found.dtype.kind not in "biuf" and hdf5.library().check_string_dtype(found.dtype) is None


def _named(path: Path, takes: dict[Path, _Take], parts: Sequence[str], keys: Sequence[str] | None, missing: str, notes: list[str]
           ) -> dict[str, str]:
    """path -> our name of every observation that is read."""
    held = next(iter(takes.values())).arrays
    based = [n for n in held if n.partition("/")[0] in BASES]
    short = {(n.partition("/")[2] if n in based else n).replace("/", "."): n for n in held if n not in parts}
    apart = {part.rpartition("/")[0] for part in parts} - {""}  # the group that the action lies in
    usual = [s for s, n in short.items() if not BESIDE.fullmatch(s) and n.rpartition("/")[0] not in apart and held[n].width]
    numbers = any(held[short[s]].plain and len(held[short[s]].shape) < 3 for s in usual if short[s] in based)
    usual = [s for s in usual if not numbers or short[s] in based]  # what lies beside them is no observation where they hold the state
    chosen = common.only(keys, list(short), "observation", path) if keys is not None else usual
    lacking = {s: [p.name for p, take in takes.items() if short[s] not in take.arrays] for s in chosen}
    if missing == "camera" and (lost := {s: names for s, names in lacking.items() if names}):
        chosen = [s for s in chosen if s not in lost]
        notes.append("left out: " + ", ".join(f"{s} (not in {', '.join(names[:3])})" for s, names in lost.items()))
    if left := [s for s in short if s not in chosen and s not in REWARDS and (keys is None or short[s] in based)]:
        notes.append(f"left out: {', '.join(left)}; keys=NAME,NAME names what to read" if keys is None else f"left out: {', '.join(left)}")
    if acts := [short[s] for s in left if SENT.search(s) and held[short[s]].plain and len(held[short[s]].shape) == 2]:
        notes.append(f"{', '.join(acts)} may have been sent, too: action={','.join([*parts, *acts])} makes it part of the action")
    coded = {s: ((1, 64, 64), np.uint16) if senses.DEPTH.search(s) else ((1, 64, 64, 3), np.uint8) for s in chosen}
    ours = senses.names({s: (a.shape, a.dtype) if (a := held[short[s]]).plain else coded[s] for s in chosen}, path, mend=senses.KEYS)
    if not ours:
        raise RealrlError(f"{path}: there is no observation beside {', '.join(parts)}; {senses.KEYS}")
    return {short[s]: own for s, own in ours.items()}


def _whole(plan: _Plan, takes: dict[Path, _Take], missing: str) -> tuple[dict[Path, _Take], list[str]]:
    """The takes that hold a step and all that is read, and what to say of the others."""
    empty = [p.name for p, t in takes.items() if any(n in t.arrays and not t.arrays[n].shape[0] for n in plan.parts)]
    wanted = [*plan.parts, *plan.ours]
    first = next(iter(takes.values()))
    lacking = {p: lost[0] for p, t in takes.items() if p.name not in empty and (lost := [
        n for n in wanted if n not in t.arrays or t.arrays[n].plain != first.arrays[n].plain
        or (t.arrays[n].plain and t.arrays[n].shape[1:] != first.arrays[n].shape[1:])])}
    if lacking and missing != "episodes":
        path, name = next(iter(lacking.items()))
        raise RealrlError(f"{path} has no {name} like that of the first file ({len(lacking)} of {len(takes)} files); {LEAVE}, "
                          "missing=camera the arrays that some lack")
    found = {p: t for p, t in takes.items() if p.name not in empty and p not in lacking}
    if not found:
        raise RealrlError(f"{plan.root}: no file holds a whole episode with a step; record it again")
    said = [f"left out: {len(empty)} episodes without a step ({', '.join(empty[:9])})"] if empty else []
    return found, said + ([f"left out: {len(lacking)} episodes that lack something ({', '.join(p.name for p in list(lacking)[:9])})"]
                          if lacking else [])


def _notes(plan: _Plan, first: _Take, fps: float | None) -> list[str]:
    said = [common.NOTHING_AFTER]
    if plan.state and plan.state != ["state"]:
        said.append(f"obs['state'] is {' + '.join(plan.state)}; state=NAME,NAME chooses others")
    if first.fps is None and fps is None:
        said.append(f"the files do not say how many steps a second they have; {FPS}, as ALOHA's arms: give fps= if it is another")
    if any(not first.arrays[n].plain for n in plan.ours) and not plan.swap:
        said.append("compressed pictures are read as JPEG means them; if red and blue are exchanged, as OpenCV's encoder does to RGB: "
                    "colours=bgr")
    return said


# ---- episodes


def _episodes(plan: _Plan, takes: dict[Path, _Take], notes: list[str]) -> Iterator[Episode]:
    low, high, judged = np.inf, -np.inf, 0
    for path, take in takes.items():
        plan.levels.episodes = partial(_episodes, plan, {p: other for p, other in takes.items() if p != path}, [])  # this one is open
        with episode_files.opened(path) as file:
            made = _episode(plan, take, file, path)
        low, high = common.wider(low, high, made.extra["recorded_action"])
        judged += made.judged
        yield made
    notes += common.range_note(low, high, plan.action_range)
    if judged < len(takes):
        notes.append("the files do not say which episodes succeeded, so that stays unknown; success=True counts every last step")


def _episode(plan: _Plan, take: _Take, file: Any, path: Path) -> Episode:
    action = actions.column([_rows(file, name, take) for name in plan.parts], plan.parts, str(path))
    action = action.reshape(len(action), -1)
    obs = {}
    for name, ours in plan.ours.items():
        rows = senses.converted(_rows(file, name, take), ours, f"{path}: {name}", mend=senses.KEYS, levels=plan.levels)
        obs[ours] = np.ascontiguousarray(rows[..., ::-1]) if plan.swap and ours.startswith("images.") else rows
    won = None if take.won is None else np.zeros(len(action), bool)
    paid = [x.reshape(-1) for n in REWARDS if n in take.arrays and (x := hdf5.array(file, n)) is not None and x.size == len(action)]
    made = common.episode(common.with_state(obs, plan.state), common.scale_actions(action, plan.action_range), fps=plan.fps,
                          task=plan.task or _text(take, plan.root), policy=plan.source.name.lower(), source=plan.source, success=won,
                          reward=paid[0] if paid else None, extra={"recorded_action": action}, last=plan.last, where=str(path))
    return common.with_success(made) if plan.success or take.won else made


def _rows(file: Any, name: str, take: _Take) -> Array:
    """An array of a file [T, ...], its pictures decoded."""
    if take.arrays[name].plain:
        found = hdf5.array(file, name)
        if found is None:
            raise RealrlError(f"{hdf5.where(file)}/{name} is gone; was the file rewritten meanwhile? open it again")
        return found
    return pictures.rows(file, name)


def _text(take: _Take, root: Path) -> str:
    return take.text or root.resolve().name
