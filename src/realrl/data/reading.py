"""How a LeRobot set that somebody else made is to be read: under which names, with which cameras, how exactly on time.

`Store` and the reader of version 2 share it, so that both layouts take the same options and give the same answers.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from realrl.data import cells, clocks, depth, footage, schema, spread, tables, video
from realrl.data.errors import DAMAGED, mend
from realrl.data.labels import Labels
from realrl.data.schema import Info
from realrl.files import inside, within
from realrl.types import Array, Episode, RealrlError

# What others call the columns that everybody needs, in lower case and less what they stand in: openpi, RoboCasa, HDF5 converters.
ACTIONS = ("actions", "action", "control", "controls", "command", "commands", "joint_action", "action_joint", "target", "targets", "ctrl",
           "joint_target", "joint_targets", "target_joint_position", "target_joint_positions", "commanded_joint_position",
           "commanded_joint_positions")
STATES = ("state", "states", "observation.states", "qpos", "joint_positions", "joint_position", "joints", "proprio", "proprioception",
          "robot_state", "agent_pos", "joint_state", "observation", "observations", "obs")
JOINTS = ("qpos", "joint_positions", "joint_position", "joints", "joint_state")  # of these words, those that leave the gripper out
GRIPPERS = ("gripper_position", "gripper", "gripper_state", "gripper_pos", "gripper_qpos")
CLOUD = re.compile(r"cloud|(^|[_.])(pcd|pcl|pc|points)([_.]|$)", re.IGNORECASE)
NUMBERED = re.compile(r"file-\d{3}|episode_\d{6}")  # what data files and videos are called in any of the layouts
USUAL = {"data_path": schema.DATA_PATH, "video_path": schema.VIDEO_PATH}  # how files are called in version 3
INDICES = ("timestamp", "frame_index", "episode_index", "index", "task_index")  # what every LeRobot table has


def seen(root: Path, info: Info) -> Info:
    """info.json with the pixels of cameras of which it does not tell them, as the first of their videos, or the first cell, shows them:
    grey of 16 bits is depth, whoever says so; and with the type of columns for which it has a word that is none, as the first table has
    them. What was recorded here says it itself."""
    if schema.ours(info):
        return info
    untold = {name: f for name, f in tables.cameras(info["features"]).items() if "pix_fmt" not in depth.told(f)}
    found = _typed(root, info) | _celled(root, info)
    for name, feature in untold.items():
        with contextlib.suppress(RealrlError, OSError, StopIteration):  # who reads its pictures says what is wrong
            template = str(info.get("video_path") or USUAL["video_path"])
            film = inside(root, template, video_key=name, chunk_index=0, file_index=0, episode_chunk=0, episode_index=0)
            film = film if film.exists() else next(film.parent.glob(f"*{film.suffix}"))
            about = feature.get("info") if isinstance(feature.get("info"), dict) else {}
            found[name] = feature | {"info": about | {"video.pix_fmt": video.probe(film)["video.pix_fmt"]}}
    return info | {"features": info["features"] | found}


def _typed(root: Path, info: Info) -> Info:
    """The features whose dtype is none ("list", "torch.float32") and whose column holds numbers, with the type of these."""
    numbers, found = tables.stored(info["features"]), {}
    odd = {name: f for name, f in info["features"].items() if name not in numbers and f["dtype"] not in ("video", "image", "string")}
    with contextlib.suppress(RealrlError, OSError, StopIteration, *DAMAGED):  # who reads its numbers says what is wrong
        if odd:
            with tables.Parquet(_first_table(root)) as file:
                kinds = {name: tables.numeric(file.schema.field(name).type) for name in odd if name in file.names}
            found = {name: odd[name] | {"dtype": kind} for name, kind in kinds.items() if kind}
    return found


def _celled(root: Path, info: Info) -> Info:
    """The features of pictures in cells with what their first cells show and info.json does not tell: grey of 16 bits, which is depth, and
    whether floats are fractions."""
    found: Info = {}
    for name, feature in info["features"].items():
        with contextlib.suppress(RealrlError, OSError, StopIteration, *DAMAGED):  # who reads its pictures says what is wrong
            if (feature["dtype"] == "image" or tables.pictured(feature)) and (told := _pixels(root, name, feature)):
                about = feature.get("info") if isinstance(feature.get("info"), dict) else {}
                found[name] = feature | {"info": about | told}
    return found


def _pixels(root: Path, name: str, feature: Info) -> Info:
    """What the cells of a feature say of its pixels, see `_celled`."""
    with tables.Parquet(path := _first_table(root)) as file:
        kind = tables.numeric(file.schema.field(name).type)
        first = next(file.cells(name))[0].as_py()
    if kind.startswith("float"):
        return {} if cells.FRACTIONS in depth.told(feature) else {cells.FRACTIONS: cells.in_fractions(_floats(root, name))}
    grey = not kind and not depth.is_depth(feature) and cells.picture(first, name, path).dtype == np.uint16
    return {"video.pix_fmt": "gray16le"} if grey else {}


def _floats(root: Path, name: str) -> Iterator[pa.Array]:
    """The cells of a column, file by file."""
    for path in sorted(root.glob("data/**/*.parquet")):
        with contextlib.suppress(RealrlError, *DAMAGED), tables.Parquet(path) as file:
            yield from file.cells(name, 16)


def _first_table(root: Path) -> Path:
    """The first data file. Raises StopIteration where there is none."""
    path = next(path for path in sorted(root.glob("data/**/*.parquet")) if path.is_file())
    within(root, path)
    return path


class Recordings(Protocol):
    """What can be read of a dataset, whatever its layout: a `Store`, or one that `realrl.data.formats` reads where it lies."""

    dir: Path
    labels: Labels

    def __len__(self) -> int: ...

    @property
    def frames(self) -> int: ...

    @property
    def fps(self) -> int | float: ...

    @property
    def lengths(self) -> Array: ...

    @property
    def notes(self) -> list[str]: ...

    @property
    def tasks(self) -> list[str]: ...

    @property
    def info(self) -> Info: ...

    @property
    def cameras(self) -> list[str]: ...

    @property
    def tolerance(self) -> float: ...

    def read(self, indices: Sequence[int] | None = None, images: bool = True) -> list[Episode]: ...

    def pictures(self, episode: int, camera: str, stamps: Array | None = None) -> tuple[Path, Array]: ...

    def film(self, episode: int, camera: str) -> Path: ...

    def table(self, episode: int) -> Path: ...

    def columns(self, episode: int, pictures: bool = True) -> dict[str, Array]: ...

    def build(self, index: int, columns: dict[str, Array], films: Mapping[str, Array]) -> Episode: ...


@dataclass(frozen=True)
class Reading:
    """names: our column -> theirs, several to be joined as "one,other" (`realrl.data.spread`); cameras: the observation keys that are read,
    None for all; tolerance: seconds between a frame's time in the tables and its picture, None for half a frame (`footage.tolerance`);
    paths: "data_path" and "video_path" in the place of info.json's; joined: our column -> the columns that are laid side by side for it."""

    names: Mapping[str, str] = field(default_factory=dict)
    cameras: Sequence[str] | None = None
    tolerance: float | None = None
    paths: Mapping[str, str] = field(default_factory=dict)
    joined: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether everything is read as it stands."""
        return not self.names and self.cameras is None and not self.paths and not self.joined

    @property
    def notes(self) -> list[str]:
        """What a person should know of it."""
        order = ", side by side in this order"
        return [f"{ours} is {' + '.join(parts)}{order if len(parts) > 1 else ''}; {spread.FLAGS.format(ours=ours)} say another"
                for ours, parts in self.joined.items()]

    def checked(self, root: Path, info: Info) -> Reading:
        """The same, its cameras by their full keys, columns that are spread over several found. Raises RealrlError for names and cameras
        that are not there, listing those that are, and for a tolerance that is none."""
        features: Info = info["features"]
        asked = {ours: [theirs] if theirs in features else theirs.split(",") for ours, theirs in self.names.items()}
        for ours, parts in asked.items():
            if lost := [part for part in parts if part not in features]:
                raise RealrlError(f"{root} has no column {lost[0]!r} to take for {ours}; it has {', '.join(_telling(features))}")
            if not ours or "/" in ours:
                raise RealrlError(f"{root}: a column cannot be called {ours!r}; use action, observation.state, observation.images.NAME ...")
            if len(parts) > 1:
                spread.check(root, ours, parts, features)
        found = spread.found(root, features) if not schema.ours(info) else {}
        joined = {ours: parts for ours, parts in asked.items() if len(parts) > 1}
        joined |= {ours: parts for ours, parts in found.items() if ours not in asked}
        return replace(self, joined=joined, names={ours: parts[0] for ours, parts in asked.items() if len(parts) == 1})._filmed(root, info)

    def _filmed(self, root: Path, info: Info) -> Reading:
        """The same, its cameras by their full keys, see `checked`."""
        if self.tolerance is not None and not (isinstance(self.tolerance, int | float) and 0 <= self.tolerance < np.inf):
            raise RealrlError(f"{root}: tolerance is {self.tolerance!r}, must be seconds, 0 or more")
        if self.cameras is None:
            return self
        asked = [self.cameras] if isinstance(self.cameras, str) else list(self.cameras)
        there = [name for name, f in replace(self, cameras=None).features(info).items()
                 if f["dtype"] in ("video", "image") and name.startswith("observation.")]
        keys = {name: key for name in there for key in [name.removeprefix("observation.")]
                for name in (name, key, key.rpartition(".")[2])}
        if wrong := [name for name in asked if name not in keys]:
            raise RealrlError(f"{root} has no camera {wrong[0]!r}; it has {', '.join(there).replace('observation.', '') or 'none'}")
        return replace(self, cameras=[keys[name] for name in asked])

    def features(self, info: Info) -> Info:
        """info.json's features under our names, less the cameras that are not read."""
        theirs: Info = info["features"]
        named = {name: f for name, f in theirs.items() if not self._hidden(name)}
        named |= {ours: theirs[name] for ours, name in self.names.items()}
        named |= {ours: spread.feature(ours, parts, theirs) for ours, parts in self.joined.items()}
        named |= {ours: _cells(f) for ours, f in named.items() if ours.startswith("observation.images.") and tables.pictured(f)}
        return {name: f for name, f in named.items() if self.cameras is None or f["dtype"] not in ("video", "image")
                or name.removeprefix("observation.") in self.cameras}

    def films(self, info: Info) -> dict[str, str]:
        """The cameras that are read, "observation.<key>" -> what it is called there; pictures that are no observation are not."""
        return {name: self.theirs(name) for name in tables.cameras(self.features(info)) if name.startswith("observation.")}

    def film(self, data: Recordings, info: Info, episode: int, camera: str) -> str:
        """What a camera of an episode is called there. Raises RealrlError when there is no such one."""
        theirs = self.films(info).get(f"observation.{camera}")
        if not 0 <= episode < len(data) or theirs is None:
            raise RealrlError(f"{data.dir} has no camera {camera!r} in an episode {episode}; it has {len(data)} episodes and the cameras "
                              f"{', '.join(data.cameras) or '(none)'}")
        return theirs

    def theirs(self, ours: str) -> str:
        """A column's name in the files."""
        return self.names.get(ours, ours)

    def _hidden(self, name: str) -> bool:
        """Whether a column of the files is taken for another, or another for it."""
        parts = {part for parts in self.joined.values() for part in parts}
        return name in self.names or name in self.joined or name in parts or name in self.names.values()

    def stored(self, info: Info) -> Info:
        """The features that have a column in the data files, by its name there."""
        found = {self.theirs(name): f for name, f in self.features(info).items() if name not in self.joined}
        return found | {part: info["features"][part] for parts in self.joined.values() for part in parts}

    def named(self, columns: Mapping[str, Array]) -> dict[str, Array]:
        """An episode's columns in the files under our names, in the order of its frames; a column that one of them hides is left out."""
        columns = clocks.in_order(columns)
        kept = {name: x for name, x in columns.items() if not self._hidden(name)}
        kept |= {ours: columns[theirs] for ours, theirs in self.names.items() if theirs in columns}
        return kept | {ours: spread.join([columns[part] for part in parts]) for ours, parts in self.joined.items()
                       if all(part in columns for part in parts)}

    def close(self, fps: float) -> float:
        """The tolerance in seconds."""
        return footage.tolerance(fps) if self.tolerance is None else self.tolerance


PLAIN = Reading()


def proposal(features: Info) -> dict[str, str]:
    """Our name -> theirs of what is there under another name, as far as names and shapes tell: the action, the state, the cameras, a point
    cloud."""
    vectors = {name: name.lower().removeprefix("observation.").removeprefix("observations.") for name, f in features.items()
               if f["dtype"].startswith(("float", "int")) and name not in INDICES and len(f["shape"]) == 1}
    found = {}
    for ours, words in {"action": ACTIONS, "observation.state": STATES}.items():
        ranked = sorted((words.index(word), name) for name, word in vectors.items() if word in words and name != ours)
        if ours not in features and ranked:
            hand = [name for name, word in vectors.items() if word in GRIPPERS] if vectors[ranked[0][1]] in JOINTS else []
            found[ours] = ",".join([ranked[0][1], *hand[:1]])
    if "action" not in {*features, *found} and (parts := spread.proposal(features)):
        found["action"] = ",".join(parts)
    clouds = [name for name, f in features.items() if CLOUD.search(name) and len(f["shape"]) == 2 and f["shape"][1] in (3, 6)]
    if "observation.pointcloud" not in features and clouds:
        found["observation.pointcloud"] = clouds[0]
    for name, f in features.items():
        if (f["dtype"] in ("video", "image") or tables.pictured(f)) and not name.startswith("observation."):
            found[f"observation.images.{name.removeprefix('observations.').removeprefix('images.')}"] = name
    return found


def require_action(root: Path, features: Info) -> None:
    """Raise RealrlError for a set without an action, or with one that is no vector: what looks like it, and the flags that say so."""
    if "action" in features and sum(n > 1 for n in features["action"]["shape"]) > 1:
        raise RealrlError(f"{root}: an action is {features['action']['shape']} numbers, plans perhaps; write the one vector that was sent "
                          f"in each frame as a column and name it: {imported('--rename', 'action=COLUMN')}")
    if "action" in features and "action" not in tables.stored(features):
        raise RealrlError(f"{root}: action is of dtype {features['action']['dtype']} in meta/info.json, and only numbers can be imitated; "
                          f"name the column of numbers that was sent: {renamed({'action': 'COLUMN'})}")
    if "action" in features or not features:  # a set that nothing was recorded into says no more than that
        return
    found = proposal(features)
    if clash := spread.clash(spread.parts("action", features)):
        raise RealrlError(f"{root}: the action is spread over several columns, and {clash[0]} and {clash[1]} say one thing in two ways; "
                          f"name those that were sent, in their order: {renamed(found)}")
    if "action" not in found:
        able = [name for name in _telling(features) if name in tables.stored(features)]
        raise RealrlError(f"{root} has no column 'action', and none that is called like one, and only a robot that acts can be learned "
                          f"from; say which of {', '.join(able) or 'its columns'} it is: {renamed({'action': 'COLUMN'})}")
    raise RealrlError(f"{root} has no column 'action', but {found['action'].replace(',', ' + ')!r} looks like it: {renamed(found)}")


def _cells(feature: Info) -> Info:
    """A feature of pictures written as numbers, as the pictures in cells that they are read as."""
    sides = sorted(feature["shape"], key=lambda n: n == 3)  # the colours last
    return feature | {"dtype": "image", "shape": sides, "names": ["height", "width", "channels"]}


def left_out(empty: Sequence[int]) -> list[str]:
    """A note of episodes that have no frame, where there are any."""
    told = ", ".join(map(str, empty[:9])) + (", ..." if len(empty) > 9 else "")
    return [f"left out: {len(empty)} {'episode' if len(empty) == 1 else 'episodes'} without a frame ({told})"] if empty else []


def renamed(found: Mapping[str, str]) -> str:
    """The flags that take columns for ours."""
    pairs = [f"{ours}={theirs}" for ours, theirs in found.items()]
    return f"{imported(*[word for pair in pairs for word in ('--rename', pair)])}, or --recorded.names {shlex.join(pairs)} " \
           "(of 'realrl train')"


def imported(*words: str) -> str:
    """What to add to an import, which mends something, as one would type it."""
    return f"{shlex.join(words)} (of 'realrl data import')"


def absent(root: Path, path: Path, info: Info, usual: Mapping[str, str]) -> RealrlError:
    """A file of a set that is not where info.json says, and what there is to do. usual: the layout's "data_path" and "video_path"."""
    name = "data_path" if path.suffix == ".parquet" else "video_path"
    if advice := elsewhere(root, path, info, info.get(name) or usual[name], name):
        return RealrlError(f"{path} is missing, but such files lie elsewhere; {advice}")
    repair = f", or {advice}" if "repair" in (advice := mend(path)) else ""
    if name == "data_path":
        return RealrlError(f"{path} is missing; leave its episodes out: --recorded.missing episodes of 'realrl train', "
                           f"{imported('--option', 'missing=episodes')}{repair}")
    mine = {name for name in tables.cameras(info["features"]) if name in path.parts}
    whole = bool(mine) and not any(mine & {*film.parts} for film in root.rglob(f"*{path.suffix}"))
    gone = "it is like that with its whole camera, leave that out" if whole else "leave its episodes or the camera out"
    flags = [f"--recorded.missing camera of 'realrl train', {imported('--option', 'missing=camera')}"] if whole else [
        "--recorded.missing episodes or camera of 'realrl train'", "--option missing=episodes or --option missing=camera of "
        "'realrl data import' (images=False reads the numbers alone)"]
    return RealrlError(f"{path} is missing; {gone}: {', '.join(flags)}{repair}")


def elsewhere(root: Path, path: Path, info: Info, told: str, option: str) -> str:
    """What to say where files of this kind do lie elsewhere: the template that names them, or which folder to rename; "" where none is."""
    films = tables.cameras(info["features"])
    mine = [name for name in films if name in path.parts]
    for found in sorted(root.rglob(path.name)) or sorted(p for p in root.rglob(f"*{path.suffix}") if NUMBERED.fullmatch(p.stem)):
        parts = found.relative_to(root).parts
        camera = next((part for part in parts if part in (mine or films)), None)
        if parts[0] == "meta":
            continue
        if path.suffix != ".parquet" and camera is None:
            short = next((part for part in parts for name in mine if name.endswith(f".{part}")), None)
            if short is None or "{video_key}" not in told:
                continue
            folder = root.joinpath(*parts[:parts.index(short) + 1])
            return f"rename the folder {folder} to {mine[0]}"
        words = ["{video_key}" if part == camera else part for part in parts]
        field = "episode_chunk" if parts[-1].startswith("episode_") else "chunk_index"
        for pattern, mark in ((r"(?<=chunk-)\d{3}", f"{{{field}:03d}}"), (r"(?<=file-)\d{3}", "{file_index:03d}"),
                              (r"(?<=episode_)\d{6}", "{episode_index:06d}")):
            words = [re.sub(pattern, mark, word) for word in words]
        if _plain(template := "/".join(words)) != _plain(told) and template.count("{") == len(re.findall(r"\{\w+(?::0?\d+d)?\}", template)):
            return (f"say where: --recorded.{option.replace('_', '-')} {shlex.quote(template)} of 'realrl train', "
                    f"{imported('--option', f'{option}={template}')}")
    return ""


def _plain(template: str) -> str:
    """A template by the names of version 3, for comparison."""
    return template.replace("{episode_chunk", "{chunk_index").replace("{episode_index", "{file_index")


def _telling(features: Info) -> list[str]:
    return [name for name in features if name not in INDICES]
