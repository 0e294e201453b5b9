"""What a policy that learns from its experience took for good: value curves, advantages, positive shares, and the throughput of its rounds.

From the derived columns `value-TASK`, `advantage-TASK` and `indicator-TASK` beside a run's recordings, and from the summary's `headline`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from realrl.data import side
from realrl.data.store import Store
from realrl.report.figures import BLUE, GREY, ORANGE, PALETTE, Panel, small_multiples
from realrl.report.reading import number_of
from realrl.report.tables import MISSING, Grid, figure3, improved, percent
from realrl.report.view.clips import Clip, recorded
from realrl.report.view.page import write_set
from realrl.report.view.scenes import pictured
from realrl.types import Array, RealrlError

ROOM = "values"
"""The folder of a run that holds pages of what was practised last."""
FILMED = 2
"""Episodes of each outcome on such a page; the last of them, which are those that a person stood beside."""
CURVES = 8
"""Episodes of each outcome whose values are drawn."""


@dataclass
class _Judged:
    """A task's labelled steps, episode by episode: whose [E], success [E], value, advantage and indicator [E][T]."""

    who: list[str]
    success: Array
    columns: dict[str, list[Array]]


def experience_parts(run_dir: Path, summary: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    """What the page shows: per task value curves, advantages and positive shares; the throughput of every stage. None where the run has no
    such columns. Raises RealrlError where they do not fit the recordings."""
    found = {task: judged for at, task in _labelled(run_dir) if (judged := _judged(at, task))}
    if not found:
        return None
    pages = {task: page.as_posix() for task in found if (run_dir / (page := Path(ROOM, f"{task}.html"))).is_file()}
    return {"parts": [{"title": task, "drawing": _drawing(judged), "grid": _shares(judged), "page": pages.get(task)}
                      for task, judged in found.items()], "throughput": _throughput(summary, where),
            "text": improved(summary).replace(" %", "\xa0%")}


def keep(run_dir: Path, tasks: Mapping[str, str], *, simulated: bool, tell: Callable[[str], None]) -> None:
    """A page a task of the newest practice, values, advantages and indicators over its film, in the run's folder `ROOM`; those that are
    there stay. tasks: name -> id; simulated: whether what no camera recorded is played again in the task's simulator. tell: gets what
    cannot be filmed."""
    for at, task in _labelled(run_dir):
        if task in tasks and not (run_dir / ROOM / f"{task}.html").exists() and (chosen := _newest(Store.open(at), at, task)):
            found = recorded(at, name=task, numbers=chosen, also=partial(_seen, tasks[task]) if simulated else lambda clip: clip)
            write_set(replace(found, title=f"{task}: values of the newest practice"), run_dir / ROOM, tell=tell)


def _labelled(run_dir: Path) -> list[tuple[Path, str]]:
    """(data set, task) of a run's value columns; a task of another robot has a data set of its own."""
    return [(at, name.removeprefix("value-")) for at in (run_dir / "dataset", *sorted(run_dir.glob("dataset-[0-9]*")))
            for name in side.names(at) if name.startswith("value-")]


def _newest(store: Store, at: Path, task: str) -> list[int]:
    """Numbers of the newest practised episodes of a task that have values, at most `FILMED` of each outcome, in their order."""
    value = np.split(side.read(at, f"value-{task}", missing="nan").columns[f"value-{task}"],
                     np.cumsum(store.rows["length"].to_numpy())[:-1])
    who, good = store.rows["policy"].to_pylist(), store.rows["success"].to_pylist()
    rounds = {i: int(found[1]) for i, x in enumerate(value) if len(x) and np.isfinite(x).all()
              if (found := re.match(r"(?:rollout|corrected)-(\d+)", str(who[i])))}
    last = [i for i, k in rounds.items() if k == max(rounds.values())]
    return sorted(i for outcome in (True, False) for i in [i for i in last if bool(good[i]) == outcome][-FILMED:])


def _seen(task: str, clip: Clip) -> Clip:
    """The clip with pictures, where its scene can be played again."""
    (episode,), _, notes = pictured([clip.episode], task)
    return replace(clip, episode=episode, notes=[*clip.notes, *notes])


def _judged(at: Path, task: str) -> _Judged | None:
    """The labelled episodes of a task. None where another method's columns are called so."""
    store = Store.open(at)
    names = [f"{what}-{task}" for what in ("value", "advantage", "indicator")]
    if not set(names) <= set(side.names(at)):
        return None
    ends = np.cumsum(store.rows["length"].to_numpy())[:-1]
    columns = {name.partition("-")[0]: np.split(side.read(at, name, missing="nan").columns[name], ends) for name in names}
    mine = [i for i, x in enumerate(columns["value"]) if len(x) and np.isfinite(x).all()]
    if not mine:
        return None
    who, success = store.rows["policy"].to_pylist(), store.rows["success"].to_pylist()
    return _Judged([str(who[i]) for i in mine], np.array([bool(success[i]) for i in mine]),
                   {key: [x[i] for i in mine] for key, x in columns.items()})


def _drawing(judged: _Judged) -> Any:
    """Value curves of the newest source of both successes and failures, and the advantages of each source of episodes."""
    who, good = np.array(judged.who), judged.success
    mixed = [name for name in dict.fromkeys(judged.who) if 0 < good[who == name].mean() < 1]
    last = mixed[-1] if mixed else judged.who[-1]
    newest = who == last
    panels = [Panel(f"Values of {last}", "V", "control step", partial(_draw_values, judged=judged, rows=newest)),
              Panel("Advantages", "share of steps", "A", partial(_draw_advantages, judged=judged))]
    return small_multiples(panels, "values over time and histograms of advantages",
                           f"Left: up to {CURVES} episodes that succeeded (blue) and failed (orange). Right: a line a source of episodes.")


def _draw_values(axes: Axes, judged: _Judged, rows: Array) -> None:
    for good, colour in ((True, BLUE), (False, ORANGE)):
        for i in np.flatnonzero(rows & (judged.success == good))[:CURVES]:
            axes.plot(judged.columns["value"][i], color=colour, lw=.9, alpha=.8)
    axes.set(ylim=(-1.03, .03))


def _draw_advantages(axes: Axes, judged: _Judged) -> None:
    low, high = np.quantile(np.concatenate(judged.columns["advantage"]), [0.005, 0.995])
    edges = np.linspace(low, high, 40)
    for colour, who in zip((*PALETTE, GREY) * 3, dict.fromkeys(judged.who), strict=False):
        a = np.concatenate([x for x, of in zip(judged.columns["advantage"], judged.who, strict=True) if of == who])
        axes.stairs(np.histogram(a, edges)[0] / len(a), edges, color=colour, lw=1.2, label=who.removeprefix("demonstration "))
    axes.legend(fontsize=6)


def _shares(judged: _Judged) -> Grid:
    """A row a source of episodes: how many, how many succeeded, steps, positive share."""
    rows = []
    for who in dict.fromkeys(judged.who):
        of = [i for i, other in enumerate(judged.who) if other == who]
        marks = np.concatenate([judged.columns["indicator"][i] for i in of])
        rows.append([who, str(len(of)), percent(float(judged.success[of].mean())), f"{len(marks):,}", percent(float(marks.mean()))])
    return Grid(["Episodes of", "Episodes", "Succeeded", "Steps", "Taken for good"], rows)


def _throughput(summary: Mapping[str, Any], where: str) -> Grid | None:
    """Successes an hour of each stage, pooled over the tasks, with 0 and 5 s a reset; None where there is no headline."""
    headline = summary.get("headline")
    stages = (headline.get("stages") if isinstance(headline, Mapping) else None) or {}
    if not isinstance(stages, Mapping) or not all(isinstance(of, Mapping) for of in stages.values()):
        raise RealrlError(f"{where}: field 'headline.stages' should be an object with an object for each stage")
    rows = [[str(name), percent(number_of(of, "success", where)), *_hours(of, where)] for name, of in stages.items()]
    return Grid(["Stage", "Success", "Successes/h", "With 5 s a reset"], rows) if rows else None


def _hours(of: Mapping[str, Any], where: str) -> Sequence[str]:
    return [MISSING if (x := number_of(of, key, where)) is None else figure3(x) for key in ("per_hour", "per_hour_5s")]
