"""RLDS datasets (Ramos et al. 2021; folders that TFDS builds), read without TensorFlow.

A record (`tfrecord`) is one episode: a map from a path such as "steps/observation/state" to all steps' values one after the
other. `features.json` beside the record files says shapes, dtypes and how pictures are packed.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from realrl.data.formats import common, senses
from realrl.data.formats.common import Imported
from realrl.data.formats.tfrecord import example, records
from realrl.data.formats.tfrecord import library as library
from realrl.types import Array, Episode, Obs, RealrlError, Source

NAME = "rlds"
FPS = 5  # BridgeData's rate, and about that of most sets in Open X-Embodiment
STEPS = "steps/"
NUMBERS = ("bool", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
TEXTS = ("language_instruction", "natural_language_instruction", "language", "instruction", "task")


@dataclass(frozen=True)
class Feature:
    """One leaf of features.json. kind: "tensor", "image" or "text"; shape: of one step, None where it varies."""

    kind: str
    dtype: str
    shape: tuple[int | None, ...]
    encoding: str = "none"


def detect(path: Path) -> bool:
    """Whether it is a folder with features.json and record files, or one such record file."""
    try:
        folder = path.parent if path.is_file() else path
        return (folder / "features.json").is_file() and bool(_record_files(path, None))
    except OSError:
        return False


def read(path: Path, *, task: str | None = None, fps: float | None = None, split: str | None = None, source: str = "human",
         last: str = "repeat", action_range: tuple[float, float] | None = None, images: bool = True,
         cameras: Sequence[str] | None = None) -> Imported:
    """The episodes of an RLDS folder, or of one of its record files.

    task: overrides the language instruction; fps: control steps a second, which RLDS does not say (5 by default); split: e.g.
    "train", all by default; source: who acted, "human", "policy" or "script"; last: where a marked last step has
    no action (all zeros) its observation ends the episode, as RLDS means it; else "repeat" lets the last observation stand for
    the one after the last action and "drop" leaves that action out; action_range: (low, high) mapped onto [-1, 1];
    images, cameras: which pictures to decode.
    Raises RealrlError for damaged records, features that are not read here and names that are not there.
    """
    path, rate, who, ending = Path(path), common.rate_of(fps, Path(path)), common.source_of(source), common.check_last(last)
    folder = path.parent if path.is_file() else path
    features, files, span = read_features(folder / "features.json"), _record_files(path, split), common.check_range(action_range)
    if not files:
        raise RealrlError(f"{path} holds no record files{f' of split {split!r}' if split else ''}; give the folder with features.json")
    steps = {name.removeprefix(STEPS): f for name, f in features.items() if name.startswith(STEPS)}
    every = [name.removeprefix("observation/") for name, f in steps.items() if f.kind == "image"]
    wanted = common.only(cameras, every, "camera", path) if images else []
    skipped = {n for n, f in steps.items() if f.kind == "image" and n.removeprefix("observation/") not in wanted}
    notes = [] if rate else [f"RLDS does not say its rate, {FPS} steps a second are assumed; fps= says another"]
    if not any(n.removeprefix("observation/") in TEXTS for n in steps) and task is None:
        notes.append("no language instruction was found; task= gives one")
    beside = [n for n, f in steps.items() if _place(n, f) == "extra"]
    if beside:
        notes.append(f"kept in memory only, in `extra`: {', '.join(beside)}")
    used = {STEPS + n: f for n, f in steps.items() if n not in skipped}
    ours = senses.names({_short(n): ((1, *(size or 1 for size in f.shape)), f.dtype) for n, f in steps.items()
                         if _place(n, f) == "obs" and f.kind == "tensor" and f.dtype in NUMBERS}, path)

    levels = senses.Levels()

    def episodes() -> Iterator[Episode]:
        for file in files:
            for number, record in enumerate(records(file)):
                where = f"{file}: record {number}"
                columns = {n.removeprefix(STEPS): x for n, x in _columns(record, used, where).items()}
                yield _episode(columns, used, ours, rate or FPS, task, who, ending, span, where, levels)

    levels.episodes = episodes
    return Imported(task if task is not None else folder.name, rate or FPS, "unknown", episodes(), notes)


def _record_files(path: Path, split: str | None) -> list[Path]:
    """The record files themselves or those of a folder, in order; `name-split.tfrecord-00000-of-00010`."""
    files = [path] if path.is_file() else sorted(path.glob("*.tfrecord*"))
    return [f for f in files if ".tfrecord" in f.name and f.is_file() and (split is None or f"-{split}." in f.name)]


# ---- features.json


def read_features(path: Path) -> dict[str, Feature]:
    """Every leaf of features.json by its path. Raises RealrlError for a damaged file and for features that are not read here."""
    try:
        if path.stat().st_size > 2**24:
            raise ValueError("it is longer than 16 MB")
        tree = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise RealrlError(f"{path} is not readable ({common.line(error)}); copy it from the set's folder, it tells shapes") from error
    out: dict[str, Feature] = {}
    _walk(tree, "", out, path, 0)
    if f"{STEPS}action" not in out and not any(name.startswith(f"{STEPS}action/") for name in out):
        raise RealrlError(f"{path} describes no steps/action; only RLDS episodes are read")
    return out


def _walk(node: Any, name: str, out: dict[str, Feature], path: Path, depth: int) -> None:
    wrong = RealrlError(f"{path}: {ascii(name or 'the root')[:80]} is not described as TFDS does; write the file with TFDS again")
    if not isinstance(node, dict) or depth > 16:
        raise wrong
    if "featuresDict" in node:
        inner = node["featuresDict"].get("features") if isinstance(node["featuresDict"], dict) else None
        if not isinstance(inner, dict):
            raise wrong
        for key, value in inner.items():
            _walk(value, f"{name}/{key}" if name else str(key), out, path, depth + 1)
    elif "sequence" in node and name == "steps":
        _walk(node["sequence"].get("feature") if isinstance(node["sequence"], dict) else None, name, out, path, depth + 1)
    elif "text" in node:
        out[name] = Feature("text", "string", ())
    elif "image" in node or "tensor" in node:
        kind = "image" if "image" in node else "tensor"
        leaf = node[kind]
        shape, dtype = _shape(leaf), leaf.get("dtype", "uint8") if isinstance(leaf, dict) else None
        if shape is None or not isinstance(dtype, str) or (kind == "image" and len(shape) != 3):
            raise wrong
        out[name] = Feature(kind, dtype, shape, str(leaf.get("encoding", "none")))
    elif name.startswith(STEPS):
        raise RealrlError(f"{path}: {ascii(name)[:80]} is a {ascii(node.get('pythonClassName'))[:80]}, which is not read here; "
                          "convert the dataset with TensorFlow first")


def _shape(leaf: Any) -> tuple[int | None, ...] | None:
    """(3, None) from {"shape": {"dimensions": ["3", "-1"]}}; None when it is malformed."""
    shape = leaf.get("shape", {}) if isinstance(leaf, dict) else None
    sizes = shape.get("dimensions", []) if isinstance(shape, dict) else None
    if not isinstance(sizes, list) or len(sizes) > 8:
        return None
    try:
        numbers = [int(str(n)[:12]) for n in sizes]
    except ValueError:
        return None
    return tuple(n if 0 < n < 2**24 else None for n in numbers)


# ---- columns and episodes


def _columns(record: bytes, features: dict[str, Feature], where: str) -> dict[str, Any]:
    """Every feature as [T, ...] or a list of T texts. Raises RealrlError when one is missing or has another length."""
    raw = example(record, where)
    flags = raw.get(STEPS + "is_first", raw.get(STEPS + "is_last"))
    known = next((f for n, f in features.items() if f.kind == "tensor" and n in raw and None not in f.shape and f.encoding == "none"), None)
    steps = len(flags) if flags is not None else 0
    if flags is None and known:
        name = next(n for n, f in features.items() if f is known)
        steps = len(raw[name]) // max(1, prod(n or 1 for n in known.shape))
    if steps < 1:
        raise RealrlError(f"{where} has no steps; write the set without this record")
    out = {}
    for name, feature in features.items():
        if name not in raw:
            raise RealrlError(f"{where} lacks {name}, which features.json describes; take the features.json that belongs to the records")
        out[name] = _column(raw[name], feature, steps, f"{where}: {name}")
    return out


def _column(values: Any, feature: Feature, steps: int, where: str) -> Any:
    if feature.kind == "tensor" and feature.encoding == "none" and feature.dtype != "string":
        if isinstance(values, list) or None in feature.shape or len(values) != steps * prod(n or 1 for n in feature.shape):
            raise RealrlError(f"{where} does not hold {steps} values of shape {list(feature.shape)}; those of varying size are not read")
        return values.reshape(steps, *feature.shape).astype(_numpy(feature.dtype, where))
    if not isinstance(values, list) or len(values) != steps:
        raise RealrlError(f"{where} does not hold {steps} entries; take the features.json that belongs to the records")
    if feature.kind == "text" or feature.dtype == "string":
        return [bytes(v).decode("utf-8", "replace") for v in values]
    if feature.kind == "image":
        pictures = [_image(v, feature, where) for v in values]
        if len({p.shape for p in pictures}) > 1:
            raise RealrlError(f"{where}: pictures of different sizes in one episode are not read")
        return np.stack(pictures)
    return np.stack([_raw_tensor(v, feature, where) for v in values])


def _numpy(dtype: str, where: str) -> np.dtype[Any]:
    if dtype not in NUMBERS:
        raise RealrlError(f"{where} is {ascii(dtype)[:40]}, which is not read here; convert the dataset with TensorFlow first")
    return np.dtype(dtype)


def _raw_tensor(data: memoryview, feature: Feature, where: str) -> Array:
    """A tensor kept as its bytes, deflated or not."""
    dtype = _numpy(feature.dtype, where)
    if None in feature.shape or feature.encoding not in ("bytes", "zlib"):
        raise RealrlError(f"{where}: tensors whose size varies or in encoding {ascii(feature.encoding)[:40]} are not read")
    size = prod(n or 1 for n in feature.shape) * dtype.itemsize
    try:
        raw = zlib.decompressobj().decompress(bytes(data), size + 1) if feature.encoding == "zlib" else bytes(data)
    except zlib.error as error:
        raise RealrlError(f"{where} could not be inflated ({common.line(error)}); {common.AGAIN}") from error
    if len(raw) != size:
        raise RealrlError(f"{where} has {len(raw)} bytes where {size} are expected; take the features.json that belongs to the records")
    return np.frombuffer(raw, dtype).reshape([n or 1 for n in feature.shape])


def _image(data: memoryview, feature: Feature, where: str) -> Array:
    """A JPEG or PNG as [H, W, C]; its size is compared with what features.json says before it is decoded."""
    from PIL import Image  # comes with matplotlib

    height, width, channels = feature.shape
    mode = {("uint8", 3): "RGB", ("uint8", 1): "L", ("uint16", 1): "I;16"}.get((feature.dtype, channels or 0))
    if mode is None:
        raise RealrlError(f"{where}: pictures of {feature.dtype} with {channels} channels are not read; images=False reads numbers alone")
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as picture:
            if any(n != m for n, m in zip(picture.size, (width, height), strict=True) if m) or prod(picture.size) > 2**26:
                raise ValueError(f"it is {picture.size[1]} x {picture.size[0]}, features.json says {height} x {width}")
            out = np.asarray(picture if picture.mode in (mode, "I") else picture.convert(mode))
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, MemoryError, Image.DecompressionBombError) as error:
        raise RealrlError(f"{where} is no readable JPEG or PNG ({common.line(error)}); images=False reads the numbers alone") from error
    return out.reshape(*out.shape[:2], channels or 1).astype(feature.dtype)


def _place(name: str, feature: Feature) -> str:
    """What becomes of a step's feature: "obs", "action", "text", "flag" (its own column) or "extra"."""
    if name == "action" or name.startswith("action/"):
        return "action"
    if name in ("is_first", "is_last", "is_terminal", "reward"):
        return "flag"
    if feature.kind == "text" or feature.dtype == "string":
        return "text"
    return "obs" if name.startswith("observation/") and "embedding" not in name else "extra"


def _episode(columns: dict[str, Any], features: dict[str, Feature], ours: dict[str, str], fps: float, task: str | None, source: Source,
             last: common.Last, span: tuple[float, float] | None, where: str, levels: senses.Levels) -> Episode:
    """ours: short name of a tensor among the observations -> our name; levels: of the whole set."""
    obs: Obs = {}
    extra: dict[str, Array] = {}
    actions: list[Array] = []
    text = task
    for name, x in columns.items():
        feature, place, short = features[STEPS + name], _place(name, features[STEPS + name]), name.rsplit("/", 1)[-1]
        if place == "action":
            actions.append(x.reshape(len(x), -1).astype(np.float32))
        elif place == "text" and short in TEXTS and text is None:
            text = x[0]
        elif place == "obs" or (place == "extra" and feature.kind == "image"):
            if feature.kind == "image":
                obs[_key(name, feature, where)] = _picture(x, feature)
            else:
                own, rows = ours[_short(name)], f"{where}: {name}"
                obs[own] = senses.converted(x if own.startswith(senses.SENSES) else x.reshape(len(x), -1), own, rows, levels=levels)
        elif place == "extra":
            extra[name] = x
    steps = len(actions[0])
    flag = {n: columns[n].reshape(-1).astype(bool) if n in columns else np.zeros(steps, bool) for n in ("is_last", "is_terminal")}
    reward = columns["reward"].reshape(-1).astype(np.float32) if "reward" in columns else np.zeros(steps, np.float32)
    terminal, ended = bool(flag["is_terminal"][-1]), bool(flag["is_last"][-1])
    told = {"reward", "is_terminal"} <= columns.keys() and (terminal or bool(reward.any()))  # cut off and never paid: nobody says
    success = np.zeros(steps, bool)
    success[-1] = terminal and reward[-1] > 0
    action = common.scale_actions(np.concatenate(actions, 1), span)
    if ended and steps > 1 and not any(a[-1].any() for a in actions):  # RLDS: the last step is an observation only
        action, success = action[:-1], success[1:]
        reward = np.append(reward[:-2], reward[-2] + reward[-1]).astype(np.float32)  # some sets pay there
    return common.episode(obs, action, fps=fps, task=text or "", policy="human" if source == Source.HUMAN else "", source=source,
                          reward=reward, success=success if told else None, terminated=terminal, truncated=not terminal,
                          extra=extra, last=last, where=where)


def _short(name: str) -> str:
    return name.removeprefix("observation/").replace("/", ".")


def _key(name: str, feature: Feature, where: str) -> str:
    """What pictures are called: distances have 16 bits, and one of 8 is grey. Raises RealrlError for distances in 8 bits."""
    short = common.key_name(_short(name), Path(where))
    if feature.shape[2] == 3 or (feature.dtype == "uint8" and not senses.DEPTH.search(short)):
        return f"images.{short}"
    if feature.dtype == "uint8":
        raise RealrlError(f"{where}: {name}: distances in 8 bits have no unit that is known here; cameras=NAME,NAME names the others, "
                          "images=False reads the numbers alone")
    return f"depth.{short}"


def _picture(x: Array, feature: Feature) -> Array:
    """[T, H, W, 3] uint8, grey in three alike, or distances [T, H, W] uint16."""
    return np.repeat(x, 3, axis=3) if feature.shape[2] == 1 and feature.dtype == "uint8" else x if feature.shape[2] == 3 else x[..., 0]
