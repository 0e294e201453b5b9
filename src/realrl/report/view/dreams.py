"""What a world model makes of recorded episodes: it looks on for a while, shuts its eyes and dreams on, told only what was done next.

Beside that what its heads say at each step: the value, the reward that was to be expected, whether it goes on, how surprised it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from realrl import config
from realrl.algos.daydreamer import DaydreamerConfig, Dreamer
from realrl.checkpoint import read_parts, restore
from realrl.envs.quadruped import PHASES, risen, rises
from realrl.learn.dreaming import categorical_kl, exponential, slim
from realrl.nets.rssm import Latent, slot
from realrl.nets.twohot import symexp, symlog, twohot_mean
from realrl.policies.folder import load_policy
from realrl.policies.recurrent import RecurrentPolicy
from realrl.report.pictures import short
from realrl.report.view.clips import LINES, Clip
from realrl.types import Array, Episode, RealrlError

NAME = "daydreamer"
"""Of the method's checkpoint and of what it practised."""
LOOKS, DREAMS = 5, 15
"""Observations that it sees, and steps that it then dreams, by turns."""
FRAME = {True: (38, 160, 90), False: (213, 94, 0)}
"""The colour around a picture that it painted: with its eyes open, or shut."""


@dataclass(frozen=True)
class Dreamt:
    """Of an episode of T steps. readings [T + 1, D]: as dreamt, NaN where it looked; pictures: camera -> uint8 [T + 1, H, W, 3], painted
    again where it looked and dreamt where not, framed; value [T + 1], came [T + 1]: what it expected of all rewards to come, and what came
    of them, the value of the last observation behind those that are recorded; reward, goes_on [T]: that and whether it expected the step
    to pay and to be followed by others; surprise [T + 1]: nats between what it expected and what it saw; phases [T, 5]: see
    `envs.quadruped.rising`, of a robot that rises; ahead [W, DREAMS, D]: by how much each dream was wrong, in symlog, NaN beyond the end;
    stays: the same of a guess that nothing moves."""

    readings: Array
    pictures: Mapping[str, Array]
    value: Array
    came: Array
    reward: Array
    goes_on: Array
    surprise: Array
    phases: Array | None
    ahead: Array
    stays: Array


class Dreams:
    """A run's world model, as its newest checkpoint has it."""

    def __init__(self, agent: Dreamer, task: str) -> None:
        self.agent, self.policy, self.task = agent, agent.policy, task

    @classmethod
    def of_run(cls, run: Path) -> Dreams | None:
        """None where a run has no world model. Raises RealrlError where it cannot be read."""
        place = run / "checkpoints" / NAME
        if not place.is_dir():
            return None
        cfg = config.load(DaydreamerConfig, run / "config.yaml")
        _, parts = read_parts(place)
        agent = Dreamer(_policy(run, parts["agent"].get("about"), str(place)), cfg.dream, seed=0, cuda_graph=False)
        restore(parts, {"agent": agent}, str(place))
        return cls(agent, cfg.task)

    @property
    def paints(self) -> bool:
        """Whether it learned to paint what it sees."""
        return bool(len(self.agent.painters))

    @torch.no_grad()
    def look(self, episode: Episode) -> Dreamt:
        """Raises RealrlError for an episode of another robot."""
        agent, rssm, wanted = self.agent, self.policy.rssm, ("state", *self.policy.senses)
        for key, shape in {"state": (self.policy.obs_dim,), **self.policy.senses}.items():
            if key not in episode.obs or episode.obs[key].shape[1:] != shape:
                raise RealrlError(f"its world model sees {key} {list(shape)}, which this episode has not")
        obs = {key: torch.as_tensor(x)[:, None] for key, x in slim(episode, wanted, self.policy.discrete).obs.items()}
        done = torch.as_tensor(slim(episode, wanted, self.policy.discrete).action)
        random, cfg = torch.Generator().manual_seed(0), rssm.cfg
        noise = exponential((len(done) + 1, 1, cfg.stoch, cfg.classes), random)
        states, told = rssm.observe(self.policy.encoder(obs), torch.cat([torch.zeros_like(done[:1]), done])[:, None], None, noise)
        states = Latent(*(x[:, 0] for x in states))
        value = agent.value(agent.heads["critic"](states.feature))
        reward = twohot_mean(agent.heads["reward"](states.feature[1:]), agent.bins)
        goes_on = agent.heads["goes_on"](states.feature[1:])[..., 0].sigmoid()
        surprise = categorical_kl(told[:, 0], rssm.prior(states.deter))
        dreamt, starts = self._dream(states, done, random)
        there = starts[None] + torch.arange(1, DREAMS + 1)[:, None] <= len(done)
        readings, ahead, stays = self._readings(dreamt, starts, there, obs["state"][:, 0])
        return Dreamt(readings, self._pictures(states, dreamt, starts, there), value.numpy(), self._came(episode, float(value[-1])),
                      reward.numpy(), goes_on.numpy(), surprise.numpy(), _phases(self.task, episode), ahead, stays)

    def shown(self, clip: Clip) -> Clip:
        """An episode as a page shows it, with what the world model makes of it beside."""
        episode = clip.episode
        try:
            found = self.look(episode)
        except RealrlError as error:
            return replace(clip, notes=[*clip.notes, f"No dreams of this episode: {error}"])
        state, names = episode.obs["state"], clip.names.get("state", ())
        moved = sorted(np.argsort(-np.ptp(state.astype(np.float64), axis=0), kind="stable")[:LINES].tolist())
        beside: dict[str, Mapping[str, Array]] = {
            "Value, and what came of it": {"value": found.value, "came": found.came},
            "Reward, paid and expected": {"paid": episode.reward, "expected": found.reward},
            "Chance to go on": {"": found.goes_on}, "Surprise, nats": {"": found.surprise}}
        if found.phases is not None:
            beside |= {"Reward by phases": dict(zip(PHASES, found.phases.T, strict=True))}
        for i in moved:
            title = f"State {short(names[i]) if names else i}, dreamt for {DREAMS} steps after {LOOKS} looks, by turns"
            beside[title] = {"happened": state[:, i], "dreamt": found.readings[:, i]}
        notes = [*clip.notes]
        if self.policy.senses and not self.paints:
            notes.append("It was not taught to paint what it sees (dream.pixels is off), so its dreams are of readings alone.")
        painted = {f"{key}, painted: what it sees framed green, what it dreams red": x for key, x in found.pictures.items()}
        return replace(clip, episode=replace(episode, obs={**episode.obs, **painted}), beside={**clip.beside, **beside}, notes=notes)

    def _dream(self, states: Latent, done: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """(features [DREAMS, W, F] of the dreams, the observations [W] that each begins at, the last it saw)."""
        rssm, cfg = self.policy.rssm, self.policy.rssm.cfg
        starts = torch.arange(max(min(LOOKS, len(done)) - 1, 0), len(done), LOOKS + DREAMS)
        state, features = Latent(*(x[starts] for x in states)), list[Tensor]()
        for t in range(DREAMS):
            act = done[(starts + t).clamp(max=len(done) - 1)]
            state = rssm.dream(state, act, exponential((len(starts), cfg.stoch, cfg.classes), random))
            features.append(state.feature)
        return torch.stack(features), starts

    def _readings(self, dreamt: Tensor, starts: Tensor, there: Tensor, state: Tensor) -> tuple[Array, Array, Array]:
        """(as dreamt [T + 1, D], how wrong that was and that all stays [W, DREAMS, D])."""
        told, state = self.agent.heads["state"](dreamt).float(), symlog(state.float())
        at = starts[None] + torch.arange(1, DREAMS + 1)[:, None]
        out = torch.full_like(state, torch.nan)
        out[at[there]] = symexp(told[there])
        truth = state[at.clamp(max=len(state) - 1)]
        wrong, stays = ((x - truth).abs().masked_fill(~there[..., None], torch.nan) for x in (told, state[starts][None]))
        return out.numpy(), wrong.transpose(0, 1).numpy(), stays.transpose(0, 1).numpy()

    def _pictures(self, states: Latent, dreamt: Tensor, starts: Tensor, there: Tensor) -> dict[str, Array]:
        feature, shut = states.feature.clone(), torch.zeros(len(states.deter), dtype=torch.bool)
        at = (starts[None] + torch.arange(1, DREAMS + 1)[:, None])[there]
        feature[at], shut[at] = dreamt[there], True
        out = {}
        for key in self.policy.senses if self.paints else ():
            painted = torch.cat([self.agent.painters[slot(key)](feature[i:i + 64]) for i in range(0, len(feature), 64)])
            out[key] = _framed((255 * painted.float().clamp(0.0, 1.0)).round().byte().numpy(), shut.numpy())
        return out

    def _came(self, episode: Episode, last: float) -> Array:
        """Discounted sums of what was really paid [T + 1]."""
        out = np.zeros(len(episode) + 1)
        out[-1] = 0.0 if episode.terminated else last
        for t in range(len(episode) - 1, -1, -1):
            out[t] = episode.reward[t] + self.agent.cfg.gamma * out[t + 1]
        return out


def _policy(run: Path, about: Mapping[str, Any] | None, source: str) -> RecurrentPolicy:
    """Of the size that the run's has. about: what its checkpoint says of it; older ones say nothing, and only the policy that a finished
    run leaves tells."""
    if about is not None:
        return RecurrentPolicy.rebuild(about, source).requires_grad_(False)
    found = load_policy(run / "policy")[0]
    if isinstance(found, RecurrentPolicy):
        return found.requires_grad_(False)
    raise RealrlError(f"{run / 'policy'}: a {found.KIND} policy in the run of a world model")


def _phases(task: str, episode: Episode) -> Array | None:
    return risen(episode.obs["state"][1:], episode.reward) if rises(task) else None


def _framed(pictures: Array, shut: Array) -> Array:
    """Pictures uint8 [N, H, W, C] with a frame that says whether its eyes were shut [N]; what is grey becomes coloured."""
    out = np.repeat(pictures, 3, -1) if pictures.shape[-1] == 1 else pictures.copy()
    wide = max(1, pictures.shape[1] // 32)
    for closed, colour in FRAME.items():
        rows = shut == (not closed)
        for edge in (np.s_[rows, :wide], np.s_[rows, -wide:], np.s_[rows, :, :wide], np.s_[rows, :, -wide:]):
            out[edge] = colour
    return out
