"""LIBERO's scenes in MuJoCo: robosuite's Panda under its pose controller, before things on a table or on the floor.

Building a scene takes robosuite ten seconds, so each is built once a process, and all environments that play in it take turns: what is
an environment's own (MuJoCo's data, where the furniture stands, what the controller and the fingers were told) is put in before it moves.
A step is the package's own, controller and all, without its table of observables, which it fills 25 times a step.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mujoco
import numpy as np

from realrl.envs.base import RobotEnv
from realrl.envs.mujoco.sight import Scenery, View, eyes
from realrl.scene import SightConfig
from realrl.types import Array, RealrlError, TaskSpec

if TYPE_CHECKING:
    from realrl.envs.libero import Job

_HZ = 20
_SETTLES = 10
"""Steps in which things fall onto the table and the fingers open before an episode begins, as LIBERO's own evaluations wait."""
_SHIFT = 0.005
"""A thing is this far at most, along x and y, from where the suite's start state has it, m."""
_UNDRAWN = 3
"""The geom group of what is there for contacts alone."""


def _package() -> tuple[Any, Any]:
    """LIBERO's module of environments and its `get_libero_path`, with the greetings kept quiet. Raises RealrlError beside another
    robosuite than it was made for."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
        import robosuite
        if not robosuite.__version__.startswith("1.4."):
            raise RealrlError(f"libero/...: robosuite is {robosuite.__version__} here, and LIBERO's is older (recordings of robosuite are "
                              "played in the newer one, best in an environment of its own): pip install --no-deps robosuite==1.4.0")
        from libero.libero import get_libero_path
        from libero.libero.envs import env_wrapper
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    return env_wrapper, get_libero_path


class World:
    """What is an environment's own of a scene. fixtures: [F, 3] where the furniture stands, m; turn: [3, 3] how the controller was last
    told to hold the hand; fingers: [2] what they were last told."""

    def __init__(self, data: Any, fixtures: Array, turn: Array, fingers: Array) -> None:
        self.data, self.fixtures, self.turn, self.fingers = data, fixtures, turn, fingers


class Stage:
    """A scene of the package, shared by the environments of this process. things: bodies and the furniture, in the state's order."""

    def __init__(self, suite: str, file: str, things: tuple[str, ...], furniture: tuple[str, ...]) -> None:
        package, path = _package()
        place, drawn = Path(path("bddl_files")) / suite / f"{file}.bddl", np.random.get_state()
        with contextlib.redirect_stdout(io.StringIO()):
            self._env: Any = package.ControlEnv(bddl_file_name=str(place), has_offscreen_renderer=False, use_camera_obs=False,
                                                hard_reset=False, ignore_done=True, control_freq=_HZ).env
        np.random.set_state(drawn)  # it draws its first start from everybody's generator
        self.model: Any = self._env.sim.model._model
        self._robot, self._predicates = self._env.robots[0], self._env.object_states_dict
        self._substeps = int(self._env.control_timestep / self._env.model_timestep)
        self._hide()
        names = {self.model.body(i).name for i in range(self.model.nbody)}
        self.bodies = [self.model.body(f"{name}_1_main").id if f"{name}_1_main" in names else -1 for name in things]
        self._fixtures = [self.model.body(f"{name}_1_main").id for name in furniture]
        self.hand = self.model.site("gripper0_grip_site").id
        self._joints = [int(j) for j in self._robot._ref_joint_pos_indexes] + [int(j) for j in self._robot._ref_gripper_joint_pos_indexes]
        free = [j for j in range(self.model.njnt) if self.model.jnt_type[j] == mujoco.mjtJoint.mjJNT_FREE]
        self._free = [int(self.model.jnt_qposadr[j]) for j in free]
        self._slides = [int(self.model.jnt_qposadr[j]) for j in range(self.model.njnt)
                        if self.model.joint(j).name.startswith(tuple(f"{name}_1_" for name in furniture))] if furniture else []
        samplers = self._env.placement_initializer.samplers
        self._areas = np.array([[(s.x_ranges[0][i], s.y_ranges[0][i]) for i in (0, 1)]
                                for s in (samplers[f"{name}_1_sampler"] for name in furniture)]).reshape(-1, 2, 2)
        self._heights = self.model.body_pos[self._fixtures, 2].copy()

    def _hide(self) -> None:
        """As the package draws it: no collision geoms, and no marks on the gripper."""
        self.model.geom_group[self.model.geom_group == 0] = _UNDRAWN
        for site in range(self.model.nsite):
            if self.model.site(site).name.startswith("gripper0_"):
                self.model.site_rgba[site, 3] = 0.0

    def world(self) -> World:
        """A world of this scene, for an environment of its own."""
        from robosuite.utils.binding_utils import MjData
        return World(MjData(self._env.sim.model), np.zeros((len(self._fixtures), 3)), np.eye(3), np.zeros(2))

    def begin(self, world: World, start: Array, rng: np.random.Generator) -> None:
        """A start [1 + nq + nv] of the suite's, with furniture and things a little elsewhere, at rest."""
        low, high = self._areas[:, 0], self._areas[:, 1]
        world.fixtures = np.concatenate([rng.uniform(low, high), self._heights[:, None]], -1)
        mujoco.mj_resetData(self.model, world.data._data)
        world.data._data.qpos[:], world.data._data.qvel[:] = start[1:1 + self.model.nq], start[1 + self.model.nq:]
        for joint in self._free:
            world.data._data.qpos[joint:joint + 2] += rng.uniform(-_SHIFT, _SHIFT, 2)
        world.fingers = np.zeros(2)
        self._enter(world)
        mujoco.mj_forward(self.model, world.data._data)
        self._robot.controller.update(force=True)
        self._robot.controller.reset_goal()
        world.turn = self._robot.controller.goal_ori
        for _ in range(_SETTLES):
            self.step(world, np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0]))

    def _enter(self, world: World) -> None:
        env, controller = self._env, self._robot.controller
        env.sim.data = world.data
        self.model.body_pos[self._fixtures] = world.fixtures
        controller.goal_ori, controller.new_update = world.turn, True
        self._robot.gripper.current_action = world.fingers

    def step(self, world: World, action: Array) -> None:
        """A control step of 50 ms: robosuite's own, action [7]."""
        self._enter(world)
        env = self._env
        for n in range(self._substeps):
            env.sim.forward()
            env._pre_action(action, n == 0)
            env.sim.step()
        env._post_process()  # the stove glows
        world.turn, world.fingers = self._robot.controller.goal_ori, self._robot.gripper.current_action

    def done(self, goal: tuple[str, ...]) -> bool:
        """Whether LIBERO's predicate holds in the world that was stepped last."""
        return bool(self._env._eval_predicate(list(goal)))

    def state(self, data: Any) -> Array:
        """The full state, see `realrl.envs.libero`."""
        parts = [data.site_xpos[self.hand], _axes(data.site_xmat[self.hand]), data.qpos[self._joints[7:]], data.qpos[self._joints[:7]]]
        for body in self.bodies:
            parts += [np.zeros(9)] if body < 0 else [data.xpos[body], _axes(data.xmat[body])]
        return np.concatenate([*parts, data.xpos[self._fixtures].ravel(), data.qpos[self._slides]])


def _axes(matrix: Array) -> Array:
    """The first two columns [6] of a turn [9]."""
    columns: Array = matrix.reshape(3, 3)[:, :2].T.ravel()
    return columns


@functools.cache
def _stage(suite: str, file: str, things: tuple[str, ...], furniture: tuple[str, ...]) -> Stage:
    return Stage(suite, file, things, furniture)


@functools.cache
def _starts(suite: str, file: str) -> Array:
    """The suite's start states of a task [50, 1 + nq + nv]."""
    _, path = _package()
    with np.load(Path(path("init_states")) / suite / f"{file}.pruned_init.npz") as found:
        starts: Array = found["states"]
    return starts


class LiberoEnv(RobotEnv):
    """One of the tasks."""

    def __init__(self, task: TaskSpec, job: Job, reward: str | None, sight: SightConfig | None) -> None:
        scene = job.scene
        self._job, self._starts = job, _starts(scene.suite, job.file)
        self._stage = _stage(scene.suite, scene.file or job.file, scene.things, scene.furniture)
        self._world = self._stage.world()
        data = self._world.data._data
        bodies = [self._stage.model.body(i).name for i in range(self._stage.model.nbody)]
        still = frozenset(body for body in bodies if body in ("world", "table", "floor") or body.startswith(("robot0_", "mount0_")))
        scenery = Scenery(task.id, (View("agentview"),), tuple(range(scene.own)), scene.box, still,
                          hand=lambda: data.site_xpos[self._stage.hand])
        super().__init__(task, reward=reward, kinds=("sparse",), eyes=eyes(sight, scenery, self._stage.model, data))

    def _begin(self, seed: int) -> Array:
        start = self._starts[int(self.np_random.integers(len(self._starts)))]
        self._stage.begin(self._world, start, self.np_random)
        return self._stage.state(self._world.data._data)

    def _advance(self, action: Array) -> tuple[Array, float, bool, bool]:
        self._stage.step(self._world, action)
        return self._stage.state(self._world.data._data), 0.0, False, self._stage.done(self._job.goal)
