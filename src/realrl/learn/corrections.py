"""What a robot learns from while a person helps (HIL-SERL, arXiv 2410.21845): all that it did, what the person did; and how practice goes.

A memory is filled from a recording or step by step, and is the same either way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from realrl.files import derive
from realrl.learn.replay import Draws, Mixture, Subset
from realrl.learn.sac import SAC
from realrl.policies.residual import Observer
from realrl.types import Batch, Episode, Moment, RealrlError, Source, Step

LAST = 50
"""Episodes that "lately" means."""


class Memory:
    """Every step once, in one replay, demonstrations first; `online` are those of practice, `prior` those that a person did,
    demonstrations among them; and the books on how practice goes. Filled from a recording or step by step it is the same.

    A correction adds exactly its steps to `prior`, as parts of their episode: what was seen before is its history, and where it ends
    without the task being done, the return goes on.
    """

    def __init__(self, agent: SAC, demos: Sequence[Episode], dt: float, takeover_cost: float, noise_seed: int = 0,
                 share: float = 0.5) -> None:
        """takeover_cost: taken off the reward before a takeover; share: of every batch of `both` that is what people did."""
        self._all, self._dt, self._cost, self._observer = agent.replay(), dt, takeover_cost, Observer(agent.policy, noise_seed)
        self._all.extend([replace(demo, obs=self._observer.whole(demo)) for demo in demos])
        self.online, self.prior = Subset(self._all), Subset(self._all)
        self.prior.add(0, self._all.steps)
        self.both: Draws = Mixture((self.online, 1 - share), (self.prior, share)) if share else self.online
        self.demo_steps = float(np.mean([len(demo) for demo in demos]))
        self.lately: deque[Trial] = deque(maxlen=LAST)
        self.trials: list[Trial] = []
        self._now, self._helping = Trial(), False

    def see(self, found: Iterable[Moment]) -> None:
        """Steps in the order in which they were done."""
        for m in found:
            step, human, here = m.step, m.step.source == Source.HUMAN, self._all.steps
            if m.first:
                self._all.begin(self._observer.begin(step.obs, m.seed))
                self._now, self._helping = Trial(), False
            self._all.add(step.action, step.reward, self._observer.after(m.after, step.source), terminated=step.terminated,
                          truncated=step.truncated, source=step.source)
            for memory in (self.online, self.prior) if human else (self.online,):
                memory.add(here)
            now, taken = self._now, human and not self._helping
            if taken and not m.first:
                self._all.charge(here - 1, self._cost)
            now.steps, now.human, now.takeovers = now.steps + 1, now.human + human, now.takeovers + taken
            self._helping = human
            if step.terminated or step.truncated:
                now.success = step.success
                self.lately.append(now)
                self.trials.append(now)
                self._now = Trial()

    def newest(self, count: int) -> Batch:
        """The last steps, as they are learned from."""
        return self._all.batch(torch.arange(self._all.steps - count, self._all.steps, device=self._all.device))

    def random(self, seed: int, updates: int) -> torch.Generator:
        """The noise of a draw after so many updates."""
        return torch.Generator(self._all.device).manual_seed(derive(seed, "replay", updates))

    def share(self) -> float:
        """The person's share of the steps lately."""
        return sum(t.human for t in self.lately) / max(sum(t.steps for t in self.lately), 1)

    def rate(self, *, helped: bool) -> float:
        """Share of the episodes lately that succeeded with a person's help, or without any."""
        return sum(t.success for t in self.lately if bool(t.human) == helped) / max(len(self.lately), 1)

    def spent(self) -> dict[str, float]:
        """What it took of a person's time so far: seconds at the device, and takeovers; demonstrations aside."""
        steps, takeovers = sum(t.human for t in self.trials) + self._now.human, sum(t.takeovers for t in self.trials)
        return {"human_s": round(steps * self._dt, 3), "takeovers": float(takeovers)}

    def books(self) -> dict[str, float]:
        """What is told beside an evaluation on the way: `spent`, the person's share lately, the mean steps of a demonstration."""
        return {**self.spent(), "human_share": round(self.share(), 4), "demo_steps": self.demo_steps}


@dataclass
class Trial:
    """An episode of practice: its steps, how many a person did, how often the person took over, how it ended."""

    steps: int = 0
    human: int = 0
    takeovers: int = 0
    success: bool = False


def moments(episodes: Iterable[Episode]) -> Iterator[Moment]:
    """Recorded episodes step by step, as a stream gave them."""
    for e in episodes:
        for i in range(len(e)):
            last = i == len(e) - 1
            step = Step({k: v[i] for k, v in e.obs.items()}, e.proposed[i], e.action[i], Source(int(e.source[i])), float(e.reward[i]),
                        last and e.terminated, last and e.truncated, bool(e.success[i]), float(e.time[i]))
            yield Moment(step, {k: v[i + 1] for k, v in e.obs.items()}, e.seed or 0, i == 0)


def refuse_contradictions(demos: Sequence[Episode]) -> None:
    """Raises RealrlError where demonstrations say two things of how they ended: values would be learned from both, and no policy."""
    for i, demo in enumerate(demos):
        if demo.terminated and demo.truncated:
            wrong = "was ended by the task and by a clock"
        elif demo.succeeded and not demo.terminated:
            wrong = "succeeded, but a clock ended it: the return would go on after success"
        elif demo.terminated and demo.judged and demo.succeeded != (float(demo.reward[-1]) > 0):
            wrong = f"ended with reward {float(demo.reward[-1]):g} and {'success' if demo.succeeded else 'failure'}"
        else:
            continue
        cut = "cut what follows success (`realrl data trim --after-success`), " if demo.truncated and demo.succeeded else ""
        raise RealrlError(f"demonstration {i} (seed {demo.seed}) {wrong}: all must end in one way, a success with a positive reward and "
                          f"terminated; {cut}leave it out with `realrl data delete-episodes`, or record it again")
