"""Pegs and their holes, and what an arm of "assembly/..." is at that puts one into the other, in MuJoCo."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import mujoco
import numpy as np

from realrl.envs.assembly import DEPTH, NEAR, SEEN_WRONG, TURN_WRONG, World, reward_of
from realrl.envs.mujoco.panda import BODY, REACH, mounted
from realrl.types import Array

HALF, BEVEL = 0.0195, 0.0005
"""Half the width of a peg, and how much its lower edge is broken, m."""
FLOOR = 0.021
"""Depth of the hole, m."""
HOLE = (0.5, 0.0, 0.1)
"""Where its mouth is at the middle, m, from the arm's base."""
SIDE = 0.04
"""How far to the side of the hole as seen set points are kept, m."""


def _outline(shape: str, grow: float) -> list[Array]:
    """Convex outlines [n, 2] that make up a cross-section, counter-clockwise, every edge moved outwards by `grow`, m."""
    if shape == "connector":  # a body and the latch on its back
        a, b, c, d = HALF + grow, HALF / 2 + grow, HALF / 4 + grow, HALF * 0.8 + grow
        return [np.array([(-a, -b), (a, -b), (a, b), (-a, b)]), np.array([(-c, 0), (c, 0), (c, d), (-c, d)])]
    sides = {"square": 4, "triangle": 3, "pentagon": 5, "round": 24}[shape]
    radius = (HALF + grow) / math.cos(math.pi / sides)
    angle = np.arange(sides) * 2 * math.pi / sides + math.pi / sides
    return [radius * np.stack([np.cos(angle), np.sin(angle)], 1)]


def _peg(spec: Any, body: Any, shape: str) -> None:
    """Convex prisms with a broken lower edge, their tip `REACH` below the body's origin."""
    for i, (whole, tip) in enumerate(zip(_outline(shape, 0.0), _outline(shape, -BEVEL), strict=True)):
        z = np.array([-BODY, -REACH + BEVEL, -REACH])
        points = np.concatenate([np.column_stack([ring, np.full(len(ring), h)]) for ring, h in zip((whole, whole, tip), z, strict=True)])
        spec.add_mesh(name=f"peg{i}", uservert=points.ravel())
        body.add_geom(name=f"peg{i}", type=mujoco.mjtGeom.mjGEOM_MESH, meshname=f"peg{i}", contype=1, conaffinity=0, condim=4, mass=0,
                      rgba=(0.85, 0.55, 0.2, 1))


def _plate(spec: Any, shape: str, clearance: float) -> None:
    """A hole: a box behind every edge of its outline, and a floor."""
    body = spec.worldbody.add_body(name="plate", pos=HOLE)
    wall = 0.06
    look = {"type": mujoco.mjtGeom.mjGEOM_BOX, "contype": 0, "conaffinity": 1, "condim": 4, "rgba": (0.25, 0.45, 0.35, 1)}

    def box(middle: Array, along: Array, half: tuple[float, float]) -> None:
        angle = math.atan2(along[1], along[0])
        body.add_geom(size=(*half, FLOOR / 2), pos=(*middle, -FLOOR / 2), quat=(math.cos(angle / 2), 0, 0, math.sin(angle / 2)), **look)

    if shape == "connector":
        a, b, c, d = (float(np.abs(o).max(0)[i]) for o in _outline(shape, clearance) for i in (0, 1))
        x = np.array([1.0, 0.0])
        for sign in (-1, 1):
            box(np.array([sign * (a + wall / 2), 0.0]), x, (wall / 2, b))
            box(np.array([sign * (c + wall), (b + d) / 2]), x, (wall, (d - b) / 2))
        box(np.array([0.0, -b - wall / 2]), x, (a + wall, wall / 2))
        box(np.array([0.0, d + wall / 2]), x, (a + wall, wall / 2))
    else:
        ring = _outline(shape, clearance)[0]
        for one, two in zip(ring, np.roll(ring, -1, 0), strict=True):
            half = float(np.linalg.norm(two - one)) / 2
            along = (two - one) / (2 * half)
            # past the edge's ends, so that corners are closed: of a convex hole that is outside
            reach = half + (wall if len(ring) < 5 else wall * math.tan(math.pi / len(ring)))
            box((one + two) / 2 + np.array([along[1], -along[0]]) * wall / 2, along, (reach, wall / 2))
    body.add_geom(name="floor", type=mujoco.mjtGeom.mjGEOM_BOX, size=(0.1, 0.1, 0.005), pos=(0, 0, -FLOOR - 0.005), contype=0,
                  conaffinity=1, rgba=(0.3, 0.3, 0.32, 1))


def build(shape: str, clearance: float, shown: bool, dt: float = 0.001) -> tuple[Any, Array]:
    """(the model, the joints [7] at which the peg is upright 10 mm over the hole), see `mounted`."""
    x, y, z = HOLE
    return mounted(partial(_peg, shape=shape), partial(_plate, shape=shape, clearance=clearance), (x, y, z + 0.01),
                   (x + 0.3, y - 0.3, z + 0.2), HOLE, shown, dt)


class Insertion:
    """A peg over its hole, see `realrl.envs.mujoco.assembly.Work`."""

    unit, centre, beside = 0.01, HOLE, (0.05, -0.05, 0.03)

    def __init__(self, shape: str, world: World, shown: bool) -> None:
        self._shape, self._world = shape, world
        self.model, self.home = model, _ = build(shape, world.clearance[0], shown, world.dt)
        self.data = mujoco.MjData(model)
        self.text = f"put the {shape} peg into its hole"
        self._plate, self._tip = model.body("plate").id, model.site("tip").id
        # of every wall of the hole: where it is at the least clearance, and outwards
        self.walls = [g for g in range(model.ngeom) if model.geom_bodyid[g] == self._plate and model.geom(g).name != "floor"]
        turns = 2 * np.arctan2(model.geom_quat[self.walls, 3], model.geom_quat[self.walls, 0])
        self._walls_at = model.geom_pos[self.walls].copy()
        self._outwards = np.stack([np.sin(turns), -np.cos(turns), 0 * turns], 1)

    def begin(self, rng: np.random.Generator) -> None:
        """See `Work`."""
        model, world = self.model, self._world
        at = HOLE + rng.uniform((-0.03, -0.03, -0.005), (0.03, 0.03, 0.005))
        self.turn = float(rng.uniform(-0.03, 0.03))
        model.body_pos[self._plate], model.body_quat[self._plate] = at, (math.cos(self.turn / 2), 0, 0, math.sin(self.turn / 2))
        self._at(at - (0, 0, DEPTH))
        self.wrong, self.wrong_turn = np.array([*rng.normal(0, SEEN_WRONG, 2).clip(-0.005, 0.005), 0.0]), float(rng.normal(0, TURN_WRONG))
        model.geom_pos[self.walls] = self._walls_at + self._outwards * (rng.uniform(*world.clearance) - world.clearance[0])
        model.geom_friction[:, 0] = rng.uniform(*world.friction)
        model.geom_solref[:, 0] = rng.uniform(*world.solref)

    def _at(self, goal: Array) -> None:
        self.goal, self._bottom = goal, goal.tolist()

    def rise(self, up: float) -> float:
        """See `Work`: only down."""
        return (up - 1) / 2

    def kept(self, place: Array) -> Array:
        """See `Work`: near the hole as it is seen."""
        seen = (self.goal + self.wrong)[:2]
        return np.array([*np.clip(place[:2], seen - SIDE, seen + SIDE), place[2]])

    def solved(self) -> bool:
        """Whether the tip is at the bottom."""
        return self._distance() < NEAR

    def _distance(self) -> float:
        return math.dist(self.data.site_xpos[self._tip].tolist(), self._bottom)

    def reward(self, beyond: float) -> float:
        """See `reward_of`."""
        distance = self._distance()
        return reward_of(distance, distance < NEAR, beyond)

    def depth(self) -> float:
        """The tip's height over the bottom, m."""
        return float(self.data.site_xpos[self._tip][2] - self.goal[2])

    def truth(self) -> Sequence[float]:
        """Nothing beside what every work has."""
        return ()

    def shown(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """See `Work`."""
        model, _ = build(self._shape, self._world.clearance[0], True)
        plate = model.body("plate").id
        model.body_pos[plate], model.body_quat[plate] = self.model.body_pos[self._plate], self.model.body_quat[self._plate]
        return model, mujoco.MjData(model)

    def lose(self) -> None:
        """The plate is out of reach."""
        self.model.body_pos[self._plate] = (HOLE[0], 1.0, HOLE[2])
        self._at(self.goal + np.array([0.0, 1.0, 0.0]))
