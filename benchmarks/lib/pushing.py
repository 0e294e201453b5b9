"""What a push does to a quadruped: one push a held-out episode, and whether the robot walks, or is on its feet, again soon after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from realrl.cell.collect import Collector
from realrl.cell.evaluate import trials, wilson
from realrl.envs.mujoco.pushes import schedule
from realrl.envs.quadruped import REACHED, SPEED, VARIANTS, motion
from realrl.scene import CollectConfig, RandomiseConfig
from realrl.types import Array, Episode, Policy, RealrlError, Source

Row = dict[str, Any]
IMPULSES = (0.0, 5.0, 10.0, 15.0, 20.0, 30.0)
"""N s; a Go1 of 12.7 kg that nothing holds is 0.79 m/s faster after 10. 0: what it would have done anyhow."""
SOON = 4.0
"""Seconds after the beginning of a push by which the robot has to be well again."""
WALKS = 0.8 * SPEED
"""Mean forward speed of a second that counts as walking, m/s."""
UPRIGHT = 0.9
"""Mean first phase of a second that counts as being on its feet: the trunk tilted by less than 37 degrees."""
NAMES = {"before": "as trained", "on": "12,000 steps more", "pushed": "12,000 steps more under pushes"}


@dataclass(frozen=True)
class Trial:
    """When the robot is pushed: once, `every` / 2 to `every` seconds after the start of an episode of `every` + `SOON` seconds.
    well: how well it is at every observation of an episode, [T + 1], and from where on a second of that counts."""

    every: float
    well: Callable[[Array, float], Array]
    enough: float


def walking(state: Array, dt: float) -> Array:
    """Speed in the direction asked for, m/s."""
    return motion(state, dt)[0]


def standing(state: Array, dt: float) -> Array:
    """How far the trunk is upright, 0 on its back to 1."""
    upright: Array = (1.0 - state[:, 2].astype(np.float64)) / 2.0
    return upright


WALKER, RISER = Trial(4.0, walking, WALKS), Trial(30.0, standing, UPRIGHT)
"""Of a robot that begins on its feet; of one that has to come over first."""


def trial(task: str) -> Trial:
    """What suits a task. Raises RealrlError for one that no quadruped has."""
    suite, _, name = task.partition("/")
    if suite != "quadruped":
        raise RealrlError(f"{task}: only robots of quadruped/... are pushed")
    return RISER if VARIANTS[name.partition("-")[2]].goal == "rise" else WALKER


def outcome(episode: Episode, of: Trial, begins: int, dt: float) -> tuple[bool, bool] | None:
    """(whether the robot was well again by `SOON` seconds after the push that began at step `begins`, over a second of them, and had not
    fallen; whether it fell). None where it was not well in the second before the push. dt: seconds of a step.

    A fall: the task says so, or the trunk lies on its side."""
    second, soon = round(1 / dt), round(SOON / dt)
    well = of.well(episode.obs["state"], dt)
    if begins > len(episode) or well[begins - second:begins].mean() < of.enough:
        return None
    after = well[begins + 1:begins + soon + 1]
    fell = (episode.terminated and len(episode) <= begins + soon) or (of.well is standing and bool((after < REACHED).any()))
    seconds = np.convolve(after, np.full(second, 1 / second), "valid") if len(after) >= second else np.zeros(0)
    recovered = seconds[-1] >= of.enough if of.well is standing else (seconds >= of.enough).any()
    return bool(len(seconds) and recovered and not fell), fell


def tested(task: str, policy: Policy, impulse: float, n: int, *, seed: int = 0, every: float | None = None) -> Row:
    """What n held-out episodes with a push of `impulse` N s each say: its number of pushes, shares with their intervals. The policy acts
    without noise. every: see `Trial`, its own by default."""
    of = trial(task)
    every = every or of.every
    with Collector(task, CollectConfig(workers=1)) as plain:
        dt = plain.spec().dt
    cfg = RandomiseConfig(push=impulse, push_every=every)
    with Collector(task, CollectConfig(workers=1), horizon=round((every + SOON) / dt), randomise=cfg) as collector:
        episodes = trials(collector, policy, n, seed=seed, source=Source.POLICY, keep=lambda episode: episode)
    found = [outcome(e, of, schedule(cfg, e.seed, dt).first, dt) for e in episodes if e.seed is not None]
    told = [x for x in found if x is not None]
    rates = [asdict(wilson(sum(x[i] for x in told), len(told))) if told else None for i in (0, 1)]
    return {"impulse": impulse, "episodes": n, "pushes": len(told), "recovered": rates[0], "fell": rates[1]}


# ---- the table

HEAD = ("", "seed", "pushed by [N s]", "pushes", "well again [95 %]", "falls a push [95 %]", "minutes of learning")


def lines(rows: Sequence[Row]) -> list[list[str]]:
    """A line a task, method, seed and impulse."""
    out = []
    for r in sorted(rows, key=lambda r: (r["task"], r["method"].partition("-")[0], r["seed"], r["method"])):
        kind, _, then = r["method"].partition("-")
        for i, p in enumerate(r["pushed"]):
            who = (f"{r['task']}, {kind}: {NAMES[then or 'before']}", str(r["seed"])) if i == 0 else ("", "")
            out.append([*who, f"{p['impulse']:g}", str(p["pushes"]), share(p["recovered"]), share(p["fell"]),
                        f"{r['wall_min']:.1f}" if i == 0 else ""])
    return out


def share(rate: Row | None) -> str:
    """In a hundred."""
    return "-" if rate is None else f"{100 * rate['rate']:.0f} % [{100 * rate['low']:.0f}, {100 * rate['high']:.0f}]"
