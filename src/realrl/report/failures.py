"""Failed evaluation episodes: kept as a dataset and a page when they happen, shown in the run's report afterwards."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from realrl.data.formats import open_dataset
from realrl.data.store import Recordings, Store
from realrl.report.figures import BLUE, PALETTE, Drawing, Panel, small_multiples
from realrl.report.pictures import film_strip, tell_once
from realrl.report.view.clips import FOLDER, LINES, Clip, Each, EpisodeSet, ending, kept_failures
from realrl.report.view.page import write_set
from realrl.report.view.scenes import pictured
from realrl.types import Array, Episode, RealrlError

CARDS = 8  # failures of one evaluation in the report; their page has more
AT = (0, .25, .5, .75, 1)  # when a thumbnail is shown, of the episode
GROUP = 20  # episodes an append


def room(out: Path) -> Path:
    """The folder for a dataset of failures inside `out`. Raises RealrlError when one is there: nothing recorded is overwritten."""
    folder = out / FOLDER
    if out.exists() and not out.is_dir():
        raise RealrlError(f"{out} is a file: name a folder for the failures with --out")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RealrlError(f"{folder} holds the failures of an earlier evaluation: choose another folder with --out, or move it away")
    return folder


class FirstFailures:
    """Picks the first `most` failures by seed out of an evaluation, as its episodes finish in any order; `failed` counts all."""

    def __init__(self, most: int) -> None:
        self.most, self.tried, self.failed = most, 0, 0
        self.episodes: list[Episode] = []

    def pick(self, episode: Episode) -> Episode:
        """Keep the episode if it is one of them; gives it without observations: thousands with pictures fit no memory."""
        self.tried += 1
        if episode.failed:
            self.failed += 1
            self.episodes = sorted([*self.episodes, episode], key=lambda e: -1 if e.seed is None else e.seed)[:self.most]
        return replace(episode, obs={}, extra={})

    def save(self, out: Path, *, task: str, dt: float, each: Each[Any] = lambda items, what, total: items) -> Path | None:
        """Write them as the dataset `out`/failures and the page `out`/failures.html; gives the page, None where all succeeded.

        Episodes without pictures of their own are played again to take some, where the task can be rendered. Raises RealrlError as
        `room` and where a file cannot be written.
        """
        if not self.episodes:
            return None
        folder = room(out)
        seen, told, notes = pictured(self.episodes, task, each=each)
        store = Store.create(folder, task=task, fps=round(1 / dt), codec="h264")
        for start in range(0, len(seen), GROUP):
            store.append(seen[start:start + GROUP])
        clips = [Clip(i, e, dt, x, notes=notes) for i, (e, x) in enumerate(zip(seen, told, strict=True))]
        kicker = f"{task} · the first {len(seen)} of {self.failed} failures in {self.tried} evaluation episodes"
        title = f"Failures of {seen[0].policy or 'the policy'}"
        return write_set(EpisodeSet(FOLDER, title, kicker, range(len(clips)), lambda: iter(clips)), out, each=each)[0]


# ---- in the report


def failure_parts(run: Path) -> list[dict[str, Any]]:
    """What the report shows of the failures that a run kept, an entry an evaluation: title, page, note, cards."""
    parts = []
    for folder in kept_failures(run):
        page = folder.parent / f"{FOLDER}.html"
        part: dict[str, Any] = {"title": folder.parent.name, "cards": [], "total": 0, "note": "",
                                "page": page.relative_to(run).as_posix() if page.is_file() else ""}
        try:
            store = open_dataset(folder)
            part |= {"total": len(store), "cards": [_card(store, i) for i in range(min(len(store), CARDS))],
                     "note": "" if len(store) else "None were kept: the evaluation was interrupted."}
        except (RealrlError, OSError) as error:
            part["note"] = f"The failures in {os.path.relpath(folder, run)} cannot be shown: {error}"
        tell_once(part["cards"])
        parts.append(part)
    return parts


def _card(store: Recordings, i: int) -> dict[str, Any]:
    """One failure: how it ended, and a strip of every camera, or its traces."""
    (episode,) = store.read([i], images=False)
    facts = [ending(episode), f"{len(episode) / store.fps:.2f} s", f"return {float(episode.reward.sum()):.3g}"]
    films = [film_strip(store, i, camera, AT) for camera in store.cameras]
    title = f"Seed {episode.seed}" if episode.seed is not None else f"Episode {i}"
    return {"title": title, "facts": facts, "films": films, "drawing": None if films else _drawn(episode, store.fps, title)}


def _drawn(episode: Episode, fps: float, title: str) -> Drawing | None:
    """State, action and reward over time."""
    columns = [("State", "value", episode.obs.get("state")), ("Action sent", "of [-1, 1]", episode.action),
               ("Reward", "reward", episode.reward[:, None])]
    panels = [Panel(name, unit, "seconds", partial(_draw, x=x, fps=fps)) for name, unit, x in columns if x is not None and x.ndim == 2]
    return small_multiples(panels, f"state, action and reward of the failure of {title}")


def _draw(axes: Axes, x: Array, fps: float) -> None:
    """The numbers that move most."""
    moved = sorted(np.argsort(-np.ptp(x, axis=0), kind="stable")[:LINES].tolist())
    for i, d in enumerate(moved):
        axes.plot(np.arange(len(x)) / fps, x[:, d], color=PALETTE[i % len(PALETTE)] if len(moved) > 1 else BLUE, lw=1.2)
