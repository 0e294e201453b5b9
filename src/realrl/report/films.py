"""Films of a robot as it practised, at fixed minutes of its own time: how what it does came about."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from realrl import envs
from realrl.cell.collect import Continuing
from realrl.cell.playback import LONG
from realrl.data.store import Store
from realrl.report.pictures import cameras_of
from realrl.report.view import film
from realrl.report.view.clips import Clip
from realrl.report.view.scenes import SIDE, again
from realrl.scene import Scene, SightConfig
from realrl.types import Episode, RealrlError

MINUTES = (5, 10, 20, 40, 60)
"""Of the robot's time, at which it is filmed."""
ROOM = "practice"
"""The folder of a run that holds the films."""


def kept(run_dir: Path) -> list[dict[str, Any]]:
    """The films of a run: minutes, file (in the run)."""
    found = sorted((run_dir / ROOM).glob("minute-[0-9]*.mp4"))
    return [{"minutes": int(p.stem.removeprefix("minute-")), "file": p.relative_to(run_dir).as_posix()} for p in found]


def keep(run_dir: Path, scene: Scene, label: str, *, simulated: bool, tell: Callable[[str], None]) -> None:
    """Film the episodes of practice under `label` that were under way at `MINUTES`; those that are there stay. simulated: whether what no
    camera recorded is played again in the scene's simulator. tell: gets what cannot be filmed, and why."""
    store = Store.open(run_dir / "dataset")
    who = store.rows["policy"].to_pylist() if len(store) else []
    mine = [i for i, name in enumerate(who) if name in (label, f"{label} (recovered)")]
    ends = np.cumsum([store.rows["length"][i].as_py() for i in mine])
    wanted = {int(np.searchsorted(ends, minutes * 60 * store.fps, "left")): minutes for minutes in MINUTES
              if len(ends) and minutes * 60 * store.fps <= ends[-1] and not (run_dir / ROOM / f"minute-{minutes:02}.mp4").exists()}
    if not wanted:
        return
    try:
        for at, episode in _seen(store, mine, wanted, scene, simulated):
            clip = Clip(mine[at], episode, 1 / store.fps)
            film.write(clip, run_dir / ROOM / f"minute-{wanted[at]:02}.mp4")
    except RealrlError as error:
        tell(f"no film of practice: {error}")


def _seen(store: Store, mine: Sequence[int], wanted: dict[int, int], scene: Scene, simulated: bool) -> Iterator[tuple[int, Episode]]:
    """The wanted ones of the episodes `mine`, with pictures: those that were recorded, or what a simulator shows of it again."""
    for at in wanted:
        (episode,) = store.read([mine[at]])
        if not any(cameras_of(episode.obs)):
            break
        yield at, episode
    else:
        return
    if not simulated:
        raise RealrlError("no camera recorded it, and a robot does nothing twice")
    look = SightConfig(kind="rgb", height=SIDE, width=SIDE)
    make = partial(envs.make, scene.task, reward="dense", horizon=LONG, sight=look, randomise=scene.randomise)
    with_eyes = envs.lagged(make, scene.recall, scene.late) if scene.recall or scene.late else make()
    try:
        for at in range(max(wanted) + 1):
            if at not in wanted and not isinstance(with_eyes, Continuing):
                continue
            with_eyes.watching = at in wanted
            (episode,) = store.read([mine[at]], images=False)
            seen, _ = again(with_eyes, episode)
            if at in wanted:
                yield at, replace(episode, obs={**episode.obs, **{k: x for k, x in seen.items() if k.startswith("images.")}})
    finally:
        with_eyes.close()
