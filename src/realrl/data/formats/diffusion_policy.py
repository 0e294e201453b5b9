"""diffusion_policy's replay buffer: a zarr folder or a zip of one (`*.zarr`, `*.zarr.zip`), versions 2 and 3.

Layout (diffusion_policy, `ReplayBuffer`): `data/<key>` [N, ...] holds the steps of all episodes one after another,
`meta/episode_ends` [E] where each ends. One of the keys is the action; pushT has also `img`, `state`, `keypoint`, `n_contacts`.

What becomes of it:
- Colour images [N, H, W, 3] are `images.<key>`, every other key keeps its name; `state` joins some of them.
- There is no observation after an episode's last action: `last="repeat"` says the last observation twice and keeps every
  action, `last="drop"` leaves the last action out.
- There is no reward either, unless a key is named `reward`: rewards are 0, success is unknown (`success=True` counts
  each last one) and episodes are truncated.
- Actions are often in pixels or metres: `action_range=(0, 512)` maps pushT's onto [-1, 1]; `extra["recorded_action"]` keeps them.

Export writes version 2 in the same layout. What the layout has no room for goes where `ReplayBuffer` does not mind it: the
observation after the last action into `meta/last.<key>` [E, ...], who acted and so on into `data/realrl.<column>`, task and
outcome into the attributes of `meta`; `read` restores them.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from realrl.data.formats import common, zarr_files
from realrl.data.formats.common import Imported
from realrl.data.formats.zarr_files import Buffer, Rows
from realrl.data.formats.zarr_files import library as library
from realrl.types import Array, Episode, RealrlError, Source

NAME = "diffusion_policy"
USUAL_STATE = ("agent_pos", "robot_eef_pose", "robot0_eef_pos", "robot0_eef_rot_axis_angle", "robot0_gripper_width")
FPS = 10  # of every task in the diffusion policy paper
CHUNK_BYTES = 2 * 10**6  # about what ReplayBuffer aims at
OURS = "realrl."
LAST = "last."


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
         state: Sequence[str] | None = None, action: str = "action", action_range: tuple[float, float] | None = None,
         image_scale: float = 1.0, source: str = "human", success: bool = False, last: str = "repeat") -> Imported:
    """Open a replay buffer.

    task: its text, by default the file's name; fps: by default 10; keys: which observations (names in data/), by default all;
    state: which of them make up obs["state"]; action: the name of the action; action_range: (low, high) mapped onto [-1, 1];
    image_scale: what to multiply pixels by to reach 0..255; source: who acted (human, policy, script); success: count each
    episode as ended in success; last: "repeat" or "drop", see the module. Raises RealrlError.
    """
    who, span, ending = common.source_of(source), common.check_range(action_range), common.check_last(last)
    files = Buffer(path)
    ends, attrs = _ends(files), files.attributes("meta")
    there = files.arrays("data")
    arrays = {n: a for n in there if (a := files.array(f"data/{n}")) is not None}
    acts = arrays[common.only([action], there, "action", path)[0]]
    if acts.shape[0] < (steps := int(ends[-1])):
        raise RealrlError(f"{path}: meta/episode_ends counts {steps} steps, data/{action} has {acts.shape[0]}; restore it from a copy")
    rows = acts.read(0, steps)
    others = [n for n in there if n not in (action, "reward") and not n.startswith(OURS)]
    ours = {n: _our_name(path, n, arrays[n]) for n in common.only(keys, others, "observation", path)}
    if not ours:
        raise RealrlError(f"{path} holds no observation beside data/{action}; it can not be imported")
    picked = common.state_keys(state, USUAL_STATE, [n for n in ours.values() if not n.startswith("images.")], path)
    after = {o: a for n, o in ours.items() if (a := files.array(f"meta/{LAST}{n}")) is not None}
    told = attrs.get("episodes")
    told = told if isinstance(told, list) and len(told) == len(ends) and all(isinstance(t, dict) for t in told) else [{}] * len(ends)
    plan = _Plan(path, ends, rows, arrays, ours, after if len(after) == len(ours) else {}, picked,
                 [t | ({} if task is None else {"task": task}) for t in told], task or path.name.split(".")[0],
                 common.rate_of(attrs.get("fps") if fps is None else fps, path) or FPS, span, image_scale, who, success, ending)
    notes = common.range_note(float(rows.min()), float(rows.max()), span) + _notes(plan, fps is None and "fps" not in attrs)
    meta = {"keys": {n: list(a.shape) for n, a in arrays.items()}, "attributes": attrs}
    return Imported(str(plan.told[0].get("task", plan.task)), plan.fps, "unknown", _episodes(plan), notes, meta, len(ends))


# ---- reading


@dataclass(frozen=True)
class _Plan:
    """ours: the file's name of an observation -> ours; after: the observations behind the episodes' ends, ours -> [E, ...]."""

    path: Path
    ends: Array
    actions: Array
    arrays: dict[str, Rows]
    ours: dict[str, str]
    after: dict[str, Rows]
    state: list[str]
    told: list[dict[str, Any]]
    task: str
    fps: float
    action_range: tuple[float, float] | None
    image_scale: float
    source: Source
    success: bool
    last: common.Last


def _ends(files: Buffer) -> Array:
    found = files.array("meta/episode_ends")
    if found is None:
        raise RealrlError(f"{files.where} has no meta/episode_ends as diffusion_policy's buffers do; give the .zarr folder or its zip")
    if len(found.shape) != 1 or found.dtype.kind not in "iu":
        raise RealrlError(f"{found.where} is not a row of whole numbers; restore it from a copy")
    ends = found.read(0, found.shape[0]).astype(np.int64)
    if not len(ends):
        raise RealrlError(f"{files.where} holds no episode; nothing to import")
    if (np.diff(ends, prepend=0) <= 0).any():
        raise RealrlError(f"{found.where} does not increase; restore it from a copy")
    return ends


def _our_name(path: Path, name: str, array: Rows) -> str:
    return f"images.{common.key_name(name, path)}" if common.is_image(array.shape) else common.key_name(name, path)


def _notes(plan: _Plan, guessed: bool) -> list[str]:
    said = ["the file does not say how many steps a second it has; 10, as in the paper: give fps= if it is another"] if guessed else []
    if plan.state not in ([], ["state"]):
        said.append(f"obs['state'] is {' + '.join(plan.state)}; state= chooses others")
    if not plan.after:
        said.append("no observation after an episode's last action: the one before it is repeated (last='repeat'), last='drop' leaves "
                    "that action out")
    if not plan.success and not {"reward", f"{OURS}reward"} & plan.arrays.keys():
        said.append("no rewards in this file: they are 0, and success is unknown; success=True counts every last step")
    return said


def _episodes(plan: _Plan) -> Iterator[Episode]:
    for number, (start, stop) in enumerate(zip(np.append(0, plan.ends[:-1]).tolist(), plan.ends.tolist(), strict=True)):
        yield _episode(plan, number, start, stop)


def _episode(plan: _Plan, number: int, start: int, stop: int) -> Episode:
    where, obs = f"{plan.path}: episode {number}", {}
    for theirs, ours in plan.ours.items():
        rows = plan.arrays[theirs].read(start, stop)
        if plan.after:
            last = plan.after[ours].read(number, number + 1)
            if last.shape[1:] != rows.shape[1:]:
                raise RealrlError(f"{where}: {theirs} has rows of shape {list(rows.shape[1:])}, the one after the last action "
                                  f"{list(last.shape[1:])}; restore it from a copy")
            rows = np.concatenate([rows, last])
        if ours.startswith("images."):
            obs[ours] = common.to_images(rows, plan.image_scale, f"{where}: {theirs}")
        else:
            obs[ours] = common.numbers(rows)
    action = plan.actions[start:stop]
    reward = plan.arrays["reward"].read(start, stop).reshape(-1) if "reward" in plan.arrays else None
    made = common.episode(
        common.with_state(obs, plan.state), common.scale_actions(action, plan.action_range), fps=plan.fps, task=plan.task,
        policy=plan.source.name.lower(), source=plan.source, reward=reward, last=plan.last, where=where,
        extra={"recorded_action": action[:stop - start]})
    made = common.with_success(made) if plan.success else made
    columns = {n: plan.arrays[OURS + n].read(start, stop) for n in common.COLUMNS if OURS + n in plan.arrays}
    if "proposed" in columns:
        columns["proposed"] = common.scale_actions(columns["proposed"], plan.action_range)
    return common.restored(made, {n: x[:len(made)] for n, x in columns.items()}, plan.told[number], where)


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
