"""Is it good? Fixed held-out starts, success with a Wilson interval, cycle time, throughput."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import fsum
from typing import Any

import numpy as np

from realrl import envs, losses
from realrl.cell.collect import Collector
from realrl.terminal import console
from realrl.types import Array, Episode, Policy, Source

HELD_OUT = 1_000_000_000
"""Evaluation starts have seeds from here upward; training and demonstrations draw theirs from below."""


SECONDS = "seconds"
"""What an episode took, in its `extra`, where that is not its steps times what one lasts."""
Watch = Callable[[Iterable[Episode]], Iterable[Episode]]


@dataclass(frozen=True)
class Rate:
    """A success rate over n episodes with its 95 % Wilson interval."""

    rate: float
    n: int
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """What n episodes said. cycle_steps, cycle_s: mean over successes (None without one); failures: seeds of the failed starts;
    measured: means over the episodes of what a method wanted to know."""

    success: Rate
    cycle_steps: float | None
    cycle_s: float | None
    successes_per_hour: float
    episode_return: float
    steps: int
    cycle_histogram: dict[str, list[float]] = field(default_factory=dict)
    failures: list[int] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def wilson(successes: int, n: int, z: float = 1.959964) -> Rate:
    """Wilson score interval for a proportion (E. B. Wilson 1927). Raises ValueError for n < 1."""
    if n < 1:
        raise ValueError("an interval needs at least one episode")
    return Rate(successes / n, n, *losses.wilson(successes, n, z))


def held_out(n: int, seed: int = 0) -> list[int]:
    """The n evaluation starts of evaluation seed `seed`: fixed, disjoint between seeds, never used in training."""
    return [HELD_OUT + 1_000_000 * seed + i for i in range(n)]


def summarise(episodes: Sequence[Episode], dt: float) -> Evaluation:
    """Statistics of finished episodes; dt: seconds of a control step, but of episodes that say themselves how long they took (`trials`)."""
    good = np.array([len(e) for e in episodes if e.succeeded])
    steps = sum(len(e) for e in episodes)
    took = [float(e.extra.get(SECONDS, len(e) * dt)) for e in episodes]
    well = [seconds for e, seconds in zip(episodes, took, strict=True) if e.succeeded]
    return Evaluation(
        success=wilson(len(good), len(episodes)),
        cycle_steps=float(good.mean()) if len(good) else None,
        cycle_s=fsum(well) / len(well) if well else None,  # to the last bit whatever the order in which episodes ended
        successes_per_hour=len(good) / fsum(took) * 3600,
        episode_return=fsum(float(e.reward.sum()) for e in episodes) / len(episodes),
        steps=steps,
        cycle_histogram=_histogram(good),
        failures=sorted(e.seed for e in episodes if e.failed and e.seed is not None))


def _histogram(lengths: Array) -> dict[str, list[float]]:
    if not len(lengths):
        return {}
    counts, edges = np.histogram(lengths, bins=24)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def trials(collector: Collector, policy: Policy, n: int, *, seed: int = 0, greedy: bool = True, source: Source = Source.POLICY,
           plans_only: bool = True, keep: Callable[[Episode], Episode] | None = None, watch: Watch | None = None) -> list[Episode]:
    """Episodes of the policy's deployed behaviour from n held-out starts, as they finish.

    plans_only: simulated eyes open for the plans alone; keep: what is kept of an episode, `blind` by default; watch: wraps the episodes,
    e.g. in a progress bar. Where steps differ in length, what is kept has its episode's seconds in `extra`.
    """
    told = envs.told(collector.task)
    episodes: Iterable[Episode] = collector.collect(policy, held_out(n, seed), greedy=greedy, noise_seed=seed, source=source,
                                                    glance=plans_only)
    found, dead = [], []
    for episode in watch(episodes) if watch else episodes:
        dead += [(episode.seed, key) for key in _dead(episode)[:1]]
        kept = (keep or blind)(episode)
        if told:
            kept = replace(kept, extra={**kept.extra, SECONDS: np.array(told(episode.obs["privileged"][-1])["seconds"])})
        found.append(kept)
    if dead:
        console(stderr=True).print(f"warning: in {len(dead)} of {len(found)} evaluation episodes a reading was NaN or infinite (start "
                                   f"{dead[0][0]}: '{dead[0][1]}'); no policy can act on it: mend the environment, "
                                   "then judge", soft_wrap=True, highlight=False)
    return found


def _dead(episode: Episode) -> list[str]:
    """Observations with a number that is none."""
    return [key for key, values in episode.obs.items() if values.dtype.kind == "f" and not np.isfinite(values).all()]


def evaluate(collector: Collector, policy: Policy, n: int, *, seed: int = 0, dt: float, greedy: bool = True,
             source: Source = Source.POLICY) -> Evaluation:
    """What n held-out starts say of the policy's deployed behaviour; dt: seconds of a control step."""
    return summarise(trials(collector, policy, n, seed=seed, greedy=greedy, source=source), dt)


def blind(episode: Episode) -> Episode:
    """The episode without its observations: hundreds with pictures would fill the memory, and nobody judges by them."""
    return replace(episode, obs={}, extra={})
