"""What a person may do in the control loop; and a scripted person, who watches a robot learn and takes over where it gets stuck.

The scripted one stands in for a person in experiments and tests, and is meant to be no better than one: it sees late, takes a while to
react, moves slowly, unsteadily and in coarse steps, helps for a second or so, gives back and watches again, and looks on less the better it
goes. All it does follows from its seed, the episode's seed and what happened, so that a resumed run repeats. People at devices:
`realrl.robots.devices`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np

from realrl.config import OutOfBounds, check
from realrl.types import Array, Episode, Intervention, Obs, Policy, Source

Verdict: TypeAlias = Literal["success", "failure", "abort"]


@runtime_checkable
class Attendant(Intervention, Protocol):
    """A person who stays for whole episodes, and may say how one ended."""

    verdict: Verdict | None
    """After a step: success or failure ended it (the return ends, too), or the person breaks it off (the return goes on); None: go on."""

    def begin(self, seed: int) -> None:
        """An episode begins."""
        ...

    def end(self, succeeded: bool) -> None:
        """How it ended."""
        ...


@dataclass(frozen=True)
class OperatorConfig:
    """How the scripted operator behaves; steps are control steps."""

    patience: int = 20
    """Steps without progress after which help is due."""
    slip: float = 10.0
    """Progress lost since the best of the episode (mm, on the contact tasks) after which help is due at once."""
    reaction: int = 3
    """At most so many steps more until the hand is at the device, drawn evenly from 0."""
    late: int = 3
    """Steps that what is seen is old."""
    foresight: float = 0.8
    """Share of what happened in those steps that experience makes up for."""
    hold: tuple[int, int] = (5, 15)
    """Least and most steps of a correction, drawn evenly."""
    rest: int = 20
    """Steps after a correction in which the robot is left to try."""
    cap: float = 0.5
    """Largest action, of 1."""
    noise: float = 0.1
    """Unsteadiness of the hand, 1 sigma."""
    grain: float = 0.05
    """Smallest step of the device: actions are multiples of it; 0 = none."""
    finish: float = 0.33
    """While a smaller share of the last 20 episodes was rewarded, a correction goes on to the end of the task."""
    fade: float = 0.5
    """Share of the stalls that go unnoticed once the robot always succeeds alone; below, in proportion to its success."""
    shift: int = 0
    """Steps at the device in all, after which the person goes home for good; 0 = stays to the end."""

    def __post_init__(self) -> None:
        check(self, patience="[1, 10000]", slip="(0, 1e9]", reaction="[0, 1000]", late="[0, 1000]", foresight="[0, 1]", hold="[1, 10000]",
              rest="[0, 10000]", cap="(0, 1]", noise="[0, 10]", grain="[0, 1]", finish="[0, 1]", fade="[0, 1]", shift="[0, 1e9]")
        if len(self.hold) != 2 or self.hold[0] > self.hold[1]:
            raise OutOfBounds(OperatorConfig, "hold", f"must be least and most steps, got {self.hold}")


class ScriptedOperator:
    """A person of `OperatorConfig` who knows how an expert would go on, see `Attendant`.

    expert: looks at the simulator's full state, "privileged" or else "state"; progress: how far such a state [D] is, higher is nearer;
    gripper: the last number of an action is a button, neither capped nor unsteady; watch: says instead of `progress` how far it is, from
    what the robot's policy sees.
    """

    def __init__(self, cfg: OperatorConfig, expert: Policy, progress: Callable[[Array], float], *, seed: int,
                 gripper: bool = False, watch: Callable[[Obs], float] | None = None) -> None:
        self.cfg, self._expert, self._progress, self._seed, self._gripper = cfg, expert, progress, seed, gripper
        self._watch = watch
        self.rewarded: deque[bool] = deque(maxlen=20)
        self.alone: deque[bool] = deque(maxlen=20)
        self.verdict: Verdict | None = None  # the task itself says how it ended
        self.worked = 0  # steps at the device
        self.asked: Callable[[], bool] | None = None  # whether the robot asks for help; who is asked looks for nothing else
        self.begin(0)

    def begin(self, seed: int) -> None:
        """An episode begins: the hand is off the device."""
        self._rng = np.random.default_rng([self._seed, seed])
        self._seen: deque[Array] = deque(maxlen=self.cfg.late + 1)
        self._shown: deque[Obs] = deque(maxlen=self.cfg.late + 1)
        self._knows = self._expert.start(1)
        self._best, self._stalled = -np.inf, 0
        self._wait, self._left, self._rest = -1, 0, 0  # until the hand is there (-1: nothing is amiss); steps of a correction; of watching
        self._helped = False

    def end(self, succeeded: bool) -> None:
        """How the episode ended; whether it was helped, who helped knows."""
        self.rewarded.append(succeeded)
        self.alone.append(succeeded and not self._helped)

    def poll(self, obs: Obs, proposed: Array) -> Array | None:
        """The correction [A], or None to let the policy act."""
        self._seen.append(obs.get("privileged", obs["state"]).astype(np.float64))
        self._shown.append(obs)
        due = self._due()
        if self.cfg.shift and self.worked >= self.cfg.shift:
            return None
        if not self._left:
            if self._rest:
                self._rest -= 1
                return None
            if due and self._wait < 0:
                self._wait = self._notices()
            if self._wait < 0:
                return None
            self._wait -= 1
            if self._wait >= 0:
                return None
            self._left, self._helped = self._length(), True
        self._left -= 1
        if not self._left:
            self._rest, self._stalled = self.cfg.rest, 0
        self.worked += 1
        return self._steer()

    def _due(self) -> bool:
        """Whether there was no progress for too long, or much of it was lost, in what is seen."""
        self._value = self._watch(self._shown[0]) if self._watch else self._progress(self._seen[0])
        slipped = self._value < self._best - self.cfg.slip
        self._stalled = 0 if self._value > self._best + 0.5 else self._stalled + 1
        self._best = max(self._best, self._value)
        return self.asked() if self.asked is not None else slipped or self._stalled >= self.cfg.patience

    def _notices(self) -> int:
        """Steps until the hand is at the device; -1 where it goes unnoticed, until the next stall."""
        if self._rng.uniform() < self.cfg.fade * sum(self.alone) / max(len(self.alone), 1):
            self._stalled, self._best = 0, self._value
            return -1
        return int(self._rng.integers(self.cfg.reaction + 1))

    def _length(self) -> int:
        """Steps of this correction."""
        early = sum(self.rewarded) < self.cfg.finish * max(len(self.rewarded), 5)
        return 10_000 if early else int(self._rng.integers(self.cfg.hold[0], self.cfg.hold[1] + 1))

    def _steer(self) -> Array:
        cfg, old, new = self.cfg, self._seen[0], self._seen[-1]
        seen = (old + cfg.foresight * (new - old)).astype(np.float32)[None, None]
        plan, self._knows = self._expert.act({"state": seen}, self._knows, greedy=True, rng=[self._rng])
        asked = plan.action[0, 0] + self._rng.normal(0.0, cfg.noise, plan.action.shape[-1])
        asked = np.clip(asked, -cfg.cap, cfg.cap)
        action: Array = (np.round(asked / cfg.grain) * cfg.grain if cfg.grain else asked).astype(np.float32)
        if self._gripper:
            action[-1] = plan.action[0, 0, -1]
        return action

    def recall(self, episodes: Iterable[Episode]) -> None:
        """Remember what is recorded of the time before, in its order, where no checkpoint does."""
        self.load_state_dict({"rewarded": (), "alone": ()})
        for e in episodes:
            helped = int((e.source == Source.HUMAN).sum())
            self.worked += helped
            if e.terminated or e.truncated:
                self._helped = helped > 0
                self.end(e.succeeded)

    def state_dict(self) -> dict[str, Any]:
        """What is remembered between episodes."""
        return {"rewarded": list(self.rewarded), "alone": list(self.alone), "worked": self.worked}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.rewarded.clear()
        self.alone.clear()
        self.rewarded.extend(state["rewarded"])
        self.alone.extend(state["alone"])
        self.worked = int(state.get("worked", 0))  # checkpoints of before have none
