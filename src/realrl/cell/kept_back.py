"""Of a recorded set: which episodes are fitted to and which are kept to compare with, and what each of them was to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from realrl.data.errors import typed
from realrl.data.store import Recordings
from realrl.nets.text import words
from realrl.types import Episode, RealrlError

ENOUGH = 3  # episodes of a text, of which one may be kept back
STRETCHES, STEPS = 4, 8  # of an only episode, that are kept back: so many, none shorter


def kept_back(demos: Sequence[Episode], share: float, data: str, notes: list[str]) -> tuple[list[Episode], list[Episode]]:
    """(to fit, to compare with): the same episodes in every run, evenly spread, because recordings drift from the first to the last; of an
    only episode `stretches`. Raises RealrlError where that leaves nothing."""
    if len(demos) == 1:
        if len(demos[0]) < 2:
            raise RealrlError(f"{data}: one episode of {len(demos[0])} step, there is nothing to learn from it: record more")
        fitted, held = stretches(demos[0], share)
        notes.append(f"one episode alone: {sum(len(e) for e in held)} of its {len(demos[0])} steps are kept to compare with, "
                     + (f"in {len(held)} stretches" if len(held) > 1 else "its last ones"))
        return fitted, held
    wanted = min(max(1, round(share * len(demos))), len(demos) - 1)
    back = {int((i + 0.5) * len(demos) / wanted) for i in range(wanted)}
    return [e for i, e in enumerate(demos) if i not in back], [e for i, e in enumerate(demos) if i in back]


def of_each_text(demos: Sequence[Episode], share: float, data: str, notes: list[str]) -> tuple[list[Episode], list[Episode]]:
    """(to fit, to compare with), the same in every run: of every text that has `ENOUGH` episodes at least one, evenly spread; where none
    has so many, the last part of every episode, so that no task is kept back whole. Raises RealrlError where that leaves nothing."""
    rows: dict[str, list[int]] = {}
    for i, e in enumerate(demos):
        rows.setdefault(e.task, []).append(i)
    back = set[int]()
    for mine in rows.values():
        if len(mine) >= ENOUGH:
            wanted = max(1, min(round(share * len(mine)), len(mine) - 2))
            back |= {mine[int((i + 0.5) * len(mine) / wanted)] for i in range(wanted)}
    if back:
        return [e for i, e in enumerate(demos) if i not in back], [e for i, e in enumerate(demos) if i in back]
    parts = [stretches(e, share) for e in demos]
    if not any(fitted for fitted, _ in parts):
        raise RealrlError(f"{data}: episodes of one step, there is nothing to learn from them: record more")
    notes.append(f"{len(rows)} tasks of one or two episodes each: a part of every episode is kept to compare with")
    return [e for fitted, _ in parts for e in fitted], [e for fitted, back in parts if fitted for e in back]


def stretches(episode: Episode, share: float) -> tuple[list[Episode], list[Episode]]:
    """(to fit, to compare with) of one episode that has to serve for both: stretches over all of it, a fifth at least, are kept back, so
    that its end is learned, too, and nobody is asked what they were never shown; where these were too short, its end. One step has nothing
    to fit."""
    kept = max(share, 0.2) * len(episode)
    if kept < STRETCHES * STEPS:
        at = min(int(len(episode) - kept), len(episode) - 1)
        return [piece(episode, 0, at)] if at else [], [piece(episode, at, len(episode))]
    middles = (np.arange(STRETCHES) + 0.5) * len(episode) / STRETCHES
    edges = np.stack([middles, middles], -1) + np.array([-0.5, 0.5]) * kept / STRETCHES
    cuts = [0, *edges.round().astype(int).reshape(-1).tolist(), len(episode)]
    pieces = [replace(piece(episode, a, b), cut=True) for a, b in pairwise(cuts)]
    return pieces[::2], pieces[1::2]


def piece(episode: Episode, start: int, stop: int) -> Episode:
    """The steps [start, stop) of an episode."""
    columns = {name: getattr(episode, name)[start:stop] for name in ("action", "proposed", "source", "reward", "success", "time",
                                                                     "starts_plan")}
    last = stop == len(episode)
    return replace(episode, obs={k: x[start:stop + 1] for k, x in episode.obs.items()}, **columns,
                   terminated=episode.terminated and last, truncated=episode.truncated or not last)


# ---- one text an episode


def one_text_each(store: Recordings, episodes: Mapping[int, Episode], changing: bool, data: str, notes: list[str]) -> list[Episode]:
    """Episodes, by their place in the set, each with one text: cut where it changes, called by the set's name where it has none at all.

    Raises RealrlError where some have a text and others none.
    """
    parts = [(i, part) for i, e in episodes.items() for part in (_cut(store, i, e) if changing else [e])]
    if changing:
        notes.append(f"the task's text changes inside episodes: they are cut there, {len(episodes)} become {len(parts)}")
    mute = [i for i, e in parts if not words(e.task)]
    if not mute:
        return [e for _, e in parts]
    if len(mute) < len(parts):
        raise RealrlError(f"{data}: episode {mute[0]} has no task text, others have, so nobody could tell the policy to do it: write one "
                          f"into meta/tasks, or leave it out with 'realrl data import {typed(data)} --out NEW --leave-out {mute[0]}'")
    name = " ".join(words(Path(data).resolve().name.replace("_", " ").replace("-", " "))) or "do the task"
    notes.append(f"no task text in {data}: the policy is told {name!r}")
    return [replace(e, task=name) for _, e in parts]


def _cut(store: Recordings, number: int, episode: Episode) -> list[Episode]:
    """The stretches of an episode under one text each."""
    told = store.columns(number, pictures=False)["task_index"].reshape(-1)[:len(episode)]
    edges = [0, *(np.flatnonzero(told[1:] != told[:-1]) + 1).tolist(), len(episode)]
    return [replace(piece(episode, a, b), task=store.tasks[int(told[a])]) for a, b in pairwise(edges)]
