"""What being somewhere in a task is worth, seen through a policy's eyes and told its texts (pi*0.6, arXiv 2511.14759, section IV-A).

The value looks at what the policy looks at, without the indicator: the state as its network sees it, the tokens of its pictures, the task's
text. What a frozen network says of an episode's pictures is kept as long as the episode is.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from realrl.files import derive
from realrl.learn.fit import imitate
from realrl.learn.flow import Sights
from realrl.learn.value import Value, ValueConfig, ValueFit, advantages, column, returns
from realrl.nets.normalise import Normaliser
from realrl.nets.transformer import PICTURE
from realrl.policies.flow import FlowPolicy
from realrl.types import Array, Cell, Episode, Obs


class Critic:
    """V of observations under a task's text, and the advantage of what was done there. Letters: N frames, S numbers of the state, C
    cameras, I numbers of a text."""

    def __init__(self, cfg: ValueConfig, policy: FlowPolicy, limits: Mapping[str, int], sights: Sights, *, seed: int) -> None:
        """policy: whose eyes and texts, fitted; limits: task -> the steps that it may take; sights: what it has looked at."""
        self.cfg, self.policy, self.limits, self.sights, self.seed = cfg, policy, limits, sights, seed
        self._before: list[tuple[Episode, bool]] = []  # of the fits of these weights, and whether they were held out
        torch.manual_seed(derive(seed, "value weights"))
        seen = PICTURE[0] * PICTURE[1] * len(policy.eyes.slots)
        self.scale = Normaliser(seen).to(policy.device) if seen else None  # tokens of pictures are of any size
        states = max(body.obs_dim for body in policy.bodies)
        self.value = Value(cfg, states + seen + policy.instructions.axes.shape[1]).to(policy.device)

    @torch.no_grad()
    def see(self, task: str, found: Mapping[str, Tensor]) -> Tensor:
        """What the value looks at: what `FlowPolicy.look` returned, and the task's text -> [N, S + 1792 C + I]."""
        parts, said = [found["state"]], self.policy.instructions
        if self.scale is not None:
            parts.append(self.scale(self._tokens(found)))
        return torch.cat([*parts, said(said.vectors[said.rows(task)[0]]).expand(len(parts[0]), -1)], 1)

    def _tokens(self, found: Mapping[str, Tensor]) -> Tensor:
        """[N, 1792 C], of all cameras."""
        return torch.cat([found[key].float().flatten(1) for key in self.policy.eyes.slots], 1)

    def _looked(self, task: str, episode: Episode) -> dict[str, Tensor]:
        """What `FlowPolicy.look` makes of an episode's steps, before each."""
        return {key: x[:-1] for key, x in self.sights.of(self.policy, task, episode).items()}

    def fit(self, cell: Cell, stage: str, episodes: Mapping[str, Sequence[Episode]]) -> None:
        """Fit the value to what became of these episodes, task -> its own; what it knows of held-out ones is told."""
        flat = [(task, e) for task, of in episodes.items() for e in of]
        if self.scale is not None and not self.scale.mean.any():  # the first fit's pictures
            self.scale.fit(torch.cat([self._tokens(self._looked(task, e)) for task, e in flat]))
        x = torch.cat([self.see(task, self._looked(task, e)) for task, e in flat])
        target = torch.from_numpy(column([returns(e, self.limits[task]) for task, e in flat])).to(x.device)
        which = torch.repeat_interleave(torch.arange(len(flat)), torch.tensor([len(e) for _, e in flat]))
        known = {id(e): held for e, held in self._before}
        before = {i: known[id(e)] for i, (_, e) in enumerate(flat) if id(e) in known}
        fit = ValueFit(self.value, self.cfg, x, target, which, seed=derive(self.seed, stage), before=before)
        self._before = [(e, i in fit.chosen) for i, (_, e) in enumerate(flat)]
        imitate(cell.run, fit, stage, "reading what became of it")
        found = fit.quality()
        if len(episodes) > 1:
            found["entropy_swapped_text"] = self._swapped(fit, torch.tensor([list(episodes).index(task) for task, _ in flat])[which])
        cell.run.log(self.cfg.steps, {f"value_{k}": v for k, v in found.items()}, stage)
        cell.summary.setdefault("values", {})[stage] = found

    @torch.no_grad()
    def _swapped(self, fit: ValueFit, task: Tensor) -> float:
        """Does it read? Cross-entropy on held-out states of one task under the next one's text. task: [N] the number of each state's."""
        rows, size = fit.held, self.policy.instructions.axes.shape[1]
        texts = torch.stack([fit.x[(task == t).nonzero()[0, 0], -size:] for t in range(int(task.max()) + 1)]).roll(-1, 0)
        return float(fit.entropy(rows, torch.cat([fit.x[rows][:, :-size], texts[task[rows]]], 1)).mean())

    def for_task(self, cell: Cell, stage: str, task: str, episodes: Sequence[Episode]) -> Critic:
        """Another one, from this one's weights, fitted to all data of a task."""
        other = copy.copy(self)
        other.value = copy.deepcopy(self.value).requires_grad_(True)
        other.fit(cell, stage, {task: episodes})
        return other

    def judge(self, task: str, episode: Episode, ahead: int | None) -> tuple[Array, Array]:
        """(V, A), each [T]. ahead: see `advantages`."""
        v = self.value.value(self.see(task, self._looked(task, episode))).cpu().numpy()
        return v, advantages(v, returns(episode, self.limits[task]), self.limits[task], ahead)

    def progress(self, task: str, obs: Obs) -> float:
        """100 V of one observation of the policy's, each [...]: what a person watches."""
        keys = ("state", *self.policy.bodies[body := self.policy.tasks[task].body].senses)
        shown = {key: torch.as_tensor(obs[key][None], device=self.policy.device) for key in keys}
        return 100 * float(self.value.value(self.see(task, self.policy.look(shown | {"state": shown["state"].float()}, body))))
