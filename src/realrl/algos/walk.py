"""A Walk in the Park (arXiv 2208.07860): a quadruped learns to walk from nothing, while it walks, in minutes.

One robot acts at its control rate and remembers everything; beside every step the learner makes `sac.utd` updates on what is remembered.
The paper's learner is DroQ. The default is CrossQ, with which Gait in Eight (arXiv 2503.08375) taught a robot with a laptop's processor.

What of it is where: the learner, and all that tells DroQ from CrossQ, in `learn/sac.py`; robot, observation and reward in
`envs/quadruped.py`. This file has the loop, and says how well the robot walks.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from realrl import envs
from realrl.config import OutOfBounds, check
from realrl.envs import quadruped
from realrl.envs.quadruped import FULL, SPEED, allowed, commanded, following, motion
from realrl.files import derive
from realrl.learn.practice import CLOCK, Earlier, Milestone, sound
from realrl.learn.replay import Draws
from realrl.learn.sac import CROSSQ, PRESETS, RATES, SAC, SACConfig
from realrl.learn.symmetry import Turned
from realrl.policies.gaussian import GaussianConfig, GaussianPolicy
from realrl.scene import Scene, device
from realrl.streaming import StreamConfig
from realrl.types import Array, Batch, Cell, Episode, Moment, RealrlError, Stream

LAST = 5.0
"""Seconds over which a mean speed of `SPEED` or more counts as walking."""

SETTLED = 2.5
"""Seconds at a command's end over which it is judged; before, the robot may still be changing over from another."""

BEHIND = 40
"""Steps for which updates are made up later, where a learner is slower than its robot; more are let go, and `utd_reached` says so."""

LEAST, EAGER, FASTEST = 0.3, 0.3, 0.04
"""Of `Price`: where it begins; growth a second for every m/s above or below what it keeps to; the most growth a second."""

ACTORS = {"crossq": GaussianConfig(norm="renorm"), "droq": GaussianConfig(), "sac": GaussianConfig()}
"""The actor that belongs to each of `PRESETS`."""


@dataclass(frozen=True)
class WalkConfig(Scene):
    """Learning to walk; `preset` has the paper's learner and others."""

    task: str = "quadruped/go1"
    """Robot and ground, see `realrl tasks quadruped`."""
    algorithm: Literal["crossq", "droq", "sac"] = "crossq"
    """Whose values all that follows has by default: crossq (CrossQ), droq (the paper's) or sac (with LayerNorm, two updates a step)."""
    sac: SACConfig = CROSSQ
    """The learner."""
    policy: GaussianConfig = ACTORS["crossq"]
    """The actor."""
    stream: StreamConfig = field(default_factory=StreamConfig)
    """How robot and learner go beside each other."""
    steps: int = 20_000
    """Control steps to learn for; the episode that is under way then is finished."""
    random_steps: int = 1000
    """Control steps of even noise at first, before anything is learned; none with `after`."""
    after: str | None = None
    """Folder of an earlier run, whose learner goes on here with what that run practised, e.g. under pushes or on other ground."""
    price: float = 0.0
    """Most that a change of the action is charged once the robot walks, see `Price`; 0 = no more than the task does."""
    recommand: float = 0.8
    """With commands (`-command`): share of each batch that learns what its step would have been worth under others, see `recommanded`."""
    symmetric: bool = True
    """Whether every step is also learned from as it would be in a mirror, left for right, where the robot is as good as symmetric
    (`envs.symmetries`)."""
    compiled: bool = False
    """Whether updates are compiled: about a minute at first, then nearly twice as fast; needs a C++ compiler."""
    save_every: int = 1000
    """Control steps after which the next end of an episode brings a checkpoint."""
    log_every: int = 500
    """Control steps between two lines of the curves."""
    eval_episodes: int = 20
    """Held-out episodes at the end: so many without noise, so many with."""
    film: bool = True
    """Whether the report gets a film of a held-out episode: half a minute to a minute of rendering where there is no GPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, steps="[1, 1e9]", random_steps="[1, 1e9]", save_every="[1, 1e9]", log_every="[1, 1e9]", price="[0, 1000]",
              recommand="[0, 1]")
        if (self.algorithm == "crossq") != (self.sac.norm == "renorm"):
            raise OutOfBounds(WalkConfig, "algorithm", f"is {self.algorithm!r}, but sac.norm is {self.sac.norm!r}: begin from "
                              f"preset({self.algorithm!r})")
        if self.price and (self.sac.n_step > 1 or self.policy.chunk > 1):
            raise OutOfBounds(WalkConfig, "price", "charges single steps: it needs sac.n_step 1 and policy.chunk 1, got "
                              f"{self.sac.n_step} and {self.policy.chunk}")
        if self.data is not None:
            raise OutOfBounds(WalkConfig, "data", "has no use here: walking is learned from nothing")
        if self.sight.kind != "state":
            raise OutOfBounds(WalkConfig, "sight", f"is {self.sight.kind!r}: actor and critics look at the state alone, leave it out")
        if self.recall:
            raise OutOfBounds(WalkConfig, "recall", f"is {self.recall}: a walker's state ends with its last action already, leave it out")

    @property
    def warmup(self) -> int:
        """Control steps before the first update."""
        return 0 if self.after else self.random_steps


def preset(algorithm: str) -> WalkConfig:
    """The configuration of an algorithm. Raises KeyError for one that is not in `PRESETS`."""
    return WalkConfig(algorithm=algorithm, sac=PRESETS[algorithm], policy=ACTORS[algorithm])  # type: ignore[arg-type]


# ---- learning


def train(cfg: WalkConfig, cell: Cell) -> dict[str, Any]:
    """Learn, evaluate with and without noise, leave the policy in the run's folder `policy`; returns the summary, whose `headline` says
    how soon and how well it walks. Continues an interrupted run. Raises RealrlError for a robot that does not tell how fast it is, and for
    commands that decisions of several steps would be learned under."""
    torch.manual_seed(derive(cfg.seed, "weights"))
    spec = cell.spec
    motion(np.zeros((1, spec.obs_dim)), spec.dt)
    if commanded(np.zeros(spec.obs_dim)) and cfg.recommand and max(cfg.sac.n_step, cfg.policy.chunk) > 1:
        raise RealrlError(f"{spec.id}: recommand is of single steps, sac.n_step is {cfg.sac.n_step} and policy.chunk {cfg.policy.chunk}: "
                          "give --recommand 0, or leave those out")
    place = device(cfg.device)
    agent = SAC(GaussianPolicy(cfg.policy, spec.obs_dim, spec.action_dim, name="walk").to(place), cfg.sac, seed=derive(cfg.seed, "learner"),
                compiled=cfg.compiled)
    gait, earlier = Gait(spec.dt, cfg.price), Earlier(cfg.after, "walk")
    with cell.timed("walk"):
        health = learn(cfg, cell, agent, gait, earlier)
    agent.policy.requires_grad_(False)
    cell.keep(agent.policy)
    for name, greedy in (("walk", True), ("walk-noisy", False)):
        cell.finish_stage(name, agent.policy, cfg.eval_episodes, greedy=greedy, measure=lambda episode: measured(episode, spec.dt))
    cell.summary["headline"] = headline(cfg, cell.summary, agent, gait) | {name: health[name] for name in CLOCK if name in health}
    return cell.summary


def learn(cfg: WalkConfig, cell: Cell, agent: SAC, gait: Gait, earlier: Earlier) -> dict[str, float]:
    """Act once, update `utd` times (the paper's algorithm 1), until the robot has made its steps; checkpoints between episodes only.
    Returns how robot and learner got along, see `types.Stream.health`."""
    place, noise = agent.policy.device, derive(cfg.seed, "walk") % 2**31
    with cell.stream("walk", agent.policy, stage=1, warmup=cfg.warmup, noise_seed=noise, cfg=cfg.stream) as stream:
        saved = cell.run.load("walk", agent=agent, stream=stream, gait=gait)
        if saved is None:
            earlier.hand_over(agent)
            saved, gait.before = 0, agent.step
        replay, past = agent.replay(), stream.past()
        ways = envs.symmetries(cell.spec.twin or cell.spec.id) if cfg.symmetric else None
        draws: Draws = Turned(replay, *ways) if ways else replay
        replay.extend([*earlier.episodes, *past])
        gait.remember(past)
        cell.run.rewind("walk", stream.steps)
        pen, owed = Pen(cfg, agent, gait, stream), 0
        asked = quadruped.commands(cell.spec.id) if commanded(np.zeros(cell.spec.obs_dim)) else None
        with cell.run.bar("walk: control steps", cfg.steps, stream.steps) as advance:
            while stream.steps < cfg.steps or not stream.between:
                moments = stream.take(wait=owed < 1)
                replay.put(moments)
                gait.see(moments)
                owed += len(moments) if stream.steps > cfg.warmup else 0
                if owed and len(replay):
                    owed = min(owed - 1, BEHIND)
                    random = torch.Generator(place).manual_seed(derive(cfg.seed, "replay", agent.step))
                    batch = draws.sample(cfg.sac.batch, random, cfg.sac.utd)
                    batch = recommanded(batch, cfg.recommand, random, asked) if asked is not None else batch
                    told = agent.update(charged(batch, cell.spec.action_dim, gait.price.now))
                    pen.told.append(sound(told, stream.steps, *RATES))
                    stream.publish(agent.policy)
                advance(len(moments))
                gait.tick()
                if stream.steps // cfg.log_every > pen.step // cfg.log_every:
                    cell.run.log(stream.steps, pen.line(), "walk")
                if stream.between and stream.steps - saved >= cfg.save_every:
                    saved = stream.steps
                    cell.run.save("walk", saved, agent=agent, stream=stream, gait=gait)
        cell.run.save("walk", stream.steps, agent=agent, stream=stream, gait=gait)
        return stream.health()


class Price:
    """What a change of the action costs beside what the task takes for it, in the unit of `envs.quadruped.CHANGE`. now: at present.

    Nothing until the robot walks, for who learns to walk must try out much. From then on it rises while the robot is faster than `SPEED`
    and falls while it is slower: as high as the gait can bear, up to `most`. It follows from the recorded speeds alone, so that a resumed
    run has the same one.
    """

    def __init__(self, most: float, dt: float) -> None:
        self.most, self.dt, self.now = most, dt, 0.0

    def follow(self, speed: float) -> None:
        """A step of a robot that has walked. speed: m/s, on average over the last `LAST` seconds."""
        growth = float(np.clip(EAGER * (speed - SPEED), -FASTEST, FASTEST))
        self.now = min(max(max(self.now, LEAST) * (1.0 + growth * self.dt), LEAST), self.most)


def charged(batch: Batch, actions: int, price: float) -> Batch:
    """Transitions with `FULL * price * mean (a - a_before)^2` taken off their rewards, but never below zero. Both actions, [B, actions] as
    the servos got them, end the observations after and before. What is stored keeps the task's reward: the price is the present one."""
    if not price:
        return batch
    change = (batch.next_obs["state"][:, -1, -actions:] - batch.obs["state"][:, -1, -actions:]).square().mean(1)
    return replace(batch, reward=torch.maximum(batch.reward - FULL * price * change, batch.reward.clamp(max=0.0)))


def recommanded(batch: Batch, share: float, random: torch.Generator, drawn: Array) -> Batch:
    """Transitions of which so many are as if another command had been given, drawn as the task draws them, before and after: nothing but
    what is observed and paid depends on it. So each step tells of all commands, not of one of the few that were tried. drawn: [2, 3], the
    lowest and highest.

    A reward is what following pays less what the step cost (`envs.quadruped.command_reward`), so the cost is known wherever anything was
    paid. Elsewhere it was at least as much as following paid, and is told from what is observed, all but the torques: those are taken to be
    what they were, on average, where it is known. (Hindsight experience replay, arXiv 1707.01495, for a velocity.)
    """
    state, after = batch.obs["state"].clone(), batch.next_obs["state"].clone()
    now, chance = after[:, -1], torch.rand(len(batch), 5, generator=random, device=state.device)
    low, high = torch.as_tensor(drawn, dtype=torch.float32, device=state.device)
    command = (low + chance[:, :3] * (high - low)) * (chance[:, 3:4] >= quadruped.REST)
    chosen = chance[:, 4] < share
    before, then = (_paid(now, c) for c in (state[:, -1, 33:36], command))
    known, seen = batch.reward > 0, _seen_cost(now, state[:, -1, 36:])
    cost = before - batch.reward / FULL
    torques = ((cost - seen) * known).sum() / known.sum().clamp(min=1)
    cost = torch.where(known, cost, torch.maximum(before, seen + torques))
    for x in (state, after):
        x[..., 33:36] = torch.where(chosen[:, None, None], command[:, None], x[..., 33:36])
    return replace(batch, obs={**batch.obs, "state": state}, next_obs={**batch.next_obs, "state": after},
                   reward=torch.where(chosen, FULL * (then - cost).clamp(min=0.0), batch.reward))


def _paid(now: Tensor, command: Tensor) -> Tensor:
    """What following commands [B, 3] pays, of 1, at the velocities that observations [B, 48] tell."""
    (vx, vy, vz), (gx, gy, gz) = now[:, 27:30].T, now[:, 30:33].T
    cos_pitch = torch.hypot(gy, gz).clamp(min=1e-9)
    sin_roll, cos_roll = -gy / cos_pitch, -gz / cos_pitch
    forward, left = cos_pitch * vx + gx * (sin_roll * vy + cos_roll * vz), cos_roll * vy - sin_roll * vz
    error = torch.hypot(forward - command[:, 0], left - command[:, 1])
    paid: Tensor = quadruped.followed(error, 10.0 * now[:, 26] - command[:, 2], torch.hypot(command[:, 0], command[:, 1]), command[:, 2])
    return paid


def _seen_cost(now: Tensor, action: Tensor) -> Tensor:
    """What tilt and the change of the action since `action` [B, 12] cost, of 1, as observations [B, 48] tell."""
    gx, gy, gz = now[:, 30:33].T
    tilt = torch.atan2(-gy, -gz).square() + torch.asin(gx.clamp(-1.0, 1.0)).square()
    return quadruped.ATTITUDE * tilt + quadruped.CHANGE * (now[:, 36:] - action).square().mean(1)


class Gait(Milestone):
    """How the robot walks while it learns. first: the first step at which its mean speed over the last `LAST` seconds, of one episode, was
    `SPEED` or more. price: what follows from that, at most `most`. before: updates that an earlier run made."""

    def __init__(self, dt: float, most: float = 0.0) -> None:
        super().__init__()
        self.before = 0
        self.dt, self.falls, self.price = dt, 0, Price(most, dt)
        self.speeds: list[float] = []
        self.good: list[bool] = []
        self._window: deque[float] = deque(maxlen=round(LAST / dt))

    def state_dict(self) -> dict[str, Any]:
        """What no recording says."""
        return {**super().state_dict(), "before": self.before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        super().load_state_dict(state)
        self.before = int(state.get("before", 0))  # no checkpoint of before had any

    def see(self, moments: Sequence[Moment]) -> None:
        """Steps as they are done."""
        for m in moments:
            self._step(m.after["state"], m.first, m.step.terminated, m.step.success)

    def reread(self, episode: Episode) -> None:
        """Steps of before."""
        for i, state in enumerate(episode.obs["state"][1:]):
            self._step(state, i == 0, episode.terminated and i == len(episode) - 1, bool(episode.success[i]))

    def _step(self, state: Array, first: bool, fell: bool, success: bool) -> None:
        if first:
            self._window.clear()
        speed = float(motion(state[None], self.dt)[0][0])
        self.speeds.append(speed)
        self.good.append(success)
        self._window.append(speed)
        self.falls += fell
        full, total = len(self._window) == self._window.maxlen, sum(self._window)
        self.count(full and total >= SPEED * len(self._window))
        if full and self.first is not None:
            self.price.follow(total / len(self._window))


class Pen:
    """A line of the curves now and then. told: what updates told since the last one."""

    def __init__(self, cfg: WalkConfig, agent: SAC, gait: Gait, stream: Stream) -> None:
        self._cfg, self._agent, self._gait, self._stream = cfg, agent, gait, stream
        self.told: list[Mapping[str, Tensor]] = []
        self._mark()

    def _mark(self) -> None:
        self.step, self._updates, self._falls, self._seconds = self._stream.steps, self._agent.step, self._gait.falls, self._gait.seconds
        self.told.clear()
        self._gait.speeds.clear()
        self._gait.good.clear()

    def line(self) -> dict[str, float]:
        """Means since the last line."""
        gait, steps = self._gait, self._stream.steps - self.step
        out = {"speed": float(np.mean(gait.speeds)), "success": float(np.mean(gait.good)),
               "falls_per_minute": (gait.falls - self._falls) / (steps * gait.dt / 60),
               "updates_per_s": (self._agent.step - self._updates) / max(gait.seconds - self._seconds, 1e-9),
               "utd_reached": utd_reached(self._cfg, self._agent, gait), "episodes": float(self._stream.episodes)}
        if self._cfg.price:
            out["price"] = gait.price.now
        names = list({name: None for told in self.told for name in told})
        out |= self._stream.health()
        out |= {name: float(torch.stack([told[name] for told in self.told if name in told]).mean()) for name in names}
        self._mark()
        return out


# ---- how well it walks


def measured(episode: Episode, dt: float) -> dict[str, float]:
    """What an episode says of the gait, from the robot's own senses (`envs.quadruped.motion`). speed: m/s; net, path: metres from start to
    end, and along the way; change: of the action from step to step, as the servos got it, its size on average over the joints; hz, sine:
    see `rhythm`; seconds; with commands what `followed` says."""
    told = followed(episode, dt) if commanded(episode.obs["state"]) else {}
    state = episode.obs["state"][1:]
    speed, over = motion(state, dt)
    sent = state[:, -episode.action.shape[1]:]
    hz, sine = rhythm(sent, dt)
    return {"speed": float(speed.mean()), "fell": float(episode.terminated), "seconds": len(episode) * dt,
            "net": float(np.hypot(*(over.sum(0) * dt))), "path": float(np.hypot(*over.T).sum() * dt),
            "change": float(np.abs(np.diff(sent, axis=0)).mean()) if len(episode) > 1 else 0.0, "hz": hz, "sine": sine, **told}


def followed(episode: Episode, dt: float) -> dict[str, float]:
    """How an episode's commands were followed, on average over them. followed: whether the mean velocity of a command's last `SETTLED`
    seconds was as near to it as is allowed, and it did not end in a fall; forward_off, left_off (m/s), turning_off (rad/s): how far that
    mean was from it."""
    state, last = episode.obs["state"], round(SETTLED / dt)
    did, wanted = following(state[1:])[0], following(state[:-1])[1]
    ends = [*(np.flatnonzero((wanted[1:] != wanted[:-1]).any(1)) + 1).tolist(), len(wanted)]
    off, good = [], []
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        off.append(np.abs(did[max(begin, end - last):end].mean(0) - wanted[begin]))
        fell = episode.terminated and end == len(wanted)
        good.append(not fell and bool((off[-1] <= allowed(wanted[begin])).all()))
    forward, left, turning = np.mean(off, 0).tolist()
    return {"followed": float(np.mean(good)), "forward_off": forward, "left_off": left, "turning_off": turning}


def rhythm(sent: Array, dt: float) -> tuple[float, float]:
    """(the frequency at which actions [T, A] have most of their power, Hz; how much they would change from step to step, on average, were
    each joint's a sine of that frequency and of its own deviation): what of the change is the gait, and what jitter."""
    moved = sent - sent.mean(0)
    power = (np.abs(np.fft.rfft(moved, axis=0)) ** 2).sum(1)
    hz = float(np.fft.rfftfreq(len(sent), dt)[power.argmax()])
    return hz, float(moved.std(0).mean() * math.sqrt(2) * 4 / math.pi * math.sin(math.pi * hz * dt))


def utd_reached(cfg: WalkConfig, agent: SAC, gait: Gait) -> float:
    """Updates per step since learning began."""
    return (agent.step - gait.before) / max(gait.steps - cfg.warmup, 1)


def headline(cfg: WalkConfig, summary: Mapping[str, Any], agent: SAC, gait: Gait) -> dict[str, Any]:
    """The run in a few numbers: how soon it walked, and how it walks at the end, without noise and (noisy_...) with."""
    found = {stage["name"]: _gait(stage["measured"]) for stage in summary["stages"]}
    return {"steps_to_half_mps": gait.first, "minutes_to_half_mps": gait.first_min,
            **found["walk"], **{f"noisy_{name}": value for name, value in found["walk-noisy"].items()},
            "wall_min": round(gait.seconds / 60, 3), "falls_learning": gait.falls, "utd_asked": cfg.sac.utd,
            "utd": round(utd_reached(cfg, agent, gait), 4)}


def _gait(means: Mapping[str, float]) -> dict[str, float]:
    """Of means over episodes; ratios are of the means, so that a fall in the first second is not a whole episode."""
    units = {"followed": "followed", "forward_off": "forward_off_mps", "left_off": "left_off_mps", "turning_off": "turning_off_radps"}
    return {"speed_mps": round(means["speed"], 4), "falls_per_minute": round(means["fell"] / (means["seconds"] / 60), 3),
            "net_of_path": round(means["net"] / max(means["path"], 1e-9), 4), "net_m": round(means["net"], 3),
            "action_change": round(means["change"], 4), "stride_hz": round(means["hz"], 2), "sine_change": round(means["sine"], 4),
            **{unit: round(means[name], 4) for name, unit in units.items() if name in means}}
