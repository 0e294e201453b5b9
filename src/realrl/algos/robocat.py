"""RoboCat (arXiv 2306.11706): a generalist that practises new tasks by itself, and whose next generation learns from that, too.

One policy for several robots and tasks is told what to do by an instruction, a goal, or both (section 2.1). The cycle (section 2.2):
demonstrations -> generalist; for every held-out task fine-tuning on a few demonstrations, practice by itself, a success classifier's
labels; all data together -> the next generalist, from scratch, which practises in the next round. A success may be shown any success of
its task as its goal, a failure its own end alone. Every episode's lineage is kept: which round, which policy, what was said of it. What the
paper leaves open, and what was chosen: docs/methods/robocat.md.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from realrl.config import OutOfBounds, check
from realrl.files import derive, write_text
from realrl.learn import classifier
from realrl.learn.classifier import ClassifierConfig
from realrl.learn.fit import ImitationConfig, imitate
from realrl.learn.flow import FlowFit, Lessons, Sights, cells_of, listed, make_policy
from realrl.learn.goals import GoalConfig, Goals
from realrl.learn.jury import Jury
from realrl.policies.flow import FlowPolicy, FlowPolicyConfig
from realrl.scene import Scene, device
from realrl.types import Cell, Episode

Origin = Literal["demonstration", "practice", "random"]
Judge = Literal["script", "recording", "person", "classifier", "simulator"]
Control = Literal["demonstrations", "simulator", "no-failures", "more-demonstrations", "random-goals", "scratch", "fine-tuned"]
TRAINING = ("metaworld/coffee-push-v3", "metaworld/coffee-button-v3", "metaworld/push-v3")
HELD_OUT = ("metaworld/coffee-pull-v3", "metaworld/box-close-v3")
FEW = 10
"""Labelled failures below which a classifier's share of false positives is hardly known, which is said."""
POLICY = FlowPolicyConfig(goals=True)
GENERALIST, FINE_TUNING = ImitationConfig(steps=3000, batch=64), ImitationConfig(steps=1000, batch=64, lr=5e-4, warmup=50)


@dataclass(frozen=True)
class RoboCatConfig(Scene):
    """A generalist, and its practice of tasks that it was not trained on."""

    task: str = ""
    """The first of the tasks; leave it to --tasks."""
    tasks: tuple[str, ...] = TRAINING
    """Environments that the first generalist learns, separated by spaces or commas, see `realrl tasks`."""
    held_out: tuple[str, ...] = HELD_OUT
    """Environments that it then practises, of the same robots."""
    unseen: tuple[str, ...] = ()
    """Environments of which no generalist sees anything: every generalist, and fresh weights, are fine-tuned to their few demonstrations,
    which says what the variety of the training is worth."""
    demos: int = 30
    """Demonstrations of every training task."""
    few: int = 5
    """Demonstrations of every other task."""
    policy: FlowPolicyConfig = POLICY
    """The policy; its flow.guidance leads towards the goal."""
    goals: GoalConfig = field(default_factory=GoalConfig)
    """What it is shown as goals."""
    generalist: ImitationConfig = GENERALIST
    """A generalist's fit, from scratch, to all that there is."""
    finetuning: ImitationConfig = FINE_TUNING
    """The first generalist's fit to one held-out task."""
    newcomer: float = 20.0
    """How much faster than all else a robot's own layers learn in fine-tuning where the generalist does not know it: they begin at random,
    and all else is learned."""
    rounds: int = 1
    """Rounds of practice, each followed by the next generalist."""
    practice: int = 200
    """Episodes of practice of every held-out task in a round."""
    pool: bool = False
    """Whether the held-out tasks, which then share a scene and undo one another, are practised in turn by one robot without resets."""
    labelled: int = 100
    """How many of them, the first, a person labels (in a simulator: it does); the success classifier is fitted to these."""
    labels: Literal["classifier", "simulator"] = "classifier"
    """Who says which of the other episodes succeeded."""
    classifier: ClassifierConfig = field(default_factory=lambda: ClassifierConfig(frames=1))
    """The success classifier, one a task. Where episodes end with success only one frame shows it, so that one has to do."""
    false: float = 0.02
    """Share of the practising policy's failures that may be taken for successes: the threshold keeps it on episodes that a classifier was
    not fitted to, see `learn.jury`."""
    failures: float = 0.25
    """Failures, with their own ends as goals, are taken up to this share of a task's data."""
    compare: tuple[Control, ...] = ()
    """What else is made and judged: the last generalist from demonstrations alone; from the simulator's labels; without failures; from as
    many demonstrations more as there were own successes; from as many episodes that were shown other tasks' goals; every held-out task's
    demonstrations alone, from scratch, beside the first generalist's fine-tuning; the last generalist fine-tuned to all that there is."""
    swapped: bool = False
    """Whether the last generalist is judged by its goals alone, by its text alone, and with another task's goals, too."""
    eval_episodes: int = 100
    """Held-out episodes of every held-out task after a stage; of the training tasks, a fifth."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", listed("", self.tasks, TRAINING))
        object.__setattr__(self, "task", self.task or self.tasks[0])
        object.__setattr__(self, "held_out", listed("", self.held_out, HELD_OUT))
        object.__setattr__(self, "unseen", listed("", self.unseen, ()))
        super().__post_init__()
        check(self, few="[1, 1e6]", rounds="[1, 8]", practice="[1, 50000]", labelled="[4, 1e6]", false="(0, 0.5]",
              failures="[0, 0.9]", newcomer="[1, 100]")
        every = (*self.tasks, *self.held_out, *self.unseen)
        if twice := [task for task in dict.fromkeys(every) if every.count(task) > 1]:
            raise OutOfBounds(RoboCatConfig, "held_out", f"or unseen has {twice[0]}, which is among the others, too: name it once")
        if self.pool and (wrong := [task for task in self.held_out if not task.startswith("ogbench/")]):
            raise OutOfBounds(RoboCatConfig, "pool", f"wants held-out tasks of ogbench's scene, which one task hands on to the next, and "
                                                     f"{wrong[0]} is none: leave it out")
        if self.classifier.false != ClassifierConfig().false:
            raise OutOfBounds(RoboCatConfig, "classifier", "has its share of false frames changed, by which nothing is decided here: say "
                                                           "--false, the share of episodes")
        if not self.policy.goals:
            raise OutOfBounds(RoboCatConfig, "policy", "has its goals turned off, and this is about them: leave --policy.no-goals out")


# -- what there is to learn from ---------------------------------------------------------------------------------------


@dataclass
class Record:
    """An episode and its lineage. made_by: the policy that acted; worthy: whether it counts as a success, as `said_by` says."""

    episode: Episode
    task: str
    origin: Origin
    round: int
    made_by: str
    worthy: bool
    said_by: Judge


Data = dict[str, list[Record]]
"""Task -> what there is of it, in the order in which it was made."""


def demonstrations(cfg: RoboCatConfig, cells: Mapping[str, Cell]) -> Data:
    """Of every training task its own; of the others a few."""
    return {task: shown(cfg, at, task, None if task in cfg.tasks else cfg.few) for task, at in cells.items()}


def shown(cfg: RoboCatConfig, cell: Cell, task: str, count: int | None) -> list[Record]:
    """So many demonstrations of a task, None for those that the run asks for; a recorded set may hold fewer."""
    return [Record(e, task, "demonstration", 0, e.policy, True, "script" if cfg.data is None else "recording")
            for e in cell.demonstrations(count=count)]


def chosen(cfg: RoboCatConfig, records: Sequence[Record]) -> list[Record]:
    """What a fit sees of a task: all successes, and the first failures up to their share of the steps. Long failures would otherwise
    outweigh everything. Where random goals were shown, all that came of it is what is to be compared."""
    good = [r for r in records if r.worthy or r.origin == "random"]
    room = cfg.failures / (1 - cfg.failures) * sum(len(r.episode) for r in good)
    some: list[Record] = []
    for record in (r for r in records if not (r.worthy or r.origin == "random")):
        room -= len(record.episode)
        if room < 0:
            break
        some.append(record)
    return good + some


# -- the method --------------------------------------------------------------------------------------------------------


def train(cfg: RoboCatConfig, cell: Cell) -> dict[str, Any]:
    """The cycle of figure 1. Leaves the last generalist in the run's folder `policy`, and told to do a held-out task in `policy-NAME`;
    returns the summary with its `headline`. Continues an interrupted run."""
    cells = cells_of(cell, cfg.task, (*cfg.tasks, *cfg.held_out, *cfg.unseen))
    data = demonstrations(cfg, cells)
    for task in cfg.held_out:
        classifier.keys_of([r.episode for r in data[task]], cfg.classifier)  # raises now, not after the practice
    start, sights = fresh(cfg, cells, data), Sights()
    unseen = {task: data.pop(task) for task in cfg.unseen}
    variety(cfg, cells, sights, "variety-0", start, unseen)
    generalist = generalise(cfg, cells, sights, "generalist-1", start, {task: data[task] for task in cfg.tasks})
    variety(cfg, cells, sights, "variety-1", generalist, unseen)
    policies = {task: specialise(cfg, cells[task], sights, "fine-tuned-1", task, generalist, data[task]) for task in cfg.held_out}
    for k in range(1, cfg.rounds + 1):
        for task, practised in practise(cfg, cells, policies, k).items():
            data[task] = data[task] + label(cfg, cells[task], data[task], practised, policies[task].name, k)
        lineage(cell, data | unseen)
        generalist = generalise(cfg, cells, sights, f"generalist-{k + 1}", start, data)
        variety(cfg, cells, sights, f"variety-{k + 1}", generalist, unseen)
        policies = {task: generalist.told(task) for task in cfg.held_out}
        for task, policy in policies.items():
            cells[task].finish_stage(f"{generalist.name} {cells[task].spec.name}", policy, cfg.eval_episodes)
    cell.keep(generalist.told(cfg.task))
    for task, policy in policies.items():
        cells[task].keep(policy)
    if cfg.swapped:
        for task in cfg.held_out:
            judge_means(cfg, cells[task], task, generalist)
    for control in cfg.compare:
        compare(cfg, cells, sights, control, start, generalist, data)
    cell.summary["headline"] = headline(cfg, cells)
    return cell.summary


def fresh(cfg: RoboCatConfig, cells: Mapping[str, Cell], data: Data) -> FlowPolicy:
    """A policy that has learned nothing yet, fitted to the senses of all demonstrations: every generalist's fit begins from it."""
    torch.manual_seed(derive(cfg.seed, "weights"))
    policy = make_policy(cfg.policy, cells, name="robocat").to(device(cfg.device))
    lessons = Lessons(policy, {task: [r.episode for r in of] for task, of in data.items()})
    for odd in policy.fit_senses(lessons.frames()):
        next(iter(cells.values())).tell("generalist", odd)
    return policy


def fitted(cfg: RoboCatConfig, cell: Cell, sights: Sights, stage: str, start: FlowPolicy, data: Data, fit: ImitationConfig,
           own: float = 1.0) -> FlowPolicy:
    """A copy of a policy, fitted to data; the ends of their successes become its goals. own: see `FlowFit`."""
    policy = copy.deepcopy(start).requires_grad_(True)
    policy.name = stage.partition(" ")[0]
    used = {task: chosen(cfg, of) for task, of in data.items()}
    with cell.timed(stage):
        lessons = Lessons(policy, {task: [r.episode for r in of] for task, of in used.items()}).encode(sights)
        goals = Goals(lessons, {task: np.array([r.worthy for r in of]) for task, of in used.items()}, cfg.goals)
        imitate(cell.run, FlowFit(policy, lessons, fit, seed=derive(cfg.seed, stage), goals=goals, own=own), stage)
    return policy.eval().requires_grad_(False)


def generalise(cfg: RoboCatConfig, cells: Mapping[str, Cell], sights: Sights, stage: str, start: FlowPolicy, data: Data) -> FlowPolicy:
    """The next generalist, from scratch on all that there is; judged on a part of the starts of the training tasks."""
    policy = fitted(cfg, next(iter(cells.values())), sights, stage, start, data, cfg.generalist)
    for task in cfg.tasks:
        cells[task].finish_stage(f"{stage} {cells[task].spec.name}", policy.told(task), max(1, cfg.eval_episodes // 5))
    return policy


def specialise(cfg: RoboCatConfig, cell: Cell, sights: Sights, stage: str, task: str, base: FlowPolicy, records: Sequence[Record], *,
               scratch: bool = False) -> FlowPolicy:
    """A generalist fine-tuned to one held-out task, judged there. scratch: base has learned nothing, and gets a generalist's steps, too."""
    name = f"{stage} {cell.spec.name}"
    fit = replace(cfg.generalist, steps=cfg.generalist.steps + cfg.finetuning.steps) if scratch else cfg.finetuning
    known = {base.tasks[t].body for t in learned(base)}  # robots
    own = 1.0 if scratch or base.tasks[task].body in known else cfg.newcomer
    policy = fitted(cfg, cell, sights, name, base, {task: list(records)}, fit, own).told(task)
    cell.finish_stage(name, policy, cfg.eval_episodes)
    return policy


def learned(policy: FlowPolicy) -> list[str]:
    """The tasks that a policy has learned anything of: it keeps goals of them."""
    assert policy.goals is not None
    return [task for task, count in zip(policy.tasks, policy.goals.count.tolist(), strict=True) if count]


def variety(cfg: RoboCatConfig, cells: Mapping[str, Cell], sights: Sights, stage: str, base: FlowPolicy, unseen: Data) -> None:
    """A generalist, or fresh weights, fine-tuned to the few demonstrations of tasks that it has seen nothing of."""
    for task, records in unseen.items():
        specialise(cfg, cells[task], sights, stage, task, base, records, scratch=stage == "variety-0")


def practise(cfg: RoboCatConfig, cells: Mapping[str, Cell], policies: Mapping[str, FlowPolicy], k: int) -> dict[str, list[Episode]]:
    """A round's episodes of every held-out task, by itself: each from its own starts, or in turn in one scene that nobody resets."""
    name, noise = f"practice-{k}", derive(cfg.seed, "practice", k) % 2**31
    if cfg.pool:
        seeds = cells[cfg.task].seeds(k, cfg.practice * len(policies))
        return cells[cfg.task].take_turns(f"{name}-pool", policies, seeds, noise_seed=noise)
    return {task: cells[task].practise(name, policy, cells[task].seeds(k, cfg.practice), noise_seed=noise)
            for task, policy in policies.items()}


# -- what succeeded ----------------------------------------------------------------------------------------------------


def label(cfg: RoboCatConfig, cell: Cell, known: Sequence[Record], practised: Sequence[Episode], made_by: str, k: int) -> list[Record]:
    """The practised episodes with what is said of them: the first ones by a person, the others by a classifier fitted to those."""
    many = len(practised) if cfg.labels == "simulator" else min(cfg.labelled, len(practised))
    heard, rest = practised[:many], practised[many:]
    task = known[0].task
    who: Judge = "simulator" if cfg.labels == "simulator" else "person"
    records = [Record(e, task, "practice", k, made_by, e.succeeded, who) for e in heard]
    stage = f"practice-{k} {cell.spec.name}"
    if not rest and cfg.labels == "classifier":
        cell.tell(f"{stage} labels", f"{cell.spec.name}, round {k}: a person labels all {many} episodes, and no classifier is asked: it is "
                                     "of what --practice has more than --labelled")
    if rest:
        jury = Jury(cfg.classifier, [r.episode for r in known if r.origin == "demonstration"], heard, false=cfg.false, seed=cfg.seed)
        verdicts = [jury.sees(e) for e in rest]
        records += [Record(e, task, "practice", k, made_by, v, "classifier") for e, v in zip(rest, verdicts, strict=True)]
        found = jury.audit(rest, verdicts)
        cell.summary.setdefault("classifier", {})[stage] = found
        cell.tell(f"{stage} labels", f"{cell.spec.name}, round {k}: the classifier took {found['taken']} of {len(rest)} episodes for "
                  f"successes, the simulator {found['true']}; {found['false']} of {found['failures']} failures were among them"
                  + (f"; its threshold rests on {jury.heard} failures alone, one in {jury.heard + 1} may pass: label more"
                     if jury.heard < FEW else ""))
    return records


# -- controls ----------------------------------------------------------------------------------------------------------


def judge_means(cfg: RoboCatConfig, cell: Cell, task: str, policy: FlowPolicy) -> None:
    """By its goals alone, by its text alone, and with the goals of another task of the same robot, which must fail."""
    name = cell.spec.name
    cell.finish_stage(f"goal-alone {name}", policy.told(task, means="goal"), cfg.eval_episodes)
    cell.finish_stage(f"text-alone {name}", policy.told(task, means="text"), cfg.eval_episodes)
    for other in others(policy, task)[:1]:
        cell.finish_stage(f"goal-swapped {name}", policy.told(task, goals_of=other, means="goal"), cfg.eval_episodes)


def others(policy: FlowPolicy, task: str) -> list[str]:
    """The other tasks of the same robot of which the policy keeps goals."""
    return [t for t in learned(policy) if t != task and policy.tasks[t].body == policy.tasks[task].body]


def compare(cfg: RoboCatConfig, cells: Mapping[str, Cell], sights: Sights, control: Control, start: FlowPolicy, generalist: FlowPolicy,
            data: Data) -> None:
    """The last generalist once more, from other data and as many gradient steps; or one policy a held-out task, fine-tuned or from
    scratch."""
    if control in ("scratch", "fine-tuned"):
        for task in cfg.held_out:
            if control == "scratch":  # what `fine-tuned-1` learns from, without what it practised afterwards
                few = [r for r in data[task] if r.origin == "demonstration"]
                specialise(cfg, cells[task], sights, control, task, start, few, scratch=True)
            else:
                specialise(cfg, cells[task], sights, f"fine-tuned-{cfg.rounds + 1}", task, generalist, data[task])
        return
    other: Data = {}
    for task, of in data.items():
        demos, own = ([r for r in of if r.origin == origin] for origin in ("demonstration", "practice"))
        if control == "simulator":
            own = [replace(r, worthy=r.episode.succeeded, said_by="simulator") for r in own]
        elif control == "no-failures":
            own = [r for r in own if r.worthy]
        elif control == "more-demonstrations" and own:
            own = shown(cfg, cells[task], task, len(demos) + sum(r.worthy for r in own))[len(demos):]
        elif control == "random-goals" and own:
            own = wandered(cfg, cells[task], task, generalist, sum(r.worthy for r in own))
        elif control == "demonstrations":
            own = []
        other[task] = demos + own
        if control in ("more-demonstrations", "random-goals") and task in cfg.held_out:
            told_of(cells[task], control, own, sum(r.worthy for r in of if r.origin == "practice"))
    policy = fitted(cfg, cells[cfg.task], sights, control, start, other, cfg.generalist)
    for task in cfg.held_out:
        cells[task].finish_stage(f"{control} {cells[task].spec.name}", policy.told(task), cfg.eval_episodes)


def told_of(cell: Cell, control: Control, added: Sequence[Record], wanted: int) -> None:
    """Say where a control is not what it is called."""
    name = cell.spec.name
    if not wanted:
        cell.tell(f"{control} {name}", f"{control}: no episode of {name}'s practice was taken for a success, so that nothing is added to "
                                       "its demonstrations")
    elif len(added) < wanted:
        cell.tell(f"{control} {name}", f"{control}: {len(added)} episodes are added to {name}'s demonstrations, in place of {wanted} own "
                                       "successes: there are no more")


def wandered(cfg: RoboCatConfig, cell: Cell, task: str, policy: FlowPolicy, count: int) -> list[Record]:
    """So many episodes that were shown the goals of other tasks of the same robot, in turn: each is right for where it led, and for nothing
    that is asked for. None where the robot has one task."""
    seeds, found = cell.seeds(9, count, 25_000), []
    there = others(policy, task)
    for i, other in enumerate(there):
        told = policy.told(task, goals_of=other, means="goal")
        found += cell.practise("random goals", told, seeds[i::len(there)], noise_seed=derive(cfg.seed, "random goals") % 2**31)
    return [Record(e, task, "random", cfg.rounds, policy.name, False, "script") for e in found]


# -- what it came to ---------------------------------------------------------------------------------------------------


def lineage(cell: Cell, data: Data) -> None:
    """Where every episode that the cycle may learn from came from: a line each in lineage.jsonl, and the sums in the summary."""
    records = [r for of in data.values() for r in of]
    write_text(cell.run.dir / "lineage.jsonl", "".join(json.dumps({
        "task": r.task, "origin": r.origin, "round": r.round, "policy": r.made_by, "seed": r.episode.seed, "steps": len(r.episode),
        "success": r.episode.succeeded, "taken_for_success": r.worthy, "said_by": r.said_by,
        "goals": ["hindsight", "others"] if r.worthy else ["hindsight"]}) + "\n" for r in records))
    groups: dict[tuple[str, int, Origin, str], list[Record]] = {}
    for r in records:
        groups.setdefault((r.task, r.round, r.origin, r.made_by), []).append(r)
    cell.summary["lineage"] = [
        {"task": task, "round": k, "origin": origin, "policy": policy, "episodes": len(of), "steps": sum(len(r.episode) for r in of),
         "successes": sum(r.episode.succeeded for r in of), "taken_for_success": sum(r.worthy for r in of)}
        for (task, k, origin, policy), of in groups.items()]


def headline(cfg: RoboCatConfig, cells: Mapping[str, Cell]) -> dict[str, Any]:
    """Success [%] on the held-out tasks, pooled: of the fine-tuned policies before practice, of the next generalist after it, of all other
    stages; what the classifier was worth."""
    summary = next(iter(cells.values())).summary
    held = {cells[task].spec.name for task in (*cfg.held_out, *cfg.unseen)}
    pooled: dict[str, list[int]] = {}
    for s in summary["stages"]:
        stage, _, name = s["name"].rpartition(" ")
        if name in held:
            good, n = pooled.setdefault(stage, [0, 0])
            pooled[stage] = [good + round(s["success"]["rate"] * s["success"]["n"]), n + s["success"]["n"]]
    stages = {stage: {"success_pct": 100 * good / n, "episodes": n} for stage, (good, n) in pooled.items()}
    audits = list(summary.get("classifier", {}).values())
    taken, false, failures = (sum(a[key] for a in audits) for key in ("taken", "false", "failures"))
    before, after = stages["fine-tuned-1"], stages[f"generalist-{cfg.rounds + 1}"]
    return {"before": before["success_pct"], "after": after["success_pct"], "episodes": after["episodes"],
            "stages": stages,
            "interventions_per_hour": _interventions(summary.get("pool", {}).values()),
            "classifier_precision": 1 - false / taken if taken else None,
            "classifier_false_positives": false / failures if failures else None}


def _interventions(pools: Collection[Mapping[str, float]]) -> float | None:
    """An hour, over all rounds; None where nothing ran in turn."""
    return sum(p["interventions"] for p in pools) / sum(p["hours"] for p in pools) if pools else None
