"""What a world model is held against, on the same robot and in the same turns: CrossQ and SAC of this house, and a DQN where it chooses.

Random actions come first, as they do for a dreamer: held for a while, for even noise never rolls a robot over. Then every control step
brings an update (`sac.utd` of them; `often` of the DQN's).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from realrl.cell.cell import WorkCell
from realrl.config import check
from realrl.files import derive
from realrl.learn.dreaming import Books, slim, slim_step
from realrl.learn.replay import Replay
from realrl.learn.sac import PRESETS, SAC, SACConfig
from realrl.nets.rssm import Encoder, RSSMConfig
from realrl.policies.gaussian import GaussianConfig, GaussianPolicy
from realrl.policies.recurrent import RecurrentConfig, RecurrentPolicy
from realrl.scene import Scene, device
from realrl.types import Batch, Obs, Plan, RealrlError, State

LABEL = "rival"
SMALL = RSSMConfig(deter=8, stoch=2, classes=2, hidden=8, units=8, depth=1)
"""Of what only wanders."""


@dataclass(frozen=True)
class RivalConfig(Scene):
    """A learner without a model."""

    learner: Literal["crossq", "sac", "dqn"] = "crossq"
    """Which one."""
    sac: SACConfig = PRESETS["crossq"]
    """CrossQ's or SAC's numbers."""
    policy: GaussianConfig = field(default_factory=lambda: GaussianConfig(norm="renorm"))
    """Their actor."""
    steps: int = 20_000
    """Control steps to learn for; the episode that is under way then is finished."""
    minutes: float = 1e9
    """Minutes by the clock after which it ends in any case, likewise."""
    prefill: int = 1000
    """Control steps of random actions at first."""
    hold: tuple[int, int] = (10, 30)
    """Steps that such an action is held; choices are drawn anew at every step."""
    gamma: float = 0.97
    """The DQN's discount of a control step."""
    n_step: int = 3
    """Steps that its targets look ahead."""
    batch: int = 64
    """Its rows an update."""
    often: int = 1
    """Its updates a control step."""
    units: int = 256
    """Width of its network."""
    lr: float = 3e-4
    """Its rate."""
    rate: float = 0.005
    """By which its target follows."""
    explore: float = 0.05
    """Share of random choices in the end; it falls evenly from all of them over the first tenth of `steps` after the prefill."""
    save_every: int = 2000
    """Control steps after which the next end of an episode brings a checkpoint."""
    log_every: int = 500
    """Control steps between two lines of the curves."""
    eval_episodes: int = 20
    """Held-out episodes at the end: so many without noise, so many with."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, steps="[1, 1e9]", minutes="(0, 1e9]", prefill="[1, 1e9]", gamma="(0, 1)", n_step="[1, 100]", batch="[1, 65536]",
              often="[1, 1000]", units="[1, 16384]", lr="(0, 1]", rate="(0, 1]", explore="[0, 1]", save_every="[1, 1e9]",
              log_every="[1, 1e9]")


class Chooser(nn.Module):
    """Choices by their values [B, A], of the state and, with eyes, pictures; see `types.Policy`. loose: share of even choices."""

    name, chunk, n_obs = "dqn", 1, 1

    def __init__(self, units: int, obs_dim: int, choices: int, senses: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.choices, self.senses, self.loose = choices, tuple(senses), 1.0
        self.eye = Encoder(RSSMConfig(units=units, layers=1), obs_dim, senses)
        self.values = nn.Sequential(nn.Linear(self.eye.size, units), nn.ReLU(), nn.Linear(units, choices))

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        """obs: each [B, 1, ...]."""
        found: Tensor = self.values(self.eye({key: obs[key][:, -1] for key in ("state", *self.senses)}))
        return found

    def start(self, batch: int) -> State:
        """It remembers nothing."""
        return {}

    @torch.no_grad()
    def act(self, obs: Obs, state: State, *, greedy: bool, rng: Sequence[np.random.Generator]) -> tuple[Plan, State]:
        """One choice each [B, 1, A], one-hot."""
        place = self.values[0].weight.device
        best = self({key: torch.as_tensor(obs[key]).to(place) for key in ("state", *self.senses)}).argmax(-1).cpu().numpy()
        draws = [(g.random(), int(g.integers(self.choices))) for g in rng]
        chosen = [other if not greedy and luck < self.loose else int(own) for own, (luck, other) in zip(best, draws, strict=True)]
        return Plan(np.eye(self.choices, dtype=np.float32)[chosen][:, None]), state


class DQN:
    """Double DQN over n steps (arXiv 1509.06461, 1710.02298), with a target that follows; see `types.Agent`."""

    def __init__(self, policy: Chooser, cfg: RivalConfig) -> None:
        self.policy, self.cfg, self.step = policy, cfg, 0
        self.target = copy.deepcopy(policy).requires_grad_(False)
        self.adam = torch.optim.Adam(policy.parameters(), lr=cfg.lr)

    def replay(self) -> Replay:
        """An empty one."""
        return Replay(gamma=self.cfg.gamma, n_step=self.cfg.n_step, device=self.policy.values[0].weight.device)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step."""
        with torch.no_grad():
            best = self.policy(batch.next_obs).argmax(-1, keepdim=True)
            goal = batch.reward + batch.discount * self.target(batch.next_obs).gather(1, best)[:, 0]
        value = (self.policy(batch.obs) * batch.action[:, 0]).sum(-1)
        loss = nn.functional.smooth_l1_loss(value, goal)
        self.adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.policy.parameters(), 10.0)
        self.adam.step()
        torch._foreach_lerp_(list(self.target.parameters()), list(self.policy.parameters()), self.cfg.rate)
        self.step += 1
        return {"loss": loss.detach(), "value": value.detach().mean()}

    def state_dict(self) -> dict[str, Any]:
        """All that goes on."""
        return {"policy": self.policy.state_dict(), "target": self.target.state_dict(), "adam": self.adam.state_dict(), "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.policy.load_state_dict(state["policy"])
        self.target.load_state_dict(state["target"])
        self.adam.load_state_dict(dict(state["adam"]))
        self.step = int(state["step"])


def train(cfg: RivalConfig, cell: WorkCell) -> dict[str, Any]:
    """Learn, evaluate without noise and with; returns the summary with its `headline`. Continues an interrupted run. Raises RealrlError
    for a learner that the task is not for."""
    torch.manual_seed(derive(cfg.seed, "weights"))
    spec, place = cell.spec, device(cfg.device)
    if (cfg.learner == "dqn") != spec.discrete or (spec.senses and not spec.discrete):
        raise RealrlError(f"{cfg.learner} is not for {spec.id}: dqn is for robots that choose, crossq and sac for others, from their state")
    agent: DQN | SAC
    if cfg.learner == "dqn":
        agent = DQN(Chooser(cfg.units, spec.obs_dim, spec.action_dim, spec.senses).to(place), cfg)
    else:
        agent = SAC(GaussianPolicy(cfg.policy, spec.obs_dim, spec.action_dim, name=LABEL).to(place), cfg.sac,
                    seed=derive(cfg.seed, "learner"))
    books = Books(1.0, cfg.batch if isinstance(agent, DQN) else cfg.sac.batch, cfg.prefill)
    with cell.timed(LABEL):
        learn(cfg, cell, agent, books)
    if isinstance(agent, DQN):
        agent.policy.loose = cfg.explore
    for name, quiet in ((LABEL, True), (f"{LABEL}-noisy", False)):
        cell.finish_stage(name, agent.policy, cfg.eval_episodes, greedy=quiet,
                          measure=lambda e: {"reward_per_step": float(e.reward.mean())})
    greedy, noisy = (round(stage["measured"]["reward_per_step"], 4) for stage in cell.summary["stages"][-2:])
    cell.summary["headline"] = {**books.headline(agent.step), "greedy_reward_per_step": greedy, "noisy_reward_per_step": noisy}
    return cell.summary


def learn(cfg: RivalConfig, cell: WorkCell, agent: DQN | SAC, books: Books) -> None:
    """Act once, update, until the robot has made its steps; checkpoints between episodes only."""
    spec, seen = cell.spec, ("state", *cell.spec.senses)
    wanders = RecurrentPolicy(RecurrentConfig(SMALL, cfg.hold), spec.obs_dim, spec.action_dim, discrete=spec.discrete, name=LABEL)
    wanders.wander.fill_(1.0)
    updates, a_batch, at_once = (cfg.often, cfg.batch, 1) if isinstance(agent, DQN) else (1, cfg.sac.batch, cfg.sac.utd)
    with cell.stream(LABEL, wanders, stage=1, noise_seed=derive(cfg.seed, LABEL) % 2**31) as stream:
        saved = cell.run.load(LABEL, agent=agent, stream=stream, books=books) or 0
        replay = agent.replay()
        for episode in stream.past():
            replay.extend([slim(episode, seen, spec.discrete)])
            books.see(episode.reward)
        books.mark(agent.step)
        cell.run.rewind(LABEL, stream.steps)
        with cell.run.bar(f"{cfg.learner}: control steps", cfg.steps, stream.steps) as advance:
            while (stream.steps < cfg.steps and books.seconds < 60 * cfg.minutes) or not stream.between:
                if stream.between and stream.steps >= cfg.prefill:  # who has begun an episode ends it
                    stream.publish(agent.policy)
                if isinstance(agent, DQN):
                    agent.policy.loose = loose(cfg, stream.steps)
                moments = stream.take()
                replay.put(slim_step(m, seen, spec.discrete) for m in moments)
                books.see([m.step.reward for m in moments])
                for _ in range(updates if stream.steps > cfg.prefill else 0):
                    random = torch.Generator(replay.device).manual_seed(derive(cfg.seed, "replay", agent.step))
                    books.told.append(agent.update(replay.sample(a_batch, random, at_once)))
                advance(len(moments))
                books.tick(agent.step)
                if stream.steps // cfg.log_every > books.line // cfg.log_every:
                    cell.run.log(stream.steps, books.lines(agent.step), LABEL)
                if stream.between and stream.steps - saved >= cfg.save_every:
                    cell.run.save(LABEL, saved := stream.steps, agent=agent, stream=stream, books=books)
        cell.run.save(LABEL, stream.steps, agent=agent, stream=stream, books=books)


def loose(cfg: RivalConfig, steps: int) -> float:
    """Share of a DQN's choices that are random after so many steps."""
    return max(cfg.explore, 1.0 - (1.0 - cfg.explore) * (steps - cfg.prefill) / max(0.1 * cfg.steps, 1.0))
