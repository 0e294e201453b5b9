"""What differs from episode to episode beside the task itself (domain randomisation, Tobin et al. 2017, arXiv 1703.06907)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from realrl.envs.mujoco.sight import Box, Mark
from realrl.scene import RandomiseConfig
from realrl.types import Array, RealrlError

if TYPE_CHECKING:  # it imports the simulator
    from realrl.envs.mujoco.eyes import Sight


def refuse(task: str, cfg: RandomiseConfig | None, why: str) -> None:
    """Raise RealrlError when anything is asked for. why: what the task is, e.g. "a toy"."""
    if cfg is not None and cfg.active:
        raise RealrlError(f"{task}: nothing can be randomised here ({why}): leave `randomise` out")


def randomiser(cfg: RandomiseConfig | None, model: Any, data: Any, sight: Sight | None, box: Box, *,
               pushed: bool = False) -> Randomiser | None:
    """The randomiser of a MuJoCo environment, None when everything is off. pushed: whether the environment has a `pushes.Pusher`; raises
    RealrlError where pushes are asked for and it has none."""
    if cfg is not None and cfg.push and not pushed:
        raise RealrlError(f"randomise.push is {cfg.push:g}, but only robots of quadruped/... are pushed: leave it out")
    return Randomiser(cfg, model, data, sight, box) if cfg is not None and cfg.active else None


# Everything that a draw changes, and what MuJoCo derives from masses (mj_setConst).
_FIELDS = ("light_pos", "light_ambient", "light_diffuse", "light_specular", "geom_rgba", "mat_rgba", "cam_pos", "cam_quat",
           "geom_friction", "pair_friction", "body_mass", "body_inertia", "body_subtreemass", "body_invweight0", "dof_M0",
           "dof_invweight0", "tendon_length0", "tendon_invweight0", "tendon_lengthspring", "actuator_length0", "actuator_acc0",
           "cam_pos0", "cam_poscom0", "cam_mat0", "light_pos0", "light_poscom0", "light_dir0", "qpos_spring")
_HEADLIGHT = ("ambient", "diffuse", "specular")
_STATISTICS = ("meaninertia", "meanmass", "meansize", "extent", "center")
_STREAM = 0x5EED
"""Keeps these draws apart from the task's own, which come from the same seed."""


class Randomiser:
    """Changes a MuJoCo model for an episode and back again."""

    def __init__(self, cfg: RandomiseConfig, model: Any, data: Any, sight: Sight | None, box: Box) -> None:
        """model: as it is to be restored, its cameras where `sight` wants them. box: where distractors may lie, on its floor."""
        import mujoco

        from realrl.envs.mujoco import render
        self._cfg, self._model, self._sight, self._box = cfg, model, sight, np.asarray(box, np.float64)
        self._scratch = mujoco.MjData(model) if cfg.mass else None
        self._own_paint = render.own_paint(model)  # a touch of colour on the others would hide their material
        self._pristine = {name: getattr(model, name).copy() for name in _FIELDS}
        self._headlight = {name: getattr(model.vis.headlight, name).copy() for name in _HEADLIGHT}
        self._statistics = {name: np.copy(getattr(model.stat, name)) for name in _STATISTICS}

    def restore(self) -> None:
        """The model as it was before the first episode."""
        for name, value in self._pristine.items():
            getattr(self._model, name)[:] = value
        for name, value in self._headlight.items():
            getattr(self._model.vis.headlight, name)[:] = value
        self._restore_statistics()
        if self._sight is not None:
            self._sight.solids = []

    def _restore_statistics(self) -> None:
        for name, value in self._statistics.items():
            if value.ndim:
                getattr(self._model.stat, name)[:] = value
            else:
                setattr(self._model.stat, name, float(value))

    def apply(self, seed: int) -> None:
        """Draw the episode of `seed`. Every kind has a generator of its own: switching one on does not change another's draws."""
        cfg = self._cfg
        kinds = ((cfg.light, self._light), (cfg.colour, self._colour), (cfg.camera, self._camera), (cfg.angle, self._angle),
                 (cfg.distractors, self._distract), (cfg.friction, self._friction), (cfg.mass, self._mass))
        for number, (magnitude, draw) in enumerate(kinds):
            if magnitude:
                draw(np.random.default_rng([seed, _STREAM, number]), magnitude)

    def _light(self, rng: np.random.Generator, by: float) -> None:
        model = self._model
        model.light_pos[:] += rng.uniform(-by, by, model.light_pos.shape)
        strength = rng.uniform(1 - by, 1 + by, (model.nlight, 1))
        for field in (model.light_ambient, model.light_diffuse, model.light_specular):
            field[:] *= strength
        overall = float(rng.uniform(1 - by, 1 + by))
        for name in _HEADLIGHT:
            getattr(model.vis.headlight, name)[:] *= overall

    def _colour(self, rng: np.random.Generator, by: float) -> None:
        model = self._model
        for field, drawn in ((model.geom_rgba, self._own_paint), (model.mat_rgba, np.full(model.nmat, True))):
            change = rng.uniform(-by, by, (len(field), 3))
            field[drawn, :3] = np.clip(field[drawn, :3] + change[drawn], 0.0, 1.0)

    def _camera(self, rng: np.random.Generator, by: float) -> None:
        model = self._model
        move = rng.uniform(-by, by, model.cam_pos.shape)
        for field in (model.cam_pos, model.cam_pos0, model.cam_poscom0):  # the two last are where cameras that follow a body hang
            field[:] += move

    def _angle(self, rng: np.random.Generator, by: float) -> None:
        import mujoco
        for quat, followed in zip(self._model.cam_quat, self._model.cam_mat0, strict=True):
            axis, turn, matrix = rng.standard_normal(3), np.zeros(4), np.zeros(9)
            mujoco.mju_axisAngle2Quat(turn, axis / np.linalg.norm(axis), math.radians(float(rng.uniform(0.0, by))))
            mujoco.mju_mulQuat(quat, quat.copy(), turn)
            mujoco.mju_quat2Mat(matrix, turn)
            followed[:] = (followed.reshape(3, 3) @ matrix.reshape(3, 3)).ravel()

    def _distract(self, rng: np.random.Generator, count: float) -> None:
        if self._sight is None:
            return
        low, high = self._box
        floor = float(low[2]) if abs(low[2]) > 0.1 else 0.0  # a box that begins just above or below a table was cut to leave it out
        self._sight.solids = []
        for _ in range(int(count)):
            ball, size = bool(rng.integers(2)), rng.uniform(0.01, 0.03, 3)
            size = np.full(3, size[0]) if ball else size
            at: Array = np.array([*rng.uniform(low[:2] + 0.03, high[:2] - 0.03), floor + size[2]])
            self._sight.solids.append(Mark(at, size, np.array([*rng.uniform(0.0, 1.0, 3), 1.0]), ball))

    def _friction(self, rng: np.random.Generator, by: float) -> None:
        model = self._model
        model.geom_friction[:, 0] *= rng.uniform(1 - by, 1 + by, model.ngeom)
        model.pair_friction[:, :2] *= rng.uniform(1 - by, 1 + by, (model.npair, 1))

    def _mass(self, rng: np.random.Generator, by: float) -> None:
        import mujoco
        model = self._model
        factor = rng.uniform(1 - by, 1 + by, model.nbody)
        model.body_mass[:] *= factor
        model.body_inertia[:] *= factor[:, None]
        mujoco.mj_setConst(model, self._scratch)
        self._restore_statistics()  # the renderer's clipping planes hang on them
