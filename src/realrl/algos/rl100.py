"""RL-100 (arXiv 2510.14830): demonstrations -> diffusion imitation -> iterated offline RL -> online RL -> a one-step policy.

Read top to bottom: configuration, offline stage (IQL critics, gate), online stage (GAE), and `train`. Both learn by `learn.ppo`; what a
stage made goes on unless its trials are worse (`learn.trials`). docs/methods/rl100.md maps equations to lines and tells departures."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from realrl.config import check
from realrl.data.views import ChunkView
from realrl.files import derive
from realrl.generative.diffusion import DiffusionConfig, DistillConfig, start_from_teacher
from realrl.learn.imitation import Imitation, ImitationConfig, generator, imitate, prepare, reimitate, worthy
from realrl.learn.iql import CriticConfig, Critics, calibration, fit_critics, fit_whitener, value_net
from realrl.learn.ope import Gate, OPEConfig, TransitionModel
from realrl.learn.ppo import DenoisingPPO, PPOConfig, fit_value
from realrl.learn.trials import Trials, TrialsConfig, left_to_gain
from realrl.losses import explained_variance, gae, monte_carlo
from realrl.policies.diffusion import DiffusionPolicy, Head, PolicyConfig, wide
from realrl.scene import Scene, device
from realrl.types import Cell, Curriculum, Episode, RealrlError

Stage = Literal["imitation", "offline", "online", "one-step"]


# -- configuration ----------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class OfflineConfig:
    """The offline stage: rounds of rollouts, critics, a gated improvement, and re-imitation."""

    rounds: int = 2
    """M."""
    rollouts: int = 220
    """Episodes that each round begins with, exploring but for the trials of what it starts from."""
    iterations: int = 20
    """Inner PPO iterations per round, each on fresh samples of the behaviour policy at recorded states."""
    states: int = 1024
    """Recorded states per inner iteration."""
    gate_every: int = 5
    """Inner iterations between two comparisons by off-policy evaluation."""
    patience: int = 2
    """Refused candidates in a row after which a round ends."""
    measure: Literal["amq", "returns", "success"] = "returns"
    """What the gate compares: AM-Q as in the paper, the discounted return in the model, or its success probability."""
    max_drift: float = 0.15
    """Root-mean-square change of the action, from the same noise, at which a round ends: past it the critics are extrapolated."""
    reimitation: int = 1000
    """Gradient steps of pi <- IL(D) on the successes so far, before a round improves it; 0 = go on from the improved weights."""
    reimitate_encoder: bool = True
    """Whether that trains the encoder, too (policies with eyes); False = it stays as the demonstrations made it, which is far quicker."""
    ppo: PPOConfig = field(default_factory=lambda: PPOConfig(lr=3e-5, epochs=2, pairs=1.0, target_kl=0.005))
    """The objective's settings."""
    def __post_init__(self) -> None:
        check(self, rounds="[0, 100]", rollouts="[1, 1e5]", iterations="[1, 1e6]", states="[1, 1e6]", gate_every="[1, 1e6]",
              patience="[1, 1e6]", max_drift="(0, 1e3]", reimitation="[0, 1e9]")


@dataclass(frozen=True)
class OnlineConfig:
    """The online stage: PPO with GAE on whole episodes."""

    iterations: int = 40
    """Rounds of collection and update, at most: a solved task ends them, see `trials.enough`."""
    episodes: int = 100
    """Episodes per round."""
    practice: float = 0.2
    """Share of the episodes that repeat starts which failed before; at 98 % success a fresh start teaches almost nothing."""
    warmup: int = 2
    """Rounds that fit V only, before the policy moves."""
    cool: float = 0.3
    """Share of the sampling noise that is left in the end. It falls evenly, in rounds in which four fifths of the fresh and half of the
    practised starts succeed (half of all rounds suffice): what fails needs it. What is deployed is the chain without: they become one."""
    lam: float = 0.95
    """GAE's lambda for the advantages; where the dynamics are deterministic, a small one says nearly the same with far less noise."""
    value_lam: float = 0.95
    """lambda of the returns that V learns."""
    value_lr: float = 1e-3
    """V's learning rate."""
    value_epochs: int = 5
    """Passes of V over a round's decisions (three times as many while warming up)."""
    learn_encoder: bool = True
    """Whether the encoder learns (policies with eyes), with its regularisers, as in section 3; False = it stays frozen."""
    save_every: int = 5
    """Rounds between checkpoints."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """The objective's settings."""
    def __post_init__(self) -> None:
        check(self, iterations="[0, 1e6]", episodes="[1, 1e5]", practice="[0, 1]", warmup="[0, 1e6]", cool="(0, 1]",  # 0: no likelihood
              lam="[0, 1]", value_lam="[0, 1]", value_lr="(0, 1]", value_epochs="[1, 1e6]", save_every="[1, 1e6]")


@dataclass(frozen=True)
class RL100Config(Scene):
    """RL-100 on one task."""

    task: str = "metaworld/peg-insert-side-v3"
    """Environment, see `realrl tasks`."""
    stages: tuple[Stage, ...] = ("imitation", "offline", "online", "one-step")
    """Which stages to run, in the paper's order."""
    init: str | None = None
    """Folder of a policy to start from instead of imitation; its own settings then replace `policy`."""
    gamma: float = 0.99
    """Discount per control step."""
    policy: PolicyConfig = field(default_factory=lambda: PolicyConfig(diffusion=DiffusionConfig(sigma_max=0.8)))
    """The diffusion policy."""
    imitation: ImitationConfig = field(default_factory=lambda: ImitationConfig(steps=1000))
    """Imitation of the demonstrations."""
    wide: float = 3.0
    """How many times as many gradient steps imitation takes of plans that are wide for their network, see `policies.diffusion.wide`."""
    critic: CriticConfig = field(default_factory=CriticConfig)
    """IQL."""
    ope: OPEConfig = field(default_factory=OPEConfig)
    """Transition model and gate."""
    offline: OfflineConfig = field(default_factory=OfflineConfig)
    """Offline rounds."""
    online: OnlineConfig = field(default_factory=OnlineConfig)
    """Online RL."""
    distill: DistillConfig = field(default_factory=lambda: DistillConfig(steps=1000))
    """One-step student."""
    trials: TrialsConfig = field(default_factory=TrialsConfig)
    """Real trials of every product."""
    final_episodes: int = 500
    """Held-out episodes for the online and the one-step policy; eval_episodes are those of the stages before."""
    audit_episodes: int = 50
    """Held-out episodes, after all training, for every checkpoint that the gate judged: does the estimate rank them rightly? 0 = skip."""
    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, gamma="(0, 1]", wide="[1, 1000]", final_episodes="[1, 1000000]", audit_episodes="[0, 1000000]")


# -- sections 4 and 5: the offline stage ------------------------------------------------------------------------------------

class OfflineRound:
    """One round of improvement from recorded data alone; it touches no environment.

    The behaviour policy draws fresh chains at recorded states, the critics score them, the objective improves the policy. Every
    `gate_every` iterations off-policy evaluation compares the candidate with the last accepted policy, from the same starts with
    the same noise; one that does not pass is undone, weights and optimiser, and the next starts with half the step size.

    started: the noise network as it was before re-imitation, which is then the first candidate to pass the gate; a round whose candidates
    are all refused gives back what it started from. None where the encoder has moved since: it cannot be tried any more. tried, won: real
    trials of what the round starts from, and how they ended. fitting: told of each step of critics and model."""

    def __init__(self, policy: DiffusionPolicy, view: ChunkView, cfg: RL100Config, *, seed: int, log: Any,
                 started: dict[str, Tensor] | None = None, tried: ChunkView | None = None, won: Sequence[bool] = (),
                 fitting: Callable[[int], None] = lambda n: None) -> None:
        self.policy, self.cfg, self.seed, self.log = policy, cfg, seed, log
        table = view.encoded(policy.features, policy.drawn)  # the encoder is frozen offline, and shared by policy, critics and model
        self.cond = table.cond
        torch.manual_seed(derive(seed, "weights"))  # the same critics whatever this process did before, or a resumed run would differ
        self.critics = Critics(self.cond.shape[1], policy.chunk, policy.action_dim, cfg.critic, eyes=policy.encoder is not None)
        self.critics.to(policy.device)
        fit_critics(self.critics, table, seed=seed, log=log, advance=fitting)
        self.model = TransitionModel(self.cond.shape[1], policy.chunk, policy.action_dim, cfg.ope, seed=seed).to(policy.device)
        quality = self.model.fit(table, log, fitting)
        log(0, {**calibration(self.critics, self.cond, table.returns), **{f"model_{k}": v for k, v in quality.items()}})
        self.gate = Gate(policy, self.model, self.critics.q, table, cfg.offline.measure, seed=seed, log=log, tried=tried)
        self.ppo, self.student = DenoisingPPO(policy, cfg.offline.ppo), policy.distillation(cfg.distill)
        self.started, self.won, self.left = started, won, left_to_gain(won, cfg.trials.rest)

    def improve(self, advance: Any) -> list[dict[str, Tensor]]:
        """Run the round; the policy ends as the last accepted candidate, or as the better of what began it and re-imitation's product. The
        noise networks that are returned deserve a trial, too: re-imitation's, where another took its place."""
        offline, random = self.cfg.offline, generator(self.seed, "offline", device=self.policy.device)
        product, score = self.gate.begin(self.started, self.won)
        first, base, refused = self.gate.net(), self.ppo.keep(), 0  # re-imitation's: refused candidates are undone to it, as in the paper
        origin = self._probe()
        for iteration in range(1, offline.iterations + 1):
            cond = self.cond[torch.randint(len(self.cond), (offline.states,), generator=random, device=self.cond.device)]
            chain = self.policy.explore(cond, random)
            advantage = self.critics.advantage(cond, chain[:, -1].clamp(-1.0, 1.0))
            stats = self.ppo.fit(cond, chain, advantage, random, left=self.left)
            drift = float((self._probe() - origin).square().mean().sqrt())
            self.log(iteration, {"advantage_mean": float(advantage.mean()), "advantage_std": float(advantage.std(correction=0)),
                                 "drift": drift, "student_gap": self.student.follow(self.cond, random), **stats})
            advance(1)
            if iteration % offline.gate_every == 0 or iteration == offline.iterations or drift > offline.max_drift:
                candidate = self.gate.score()
                if self.gate.judge(iteration, candidate, score):
                    product, base, score, refused = self.gate.net(), self.ppo.keep(), candidate, 0
                else:
                    self.ppo.revert(base)
                    refused += 1
                if drift > offline.max_drift or refused >= offline.patience:
                    break
        self.policy.net.load_state_dict(product)
        return [first] if any(not torch.equal(value, first[name]) for name, value in product.items()) else []

    def _probe(self) -> Tensor:
        """What the policy does at 1000 fixed recorded states with fixed noise, exploring [1000, K, A]: its distance is the drift."""
        random = generator(self.seed, "probe", device=self.cond.device)
        cond = self.cond[torch.randint(len(self.cond), (1000,), generator=random, device=self.cond.device)]
        return self.policy.explore(cond, random)[:, -1]


# -- section 4: the online stage --------------------------------------------------------------------------------------------

class Online:
    """Rounds of whole episodes, GAE on a V warm-started from the offline critic, and the shared objective. trials: with those of what it
    starts from; the best weights by their own trials are kept, see `_judge`. None = no trials."""

    PARTS, PLAIN = ("policy", "value", "value_optimiser", "ppo", "student"), ("iteration", "solved", "best", "fresh")

    def __init__(self, policy: DiffusionPolicy, value: nn.Module | None, cfg: RL100Config, curriculum: Curriculum,
                 trials: Trials | None = None) -> None:
        self.policy, self.cfg, self.curriculum, self.trials = policy, cfg, curriculum, trials
        self.iteration, self.solved, self.fresh = 0, False, list[bool]()  # fresh: how exploring ended since the last trials
        torch.manual_seed(derive(cfg.seed, "online"))
        self.value = value or value_net(policy.cond_dim, cfg.critic, eyes=policy.encoder is not None).to(policy.device)
        self.value_optimiser = torch.optim.AdamW(self.value.parameters(), lr=cfg.online.value_lr, fused=True)
        self.eyes = policy.encoder is not None and cfg.online.learn_encoder
        self.ppo, self.student = DenoisingPPO(policy, cfg.online.ppo, encoder=self.eyes, value=self.value), policy.distillation(cfg.distill)
        self.best = self.ppo.keep()
        self.policy.diffusion.heat.fill_(1.0)

    @property
    def over(self) -> bool:
        """Whether all rounds are done, or the task is solved."""
        return self.solved or self.iteration == self.cfg.online.iterations

    def starts(self, cell: Cell) -> tuple[list[int], list[int]]:
        """(fresh starts, starts to practise because they failed before) of this round."""
        count, again = self.cfg.online.episodes, self.curriculum.again(self.cfg.online.episodes, self.iteration)
        return cell.seeds(5, count - len(again), self.iteration * count), again

    def cooled(self, fresh: Sequence[bool], again: Sequence[bool]) -> float:
        """What is left of the sampling noise for the next round: less, where enough of a round's fresh and practised starts succeeded."""
        cool, heat = self.cfg.online.cool, float(self.policy.diffusion.heat)
        worth = sum(fresh) >= 0.8 * len(fresh) and sum(again) >= 0.5 * len(again)
        return max(cool, heat - worth * 2 * (1 - cool) / self.cfg.online.iterations)

    def round(self, cell: Cell) -> dict[str, float]:
        """Collect, learn, and return what one needs to see."""
        fresh, again = self.starts(cell)
        episodes = cell.practise(f"online-{self.iteration}", self.policy.with_head("ddim"), fresh + again,
                                 noise_seed=derive(self.cfg.seed, "online", self.iteration) % 2**31, plans_only=True, chains=True)
        self.curriculum.remember(episodes)
        won = [e.succeeded for e in episodes]
        stats = {"success_rate": float(np.mean(won[: len(fresh)])), "practice_rate": float(np.mean(won[len(fresh):])) if again else None,
                 "failed_starts": len(self.curriculum.failed), "episode_steps": float(np.mean([len(e) for e in episodes])),
                 "episode_return": float(np.mean([e.reward.sum() for e in episodes])), "env_steps": cell.summary["env_steps"],
                 "round_steps": sum(map(len, episodes)), "heat": float(self.policy.diffusion.heat)}
        self.fresh += won[: len(fresh)]
        stats |= self._learn(episodes, left_to_gain(won[: len(fresh)], self.cfg.trials.rest) if self.trials else 1.0)
        won *= any(won) or not stats["episode_return"]  # where reward is paid and nothing ever succeeds, only the return counts
        self.policy.diffusion.heat.fill_(self.cooled(won[: len(fresh)], won[len(fresh):]))
        self.iteration += 1
        if self.trials and (self.cfg.online.iterations - self.iteration) % self.cfg.trials.every == 0:
            self._judge(self.trials, f"online round {self.iteration}")
        return stats

    def _judge(self, trials: Trials, name: str) -> None:
        """Try what would be deployed. The best weights are these, unless they solve fewer starts; learning returns to the best where
        these are surely worse, and with its last round where a runoff says so. It ends early where hardly anything fails any more."""
        cfg, fresh, self.fresh = trials.cfg, self.fresh, []
        tried = trials.run(self.policy, label := f"online-{self.iteration - 1}-deployed", self.cfg.online.episodes)
        won = [e.succeeded for e in tried]
        trials.gap(fresh, won)
        self.solved = trials.solved(name, fresh + won, self.cfg.online.iterations - self.iteration)
        said = trials.challenge(name, tried, cfg.back)
        if not said.worse(cfg.back) or (self.over and trials.runoff(name, self.policy, self.best["actor"], label, won)):
            self.best = self.ppo.keep()
        elif self.over or said.worse(cfg.sure):
            self.ppo.revert(self.best)
        else:
            trials.lines[name] = f"{name} goes on, though it is not the best: {said}"
        trials.tell()

    def _learn(self, episodes: Sequence[Episode], left: float = 1.0) -> dict[str, float]:
        cfg, policy = self.cfg, self.policy
        random = generator(cfg.seed, "online-update", self.iteration, device=policy.device)
        view = ChunkView(episodes, chunk=policy.chunk, n_obs=policy.n_obs, gamma=cfg.gamma, every="plan", device=policy.device)
        table = view.encoded(policy.features)
        fit_whitener(self.value, cond := table.cond)
        with torch.no_grad():
            value, next_value = self.value(cond)[:, 0], self.value(table.next_cond)[:, 0]
        seen = view.reward, view.discount, value, next_value, view.last
        (advantage, _), (_, target) = gae(*seen, cfg.online.lam), gae(*seen, cfg.online.value_lam)
        returns = monte_carlo(view.reward, view.discount, next_value, view.last)
        stats = {"advantage_mean": float(advantage.mean()), "advantage_std": float(advantage.std(correction=0)),
                 "value_explained": explained_variance(value, returns), "value_mean": float(value.mean())}
        warming = self.iteration < cfg.online.warmup
        if not warming:
            chain = torch.from_numpy(np.concatenate([e.extra["chain"] for e in episodes])).to(policy.device)
            again = (lambda rows: policy.regularise(view.batch(rows).obs, random)) if self.eyes else None
            stats |= self.ppo.fit(cond, chain, advantage, random, again, left=left)
            if again:  # the latents have moved
                cond = view.encoded(policy.features).cond
        stats["loss_v"] = fit_value(self.value, self.value_optimiser, cond, target, cfg.online.value_epochs * (3 if warming else 1), random)
        stats["student_gap"] = self.student.follow(cond, random)
        return stats

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to continue to the same numbers."""
        parts = {name: getattr(self, name).state_dict() for name in self.PARTS}
        return {**parts, "failed": self.curriculum.failed, **{name: getattr(self, name) for name in self.PLAIN}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        for name in self.PARTS:
            getattr(self, name).load_state_dict(state[name])
        for name in self.PLAIN:
            setattr(self, name, copy.deepcopy(state[name]))  # what is loaded is also what others hold
        self.curriculum.failed = list(state["failed"])


# -- section 6: the algorithm -----------------------------------------------------------------------------------------------

def train(cfg: RL100Config, cell: Cell) -> dict[str, Any]:
    """Run the stages in the paper's order and return the summary, which also lies in the run's summary.json.

    A run that was killed continues: recorded episodes are read back, finished stages are loaded whether asked for or not, an unfinished
    stage goes on from its last checkpoint to the same numbers. Raises RealrlError for a stage without its input."""
    torch.manual_seed(derive(cfg.seed, "weights"))
    policy, demos = _start(cfg, cell)
    value, trials = None, Trials(cell, cfg.trials, cfg.seed)
    for m in range(cfg.offline.rounds):
        if "offline" in cfg.stages or cell.run.read(f"offline-{m + 1}"):
            value = _offline(cfg, cell, policy, m, demos, value, trials)
    stage = _online(cfg, cell, policy, value, trials) if "online" in cfg.stages or cell.run.read("online") else None
    if "one-step" in cfg.stages or cell.run.read("one-step"):
        _one_step(cfg, cell, policy, demos, stage.iteration if stage else 0, trials)
    if stage and stage.over:  # after the last trials: a column belongs to the episodes that there are
        from realrl.learn.traces import value_traces
        cell.annotate("value", f"online-{stage.iteration - 1}", lambda found: value_traces(found, stage.value, policy, cfg.gamma))
    cell.keep(policy)
    if "offline" in cfg.stages:
        cell.audit(policy, cfg.offline.rounds, cfg.audit_episodes)
    return cell.summary


def _start(cfg: RL100Config, cell: Cell) -> tuple[DiffusionPolicy, list[Episode]]:
    """(pi_0 <- IL(D_0) or a given policy, D_0)."""
    place, spec = device(cfg.device), cell.spec
    if not cfg.init and "imitation" not in cfg.stages and cell.run.read("imitation") is None:
        raise RealrlError("no policy to start from: add imitation to --stages or name one with --init FOLDER")
    policy = DiffusionPolicy(cfg.policy, spec.obs_dim, spec.action_dim, senses=spec.senses, name="rl100").to(place).eval()
    demos = cell.demonstrations() if cfg.data or not cfg.init else []
    if cfg.init:
        from realrl.policies.folder import check_fit, load_diffusion
        policy, task = load_diffusion(cfg.init, place)
        check_fit(policy, spec, cfg.init, task)
        policy.head = "ddim"
        return policy, demos
    view = ChunkView(demos, chunk=policy.chunk, n_obs=policy.n_obs, gamma=cfg.gamma, device=place)
    prepare(policy, view, cell.robot)
    if cell.run.load("imitation", policy=policy) is None:
        fit = replace(cfg.imitation, steps=round(cfg.imitation.steps * (cfg.wide if wide(policy.cfg, spec.action_dim) else 1)))
        with cell.timed("imitation"):
            imitate(cell.run, Imitation(policy, view, fit, seed=derive(cfg.seed, "imitation")), "imitation")
            start_from_teacher(policy.student, policy.net)
        cell.run.save("imitation", 1, policy=policy)
    cell.judge_demonstrator(cfg.eval_episodes)
    cell.finish_stage("imitation", policy.with_head("ddim"), cfg.eval_episodes)
    return policy, demos


def _offline(cfg: RL100Config, cell: Cell, policy: DiffusionPolicy, m: int, demos: Sequence[Episode], value: nn.Module | None,
             trials: Trials) -> nn.Module | None:
    """Round m: rollouts of pi_m join the data, pi_m <- IL(D_m) on the successes, critics and model are fitted, the policy improves, its
    product is tried, and the better one goes on.

    Returns V. The paper re-imitates at a round's end; at its beginning the first round profits, too, and a round ends as it was judged."""
    name, offline = f"offline-{m + 1}", cfg.offline
    torch.manual_seed(derive(cfg.seed, name))
    fitted = value_net(policy.cond_dim, cfg.critic, eyes=policy.encoder is not None).to(policy.device)
    if cell.run.load(name, policy=policy, value=fitted, trials=trials) is None:
        with cell.timed(name):
            data, tried = trials.rollouts(policy, demos, m, offline.rollouts)
            began = {k: v.clone() for k, v in policy.state_dict().items()}
            decisions = partial(ChunkView, chunk=policy.chunk, n_obs=policy.n_obs, gamma=cfg.gamma, device=policy.device)
            started, good = None, worthy(data) if offline.reimitation else []
            if good:
                again, seed = replace(cfg.imitation, steps=offline.reimitation), derive(cfg.seed, "imitation", m + 1)
                started = reimitate(cell.run, policy, decisions(good), again, f"{name}-imitation", seed, offline.reimitate_encoder)
            moved = bool(good) and started is None  # the encoder: the new V knows other latents, the model cannot try the old policy
            cell.run.rewind(name, -1)
            horizon = cfg.ope.horizon or math.ceil((cfg.horizon or cell.spec.horizon) / policy.chunk)
            sized = replace(cfg, ope=replace(cfg.ope, horizon=horizon))
            with cell.run.bar(f"{name}: critics and model", cfg.critic.steps + cfg.ope.steps) as advance:
                stage = OfflineRound(policy, decisions(data), sized, seed=derive(cfg.seed, "offline", m), fitting=advance, won=trials.won,
                                     started=started, tried=decisions(tried) if tried and not moved else None, log=cell.run.logger(name))
            with cell.run.bar(f"{name}: improving", offline.iterations) as advance:
                others = stage.improve(advance)
            back = trials.settle(policy, began, others, m, offline.rollouts)
            fitted.load_state_dict(((value or fitted) if back and moved else stage.critics.value).state_dict())  # untaught, if need be
        cell.run.save(f"{name}-candidates", 1, judged=stage.gate.kept())
        cell.run.save(name, 1, policy=policy, value=fitted, trials=trials)
    trials.tell()
    cell.finish_stage(name, policy.with_head("ddim"), cfg.eval_episodes)
    return fitted


def _online(cfg: RL100Config, cell: Cell, policy: DiffusionPolicy, value: nn.Module | None, trials: Trials) -> Online:
    stage = Online(policy, value, cfg, cell.curriculum(cfg.online.practice), trials)
    begun = cell.run.load("online", stage=stage, trials=trials)
    if "online" in cfg.stages and not stage.over:
        if begun is None:
            trials.stand(policy, "online-start", cfg.online.episodes)
        cell.run.rewind("online", stage.iteration)
        with cell.run.bar("online: rounds", cfg.online.iterations, stage.iteration) as advance, cell.timed("online"):
            while not stage.over:
                stats = stage.round(cell)
                cell.run.log(stage.iteration, stats, "online")
                advance(1)
                if stage.iteration % cfg.online.save_every == 0 or stage.over:
                    cell.run.save("online", stage.iteration, stage=stage, trials=trials)
    trials.tell()
    if stage.over:
        cell.finish_stage("online", policy.with_head("ddim"), cfg.final_episodes)
    return stage


def _one_step(cfg: RL100Config, cell: Cell, policy: DiffusionPolicy, demos: Sequence[Episode], rounds: int, trials: Trials) -> None:
    """Distil the policy over the states that it and its recent predecessors visited; again if it has learned since. The student is the
    product unless its own trials are surely worse than its teacher's."""
    product, known, fit = dict[str, Head](), cell.run.read("one-step"), cell.run.read("one-step-fit")
    if known is None or known[0] != rounds:
        if fit and fit[0] == rounds:  # the student is recorded after it was taught, and must not learn from that
            cell.run.load("one-step-fit", policy=policy)
        else:
            view = ChunkView(cell.recent(400) or demos, chunk=policy.chunk, n_obs=policy.n_obs, gamma=cfg.gamma, device=policy.device,
                             every="plan" if policy.senses else "step")  # eyes are closed between the plans of online rounds
            cond = view.encoded(policy.features).cond
            cell.run.rewind("one-step", 0)
            with cell.run.bar("one-step: distilling", cfg.distill.steps) as advance, cell.timed("one-step"):
                policy.distillation(cfg.distill).finish(cond, derive(cfg.seed, "one-step"), cell.run.logger("one-step"), advance)
            cell.run.save("one-step-fit", rounds, policy=policy)
        trials.stand(policy, "rollout-teacher", cfg.online.episodes)
        tried = trials.run(policy, f"rollout-one-step-{rounds}", cfg.online.episodes, head="one-step")
        product["head"] = "ddim" if trials.challenge("the one-step student", tried, cfg.trials.sure).worse(cfg.trials.sure) else "one-step"
        cell.run.save("one-step", rounds, policy=policy, trials=trials, product=product)
    else:
        cell.run.load("one-step", policy=policy, trials=trials, product=product)
    trials.tell()
    policy.head, policy.distilled = product["head"], True
    if policy.head == "one-step":
        cell.finish_stage("one-step", policy.with_head("one-step"), cfg.final_episodes, version=rounds)
