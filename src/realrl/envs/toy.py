"""Toy tasks in plain numpy, microseconds a step, whose answers are known: for tests and for trying a method out.

- "toy/identity": one step; the observation is a point in [-1, 1]^2, the right action is that point.
- "toy/obstacle": drive a point from the left to a goal on the right, around a disc in the middle. Demonstrations pass it on
  either side, at random: their mean hits it.
- "toy/line": a point on a line, `steps` steps from the goal; its optimal values are known in closed form (`line_value`).
- "toy/red", "toy/blue": drive a hand to one of two discs, both of which are there; nothing but the text says to which.
- "toy/reach": drive a hand to a target. It can be looked at, as a picture, a depth or a cloud, and then only its eyes see the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from realrl.envs.base import RobotEnv, ScriptedPolicy, full_state
from realrl.envs.mujoco import randomise as whims
from realrl.envs.mujoco.sight import choose, sees
from realrl.scene import RandomiseConfig, SightConfig
from realrl.types import Array, Obs, Plan, Policy, RealrlError, State, TaskSpec


def names() -> tuple[str, ...]:
    """All task names of this suite."""
    return ("identity", "obstacle", "line", "red", "blue", "reach")


def make(name: str, *, reward: str | None = None, horizon: int | None = None, sight: SightConfig | None = None,
         randomise: RandomiseConfig | None = None) -> RobotEnv:
    """Environment `name` of `names()`; default reward sparse. Only "reach" takes a sight, none a randomisation."""
    whims.refuse(f"toy/{name}", randomise, "a toy")
    if name == "reach":
        return ReachEnv(reward, horizon, sight)
    sees(f"toy/{name}", sight, (), "toy/reach can be looked at")
    if name == "identity":
        return IdentityEnv(reward, horizon)
    if name in COLOURS:
        return ColourEnv(name, reward, horizon)
    return ObstacleEnv(reward, horizon) if name == "obstacle" else LineEnv(reward, horizon)


def expert(name: str, path: str | Path | None = None) -> Policy:
    """The scripted expert, which always succeeds. Raises RealrlError when given a path: it needs no file."""
    if path is not None:
        raise RealrlError(f"toy/{name}: its expert is a script and takes no file, leave out the path {str(path)!r}")
    if name == "obstacle":
        return ObstacleExpert()
    if name == "identity":
        return ScriptedPolicy("script-identity", np.array)
    if name == "reach":
        return ScriptedPolicy("script-reach", _reach)
    if name in COLOURS:
        return ScriptedPolicy(f"script-{name}", partial(_to_colour, name))
    return ScriptedPolicy("script-line", np.ones_like)


class IdentityEnv(RobotEnv):
    """State: a uniform point in [-1, 1]^2. Success: the action is within 0.1 of it. One step, then the task has ended.

    Dense reward: minus the distance. The best return is 1 (sparse) or 0 (dense).
    """

    TOLERANCE = 0.1

    def __init__(self, reward: str | None, horizon: int | None) -> None:
        super().__init__(TaskSpec("toy", "identity", 2, 2, 1 if horizon is None else horizon, 0.1, "answer with the point you see"),
                         reward=reward)

    def _begin(self, seed: int) -> Array:
        # float32, as it is observed: an action equal to the observation is exactly right
        self._point = self.np_random.uniform(-1.0, 1.0, 2).astype(np.float32)
        return self._point

    def _advance(self, action: Array) -> tuple[Array, float, bool, bool]:
        distance = float(np.linalg.norm(action - self._point))
        return self._point, -distance, True, distance <= self.TOLERANCE


class ObstacleEnv(RobotEnv):
    """State: the point's position [2]. Action: its velocity, up to `SPEED` a step in x and in y.

    It starts at x = -1 with y uniform in [-0.3, 0.3]; success is to come within `REACH` of (1, 0). A disc of radius `RADIUS`
    lies at the origin: to touch it ends the episode without success. The arena is [-1.2, 1.2] x [-1, 1].
    Dense reward: progress towards the goal in a straight line, minus 1 for the collision.
    """

    SPEED = 0.1
    RADIUS = 0.3
    REACH = 0.15
    GOAL = np.array([1.0, 0.0])
    EDGE = np.array([1.2, 1.0])

    def __init__(self, reward: str | None, horizon: int | None) -> None:
        super().__init__(TaskSpec("toy", "obstacle", 2, 2, 40 if horizon is None else horizon, 0.1, "go around the disc to the goal"),
                         reward=reward)

    def _begin(self, seed: int) -> Array:
        self._at = np.array([-1.0, self.np_random.uniform(-0.3, 0.3)])
        return self._at

    def _advance(self, action: Array) -> tuple[Array, float, bool, bool]:
        before, self._at = self._at, np.clip(self._at + self.SPEED * action, -self.EDGE, self.EDGE)
        hit = _nearest_to_origin(before, self._at) < self.RADIUS
        left = float(np.linalg.norm(self._at - self.GOAL))
        progress = float(np.linalg.norm(before - self.GOAL)) - left
        return self._at, progress - hit, hit, left <= self.REACH and not hit


def _nearest_to_origin(a: Array, b: Array) -> float:
    """Distance from the origin to the segment a-b, so that no step jumps over a corner of the disc."""
    d = b - a
    length2 = float(d @ d)
    t = min(max(-float(a @ d) / length2, 0.0), 1.0) if length2 > 0 else 0.0
    return float(np.linalg.norm(a + t * d))


class ObstacleExpert:
    """Passes the disc on a side drawn once per episode from the row's generator and remembered in the state (`side`: [B])."""

    name = "script-obstacle"
    chunk = 1
    n_obs = 1

    def start(self, batch: int) -> State:
        """side 0: not chosen yet."""
        import torch  # not at the top: listing the tasks needs none of it
        return {"side": torch.zeros(batch)}

    def act(self, obs: Obs, state: State, *, greedy: bool, rng: Sequence[np.random.Generator]) -> tuple[Plan, State]:
        """The full state [B, H, 2] -> action [B, 1, 2] of length 1. `greedy` changes nothing: both sides are equally good."""
        import torch
        at = full_state(obs)[:, -1].astype(np.float64)
        side = np.array([s if s else g.choice((-1.0, 1.0)) for s, g in zip(state["side"].tolist(), rng, strict=True)])
        beside = np.stack([np.full_like(side, 0.1), 0.65 * side], -1)  # a little past the disc, well clear of it
        way = np.where(at[:, :1] < 0, beside, ObstacleEnv.GOAL) - at
        action = way / np.maximum(np.linalg.norm(way, axis=-1, keepdims=True), 1e-9)
        return Plan(action.astype(np.float32)[:, None]), {"side": torch.tensor(side, dtype=torch.float32)}


class LineEnv(RobotEnv):
    """State: distance to the goal [1], in (0, 1]; it starts at 1/5, 2/5 .. 5/5, each equally likely.

    Action 1 comes one cell (1/5) nearer, -1 one cell further away, at most to 1. Success at distance 0. Dense reward: -1 a step,
    0 at the goal. The best action is 1 everywhere; `line_value` has the values.
    """

    CELLS = 5

    def __init__(self, reward: str | None, horizon: int | None) -> None:
        super().__init__(TaskSpec("toy", "line", 1, 1, 20 if horizon is None else horizon, 0.1, "walk to the end of the line"),
                         reward=reward)

    def _begin(self, seed: int) -> Array:
        self._cells_left = float(self.np_random.integers(1, self.CELLS + 1))
        return np.array([self._cells_left / self.CELLS])

    def _advance(self, action: Array) -> tuple[Array, float, bool, bool]:
        self._cells_left = min(max(self._cells_left - float(action[0]), 0.0), float(self.CELLS))
        there = self._cells_left < _LINE_TOLERANCE
        return np.array([self._cells_left / self.CELLS]), float(there) - 1.0, False, there


_LINE_TOLERANCE = 1e-3  # of a cell: actions arrive in float32


def line_value(distance: Array, gamma: float, action: Array | None = None) -> Array:
    """The optimal value of "toy/line" under the sparse reward. distance: [...], as observed -> [...].

    With n = ceil(5 distance) steps to go, V*(distance) = gamma^(n - 1), and 0 at the goal, where the episode has ended.
    Given `action` [...] in [-1, 1]: Q*(distance, action) = 1 if it reaches the goal, else gamma V*(the distance it leads to).
    """
    cells = np.asarray(distance, np.float64) * LineEnv.CELLS
    if action is None:
        steps = np.ceil(cells - _LINE_TOLERANCE)
        return np.where(steps > 0, gamma ** (np.maximum(steps, 1) - 1), 0.0)
    after = np.clip(cells - action, 0.0, LineEnv.CELLS)
    return np.where(after < _LINE_TOLERANCE, 1.0, gamma * line_value(after / LineEnv.CELLS, gamma))


COLOURS = ("red", "blue")


class ColourEnv(RobotEnv):
    """State [6]: hand x, y, red disc x, y, blue disc x, y, all in [-1, 1]: the same for both tasks. Action: velocity, `SPEED` a step.

    The hand starts within 0.2 of the middle, the discs lie on opposite sides of it. Success: the hand is within `REACH` of the disc of the
    task's colour; to come there with the other one ends the episode without success. Dense reward: minus the distance.
    """

    SPEED = 0.2
    REACH = 0.15

    def __init__(self, colour: str, reward: str | None, horizon: int | None) -> None:
        said = (f"touch the {colour} disc", f"move the hand to the {colour} one", f"go to what is {colour}")
        horizon = 20 if horizon is None else horizon
        super().__init__(TaskSpec("toy", colour, 6, 2, horizon, 0.1, said[0], paraphrases=said[1:]), reward=reward)
        self._mine = COLOURS.index(colour)

    def _begin(self, seed: int) -> Array:
        self._hand = self.np_random.uniform(-0.2, 0.2, 2)
        turn, far = self.np_random.uniform(0, 2 * np.pi), self.np_random.uniform(0.5, 0.8, 2)
        way = np.array([np.cos(turn), np.sin(turn)])
        self._discs = np.stack([far[0] * way, -far[1] * way])
        return np.concatenate([self._hand, *self._discs])

    def _advance(self, action: Array) -> tuple[Array, float, bool, bool]:
        self._hand = np.clip(self._hand + self.SPEED * action, -1.0, 1.0)
        left = np.linalg.norm(self._discs - self._hand, axis=-1)
        there = left <= self.REACH
        return np.concatenate([self._hand, *self._discs]), -float(left[self._mine]), bool(there.any()), bool(there[self._mine])


def _to_colour(colour: str, states: Array) -> Array:
    """Straight to the disc of that colour, [B, 6] -> [B, 2]."""
    at = 2 + 2 * COLOURS.index(colour)
    return (states[:, at:at + 2] - states[:, :2]) / ColourEnv.SPEED


class ReachEnv(RobotEnv):
    """Full state [4]: hand x, y, target x, y, all in [-1, 1]; with eyes `state` is the hand's two. Action: velocity, `SPEED` a step.

    The hand starts within 0.2 of the middle, the target lies anywhere in [-0.8, 0.8]^2. Success: the hand is within `REACH` of it.
    Dense reward: minus the distance.
    """

    SPEED = 0.2
    REACH = 0.15

    def __init__(self, reward: str | None, horizon: int | None, sight: SightConfig | None = None) -> None:
        self.hand, self.target = np.zeros(2), np.zeros(2)
        eyes = ReachEyes(sight, self) if sight and sees("toy/reach", sight, ("rgb", "depth", "pointcloud")) else None
        super().__init__(TaskSpec("toy", "reach", 4, 2, 25 if horizon is None else horizon, 0.1, "touch the red disc"),
                         reward=reward, eyes=eyes)

    def _begin(self, seed: int) -> Array:
        self.hand, self.target = self.np_random.uniform(-0.2, 0.2, 2), self.np_random.uniform(-0.8, 0.8, 2)
        return np.concatenate([self.hand, self.target])

    def _advance(self, action: Array) -> tuple[Array, float, bool, bool]:
        self.hand = np.clip(self.hand + self.SPEED * action, -1.0, 1.0)
        left = float(np.linalg.norm(self.target - self.hand))
        return np.concatenate([self.hand, self.target]), -left, False, left <= self.REACH


def _reach(states: Array) -> Array:
    """Straight to the target, [B, 4] -> [B, 2]."""
    return (states[:, 2:] - states[:, :2]) / ReachEnv.SPEED


class ReachEyes:
    """"toy/reach" from 1 m above, through the camera "top": a blue hand 10 cm high and a red target 5 cm high on a white table.

    Both are discs. A cloud has half of its points on the target, then the others on the hand; row i is always the same spot of its disc.
    """

    RADIUS = 0.15
    HEIGHTS = (0.05, 0.1)
    COLOURS = ((0.9, 0.1, 0.1), (0.1, 0.2, 0.9))
    own: Sequence[int] = (0, 1)

    def __init__(self, cfg: SightConfig, env: ReachEnv) -> None:
        """Raises RealrlError on a camera other than "top"."""
        choose("toy/reach", cfg, ("top",), ("top",))
        self._env, self._cfg = env, cfg
        size = (cfg.height, cfg.width)
        shapes: dict[str, dict[str, tuple[int, ...]]] = {
            "rgb": {"images.top": (*size, 3)}, "depth": {"depth.top": size},
            "pointcloud": {"pointcloud": (cfg.points, 6 if cfg.colour else 3)}}
        self.senses: Mapping[str, tuple[int, ...]] = shapes[cfg.kind]
        y, x = ((np.arange(n) + 0.5) / n * 2 - 1 for n in size)  # pixel centres; the picture's upper edge is y = 1
        self._pixels = np.stack(np.meshgrid(x, -y), -1)
        spot = np.arange(cfg.points)
        self._which = (spot >= (cfg.points + 1) // 2).astype(int)
        turn = spot * np.pi * (3 - np.sqrt(5))  # a sunflower's seeds lie evenly on a disc
        out = self.RADIUS * np.sqrt((spot % max((cfg.points + 1) // 2, 1) + 0.5) / max((cfg.points + 1) // 2, 1))
        self._spots = np.stack([out * np.cos(turn), out * np.sin(turn)], -1)

    def look(self, *, first: bool) -> dict[str, Array]:
        """The picture [H, W, 3], the depth [H, W] in mm, or the cloud [N, 3 or 6]."""
        places = (self._env.target, self._env.hand)
        if self._cfg.kind == "pointcloud":
            origin = self._env.hand if self._cfg.frame == "hand" else 0.0  # its table has no depth: the height stays
            flat = np.stack(places)[self._which] + self._spots - origin
            parts = [flat, np.array(self.HEIGHTS)[self._which, None]]
            if self._cfg.colour:
                parts.append(np.array(self.COLOURS)[self._which])
            return {"pointcloud": np.concatenate(parts, -1).astype(np.float32)}
        picture, depth = np.ones((*self._pixels.shape[:2], 3)), np.full(self._pixels.shape[:2], 1000, np.uint16)
        blur = 2 / min(self._pixels.shape[:2])  # one pixel wide, so that a small picture still says where the edge is
        for place, height, colour in zip(places, self.HEIGHTS, self.COLOURS, strict=True):
            inside = self.RADIUS - np.linalg.norm(self._pixels - place, axis=-1)
            share = np.clip(inside / blur + 0.5, 0.0, 1.0)[..., None]
            picture = share * np.array(colour) + (1 - share) * picture
            depth[inside >= 0] = round(1000 * (1 - height))
        if self._cfg.kind == "depth":
            return {"depth.top": depth}
        return {"images.top": np.round(255 * picture).astype(np.uint8)}

    def close(self) -> None:
        """Nothing to free."""
