"""What a sceptic would try instead, on the same data, and DPPO's settings online.

The offline baselines see exactly what RL-100's first offline round saw: D_0, the successful demonstrations, and the rollouts of the
imitation policy that its run recorded. They share its network, normaliser, sampler and critics' configuration, and each gets the
same number of gradient steps as the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from realrl import envs
from realrl.algos import rl100
from realrl.algos.rl100 import RL100Config
from realrl.cell.cell import WorkCell
from realrl.cell.collect import MakeEnv
from realrl.data.store import Store
from realrl.data.views import ChunkView, continue_chunks
from realrl.files import derive
from realrl.learn.imitation import Imitation, ImitationConfig, cosine, generator
from realrl.learn.iql import Critics, fit_critics
from realrl.learn.ppo import PPOConfig
from realrl.nets.mlp import mlp
from realrl.nets.normalise import Normaliser
from realrl.policies.diffusion import DiffusionPolicy, PolicyConfig
from realrl.policies.folder import load_policy, save_policy
from realrl.run import Run, read_parts
from realrl.types import Episode, Obs, Plan, Policy, RealrlError, State

EXTRA = 2000
"""Gradient steps that every offline baseline gets on top of the imitation's."""
BETA, CEILING = 1.0, 20.0
"""Weights exp(beta A / std(A)), clipped here. With A's spread of 0.05-0.1 on these tasks, beta is 10-20 in IQL's own units."""


# -- the data and the policy of a finished run -------------------------------------------------------------------------


def labelled(store: Store, label: str) -> list[Episode]:
    """The episodes that a run recorded under a label, by seed."""
    rows = store.rows.select(["policy", "seed", "episode_index"]).filter(pc.field("policy") == label).to_pylist()
    return store.read([r["episode_index"] for r in sorted(rows, key=lambda r: r["seed"])])


def first_data(folder: Path, cfg: RL100Config, demos: Sequence[Episode] | None) -> tuple[list[Episode], list[Episode]]:
    """(D_0, rollouts of pi_0): what the run's first offline round learned from. demos: D_0 where the run did not record it."""
    store = Store.open(folder / "dataset")
    good = [e for e in labelled(store, "demonstration") if e.succeeded][:cfg.demos] if demos is None else list(demos)
    rollouts = labelled(store, "rollout-1") + labelled(store, "rollout-1-deployed")
    if not good or not rollouts:
        raise RealrlError(f"{folder}: its dataset holds {len(good)} successful demonstrations and {len(rollouts)} rollouts of round 1; "
                          "let its imitation and offline stages finish first")
    return good, rollouts


def imitation_policy(folder: Path, cfg: RL100Config) -> DiffusionPolicy:
    """pi_0 of a run: the policy it was given, or its checkpoint "imitation"."""
    if cfg.init:
        return load_policy(cfg.init)[0]
    spec = envs.make(cfg.task).task
    policy = DiffusionPolicy(cfg.policy, spec.obs_dim, spec.action_dim, name="imitation")
    _, parts = read_parts(folder / "checkpoints" / "imitation")
    policy.load_state_dict(parts["policy"])
    return policy.eval()


# -- offline -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Offline:
    """What the offline baselines of one run share."""

    cfg: RL100Config
    start: DiffusionPolicy
    demos: Sequence[Episode]
    rollouts: Sequence[Episode]

    @classmethod
    def of(cls, folder: Path, cfg: RL100Config, demos: Sequence[Episode] | None = None) -> Offline:
        """From a run whose first offline round is done."""
        return cls(cfg, imitation_policy(folder, cfg), *first_data(folder, cfg, demos))

    @property
    def steps(self) -> int:
        """Environment steps in the data."""
        return sum(len(e) for e in (*self.demos, *self.rollouts))

    def view(self, episodes: Sequence[Episode]) -> ChunkView:
        """Episodes as decisions of the run's chunk and discount."""
        return ChunkView(episodes, chunk=self.start.chunk, n_obs=self.start.n_obs, gamma=self.cfg.gamma)

    def fit(self, extra: int) -> ImitationConfig:
        """The imitation's settings with `extra` more steps under one cosine."""
        return replace(self.cfg.imitation, steps=self.cfg.imitation.steps + extra)


def more_bc(data: Offline, extra: int) -> Policy:
    """Imitation of the demonstrations alone, for longer."""
    return _clone(data, data.view(data.demos), extra, None, "more-bc")


def filtered_bc(data: Offline, extra: int) -> Policy:
    """Imitation of everything that succeeded."""
    good = [e for e in (*data.demos, *data.rollouts) if e.succeeded]
    return _clone(data, data.view(good), extra, None, "filtered-bc")


def weighted_bc(data: Offline, extra: int) -> Policy:
    """Imitation of everything, each chunk weighted by how much better than usual it is (AWR, arXiv 1910.00177)."""
    view = data.view([*data.demos, *data.rollouts])
    return _clone(data, view, extra, advantage_weights(data, view), "weighted-bc")


class Gaussian(nn.Module):
    """A diagonal Gaussian over chunks that nothing squashes, the policy class of plain IQL. See `types.Policy`."""

    def __init__(self, cfg: PolicyConfig, obs_dim: int, action_dim: int, *, name: str = "gaussian") -> None:
        super().__init__()
        self.cfg, self.obs_dim, self.action_dim, self.name = cfg, obs_dim, action_dim, name
        self.chunk, self.n_obs = cfg.chunk, cfg.n_obs
        self.normaliser = Normaliser(obs_dim)
        self.trunk = mlp(cfg.n_obs * obs_dim, cfg.chunk * action_dim, (cfg.hidden,) * cfg.blocks)
        self.log_std = nn.Parameter(torch.full((cfg.chunk, action_dim), -1.0))

    def encode(self, obs: dict[str, Tensor]) -> Tensor:
        """[B, H, D] -> [B, H*D]."""
        out: Tensor = self.normaliser(obs["state"]).flatten(1)
        return out

    def distribution(self, cond: Tensor) -> torch.distributions.Normal:
        """Action distribution [B, K, A]."""
        mean = self.trunk(cond).view(-1, self.chunk, self.action_dim).tanh()
        return torch.distributions.Normal(mean, self.log_std.clamp(-4.0, 1.0).exp().expand_as(mean))

    def start(self, batch: int) -> State:
        """No memory."""
        return {}

    @torch.inference_mode()
    def act(self, obs: Obs, state: State, *, greedy: bool, rng: Sequence[np.random.Generator]) -> tuple[Plan, State]:
        """The mean when greedy, a sample otherwise."""
        dist = self.distribution(self.encode({"state": torch.as_tensor(obs["state"], dtype=torch.float32)}))
        action = dist.mean
        if not greedy:
            noise = np.stack([g.standard_normal((self.chunk, self.action_dim), dtype=np.float32) for g in rng])
            action = action + dist.stddev * torch.from_numpy(noise)
        return Plan(action.clamp(-1.0, 1.0).numpy()), state


def iql_gaussian(data: Offline, extra: int) -> Policy:
    """IQL with its own policy class: the same weights on a Gaussian's log-likelihood (arXiv 2110.06169, eq. 7)."""
    view = data.view([*data.demos, *data.rollouts])
    weight, cfg = advantage_weights(data, view), data.fit(extra)
    torch.manual_seed(derive(data.cfg.seed, "iql-gaussian"))
    policy = Gaussian(data.cfg.policy, data.start.obs_dim, data.start.action_dim)
    policy.normaliser.load_state_dict(data.start.normaliser.state_dict())
    optimiser = torch.optim.AdamW(policy.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay)
    cond = policy.encode(view.batch().obs).detach()
    batch = view.batch()
    for step in range(cfg.steps):
        random = generator(data.cfg.seed, "iql-gaussian", step)
        i = torch.randint(len(view), (cfg.batch,), generator=random)
        likely = policy.distribution(cond[i]).log_prob(batch.action[i]).sum(-1)
        loss = -(likely * batch.valid[i] * weight[i, None]).sum() / batch.valid[i].sum()
        optimiser.param_groups[0]["lr"] = cfg.lr * cosine(step, cfg.steps, cfg.warmup)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimiser.step()
    return policy.eval().requires_grad_(False)


OFFLINE: dict[str, Callable[[Offline, int], Policy]] = {
    "more-bc": more_bc, "filtered-bc": filtered_bc, "weighted-bc": weighted_bc, "iql-gaussian": iql_gaussian}


def advantage_weights(data: Offline, view: ChunkView) -> Tensor:
    """exp(beta A / std(A)) of the recorded chunks, A = Q(s, a) - V(s), clipped, with mean 1: [N]. Critics as in the offline stage."""
    torch.manual_seed(derive(data.cfg.seed, "baseline-critics"))
    table = view.encoded(data.start.features)
    cond = table.cond
    critics = Critics(cond.shape[1], data.start.chunk, data.start.action_dim, data.cfg.critic)
    fit_critics(critics, table, seed=derive(data.cfg.seed, "offline", 0))
    batch, random = view.batch(), generator(data.cfg.seed, "baseline-tails")
    advantage = critics.advantage(cond, continue_chunks(batch.action, batch.valid, random))  # as the critics saw chunks that were cut
    weight = (BETA * advantage / (advantage.std() + 1e-8)).exp().clamp(max=CEILING)
    return weight / weight.mean()


def _clone(data: Offline, view: ChunkView, extra: int, weight: Tensor | None, name: str) -> Policy:
    """A diffusion policy fitted afresh, the run's normaliser kept, so that only data and weights differ between baselines."""
    torch.manual_seed(derive(data.cfg.seed, name))
    policy = DiffusionPolicy(data.cfg.policy, data.start.obs_dim, data.start.action_dim, name=name)
    policy.normaliser.load_state_dict(data.start.normaliser.state_dict())
    trainer = Imitation(policy, view, data.fit(extra), seed=derive(data.cfg.seed, name), weight=weight)
    while trainer.step < trainer.cfg.steps:
        trainer.update()
    trainer.finish()
    return policy.with_head("ddim", name)


# -- online ------------------------------------------------------------------------------------------------------------


def dppo_settings(cfg: RL100Config) -> RL100Config:
    """DPPO's (arXiv 2409.00588) settings in our online stage: a fixed rate, ten epochs over all pairs, a tight clip, no control of
    the KL short of its own emergency stop at 1, no practice of failed starts. The minimum sampling noise is in the policy, see
    `dppo_policy`. Not reproduced: its discount over denoising steps, its clip that tightens towards the noisy steps, and noise in
    the very last denoising step (our sampler's is deterministic)."""
    ppo = PPOConfig(lr=1e-4, clip=0.01, epochs=10, pairs=1.0, minibatch=cfg.online.ppo.minibatch, target_kl=1.0, max_kl=1.0)
    return replace(cfg, stages=("online",), online=replace(cfg.online, practice=0.0, lam=0.95, ppo=ppo))


def dppo_policy(start: DiffusionPolicy) -> DiffusionPolicy:
    """pi_0 with DPPO's sampler: noise of at least 0.1 in every stochastic step, and not clipped from above."""
    cfg = replace(start.cfg, diffusion=replace(start.cfg.diffusion, sigma_min=0.1, sigma_max=1.0))
    policy = DiffusionPolicy(cfg, start.obs_dim, start.action_dim, name="dppo")
    policy.load_state_dict(start.state_dict())
    return policy


def improve(cell: WorkCell, stage: Any, steps: int, *, fixed_rate: float | None = None) -> int:
    """Run rounds of an `rl100.Online` stage until `steps` environment steps are spent here; continues from its last checkpoint.

    fixed_rate: the actor's learning rate, set again after every round, for methods that do not adapt it. Returns the steps spent.
    """
    run, cfg = cell.run, stage.cfg
    done: dict[str, Any] = {}
    run.load("online", stage=stage, done=done)
    run.rewind("online", stage.iteration)
    spent = int(done.get("steps", 0))
    with cell.run.bar("online: environment steps", steps) as advance:
        advance(spent)
        while spent < steps:
            stats = stage.round(cell)
            run.log(stage.iteration, stats, "online")
            if fixed_rate is not None:
                stage.ppo.lr = fixed_rate
            used = int(stats["round_steps"])
            spent += used
            advance(used)
            if stage.iteration % cfg.online.save_every == 0 or spent >= steps:
                run.save("online", stage.iteration, stage=stage, done={"steps": spent})
    return spent


def dppo(folder: Path, source: Path, cfg: RL100Config, steps: int, make: MakeEnv | None = None) -> tuple[Policy, int, float]:
    """DPPO's settings from the imitation policy of the run in `source`: (policy, environment steps, seconds)."""
    policy = dppo_policy(imitation_policy(source, cfg))
    cfg = dppo_settings(cfg)
    torch.manual_seed(derive(cfg.seed, "dppo"))
    run = Run.start(folder, cfg, resume=True, ignore=("collect", "stages"))
    with run, WorkCell(run, cfg, make=make) as cell:
        stage = rl100.Online(policy, None, cfg, cell.curriculum(cfg.online.practice))
        spent = improve(cell, stage, steps, fixed_rate=cfg.online.ppo.lr)
        save_policy(policy, folder / "policy", task=cfg.task)
    return policy.with_head("ddim", "dppo"), spent, float(cell.summary["wall_s"])
