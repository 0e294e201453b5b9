"""PushT of gym-pusht: "pusht/pusht" and "pusht/keypoints", one simulator under two observations.

A disc pushes a T-shaped block over a table of 512 x 512 pixels onto a T drawn at (256, 256), turned by 45 degrees (Florence et al.
2021; Chi et al. 2023). An action is where the disc shall go: [-1, 1] is 0..512 px in x and in y, whatever the disc's place.

- "pusht/pusht" sees [disc x, disc y, block x, block y, block angle], px and radians in [0, 2 pi), as the human recordings hold it.
- "pusht/keypoints" sees the disc and the block's eight corners, [disc x, disc y, corner 0 x, ...], px: no angle that jumps by
  2 pi, and so the better of the two to learn from. `keypoints` turns the first into the second, recordings too.

Coverage is the share of the drawn T that the block covers; success is 0.95 of it. The dense reward is the coverage. Chi et al.
score an episode by the largest min(coverage / 0.95, 1) in it, see `score`.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import ArrayLike

from realrl.envs.base import RobotEnv
from realrl.envs.mujoco import randomise as whims
from realrl.envs.mujoco.sight import choose, sees
from realrl.scene import RandomiseConfig, SightConfig
from realrl.types import Array, Episode, Obs, Policy, RealrlError, TaskSpec

HORIZON = 300
SIZE = 512.0
"""Pixels of the table in x and in y."""
SOLVED = 0.95
"""Coverage of success."""
_HZ = 10
_SIZES = {"pusht": 5, "keypoints": 18}
_TEXT = "push the T onto the T that is drawn on the table"
# The block is a bar of 120 x 30 px with a stem of 30 x 90 px below it, its origin in the middle of the bar's upper edge.
_CORNERS = np.array([(-60, 30), (60, 30), (60, 0), (-60, 0), (-15, 30), (-15, 120), (15, 120), (15, 30)], np.float64)


def names() -> tuple[str, ...]:
    """All task names of this suite."""
    return tuple(_SIZES)


def make(name: str, *, reward: str | None = None, horizon: int | None = None, sight: SightConfig | None = None,
         randomise: RandomiseConfig | None = None) -> RobotEnv:
    """Environment `name` of `names()`; default reward sparse, default horizon 300 steps (30 s). Its only sight is "rgb"."""
    whims.refuse(f"pusht/{name}", randomise, "its simulator draws a plain table")
    return PushTEnv(name, reward, HORIZON if horizon is None else horizon, sight)


def expert(name: str, path: str | Path | None = None) -> Policy:
    """Raises RealrlError: nobody wrote one, people demonstrate this task."""
    raise RealrlError(f"pusht/{name}: there is no expert, people demonstrate it; import their recordings: realrl data import")


class PushTEnv(RobotEnv):
    """PushT under this project's episode rules; `info["coverage"]` beside the success.

    Every reset builds the physics anew: nothing of the former episode is left. A reset by seed draws the start that gym-pusht
    draws for it.
    """

    def __init__(self, name: str, reward: str | None, horizon: int, sight: SightConfig | None = None) -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # pygame greets
            import gym_pusht  # noqa: F401  registers the environment
            inner: Any = gymnasium.make("gym_pusht/PushT-v0", disable_env_checker=True).unwrapped
        task = TaskSpec("pusht", name, _SIZES[name], 2, horizon, 1 / _HZ, _TEXT)
        eyes = TopView(sight, inner) if sight and sees(task.id, sight, ("rgb",)) else None
        super().__init__(task, reward=reward, native_low=0.0, native_high=SIZE, eyes=eyes)
        self._inner = inner
        self._coverage = 0.0

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        """Start the episode that belongs to `seed`, see `RobotEnv.reset`."""
        obs, info = super().reset(seed=seed, options=options)
        return obs, {**info, "coverage": self._coverage}

    def reset_to(self, state: ArrayLike) -> tuple[Obs, dict[str, Any]]:
        """Start an episode from a state [5] as "pusht/pusht" observes it, disc and block at rest.

        The angle is set before the position: the block turns about its centre of mass, which would move its origin. (gym-pusht's own
        `reset_to_state` goes the other way, so that recordings replayed from it diverge.) Raises RealrlError on another shape or
        numbers that are not finite.
        """
        at = np.asarray(state, np.float64)
        if at.shape != (5,) or not np.isfinite(at).all():
            raise RealrlError(f"{self.task.id}: a state is 5 finite numbers [disc x, y, block x, y, angle], got {state!r}")
        inner = self._inner
        inner._setup()
        inner.agent.position = at[:2].tolist()
        inner.block.angle = float(at[4])
        inner.block.position = at[2:4].tolist()
        inner.space.step(inner.dt)  # as a reset by seed does
        self._t = 0
        self._coverage = float(inner._get_coverage())
        return self._observe(self._see(inner.get_obs()), first=True), {"success": False, "coverage": self._coverage}

    def restore(self, episode: Episode) -> Obs:
        """Start where a recorded episode started; see `realrl.cell.playback`. Raises RealrlError when its observation is another one."""
        first = np.asarray(episode.obs["state"][0], np.float64)
        size = self.task.privileged or self.task.obs_dim
        if first.shape != (size,):
            raise RealrlError(f"{self.task.id}: the recording observes {first.size} numbers, this task {size}")
        return self.reset_to(first if len(first) == 5 else _pose(first))[0]

    def difference(self, recorded: Array, replayed: Array) -> Array:
        """What lies between two observations [..., D], px and radians, the shorter way round for the angle."""
        gap = np.asarray(replayed, np.float64) - np.asarray(recorded, np.float64)
        if self.task.obs_dim == 5:
            gap[..., 4] = (gap[..., 4] + math.pi) % (2 * math.pi) - math.pi
        return gap

    def step(self, action: Array) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """One control step of 0.1 s, see `RobotEnv.step`; info holds the coverage, too."""
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated, truncated, {**info, "coverage": self._coverage}

    def image(self) -> Array:
        """The table from above, as the image recordings show it: uint8 [96, 96, 3], RGB; for an observation `images.top`."""
        return _picture(self._inner, 96, 96)

    def close(self) -> None:
        """Free the simulator and the eyes."""
        super().close()
        self._inner.close()

    def _begin(self, seed: int) -> Array:
        state = self._inner.reset(seed=seed)[0]
        self._coverage = float(self._inner._get_coverage())
        return self._see(state)

    def _advance(self, action: Array) -> tuple[Array, float, bool, bool]:
        state, _, _, _, info = self._inner.step(action)
        self._coverage = float(info["coverage"])
        return self._see(state), self._coverage, False, self._coverage >= SOLVED

    def _see(self, state: Array) -> Array:
        return state if self.task.name == "pusht" else keypoints(state)


class TopView:
    """The table from above as `images.top`, of any size; the disc's place is the robot's own."""

    own: Sequence[int] = (0, 1)

    def __init__(self, cfg: SightConfig, inner: Any) -> None:
        """Raises RealrlError on a camera other than "top"."""
        choose("pusht", cfg, ("top",), ("top",))
        self._inner, self._size = inner, (cfg.height, cfg.width)
        self.senses: Mapping[str, tuple[int, ...]] = {"images.top": (*self._size, 3)}

    def look(self, *, first: bool) -> Obs:
        """The picture now."""
        return {"images.top": _picture(self._inner, *self._size)}

    def close(self) -> None:
        """Nothing to free."""


def _picture(inner: Any, height: int, width: int) -> Array:
    """gym-pusht's drawing of 512 x 512 pixels, resized: uint8 [H, W, 3], RGB."""
    picture: Array = np.ascontiguousarray(inner._get_img(inner._draw(), width=width, height=height))
    return picture


def keypoints(state: Array) -> Array:
    """The observation of "pusht/keypoints" for states of "pusht/pusht": [..., 5] -> [..., 18], px, in the dtype of `state`."""
    cos, sin = np.cos(state[..., 4:]), np.sin(state[..., 4:])
    x = state[..., 2:3] + cos * _CORNERS[:, 0] - sin * _CORNERS[:, 1]
    y = state[..., 3:4] + sin * _CORNERS[:, 0] + cos * _CORNERS[:, 1]
    corners = np.stack([x, y], -1).reshape(*state.shape[:-1], -1)
    return np.concatenate([state[..., :2], corners], -1).astype(state.dtype)


def _pose(seen: Array) -> Array:
    """The state [5] behind an observation [18] of "pusht/keypoints": the inverse of `keypoints`."""
    corners = seen[2:].reshape(-1, 2)
    along = corners[2] - corners[3]  # the bar's upper edge
    angle = math.atan2(along[1], along[0]) % (2 * math.pi)
    return np.array([*seen[:2], *(corners[2] + corners[3]) / 2, angle])


def to_action(pixels: Array) -> Array:
    """Actions [..., 2] in [-1, 1] for targets in px: what recordings of this task hold, as every policy here acts."""
    return np.asarray(np.asarray(pixels, np.float64) / (SIZE / 2) - 1.0, np.float32)


def score(coverage: Array) -> float:
    """Chi et al.'s measure of one episode: the largest min(coverage / 0.95, 1). coverage: [T]."""
    return float(np.minimum(np.asarray(coverage) / SOLVED, 1.0).max())
