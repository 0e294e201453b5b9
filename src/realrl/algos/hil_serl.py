"""HIL-SERL (arXiv 2410.21845): a person's corrections and an hour of robot time to a task that never fails.

A few demonstrations first. Then the robot practises, a person takes over where it gets stuck, and beside every step a soft actor-critic
makes `sac.utd` updates. Half of every batch comes from all that the robot did, half from what a person did: demonstrations, and the steps
of every correction (RLPD, arXiv 2302.02948). Learned from is what was really executed; what the policy proposed is recorded beside it.
Success and failure end the return, a clock or a person that ends an episode does not.

What of it is where: the learner in `learn/sac.py`, a gripper's in `learn/grasp.py`, the two memories in `learn/corrections.py`, people in
`robots/human.py`. This file has the configuration, the loop, and what it tells the person who watches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from realrl.config import OutOfBounds, check
from realrl.files import derive
from realrl.learn.classifier import Referee, load
from realrl.learn.corrections import Memory, Trial, moments, refuse_contradictions
from realrl.learn.grasp import GraspCritic
from realrl.learn.help import Help
from realrl.learn.practice import CLOCK, Earlier, sound
from realrl.learn.replay import Draws
from realrl.learn.sac import RATES, SAC, SACConfig
from realrl.learn.symmetry import Turned
from realrl.policies.gaussian import GaussianConfig, GaussianPolicy
from realrl.policies.residual import residual_on
from realrl.robots.human import OperatorConfig, ScriptedOperator
from realrl.scene import Scene, device
from realrl.streaming import StreamConfig
from realrl.terminal import console
from realrl.types import Batch, Cell, Episode, Intervention, Moment, RealrlError, Stream, TaskSpec

BEHIND = 20
"""Control steps for which updates are made up later, where a learner is slower than its robot."""

LEARNER = SACConfig(utd=4, policy_delay=2, gamma=0.97, actor_q="mean", alpha=0.01, entropy_backup=False)
ACTOR = GaussianConfig(n_obs=6, norm="layer", scaled=True)  # what was felt has to be remembered when the hand is in the air again


@dataclass(frozen=True)
class HILConfig(Scene):
    """Reinforcement learning with a person in the loop."""

    task: str = "contact/peg"
    """Environment, see `realrl tasks contact`."""
    demo_noise: float = 0.1
    """Standard deviation of the noise on the scripted expert's actions."""
    human: Literal["scripted", "keyboard", "gamepad", "none"] = "scripted"
    """Who corrects the robot, and may say how an episode ended; see docs/howto/human-in-the-loop.md."""
    reward: str | None = None
    """Folder of a success classifier (realrl reward fit) that says in practice when the task is done; None = the task says so."""
    operator: OperatorConfig = field(default_factory=OperatorConfig)
    """How the scripted person behaves."""
    learner: Literal["rlpd", "hg-dagger"] = "rlpd"
    """rlpd: reinforcement learning, half on what the person did; hg-dagger: only imitates what the person did (arXiv 1810.02890)."""
    sac: SACConfig = LEARNER
    """The learner."""
    policy: GaussianConfig = ACTOR
    """The actor."""
    init: str | None = None
    """Folder of a policy (of rl100, bc or hil-serl) that goes on to act, frozen: the actor then learns what to add to its actions."""
    residual: float = 0.2
    """With init: how far the actor may move every number of an action, of 1."""
    after: str | None = None
    """Folder of a finished run of this method whose actor and critics go on learning, on a robot that is another, or has changed, say. Of
    what it practised nothing is learned: that shows how things were there. Give it the --recall that it had."""
    grasp_critic: bool = True
    """Whether a gripper, where the task has one, is commanded by values of its own; else, and with init, by an action's last number."""
    grasp_cost: float = 0.02
    """What a command to the gripper costs, in that critic's reward."""
    compiled: bool = False
    """Whether updates are compiled: about a minute at first, then nearly twice as fast; needs a C++ compiler."""
    prior_share: float = 0.5
    """Share of every batch that is what a person did, demonstrations among it; 0 = demonstrations are not learned from, nor corrections but
    as steps like others (plain soft actor-critic)."""
    symmetric: bool = False
    """Whether every decision teaches in all the ways that the work can be mirrored, where the task says how; rlpd alone, without init."""
    takeover_cost: float = 0.0
    """Taken off the reward of the policy's step before a takeover (as in RLIF, arXiv 2311.12996), so that to be helped does not pay."""
    help_after: int = 0
    """Control steps in which the critics' value has to rise half as fast as on the way to a success; else the robot asks for help, and the
    scripted person comes when asked, not when progress stops. 0 = it never asks."""
    clone_steps: int = 0
    """Updates in which the actor imitates the demonstrations before anything else; let sac.actor-start be more than them."""
    average: float = 0.998
    """Share of itself that the average of the actor's weights keeps at every control step. It is what is judged and deployed: the actor
    that practises changes all the time. 0 = the last actor."""
    stream: StreamConfig = field(default_factory=StreamConfig)
    """How robot and learner go beside each other."""
    steps: int = 15_000
    """Control steps to learn for; the episode that is under way then is finished."""
    start: int = 100
    """Control steps before anything is learned from practice."""
    save_every: int = 2000
    """Control steps after which the next end of an episode brings a checkpoint."""
    log_every: int = 500
    """Control steps between two lines of the curves."""
    judge_every: int = 0
    """Control steps after which the next end of an episode brings an evaluation without a person; 0 = only at the end."""
    eval_episodes: int = 300
    """Held-out episodes of an evaluation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, residual="(0, 1]", prior_share="[0, 1)", takeover_cost="[0, 1e3]", help_after="[0, 1e6]", grasp_cost="[0, 1e3]",
              clone_steps="[0, 1e9]", average="[0, 1)", steps="[1, 1e9]", start="[0, 1e9]", save_every="[1, 1e9]", log_every="[1, 1e9]",
              judge_every="[0, 1e9]")
        if self.stream.realtime and self.human in ("keyboard", "gamepad"):
            raise OutOfBounds(HILConfig, "stream", f"has realtime, a process without a {self.human}: leave it out, the control loop keeps "
                              "the person's time anyhow")
        if self.stream.realtime and self.help_after:
            raise OutOfBounds(HILConfig, "help_after", "is above 0, and with stream.realtime nobody beside the robot hears the critics: "
                              "leave one of them out")
        if self.sight.kind not in ("state", "rgb"):
            raise OutOfBounds(HILConfig, "sight", f"is {self.sight.kind!r}: actor and critics look at the state or at pictures (rgb)")
        if self.sight.kind == "rgb" and (self.init or self.symmetric):
            blind = "init" if self.init else "symmetric"
            raise OutOfBounds(HILConfig, blind, "knows the state alone, and sight is rgb: leave one of them out")
        if self.after and self.init:
            raise OutOfBounds(HILConfig, "after", "goes on with a run's own actor, init begins one on a policy: give one of them")
        if self.learner == "hg-dagger" and self.human == "none":
            raise OutOfBounds(HILConfig, "learner", "hg-dagger imitates a person's corrections, and human is 'none': name who corrects")


# ---- learning


def train(cfg: HILConfig, cell: Cell) -> dict[str, Any]:
    """Demonstrations, practice with corrections, evaluation without a person; leaves the policy in the run's folder `policy`, and returns
    the summary with its `headline`. Continues an interrupted run. Raises RealrlError for demonstrations that contradict themselves."""
    torch.manual_seed(derive(cfg.seed, "weights"))
    spec = cell.spec
    actor = make_actor(cfg, spec).to(device(cfg.device))
    agent = SAC(actor, cfg.sac, seed=derive(cfg.seed, "learner"), compiled=cfg.compiled)
    grasp = GraspCritic(actor, cfg.sac, cfg.grasp_cost) if actor.gripper else None
    earlier, referee = Earlier(cfg.after, "hil-serl"), Referee(load(cfg.reward), cfg.reward) if cfg.reward else None
    if referee:
        referee.model.suit({"state": (spec.obs_dim,), **spec.senses})
    with operator(cfg, spec) as human:  # what is not there is told before anybody demonstrates
        demos = cell.demonstrations()
        refuse_contradictions(demos)
        open_eyes(actor, demos, earlier)
        noise = derive(cfg.seed, "hil-serl") % 2**31
        memory, average = Memory(agent, demos, spec.dt, cfg.takeover_cost, noise, cfg.prior_share), Average(agent, grasp, cfg.clone_steps)
        memory.both = mirrored(cfg, spec, memory.both)
        tell_the_slow(cfg, spec, memory)
        first = partial(begin, cfg, agent, grasp, memory, average, demos, earlier)
        with cell.timed("hil-serl"):
            health = learn(cfg, cell, agent, grasp, memory, average, human, referee, noise, first)
    policy = average.policy()
    cell.keep(policy)
    cell.finish_stage("hil-serl", policy, cfg.eval_episodes)
    told = headline(cfg, cell.summary, memory, agent.step - average.before)
    cell.summary["headline"] = told | {name: health[name] for name in CLOCK if name in health}
    return cell.summary


def open_eyes(actor: GaussianPolicy, demos: Sequence[Episode], earlier: Earlier) -> None:
    """What is kept of pictures, by the demonstrations', the same at every start; or by what the actor of an earlier run saw."""
    if actor.glance is None:
        return
    before = {name: values for name in actor.glance.state_dict() if (values := earlier.actor.get(f"glance.{name}")) is not None}
    if before and all(values.shape == actor.glance.get_buffer(name).shape for name, values in before.items()):
        actor.glance.load_state_dict(before)
    else:
        actor.glance.fit({key: torch.from_numpy(np.concatenate([demo.obs[key] for demo in demos])) for key in actor.senses})


def tell_the_slow(cfg: HILConfig, spec: TaskSpec, memory: Memory) -> None:
    """A note where the scripted person moves too slowly for the clock."""
    if cfg.human == "scripted" and memory.demo_steps > cfg.operator.cap * spec.horizon:
        console(stderr=True).print(f"note: demonstrations take {memory.demo_steps:.0f} steps, an episode has {spec.horizon}, and the "
                                   f"scripted person moves at {cfg.operator.cap:g} of full speed at most: what it begins it can hardly "
                                   "finish; give it more time with --horizon, or speed with --operator.cap")


def mirrored(cfg: HILConfig, spec: TaskSpec, draws: Draws) -> Draws:
    """The same, seen in the task's mirrors where it has some. What a policy of before says is not mirrored, so nothing is where it acts."""
    from realrl import envs
    ways = envs.symmetries(spec.twin or spec.id, cfg.recall) if cfg.symmetric and not cfg.init else None
    return Turned(draws, *ways) if ways else draws


def make_actor(cfg: HILConfig, spec: TaskSpec) -> GaussianPolicy:
    """An untaught actor: of its own, or on a policy that exists. Raises RealrlError where the two, or a gripper and chunks, do not fit."""
    if cfg.init:
        return residual_on(cfg.init, spec, cfg.policy, cfg.residual, name="hil-serl")
    gripper = spec.gripper and cfg.grasp_critic
    if gripper and cfg.policy.chunk > 1:
        raise RealrlError(f"policy.chunk is {cfg.policy.chunk}, and {spec.id} has a gripper, which is commanded step by step: leave it "
                          "out, or give --no-grasp-critic")
    return GaussianPolicy(cfg.policy, spec.obs_dim, spec.action_dim, gripper=gripper, senses=spec.senses, name="hil-serl")


def learn(cfg: HILConfig, cell: Cell, agent: SAC, grasp: GraspCritic | None, memory: Memory, average: Average, human: Intervention | None,
          referee: Referee | None, noise: int, first: Callable[[], int]) -> dict[str, float]:
    """Act once, update `utd` times, until the robot has made its steps; checkpoints between episodes only. first: what precedes practice,
    where no checkpoint does. Returns how robot and learner got along, see `types.Stream.health`."""
    with cell.stream("hil-serl", agent.policy, stage=1, noise_seed=noise, cfg=cfg.stream, human=human, referee=referee) as stream:
        help = Help(cfg.help_after, cfg.sac.gamma, lambda count: agent.worth(memory.newest(count)))
        parts = {"agent": agent, "average": average, "stream": stream, "help": help} | ({"grasp": grasp} if grasp else {})
        saved = cell.run.load("hil-serl", **parts)
        if saved is None:
            saved = first()
            cell.run.save("hil-serl", saved, **parts)  # it says who judges from here on
            stream.publish(agent.policy)  # an actor's process began with untaught weights
        memory.see(moments(stream.past()))
        if isinstance(human, ScriptedOperator) and cfg.help_after:
            human.asked = lambda: help.asks
        cell.run.rewind("hil-serl", stream.steps)
        pen, last, owed = Pen(cfg, agent, memory, stream, help, referee, average.before), stream.steps, 0
        start = max(cfg.start, cfg.policy.chunk * cfg.sac.n_step - 1)  # a first decision is whole
        with cell.run.bar("hil-serl: control steps", cfg.steps, stream.steps) as advance:
            while stream.steps < cfg.steps or not stream.between:
                found = stream.take(wait=owed < 1)
                memory.see(found)
                help.see(found)
                owed += len(found) if stream.steps > start else 0
                if owed:
                    owed = min(owed - 1, BEHIND)
                    pen.told.append(sound(update(cfg, agent, grasp, memory), stream.steps, *RATES))
                    average.follow(cfg.average)
                    stream.publish(agent.policy)
                advance(len(found), pen.note(found))
                if stream.steps // cfg.log_every > pen.step // cfg.log_every:
                    cell.run.log(stream.steps, pen.line(), "hil-serl")
                if not stream.between:
                    continue
                if cfg.judge_every and stream.steps // cfg.judge_every > last // cfg.judge_every and cell.simulated:
                    cell.finish_stage(f"at {stream.steps // cfg.judge_every * cfg.judge_every}", average.policy(),
                                      cfg.eval_episodes, measure=lambda _: memory.books())
                last = stream.steps
                if last - saved >= cfg.save_every:
                    saved = last
                    cell.run.save("hil-serl", saved, **parts)
        cell.run.save("hil-serl", stream.steps, **parts)
        return stream.health()


@contextmanager
def operator(cfg: HILConfig, spec: TaskSpec) -> Iterator[Intervention | None]:
    """Who may take over, while the body lasts. The scripted person knows what the task's expert knows, and how far it is where the task
    says so. Raises RealrlError where there is no such device, and nobody who could be scripted."""
    if cfg.human == "none":
        yield None
    elif cfg.human != "scripted":
        from realrl.robots.devices import DEVICES, HELP, Teleoperator  # a scripted person holds none
        with DEVICES[cfg.human]() as device:
            console(stderr=True).print(f"{cfg.human}: {HELP[cfg.human]}")
            yield Teleoperator(device, spec.action_dim, spec.dt, commands=spec.gripper)
    else:
        from realrl import envs
        task, seed = envs.scripted(spec), derive(cfg.seed, "operator")
        yield ScriptedOperator(cfg.operator, envs.expert(task, cfg.expert), envs.progress(task), seed=seed, gripper=spec.gripper)


def begin(cfg: HILConfig, agent: SAC, grasp: GraspCritic | None, memory: Memory, average: Average, demos: Sequence[Episode],
          earlier: Earlier) -> int:
    """See the demonstrations' size, or go on where an earlier run ended; let the actor imitate the demonstrations first, if it shall; its
    average begins there. Returns 0, the control steps that it took. Raises RealrlError where that run's learner was of another size."""
    if agent.policy.scaler is not None:
        agent.policy.scaler.fit(torch.as_tensor(np.concatenate([demo.obs["state"] for demo in demos]), device=agent.policy.device))
    more: dict[str, Any] = {"average": average} | ({"grasp": grasp} if grasp else {})
    earlier.hand_over(agent, **more)
    for _ in range(cfg.clone_steps):
        imitate(agent, grasp, memory.prior.sample(cfg.sac.batch, memory.random(cfg.seed, agent.step)))
    if cfg.clone_steps:
        average.follow(0.0)
    average.before = agent.step
    return 0


def imitate(agent: SAC, grasp: GraspCritic | None, batch: Batch) -> dict[str, Tensor]:
    """A step towards what people did."""
    return agent.imitate(batch) | (grasp.imitate(batch) if grasp else {})


def update(cfg: HILConfig, agent: SAC, grasp: GraspCritic | None, memory: Memory) -> Mapping[str, Tensor]:
    """A control step's updates, each on a batch of its own: half practice, half what a person did; hg-dagger has the latter alone."""
    random = memory.random(cfg.seed, agent.step)
    if cfg.learner == "hg-dagger":
        return [imitate(agent, grasp, memory.prior.sample(cfg.sac.batch, random)) for _ in range(cfg.sac.utd)][-1]
    batch = memory.both.sample(cfg.sac.batch, random, cfg.sac.utd)
    return agent.update(batch) | (grasp.update(batch) if grasp else {})


class Average:
    """The running average of a policy's weights, a vector for each of its networks: the actor, and a grasp critic. before: updates that
    were made before practice began."""

    def __init__(self, agent: SAC, grasp: GraspCritic | None, before: int = 0) -> None:
        self.before = before
        self._agent, self._parts = agent, {"net": agent.actor_weights} | ({"grasp": grasp.weights} if grasp else {})
        self.values = {name: part.value.clone() for name, part in self._parts.items()}

    def follow(self, kept: float) -> None:
        """Move towards the weights of now. kept: share of the average that stays."""
        for name, part in self._parts.items():
            self.values[name].lerp_(part.value, 1 - kept)

    def policy(self) -> GaussianPolicy:
        """A policy of its own with these weights."""
        policy = copy.deepcopy(self._agent.policy).requires_grad_(False)
        for name, part in self._parts.items():  # buffers are the actor's
            policy.get_submodule(name).load_state_dict(part.views(self.values[name]), strict=False)
        return policy

    def state_dict(self) -> dict[str, Any]:
        """The vectors, and what came before."""
        return {**self.values, "before": self.before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        for name, value in self.values.items():
            value.copy_(state[name])
        self.before = int(state.get("before", self.before))  # no checkpoint of old had it


# ---- what is told


class Pen:
    """A line of the curves now and then, and a note beside the progress bar. told: what updates told since the last line; before: updates
    that were made before practice began."""

    def __init__(self, cfg: HILConfig, agent: SAC, memory: Memory, stream: Stream, help: Help, referee: Referee | None,
                 before: int) -> None:
        self._cfg, self._agent, self._memory, self._stream, self._help, self._referee = cfg, agent, memory, stream, help, referee
        self.step, self._oldest, self._before = stream.steps, 0.0, before
        self.told: list[Mapping[str, Tensor]] = []
        self._text = self._books()

    def line(self) -> dict[str, float]:
        """Of the last 50 episodes, and means over the updates since the last line."""
        m = self._memory
        out = {"success": m.rate(helped=False), "success_helped": m.rate(helped=True), "human_share": m.share(),
               "takeovers_per_episode": sum(t.takeovers for t in m.lately) / max(len(m.lately), 1), "prior_steps": float(m.prior.steps),
               "utd_reached": utd_reached(self._cfg, self._agent.step - self._before, self._stream.steps), **m.spent()}
        out |= {"asked_for_help": float(self._help.asked)} if self._cfg.help_after else {}
        out |= self._health()
        self._oldest = 0.0
        names = list({name: None for told in self.told for name in told})
        out |= {name: float(torch.stack([t[name] for t in self.told if name in t]).mean()) for name in names}
        self.step = self._stream.steps
        self.told.clear()
        return out

    def note(self, found: Sequence[Moment]) -> str:
        """For who watches: who acts, how it goes, what to do. Asked for at every step, and for the most part written between episodes."""
        if self._stream.between:
            self._text = self._books()
        acts = f"{found[-1].step.source.name.lower()} acts; " if found else ""
        seen = f"success seen by {judge.seen:.2f} of {judge.model.threshold:.2f}; " if (judge := self._referee) else ""
        return f"{'PLEASE HELP; ' if self._help.asks else ''}{acts}{seen}{self._text}"

    def _books(self) -> str:
        """How it goes, and what to do."""
        m = self._memory
        utd = utd_reached(self._cfg, self._agent.step - self._before, self._stream.steps)
        return (f"solved alone {100 * m.rate(helped=False):.0f} %, helped {100 * m.rate(helped=True):.0f} %; "
                f"human {100 * m.share():.0f} %; updates a step {utd:.1f} of {self._cfg.sac.utd}; "
                f"{m.online.steps} + {m.prior.steps} steps; {self._age()}{advice(m.lately, attended=self._cfg.human != 'none')}")

    def _age(self) -> str:
        """How old the robot's weights became since the last line."""
        told = self._health().get("weights_age_s")
        return "" if told is None else f"weights up to {told:.2f} s old; "

    def _health(self) -> dict[str, float]:
        """The stream's, whose longest times are since it was last asked; here they are since the last line."""
        told = self._stream.health()
        if "weights_age_s" in told:
            self._oldest = told["weights_age_s"] = max(self._oldest, told["weights_age_s"])
        return told


def advice(lately: Sequence[Trial], *, attended: bool = True) -> str:
    """One line for the person, from the last episodes; attended: whether anybody is there who could help."""
    if not attended:
        few = lately and sum(t.success for t in lately) < len(lately) / 3
        return "too few rewarded episodes: more demonstrations, or somebody who helps (--human)" if few else "nobody helps: look on"
    if not lately:
        return "let it try, help where it gets stuck"
    won = sum(t.success for t in lately) / len(lately)
    share = sum(t.human for t in lately) / max(sum(t.steps for t in lately), 1)
    if won < 1 / 3:
        return "too few rewarded episodes: help it finish"
    if len(lately) >= 10 and all(t.success and not t.human for t in list(lately)[-10:]):
        return "it succeeds alone: look on, and bring it to starts that are hard"
    if share > 0.5:
        return "you do most of it: shorter corrections, then let it try"
    return "let it try 20 to 30 steps, then correct it briefly"


def utd_reached(cfg: HILConfig, updates: int, steps: int) -> float:
    """Updates per step since learning began."""
    return updates / max(steps - cfg.start, 1)


def headline(cfg: HILConfig, summary: Mapping[str, Any], memory: Memory, updates: int) -> dict[str, Any]:
    """The run in a few numbers. success: without a person, from held-out starts; cycle_ratio: steps of its successes to those of the
    demonstrations; human_share: of the steps of the last 50 episodes; transitions: control steps of practice."""
    stage = next(s for s in summary["stages"] if s["name"] == "hil-serl")
    cycle = stage["cycle_steps"]
    return {"success": stage["success"]["rate"], "success_low": stage["success"]["low"], "episodes": stage["success"]["n"],
            "cycle_steps": cycle, "cycle_ratio": None if cycle is None else round(cycle / memory.demo_steps, 4),
            "human_share": round(memory.share(), 4), "transitions": memory.online.steps, **memory.spent(),
            "demo_steps": round(memory.demo_steps, 3),
            "utd": round(utd_reached(cfg, updates, memory.online.steps), 4)}
