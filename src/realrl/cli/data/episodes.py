"""Episodes as the commands on datasets read and write them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from realrl.data.store import Store
    from realrl.types import Episode

GROUP = 20  # episodes per append to a dataset
MUCH = 2**28  # bytes of observations in memory that are appended at once
EPISODES = "episodes, counted from 0: 3,7,10:20 (the end of a range is not part of it)"


def append(store: Store, episodes: Iterable[Any]) -> None:
    """Record episodes as they come; an interruption records those that are finished."""
    waiting: list[Any] = []
    try:
        for episode in episodes:
            waiting.append(episode)
            if len(waiting) >= GROUP or sum(x.nbytes for e in waiting for x in e.obs.values()) > MUCH:
                store.append(waiting)
                waiting = []
    finally:
        store.append(waiting)


def recorded(path: Path, chosen: str | None) -> tuple[int | None, Iterator[tuple[int, Episode]]]:
    """(how many, number and episode of each, read one by one) of a dataset or of a file in another format."""
    from realrl.data import formats
    from realrl.data.formats import open_dataset
    from realrl.data.tools import edit
    if path.is_file() or (not is_lerobot(path) and any(module.detect(path) for module in formats.FORMATS.values())):
        found = formats.read(path)
        if chosen is None:
            return found.count, enumerate(found.episodes)
        wanted = set(edit.episode_numbers(chosen, found.count, path))
        return len(wanted), ((number, episode) for number, episode in enumerate(found.episodes) if number in wanted)
    store = open_dataset(path)
    numbers = range(len(store)) if chosen is None else edit.episode_numbers(chosen, len(store), path)
    return len(numbers), ((number, store.read([number])[0]) for number in numbers)


def is_lerobot(path: Path) -> bool:
    """Whether a folder holds a LeRobot dataset."""
    return (path / "meta/info.json").is_file()
