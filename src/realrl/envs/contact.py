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

"pick-peg" is "peg-easy" with an empty hand: the peg stands on a table, up to 0.2 rad turned, 6 cm beside the slot, and has to be picked
first. A seventh number commands two fingers: 0.5 and more shuts them, -0.5 and less opens them, what lies between leaves them as they are
(as keyboard and gamepad do). To move them takes 0.6 s, in which the hand stands still: a step all the same. A peg that has toppled or
fallen off ends the episode, in failure. `state` [36] has besides: the command before; where the peg's foot is from where the hand would
hold it (again 3 numbers at 20 mm and 3 at 4 mm, seen 0.5 mm wrong); the turn towards it; the fingers' opening, -1 to 1. Its 3 numbers at
4 mm of the slot are from the peg's foot.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from realrl.envs.base import RobotEnv, ScriptedPolicy
from realrl.scene import RandomiseConfig, SightConfig
from realrl.types import Array, Policy, RealrlError

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
PICKS, PICK_SEEN, PICK_OWN, PICK_FULL = 7, (*range(SEEN), *range(35, 44)), (*OWN, 35, 43), 48
"""Where the peg has to be picked: numbers of an action; which of the full state are `state`, and the hand's own; of the full state."""
OPENING, PEG_TRUTH = 43, slice(44, 48)
"""In that: the fingers' opening in units of `WIDTH`, less 1; from the hand's point to the peg's foot [3], m, in the hand's heading, and
the turn from the hand to it, rad."""
WIDTH = 0.013
"""Half the fingers' widest opening, m."""
WIDE = 6.0
"""A full action turns by so many rad for every m that it goes."""


@dataclass(frozen=True)
class Level:
    """How hard a task is. error: of the slot's place as it is seen, 1 sigma, m; turn: of the slot, at most, rad; friction: of everything;
    reach: of a full action, m; picks: whether the peg has to be picked first; manner: of `MANNERS`, in which it is shown."""

    text: str
    error: float
    turn: float
    friction: float
    reach: float
    picks: bool = False
    manner: str = "upright"


LEVELS = {
    "peg-easy": Level("press the peg into the slot (easy)", 0.001, 0.2, 0.25, 0.010),
    "peg": Level("press the peg into the slot", 0.0015, 0.2, 0.35, 0.008, manner="tilting"),
    "peg-hard": Level("press the peg into the slot (hard)", 0.002, 0.3, 0.5, 0.006, manner="tilting"),
    "pick-peg": Level("pick the peg and press it into the slot", 0.001, 0.2, 0.25, 0.010, picks=True),
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


def symmetries(name: str) -> tuple[Array, Array]:
    """A peg, its slot and a hand with two fingers look the same in a mirror, and in another, in the hand's own heading: (what an element
    makes of `state` [4, n, n], and of an action [4, a, a]), the first leaves all as it is."""
    seen, done = [], []
    for x, y in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        way, about = (x, y, 1), (y, x, x * y)  # what turns about an axis changes its sense where the mirror holds the axis
        state = (*way, *way, *about, *((*way, *about) * 3))
        picks = LEVELS[name].picks
        seen.append(np.diag([float(v) for v in (*state, *((1, *way, *way, about[2], 1) if picks else ()))]))
        done.append(np.diag([float(v) for v in (*way, *about, *((1,) if picks else ()))]))
    return np.stack(seen), np.stack(done)


def expert(name: str, path: str | Path | None = None) -> Policy:
    """A careful demonstrator, who knows where the slot is and never moves at more than half the full speed. path: its manner, "upright"
    (`Careful`) or "tilting" (`Tilting`), by default the level's. Raises RealrlError for another, and for tilting what has to be picked."""
    level = LEVELS[name]
    manner = level.manner if path is None else str(path)
    if manner not in MANNERS or (level.picks and manner != "upright"):
        known = ["upright"] if level.picks else list(MANNERS)
        raise RealrlError(f"contact/{name}: its expert's manner is {' or '.join(known)}, got {manner}: leave --expert out, or name one")
    careful = MANNERS[manner](level.reach)
    shown = f"contact/{name}" + ("" if manner == "upright" else f"-{manner}")  # or a recording of one manner would go on in another
    return ScriptedPolicy(shown, Picking(careful) if level.picks else careful)


class Careful:
    """Over the slot first, 4 mm above it, upright and turned as it is; then down. Where it has touched down beside the slot it slides over,
    pressing lightly, as people do: what is felt then tells the way. reach: of a full action, m."""

    def __init__(self, reach: float, most: float = 0.5) -> None:
        self._reach, self._most = reach, most

    def __call__(self, states: Array) -> Array:
        """Full states [B, FULL] -> actions [B, 6]."""
        return self.insert(states, states[:, TRUTH][:, :3].astype(np.float64), states[:, TRUTH][:, 3])

    def insert(self, states: Array, way: Array, turn: Array) -> Array:
        """The same for a peg whose foot has so far to go [B, 3], m, and so far to turn [B]."""
        off = np.abs(way[:, :2]).max(1)
        inside = way[:, 2] > 0.002  # its tip is under the mouth's rim
        aligned = (off < 0.0006) & (np.abs(turn) < 0.03)
        down = np.where(aligned | (inside & (off < 0.0015)), way[:, 2] - DEPTH - 0.005, way[:, 2] + 0.004)
        down = np.where(~aligned & (np.abs(way[:, 2]) < 0.001), -0.001, down)
        return self.go(states, np.concatenate([way[:, :2], down[:, None]], 1), turn)

    def go(self, states: Array, way: Array, turn: Array, lean: Array | None = None) -> Array:
        """The action [B, 6] that goes a way [B, 3], m, and turns [B]; and leans so much more, roll and pitch [B, 2], rad: by default until
        it is upright."""
        rest = np.concatenate([-states[:, TILT] * TILTED if lean is None else lean, np.reshape(turn, (-1, 1))], 1)
        return np.clip(np.concatenate([way, rest / WIDE], 1) / self._reach, -self._most, self._most)


class Tilting(Careful):
    """Puts the peg in as people do who cannot see the slot for their hands: tilts it so that one corner is low, and holds it so far beside
    the slot that this corner comes down inside wherever the slot may be; slides until the corner is stopped by two walls; then sets the
    peg upright, pressing into that corner, and presses it in. Nothing of that but the way there needs the eyes."""

    TILT, BESIDE = 0.1, 0.004
    """How far it tilts, rad, about both axes; how far beside the slot it goes down, m, forward and to the left."""
    HALF = (0.010, 0.007)
    """The peg's half sizes, m."""

    def insert(self, states: Array, way: Array, turn: Array) -> Array:
        """Full states [B, FULL], ways to go [B, 3], m, and turns [B] -> actions [B, 6]."""
        lean = states[:, TILT].astype(np.float64) * TILTED
        corner = way[:, 2] - self.HALF[0] * np.sin(lean[:, 1]) + self.HALF[1] * np.sin(lean[:, 0])  # its depth under the mouth
        dipped, off = corner > 0.0006, np.abs(way[:, :2]).max(1)
        seating = ((way[:, 2] > 0.002) & (off < 0.0015)) | (dipped & (off < 0.001))
        lean = np.where(seating[:, None], 0.0, (self.TILT, -self.TILT)) - lean
        beside = way[:, :2] + self.BESIDE
        over = (np.abs(beside).max(1) < 0.0015) & (np.abs(lean).max(1) < 0.03)
        upright = np.abs(states[:, TILT]).max(1) * TILTED < 0.03
        # the spring has to pull by more than friction holds, until a wall has stopped it; from then on it leans on that wall a little
        slide = np.where(np.abs(way[:, :2]) > 0.0006, np.sign(way[:, :2]) * np.maximum(np.abs(way[:, :2]), 0.003), -0.0005)
        across = np.where(seating[:, None], np.where(upright[:, None], way[:, :2], -0.0015), np.where(dipped[:, None], slide, beside))
        down = np.where(dipped, -0.0015, np.where(over, -0.004, way[:, 2] + 0.0035))
        down = np.where(seating, np.where(upright, way[:, 2] - DEPTH - 0.005, -0.003), down)
        return self.go(states, np.concatenate([across, down[:, None]], 1), turn, lean)


MANNERS: dict[str, type[Careful]] = {"upright": Careful, "tilting": Tilting}
"""How a peg that is in the hand from the start may be put in."""


class Picking:
    """Opens an empty hand; goes over the peg, down around it, shuts; lifts it by 8 mm, and goes on as careful as with one in its hand.
    Beside the peg, so low that it would push it over, it rises first."""

    def __init__(self, careful: Careful) -> None:
        self._careful = careful

    def __call__(self, states: Array) -> Array:
        """Full states [B, PICK_FULL] -> actions [B, 7]."""
        peg, turn = states[:, PEG_TRUTH][:, :3].astype(np.float64), states[:, PEG_TRUTH][:, 3]
        off, low = np.abs(peg[:, :2]).max(1), peg[:, 2] > -0.018
        around = (off < 0.0025) & (np.abs(turn) < 0.06)
        beside = low & ((off > 0.006) | (np.abs(turn) > 0.25))
        down = np.where(beside, 0.03, np.where(around | low, peg[:, 2], peg[:, 2] + 0.024))
        reaching = self._careful.go(states, np.concatenate([peg[:, :2] * ~beside[:, None], down[:, None]], 1), turn)
        way = states[:, TRUTH][:, :3] - peg
        far = np.abs(way[:, :2]).max(1) > 0.008
        lifting = far & (way[:, 2] > -0.004)  # it still stands, or as good as
        lifted = np.stack([way[:, 0] * ~lifting, way[:, 1] * ~lifting, way[:, 2] + 0.008], 1)
        missing = states[:, TRUTH][:, 3] - turn
        carrying = np.where(far[:, None], self._careful.go(states, lifted, missing), self._careful.insert(states, way, missing))
        held = holds(states)
        shut = ~held & around & (np.abs(peg[:, 2]) < 0.003)
        empty = ~held & (states[:, OPENING] < 0.5)
        motion = np.where(held[:, None], carrying, reaching) * ~(shut | empty)[:, None]
        return np.concatenate([motion, np.where(empty, -1.0, np.where(shut, 1.0, 0.0))[:, None]], 1)


def holds(states: Array) -> Array:
    """Whether the peg is between fingers that are shut, of full states [..., PICK_FULL]."""
    found: Array = (np.abs(states[..., OPENING]) < 0.4) & (np.abs(states[..., PEG_TRUTH][..., :2]).max(-1) < 0.015)
    return found


def picking(state: Array) -> float:
    """How near a full state [PICK_FULL] is to the end, in mm: until the peg is held 100 less what is missing to it, then `progress`."""
    if not holds(state):
        return -100.0 - 1000.0 * float(np.abs(state[PEG_TRUTH][:3]).max())
    moved = state.copy()
    moved[TRUTH] -= state[PEG_TRUTH]
    return progress(moved)


def progress(state: Array) -> float:
    """How near a full state [FULL] is to the end, in mm: depth less what is off to the side and what is missing in turn."""
    x, y, z, turn = (float(v) for v in state[TRUTH])
    return 1000.0 * (z - max(abs(x), abs(y))) - 20.0 * abs(turn)
