"""Recap (pi*0.6, arXiv 2511.14759): a generalist policy that learns from its own experience by being told what was good in it.

Pre-training on all tasks: a value over 201 bins says how far from done a state is (section IV-A); an action's advantage over a threshold of
its task is its indicator, and the policy learns actions under their indicator, which it is not told 30 % of the time (section IV-B). Then,
task by task: fine-tuning on demonstrations, all taken for good; and rounds of {practice, a person's corrections, value, advantage, policy},
each round's value and policy from the pre-trained ones on all data of the task (section IV-C, algorithm 1). It acts as if all it did were
good. What the paper leaves open, and what was chosen: docs/methods/recap.md.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from realrl.config import OutOfBounds, check
from realrl.files import derive
from realrl.generative.diffusion import DistillConfig
from realrl.generative.flow import FlowConfig
from realrl.learn.fit import ImitationConfig, imitate
from realrl.learn.flow import FlowFit, Lessons, Sights, cells_of, distil, listed, make_policy
from realrl.learn.prospects import Critic
from realrl.learn.value import ValueConfig, column, threshold
from realrl.nets.transformer import NEGATIVE, NONE, POSITIVE
from realrl.policies.flow import FlowPolicy, FlowPolicyConfig
from realrl.robots.human import OperatorConfig, ScriptedOperator
from realrl.scene import Scene, device
from realrl.types import Array, Cell, Episode, Intervention, Obs, Plan, Policy, RealrlError, Source, State, TaskSpec

Learner = Literal["recap", "shuffled", "filtered", "positive", "awr"]
COFFEE = ("metaworld/coffee-push-v3", "metaworld/coffee-pull-v3")
PERSON = OperatorConfig(patience=30, slip=10.0, hold=(15, 30), cap=1.0, grain=0.0, finish=0.0, fade=0.0)
"""Takes over when the value fell by 0.1 or stood still for 30 steps, for 15 to 30 steps; remembers nothing between episodes."""
GUIDED = FlowPolicyConfig(flow=FlowConfig(guidance=2.0))
PRETRAINING, FINE_TUNING = ImitationConfig(steps=2500, batch=64), ImitationConfig(steps=1000, batch=64, lr=5e-4, warmup=50)


@dataclass(frozen=True)
class Manner:
    """How a demonstrator does what its script says. speed: the fastest that the hand moves, of 1 (scaling all motions misses grasps);
    pause: chance a step to rest for 5 to 15 steps; noise: deviation a step; drift: of what the hand is off in a whole episode."""

    speed: float = 1.0
    pause: float = 0.0
    noise: float = 0.1
    drift: float = 0.0


MANNERS = {"fast": Manner(), "slow": Manner(0.6, 0.04, 0.05), "noisy": Manner(noise=0.4), "lost": Manner(noise=0.2, drift=0.4)}
"""Whose demonstrations there are, as many of each: the slow take about twice as long, and of the lost ones most fail."""


@dataclass(frozen=True)
class RecapConfig(Scene):
    """Learning from experience with an advantage-conditioned policy."""

    task: str = ""
    """The first of the tasks; leave it to --tasks."""
    tasks: tuple[str, ...] = COFFEE
    """Environments, separated by spaces or commas, see `realrl tasks`."""
    demos: int = 25
    """Demonstrations of every manner and task: fast, slow with pauses, noisy, lost."""
    policy: FlowPolicyConfig = GUIDED
    """The policy; its flow.guidance is beta, which acts where there was bad to learn from, too: after a round."""
    value: ValueConfig = field(default_factory=ValueConfig)
    """The value network and its fits."""
    pretraining: ImitationConfig = PRETRAINING
    """The policy's fit on all tasks."""
    finetuning: ImitationConfig = FINE_TUNING
    """Its fit on one task's demonstrations, and in every round on all data of the task."""
    rounds: int = 2
    """Rounds of practice and learning."""
    rollouts: int = 100
    """Episodes of practice of every task in a round."""
    corrected: float = 0.2
    """Share of them beside which a person stands and corrects."""
    human: Literal["scripted", "keyboard", "gamepad", "none"] = "scripted"
    """Who that is: a script that takes over as a person would, or you at a device; see docs/howto/human-in-the-loop.md."""
    operator: OperatorConfig = PERSON
    """How the scripted one behaves; progress is 100 times the value."""
    ahead: int = 20
    """N, steps that an action's advantage looks ahead in a round; pre-training looks at the end of the episode."""
    positive_demos: float = 0.3
    """Share of the demonstrations' actions that are taken for good in pre-training."""
    positive: float = 0.4
    """Share of the practised actions that are taken for good in a round."""
    dropout: float = 0.3
    """How often the policy is not told the indicator."""
    temperature: float = 0.1
    """Of advantage-weighted regression, where --compare has awr: weights are exp(A / temperature)."""
    compare: tuple[Learner, ...] = ()
    """What else is learned from the last round's data and judged: recap's controls and the baselines."""
    marks: bool = False
    """Whether the last round's policy is judged without the indicator and with the negative one, too."""
    guidances: tuple[float, ...] = ()
    """Other betas that the last round's policy is judged with: guidance is a way of acting, it costs no other fit."""
    one_step: bool = False
    """Whether the product is distilled to one step, guidance absorbed."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    """That distillation."""
    eval_episodes: int = 100
    """Held-out episodes of every task after a stage."""
    film: bool = True
    """Whether the run ends with pages of the newest practice, values over its film."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", listed(self.task, self.tasks, COFFEE))
        object.__setattr__(self, "task", self.task or self.tasks[0])
        super().__post_init__()
        check(self, rounds="[1, 9]", rollouts="[1, 50000]", demos="[1, 12500]", corrected="[0, 1]", ahead="[1, 1e6]",  # starts of its own
              positive_demos="(0, 1)", positive="(0, 1)", dropout="[0, 1)", temperature="(0, 1e3]", guidances="[0, 20]")
        if self.demo_noise != Scene.demo_noise:
            raise OutOfBounds(RecapConfig, "demo_noise", "is of no use here, its demonstrators have noise of their own: leave it out")
        if self.policy.goals:
            raise OutOfBounds(RecapConfig, "policy.goals", "are taught by robocat alone: leave it out")
        if self.sight.kind not in ("state", "rgb"):
            raise OutOfBounds(RecapConfig, "sight", f"is {self.sight.kind!r}: a flow policy looks at pictures (rgb) or the state")
        if (self.policy.n_obs, self.policy.reference) != (1, "none"):
            raise OutOfBounds(RecapConfig, "policy", "has several states or a reference, which the value does not see: leave "
                                                     "--policy.n-obs and --policy.reference out")


# -- the method --------------------------------------------------------------------------------------------------------


def train(cfg: RecapConfig, cell: Cell) -> dict[str, Any]:
    """Algorithm 1: pre-training on all tasks; then every task's fine-tuning, rounds and product, in the run's folder `policy` and, of the
    tasks after the first, `policy-NAME`. Returns the summary with its `headline`. Continues an interrupted run."""
    torch.manual_seed(derive(cfg.seed, "weights"))
    with at_device(cfg, cell.spec):  # is it there? It is wanted after the fits
        pass
    cells = cells_of(cell, cfg.task, cfg.tasks)
    policy = make_policy(cfg.policy, cells, name="recap").to(device(cfg.device))  # first, for it refuses tasks of one text
    demos = {task: demonstrations(cfg, at) for task, at in cells.items()}
    for task, found in demos.items():
        if not any(e.succeeded for e in every(found)):
            raise RealrlError(f"{task}: none of its {len(every(found))} demonstrations ended in success, there is nothing to fine-tune on: "
                              + ("mark the successes (realrl data label)" if cfg.data else "ask for more with --demos"))
    lessons = Lessons(policy, {task: every(found) for task, found in demos.items()})
    for odd in policy.fit_senses(lessons.frames()):
        cell.tell("pre-training", odd)
    lessons.encode(sights := Sights())
    critic = pretrain(cfg, cells, policy, lessons, demos, sights)
    for task, at in cells.items():
        learn_task(cfg, at, task, policy, critic, demos[task])
    cell.summary["headline"] = headline(cfg, cells)
    return cell.summary


def pretrain(cfg: RecapConfig, cells: Mapping[str, Cell], policy: FlowPolicy, lessons: Lessons,
             demos: Mapping[str, Mapping[str, list[Episode]]], sights: Sights) -> Critic:
    """V_pre and pi_pre on all tasks: A looks at the end of the episode, the best 30 % of a task's demonstrated actions are good.
    demos: task -> manner -> episodes, in the order of the lessons."""
    cell = next(iter(cells.values()))
    critic = Critic(cfg.value, policy, {task: at.spec.horizon for task, at in cells.items()}, sights, seed=cfg.seed)
    with cell.timed("pre-training"):
        critic.fit(cell, "pre-training value", {task: every(found) for task, found in demos.items()})
        marks = []
        for task, found in demos.items():
            said = [critic.judge(task, e, None) for e in every(found)]
            least = threshold(column([a for _, a in said]), cfg.positive_demos)
            marks.append(column([np.where((a > least) | corrected(e), POSITIVE, NEGATIVE)
                                 for e, (_, a) in zip(every(found), said, strict=True)]))
        imitate(cell.run, FlowFit(policy, lessons, cfg.pretraining, seed=derive(cfg.seed, "pre-training"),
                                  mark=torch.from_numpy(column(marks)).long(), dropout=cfg.dropout), "pre-training")
    return critic


def learn_task(cfg: RecapConfig, cell: Cell, task: str, base: FlowPolicy, critic: Critic, demos: Mapping[str, list[Episode]]) -> None:
    """Fine-tuning of one task and its rounds. base, critic: the pre-trained ones, which every fit begins from."""
    name, everything = cell.spec.name, every(demos)
    good = [e for e in everything if e.succeeded]
    fit = partial(tune, cfg, cell, task, base, critic.sights)
    policy = fit("fine-tuned", good, np.full(sum(map(len, good)), POSITIVE))
    cell.finish_stage(f"fine-tuned {name}", policy, cfg.eval_episodes)
    cell.keep(policy, "fine-tuned")  # what practice begins with: to hold others against it
    for k in range(1, cfg.rounds + 1):
        practised = practise(cfg, cell, task, policy, critic, k)
        everything = everything + practised
        own = critic.for_task(cell, f"recap-{k} {name} value", task, everything)
        labels = label(cfg, own, task, everything, practised)
        policy = fit(f"recap-{k}", everything, labels.mark)
        cell.finish_stage(f"recap-{k} {name}", policy, cfg.eval_episodes)
        cell.tell(f"recap-{k} {name}", f"{name}, round {k}: {labels.told}")
        cell.run.rewind(f"practice {name}", k - 1)
        cell.run.log(k, labels.numbers, f"practice {name}")
    annotate(cell, everything, labels)
    for learner in cfg.compare:
        other = fit(learner, everything, *plan(cfg, learner, everything, labels))
        cell.finish_stage(f"{learner} {name}", other, cfg.eval_episodes)
    if cfg.marks:
        for word, mark in (("unmarked", NONE), ("negative", NEGATIVE)):
            cell.finish_stage(f"{word} {name}", policy.acting(mark), cfg.eval_episodes)
    for beta in cfg.guidances:
        cell.finish_stage(f"guided-{beta:g} {name}", policy.guided(beta), cfg.eval_episodes)
    cell.keep(policy)
    if cfg.one_step:
        stage, lessons = f"one-step {name}", Lessons(policy, {task: everything}).encode(critic.sights)
        distil(cell, policy, lessons, cfg.distill, derive(cfg.seed, "one-step", task), stage)
        cell.keep(policy)
        cell.finish_stage(stage, policy.with_head("one-step"), cfg.eval_episodes)


def tune(cfg: RecapConfig, cell: Cell, task: str, base: FlowPolicy, sights: Sights, stage: str, episodes: Sequence[Episode],
         mark: Array, weight: Array | None = None, among: Array | None = None) -> FlowPolicy:
    """A copy of the pre-trained policy, fitted to a task's episodes under their indicators [N], told the task and acting as if good."""
    policy = copy.deepcopy(base).requires_grad_(True)
    policy.name = stage
    lessons = Lessons(policy, {task: episodes}).encode(sights)
    name = f"{stage} {cell.spec.name}"
    with cell.timed(name):
        imitate(cell.run, FlowFit(policy, lessons, cfg.finetuning, seed=derive(cfg.seed, stage, task), mark=torch.from_numpy(mark).long(),
                                  dropout=cfg.dropout, weight=None if weight is None else torch.from_numpy(weight).float(),
                                  among=None if among is None else torch.from_numpy(among)), name)
    policy = policy.told(task).acting(POSITIVE)
    return policy.guided(1.0) if (mark == POSITIVE).all() else policy  # nothing bad to be guided from


# -- what was good -----------------------------------------------------------------------------------------------------


@dataclass
class Labels:
    """Of all steps of some episodes, one after the other: value, advantage [N], mark [N] the indicator; told, numbers: of the round."""

    value: Array
    advantage: Array
    mark: Array
    told: str
    numbers: dict[str, float] = field(default_factory=dict)


def corrected(episode: Episode) -> Array:
    """[T] where a person put right what somebody else did; of an episode that is all a person's, nowhere."""
    person: Array = episode.source == Source.HUMAN
    return person & ~person.all()


def label(cfg: RecapConfig, critic: Critic, task: str, episodes: Sequence[Episode], practised: Sequence[Episode]) -> Labels:
    """I = [A > eps], eps such that 40 % of the newest practice are good; what a person did in a policy's episode always is."""
    said = [critic.judge(task, e, cfg.ahead) for e in episodes]
    value, advantage = (column(list(part)) for part in zip(*said, strict=True))
    newest = {id(e) for e in practised}
    least = threshold(column([a for e, (_, a) in zip(episodes, said, strict=True) if id(e) in newest]), cfg.positive)
    mark = np.where(advantage > least, POSITIVE, NEGATIVE)
    helped = column([corrected(e) for e in episodes])
    mark[helped] = POSITIVE
    told = (f"threshold {least:.3f}, {100 * (mark == POSITIVE).mean():.0f} % of all steps good, {100 * helped.mean():.1f} % a person's, "
            f"{sum(e.succeeded for e in practised)} of {len(practised)} practised episodes succeeded")
    numbers = {"threshold": least, "positive_share": float((mark == POSITIVE).mean()), "person_share": float(helped.mean()),
               "practice_success": float(np.mean([e.succeeded for e in practised])), "advantage_spread": float(advantage.std())}
    return Labels(value, advantage, mark, told, numbers)


def plan(cfg: RecapConfig, learner: Learner, episodes: Sequence[Episode], labels: Labels) -> tuple[Array, Array | None, Array | None]:
    """(mark, weight, among) of what else may be learned from the same data.

    shuffled: indicators in any order, so that they say nothing; filtered: clones the successes; positive: clones what is good; awr:
    clones all of it, weighted by exp(A / temperature) (arXiv 1910.00177), weights at most 20.
    """
    good = np.full(len(labels.mark), POSITIVE)
    if learner == "shuffled":
        return np.random.default_rng(derive(cfg.seed, "shuffled")).permutation(labels.mark), None, None
    if learner == "filtered":
        return good, None, column([np.full(len(e), e.succeeded) for e in episodes]).nonzero()[0]
    if learner == "positive":
        return good, None, (labels.mark == POSITIVE).nonzero()[0]
    if learner == "awr":
        weight = np.exp(labels.advantage / cfg.temperature).clip(max=20.0)
        return good, weight / weight.mean(), None
    return labels.mark, None, None


def annotate(cell: Cell, episodes: Sequence[Episode], labels: Labels) -> None:
    """Value, advantage and indicator of all that was learned from, beside the recordings."""
    ends = np.cumsum([len(e) for e in episodes])
    place = {(e.policy, e.seed): slice(end - len(e), end) for e, end in zip(episodes, ends, strict=True)}

    def rows(of: Array, found: list[Episode]) -> list[Array]:
        return [of[place[e.policy, e.seed]] if (e.policy, e.seed) in place else np.full(len(e), np.nan) for e in found]

    labelled = {"value": labels.value, "advantage": labels.advantage, "indicator": (labels.mark == POSITIVE) * 1.0}
    for name, of in labelled.items():
        cell.annotate(f"{name}-{cell.spec.name}", sorted({e.policy for e in episodes}), partial(rows, of))


# -- experience --------------------------------------------------------------------------------------------------------


class Demonstrator:
    """A task's script in one of its `MANNERS`; the first three numbers of an action move the hand, as far as there are so many."""

    chunk = n_obs = 1

    def __init__(self, expert: Policy, manner: Manner, name: str) -> None:
        self.name, self._expert, self._manner = name, expert, manner

    def start(self, batch: int) -> State:
        """What the script remembers, and rest: steps of a pause that are left; off: how far off the hand is, NaN before the first step."""
        return {**self._expert.start(batch), "rest": torch.zeros(batch), "off": torch.full((batch, 3), float("nan"))}

    def act(self, obs: Obs, state: State, *, greedy: bool, rng: Sequence[np.random.Generator]) -> tuple[Plan, State]:
        """The script's action, in this manner."""
        m = self._manner
        plan, knows = self._expert.act(obs, {k: x for k, x in state.items() if k not in ("rest", "off")}, greedy=greedy, rng=rng)
        action, rest, off = plan.action[:, 0].copy(), state["rest"].clone(), state["off"].clone()
        moves = min(3, action.shape[-1])
        for i, g in enumerate(rng):
            if bool(off[i].isnan().any()):
                off[i] = torch.from_numpy(g.normal(0.0, m.drift, 3))
            if rest[i] <= 0 and g.uniform() < m.pause:
                rest[i] = float(g.integers(5, 16))
            action[i, :moves] = 0.0 if rest[i] > 0 else action[i, :moves].clip(-m.speed, m.speed) + off[i, :moves].numpy()
            rest[i] -= 1
            action[i] += g.normal(0.0, m.noise, action.shape[-1])
        return Plan(np.clip(action, -1.0, 1.0).astype(np.float32)[:, None]), {**knows, "rest": rest, "off": off}


def demonstrations(cfg: RecapConfig, cell: Cell) -> dict[str, list[Episode]]:
    """Manner -> its episodes, failures too; of a recorded set, what is worth imitating and what failed, under one name."""
    if cfg.data is not None or not cell.simulated:
        return {"recorded": cell.demonstrations(failures=True)}
    from realrl import envs
    expert = envs.expert(cell.spec.id, cfg.expert)
    return {name: cell.practise(f"demonstration {name}", Demonstrator(expert, manner, name), cell.seeds(0, cfg.demos, i * cfg.demos),
                                greedy=True, source=Source.SCRIPT) for i, (name, manner) in enumerate(MANNERS.items())}


def every(demos: Mapping[str, Sequence[Episode]]) -> list[Episode]:
    """The episodes of all manners."""
    return [e for of in demos.values() for e in of]


def practise(cfg: RecapConfig, cell: Cell, task: str, policy: FlowPolicy, critic: Critic, k: int) -> list[Episode]:
    """A round's episodes: alone, and some beside a person who takes over where the value falls or stands still."""
    noise, seeds = derive(cfg.seed, "practice", k) % 2**31, cell.seeds(k, cfg.rollouts)
    with person(cfg, cell, task, critic) as beside:
        helped = round(cfg.corrected * cfg.rollouts) if beside else 0
        alone = cell.practise(f"rollout-{k}", policy, seeds[helped:], noise_seed=noise)
        if not helped:
            return alone
        return [*alone, *cell.practise(f"corrected-{k}", policy, seeds[:helped], noise_seed=noise, human=beside)]


@contextmanager
def person(cfg: RecapConfig, cell: Cell, task: str, critic: Critic) -> Iterator[Intervention | None]:
    """Who may take over, while the body lasts; nobody where a script is wished for and none is. Raises RealrlError for no such device."""
    if cfg.human == "scripted" and (cell.simulated or cell.spec.twin):
        from realrl import envs
        script = envs.scripted(cell.spec) if cell.spec.twin else task
        yield ScriptedOperator(cfg.operator, envs.expert(script, cfg.expert), envs.progress(script), seed=derive(cfg.seed, "operator"),
                               gripper=cell.spec.gripper, watch=partial(critic.progress, task))
        return
    if cfg.corrected and cfg.human == "scripted":
        cell.tell("practice", f"nobody corrects {cell.spec.id}: it has no script, name who does with --human")
    with at_device(cfg, cell.spec) as device:
        yield device


@contextmanager
def at_device(cfg: RecapConfig, spec: TaskSpec) -> Iterator[Intervention | None]:
    """Whoever is at the device that --human names, nobody without one. Raises RealrlError where it is not there."""
    if cfg.human in ("scripted", "none") or not cfg.corrected:
        yield None
        return
    from realrl.robots.devices import DEVICES, Teleoperator
    with DEVICES[cfg.human]() as device:
        yield Teleoperator(device, spec.action_dim, spec.dt, commands=spec.gripper)


# -- what it came to ---------------------------------------------------------------------------------------------------


def throughput(stages: Sequence[Mapping[str, Any]], dts: Sequence[float], reset: float) -> float:
    """Successes an hour over several tasks' held-out episodes, failures' time counted, so many seconds a reset."""
    good = sum(round(s["success"]["rate"] * s["success"]["n"]) for s in stages)
    seconds = sum(float(s["steps"]) * dt + reset * s["success"]["n"] for s, dt in zip(stages, dts, strict=True))
    return float(3600 * good / seconds)


def headline(cfg: RecapConfig, cells: Mapping[str, Cell]) -> dict[str, Any]:
    """Against fine-tuning, pooled over the tasks: throughput with 0 and 5 s a reset, failures, success. A ratio to nothing is None."""
    found = {s["name"]: s for s in next(iter(cells.values())).summary["stages"]}
    names, dts = [at.spec.name for at in cells.values()], [at.spec.dt for at in cells.values()]

    def told(stage: str) -> dict[str, float]:
        of = [found[f"{stage} {name}"] for name in names]
        n = sum(s["success"]["n"] for s in of)
        return {"success": sum(s["success"]["rate"] * s["success"]["n"] for s in of) / n, "episodes": n,
                "per_hour": throughput(of, dts, 0.0), "per_hour_5s": throughput(of, dts, 5.0)}

    stages = ["fine-tuned", *(f"recap-{k}" for k in range(1, cfg.rounds + 1)), *cfg.compare]
    stages += ["unmarked", "negative"] * cfg.marks + [f"guided-{beta:g}" for beta in cfg.guidances] + ["one-step"] * cfg.one_step
    all_of = {stage: told(stage) for stage in stages}
    base, mine = all_of["fine-tuned"], all_of[f"recap-{cfg.rounds}"]

    def ratio(a: float, b: float) -> float | None:
        return a / b if b > 0 else None

    return {"throughput_ratio": ratio(mine["per_hour"], base["per_hour"]), "throughput_ratio_5s": ratio(mine["per_hour_5s"],
            base["per_hour_5s"]), "failure_ratio": ratio(1 - mine["success"], 1 - base["success"]), "success": mine["success"],
            "fine_tuned_success": base["success"], "stages": all_of}
