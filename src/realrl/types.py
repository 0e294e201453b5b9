"""The contract every part of realrl meets.

Letters used in all docstrings: B batch, T environment steps, N decisions, K actions in a chunk, A action size, D features.
Arrays that leave the simulator are numpy, arrays that enter a network are torch; nothing in this file imports either's machinery
beyond the type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import gymnasium
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # a second to import, and lists and help need none of it
    from torch import Tensor

Array = NDArray[Any]
Obs = dict[str, Array]
Env = gymnasium.Env[Obs, Array]
State: TypeAlias = "dict[str, Tensor]"


class RealrlError(Exception):
    """A mistake the user can mend: one line that says what, where and how. The command line prints it without a traceback."""


@dataclass(frozen=True)
class TaskSpec:
    """What a task is. dt: seconds of a control step; horizon: steps after which an episode is truncated; text: in words.

    obs_dim: numbers of `state` as a policy sees it; senses: the shape of every observation beside `state` and `privileged`, e.g.
    {"pointcloud": (512, 3)}; privileged: numbers of the simulator's full state, 0 where `state` is all of it (no eyes).
    """

    suite: str
    name: str
    obs_dim: int
    action_dim: int
    horizon: int
    dt: float
    text: str
    senses: Mapping[str, tuple[int, ...]] = field(default_factory=dict, hash=False)
    privileged: int = 0

    @property
    def id(self) -> str:
        """The name that `realrl.envs.make` takes, "suite/name"."""
        return f"{self.suite}/{self.name}"


class Source(IntEnum):
    """Who chose an action."""

    POLICY = 0
    HUMAN = 1
    SCRIPT = 2


@dataclass(slots=True)
class Step:
    """One control step. obs: each [D...]; proposed, action: [A] in [-1, 1]; time: monotonic seconds."""

    obs: Obs
    proposed: Array
    action: Array
    source: Source
    reward: float
    terminated: bool
    truncated: bool
    success: bool
    time: float
    starts_plan: bool = True


@dataclass
class Episode:
    """A whole trial, kept column by column: T steps and the T+1 observations around them.

    obs: each [T+1, ...]; action, proposed: [T, A]; source: [T] uint8 (`Source`); reward: [T] float32; success: [T] bool;
    time: [T] float64 seconds; starts_plan: [T] bool, true where a new plan (decision) began.
    terminated: the task itself ended (never bootstrap); truncated: a clock or a person ended it (bootstrap).
    extra: one row a decision, e.g. `chain` [N, S+1, K, A] and `logp` [N, S]; lives in memory only.
    """

    obs: Obs
    action: Array
    proposed: Array
    source: Array
    reward: Array
    success: Array
    time: Array
    starts_plan: Array
    terminated: bool
    truncated: bool
    task: str
    policy: str
    seed: int | None = None
    extra: dict[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.action)

    @property
    def succeeded(self) -> bool:
        """Whether the trial ended in success."""
        return bool(self.success[-1]) if len(self) else False

    @classmethod
    def from_steps(cls, steps: Sequence[Step], last_obs: Obs, *, task: str, policy: str, seed: int | None,
                   extra: dict[str, Array] | None = None) -> Episode:
        """Stack steps and the observation that followed the last of them. Raises ValueError on an empty list."""
        if not steps:
            raise ValueError("an episode needs at least one step")
        frames = [s.obs for s in steps] + [last_obs]
        return cls(
            obs={k: np.stack([f[k] for f in frames]) for k in last_obs},
            action=np.stack([s.action for s in steps]).astype(np.float32),
            proposed=np.stack([s.proposed for s in steps]).astype(np.float32),
            source=np.array([s.source for s in steps], np.uint8),
            reward=np.array([s.reward for s in steps], np.float32),
            success=np.array([s.success for s in steps], bool),
            time=np.array([s.time for s in steps], np.float64),
            starts_plan=np.array([s.starts_plan for s in steps], bool),
            terminated=steps[-1].terminated, truncated=steps[-1].truncated,
            task=task, policy=policy, seed=seed, extra=extra or {})


@dataclass
class Batch:
    """Decisions for learning. Every bootstrapped target is `batch.reward + batch.discount * next_value`.

    obs, next_obs: each [B, H, D...], H the observation history a policy looks at, oldest first;
    action: [B, K, A] in [-1, 1]; reward: [B], the discounted sum over the n <= K steps that ran; discount: [B], gamma^n, 0 only
    after termination; valid: [B, K] bool, which actions really ran; source: [B, K] uint8.
    """

    obs: dict[str, Tensor]
    action: Tensor
    reward: Tensor
    discount: Tensor
    next_obs: dict[str, Tensor]
    valid: Tensor
    source: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.action)

    def __getitem__(self, index: Tensor | slice) -> Batch:
        """Rows of every field."""
        obs, next_obs, extra = ({k: v[index] for k, v in d.items()} for d in (self.obs, self.next_obs, self.extra))
        return replace(self, obs=obs, action=self.action[index], reward=self.reward[index], discount=self.discount[index],
                       next_obs=next_obs, valid=self.valid[index], source=self.source[index], extra=extra)


@dataclass
class Plan:
    """What a policy wants to do next. action: [B, K, A] in [-1, 1]; extra: per row, e.g. the denoising chain."""

    action: Array
    extra: dict[str, Array] = field(default_factory=dict)


@runtime_checkable
class Policy(Protocol):
    """Observations in, plans out; memory is passed by hand, so one policy object may drive any number of robots.

    `rng` holds one numpy Generator a row: an episode's noise belongs to the episode and does not depend on what else is in
    the batch. Rows of `state` are independent: a row is forgotten by writing `start(1)` into it.
    """

    name: str
    chunk: int  # how many actions of a plan are executed before the next one
    n_obs: int  # H, how many observations it looks at

    def start(self, batch: int) -> State:
        """Fresh memory for `batch` episodes, every entry [B, ...]."""
        ...

    def act(self, obs: Obs, state: State, *, greedy: bool, rng: Sequence[np.random.Generator]) -> tuple[Plan, State]:
        """Plan from the last H observations (each [B, H, ...], oldest first; an episode's first one is repeated)."""
        ...


class Intervention(Protocol):
    """A person (or a test) who may take over."""

    def poll(self, obs: Obs, proposed: Array) -> Array | None:
        """The person's action [A], or None to let the policy act."""
        ...


class Guard(Protocol):
    """Has the last word over every action, the human's included."""

    def __call__(self, obs: Obs, action: Array) -> Array:
        """The action [A] that is really sent."""
        ...


class RewardModel(Protocol):
    """Scores transitions, online and for relabelling."""

    def __call__(self, obs: Obs, action: Array, next_obs: Obs) -> tuple[float, float]:
        """(reward, probability that the task is done)."""
        ...


class Stateful(Protocol):
    """Anything a checkpoint can hold."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> Any: ...
