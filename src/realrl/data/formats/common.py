"""What every format module shares: `Imported`, columns made into an episode, and files that are published whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from realrl.data import clocks
from realrl.files import sync
from realrl.types import Array, Episode, Obs, RealrlError, Source

MAX_BYTES = 4 * 2**30  # of one array of one episode: more is taken for damage or malice, and refused before memory is asked for
COLUMNS = ("proposed", "source", "reward", "success", "time", "starts_plan")  # [T, ...] each, what few formats have room for
FACTS = ("task", "policy", "seed", "terminated", "truncated", "judged")
Last = Literal["repeat", "drop"]
AGAIN = "download or copy it again, a whole one is needed"  # what alone mends a file that was cut or changed on its way
NOTHING_AFTER = ("no observation after an episode's last action: the one before it is repeated (last='repeat'), "
                 "last='drop' leaves that action out")
ACTION = re.compile(r"(^|[._])actions?$")  # the last one among the observations: it is most of what a clone would learn
OBJECT = re.compile(r"(^|[._])object$")
CLOCKS = ("timestamp", "timestamps", "time", "times")
TEXTS = ("task", "language_instruction", "instruction", "task_description", "task_name", "current_task", "language", "lang", "prompt",
         "text")  # what is to be done, in words
_KEY = re.compile(r"[A-Za-z0-9_][\w .+\-]{0,119}")


@dataclass
class Imported:
    """A foreign dataset, opened. `episodes` reads lazily, one episode in memory at a time, and can be gone through once.

    task: the text of the task (each episode has its own `Episode.task`); fps: control steps a second; notes: lines a person
    should read (what the format lacks, what was assumed, actions that leave [-1, 1]), some of which only reading the episodes brings
    up; meta: what the format keeps beside its episodes, e.g. `env_args` to build the simulator again, `names` of the numbers in
    columns, plain Python values; count: how many episodes will come, None if that is not known beforehand. While iterating,
    RealrlError is raised for an episode that cannot be read.
    """

    task: str
    fps: int | float
    robot_type: str
    episodes: Iterator[Episode]
    notes: list[str] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    count: int | None = None


# ---- checking


def line(error: BaseException) -> str:
    """The first line of an error, short and printable whatever a hostile file put into it."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text.encode("ascii", "backslashreplace").decode()[:160]


@contextlib.contextmanager
def damage(where: object) -> Iterator[None]:
    """Whatever a library raises while it reads a file means that the file is damaged: one RealrlError, which names it."""
    try:
        yield
    except RealrlError:
        raise
    except Exception as error:
        raise RealrlError(f"{where}: truncated or damaged ({line(error)}); {AGAIN}") from error


def key_name(name: str, where: Path) -> str:
    """The name itself. Raises RealrlError for one that would not do as the name of a feature or a folder."""
    if not _KEY.fullmatch(name) or ".." in name:
        raise RealrlError(f"{where}: {ascii(name)[:80]} can not be the name of an observation; rename it (letters, digits, _ . + -)")
    return name


def only(asked: Sequence[str] | None, there: Sequence[str], what: str, where: Path) -> list[str]:
    """The names asked for, all by default. Raises RealrlError listing what there is when one of them is not."""
    if isinstance(asked, str):
        asked = [asked]
    if wrong := [name for name in asked or () if name not in there]:
        raise RealrlError(f"{where} has no {what} {wrong[0]!r}; there is {', '.join(there) or 'none'}")
    return list(there if asked is None else asked)


def rate_of(fps: float | None, where: Path) -> int | float | None:
    """Steps a second, 10 or 29.97. Raises RealrlError for anything that is no number above 0."""
    if fps is None:
        return None
    if not (isinstance(fps, (int, float, np.number)) and 0 < fps < 1e6):
        raise RealrlError(f"{where}: fps is {fps!r}, must be a number above 0; give fps=")
    return int(fps) if float(fps).is_integer() else float(fps)


def rate_from(period: float) -> int | float:
    """Steps a second of a clock's median tick, seconds: whole where it is near that, 29.97 and the like, else to hundredths."""
    rate, whole = 1 / period, round(1 / period)
    if whole and abs(rate / (whole * 1000 / 1001) - 1) < 2e-4:
        return round(whole * 1000 / 1001, 3)
    return whole if whole and abs(rate / whole - 1) < 5e-3 else round(rate, 2)


def rate_by(ticks: Array) -> int | float | None:
    """Steps a second by what a clock counted between them, see `clocks.tick`; None where it says nothing, or counts steps."""
    tick = clocks.tick(ticks) if (ticks != 1).any() else 0.0
    return rate_from(tick) if tick else None


def source_of(name: str | Source) -> Source:
    """`Source` by name. Raises RealrlError listing the names."""
    try:
        return Source[name.upper()] if isinstance(name, str) else Source(name)
    except (KeyError, ValueError):
        raise RealrlError(f"source is {name!r}, must be one of {', '.join(s.name.lower() for s in Source)}") from None


def check_range(action_range: Sequence[float] | None) -> tuple[float, float] | None:
    """(low, high). Raises RealrlError unless there are two finite numbers, low below high."""
    if action_range is None:
        return None
    try:
        low, high = (float(v) for v in action_range)
    except (TypeError, ValueError):
        low, high = np.nan, np.nan
    if not -np.inf < low < high < np.inf:
        raise RealrlError(f"action_range is {action_range!r}, must be two numbers (low, high), low below high")
    return low, high


def wider(low: float, high: float, action: Array) -> tuple[float, float]:
    """The interval low..high grown by the numbers of `action`."""
    return (min(low, float(action.min())), max(high, float(action.max()))) if action.size else (low, high)


def range_note(low: float, high: float, action_range: tuple[float, float] | None) -> list[str]:
    """What to say about actions between `low` and `high`, as recorded."""
    a, b = action_range or (-1.0, 1.0)
    if a <= low and high <= b:
        return []
    if action_range:
        return [f"actions reach from {low:.4g} to {high:.4g}, outside the range {a:g} to {b:g} that was given, so some leave [-1, 1]"]
    return [f"actions reach from {low:.4g} to {high:.4g}, outside the [-1, 1] of simulators; action_range=(low, high) maps them "
            "linearly, 'realrl train' without a task takes them as they are"]


# ---- arrays


def scale_actions(action: Array, action_range: tuple[float, float] | None) -> Array:
    """Actions [T, A] as float32, `action_range` mapped linearly onto [-1, 1]."""
    flat = action.reshape(len(action), -1)
    if action_range:
        low, high = action_range
        flat = 2.0 * (flat.astype(np.float64) - low) / (high - low) - 1.0
    with np.errstate(over="ignore"):
        return flat.astype(np.float32)


def unscale_actions(action: Array, action_range: tuple[float, float] | None) -> Array:
    """The inverse of `scale_actions`, float32."""
    if action_range is None:
        return np.asarray(action, np.float32)
    low, high = action_range
    mapped: Array = low + (action.astype(np.float64) + 1.0) * (high - low) / 2.0
    return mapped.astype(np.float32)


def numbers(x: Array) -> Array:
    """Observations as kept in memory: doubles become float32, integers and booleans stay."""
    with np.errstate(over="ignore"):  # becomes infinity, which a store refuses by name
        return x.astype(np.float32) if x.dtype.kind == "f" else x


def to_images(x: Array, scale: float | None, what: str, mend: str) -> Array:
    """Colour images [T, H, W, 3] as uint8. scale: None where the caller has no such option. Raises RealrlError when `scale` times the
    values are not whole in 0..255."""
    if scale is not None:
        mend = "give image_scale=255 when they are in 0..1"
    scale = scale or 1.0
    if x.dtype == np.uint8 and scale == 1.0:
        return x
    low, high = float(x.min(initial=0)) * scale, float(x.max(initial=0)) * scale
    if not (low > -0.01 and high < 255.01):  # which NaN is not either
        raise _not_pixels(x, low, high, what, mend)
    images = np.empty(x.shape, np.uint8)
    for image, row in zip(images, x, strict=True):  # frame by frame: an episode of doubles may just fit into memory
        scaled = row if scale == 1.0 else row * np.float32(scale)
        np.copyto(image, scaled + np.float32(0.01), casting="unsafe")
        if np.abs(scaled - image).max(initial=0) > 0.02:
            raise _not_pixels(x, low, high, what, mend)
    return images


def _not_pixels(x: Array, low: float, high: float, what: str, mend: str) -> RealrlError:
    return RealrlError(f"{what}: pixels are {x.dtype} from {low:.4g} to {high:.4g}, not whole numbers in 0..255; {mend}")


def state_keys(state: Sequence[str] | None, usual: Sequence[str], low_dim: Sequence[str], where: Path) -> list[str]:
    """Which observations make up obs["state"]: those asked for, else `state` itself, else the usual ones where they tell of the robot and
    not of an object alone, else all numbers."""
    if state is not None:
        return only(state, low_dim, "observation of numbers", where)
    if "state" in low_dim:
        return ["state"]
    found = [k for name in usual for k in low_dim if k == name or k.endswith(f".{name}")]
    if any(OBJECT.search(k) is None for k in found):
        return found
    return [k for k in low_dim if not ACTION.search(k)] or list(low_dim)


def with_state(obs: Obs, keys: Sequence[str]) -> Obs:
    """`obs` with "state" [T+1, D] float32, the named observations side by side; unchanged when it is the one named."""
    if not keys or list(keys) == ["state"]:
        return obs
    rows = [obs[k].reshape(len(obs[k]), -1).astype(np.float32) for k in keys]
    return {**obs, "state": np.concatenate(rows, axis=1)}


def check_last(last: str) -> Last:
    """Raises RealrlError unless it is one of the two ways to end an episode that has no observation after its last action."""
    if last == "repeat":
        return "repeat"
    if last == "drop":
        return "drop"
    raise RealrlError(f"last is {last!r}, must be 'repeat' (the last observation stands for the one after the last action) or "
                      "'drop' (the last action is left out)")


# ---- episodes


def episode(obs: Obs, action: Array, *, fps: float, task: str, policy: str, source: Source, reward: Array | None = None,
            success: Array | None = None, terminated: bool = False, truncated: bool = True, extra: dict[str, Array] | None = None,
            last: Last = "repeat", where: str) -> Episode:
    """An `Episode` from the columns that a format has; what it lacks is zero (success: unknown), `time` is counted from `fps`.

    obs: each [T+1, ...], or [T, ...], then `last` says how it ends; action: [T, A]. Raises RealrlError on columns of other lengths.
    """
    steps = len(action)
    if len({len(x) for x in obs.values()}) > 1 or not obs or len(next(iter(obs.values()))) not in (steps, steps + 1):
        raise RealrlError(f"{where}: {steps} actions but {', '.join(f'{len(x)} of {k}' for k, x in obs.items()) or 'no observations'}; "
                          "write as many of each as actions, or one more")
    for name, column in {"reward": reward, "success": success}.items():
        if column is not None and column.shape != (steps,):
            raise RealrlError(f"{where}: {steps} actions but {name} has shape {list(column.shape)}; write one number an action")
    short = len(next(iter(obs.values()))) == steps
    if short and last == "repeat":
        obs = {k: np.concatenate([x, x[-1:]]) for k, x in obs.items()}
    elif short:
        steps -= 1
    if steps < 1:
        raise RealrlError(f"{where} has no step; write the set without it")
    action = action[:steps]
    return Episode(
        obs=obs, action=action, proposed=action.copy(), source=np.full(steps, source, np.uint8),
        reward=np.zeros(steps, np.float32) if reward is None else numbers(reward[:steps]).astype(np.float32),
        success=np.zeros(steps, bool) if success is None else success[:steps].astype(bool), time=np.arange(steps) / fps,
        starts_plan=np.ones(steps, bool), terminated=terminated, truncated=truncated, task=task, policy=policy, extra=extra or {},
        judged=success is not None)


def with_success(ended: Episode) -> Episode:
    """A demonstration that is known to have succeeded: success and termination at its last step, and reward 1 where none is paid."""
    reward, success = ended.reward.copy(), ended.success.copy()
    reward[-1], success[-1] = reward[-1] if reward.any() else 1.0, True
    return replace(ended, reward=reward, success=success, terminated=True, truncated=False, judged=True)


def facts(one: Episode) -> dict[str, Any]:
    """What belongs to the episode as a whole, for a format that has room for it."""
    return {name: getattr(one, name) for name in FACTS}


def restored(one: Episode, columns: Mapping[str, Array], told: Mapping[str, Any], where: str) -> Episode:
    """The episode with the columns and facts that our own export wrote beside the format's. Raises RealrlError on wrong shapes."""
    changes: dict[str, Any] = {}
    for name in COLUMNS:
        if name in columns:
            own = getattr(one, name)
            if columns[name].shape != own.shape:
                raise RealrlError(f"{where}: {name} has shape {list(columns[name].shape)}, not {list(own.shape)}; export it again")
            changes[name] = columns[name].astype(own.dtype)
    if "success" in changes:
        changes["judged"] = True  # unless the facts say otherwise
    kinds: dict[str, tuple[type, ...]] = {"task": (str,), "policy": (str,), "seed": (int, type(None)), "terminated": (bool,),
                                          "truncated": (bool,), "judged": (bool,)}
    for name, kind in kinds.items():
        if name in told:
            if not isinstance(told[name], kind):
                raise RealrlError(f"{where}: {name} is of the wrong type ({type(told[name]).__name__}); export it again")
            changes[name] = told[name]
    return replace(one, **changes)


# ---- files


@contextlib.contextmanager
def published(path: Path) -> Iterator[Path]:
    """A name to write a file or folder under; it takes its place when the block ends well, and is gone when it does not.

    Raises RealrlError when `path` exists already or the disk refuses.
    """
    if path.exists() or path.is_symlink():
        raise RealrlError(f"{path} exists already; choose another name or move it away")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(temporary)
        yield temporary
        for inside in [temporary, *temporary.rglob("*")] if temporary.is_dir() else [temporary]:
            sync(inside)
        temporary.rename(path)
        sync(path.parent)
    except OSError as error:
        raise RealrlError(f"{path} could not be written ({error.strerror or line(error)}); free space or mend the permissions") from error
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """A file or folder, gone; no error when it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
