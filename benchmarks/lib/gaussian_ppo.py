"""PPO with a Gaussian policy (arXiv 1707.06347), only to make medium-level locomotion data.

Whole episodes come from the toolkit's collector, so a round costs little more than its environment steps: a million of Hopper's take a
few minutes of one core. It stops as soon as it is good enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from realrl.cell.collect import Collector
from realrl.data.views import ChunkView
from realrl.files import derive
from realrl.losses import clipped_surrogate, gae
from realrl.nets.mlp import mlp
from realrl.nets.normalise import Normaliser
from realrl.types import Episode, Obs, Plan, State

HIDDEN = (64, 64)
SCALE = 100.0  # of V: rewards of a few units a step at gamma 0.99 make values of hundreds
ROUND = 8000  # environment steps between two fits
EPOCHS, MINIBATCH, CLIP, LAMBDA, GAMMA, RATE = 10, 250, 0.2, 0.95, 0.99, 3e-4


class Actor(nn.Module):
    """A Gaussian over single actions with one spread for all states; see `types.Policy`. What it drew is kept in `extra["raw"]`."""

    chunk = 1
    n_obs = 1

    def __init__(self, obs_dim: int, action_dim: int, name: str = "ppo") -> None:
        super().__init__()
        self.name = name
        self.normaliser = Normaliser(obs_dim)
        self.net = mlp(obs_dim, action_dim, HIDDEN, norm=False)
        self.net[-1].weight.data.mul_(0.01)  # begin in the middle of the actions
        self.log_std = nn.Parameter(torch.full((action_dim,), -0.5))

    def forward(self, state: Tensor) -> Tensor:
        """The mean action [B, A] at states [B, D]."""
        mean: Tensor = self.net(self.normaliser(state))
        return mean

    def logp(self, state: Tensor, raw: Tensor) -> Tensor:
        """Log-probability [B] of what was drawn [B, A]."""
        z = (raw - self(state)) / self.log_std.exp()
        return (-0.5 * z**2 - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def start(self, batch: int) -> State:
        """No memory."""
        return {}

    @torch.inference_mode()
    def act(self, obs: Obs, state: State, *, greedy: bool, rng: Sequence[np.random.Generator]) -> tuple[Plan, State]:
        """The mean when greedy, a sample otherwise."""
        mean = self(torch.as_tensor(obs["state"][:, -1], dtype=torch.float32))
        noise = np.zeros(mean.shape) if greedy else np.stack([g.standard_normal(mean.shape[1]) for g in rng])
        raw = mean + self.log_std.exp() * torch.as_tensor(noise, dtype=torch.float32)
        return Plan(raw.clamp(-1.0, 1.0)[:, None].numpy(), {"raw": raw.numpy()}), state


class Scaled(nn.Sequential):
    """A value network whose output is multiplied by SCALE: [B, C] -> [B, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)
        return SCALE * y


class PPO:
    """Actor, V and their optimiser."""

    def __init__(self, obs_dim: int, action_dim: int, *, seed: int) -> None:
        torch.manual_seed(seed)
        self.actor, self.value = Actor(obs_dim, action_dim), Scaled(mlp(obs_dim, 1, HIDDEN, norm=False))
        self.optimiser = torch.optim.Adam([*self.actor.parameters(), *self.value.parameters()], RATE)
        self.count, self.round = 0, 0  # environment steps, rounds
        self.returns: list[float] = []  # mean return of a round's episodes

    def learn(self, episodes: Sequence[Episode], random: torch.Generator) -> None:
        """One fit to a round's episodes."""
        if self.round < 10:  # the states change most at first; later a moving normaliser would shake the ratio
            self.actor.normaliser.fit(torch.from_numpy(np.concatenate([e.obs["state"] for e in episodes])))
        view = ChunkView(episodes, chunk=1, n_obs=1, gamma=GAMMA, every="plan")
        batch = view.batch()
        state, after = batch.obs["state"][:, 0], batch.next_obs["state"][:, 0]
        raw = torch.from_numpy(np.concatenate([e.extra["raw"] for e in episodes]))
        with torch.no_grad():
            before = self.actor.logp(state, raw)
            advantage, target = gae(view.reward, view.discount, self.judge(state), self.judge(after), view.last, LAMBDA)
            advantage = (advantage - advantage.mean()) / advantage.std()
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(state), generator=random).split(MINIBATCH):
                ratio = (self.actor.logp(state[rows], raw[rows]) - before[rows]).exp()
                error = (self.judge(state[rows]) - target[rows]) / SCALE
                loss = error.square().mean() - clipped_surrogate(ratio, advantage[rows], CLIP).mean()
                self.optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_([*self.actor.parameters(), *self.value.parameters()], 0.5)
                self.optimiser.step()

    def judge(self, state: Tensor) -> Tensor:
        """V [B] at states [B, D]."""
        value: Tensor = self.value(self.actor.normaliser(state))[:, 0]
        return value

    def state_dict(self) -> dict[str, Any]:
        """Everything."""
        return {"actor": self.actor.state_dict(), "value": self.value.state_dict(), "optimiser": self.optimiser.state_dict(),
                "count": self.count, "round": self.round, "returns": self.returns}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        for name in ("actor", "value", "optimiser"):
            getattr(self, name).load_state_dict(state[name])
        self.count, self.round, self.returns = state["count"], state["round"], list(state["returns"])


def train(agent: PPO, collector: Collector, *, level: float, steps: int, seed: int, save: Callable[[], None],
          advance: Callable[[int], None]) -> float:
    """Train until the mean return of three rounds in a row reaches `level`, or for `steps` steps in all. Returns that mean.

    `save` is called after every tenth round, from which a resumed agent goes on to the same numbers.
    """
    length = 1000.0 / 40  # of an episode, at first
    while agent.count < steps and not (len(agent.returns) >= 3 and np.mean(agent.returns[-3:]) >= level):
        first = derive(seed, "starts", agent.round) % 2**30
        episodes: list[Episode] = []
        while sum(map(len, episodes)) < min(ROUND, steps - agent.count):
            missing = ROUND - sum(map(len, episodes))
            seeds = range(first + len(episodes), first + len(episodes) + max(math.ceil(missing / length), 1))
            found = list(collector.collect(agent.actor, seeds, greedy=False, noise_seed=first))
            episodes += sorted(found, key=lambda e: e.seed or 0)
            length = float(np.mean([len(e) for e in episodes]))
        agent.learn(episodes, torch.Generator().manual_seed(derive(seed, "fit", agent.round)))
        used = sum(map(len, episodes))
        agent.count, agent.round = agent.count + used, agent.round + 1
        agent.returns.append(float(np.mean([e.reward.sum() for e in episodes])))
        advance(used)
        if agent.round % 10 == 0:
            save()
    return float(np.mean(agent.returns[-3:])) if agent.returns else 0.0
