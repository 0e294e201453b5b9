"""The human demonstrations of Adroit door: reading them, starting where they start, the recipe to imitate them.

They begin with the arm raised, the simulator's own starts do not, and nobody demonstrated how to get from the one to the other:
`DemonstratedDoor` is the task with the demonstrations' arm poses before doors that the simulator draws.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter1d

from realrl.envs import adroit
from realrl.policies.diffusion import PolicyConfig
from realrl.types import Array, Episode, RealrlError, Source

HINGE, OPEN = 28, 1.35  # where the door's angle [rad] stands in an observation, and the environment's threshold of success
HORIZON = 300  # as long as the people took
# A chunk of 4 steps is 112 numbers. The skip-net has to carry all of them through its residual stream: 16 steps, 448 numbers, through
# 384 units left the samples further from the demonstrations (0.53 a joint) than these are from their mean (0.27), and opened no door.
DOOR = PolicyConfig(chunk=4, hidden=512)
SMOOTH = 2.0  # steps of 10 ms, the Gaussian over the door's jittery actions; all 25 recordings open the door with it, too


def human_door(file: Path) -> list[Episode]:
    """The 25 human demonstrations of Adroit door as episodes with sparse rewards.

    Actions are clipped to [-1, 1] (5.6 % of the entries exceed it), observations are as recorded. Rewards and success are computed
    from the hinge: most demonstrations stop short of the environment's threshold. The recording has no observation after an
    episode's last action, so that action is left out. Raises RealrlError when the file cannot be read.
    """
    try:
        with np.load(file, allow_pickle=False) as stored:
            obs, action, ends = (stored[k] for k in ("observations", "actions", "episode_ends"))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise RealrlError(f"{file}: cannot read human demonstrations from it ({error}); it must be door_human.npz") from None
    spans = zip([0, *ends[:-1]], ends, strict=True)
    return [_episode(obs[a:b], action[a:b - 1], seed) for seed, (a, b) in enumerate(spans)]


def _episode(obs: np.ndarray, action: np.ndarray, seed: int) -> Episode:
    """One demonstration, cut at its first success, which ends the task. obs: [T+1, D]; action: [T, A]."""
    solved = obs[1:, HINGE] >= OPEN
    steps = int(solved.argmax()) + 1 if solved.any() else len(action)
    success, action = solved[:steps], np.clip(action[:steps], -1.0, 1.0).astype(np.float32)
    return Episode(obs={"state": obs[:steps + 1].astype(np.float32)}, action=action, proposed=action.copy(),
                   source=np.full(steps, Source.HUMAN, np.uint8), reward=success.astype(np.float32), success=success,
                   time=np.arange(steps) * 0.01, starts_plan=np.ones(steps, bool), terminated=bool(success[-1]),
                   truncated=not success[-1], task="adroit/door", policy="human", seed=seed)


class DemonstratedDoor(adroit.AdroitEnv):
    """Adroit door from the arm poses of demonstrations: seed i begins with that of demonstration i modulo their number.

    own_frame: with that demonstration's door, too; else before the door that the environment draws for the seed.
    """

    def __init__(self, demos: Sequence[Episode], own_frame: bool, reward: str = "dense") -> None:
        super().__init__("door", reward, HORIZON)
        self._demos, self._own = demos, own_frame

    def _begin(self, seed: int) -> Array:
        super()._begin(seed)
        drawn = self._inner.model.body("frame").pos.copy()
        state = self._restored(self._demos[seed % len(self._demos)])
        if self._own:
            return state
        self._inner.model.body("frame").pos[:] = drawn
        self._inner.set_state(self._inner.data.qpos.copy(), np.zeros_like(self._inner.data.qvel))
        moved: Array = self._inner._get_obs()
        return moved


def smooth(episode: Episode) -> Episode:
    """The same with a low-pass over the actions: what is left is what the person meant."""
    action = gaussian_filter1d(episode.action, SMOOTH, axis=0, mode="nearest").astype(np.float32)
    return replace(episode, action=action, proposed=action)
