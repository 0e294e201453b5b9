"""A robot that learns in a world model, on the page: its reward by phases in practice, dreams beside what happened, what its heads say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from realrl.data.store import Store
from realrl.envs.quadruped import PHASES, risen, rises
from realrl.report.figures import BLUE, GREY, ORANGE, PALETTE, Panel, small_multiples
from realrl.report.pictures import jpeg
from realrl.report.reading import number_of
from realrl.report.tables import figure3
from realrl.report.view.clips import readings
from realrl.types import Array, Episode, RealrlError

POINTS = 40
"""Of a curve over practice."""
JUDGED = 4
"""The newest episodes of practice whose dreams are judged."""
SHOWN = 3
"""Readings that are drawn, those that move most."""
STRIP = 8
"""Pictures of a dream."""


def dreaming_parts(run_dir: Path, summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the page shows; None for a run without a world model or without practice."""
    from realrl.report.view.dreams import NAME, Dreams  # it brings a method with it, which few runs are of
    if not (run_dir / "checkpoints" / NAME).is_dir() or not (run_dir / "dataset/meta/info.json").is_file():
        return None
    store = Store.open(run_dir / "dataset")
    who = store.rows["policy"].to_pylist() if len(store) else []
    mine = [i for i, name in enumerate(who) if name in (NAME, f"{NAME} (recovered)")]
    if not mine:
        return None
    practice = store.read(mine, images=False)
    task = str(summary.get("task") or practice[0].task)
    parts: dict[str, Any] = {"text": _counts(summary), "lead": earned(summary), "practice": _practice(task, practice, store.fps),
                             "note": "", "drawing": None, "strips": [], "caption": ""}
    try:
        dreams = Dreams.of_run(run_dir)
        assert dreams is not None
        found = [(e, dreams.look(e)) for e in store.read(mine[-JUDGED:], images=bool(dreams.policy.senses))]
    except RealrlError as error:
        return {**parts, "note": f"Dreams left out: {error}"}
    return {**parts, "drawing": _dreams(found), "strips": _strips(found[-1][0], found[-1][1].pictures), "caption": _told(found)}


def earned(summary: Mapping[str, Any]) -> str:
    """What a robot that is paid at every step earns, in a sentence; nothing for other runs."""
    head = summary.get("headline")
    told = [number_of(head, name, "headline") for name in ("reward_per_step", "greedy_reward_per_step", "noisy_reward_per_step")] \
        if isinstance(head, Mapping) else []
    if not told or any(x is None for x in told):
        return ""
    practice, greedy, noisy = map(figure3, told)
    return f"Reward a control step: {practice} in the last practice, noise and all; held out {greedy} without noise, {noisy} with it."


def _counts(summary: Mapping[str, Any]) -> str:
    head = summary.get("headline")
    told = head if isinstance(head, Mapping) else {}
    names = {"env_steps": "control steps", "train_ratio": "replayed steps for each",
             "updates_per_s": "updates a second", "wall_min": "minutes by the clock", "oldest_weights_s": "s that weights were old at most",
             "deadline_misses": "deadlines missed", "holds": "times held"}
    return "; ".join(f"{text}: {figure3(float(told[name]))}" for name, text in names.items() if isinstance(told.get(name), int | float))


def _practice(task: str, practice: Sequence[Episode], fps: float) -> Any:
    """Reward a step over robot time, and by phases where a robot rises."""
    reward = np.concatenate([e.reward for e in practice])
    panels = [Panel("Practice", "reward a step", "robot minutes", partial(_curve, lines={"": reward}, fps=fps))]
    if rises(task):
        phases = np.concatenate([risen(e.obs["state"][1:], e.reward) for e in practice])
        panels.append(Panel("Reward by phases", "reached (1: all)", "robot minutes",
                            partial(_curve, lines=dict(zip(PHASES, phases.T, strict=True)), fps=fps)))
    return small_multiples(panels, "reward in practice", "Means of neighbouring control steps, noise and all.")


def _curve(axes: Axes, lines: Mapping[str, Array], fps: float) -> None:
    for colour, (name, values) in zip(PALETTE, lines.items(), strict=False):
        parts = np.array_split(values, min(POINTS, len(values)))
        ends = np.cumsum([len(p) for p in parts])
        axes.plot((ends - np.array([len(p) for p in parts]) / 2) / fps / 60, [p.mean() for p in parts], color=colour, lw=1.4, label=name)
    if len(lines) > 1:
        axes.legend(fontsize=6, ncols=2)


def _dreams(found: Sequence[tuple[Episode, Any]]) -> Any:
    """Of the newest episode readings as they happened and were dreamt, value and reward; of all how dreams go wrong."""
    episode, dreamt = found[-1]
    state = episode.obs["state"]
    moved = sorted(np.argsort(-np.ptp(state.astype(np.float64), axis=0), kind="stable")[:SHOWN].tolist())
    names = readings(episode)
    panels = [Panel(names[i] if names else f"State {i}", "reading", "control step",
                    partial(_pair, happened=state[:, i], dreamt=dreamt.readings[:, i])) for i in moved]
    panels += [Panel("How wrong dreams are", "error (1: that all stays)", "steps ahead", partial(_error, found=[d for _, d in found])),
               Panel("Value, and what came of it", "reward", "control step", partial(_pair, happened=dreamt.came, dreamt=dreamt.value,
                                                                                    names=("came", "value"))),
               Panel("Reward, paid and expected", "reward", "control step", partial(_pair, happened=episode.reward, dreamt=dreamt.reward,
                                                                                   names=("paid", "expected")))]
    return small_multiples(panels, "dreams beside what happened", "The newest episode of practice, by the newest checkpoint.")


def _pair(axes: Axes, happened: Array, dreamt: Array, names: tuple[str, str] = ("happened", "dreamt")) -> None:
    axes.plot(happened, color=GREY, lw=1.6, label=names[0])
    axes.plot(dreamt, color=ORANGE, lw=1.1, label=names[1])
    axes.legend(fontsize=6)


def _ratio(found: Sequence[Any]) -> Array:
    """Mean error of the dreams over that of a guess that nothing moves [DREAMS or fewer, as far as an episode goes]."""
    wrong, stays = (np.concatenate([getattr(d, name) for d in found]) for name in ("ahead", "stays"))
    there = np.isfinite(wrong).any((0, 2))
    out: Array = np.nanmean(wrong[:, there], (0, 2)) / np.maximum(np.nanmean(stays[:, there], (0, 2)), 1e-9)
    return out


def _error(axes: Axes, found: Sequence[Any]) -> None:
    ratio = _ratio(found)
    axes.plot(np.arange(1, len(ratio) + 1), ratio, color=BLUE, lw=1.6)
    axes.axhline(1.0, color=GREY, lw=1, ls=":")
    axes.set_ylim(bottom=0)


def _told(found: Sequence[tuple[Episode, Any]]) -> str:
    from realrl.report.view.dreams import DREAMS, LOOKS
    ratio = _ratio([d for _, d in found])
    return (f"It looks at {LOOKS} observations, then dreams {DREAMS} steps of what was done next. Over the newest {len(found)} episodes "
            f"dreams are wrong by {ratio.mean():.2f} of what a guess that nothing moves is; below 1 it has learned how its world moves.")


def _strips(episode: Episode, pictures: Mapping[str, Array]) -> list[dict[str, Any]]:
    """The first dream of an episode in pictures: what happened, and below it what was dreamt."""
    from realrl.report.view.dreams import DREAMS, LOOKS
    at = np.unique(np.linspace(LOOKS - 2, min(LOOKS - 1 + DREAMS, len(episode)), STRIP).round().astype(int)).tolist()
    return [{"camera": f"{key}, {what}", "pictures": [jpeg(x[i]) for i in at], "error": ""}
            for key, painted in pictures.items() for what, x in (("happened", episode.obs[key]), ("dreamt", painted))]
