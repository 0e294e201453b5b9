"""Fits of a flow policy: decisions of several tasks and robots as one table, the flow-matching loss over it, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from realrl.data.views import ChunkView
from realrl.files import derive
from realrl.generative.flow import draw_fixed, draw_time, flow_loss
from realrl.learn.fit import Averaged, ImitationConfig, cosine, generator, reseed
from realrl.nets.text import Reader, minilm
from realrl.nets.transformer import NONE
from realrl.policies.flow import FlowPolicy, FlowPolicyConfig, Told, body_of, recent
from realrl.policies.looking import pictured
from realrl.policies.student import owned
from realrl.types import Cell, Episode, RealrlError, TaskSpec

if TYPE_CHECKING:
    from realrl.generative.diffusion import DistillConfig
    from realrl.learn.flow_reference import FlowWitness
    from realrl.learn.goals import Goals


@dataclass
class Lesson:
    """Decisions for learning. state: [B, D] as the network sees it; pictures: each [B, 16, 112]; text: [B, E]; robot: [B];
    action: [B, K, A] as the network draws it, filled up with zeros; real: [B, A] bool, numbers that the robot has; valid: [B, K] bool."""

    state: Tensor
    pictures: dict[str, Tensor]
    text: Tensor
    robot: Tensor
    action: Tensor
    real: Tensor
    valid: Tensor


class Sights:
    """What a policy's frozen networks say of episodes: it never changes, so that each is looked at once, however many fits see it."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Episode, dict[str, Tensor]]] = {}

    def of(self, policy: FlowPolicy, task: str, episode: Episode) -> dict[str, Tensor]:
        """What `FlowPolicy.look` says of an episode's T + 1 frames. policy: the one of the first call, or a copy of it."""
        if id(episode) not in self._kept:
            keys = ("state", *policy.bodies[body := policy.tasks[task].body].senses)
            found = policy.look({key: torch.as_tensor(episode.obs[key], device=policy.device) for key in keys}, body)
            self._kept[id(episode)] = episode, found  # with the episode itself, or another one could get its number
        return self._kept[id(episode)][1]


class Lessons:
    """All decisions of several tasks' episodes, task by task.

    episodes: task -> its episodes; their order is kept. `views`, `task`, `row`: decision i belongs to the task of number task[i] and is
    decision row[i] of its view, one a task, of episode[i], counted through all tasks.
    """

    def __init__(self, policy: FlowPolicy, episodes: Mapping[str, Sequence[Episode]]) -> None:
        """Raises RealrlError for a task without episodes, and for episodes that are not of its robot."""
        self.policy, self.tasks, self._episodes = policy, list(episodes), episodes
        self.views: list[ChunkView] = []
        self.seen: list[dict[str, Tensor]] = []
        for task, of in episodes.items():
            body = policy.bodies[policy.tasks[task].body]
            for e in of:
                if (e.obs["state"].shape[-1], e.action.shape[-1]) != (body.obs_dim, body.action_dim):
                    raise RealrlError(f"{task}: an episode of {e.obs['state'].shape[-1]} observation and {e.action.shape[-1]} action "
                                      f"numbers, its robot has {body.obs_dim} and {body.action_dim}: name the task it was recorded on")
            bare = [replace(e, obs={"state": e.obs["state"]}) for e in of]  # pictures are not copied, but looked at
            self.views.append(ChunkView(bare, chunk=policy.cfg.plan, n_obs=policy.n_obs, gamma=1.0, device=policy.device))
        if not self.views:
            raise RealrlError("no task to learn: name some with --tasks")
        self.sizes = torch.tensor([len(view) for view in self.views])
        self.first = self.sizes.cumsum(0) - self.sizes
        self.task = torch.repeat_interleave(torch.arange(len(self.views)), self.sizes)
        self.row = torch.arange(len(self.task)) - self.first[self.task]
        many = torch.tensor([int(view.episode[-1]) + 1 for view in self.views])
        self.episode = torch.cat([view.episode.cpu() for view in self.views]) + (many.cumsum(0) - many)[self.task]

    def __len__(self) -> int:
        return len(self.task)

    def frames(self) -> dict[int, dict[str, Tensor]]:
        """Body -> all frames of its tasks, as they were recorded: for `FlowPolicy.fit_senses`."""
        of: dict[int, list[Episode]] = {}
        for task, some in self._episodes.items():
            of.setdefault(self.policy.tasks[task].body, []).extend(some)
        return {body: {key: torch.as_tensor(np.concatenate([e.obs[key] for e in some]), device=self.policy.device)
                       for key in some[0].obs} for body, some in of.items()}

    def encode(self, sights: Sights | None = None) -> Lessons:
        """Look at every frame, after the policy's normalisers are fitted. sights: where what it sees is kept, and may be already."""
        sights = sights or Sights()
        for task, of in self._episodes.items():
            found = [sights.of(self.policy, task, e) for e in of]
            self.seen.append({key: torch.cat([each[key] for each in found]) for key in found[0]})
        self._episodes = {}
        said = self.policy.instructions
        self.texts = said(said.vectors)
        self.text_rows = [torch.tensor(said.rows(task), device=self.policy.device) for task in self.tasks]
        return self

    def draw(self, size: int, random: torch.Generator, among: Tensor | None = None) -> Tensor:
        """Numbers [size] of decisions, every task as often. among: [n] numbers to choose from, by default all."""
        if among is not None:
            return among[torch.randint(len(among), (size,), generator=random)]
        task = torch.randint(len(self.views), (size,), generator=random)
        return self.first[task] + (torch.rand(size, generator=random) * self.sizes[task]).long()

    def batch(self, index: Tensor, random: torch.Generator | None = None) -> Lesson:
        """The decisions of these numbers [B], in another order: task by task. random: draws among a task's texts, else the first is
        said. `order` tells which decision a row is."""
        parts = [self._part(t, self.row[index[self.task[index] == t]], random) for t in range(len(self.views))]
        return _joined([part for part in parts if len(part.state)])

    def order(self, index: Tensor) -> Tensor:
        """The numbers [B] as `batch` lays them out."""
        return index[torch.argsort(self.task[index], stable=True)]

    def recorded(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(states [B, H, D], actions [B, K, A], which of them ran [B, K]) as recorded, of one robot's decisions in their order."""
        parts = []
        for t in dict.fromkeys(self.task[index].tolist()):
            view, rows = self.views[t], self.row[index[self.task[index] == t]].to(self.policy.device)
            parts.append((view.frames["state"][view.rows(rows)[0]], *view.chunks(rows)))
        state, action, valid = (torch.cat(column) for column in zip(*parts, strict=True))
        return state, action, valid

    def _part(self, t: int, rows: Tensor, random: torch.Generator | None) -> Lesson:
        policy, view, seen, said = self.policy, self.views[t], self.seen[t], self.text_rows[t]
        body, device = policy.tasks[self.tasks[t]].body, policy.device
        rows = rows.to(device)
        past = view.rows(rows)[0]
        now = past[:, -1]
        action, valid = view.chunks(rows)
        if (reference := policy.reference_of(body)) is not None:
            action = reference.encode(action, view.frames["state"][past])
        size = policy.actor.action_in.shape[1]
        which = torch.zeros(len(rows), dtype=torch.int64) if random is None else torch.randint(len(said), (len(rows),), generator=random)
        real = (torch.arange(size, device=device) < action.shape[-1]).expand(len(rows), -1)
        return Lesson(recent(seen["state"][past]), {key: seen[key][now] for key in policy.eyes.slots}, self.texts[said[which.to(device)]],
                      torch.full((len(rows),), body, device=device), nn.functional.pad(action, (0, size - action.shape[-1])), real, valid)

    @torch.no_grad()
    def conditions(self, size: int = 512, random: torch.Generator | None = None) -> Tensor:
        """The prefix [N, P W + 1] of every decision, and whose it is, for distillation. random: as for `batch`."""
        told = (self.batch(index, random) for index in torch.split(torch.arange(len(self)), size))
        return torch.cat([owned(self.policy.prefix(b.state, b.text, b.pictures, b.robot), b.robot) for b in told])


def _joined(parts: Sequence[Lesson]) -> Lesson:
    one = parts[0]
    if len(parts) == 1:
        return one
    names = ("state", "text", "robot", "action", "real", "valid")
    return Lesson(**{name: torch.cat([getattr(p, name) for p in parts]) for name in names},
                  pictures={key: torch.cat([p.pictures[key] for p in parts]) for key in one.pictures})


class FlowFit:
    """Flow matching on recorded chunks (`generative.flow.flow_loss`); the averaged weights become the policy's. See `learn.fit.Fit`.

    mark: [N] what the advantage indicator says of every decision, None for plain imitation; dropout: how often the network is not told;
    weight: [N]; among: [n] the decisions to learn from, all by default; goals: what is shown beside the instruction; own: how much faster
    than all else the robots' own layers learn. Prefix and expert learn together: the frozen networks under the prefix have no knowledge
    that the expert's gradients could spoil.
    """

    def __init__(self, policy: FlowPolicy, lessons: Lessons, cfg: ImitationConfig, *, seed: int, mark: Tensor | None = None,
                 dropout: float = 0.0, weight: Tensor | None = None, among: Tensor | None = None, goals: Goals | None = None,
                 own: float = 1.0) -> None:
        self.policy, self.lessons, self.cfg, self.seed, self.goals = policy, lessons, cfg, seed, goals
        self.mark, self.dropout, self.weight, self.among = mark, dropout, weight, among
        self.net = nn.ModuleDict({"prefix": policy.prefix, "actor": policy.actor}).requires_grad_(True).train()
        self.average = Averaged(self.net, cfg.ema)
        groups, self.rates = [list(self.net.parameters())], [1.0]
        if own != 1:
            robots = [*policy.prefix.own(), *policy.actor.own()]
            shared = [p for p in groups[0] if all(p is not q for q in robots)]
            groups, self.rates = [shared, robots], [1.0, own]
        self.optimiser = torch.optim.AdamW([{"params": group} for group in groups], lr=cfg.lr, betas=(0.9, 0.98),
                                           weight_decay=cfg.weight_decay, fused=True)
        self.step, self.steps = 0, cfg.steps
        self.kept_back: Tensor | None = None
        self.witness: FlowWitness | None = None
        if cfg.validation:
            from realrl.learn.flow_reference import FlowWitness, unseen_of
            fitted, self.kept_back = unseen_of(lessons, cfg.validation)
            self.among = fitted if among is None else among[torch.isin(among, fitted)]
            self.witness = FlowWitness(self, self.kept_back)

    def update(self) -> dict[str, Tensor]:
        """One gradient step; returns the loss."""
        random = generator(self.seed, "flow", self.step)
        reseed(derive(self.seed, "dropout", self.step), self.policy.device)
        index = self.lessons.draw(self.cfg.batch, random, self.among)
        lr = self.cfg.lr * cosine(self.step, self.cfg.steps, self.cfg.warmup)
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = lr * rate
        loss = self.loss(index, random)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimiser.step()
        self.average.update_parameters(self.net)
        self.step += 1
        if self.witness is not None and not self.witness.content(self.step, self.average.module):
            self.steps = self.step
        return {"loss": loss.detach()}

    def loss(self, index: Tensor, random: torch.Generator) -> Tensor:
        """The flow's loss [] on decisions of these numbers [B]."""
        policy, device = self.policy, self.policy.device
        batch, index = self.lessons.batch(index, random), self.lessons.order(index)
        noise = torch.randn(batch.action.shape, generator=random).to(device)
        t, free = draw_time(len(index), random).to(device)[:, None], batch.valid
        if policy.cfg.flow.delay:
            fixed = draw_fixed(len(index), policy.cfg.plan, policy.cfg.flow.delay, random).to(device)
            t, free = t.masked_fill(fixed, 0.0), free & ~fixed
        mark = torch.full((len(index),), NONE) if self.mark is None else self.mark[index]
        mark = mark.masked_fill(torch.rand(len(index), generator=random) < self.dropout, NONE).to(device)
        state = batch.state
        if policy.eyes.slots and policy.cfg.state_dropout:
            state = state * (torch.rand(len(state), 1, generator=random) >= policy.cfg.state_dropout).to(device)
        goal = None if self.goals is None else self.goals.draw(index, random)
        cond = policy.prefix(state, batch.text, batch.pictures, batch.robot, goal)
        memory = policy.actor.remember(cond)
        counts = batch.real[:, None] & free[..., None]
        weight = None if self.weight is None else self.weight[index].to(device)
        loss = flow_loss(lambda x, t: policy.actor(x, t, memory, batch.robot, mark, batch.valid), batch.action, noise, t, counts, weight)
        return loss if self.goals is None else loss + self.goals.foresight(cond, batch.robot, index)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The loss on episodes that the fit does not see, with the weights as they are."""
        if self.kept_back is None or self.witness is None:
            return {}
        return {"validation": float(self.loss(self.kept_back[::4], generator(self.seed, "validation"))), **self.witness.validate()}

    def finish(self) -> None:
        """Give the policy the averaged weights; with references, the best of them, see `FlowWitness`."""
        self.net.load_state_dict(self.average.module.state_dict())
        self.net.eval()
        if self.witness is not None:
            self.witness.finish(self.step)

    def state_dict(self) -> dict[str, Any]:
        """Weights, average, optimiser and step."""
        return {"net": self.net.state_dict(), "average": self.average.state_dict(), "optimiser": self.optimiser.state_dict(),
                "step": self.step, "steps": self.steps, "witness": self.witness.state_dict() if self.witness else {}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.steps = state["step"], state.get("steps", self.steps)
        if self.witness is not None and state.get("witness"):
            self.witness.load_state_dict(state["witness"])


def listed(task: str, tasks: Sequence[str], usual: Sequence[str]) -> tuple[str, ...]:
    """The tasks that a configuration names, each once: those of --tasks, also with commas between them, or the one of --task alone where
    --tasks was left as it is. Raises RealrlError where nothing is named and something is usual: nobody means other tasks than he says."""
    if task and task not in tasks and tuple(tasks) == tuple(usual):
        return (task,)
    named = tuple(dict.fromkeys(name for word in tasks for name in word.split(",") if name))
    if usual and not named:
        raise RealrlError(f"an empty list of tasks: name some, or leave its flag out, which means {' '.join(usual)}")
    return named


def cells_of(cell: Cell, task: str, tasks: Sequence[str]) -> dict[str, Cell]:
    """Task -> its cell. task: that of `cell`. Raises RealrlError where it is none of the tasks, and for what is not learned `together`."""
    if task not in tasks:
        raise RealrlError(f"--task {task} is none of the tasks {', '.join(tasks)}: leave it out, or name it among --tasks")
    cells = {name: cell.at(name) for name in tasks}
    together({name: at.spec for name, at in cells.items()})
    return cells


def together(specs: Mapping[str, TaskSpec], reader: Reader = "words") -> None:
    """Raises RealrlError where two tasks have one name but for their suite, by which a run calls its stages and products; for what is seen
    and is no picture; and where who shall read their texts is not installed."""
    if reader == "minilm":
        minilm()
    named: dict[str, str] = {}
    for task, spec in specs.items():
        if (other := named.setdefault(spec.name, task)) != task:
            raise RealrlError(f"{other} and {task} are both called {spec.name} in a run's stages and folders: leave one of them out")
        for key in spec.senses:
            pictured(key)


def make_policy(cfg: FlowPolicyConfig, cells: Mapping[str, Cell], *, name: str) -> FlowPolicy:
    """A policy for the tasks of these cells and their robots. A task's text and its paraphrases but the last are what it is told."""
    bodies = list(dict.fromkeys(body_of(at.spec) for at in cells.values()))
    tasks = {task: Told((at.spec.text or at.spec.id, *at.spec.paraphrases[:-1]), bodies.index(body_of(at.spec)))
             for task, at in cells.items()}
    return FlowPolicy(cfg, bodies, tasks, name=name)


def distil(cell: Cell, policy: FlowPolicy, lessons: Lessons, cfg: DistillConfig, seed: int, stage: str = "one-step") -> None:
    """Teach the policy's student its own chain, as it acts, at the decisions of the lessons."""
    cell.run.rewind(stage, 0)
    with cell.run.bar(f"{stage}: distilling", cfg.steps) as advance, cell.timed(stage):
        policy.distillation(cfg).finish(lessons.conditions(random=generator(seed, "texts")), seed, cell.run.logger(stage), advance)
    policy.distilled = True
