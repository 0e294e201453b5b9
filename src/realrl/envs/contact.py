"""Tight insertion with a hand that feels: "contact/peg" and its sisters, for learning with a person at hand (HIL-SERL, arXiv 2410.21845).

A hand holds a peg of 20 x 14 mm and presses it into a slot that is 0.5 mm wider on every side. It is moved as real arms are: ten times a
second an action of six numbers in [-1, 1] says how far to go from where it is (forward, left, up, roll, pitch, yaw, in the hand's own
heading), a spring and a damper take it there, and the spring never pulls with more than 15 N and 3 N m. An episode has 100 steps; it is
solved, and ends, when the tip is 15 mm deep in the slot.

Where the slot is, a camera has told, and it is wrong by a little, all episode long: the last millimetres have to be felt.

| task | slot seen wrong by (1 sigma) | slot turned by | friction | a full action |
|---|---|---|---|---|
| "peg-easy" | 1 mm | up to 0.2 rad | 0.25 | 10 mm, 0.06 rad |
| "peg" | 1.5 mm | up to 0.2 rad | 0.35 | 8 mm, 0.048 rad |
| "peg-hard" | 2 mm | up to 0.3 rad | 0.5 | 6 mm, 0.036 rad |

`state` [27]: where the slot seems to be (3 numbers at 20 mm, the same 3 at 4 mm and flattened), roll, pitch, and the turn towards it; the
hand's velocity [6]; force and torque [6] in its frame, flattened; the action before [6]. With eyes: cameras "wrist" and "side", no word of
where the slot is, and the way since the reset [4] instead. `privileged` holds the truth besides, for scripts alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from realrl.envs.base import RobotEnv, ScriptedPolicy
from realrl.scene import RandomiseConfig, SightConfig
from realrl.types import Array, Policy

DEPTH = 0.015
"""How deep the tip has to be, m."""
SEEN, OWN, FULL = 27, (6, 7, *range(9, 31)), 35
"""Numbers of `state`; which of the full state a hand with eyes knows of itself; numbers of the full state."""
STATE = (*(f"{how} {axis}" for how in ("slot", "slot near") for axis in "xyz"), "roll", "pitch", "slot turn",
         *(f"{what} {axis}" for what in ("speed", "force", "action") for axis in ("x", "y", "z", "roll", "pitch", "yaw")))
"""Names of the numbers of `state`."""
TRUTH = slice(31, 35)
"""In the full state: from the tip to the slot's mouth [3], m, in the hand's heading, and the turn that is missing, rad."""
TILT = slice(6, 8)
"""In the full state: roll and pitch, in units of `TILTED`."""
TILTED = 0.05
WIDE = 6.0
"""A full action turns by so many rad for every m that it goes."""


@dataclass(frozen=True)
class Level:
    """How hard a task is. error: of the slot's place as it is seen, 1 sigma, m; turn: of the slot, at most, rad; friction: of everything;
    reach: of a full action, m."""

    text: str
    error: float
    turn: float
    friction: float
    reach: float


LEVELS = {
    "peg-easy": Level("press the peg into the slot (easy)", 0.001, 0.2, 0.25, 0.010),
    "peg": Level("press the peg into the slot", 0.0015, 0.2, 0.35, 0.008),
    "peg-hard": Level("press the peg into the slot (hard)", 0.002, 0.3, 0.5, 0.006),
}


def names() -> tuple[str, ...]:
    """All task names of this suite."""
    return tuple(LEVELS)


def make(name: str, *, reward: str | None = None, horizon: int | None = None, sight: SightConfig | None = None,
         randomise: RandomiseConfig | None = None) -> RobotEnv:
    """Environment `name` of `names()`; 100 steps; its reward is sparse by default, or dense: the depth, of what success needs. Its sights
    are "rgb" and "depth". Raises RealrlError on another."""
    from realrl.envs.mujoco.peg import PegEnv  # it imports the simulator
    return PegEnv(name, reward, horizon, sight, randomise)


def expert(name: str, path: str | Path | None = None) -> Policy:
    """A careful demonstrator, who knows where the slot is and never moves at more than half the full speed."""
    return ScriptedPolicy(f"contact/{name}", Careful(LEVELS[name].reach))


class Careful:
    """Over the slot first, 4 mm above it, upright and turned as it is; then down. Where it has touched down beside the slot it slides over,
    pressing lightly, as people do: what is felt then tells the way. reach: of a full action, m."""

    def __init__(self, reach: float, most: float = 0.5) -> None:
        self._reach, self._most = reach, most

    def __call__(self, states: Array) -> Array:
        """Full states [B, FULL] -> actions [B, 6]."""
        way, turn = states[:, TRUTH][:, :3].astype(np.float64), states[:, TRUTH][:, 3]
        off = np.abs(way[:, :2]).max(1)
        inside = way[:, 2] > 0.002  # its tip is under the mouth's rim
        aligned = (off < 0.0006) & (np.abs(turn) < 0.03)
        down = np.where(aligned | (inside & (off < 0.0015)), way[:, 2] - DEPTH - 0.005, way[:, 2] + 0.004)
        down = np.where(~aligned & (np.abs(way[:, 2]) < 0.001), -0.001, down)
        rest = np.stack([-states[:, TILT.start] * TILTED, -states[:, TILT.start + 1] * TILTED, turn], 1)
        asked = np.concatenate([way[:, :2], down[:, None], rest / WIDE], 1) / self._reach
        return np.clip(asked, -self._most, self._most)


def progress(state: Array) -> float:
    """How near a full state [FULL] is to the end, in mm: depth less what is off to the side and what is missing in turn."""
    x, y, z, turn = (float(v) for v in state[TRUTH])
    return 1000.0 * (z - max(abs(x), abs(y))) - 20.0 * abs(turn)
