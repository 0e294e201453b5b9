"""diffusion_policy's replay buffer: a zarr folder or a zip of one (`*.zarr`, `*.zarr.zip`), versions 2 and 3.

Layout (diffusion_policy, `ReplayBuffer`): `data/<key>` [N, ...] holds the steps of all episodes one after another,
`meta/episode_ends` [E] where each ends. One of the keys is the action; pushT has also `img`, `state`, `keypoint`, `n_contacts`.

RL-100's own buffers have the same layout and more: `next_<key>` behind every step, `reward`, `return`, `done` and `timeout`.

What becomes of it:
- Pictures, distances and clouds are found by shape and name (`senses`), every other key keeps its name; `state` joins some of them.
- The observation after an episode's last action is the last `next_<key>`. Where there is none, `last="repeat"` says the last
  observation twice and keeps every action, `last="drop"` leaves the last action out.
- Without an action (UMI's handheld gripper has none) the pose and the gripper's width of the step that follows are it.
- Rewards, returns, ends, clocks and actions other than the one that is read are no observations, unless `keys` names them.
- Success is a key of this name; else an end that is `done`, paid above 0 where the file pays its ends, and not by `timeout`; else not
  known (`success=True` counts each last step). What neither succeeded nor is `done` without a `timeout` is truncated.
- Actions are often in pixels or metres: `action_range=(0, 512)` maps pushT's onto [-1, 1]; `extra["recorded_action"]` keeps them.

Export writes version 2 in the same layout. What the layout has no room for goes where `ReplayBuffer` does not mind it: the
observation after the last action into `meta/last.<key>` [E, ...], who acted and so on into `data/realrl.<column>`, task and
outcome into the attributes of `meta`; `read` restores them.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from realrl.data import words
from realrl.data.formats import actions, common, senses, zarr_files
from realrl.data.formats.common import Imported
from realrl.data.formats.zarr_files import Buffer, Rows, Unread
from realrl.data.formats.zarr_files import library as library
from realrl.data.words import FAILURES, OUTCOMES, SUCCESSES
from realrl.types import Array, Episode, RealrlError, Source

NAME = "diffusion_policy"
USUAL_STATE = ("agent_pos", "robot_eef_pose", "robot0_eef_pos", "robot0_eef_rot_axis_angle", "robot0_gripper_width",
               "robot1_eef_pos", "robot1_eef_rot_axis_angle", "robot1_gripper_width")
FPS = 10  # of every task in the diffusion policy paper
CHUNK_BYTES = 2 * 10**6  # about what ReplayBuffer aims at
OURS = "realrl."
LAST = "last."
FLAGS = {"reward": ("reward", "rewards", "next_reward"), "done": ("done", "dones", "terminal", "terminals", "terminated", "next_done"),
         "timeout": ("timeout", "timeouts", "truncated"), "success": SUCCESSES}
BESIDE = re.compile(r"(.*_)?returns?|time|timestamps?|sequence_break|(.*_)?index|(?!last_|prev|previous_)(.*_)?actions?(_.*)?|advantages?|"
                    r"([qv]_)?values?|(.*_)?log_?probs?|next_.*")  # no observations


def detect(path: Path) -> bool:
    """A folder or zip that holds meta/episode_ends."""
    try:
        if path.is_dir():
            return any((path / "meta/episode_ends" / name).is_file() for name in zarr_files.SUFFIX)
        if not path.is_file() or not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as file:
            return any(name.endswith(tuple(f"meta/episode_ends/{s}" for s in zarr_files.SUFFIX)) for name in file.namelist())
    except Exception:  # whatever zipfile makes of a hostile file
        return False


def read(path: Path, *, task: str | None = None, fps: float | None = None, keys: Sequence[str] | None = None,
         state: Sequence[str] | None = None, action: str | Sequence[str] | None = None, action_range: tuple[float, float] | None = None,
         image_scale: float | None = None, source: str = "human", success: bool = False, last: str = "repeat") -> Imported:
    """Open a replay buffer.

    task: its text, by default the file's name; fps: by default 10; keys: which observations (names in data/), by default all; state: which
    of them make up obs["state"]; action: its name, or names of several that lie side by side, by default "action" or "actions",
    else all of "action.*"; action_range: (low, high) mapped onto [-1, 1]; image_scale: what to multiply pixels by to reach 0..255, by
    default 255 for fractions; source: who acted (human, policy, script); success: count each episode as ended in success; last: "repeat"
    or "drop", see the module. Raises RealrlError.
    """
    who, span, ending = common.source_of(source), common.check_range(action_range), common.check_last(last)
    files = Buffer(path)
    (ends, empty), attrs = _ends(files), files.attributes("meta")
    there = files.arrays("data")
    wide = dict.fromkeys(there, 1) | {n: int(np.prod(a.shape[1:])) for n, a in _opened(files, [], there, False)[0].items()}
    following = [n for n in USUAL_STATE if n in wide] if action is None and not any(actions.NEAR.fullmatch(n) for n in wide) else []
    acting = actions.parts(action or following or None, wide, path)
    spoken, told_by = _spoken(files, ends)
    flags = {flag: name for flag, names in FLAGS.items() for name in names if name in there and name not in acting}
    beside = {n for n in there if (n in acting and not following) or n in flags.values() or BESIDE.fullmatch(n) or n.startswith(OURS) or
              f"data/{n}" == told_by}
    after = {n: a for n in there if (a := _after(files, n, there)) is not None and n not in beside}
    named = [n for n in there if (n not in acting or following) and not n.startswith(OURS)]
    wanted = common.only(keys, named, "observation", path) if keys is not None else [
        n for n in named if n not in beside and not (n.startswith("next_") and n.removeprefix("next_") in there)]
    arrays, said = _opened(files, [*acting, *flags.values(), *(n for n in there if n.startswith(OURS))], wanted, keys is not None)
    ours = senses.names({n: (arrays[n].shape, arrays[n].dtype) for n in wanted if n in arrays}, path, mend=senses.KEYS)
    if not ours:
        raise RealrlError("; ".join([f"{path} holds no observation beside data/{', '.join(acting)}", *said, "it can not be imported"]))
    if short := [n for n in acting if arrays[n].shape[0] < int(ends[-1])]:
        raise RealrlError(f"{path}: meta/episode_ends counts {ends[-1]} steps, data/{short[0]} has {arrays[short[0]].shape[0]}; "
                          f"{common.AGAIN}")
    steps = int(ends[-1])
    rows = actions.column([arrays[n].read(0, steps) for n in acting], acting, str(path))
    rows = rows[np.minimum(np.arange(steps) + 1, np.repeat(ends, np.diff(ends, prepend=0)) - 1)] if following else rows
    picked = common.state_keys(state, USUAL_STATE, [n for n in ours.values() if not n.startswith(senses.SENSES)], path)
    told = attrs.get("episodes")
    told = told if isinstance(told, list) and len(told) == len(ends) and all(isinstance(t, dict) for t in told) else [{}] * len(ends)
    told = [{"task": text} | own if text else own for text, own in zip(spoken, told, strict=True)]
    rate, guess = _rate(files, ends, attrs.get("fps") if fps is None else fps)
    judged = _told(files, len(ends)) or _judged({f: _flag(arrays[n], steps) for f, n in flags.items()}, flags, ends)
    plan = _Plan(path, ends, rows, arrays, ours, {n: after[n] for n in ours if n in after}, picked,
                 [t | ({} if task is None else {"task": task}) for t in told], task or path.name.split(".")[0], rate, span, image_scale,
                 who, success, ending, flags.get("reward"), judged)
    notes = empty + common.range_note(float(rows.min()), float(rows.max()), span) + guess + said + actions.said(acting) + _notes(plan)
    if spare := min(arrays[n].shape[0] for n in acting) - steps:
        notes.append(f"left out: {spare} steps behind the end of the last episode, by meta/episode_ends (it counts up to the step after "
                     "an episode's last one)")
    notes += [f"{n}: {arrays[n].absent} of its chunks are not stored, all of their values count as {arrays[n].fill}; if they were lost on "
              f"the way: {common.AGAIN}" for n in (*acting, *ours) if arrays[n].absent > 0]
    notes += [f"tasks are what {told_by} says"] if told_by else []
    notes += ["no action in this file: the state that follows is taken for the action, at an episode's end its own"] if following else []
    called = actions.names(acting, wide)
    meta = {"keys": {n: list(a.shape) for n, a in arrays.items()}, "attributes": attrs, **({"names": {"action": called}} if called else {})}
    return Imported(str(plan.told[0].get("task", plan.task)), plan.fps, "unknown", _episodes(plan), notes, meta, len(ends))


# ---- reading


@dataclass(frozen=True)
class _Plan:
    """ours: the file's name of an observation -> ours; after: where the observations behind the episodes' ends are, the file's name -> rows
    and whether they are a row an episode or a row a step; reward: the file's name of it."""

    path: Path
    ends: Array
    actions: Array
    arrays: dict[str, Rows]
    ours: dict[str, str]
    after: dict[str, tuple[Rows, bool]]
    state: list[str]
    told: list[dict[str, Any]]
    task: str
    fps: float
    action_range: tuple[float, float] | None
    image_scale: float | None
    source: Source
    success: bool
    last: common.Last
    reward: str | None
    judged: _Judged
    levels: senses.Levels = field(default_factory=senses.Levels)


@dataclass(frozen=True)
class _Judged:
    """won: which episodes succeeded, [E], None where that is not known; ended: which the task ended, [E]; how: how that was decided."""

    won: Array | None
    ended: Array
    how: str


def _ends(files: Buffer) -> tuple[Array, list[str]]:
    """(where the episodes end, counted from the first step of all, [E], what to say of those without a step, which are left out)."""
    found = files.array("meta/episode_ends")
    if found is None:
        raise RealrlError(f"{files.where} has no meta/episode_ends as diffusion_policy's buffers do; give the .zarr folder or its zip")
    told = found.read(0, found.shape[0]).reshape(-1) if found.shape[0] else np.zeros(0)
    if np.prod(found.shape[1:]) != 1 or not np.isfinite(told).all() or (told != np.rint(told)).any() or (told > 2**53).any():
        raise RealrlError(f"{found.where} is not a row of whole numbers, one an episode; write it so")
    lengths = np.diff(told.astype(np.int64), prepend=0)
    if not (lengths > 0).any():
        raise RealrlError(f"{files.where} holds no episode; nothing to import")
    if (lengths < 0).any():
        raise RealrlError(f"{found.where} does not increase; write where each episode ends, counted from the first step of all")
    empty = int((lengths == 0).sum())
    return np.cumsum(lengths)[lengths > 0], [f"left out: {empty} episodes without a step"] if empty else []


def _spoken(files: Buffer, ends: Array) -> tuple[list[str], str]:
    """(the text of each episode's task, the array that says it, "" where none does): of meta/, or what data/ says at its first step."""
    for folder, at in (("meta", np.arange(len(ends))), ("data", np.append(0, ends[:-1]))):
        for name in (name for name in common.TEXTS if name in files.arrays(folder)):
            texts = files.texts(f"{folder}/{name}")
            if texts is not None and len(texts) > at[-1] and (folder == "data" or len(texts) == len(ends)):
                return [texts[i].strip() for i in at.tolist()], f"{folder}/{name}"
    return [""] * len(ends), ""


def _told(files: Buffer, episodes: int) -> _Judged | None:
    """What an array in meta/ says of each episode, None where there is none."""
    for name in OUTCOMES:
        if name not in files.arrays("meta"):
            continue
        if (texts := files.texts(f"meta/{name}")) is not None:
            if len(texts) == episodes and not np.isnan(told := words.numbers(texts, name)).any():
                return _Judged(told > 0, told > 0, f"meta/{name} says so")
            continue
        found = files.array(f"meta/{name}")
        fits = found is not None and found.shape[0] == episodes and np.prod(found.shape[1:]) == 1
        flags = words.frames(found.read(0, episodes).reshape(-1)) if found is not None and fits else None
        if flags is not None:
            won = flags != (name in FAILURES)
            return _Judged(won, won, f"meta/{name} says so")
    return None


def _opened(files: Buffer, needed: list[str], wanted: list[str], by_name: bool) -> tuple[dict[str, Rows], list[str]]:
    """(arrays of data/ by name, what to say of those that are left out). by_name: whether the wanted ones were asked for one by one."""
    arrays, said = {}, []
    for name in dict.fromkeys([*needed, *wanted]):
        try:
            found = files.array(f"data/{name}")
        except Unread as error:
            if by_name or name in needed:
                raise
            what, _, mend = str(error).removeprefix(f"{files.where}: data/{name} ").partition("; ")
            said.append(f"{name} is left out: it {what} ({mend})")
            continue
        if found is not None:
            arrays[name] = found
    return arrays, said


def _after(files: Buffer, name: str, there: list[str]) -> tuple[Rows, bool] | None:
    """Where the observation after the last action is: our own export's, a row an episode, or RL-100's, a row a step."""
    try:
        if (found := files.array(f"meta/{LAST}{name}")) is not None:
            return found, True
        following = files.array(f"data/next_{name}") if f"next_{name}" in there else None
    except Unread:
        return None
    return None if following is None else (following, False)


def _flag(column: Rows, steps: int) -> Array:
    """A column of one number a step, [T]."""
    if column.shape[0] < steps or np.prod(column.shape[1:]) != 1:
        raise RealrlError(f"{column.where} has shape {list(column.shape)}, wanted one number for each of {steps} steps; rename the array, "
                          "or write it so")
    return column.read(0, steps).reshape(-1)


def _judged(flags: dict[str, Array], names: dict[str, str], ends: Array) -> _Judged:
    """Which episodes succeeded, as far as the file says. flags: reward, done, timeout, success, each [T]; names: the file's own."""
    last, nobody = ends - 1, np.zeros(len(ends), bool)
    reward, done, late = flags.get("reward"), flags.get("done"), flags.get("timeout")
    paid = nobody.astype(np.float64) if reward is None else reward[last]
    sparse = reward is not None and bool(paid.any()) and not np.delete(reward, last).any()
    ended, timed = (nobody if x is None else x[last] > 0 for x in (done, late))
    if "success" in flags and (solved := words.frames(flags["success"])) is not None:
        won = np.logical_or.reduceat(solved, np.append(0, ends[:-1]))
        return _Judged(won, won | (ended & ~timed), f"{names['success']} is set in them")
    if (sparse or (paid > 0).any()) and (sparse or ended.any()):  # some ends are paid: RL-100 gives 2 for success and -1 for failure
        won = (paid > 0) & (ended if done is not None else ~nobody)
        return _Judged(won, won | (ended & ~timed), f"they end {'done and ' if done is not None else ''}with a {names['reward']} above 0")
    if ended.any() and not (late is None and ended.all()):  # a `done` at every end and no clock says that episodes end, and no more
        won = ended & ~timed
        return _Judged(won, won, f"they end {names['done']}{'' if late is None else ' without ' + names['timeout']}")
    return _Judged(None, nobody, "")


def _rate(files: Buffer, ends: Array, fps: Any) -> tuple[float, list[str]]:
    """Control steps a second and what to say: as asked or told, else from the clock, else the paper's."""
    if told := common.rate_of(fps, files.where):
        return told, []
    for name in common.CLOCKS:
        clock = files.array(f"data/{name}") if name in files.arrays("data") else None
        if clock is not None and clock.shape[0] >= ends[-1] > 1 and np.prod(clock.shape[1:]) == 1:
            ticks = np.diff(clock.read(0, int(ends[-1])).reshape(-1).astype(np.float64))
            rate = common.rate_by(np.delete(ticks, ends[:-1] - 1))
            if rate:
                return rate, [f"{rate} steps a second, by {name}; fps= says another"]
    return FPS, [f"the file does not say how many steps a second it has; {FPS}, as in the paper: give fps= if it is another"]


def _notes(plan: _Plan) -> list[str]:
    said, rest = [], [n for n in plan.ours if n not in plan.after]
    if plan.state not in ([], ["state"]):
        said.append(f"obs['state'] is {' + '.join(plan.state)}; state=NAME,NAME chooses others")
    if rest:
        what = "no observation after an episode's last action" + (f" of {', '.join(rest)}" if plan.after else "")
        said.append(f"{what}: the one before it is repeated (last='repeat'), last='drop' leaves that action out")
    if renamed := [f"{theirs} as {ours}" for theirs, ours in plan.ours.items() if ours != theirs]:
        said.append(f"read {', '.join(renamed)}")
    if plan.success or any("terminated" in told for told in plan.told):
        return said
    if plan.judged.won is None:
        said.append("the file does not say which episodes succeeded, so that stays unknown; success=True counts every last step")
    else:
        said.append(f"{int(plan.judged.won.sum())} of {len(plan.ends)} episodes count as successes: {plan.judged.how}; success=True counts "
                    "every one")
    return said


def _episodes(plan: _Plan) -> Iterator[Episode]:
    plan.levels.episodes = lambda: _episodes(plan)
    for number, (start, stop) in enumerate(zip(np.append(0, plan.ends[:-1]).tolist(), plan.ends.tolist(), strict=True)):
        yield _episode(plan, number, start, stop)


def _episode(plan: _Plan, number: int, start: int, stop: int) -> Episode:
    where, obs = f"{plan.path}: episode {number}", {}
    for theirs, ours in plan.ours.items():
        rows = plan.arrays[theirs].read(start, stop)
        if plan.last == "repeat" or len(plan.after) == len(plan.ours):
            rows = np.concatenate([rows, _last(plan, theirs, rows, number, stop, where)])
        obs[ours] = senses.converted(rows, ours, f"{where}: {theirs}", plan.image_scale, senses.KEYS, plan.levels)
    action, judged = plan.actions[start:stop], plan.judged
    reward = None if plan.reward is None else _flag(plan.arrays[plan.reward], stop)[start:]
    made = common.episode(
        common.with_state(obs, plan.state), common.scale_actions(action, plan.action_range), fps=plan.fps, task=plan.task,
        policy=plan.source.name.lower(), source=plan.source, reward=reward, last=plan.last, where=where,
        success=None if judged.won is None else np.zeros(len(action), bool),
        terminated=bool(judged.ended[number]), truncated=not judged.ended[number], extra={"recorded_action": action})
    made.success[-1] = judged.won is not None and judged.won[number]
    made = common.with_success(made) if plan.success else made
    columns = {n: plan.arrays[OURS + n].read(start, stop) for n in common.COLUMNS if OURS + n in plan.arrays}
    if "proposed" in columns:
        columns["proposed"] = common.scale_actions(columns["proposed"], plan.action_range)
    return common.restored(made, {n: x[:len(made)] for n, x in columns.items()}, plan.told[number], where)


def _last(plan: _Plan, theirs: str, rows: Array, number: int, stop: int, where: str) -> Array:
    """The observation after the last action, [1, ...]; the one before it again where the file has none."""
    if theirs not in plan.after:
        return rows[-1:]
    found, by_episode = plan.after[theirs]
    last = found.read(number, number + 1) if by_episode else found.read(stop - 1, stop)
    if last.shape[1:] != rows.shape[1:]:
        raise RealrlError(f"{where}: {theirs} has rows of shape {list(rows.shape[1:])}, the one after the last action "
                          f"{list(last.shape[1:])}; name the observations to read with keys=NAME,NAME, without it")
    return last


# ---- writing


def write(episodes: Iterable[Episode], path: Path, *, fps: float, action_range: tuple[float, float] | None = None,
          zip: bool | None = None) -> None:
    """Write a replay buffer (zarr version 2, blosc), one episode in memory at a time.

    action_range: (low, high) that [-1, 1] is mapped back onto; zip: pack the folder into one file, by default when the name
    ends in .zip. Raises RealrlError when `path` exists, without episodes, when episodes differ in their observations, or on a
    full disk.
    """
    span, rate = common.check_range(action_range), common.rate_of(fps, path)
    packed = path.suffix == ".zip" if zip is None else zip
    with common.published(path) as temporary:
        folder = temporary.with_suffix(".folder") if packed else temporary
        try:
            _write_folder(folder, episodes, path, rate, span)
            if packed:
                _pack(folder, temporary)
        finally:
            if packed:
                common.remove(folder)


def _write_folder(folder: Path, episodes: Iterable[Episode], path: Path, fps: float | None, span: tuple[float, float] | None) -> None:
    root = library().create_group(str(folder), zarr_format=2)
    data, meta = root.create_group("data"), root.create_group("meta")
    ends: list[int] = []
    told: list[dict[str, Any]] = []
    for one in episodes:
        rows = {_their_name(k): x[:-1] for k, x in one.obs.items()} | {"action": common.unscale_actions(one.action, span)}
        rows |= {OURS + n: getattr(one, n) for n in common.COLUMNS}
        rows[f"{OURS}proposed"] = common.unscale_actions(one.proposed, span)
        last = {LAST + _their_name(k): x[-1:] for k, x in one.obs.items()}
        if ends and ({*rows} != {*data.array_keys()} or {*last} != {*meta.array_keys()}):
            raise RealrlError(f"{path}: episode {len(ends)} has observations {sorted(one.obs)}, others than the first; write them apart")
        for group, columns in ((data, rows), (meta, last)):
            for name, x in columns.items():
                _append(group, name, x, f"{path}: episode {len(ends)}")
        ends.append(len(one) + (ends[-1] if ends else 0))
        told.append(common.facts(one))
    if not ends:
        raise RealrlError(f"{path}: there are no episodes to write")
    _append(meta, "episode_ends", np.array(ends, np.int64), str(path))
    meta.attrs.update({"fps": fps, "episodes": told})


def _append(group: Any, name: str, rows: Array, where: str) -> None:
    import numcodecs
    if name not in group:
        each = max(1, rows[:1].nbytes)
        chunk = max(1, min(max(len(rows), 1000), CHUNK_BYTES // each))
        group.create_array(name, shape=(0, *rows.shape[1:]), chunks=(chunk, *(max(1, n) for n in rows.shape[1:])), dtype=rows.dtype,
                           compressors=numcodecs.Blosc("zstd", clevel=5, shuffle=numcodecs.Blosc.BITSHUFFLE))
    there = group[name]
    if there.shape[1:] != rows.shape[1:] or there.dtype != rows.dtype:
        raise RealrlError(f"{where}: {name} is {rows.dtype}{list(rows.shape[1:])}, {there.dtype}{list(there.shape[1:])} before; "
                          "write episodes of different shapes apart")
    there.append(rows)


def _pack(folder: Path, path: Path) -> None:
    """A zip of the folder's contents, stored: the chunks are compressed already."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for inside in sorted(p for p in folder.rglob("*") if p.is_file()):
            file.write(inside, inside.relative_to(folder).as_posix())


def _their_name(key: str) -> str:
    return key.removeprefix("images.")
