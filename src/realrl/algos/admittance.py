"""Contact-rich assembly: learned in simulation, adapted on the robot by an online admittance residual (arXiv 2310.10509).

Offline, soft actor-critic learns in "simulation" where to press and how stiff: an action is a desired velocity and the stiffness of an
admittance law, and is held until time, way or force say stop. Online, on the "real" arm, the trajectory stays as it was learned and a
residual on the law's mass, damping and stiffness is fitted to the newest wrenches, twice a second, within bounds of force and stability.

What of it is where: the learner in `learn/sac.py`; the law and the residual in `robots/admittance.py`; both worlds, what is observed and
what ends a decision in `envs/assembly.py`. This file has the loop, and says what becomes of the policy in the other world.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from realrl import envs
from realrl.config import OutOfBounds, check
from realrl.envs.assembly import LEVELS, other, others, told
from realrl.files import derive
from realrl.learn.practice import Milestone, sound
from realrl.learn.replay import Draws
from realrl.learn.sac import RATES, SAC, SACConfig
from realrl.learn.symmetry import Turned
from realrl.policies.gaussian import GaussianConfig, GaussianPolicy
from realrl.scene import Scene, device
from realrl.streaming import StreamConfig
from realrl.types import Cell, Episode, Moment, Stream

LEARNER = SACConfig(utd=4, policy_delay=2, gamma=0.95, critic_lr=1e-3, actor_lr=1e-3, alpha_lr=1e-3, hidden=(128, 128), alpha=0.01)
"""The published code's networks and discount, with smaller batches, LayerNorm and a faster critic."""
OTHERS = ("adapted", "manual", "rule", "free", "probed")
"""What the two that every run judges, the policy's own gains and the braced residual, can be compared with."""
LAST = 50
"""Episodes over which a share of 0.9 counts as learned."""


@dataclass(frozen=True)
class AdmittanceConfig(Scene):
    """Learning to assemble in simulation, and adapting the admittance on the robot."""

    task: str = "assembly/square"
    """The simulation, see `realrl tasks assembly`."""
    real: str | None = None
    """The other world, in which the policy is judged without adaptation and with it; its controls are named after it. By default that of
    the task: assembly/square-real, assembly/pivot-real."""
    controls: tuple[str, ...] = ()
    """What else it is compared with there: adapted, manual, rule, free, probed."""
    sac: SACConfig = LEARNER
    """The learner."""
    policy: GaussianConfig = field(default_factory=lambda: GaussianConfig(hidden=(128, 128)))
    """The actor."""
    stream: StreamConfig = field(default_factory=StreamConfig)
    """How robot and learner go beside each other."""
    symmetric: bool = True
    """Whether a square hole teaches in all the ways that it can be turned and mirrored, a block in both."""
    steps: int = 6000
    """Decisions to learn for; the episode that is under way then is finished."""
    random_steps: int = 500
    """Decisions of even noise at first, before anything is learned."""
    save_every: int = 1000
    """Decisions after which the next end of an episode brings a checkpoint."""
    log_every: int = 500
    """Decisions between two lines of the curves."""
    eval_episodes: int = 100
    """Held-out trials at the end, in every world and with every control."""
    film: bool = True
    """Whether the report gets a trial of every arm as force and gains over time and as a film: a quarter of a minute of drawing each."""
    compiled: bool = True
    """Whether updates are compiled: half a minute at first, then nearly three times as fast; needs a C++ compiler."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, steps="[1, 1e9]", random_steps="[1, 1e9]", save_every="[1, 1e9]", log_every="[1, 1e9]",
              eval_episodes="[1, 1e6]")
        if self.data is not None:
            raise OutOfBounds(AdmittanceConfig, "data", "has no use here: assembly is learned from nothing")
        if self.sight.kind != "state":
            raise OutOfBounds(AdmittanceConfig, "sight", f"is {self.sight.kind!r}: actor and critics look at the state alone, leave it out")
        if self.real and self.real not in (fitting := others(self.task)):
            raise OutOfBounds(AdmittanceConfig, "real", f"must be for a policy of {self.task}, of {', '.join(fitting)}, got {self.real}")
        known = [name for name in OTHERS if self.arm(name).partition("/")[2] in LEVELS]
        if unknown := sorted({*self.controls} - {*known}):
            raise OutOfBounds(AdmittanceConfig, "controls", f"must be of {', '.join(known)}, got {', '.join(unknown)}")

    def arms(self) -> list[str]:
        """How the gains come about where the policy is judged; the report leads with the last one."""
        return ["direct", *dict.fromkeys(self.controls), "braced"]

    def arm(self, control: str) -> str:
        """The task of the other world in which the gains come about so."""
        real = self.real or other(self.task)
        return real if control == "direct" else f"{real}-{control}"


# ---- offline: the policy, in simulation


def train(cfg: AdmittanceConfig, cell: Cell) -> dict[str, Any]:
    """Learn, judge in both worlds, leave the policy in the run's folder `policy`; returns the summary, whose `headline` sets the adapted
    arm beside direct transfer. Continues an interrupted run."""
    torch.manual_seed(derive(cfg.seed, "weights"))
    spec, place = cell.spec, device(cfg.device)
    agent = SAC(GaussianPolicy(cfg.policy, spec.obs_dim, spec.action_dim, name="admittance").to(place), cfg.sac,
                seed=derive(cfg.seed, "learner"), compiled=cfg.compiled)
    record = Record()
    with cell.timed("simulation"):
        learn(cfg, cell, agent, record)
    agent.policy.requires_grad_(False)
    cell.keep(agent.policy)
    cell.finish_stage("simulation", agent.policy, cfg.eval_episodes, measure=measured)
    for control in cfg.arms():
        with cell.timed(control):
            transfer(cfg, cell, agent.policy, control)
    cell.summary["headline"] = headline(cell.summary, record)
    return cell.summary


def learn(cfg: AdmittanceConfig, cell: Cell, agent: SAC, record: Record) -> None:
    """One decision, `utd` updates, until the steps are done; checkpoints between episodes only."""
    place, noise = agent.policy.device, derive(cfg.seed, "assembly") % 2**31
    with cell.stream("simulation", agent.policy, stage=1, warmup=cfg.random_steps, noise_seed=noise, cfg=cfg.stream) as stream:
        saved = cell.run.load("simulation", agent=agent, stream=stream, record=record) or 0
        replay, past = agent.replay(), stream.past()
        ways = envs.symmetries(cfg.task, cfg.recall) if cfg.symmetric else None
        draws: Draws = Turned(replay, *ways) if ways else replay
        replay.extend(past)
        record.remember(past)
        cell.run.rewind("simulation", stream.steps)
        pen, owed = Pen(agent, record, stream), 0
        with cell.run.bar("simulation: decisions", cfg.steps, stream.steps) as advance:
            while stream.steps < cfg.steps or not stream.between:
                moments = stream.take(wait=owed < 1)
                replay.put(moments)
                record.see(moments)
                owed += len(moments) if stream.steps > cfg.random_steps else 0
                if owed and len(replay):
                    owed -= 1
                    random = torch.Generator(place).manual_seed(derive(cfg.seed, "replay", agent.step))
                    pen.told.append(sound(agent.update(draws.sample(cfg.sac.batch, random, cfg.sac.utd)), stream.steps, *RATES))
                    stream.publish(agent.policy)
                advance(len(moments))
                record.tick()
                if stream.steps // cfg.log_every > pen.step // cfg.log_every:
                    cell.run.log(stream.steps, pen.line(), "simulation")
                if stream.between and stream.steps - saved >= cfg.save_every:
                    saved = stream.steps
                    cell.run.save("simulation", saved, agent=agent, stream=stream, record=record)
        cell.run.save("simulation", stream.steps, agent=agent, stream=stream, record=record)


class Record(Milestone):
    """How learning goes. first: the first decision after which `LAST` episodes in a row had 90 % successes."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: deque[bool] = deque(maxlen=LAST)

    def see(self, moments: Sequence[Moment]) -> None:
        """Decisions as they are done."""
        for m in moments:
            self._step(m.step.terminated or m.step.truncated, m.step.success)

    def reread(self, episode: Episode) -> None:
        """Decisions of before."""
        for i, success in enumerate(episode.success):
            self._step(i == len(episode) - 1, bool(success))

    def _step(self, ended: bool, success: bool) -> None:
        if ended:
            self.ends.append(success)
        self.count(len(self.ends) == LAST and sum(self.ends) >= 0.9 * LAST)


class Pen:
    """A line of the curves now and then. told: what updates told since the last one."""

    def __init__(self, agent: SAC, record: Record, stream: Stream) -> None:
        self._agent, self._record, self._stream = agent, record, stream
        self.told: list[Mapping[str, Tensor]] = []
        self._mark()

    def _mark(self) -> None:
        self.step, self._seconds = self._stream.steps, self._record.seconds
        self.told.clear()

    def line(self) -> dict[str, float]:
        """Means since the last line; success: over the last episodes."""
        record = self._record
        out = {"success": float(np.mean(record.ends)) if record.ends else 0.0, "episodes": float(self._stream.episodes),
               "decisions_per_s": (self._stream.steps - self.step) / max(record.seconds - self._seconds, 1e-9), **self._stream.health()}
        names = list({name: None for told in self.told for name in told})
        out |= {name: float(torch.stack([told[name] for told in self.told if name in told]).mean()) for name in names}
        self._mark()
        return out


# ---- online: the residual, on the other arm


def transfer(cfg: AdmittanceConfig, cell: Cell, policy: GaussianPolicy, control: str) -> None:
    """The learned trajectory in the other world, its gains taken as they are ("direct") or adapted as `control` says. Every trial begins
    without a residual. With "adapted" the first touch is made with the offline gains, as in the paper; with "braced", damped for a contact
    that is expected; with "probed" there is a gentle one before the trial."""
    cell.at(cfg.arm(control)).finish_stage(control, policy, cfg.eval_episodes, measure=measured)


def measured(episode: Episode) -> dict[str, float]:
    """What a trial says, see `envs.assembly.told`; success_seconds: its seconds where it succeeded, and solved: whether."""
    said, solved = told(episode.obs["privileged"][-1]), float(episode.succeeded)
    return said | {"solved": solved, "success_seconds": solved * said["seconds"]}


def headline(summary: Mapping[str, Any], record: Record) -> dict[str, Any]:
    """The run in a few numbers: what was learned and how soon; then success (share), peak force (N) and seconds to success in the other
    world, of the arm with the braced residual and, with a prefix, of every other."""
    found = {stage["name"]: stage for stage in summary["stages"]}
    out: dict[str, Any] = {"simulation_success": found["simulation"]["success"]["rate"], "steps_to_90": record.first,
                           "minutes_to_90": record.first_min,
                           "learning_min": round(record.seconds / 60, 3)}
    for name, stage in found.items():
        if name != "simulation":
            prefix, means = "" if name == "braced" else f"{name}_", stage["measured"]
            out |= {f"{prefix}success": stage["success"]["rate"], f"{prefix}peak_force_n": round(means["peak"], 2),
                    f"{prefix}seconds": round(means["success_seconds"] / means["solved"], 2) if means["solved"] else None}
    return out
