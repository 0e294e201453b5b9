"""Which episodes a page shows, and what is known about them beside the recording itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from realrl import envs
from realrl.data import side
from realrl.data.formats import open_dataset
from realrl.data.store import Recordings, Store
from realrl.types import Array, Episode, RealrlError

T = TypeVar("T")
Each = Callable[[Iterable[T], str, int], Iterable[T]]  # wraps items in a progress bar: (items, what is done, how many there are)
SHOWN = 4  # episodes of a dataset, evenly spaced, where nobody says which
MOST_FAILURES = 8
MOST_CURVES = 6
LINES = 6  # numbers of a state that are drawn as lines
FOLDER = "failures"  # of a dataset of failures, in a folder failures-<head> of the run


@dataclass(frozen=True)
class Clip:
    """One episode as it is shown. number: in its dataset, or of its start; dt: seconds of a control step.

    curves: name -> [T] or [T, k], what is known of every step beside what was observed: derived columns such as value and advantage, what
    a simulator tells; NaN where unknown; beside: panel -> line -> [T] or [T + 1], what is to be compared, likewise; names: of the numbers
    in "state" and "action", where the dataset has them; notes: what a reader of the page must know.
    """

    number: int
    episode: Episode
    dt: float
    curves: Mapping[str, Array] = field(default_factory=dict)
    beside: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class EpisodeSet:
    """What becomes one page. name: of its file, without suffix; clips: made one by one, as their pictures take much memory."""

    name: str
    title: str
    kicker: str
    numbers: Sequence[int]
    clips: Callable[[], Iterator[Clip]]


def ending(episode: Episode) -> str:
    """How it ended, in words."""
    if episode.succeeded:
        return f"success at step {len(episode)}"
    if episode.terminated and episode.judged:
        return f"the task ended it at step {len(episode)}, without success"
    if episode.terminated:
        return f"the task ended it at step {len(episode)}, how is unknown"
    return f"cut off after {len(episode)} steps" if episode.truncated else f"the recording ends after {len(episode)} steps"


# ---- recorded ones


def recorded(directory: Path, *, name: str = "", numbers: Sequence[int] | None = None, worst: int | None = None, most: int = SHOWN,
             also: Callable[[Clip], Clip] = lambda clip: clip) -> EpisodeSet:
    """Episodes of a dataset: those named, or the `worst`, or `most` evenly spaced ones. also: adds to each what else is known of it.

    Raises RealrlError when there is no dataset, it is empty, or it lacks a number.
    """
    store = open_dataset(directory)
    if not len(store):
        raise RealrlError(f"{directory} holds no episodes yet, there is nothing to view")
    if numbers is None:
        spaced = np.unique(np.linspace(0, len(store) - 1, min(len(store), most)).round().astype(int)).tolist()
        numbers = spaced if worst is None else worst_of(store, worst)
    if wrong := [i for i in numbers if not 0 <= i < len(store)]:
        raise RealrlError(f"{directory} holds {len(store)} episodes, there is no number {wrong[0]}; count from 0")
    title = directory.resolve().name
    kicker = f"{len(numbers)} of {len(store):,} recorded episodes · {store.fps:g} steps/s"
    return EpisodeSet(name or title, title, kicker, list(numbers), lambda: map(also, _clips(store, numbers)))


def _clips(store: Recordings, numbers: Sequence[int]) -> Iterator[Clip]:
    curves, notes = derived(store)
    names = {column.removeprefix("observation."): found for column in ("observation.state", "action")
             if (found := names_of(store.info["features"].get(column) or {}))}
    for i in numbers:
        (episode,) = store.read([i])
        own = {name: _rows_of(store, i, x) for name, x in curves.items()}
        state = names.get("state") or readings(episode)
        yield Clip(i, episode, 1 / store.fps, {name: x for name, x in own.items() if np.isfinite(x).any()},
                   names={**names, **({"state": state} if state else {})}, notes=notes)


def readings(episode: Episode) -> list[str]:
    """What its state's numbers are called by its task, [] where that is not known of all of them."""
    size = episode.obs["state"].shape[-1] if "state" in episode.obs else 0
    found = list(envs.state_names(episode.task))[:size]
    return found if len(found) == size else []


def _rows_of(store: Recordings, episode: int, x: Array) -> Array:
    """The rows of one episode in a derived column [frames]."""
    assert isinstance(store, Store)  # datasets of version 2 have no derived columns
    length = np.asarray(store.rows["length"].to_numpy())
    first = int(length[:episode].sum())
    return x[first:first + int(length[episode])]


def names_of(feature: Mapping[str, Any]) -> list[str]:
    """The names of a column's numbers, [] where there are none."""
    names = feature.get("names")
    found = names if isinstance(names, list) else [x for v in names.values() for x in (v if isinstance(v, list) else [v])] \
        if isinstance(names, dict) else []
    return [str(x) for x in found] if len(found) == int(np.prod(feature.get("shape") or [0])) else []


def derived(store: Recordings) -> tuple[dict[str, Array], list[str]]:
    """(derived columns of one number a frame, name -> [frames]; what could not be read)."""
    curves: dict[str, Array] = {}
    notes: list[str] = []
    for name in side.names(store.dir) if isinstance(store, Store) else ():
        try:
            found = side.read(store.dir, name, missing="nan")
        except RealrlError as error:
            notes.append(f"Derived columns left out: {error}")
            continue
        for column, x in found.columns.items() if found.per == "frame" else ():
            if x.size == len(x) and x.dtype.kind in "fiub" and len(curves) < MOST_CURVES:
                curves[column if column not in curves else f"{name}: {column}"] = x.reshape(-1).astype(np.float64)
    return curves, notes


def worst_of(store: Recordings, count: int) -> list[int]:
    """Episodes from the worst up: failures first, then what is unknown, then by return, the longer one first."""
    order = []
    for start in range(0, len(store), 200):
        numbers = range(start, min(start + 200, len(store)))
        for i, episode in zip(numbers, store.read(numbers, images=False), strict=True):
            order.append((not episode.failed, episode.succeeded, float(episode.reward.sum()), -len(episode), i))
    return [i for *_, i in sorted(order)[:count]]


# ---- a run


def of_run(run: Path, *, numbers: Sequence[int] | None = None, worst: int | None = None) -> list[EpisodeSet]:
    """What a run recorded, and the failures that its evaluations kept. Raises RealrlError when it holds neither."""
    sets, failures = [], kept_failures(run)
    also = _dreaming(run)
    if (run / "dataset/meta/info.json").is_file() and (len(open_dataset(run / "dataset")) or not failures):
        sets.append(recorded(run / "dataset", numbers=numbers, worst=worst, also=also))
    for folder in failures:
        count = min(len(open_dataset(folder)), worst or MOST_FAILURES)
        sets += [recorded(folder, name=folder.parent.name, numbers=range(count), also=also)] if count else []
    if not sets:
        raise RealrlError(f"{run}: neither a dataset nor failures in it; record some: realrl evaluate --policy {run / 'policy'} "
                          "--save-failures 8")
    return sets


def _dreaming(run: Path) -> Callable[[Clip], Clip]:
    """Adds what the run's world model makes of an episode; nothing where it has none."""
    if not (run / "checkpoints/daydreamer").is_dir():
        return lambda clip: clip
    from realrl.report.view.dreams import Dreams  # it brings a method with it
    try:
        found = Dreams.of_run(run)
    except RealrlError as error:
        why = f"No dreams: {error}"
        return lambda clip: replace(clip, notes=[*clip.notes, why])
    return found.shown if found else lambda clip: clip


def kept_failures(run: Path) -> list[Path]:
    """The datasets of failures in a run's folder, as `realrl evaluate --save-failures` leaves them, there by default or by --out."""
    return sorted(p.parent.parent for p in run.glob(f"*/{FOLDER}/meta/info.json"))


def is_dataset(path: Path) -> bool:
    """Whether a folder is a LeRobot dataset."""
    return (path / "meta/info.json").is_file()


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run."""
    return any((path / name).exists() for name in ("summary.json", "metrics.jsonl", "dataset/meta/info.json")) or bool(kept_failures(path))
