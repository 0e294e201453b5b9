"""What a dataset is made of: info.json, the names of columns (ours and other people's), an episode as columns and a row, and back.

LeRobot has no frame for the observation after the last action. Numbers of it travel in the episodes row as
`last/observation.<key>` (flattened), pictures as one more frame of the video, see `realrl.data.cameras`.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from realrl.data import clocks, errors, tables
from realrl.data.depth import is_depth
from realrl.data.errors import line, mend, typed
from realrl.data.stats import STATS, Stats
from realrl.data.tables import ROW_INDICES, FileKey
from realrl.data.words import FRAMES, OUTCOMES, VERDICTS, frames, said
from realrl.files import alive, inside, within, writer
from realrl.types import HIDDEN, Array, Episode, RealrlError, Source, printable

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
CAMERA_PREFIXES = ("images.", "depth.")  # observation keys that are recorded as video
Info = dict[str, Any]
# Our name of a column, and what others call it: LeRobot, HIL-SERL and its forks, gymnasium's words. The first one present counts.
ALIASES = {
    "next.reward": ("next.reward", "reward", "rewards", "next.rewards"),
    "next.success": FRAMES,
    "next.done": ("next.done", "done", "dones", "is_last"),
    "next.terminated": ("next.terminated", "terminated", "is_terminal"),
    "next.truncated": ("next.truncated", "truncated", "truncateds", "truncate", "complementary_info.truncated"),
    "intervention": ("intervention", "is_intervention", "complementary_info.is_intervention", "complementary_info.intervention",
                     "info.is_intervention", "intervened"),
    "intervene_action": ("intervene_action", "complementary_info.intervene_action", "info.intervene_action", "action.intervention"),
    "action.proposed": ("action.proposed", "complementary_info.policy_action", "policy_action"),
}
LABEL = "label"  # what a person said of an episode, on its way from a side file: "success", "failure" or "unknown"


# ---- info.json


def read_info(root: Path, paths: Mapping[str, str] | None = None) -> Info:
    """meta/info.json. paths: what stands in the place of its data_path and video_path. Raises RealrlError unless it describes a version 3
    dataset whose paths stay in its folder."""
    info = read_json(root) | dict(paths or {})
    path = root / "meta/info.json"
    version = str(info.get("codebase_version"))
    if version.startswith("v2."):
        raise RealrlError(f"{path}: codebase_version is {version!r}, which is read but not written here; open it with "
                          f"realrl.data.formats.open_dataset, or make it new: realrl data import {shlex.quote(str(root))} --out NEW")
    if not version.startswith("v3."):
        raise RealrlError(f"{path}: codebase_version is {version!r}, only v3.x and v2.x are read; convert the dataset first")
    kinds: dict[str, tuple[type, ...]] = {"data_path": (str,), "chunks_size": (int,)}
    check_info(path, info, kinds)
    info.setdefault("data_files_size_in_mb", 100)
    info.setdefault("video_files_size_in_mb", 200)
    for name in ("chunks_size", "data_files_size_in_mb", "video_files_size_in_mb"):
        if not (isinstance(info[name], int) and info[name] > 0):
            raise RealrlError(f"{path}: {name} is {info[name]!r}, must be a whole number above 0; {mend(path)}")
    few = ((0, 0), (0, 1), (1, 0))
    files = [[data_file(root, info, key) for key in few],
             *([video_file(root, info, camera, key) for key in few] for camera in tables.cameras(info["features"]))]
    if len({path for paths in files for path in paths}) < sum(map(len, files)):
        raise RealrlError(f"{path}: data_path or video_path gives different files one name; {mend(path)}")
    return info


def new_info(robot_type: str, fps: float) -> Info:
    """The info.json of a dataset without episodes."""
    return {"codebase_version": "v3.0", "robot_type": robot_type, "total_episodes": 0, "total_frames": 0, "total_tasks": 1,
            "chunks_size": 1000, "data_files_size_in_mb": 100, "video_files_size_in_mb": 200, "fps": rate({"fps": fps}),
            "splits": {"train": "0:0"}, "data_path": DATA_PATH, "video_path": None, "features": {}}


def read_json(root: Path) -> Info:
    """meta/info.json of any version."""
    path = root / "meta/info.json"
    if not path.exists():
        if errors.holds_recordings(root):
            raise RealrlError(f"{root}: meta/info.json is missing; run 'realrl data repair {typed(root)}'")
        if not root.exists():
            raise RealrlError(f"{root} is not a LeRobot dataset: it does not exist; give the folder that holds meta/ and data/")
        raise RealrlError(f"{root} is not a LeRobot dataset: meta/info.json is missing; give the folder that holds meta/ and data/, and "
                          f"import what is in another format once: realrl data import {typed(root)} --out NEW")
    within(root, path)
    info: Any = errors.read_json(path)
    if not isinstance(info, dict):
        raise RealrlError(f"{path} is not a JSON object; {mend(path)}")
    if isinstance(info.get("fps"), str):
        with contextlib.suppress(ValueError, ZeroDivisionError):  # in quotes, or as video tools write it, 30000/1001
            info["fps"] = round(float(Fraction(info["fps"])), 6)
    return info


def check_info(path: Path, info: Info, kinds: Mapping[str, tuple[type, ...]]) -> None:
    """Raise RealrlError unless fps, features and the named entries have the right types and features have safe names."""
    for name, kind in {"fps": (int, float), "features": (dict,), **kinds}.items():
        if not isinstance(info.get(name), kind) or isinstance(info[name], bool):
            raise RealrlError(f"{path}: {name!r} is missing or of the wrong type; {mend(path)}")
    if not 0 < info["fps"] < 1e6:
        raise RealrlError(f"{path}: fps is {info['fps']}, must be above 0 and below a million; {mend(path)}")
    for name, feature in info["features"].items():
        if not name or "/" in name or "\\" in name or "\0" in name or name in (".", ".."):
            raise RealrlError(f"{path}: a feature is called {name!r}, which could name another folder; rename it")
        shape = feature.get("shape") if isinstance(feature, dict) else None
        if not (isinstance(shape, list) and all(type(n) is int and 0 < n < 2**31 for n in shape) and isinstance(feature.get("dtype"), str)):
            raise RealrlError(f"{path}: feature {name!r} has no dtype or no shape; {mend(path)}")
    try:
        tables.stored(info["features"])
    except (ValueError, SyntaxError) as error:  # numpy parses "f4,(" as Python
        raise RealrlError(f"{path}: a feature has a dtype that is none ({line(error)}); {mend(path)}") from error


def data_file(root: Path, info: Info, key: FileKey) -> Path:
    """Where the data file (chunk_index, file_index) lies. Raises RealrlError when that is outside the folder."""
    return inside(root, info["data_path"], chunk_index=key[0], file_index=key[1])


def video_file(root: Path, info: Info, camera: str, key: FileKey) -> Path:
    """Where the video file (chunk_index, file_index) of a camera lies. Raises RealrlError when that is outside the folder."""
    template = info.get("video_path") or VIDEO_PATH
    if not isinstance(template, str):
        raise RealrlError(f"{root}/meta/info.json: video_path is {template!r}, must be a text; {mend(root / 'meta')}")
    return inside(root, template, video_key=camera, chunk_index=key[0], file_index=key[1])


def camera_shape(feature: Info) -> tuple[int, ...]:
    """(height, width, channels) of a camera, whatever order others wrote its shape in; depth has one channel."""
    shape, names = list(feature["shape"]), [str(n).rstrip("s") for n in feature.get("names") or []]
    if len(shape) == 3 and set(names) >= {"height", "width", "channel"}:
        return tuple(shape[names.index(n)] for n in ("height", "width", "channel"))
    return tuple(shape[1:] + shape[:1]) if len(shape) == 3 and shape[0] in (1, 3) and shape[2] not in (1, 3) else tuple(shape)


FOLDERS = ("meta", "data", "videos", "derived")  # what a dataset is made of


def unfinished(root: Path) -> list[Path]:
    """Temporary files of writers that died, in the folders of a dataset, for who holds its lock; nothing that a link leads to. Derived
    columns are written without the lock, so there a living process may be at work."""
    found = (p for folder in FOLDERS if not (root / folder).is_symlink() for p in (root / folder).rglob(".*.tmp"))
    return sorted(p for p in found if (p.is_symlink() or p.is_file()) and not (p.is_relative_to(root / "derived") and _at_work(p)))


def _at_work(temporary: Path) -> bool:
    owner = writer(temporary)
    return owner is not None and alive(owner)


def check_names(where: str, **texts: str) -> None:
    """Raise RealrlError for a text that a terminal would not show but obey. texts: what each is -> it."""
    for what, text in texts.items():
        if found := HIDDEN.search(text):
            raise RealrlError(f"{where}: {what.replace('_', ' ')} {text!r} holds the control character {found[0]!r}; leave it out")


# ---- an episode as columns and as a row


def observations(episode: Episode, features: Info) -> tuple[dict[str, Array], dict[str, Array]]:
    """(numbers, cameras), each `observation.<key>` -> [T+1, ...]. features: the dataset's, or {} for a new one, whose cameras
    are the keys that begin with "images." or "depth."."""
    numbers: dict[str, Array] = {}
    films: dict[str, Array] = {}
    for key, x in episode.obs.items():
        name = f"observation.{key}"
        film = features.get(name, {}).get("dtype") == "video" if features else key.startswith(CAMERA_PREFIXES)
        (films if film else numbers)[name] = x
    return numbers, films


def columns(episode: Episode, numbers: Mapping[str, Array], fps: float, index: int, first: int, task_index: int) -> dict[str, Array]:
    """The columns of the data file, each [T, ...]. numbers: the observations that are no video; first: the dataset-wide number
    of frame 0.

    An unknown success is False in every frame and empty in the episode's row: demonstrations that nobody judged and trials of a policy
    share a dataset, whose columns are the same in all episodes, and LeRobot's loaders refuse a column with empty cells."""
    frame = np.arange(len(episode), dtype=np.int64)
    last = frame == len(episode) - 1
    return {
        **{name: x[:-1] for name, x in numbers.items()},
        "action.proposed": episode.proposed, "action": episode.action,  # torchrl nests names at dots, and then the later one counts
        "next.reward": np.asarray(episode.reward, np.float32), "next.done": last & (episode.terminated or episode.truncated),
        "next.success": np.asarray(episode.success, bool), "next.truncated": last & episode.truncated,
        "intervention": np.asarray(episode.source) == Source.HUMAN, "source": np.asarray(episode.source, np.int64),
        "starts_plan": np.asarray(episode.starts_plan, bool), "time": np.asarray(episode.time, np.float64),
        "timestamp": (frame / fps).astype(np.float32), "frame_index": frame, "episode_index": np.full_like(frame, index),
        "index": first + frame, "task_index": np.full_like(frame, task_index)}


def ours(info: Info) -> bool:
    """Whether a set was recorded or made here, so that what it lacks was lost."""
    return "starts_plan" in info.get("features", {})


def features(columns: Mapping[str, Array], names: Mapping[str, Any] | None = None) -> Info:
    """The features of columns of numbers. names: what the numbers of some are called."""
    told = names or {}
    return {name: {"dtype": str(x.dtype), "shape": list(x.shape[1:]) or [1], "names": told.get(name)} for name, x in columns.items()}


def rate(info: Info) -> int | float:
    """Control steps a second: a whole number, or 29.97."""
    fps: int | float = info["fps"]
    return int(fps) if float(fps).is_integer() else float(fps)


def row_schema(features: Info) -> pa.Schema:
    """The columns of the episodes table that we write."""
    films = tables.cameras(features)
    fields = [*((name, pa.int64()) for name in ROW_INDICES), ("tasks", pa.list_(pa.string())), ("terminated", pa.bool_()),
              ("truncated", pa.bool_()), ("success", pa.bool_()), ("policy", pa.string()), ("seed", pa.int64())]
    fields += [(f"videos/{name}/{field}", kind) for name in films for field, kind in tables.VIDEO_FIELDS.items()]
    fields += [(f"last/{name}", pa.list_(pa.from_numpy_dtype(f["dtype"]))) for name, f in tables.stored(features).items()
               if name.startswith("observation.")]
    for name in features:
        kind = pa.list_(pa.list_(pa.list_(pa.float64()))) if name in films else pa.list_(pa.float64())
        fields += [(f"stats/{name}/{stat}", kind) for stat in STATS] + [(f"stats/{name}/count", pa.list_(pa.int64()))]
    return pa.schema(fields)


def row(episode: Episode, numbers: Mapping[str, Array], index: int, first: int, data_key: FileKey, row_key: FileKey, stats: Stats
        ) -> dict[str, Any]:
    """The episode's row of the episodes table, less where its videos lie."""
    return {
        "episode_index": index, "tasks": [episode.task], "length": len(episode), "data/chunk_index": data_key[0],
        "data/file_index": data_key[1], "dataset_from_index": first, "dataset_to_index": first + len(episode),
        "meta/episodes/chunk_index": row_key[0], "meta/episodes/file_index": row_key[1], "terminated": bool(episode.terminated),
        "truncated": bool(episode.truncated), "success": episode.succeeded if episode.judged else None, "policy": episode.policy,
        "seed": episode.seed,
        **{f"last/{name}": x[-1].reshape(-1).tolist() for name, x in numbers.items()},
        **{f"stats/{name}/{stat}": v.tolist() for name, s in stats.items() for stat, v in s.items()}}


def episode(columns: dict[str, Array], row: Mapping[str, Any], films: Mapping[str, Array], tasks: list[str], fps: float) -> Episode:
    """Columns and row put together again. films: `observation.<key>` -> [T+1, ...]; fps: the clock, where timestamps are none.

    A dataset that others recorded may lack our columns or call them differently (`ALIASES`): without a word about interventions
    the person drove (LeRobot records teleoperation), reward is 0 and 1 for success, the end of an episode of which nothing tells is
    unknown, and the last observation, which was never stored, is the last one seen. Raises RealrlError when there is no action.
    """
    if "action" not in columns:
        raise RealrlError("it has no column 'action'; only recordings of a robot that acts can be read")
    n = len(columns["action"])
    vectors = {name: x.reshape(n, -1) if x.ndim == 1 or name == "action" else x for name, x in columns.items()}
    obs = {}
    for name in (c for c in columns if c.startswith("observation.")):
        x, last = vectors[name], row.get(f"last/{name}")
        end = x[-1] if last is None else np.array(last, x.dtype).reshape(x.shape[1:])
        obs[name.removeprefix("observation.")] = np.concatenate([x, end[None]])
    obs |= {name.removeprefix("observation."): x for name, x in films.items()}
    named = {ours: aliased(columns, ours) for ours in ALIASES}
    flags = {ours: found.reshape(n) for ours, found in named.items() if found is not None and found.size == n and not _blank(found)}
    success, judged = _success(row, won(columns, n), n)
    action, proposed, source = _who(columns, vectors, flags.get("intervention"))
    terminated, truncated = _ending(row, success, flags)
    reward = flags.get("next.reward", success & (np.arange(n) == n - 1)).astype(np.float32)
    if row.get(LABEL):
        success, judged, reward, terminated, truncated = _relabelled(row[LABEL], success, reward, terminated, truncated)
    time = columns.get("time", columns.get("timestamp", np.arange(n) / fps)).reshape(n).astype(np.float64)
    if "time" not in columns:  # stamps of another clock, in seconds since 1970 and 32 bits, say nothing
        time = clocks.in_seconds(time, fps) if np.isfinite(time).all() and (np.diff(time) > 0).all() else np.arange(n) / fps
    return Episode(
        obs=obs, action=action, proposed=proposed, source=source, success=success, judged=judged, reward=reward,
        time=time, starts_plan=columns.get("starts_plan", np.ones(n, bool)).reshape(n).astype(bool),
        terminated=terminated, truncated=truncated, task=_text(columns, row, tasks),
        policy=str(row.get("policy") or ""), seed=seed if type(seed := row.get("seed")) is int else None)


def _text(columns: Mapping[str, Array], row: Mapping[str, Any], tasks: Sequence[str]) -> str:
    """What an episode is about: what its row says; of several texts, and where the row has none, that of its first frame."""
    spoken = [str(text) for text in row.get("tasks") or [] if text is not None]
    number = int(columns["task_index"].reshape(-1)[0]) if "task_index" in columns else -1
    own = tasks[number] if 0 <= number < len(tasks) else ""
    return printable(own if not spoken or (len(spoken) > 1 and own in spoken) else spoken[0])


def aliased(columns: Mapping[str, Array], name: str) -> Array | None:
    """One of our columns under whichever of its names the data has it."""
    return next((columns[alias] for alias in ALIASES[name] if alias in columns), None)


def says_nothing(name: str, column: Array) -> bool:
    """Whether an episode's column of a name that tells how it went was never filled in, or is words that do not say it."""
    return name in FRAMES or (any(name in names for names in ALIASES.values()) and _blank(column))


def _blank(column: Array) -> bool:
    """Whether a column is there and nothing was recorded in it."""
    return column.dtype.kind == "f" and bool(np.isnan(column).all())


def _who(columns: Mapping[str, Array], vectors: Mapping[str, Array], intervention: Array | None) -> tuple[Array, Array, Array]:
    """(action, proposed, source): what was sent, what the policy asked, and who chose it.

    HIL-SERL and its forks keep the person's action in a column of its own, which is NaN or zero where nobody intervened.
    """
    action = vectors["action"]
    n = len(action)
    asked, theirs = aliased(columns, "action.proposed"), aliased(columns, "intervene_action")
    proposed = action.copy() if asked is None or asked.size != action.size else asked.reshape(action.shape).astype(action.dtype)
    source = np.full(n, Source.HUMAN, np.uint8)
    if intervention is not None:
        source = np.where(intervention.astype(bool), Source.HUMAN, Source.POLICY).astype(np.uint8)
    if theirs is not None and theirs.size == action.size:
        wide = theirs.reshape(n, -1)
        acted = np.isfinite(wide).all(1)
        if intervention is None:
            acted &= (wide != 0).any(1)
            source = np.where(acted, Source.HUMAN, Source.POLICY).astype(np.uint8)
        here = (acted & (source == Source.HUMAN)).reshape(n, *[1] * (action.ndim - 1))
        action = np.where(here, theirs.reshape(action.shape), action).astype(action.dtype)
    return action, proposed, columns["source"].reshape(n).astype(np.uint8) if "source" in columns else source


def outcome(row: Mapping[str, Any]) -> bool | None:
    """Whether an episode ended in success, as a person's label or else its row says it; None where neither does."""
    if row.get(LABEL):
        return VERDICTS.get(row[LABEL])
    return next((told for name in OUTCOMES if (told := said(name, row.get(name))) is not None), None)


def won(columns: Mapping[str, Array], n: int) -> Array | None:
    """The frames' success [n] bool, None where they say nothing. What others say of an episode in all of its frames is true of its end."""
    flags = aliased(columns, "next.success")
    found = None if flags is None or flags.size != n else frames(flags.reshape(n))
    if found is None:
        return None
    return found & (np.arange(n) == n - 1) if found.all() and "next.success" not in columns else found


def _success(row: Mapping[str, Any], flags: Array | None, n: int) -> tuple[Array, bool]:
    """(success [T], whether anything says how it ended), as recorded. The row counts before the frames; a cell of it that is empty
    says "unknown" unless some frame knows better (see `columns`)."""
    success = np.zeros(n, bool) if flags is None else flags
    told = outcome({name: value for name, value in row.items() if name != LABEL})
    if told is None:
        return success, bool(success.any()) or (flags is not None and not any(name in row for name in OUTCOMES))
    if told != success[-1]:
        success = success & told
        success[-1] = told
    return success, True


def _relabelled(label: str, success: Array, reward: Array, terminated: bool, truncated: bool) -> tuple[Array, bool, Array, bool, bool]:
    """(success, judged, reward, terminated, truncated) of an episode that a person judged, whatever its recording says.

    A success ends the task, and pays 1 where the recording pays nothing; what the recording took for a success is unmade, with its
    reward where that is all there was.
    """
    if label == "success":
        last = np.arange(len(success)) == len(success) - 1
        return success | last, True, reward if reward.any() else last.astype(np.float32), True, False
    reward = reward if reward[~success].any() else np.zeros_like(reward)
    undone = terminated and bool(success[-1])
    return np.zeros_like(success), label == "failure", reward, terminated and not undone, truncated or undone


def _ending(row: Mapping[str, Any], success: Array, flags: Mapping[str, Array]) -> tuple[bool, bool]:
    """(terminated, truncated). LeRobot's done is either; where nothing tells them apart, success ended the task."""
    if row.get("terminated") is not None:
        return bool(row["terminated"]), bool(row.get("truncated"))
    ended, cut, done = (None if (x := flags.get(f"next.{name}")) is None else bool(x[-1]) for name in ("terminated", "truncated", "done"))
    if ended is None:
        ended = bool(success[-1]) if cut is None or done is None else done and not cut
    return ended, not ended if cut is None else cut


# ---- the rules of one episode


def validate(episode: Episode, where: str, columns: Mapping[str, Array], films: Mapping[str, Array], features: Info,
             kept: Collection[str] = ()) -> None:
    """Raise RealrlError, naming field and frame, unless the episode may join a dataset with these features.

    columns: the episode as the data file will hold it, each [T, ...]; films: its cameras that are not encoded yet, each [T+1, ...];
    kept: columns that nobody here reads, whose values may be what they like.
    """
    n = len(episode)
    if n == 0:
        raise RealrlError(f"{where}: has no frames; drop it")
    if episode.action.ndim != 2:
        raise RealrlError(f"{where}: action has shape {episode.action.shape}, wanted [{n}, A]; give every frame a vector")
    check_names(where, task=episode.task, policy=episode.policy)
    for key, x in episode.obs.items():
        check_names(where, observation_key=key)
        if not key or "/" in key or "\\" in key:
            raise RealrlError(f"{where}: observation key {key!r} must not be empty or hold '/'; rename it")
        if x.ndim < 2 or len(x) != n + 1:
            raise RealrlError(f"{where}: observation.{key} has shape {x.shape}, wanted [{n + 1}, ...]: one row a frame and the last one")
        if not x.size:
            raise RealrlError(f"{where}: observation.{key} has shape {x.shape}, there is nothing in it; leave it out")
    numbers = {name: f for name, f in features.items() if f["dtype"] != "video"}
    same_names(where, columns, numbers)
    for name, x in films.items():
        if name in features:  # the names are compared with the encoded ones, by the caller
            validate_film(where, name, x, features[name])
    for name, x in columns.items():
        shape = list(x.shape[1:]) or [1]
        if len(x) != n or shape != list(numbers[name]["shape"]) or str(x.dtype) != numbers[name]["dtype"]:
            wanted = f"{numbers[name]['dtype']} {[n, *numbers[name]['shape']]}"
            raise RealrlError(f"{where}: {name} is {x.dtype} {list(x.shape)}, wanted {wanted}; convert it or use a new folder")
    _validate_values(episode, where, {name: x for name, x in columns.items() if name not in kept})


def same_names(where: str, given: Iterable[str], wanted: Iterable[str]) -> None:
    if wrong := sorted(set(given) ^ set(wanted)):
        side = "is not in the dataset" if wrong[0] in set(given) else "is missing"
        raise RealrlError(f"{where}: {wrong[0]} {side}; record into a new folder")


def validate_film(where: str, name: str, x: Array, feature: Info) -> None:
    """Raise RealrlError unless x [T+1, ...] is what the camera delivers."""
    depth = is_depth(feature)
    height, width, _ = camera_shape(feature)
    wanted = [len(x), height, width] if depth else [len(x), height, width, 3]
    if list(x.shape) != wanted or x.dtype != (np.uint16 if depth else np.uint8):
        kind = "uint16" if depth else "uint8"
        raise RealrlError(f"{where}: {name} is {x.dtype} {list(x.shape)}, wanted {kind} {wanted}; convert it or use a new folder")


def _validate_values(episode: Episode, where: str, columns: Mapping[str, Array]) -> None:
    for name, x in {**columns, **{f"observation.{k}": v for k, v in episode.obs.items()}}.items():
        if x.dtype.kind == "f" and not (ok := np.isfinite(x).reshape(len(x), -1).all(1)).all():
            raise RealrlError(f"{where}: {name} holds NaN or infinity at frame {int(np.argmin(ok))}; drop the episode or mend its source")
    late = np.flatnonzero(np.diff(columns["time"]) <= 0)
    if len(late):
        raise RealrlError(f"{where}: time does not increase at frame {int(late[0]) + 1}; use a monotonic clock")
    if len(bad := np.flatnonzero(~np.isin(columns["source"], [int(s) for s in Source]))):
        raise RealrlError(f"{where}: source is {int(columns['source'][bad[0]])} at frame {int(bad[0])}, wanted 0, 1 or 2")
    if episode.seed is not None and not -2**63 <= episode.seed < 2**63:
        raise RealrlError(f"{where}: seed {episode.seed} does not fit 64 bits; use a smaller one")
