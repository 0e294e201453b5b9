"""A small soft actor-critic (arXiv 1801.01290, 1812.05905), only to make medium-level locomotion data.

Plain: twin critics with LayerNorm, learned temperature, one update a step. It stops as soon as it is good enough.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from realrl.envs import RobotEnv
from realrl.nets.mlp import EnsembleMLP, mlp
from realrl.types import Obs, Plan, State

HIDDEN = (256, 256)


class Actor(nn.Module):
    """A tanh-squashed Gaussian over single actions; see `types.Policy`."""

    chunk = 1
    n_obs = 1

    def __init__(self, obs_dim: int, action_dim: int, name: str = "sac") -> None:
        super().__init__()
        self.name = name
        self.net = mlp(obs_dim, 2 * action_dim, HIDDEN, norm=False)

    def forward(self, state: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """(action [B, A], its log-probability [B]) from state [B, D] and standard normal noise [B, A]."""
        mean, log_std = self.net(state).chunk(2, -1)
        log_std = -5 + 3.5 * (log_std.tanh() + 1)  # -5..2
        raw = mean + log_std.exp() * noise
        log_squash = 2 * (math.log(2) - raw - nn.functional.softplus(-2 * raw))  # log(1 - tanh^2), stable
        return raw.tanh(), (-0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi) - log_squash).sum(-1)

    def start(self, batch: int) -> State:
        """No memory."""
        return {}

    @torch.inference_mode()
    def act(self, obs: Obs, state: State, *, greedy: bool, rng: Sequence[np.random.Generator]) -> tuple[Plan, State]:
        """The squashed mean when greedy, a sample otherwise."""
        x = torch.as_tensor(obs["state"][:, -1], dtype=torch.float32)
        size = self.net[-1].out_features // 2
        noise = np.zeros((len(x), size)) if greedy else np.stack([g.standard_normal(size) for g in rng])
        action, _ = self(x, torch.as_tensor(noise, dtype=torch.float32))
        return Plan(action[:, None].numpy()), state


class SAC:
    """Actor, critics, temperature and their replay memory."""

    def __init__(self, obs_dim: int, action_dim: int, *, capacity: int, seed: int, lr: float = 3e-4, gamma: float = 0.99) -> None:
        torch.manual_seed(seed)
        self.actor, self.gamma, self.target_entropy = Actor(obs_dim, action_dim), gamma, -float(action_dim)
        self.twin = EnsembleMLP(2, obs_dim + action_dim, 1, HIDDEN)
        self.target = copy.deepcopy(self.twin).requires_grad_(False)
        self.log_alpha = torch.zeros((), requires_grad=True)
        self.optimisers = {"actor": torch.optim.Adam(self.actor.parameters(), lr), "critic": torch.optim.Adam(self.twin.parameters(), lr),
                           "alpha": torch.optim.Adam([self.log_alpha], lr)}
        self.memory = torch.zeros(capacity, 2 * obs_dim + action_dim + 2)  # state, next state, action, reward, whether it goes on
        self.sizes = [obs_dim, obs_dim, action_dim, 1, 1]
        self.count = 0

    def remember(self, state: np.ndarray, after: np.ndarray, action: np.ndarray, reward: float, goes_on: bool) -> None:
        """Add a transition."""
        self.memory[self.count] = torch.from_numpy(np.concatenate([state, after, action, [reward, goes_on]]).astype(np.float32))
        self.count += 1

    def update(self, random: torch.Generator, batch: int = 256, rate: float = 0.005) -> None:
        """One step of critics, actor and temperature."""
        rows = self.memory[torch.randint(self.count, (batch,), generator=random)]
        state, after, action, reward, goes_on = rows.split(self.sizes, -1)
        noise = torch.randn(2, *action.shape, generator=random)
        alpha = self.log_alpha.detach().exp()
        with torch.no_grad():
            following, logp = self.actor(after, noise[0])
            value = self.target(torch.cat([after, following], -1))[..., 0].amin(0) - alpha * logp
            goal = reward[:, 0] + self.gamma * goes_on[:, 0] * value
        self._step("critic", (self.twin(torch.cat([state, action], -1))[..., 0] - goal).square().mean(-1).sum())
        fresh, logp = self.actor(state, noise[1])
        self._step("actor", (alpha * logp - self.twin(torch.cat([state, fresh], -1))[..., 0].amin(0)).mean())
        self._step("alpha", -(self.log_alpha * (logp.detach() + self.target_entropy)).mean())
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.twin.parameters(), strict=True):
                slow.lerp_(fast, rate)

    def _step(self, name: str, loss: Tensor) -> None:
        self.optimisers[name].zero_grad()
        loss.backward()
        self.optimisers[name].step()

    def state_dict(self) -> dict[str, Any]:
        """Everything, the memory included."""
        return {"actor": self.actor.state_dict(), "twin": self.twin.state_dict(), "target": self.target.state_dict(),
                "log_alpha": self.log_alpha.detach(), "memory": self.memory[:self.count], "count": self.count,
                **{f"optimiser_{k}": v.state_dict() for k, v in self.optimisers.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        for name in ("actor", "twin", "target"):
            getattr(self, name).load_state_dict(state[name])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state[f"optimiser_{name}"])
        self.log_alpha.data.copy_(state["log_alpha"])
        self.count = state["count"]
        self.memory[:self.count] = state["memory"]


def train(agent: SAC, env: RobotEnv, *, level: float, steps: int, seed: int, warmup: int, save: Callable[[], None],
          advance: Callable[[int], None]) -> float:
    """Train until the mean return of five training episodes in a row reaches `level`, or for `steps` steps in all.

    Returns that mean. `save` is called after every tenth episode; a resumed agent goes on with a fresh episode.
    """
    returns: list[float] = []
    episode = 0
    while agent.count < steps and not (len(returns) >= 5 and np.mean(returns[-5:]) >= level):
        state, total, ended = env.reset(seed=seed + agent.count)[0]["state"], 0.0, False
        while not ended and agent.count < steps:
            rng = np.random.default_rng([seed, agent.count])
            if agent.count < warmup:
                action = rng.uniform(-1, 1, env.task.action_dim).astype(np.float32)
            else:
                action = agent.actor.act({"state": state[None, None]}, {}, greedy=False, rng=[rng])[0].action[0, 0]
            obs, reward, terminated, truncated, _ = env.step(action)
            agent.remember(state, obs["state"], action, reward, not terminated)
            state, total, ended = obs["state"], total + reward, terminated or truncated
            if agent.count > warmup:
                agent.update(torch.Generator().manual_seed(seed + agent.count))
            advance(1)
        returns.append(total)
        episode += 1
        if episode % 10 == 0:
            save()
    return float(np.mean(returns[-5:])) if returns else 0.0
