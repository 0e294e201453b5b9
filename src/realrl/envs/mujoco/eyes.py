"""The eyes of a MuJoCo environment: pictures, depths and clouds by the keys of the contract.

See `realrl.envs.mujoco.sight` for what they see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mujoco
import numpy as np

from realrl.envs import clouds
from realrl.envs.mujoco import render
from realrl.envs.mujoco.rays import RayCaster
from realrl.envs.mujoco.sight import Mark, Scenery, View, choose
from realrl.scene import SightConfig
from realrl.types import Array, Obs, RealrlError

RAYS = 2.0
"""Rays cast for every point of a cloud: some meet nothing, and farthest point sampling wants a choice."""


class Sight:
    """The eyes of a MuJoCo environment, see `realrl.envs.base.Eyes`."""

    def __init__(self, cfg: SightConfig, stage: Scenery, model: Any, data: Any) -> None:
        """Moves the model's cameras to the stage's views. Raises RealrlError on an unknown camera, without a hand to look from, and where
        OpenGL is missing."""
        if cfg.kind == "pointcloud" and cfg.frame == "hand" and stage.hand is None:
            raise RealrlError(f"{stage.task}: it has no hand for a cloud to be seen from, take sight.frame world")
        self._cfg, self._stage, self._model, self._data = cfg, stage, model, data
        self._hand = stage.hand if cfg.frame == "hand" else None
        self.own: Sequence[int] = stage.own
        self.solids: list[Mark] = []
        """What is drawn into the scene without physics; `realrl.envs.mujoco.randomise` puts distractors here."""
        for view in stage.views:
            _place(model, view)
        known = [model.camera(i).name for i in range(model.ncam)]
        usual = [v.camera for v in stage.views]
        names = choose(stage.task, cfg, [name for name in known if name], usual if cfg.kind == "pointcloud" else usual[:1])
        self._cameras = {name: known.index(name) for name in names}
        self._nominal = model.cam_pos.copy(), model.cam_quat.copy()
        self._studio: render.Studio | None = None
        self._episode = 0
        self._caster: RayCaster | None = None
        self._box = np.asarray(stage.box, np.float64)
        size = (cfg.height, cfg.width)
        shapes: dict[str, dict[str, tuple[int, ...]]] = {
            "rgb": {f"images.{name}": (*size, 3) for name in names}, "depth": {f"depth.{name}": size for name in names},
            "pointcloud": {"pointcloud": (cfg.points, 6 if cfg.colour else 3)}}
        self.senses: Mapping[str, tuple[int, ...]] = shapes[cfg.kind]
        cloud = cfg.kind == "pointcloud"
        if cloud:
            away = [model.body(name).id for name in stage.hidden if name in {model.body(i).name for i in range(model.nbody)}]
            model.geom_group[np.isin(model.geom_bodyid, away) & np.isin(model.geom_group, render.VISIBLE)] = render.HIDDEN
        if cloud and cfg.source == "rays":
            self._caster = RayCaster(model, list(self._cameras.values()), self._box, round(RAYS * cfg.points))
            return
        self._studio = render.studio(stage.task, model, *size)
        self._scene, self._option = render.scene(model, without_hidden=cloud)

    def look(self, *, first: bool) -> Obs:
        """The observations of `senses` at the simulator's state."""
        if first:  # a reset moves bodies and cameras in the model, and the ground
            self._episode += 1
            mujoco.mj_kinematics(self._model, self._data)
            mujoco.mj_camlight(self._model, self._data)
            self._stage.settle()
        if self._cfg.kind == "rgb":
            return {f"images.{name}": _there(self._shoot(camera, colour=True, depth=False)[0]) for name, camera in self._cameras.items()}
        if self._cfg.kind == "depth":
            return {f"depth.{name}": _millimetres(_there(self._shoot(camera, colour=False, depth=True)[1]))
                    for name, camera in self._cameras.items()}
        cloud = self._by_rays() if self._caster else self._by_depth()
        return {"pointcloud": cloud if self._hand is None else clouds.about(cloud, self._hand())}

    def close(self) -> None:
        """Give the renderer back."""
        if self._studio is not None:
            render.leave(self._studio)
            self._studio = None

    def _by_rays(self) -> Array:
        assert self._caster is not None
        parts = []
        for camera, (points, colours) in zip(self._cameras.values(), self._caster.cast(self._data, self._stage.marks(), self.solids),
                                             strict=True):
            true, believed = self._poses(camera)
            if true is not believed:
                points = (points - true[:3, 3]) @ true[:3, :3] @ believed[:3, :3].T + believed[:3, 3]
            parts.append(np.concatenate([points, colours], -1) if self._cfg.colour else points)
        return clouds.sample(np.concatenate(parts), self._cfg.points).astype(np.float32)

    def _by_depth(self) -> Array:
        shots = [self._shoot(camera, colour=self._cfg.colour, depth=True) for camera in self._cameras.values()]
        cameras = [clouds.Pinhole.upright(self._cfg.height, self._cfg.width, float(self._model.cam_fovy[camera]), self._poses(camera)[1])
                   for camera in self._cameras.values()]
        return clouds.cloud([_there(d) for _, d in shots], cameras, self._box, self._cfg.points,
                            [_there(c) for c, _ in shots] if self._cfg.colour else None)

    def _poses(self, camera: int) -> tuple[Array, Array]:
        """A camera's pose [4, 4] (`clouds.Pinhole`) as it is, and as its calibration has it: they differ where cameras are randomised.

        So a cloud is off by the camera's displacement, as a real one is by its calibration's error. The same object: no difference.
        """
        model, data = self._model, self._data
        true = _pose(data.cam_xpos[camera], data.cam_xmat[camera].reshape(3, 3))
        place, quat = self._nominal[0][camera], self._nominal[1][camera]
        fixed = model.cam_mode[camera] == mujoco.mjtCamLight.mjCAMLIGHT_FIXED
        if not fixed or (np.array_equal(place, model.cam_pos[camera]) and np.array_equal(quat, model.cam_quat[camera])):
            return true, true
        body, turn = model.cam_bodyid[camera], np.zeros(9)
        mujoco.mju_quat2Mat(turn, quat)
        carrier = data.xmat[body].reshape(3, 3)
        return true, _pose(data.xpos[body] + carrier @ place, carrier @ turn.reshape(3, 3))

    def _shoot(self, camera: int, *, colour: bool, depth: bool) -> tuple[Array | None, Array | None]:
        """(uint8 [H, W, 3], float32 [H, W] m), each where asked for."""
        if self._studio is None:
            raise RealrlError(f"{self._stage.task}: this environment is closed, make another one")
        model, scene = self._model, self._scene
        eye = mujoco.MjvCamera()
        eye.type, eye.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera
        mujoco.mjv_updateScene(model, self._data, self._option, None, eye, mujoco.mjtCatBit.mjCAT_ALL, scene)
        for solid in self.solids:
            render.add(scene, solid)
        self._studio.lay(model, (id(self), self._episode))
        planes = float(model.vis.map.znear * model.stat.extent), float(model.vis.map.zfar * model.stat.extent)
        return self._studio.shoot(scene, colour=colour, depth=planes if depth else None)


def _there(picture: Array | None) -> Array:
    assert picture is not None
    return picture


def _place(model: Any, view: View) -> None:
    """Put a camera of the model where a view wants it; the picture's upper edge is up in the world."""
    camera = model.camera(view.camera).id
    if view.position is not None:
        model.cam_pos[camera] = view.position
    if view.fovy is not None:
        model.cam_fovy[camera] = view.fovy
    if view.target is not None:
        back = model.cam_pos[camera] - np.array(view.target)
        right = np.cross((0.0, 0.0, 1.0), back)
        axes = np.stack([right, np.cross(back, right), back], -1)
        mujoco.mju_mat2Quat(model.cam_quat[camera], np.ascontiguousarray(axes / np.linalg.norm(axes, axis=0)).ravel())


def _pose(place: Array, turn: Array) -> Array:
    """OpenCV's pose [4, 4] of a camera of OpenGL's convention (y up, z backward)."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn * (1.0, -1.0, -1.0), place
    return pose


def _millimetres(metres: Array) -> Array:
    """uint16 [H, W]; what is 65.5 m away or more counts as nothing."""
    scaled = np.round(1000.0 * metres.astype(np.float64))
    return np.where(scaled < 65536, scaled, 0).astype(np.uint16)
