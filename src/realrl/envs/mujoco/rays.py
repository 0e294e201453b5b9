"""Point clouds of a MuJoCo model by casting rays: no OpenGL, and only where there is something to see.

A depth camera looks at everything; here rays go only through pixels behind which a geom of interest may be, found by projecting its
bounding box. Of these pixels, those first in a fixed low-discrepancy order are taken, so that they spread evenly and the same state
gives the same points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np

from realrl.envs.mujoco.render import VISIBLE, own_paint
from realrl.envs.mujoco.sight import Mark
from realrl.types import Array

LATTICE = 120
"""Pixels of the longer side of what a camera sees of the box; more see thinner things."""
_GROUPS = np.array([[g in VISIBLE] for g in range(6)], np.uint8)
_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)
_FAR = 1e6


class RayCaster:
    """Casts rays from cameras of a model at what is inside a box [2, 3]."""

    def __init__(self, model: Any, cameras: Sequence[int], box: Array, rays: int) -> None:
        """rays: how many in all, shared by the cameras. Geoms of groups other than 0 - 2 and those without opacity are not seen."""
        self._model, self._cameras, self._box = model, tuple(cameras), box
        self._budget = max(rays // max(len(self._cameras), 1), 1)
        self._own_paint = own_paint(model)
        opacity = np.where(self._own_paint, model.geom_rgba[:, 3], model.mat_rgba[model.geom_matid, 3] if model.nmat else 1.0)
        seen: Array = np.isin(model.geom_group, VISIBLE) & (opacity > 0) & (model.geom_type != mujoco.mjtGeom.mjGEOM_PLANE)
        self._geoms = np.flatnonzero(seen)
        self._hues = _hues(model)
        self._order = _spread(LATTICE, LATTICE)

    def cast(self, data: Any, marks: Sequence[Mark], solids: Sequence[Mark]) -> list[tuple[Array, Array]]:
        """Per camera: the points [M, 3] inside the box, m in the world's frame, and their colours [M, 3] in [0, 1].

        marks: balls that every camera has a few rays of its own for, so that a small one is never missed; solids: what else stands in
        the way, as the geoms do.
        """
        boxes = self._bounds(data, solids)
        return [self._look(data, camera, boxes, marks, solids) for camera in self._cameras]

    def _bounds(self, data: Any, solids: Sequence[Mark]) -> Array:
        """Corners [G, 8, 3] of what may be seen of every geom: of its own box, or of the part of its upright box inside the box."""
        model, low, high = self._model, *self._box
        turn = data.geom_xmat[self._geoms].reshape(-1, 3, 3)
        middle = data.geom_xpos[self._geoms] + np.einsum("gij,gj->gi", turn, model.geom_aabb[self._geoms, :3])
        half = model.geom_aabb[self._geoms, 3:]
        corners = middle[:, None] + np.einsum("gij,kj,gj->gki", turn, _CORNERS, half)
        if solids:
            centres, sizes = np.stack([s.centre for s in solids]), np.stack([s.size for s in solids])
            corners = np.concatenate([corners, centres[:, None] + _CORNERS * sizes[:, None]])
        least, most = corners.min(1), corners.max(1)
        inside: Array = np.all((most > low) & (least < high), axis=-1)
        corners, least, most = corners[inside], least[inside], most[inside]
        cut: Array = np.any((least < low) | (most > high), axis=-1)
        least, most = np.maximum(least, low), np.minimum(most, high)
        upright = (least + most)[:, None] / 2 + _CORNERS * (most - least)[:, None] / 2
        kept: Array = np.where(cut[:, None, None], upright, corners)
        return kept

    def _look(self, data: Any, camera: int, boxes: Array, marks: Sequence[Mark], solids: Sequence[Mark]) -> tuple[Array, Array]:
        origin, turn = data.cam_xpos[camera].copy(), data.cam_xmat[camera].reshape(3, 3).copy()
        way = self._aim(origin, turn, boxes, np.tan(np.radians(self._model.cam_fovy[camera]) / 2))
        spots, owner = _spots(marks, origin)
        to_spots = spots - origin
        far = np.linalg.norm(to_spots, axis=-1)
        way = np.concatenate([way, to_spots / np.maximum(far, 1e-9)[:, None]])
        number, distance = self._shoot(data, origin, way)
        colours = self._colours(number)
        for solid in solids:
            hit = _hit(solid, origin, way)
            nearer = hit < distance
            distance[nearer], colours[nearer] = hit[nearer], solid.rgba[:3]
        split = len(way) - len(spots)
        points, hues = origin + way[:split] * distance[:split, None], colours[:split]
        clear = distance[split:] >= far - 1e-4
        if clear.any():
            points = np.concatenate([points, spots[clear]])
            hues = np.concatenate([hues, np.stack([m.rgba[:3] for m in marks])[owner[clear]]])
        inside = ((points >= self._box[0]) & (points <= self._box[1])).all(-1)
        return points[inside], hues[inside]

    def _aim(self, origin: Array, turn: Array, boxes: Array, tangent: float) -> Array:
        """Unit vectors [R, 3] to the pixels behind which something may be; tangent: of half the (square) field of view."""
        if not len(boxes):
            return np.zeros((0, 3))
        local = (boxes - origin) @ turn  # x right, y up, z backward
        ahead = -local[..., 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            flat = local[..., :2] / ahead[..., None]
        behind: Array = np.any(ahead < 1e-3, axis=-1)  # not wholly before the camera: it may be anywhere in the picture
        flat = np.clip(np.where(behind[:, None, None], [[-_FAR, -_FAR], [_FAR, _FAR]] * 4, flat), -tangent, tangent)
        least, most = flat.min(1), flat.max(1)
        low, high = least.min(0), most.max(0)
        pitch = (high - low).max() / LATTICE
        if not pitch > 0:
            return np.zeros((0, 3))
        first = np.floor((least - low) / pitch).astype(int)
        last = np.ceil((most - low) / pitch).astype(int)
        wanted = np.zeros((LATTICE, LATTICE), bool)
        for (left, below), (right, above) in zip(first.tolist(), last.tolist(), strict=True):
            wanted[left:right, below:above] = True
        chosen = self._order[wanted.ravel()[self._order]][:self._budget]
        across = low + (np.stack(np.divmod(chosen, LATTICE), -1) + 0.5) * pitch
        way = np.concatenate([across, np.full((len(across), 1), -1.0)], -1) @ turn.T
        unit: Array = way / np.linalg.norm(way, axis=-1, keepdims=True)
        return unit

    def _shoot(self, data: Any, origin: Array, way: Array) -> tuple[Array, Array]:
        """Geom [R] (-1: none) and distance [R] (infinite: none) of what rays meet first."""
        number, distance = np.full(len(way), -1, np.int32), np.full(len(way), -1.0)
        if len(way):
            mujoco.mj_multiRay(self._model, data, origin[:, None], np.ascontiguousarray(way).reshape(-1, 1), _GROUPS, 1, -1, number,
                               distance, len(way), 10.0)
        distance[number < 0] = np.inf
        return number, distance

    def _colours(self, number: Array) -> Array:
        """The colour [R, 3] of geoms [R]."""
        model = self._model
        material = model.geom_matid[number]
        plain = np.where(self._own_paint[number], model.geom_rgba[number, :3].T, model.nmat and model.mat_rgba[material, :3].T).T
        hues: Array = plain * self._hues[number]
        return hues


def _hues(model: Any) -> Array:
    """The mean colour [G, 3] of every geom's texture, white without one: rays see no patterns."""
    hues = np.ones((model.ngeom, 3))
    for geom in np.flatnonzero(model.geom_matid >= 0):
        texture = model.mat_texid[model.geom_matid[geom], mujoco.mjtTextureRole.mjTEXROLE_RGB]
        if texture >= 0 and model.tex_nchannel[texture] >= 3:
            channels, first = model.tex_nchannel[texture], model.tex_adr[texture]
            size = model.tex_height[texture] * model.tex_width[texture] * channels
            hues[geom] = model.tex_data[first:first + size].reshape(-1, channels)[:, :3].mean(0) / 255
    return hues


def _spread(rows: int, columns: int) -> Array:
    """All pixels of a lattice, as flat indices, in an order of which every beginning lies evenly (the R2 sequence, Roberts 2018)."""
    i = np.arange(8 * rows * columns)
    x, y = (np.floor((0.5 + i * a) % 1.0 * n).astype(int) for a, n in ((0.7548776662466927, rows), (0.5698402909980532, columns)))
    flat, first = np.unique(x * columns + y, return_index=True)
    order = flat[np.argsort(first)]
    return np.concatenate([order, np.setdiff1d(np.arange(rows * columns), order)])


_SEED = np.arange(32) + 0.5
_BALL = np.stack([np.sqrt(1 - (1 - _SEED / 16) ** 2) * np.cos(_SEED * np.pi * (3 - np.sqrt(5))),
                  np.sqrt(1 - (1 - _SEED / 16) ** 2) * np.sin(_SEED * np.pi * (3 - np.sqrt(5))), 1 - _SEED / 16], -1)
"""32 points that lie evenly on the unit ball."""


def _spots(marks: Sequence[Mark], origin: Array) -> tuple[Array, Array]:
    """Points [M, 3] on the side of balls that faces a camera, and whose they are [M]."""
    if not marks:
        return np.zeros((0, 3)), np.zeros(0, int)
    centre, size = np.stack([m.centre for m in marks]), np.array([float(m.size[0]) for m in marks])
    spots = centre[:, None] + size[:, None, None] * _BALL
    facing = (_BALL * (origin - spots)).sum(-1) > 0
    return spots[facing], np.nonzero(facing)[0]


def _hit(solid: Mark, origin: Array, way: Array) -> Array:
    """Distance [R] to where rays enter a ball or a box; infinite where they miss."""
    to = solid.centre - origin
    if solid.ball:
        along = way @ to
        left = float(solid.size[0]) ** 2 - (to @ to - along**2)
        near = along - np.sqrt(np.maximum(left, 0.0))
        return np.where((left >= 0) & (near > 0), near, np.inf)
    with np.errstate(divide="ignore"):
        a, b = (to - solid.size) / way, (to + solid.size) / way
    enter, leave = np.minimum(a, b).max(-1), np.maximum(a, b).min(-1)
    return np.where((enter <= leave) & (enter > 0), enter, np.inf)
