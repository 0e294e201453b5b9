"""The contract every part of realrl meets.

Letters used in all docstrings: B batch, T environment steps, N decisions, K actions in a chunk, A action size, D features.
Arrays that leave the simulator are numpy, arrays that enter a network are torch; nothing in this file imports either's machinery
beyond the type.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, SupportsFloat, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # a second to import, and lists, help and the process that writes recordings need none of it
    import gymnasium
    from torch import Tensor

Array = NDArray[Any]
Obs = dict[str, Array]
Env: TypeAlias = "gymnasium.Env[Obs, Array]"
State: TypeAlias = "dict[str, Tensor]"


# what a terminal obeys instead of showing (control characters, marks that turn the writing), and what it cannot print
HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """A name as it may be shown: what a terminal would obey is spelt out, ESC as \\x1b."""
    return HIDDEN.sub(lambda m: m[0].encode("unicode_escape").decode(), text)


class RealrlError(Exception):
    """A mistake the user can mend: one `printable` line that says what, where and how. The command line prints it without a traceback."""

    def __str__(self) -> str:
        return printable(super().__str__())


@dataclass(frozen=True)
class TaskSpec:
    """What a task is. dt: seconds a step; horizon: steps until it is cut; text: in words; paraphrases: others, the last not learned from.

    obs_dim: numbers of `state` as a policy sees it; senses: the shape of all else that it sees, e.g. {"pointcloud": (512, 3)}; privileged:
    numbers of the simulator's full state, 0 where `state` is all of it. control: what keeps the robot still: "relative", zeros (velocities,
    deltas); "absolute", the last action (positions). live: one such robot, whose steps are on disk before anyone learns from them; twin:
    its task of `realrl.envs`, where it is a simulated one. discrete: of an action the largest number's place counts. gripper: its last
    number is a command: 0.5 and more shuts the hand, -0.5 and less opens it, between them it stays.
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
    control: Literal["relative", "absolute"] = "relative"
    live: bool = False
    discrete: bool = False
    gripper: bool = False
    paraphrases: tuple[str, ...] = ()
    twin: str = ""

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


@dataclass(slots=True)
class Moment:
    """A step as it is done. after: the observation that followed, each [D...]; seed: of its episode; first: the episode's first step."""

    step: Step
    after: Obs
    seed: int
    first: bool


@dataclass
class Episode:
    """A whole trial, kept column by column: T steps and the T+1 observations around them.

    obs: each [T+1, ...]; action, proposed: [T, A]; source: [T] uint8 (`Source`); reward: [T] float32; success: [T] bool;
    time: [T] float64 seconds; starts_plan: [T] bool, true where a new plan (decision) began.
    terminated: the task itself ended (never bootstrap); truncated: a clock or a person ended it (bootstrap).
    judged: whether anything says how it ended; where nothing does, `success` is all False and nobody may read it as a failure.
    extra: one row a decision, e.g. `chain` [N, S+1, K, A]; kept in a side file where learning asks for it.
    cut: whether it is a stretch of a recording that others beside it are stretches of.
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
    judged: bool = True
    cut: bool = False

    def __len__(self) -> int:
        return len(self.action)

    @property
    def succeeded(self) -> bool:
        """Whether the trial is known to have ended in success."""
        return bool(self.success[-1]) if len(self) else False

    @property
    def failed(self) -> bool:
        """Whether the trial is known to have ended without success."""
        return self.judged and not self.succeeded

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
class Segment:
    """Stretches of T steps of episodes for world models, time-major, and the T + 1 observations around them. obs: each [T + 1, B, ...];
    action: [T, B, A], what was sent at an observation; reward, terminated: [T, B], what followed; first: [B] bool, whether its episode
    begins there, too; valid: [T, B] bool, which steps really were; frame: [T + 1, B], an observation's number among all `frames`."""

    obs: dict[str, Tensor]
    action: Tensor
    reward: Tensor
    terminated: Tensor
    first: Tensor
    valid: Tensor
    frame: Tensor
    frames: int


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


class Stateful(Protocol):
    """Anything a checkpoint can hold."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> Any: ...


class Agent(Stateful, Protocol):
    """Nets, targets and optimisers of one method. "Not updated" means "not stepped"."""

    policy: Policy

    def update(self, batch: Any) -> Mapping[str, SupportsFloat]:
        """One learning step on a `Batch` or `Segment`; what one needs to see of it, also as tensors that nobody has waited for."""
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


class Logbook(Protocol):
    """A run's directory as a method sees it, see `realrl.run.Run`: numbers, checkpoints, progress."""

    @property
    def dir(self) -> Path:
        """Where everything lies."""
        ...

    def log(self, step: int, metrics: Mapping[str, SupportsFloat | None], stage: str = "") -> None:
        """Note numbers of a stage."""

    def logger(self, stage: str) -> Callable[[int, Mapping[str, float]], None]:
        """A function (step, metrics) that notes them under a stage."""
        ...

    def rewind(self, stage: str, step: int) -> None:
        """Forget what a stage noted after `step`."""

    def save(self, name: str, step: int, /, **parts: Any) -> None:
        """Write a checkpoint: whole, or not at all."""

    def load(self, name: str, /, **parts: Any) -> int | None:
        """Load a checkpoint into objects; its step, or None where there is none."""
        ...

    def read(self, name: str) -> tuple[int, dict[str, Any]] | None:
        """(step, states) of a checkpoint, or None where there is none."""
        ...

    def bar(self, title: str, total: int, done: int = 0) -> AbstractContextManager[Callable[..., None]]:
        """Shows progress; the body tells what it is given how many more things are done, perhaps with a note. done: by earlier ones."""
        ...


class Curriculum(Protocol):
    """Which starts to practise. failed: the starts to come back to; a checkpoint holds it."""

    failed: list[int]

    def again(self, episodes: int, iteration: int) -> list[int]:
        """The starts to repeat in a round of so many episodes."""
        ...

    def remember(self, episodes: Sequence[Episode]) -> None:
        """Learn from how episodes ended."""


class Stream(Stateful, Protocol):
    """An actor beside a learner: one robot goes on from episode to episode while the method learns. In one process (the reference) every
    `take` is the next control step, and a run repeats to the bit, also from a checkpoint; in two, the robot keeps its rate."""

    steps: int  # control steps done, those of `past` included
    episodes: int  # whole ones
    between: bool  # no episode is under way: a checkpoint may be taken

    def past(self) -> list[Episode]:
        """What is recorded of it, oldest first: to be asked once, before the first `take`."""

    def take(self, *, wait: bool = True) -> list[Moment]:
        """What was done since, oldest first, a robot's on disk already. wait: for the next step where there is nothing new."""

    def publish(self, policy: Policy) -> None:
        """From the next plan on this acts."""

    def health(self) -> dict[str, float]:
        """How the two get along, by the clock: age of the weights, missed deadlines, ...; nothing where they take turns."""


class Cell(Protocol):
    """What a method is given, see `realrl.cell.cell.WorkCell`: one task, its robots, its recordings and its run.

    Every episode is on disk before anyone learns from it. All of it continues after a kill: what is recorded is not collected again,
    stages with a result are not repeated.
    """

    @property
    def spec(self) -> TaskSpec:
        """The task."""
        ...

    @property
    def run(self) -> Logbook:
        """The run's directory."""
        ...

    @property
    def robot(self) -> Any:
        """Whose numbers actions and states are (`realrl.robots.embodiment.Embodiment`), None where they are a simulator's."""
        ...

    @property
    def summary(self) -> dict[str, Any]:
        """What will stand in summary.json."""
        ...

    @property
    def simulated(self) -> bool:
        """Whether episodes can be run at will: what a gate refused is never tried on a robot."""
        ...

    def at(self, task: str) -> Cell:
        """The cell of another task of the run, which shares recordings, account, progress. Raises RealrlError where there is one alone."""

    def seeds(self, stage: int, count: int, first: int = 0) -> list[int]:
        """Training starts of a stage (0..9), disjoint from every other's and from the evaluation's."""

    def demonstrations(self, failures: bool = False, count: int | None = None) -> list[Episode]:
        """What to imitate: the worthy episodes of a data set, or of the task's scripted expert. failures: of a data set also those that are
        known to have failed; count: how many at most, by default as many as the scene says of its expert, and all of a data set."""

    def practise(self, label: str, policy: Policy, seeds: Sequence[int], *, greedy: bool = False, noise_seed: int = 0,
                 source: Source = Source.POLICY, plans_only: bool = False, chains: bool = False,
                 human: Intervention | None = None) -> list[Episode]:
        """Whole episodes, recorded under a label, in the order of the seeds. source: who the policy is; plans_only: nobody looks at what is
        seen between plans; chains: what plans carry in `extra` is kept, too; human: may take over, so robots act one at a time."""

    def take_turns(self, label: str, policies: Mapping[str, Policy], seeds: Sequence[int], *, noise_seed: int = 0) -> dict[str, Any]:
        """Tasks that undo one another, task -> its policy, in turn by one robot without resets: task -> its episodes (list[Episode]).
        Interventions stand in the summary as `pool`. Raises RealrlError where a world cannot be handed on."""

    def stream(self, label: str, policy: Policy, *, stage: int, warmup: int = 0, noise_seed: int = 0,
               cfg: Any = None, human: Intervention | None = None, referee: RewardModel | None = None) -> AbstractContextManager[Stream]:
        """One robot that acts while the method learns, recorded under a label. warmup: control steps of even noise at first; cfg: how
        they go beside each other (`realrl.streaming.StreamConfig`), in turns by default; human: may take over; referee: rewards, ends."""
        ...

    def recent(self, count: int) -> list[Episode]:
        """The newest recorded episodes, oldest first."""
        ...

    def curriculum(self, share: float) -> Curriculum:
        """Which starts to practise; share: of a round's episodes that repeats failed ones."""
        ...

    def timed(self, name: str) -> AbstractContextManager[None]:
        """Adds the seconds its body takes to a stage's account."""
        ...

    def finish_stage(self, name: str, policy: Policy, n: int, *, version: int = 0, greedy: bool = True,
                     measure: Callable[[Episode], Mapping[str, float]] | None = None) -> None:
        """Evaluate a stage's product from n held-out starts and add it to the summary, once a version. measure: what else an episode
        says; its means stand in the summary as `measured`."""

    def judge_demonstrator(self, n: int) -> None:
        """What the demonstrations' expert achieves: the bar for success and cycle time."""

    def keep(self, policy: Any, name: str = "policy") -> None:
        """Write the run's product, a policy that a folder can hold, where `realrl evaluate` finds it; name: of another folder for it."""

    def tell(self, stage: str, line: str) -> None:
        """Say what was decided in a stage, in words; it stands in the summary and in the report."""

    def audit(self, policy: Any, rounds: int, n: int) -> None:
        """What every candidate that a gate judged in so many offline rounds is truly worth, beside what was said of it. policy: of their
        kind, as the run ended."""

    def annotate(self, name: str, label: str | Sequence[str], values: Callable[[list[Episode]], list[Array]]) -> None:
        """A derived column [T] of the episodes recorded under a label or several, for the viewer."""
