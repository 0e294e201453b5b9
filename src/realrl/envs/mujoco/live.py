"""What a world needs that a clock lets run: drives that may fail, somebody who pushes, and pictures that nothing waits for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np

from realrl.envs.mujoco import render
from realrl.types import Array, RealrlError


class Live:
    """A world whose joints are moved by actuators, step by step. While it is stalled its drives do not push, and brakes hold its joints."""

    def __init__(self, model: Any, data: Any, pushed: int, damping: float) -> None:
        """pushed: the body that `step` pushes; damping: of a joint that is braked, N s/m or N m s."""
        self._model, self._data, self._pushed, self._braked = model, data, pushed, damping
        self._joints = model.jnt_dofadr[model.actuator_trnid[:, 0]]
        self._usual, self._stalled = model.dof_damping[self._joints].copy(), False

    def step(self, stalled: bool, push: float) -> None:
        """One step of physics. push: N, upward."""
        model, off = self._model, mujoco.mjtDisableBit.mjDSBL_ACTUATION.value
        if stalled != self._stalled:
            self._stalled = stalled
            model.opt.disableflags = model.opt.disableflags | off if stalled else model.opt.disableflags & ~off
            model.dof_damping[self._joints] = self._braked if stalled else self._usual
        self._data.xfrc_applied[self._pushed, 2] = push
        mujoco.mj_step(model, self._data)


class Views:
    """Pictures of a running world: `take` copies what is to be seen while nothing moves, `draw` draws it, in one thread and at leisure."""

    def __init__(self, model: Any, data: Any, names: Sequence[str], size: int) -> None:
        """Raises RealrlError on an unknown camera."""
        known = [model.camera(i).name for i in range(model.ncam)]
        if wrong := [name for name in names if name not in known]:
            raise RealrlError(f"the simulated robot has no camera {wrong[0]!r}, it has {', '.join(known)}")
        self._model, self._data, self._size = model, data, size
        self._cameras = {name: known.index(name) for name in names}
        self._copy = mujoco.MjData(model)
        self._moment = np.zeros(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS.value))
        self._studio: render.Studio | None = None

    def take(self) -> None:
        """Copy the moment."""
        mujoco.mj_getState(self._model, self._data, self._moment, mujoco.mjtState.mjSTATE_FULLPHYSICS.value)

    def draw(self) -> dict[str, Array]:
        """uint8 [H, W, 3] of each camera. OpenGL starts here, in the thread that draws."""
        model = self._model
        if self._studio is None:
            self._studio = render.studio(f"robot-{id(self)}", model, self._size, self._size)
            self._scene, self._option = render.scene(model, without_hidden=False)
            self._camera = mujoco.MjvCamera()
            self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED.value
        mujoco.mj_setState(model, self._copy, self._moment, mujoco.mjtState.mjSTATE_FULLPHYSICS.value)
        mujoco.mj_kinematics(model, self._copy)
        mujoco.mj_camlight(model, self._copy)
        pictures = {}
        for name, number in self._cameras.items():
            self._camera.fixedcamid = number
            mujoco.mjv_updateScene(model, self._copy, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL.value, self._scene)
            picture, _ = self._studio.shoot(self._scene, colour=True, depth=None)
            assert picture is not None
            pictures[name] = picture
        return pictures

    def close(self) -> None:
        """Free the context."""
        if self._studio is not None:
            render.leave(self._studio)
