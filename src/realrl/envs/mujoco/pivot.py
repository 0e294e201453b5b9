"""A block in the corner of table and wall, and what an arm of "assembly/pivot" is at that sets it upright there, in MuJoCo."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np

from realrl.envs.assembly import SEEN_WRONG, TURN_WRONG, UPRIGHT, Block, World, pivot_reward
from realrl.envs.mujoco.panda import BODY, REACH, mounted
from realrl.types import Array

ROD = 0.008
"""Radius of the rod that pushes, m; its end is a half sphere."""
CORNER = (0.56, 0.0, 0.08)
"""Where table and wall meet at the middle, m, from the arm's base."""
START = (-0.13, 0.0, 0.014)
"""Where the rod's tip begins, m from there."""
WIDTH = 0.06
"""Of a block along the wall, m; it lies with its length towards it."""
KEPT = np.array([[-0.18, -0.03, 0.005], [0.0, 0.03, 0.16]])
"""Box that set points are kept in, m from the corner as it is seen."""


def _rod(spec: Any, body: Any) -> None:
    """A rod with a round end, its tip `REACH` below the body's origin."""
    body.add_geom(name="rod", type=mujoco.mjtGeom.mjGEOM_CAPSULE, fromto=(0, 0, -BODY, 0, 0, ROD - REACH), size=(ROD, 0, 0), contype=1,
                  conaffinity=0, condim=4, mass=0, rgba=(0.15, 0.15, 0.17, 1))


def _corner(spec: Any) -> None:
    """Table, wall, and the largest block there is, which every episode cuts to its size: bounds for collisions were computed of it."""
    hard = {"type": mujoco.mjtGeom.mjGEOM_BOX, "contype": 0, "conaffinity": 3, "condim": 3}
    body = spec.worldbody.add_body(name="corner", pos=CORNER)
    body.add_geom(name="table", size=(0.15, 0.15, 0.02), pos=(-0.15, 0, -0.02), rgba=(0.25, 0.45, 0.35, 1), **hard)
    body.add_geom(name="wall", size=(0.01, 0.15, 0.08), pos=(0.01, 0, 0.06), rgba=(0.3, 0.3, 0.32, 1), **hard)
    block = spec.worldbody.add_body(name="block", pos=CORNER)
    block.add_freejoint(name="block")
    block.add_geom(name="block", type=mujoco.mjtGeom.mjGEOM_BOX, size=(0.1, WIDTH / 2, 0.05), contype=2, conaffinity=1, condim=3, mass=0.1,
                   rgba=(0.85, 0.55, 0.2, 1))


def build(shown: bool, dt: float = 0.001) -> tuple[Any, Array]:
    """(the model, the joints [7] at which the rod stands before the block), see `mounted`."""
    x, y, z = CORNER
    return mounted(_rod, _corner, np.add(CORNER, START).tolist(), (x - 0.22, y - 0.3, z + 0.14), (x - 0.07, y, z + 0.06), shown, dt)


class Pivoting:
    """A block that lies in a corner and has to stand there, see `realrl.envs.mujoco.assembly.Work`."""

    unit, centre, beside = 0.03, tuple((np.array(CORNER) + KEPT.mean(0)).tolist()), (-0.05, -0.02, 0.03)

    def __init__(self, block: Block, world: World, shown: bool) -> None:
        self._kind, self._world = block, world
        self.model, self.home = model, _ = build(shown, world.dt)
        self.data = mujoco.MjData(model)
        self.text = "set the block upright against the wall"
        self._corner, self._block, self._tip = model.body("corner").id, model.body("block").id, model.site("tip").id
        self._geom, self._rod, self._at = model.geom("block").id, model.geom("rod").id, int(model.joint("block").qposadr[0])

    def begin(self, rng: np.random.Generator) -> None:
        """See `Work`. The block is up to 2 mm from the wall."""
        model, data, world, kind = self.model, self.data, self._world, self._kind
        self.goal = CORNER + rng.uniform((-0.01, -0.01, -0.004), (0.01, 0.01, 0.004))
        self.turn = float(rng.uniform(-0.03, 0.03))
        self.wrong, self.wrong_turn = np.array([*rng.normal(0, SEEN_WRONG, 2).clip(-0.005, 0.005), 0.0]), float(rng.normal(0, TURN_WRONG))
        model.geom_friction[:, 0] = rng.uniform(*world.friction)
        model.geom_friction[self._rod, 0] = rng.uniform(*kind.grip)
        model.geom_solref[:, 0] = rng.uniform(*world.solref)
        length, thick, mass = (float(rng.uniform(*span)) for span in (kind.length, kind.thick, kind.mass))
        self._half = model.geom_size[self._geom] = np.array([length, WIDTH, thick]) / 2
        square = 4 * self._half**2
        model.body_mass[self._block], model.body_inertia[self._block] = mass, mass / 12 * (square.sum() - square)
        mujoco.mj_setConst(model, data)  # what contacts are regularised by
        mujoco.mj_resetData(model, data)
        quat = np.array([math.cos(self.turn / 2), 0, 0, math.sin(self.turn / 2)])
        model.body_pos[self._corner], model.body_quat[self._corner] = self.goal, quat
        away = (rng.uniform(0.0, 0.002) + length / 2) * -np.array([math.cos(self.turn), math.sin(self.turn)])
        data.qpos[self._at:] = *(self.goal[:2] + away), self.goal[2] + thick / 2, *quat

    def rise(self, up: float) -> float:
        """See `Work`: down, half as fast as up, presses on what stands nearly upright."""
        return 0.25 + 0.75 * up

    def kept(self, place: Array) -> Array:
        """See `Work`: on this side of the wall as it is seen."""
        seen = self.goal + self.wrong
        return np.clip(place, seen + KEPT[0], seen + KEPT[1])

    def lean(self) -> float:
        """How far the block has been raised, rad: 0 as it lies, pi / 2 upright."""
        return math.asin(max(-1.0, min(1.0, -float(self.data.xmat[self._block, 6]))))

    def solved(self) -> bool:
        """Whether the block is as good as upright."""
        return self.lean() > math.pi / 2 - UPRIGHT

    def reward(self, beyond: float) -> float:
        """See `pivot_reward`."""
        return pivot_reward(self.lean(), beyond)

    def depth(self) -> float:
        """The block's angle, rad."""
        return self.lean()

    def truth(self) -> Sequence[float]:
        """The block's angle, rad; from the tip to the middle of its edge that is low and away from the wall at first [3], m."""
        x, _, z = self._half
        edge = self.data.xpos[self._block] + self.data.xmat[self._block].reshape(3, 3) @ (-x, 0.0, -z)
        return self.lean(), *(edge - self.data.site_xpos[self._tip]).tolist()

    def shown(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """See `Work`."""
        model, _ = build(True)
        model.geom("block").size[:] = self._half
        corner = model.body("corner").id
        model.body_pos[corner], model.body_quat[corner] = self.model.body_pos[self._corner], self.model.body_quat[self._corner]
        return model, mujoco.MjData(model)

    def lose(self) -> None:
        """The block falls off the table."""
        self.data.qpos[self._at + 1] += 0.5
