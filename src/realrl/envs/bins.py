"""Two bins and a hand between them, "bins/panda", after DayDreamer's pick and place (arXiv 2206.14176): carry things over, and back again.

Two decisions a second, each a whole move; 100 of them are an episode. An action is one of six (`TaskSpec.discrete`, the largest of six
numbers counts): a cell forward, back, left, right (4 cm, within the bin), open or close the gripper, and down; up it goes only with
something in it. Rewards are sparse: 1 for a grasp, 10 for what was carried over the divide at a height, where it is let go by itself, and
-1 for letting go before.

`state` [9], with eyes: the hand's place [3], the opening, over which bin [2], whether it holds [2], whether it is up. The camera "front"
sees bins and things. Without eyes the things' places follow as seen from the hand, 3 numbers each, the nearest first: where a thing lies on
the table says little of what to do, and which of them it is, nothing. `info` has the number of things carried.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from realrl.envs.base import RobotEnv, ScriptedPolicy
from realrl.scene import RandomiseConfig, SightConfig
from realrl.types import Array, Policy

OWN = 9
"""Numbers that the robot knows of itself."""
CELL, CELLS = 0.04, 5
"""A cell's size, m; cells of a bin from side to side."""
FORWARD, BACK, LEFT, RIGHT, GRIP, DOWN = range(6)


@dataclass(frozen=True)
class Load:
    """What lies in the bins."""

    text: str
    things: int


LOADS = {"panda": Load("carry things from bin to bin", 3), "panda-one": Load("carry one thing from bin to bin", 1)}


def state_names(name: str) -> tuple[str, ...]:
    """Names of the numbers that are observed; with eyes the first `OWN` of them."""
    own = ("hand x", "hand y", "hand z", "opening", "over right bin", "over left bin", "empty", "holds", "up")
    return (*own, *(f"thing {i + 1} {axis}" for i in range(LOADS[name].things) for axis in "xyz"))


def names() -> tuple[str, ...]:
    """All task names of this suite."""
    return tuple(LOADS)


def make(name: str, *, reward: str | None = None, horizon: int | None = None, sight: SightConfig | None = None,
         randomise: RandomiseConfig | None = None) -> RobotEnv:
    """Environment `name` of `names()`; its reward is its own ("dense"), its sights are "rgb" and "depth". Raises RealrlError on another."""
    from realrl.envs.mujoco.bins import BinsEnv  # it imports the simulator
    return BinsEnv(name, reward, horizon, sight, randomise)


def expert(name: str, path: str | Path | None = None) -> Policy:
    """Goes to the nearest thing, takes it and carries it over; path is not used."""
    return ScriptedPolicy(f"bins-{name}", _carry)


def _carry(states: Array) -> Array:
    """Full states [B, OWN + 3 things] -> actions [B, 6], one-hot."""
    return np.stack([np.eye(6, dtype=np.float32)[_choice(state)] for state in states])


def _choice(state: Array) -> int:
    opening, side, holds, up = state[3], int(state[5] > 0.5), state[7] > 0.5, state[8] > 0.5
    if holds:
        return (LEFT if side == 0 else RIGHT) if up else DOWN  # which is up now
    if opening < 0.5:
        return GRIP
    things = state[OWN:].reshape(-1, 3)
    here = things[(things[:, 1] + state[1] > 0) == (side == 1)]
    if not len(here):
        return FORWARD
    off = here[:, :2]
    near = off[np.abs(off).max(1).argmin()]
    if abs(near[0]) > 0.55:
        return FORWARD if near[0] > 0 else BACK
    if abs(near[1]) > 0.55:
        return LEFT if near[1] > 0 else RIGHT
    return DOWN if up else GRIP
