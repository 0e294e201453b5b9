"""What users of HIL-SERL elsewhere begin with: a Panda picks up a cube (gym-hil), "gymhil/pick-cube" and "gymhil/pick-cube-anywhere".

Ten decisions a second, with the package's own model and controller (in Python: some 50 steps a second a core). Action [4]: the
hand's motion, 2.5 cm at most along each axis, no rotation; and a command to the gripper (0.5 and more shuts, -0.5 and less opens). The
package's cube always lies at one place, so that its episodes begin alike whatever the seed; in "pick-cube-anywhere" a seed has its own
place within 20 x 30 cm. Success, as the package has it: the cube is 10 cm up; a cube that leaves its field ends the episode, in failure.

`state` [24] is what the package observes in numbers that networks like: joint angles from home and their speeds [14], the gripper's
command, 0 to 1, the hand's and the cube's place [3 each] from the field's middle in 10 cm; besides, the way from hand to cube [3] in 5 cm.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from realrl.envs.base import RobotEnv, ScriptedPolicy
from realrl.envs.mujoco import randomise as whims
from realrl.envs.mujoco.sight import Scenery, View, eyes
from realrl.scene import COMMAND, RandomiseConfig, SightConfig
from realrl.types import Array, Policy, RealrlError, TaskSpec

HORIZON = 100
STEP = 0.025
"""The hand's motion an action of 1 asks for, m."""
LIFT = 0.1
"""How far up the cube has to be, m."""
MIDDLE, NEAR = np.array([0.4, 0.0, 0.1]), 0.05
HOME = (0, 0.195, 0, -2.43, 0, 2.62, 0.785)
REACH = ((0.2, -0.3, 0.0), (0.6, 0.3, 0.5))
"""Where the hand may go, m."""
FIELD = ((0.3, -0.15), (0.5, 0.15))
"""Where the cube may lie, m; 5 cm beyond it is lost."""
_TEXTS = ("pick up the cube", "grasp the small cube and lift it", "take the block off the table")


def names() -> tuple[str, ...]:
    """All task names of this suite."""
    return ("pick-cube", "pick-cube-anywhere")


def make(name: str, *, reward: str | None = None, horizon: int | None = None, sight: SightConfig | None = None,
         randomise: RandomiseConfig | None = None) -> RobotEnv:
    """Environment `name` of `names()`: reward "sparse" (default) or "dense" (the package's); 100 steps; cameras "front", "handcam_rgb"."""
    whims.refuse(f"gymhil/{name}", randomise, "it is the package's own scene")
    return PickCube(name, reward, HORIZON if horizon is None else horizon, sight)


def expert(name: str, path: str | None = None) -> Policy:
    """A script, at half the full speed. Raises RealrlError when given a path: it needs no file."""
    if path is not None:
        raise RealrlError(f"gymhil/{name}: its expert is a script and takes no file, leave out the path {path!r}")
    return ScriptedPolicy(f"script:{name}", _control)


def _control(states: Array) -> Array:
    """The script's actions [B, 4]: over the cube with open fingers, down, shut, up; a function of the module, so that worker processes can
    be sent it."""
    way, grip = NEAR * states[:, 21:24].astype(np.float64), states[:, 14]
    over, at = np.abs(way[:, :2]).max(1) < 0.008, np.linalg.norm(way, axis=1) < 0.012
    goal = np.stack([way[:, 0], way[:, 1], np.where(over, way[:, 2], way[:, 2] + 0.06)], 1)
    held = (grip > 0.5) & (np.linalg.norm(way, axis=1) < 0.03)
    goal = np.where(held[:, None], np.array([0.0, 0.0, STEP]), goal)
    shut = at & ~held
    command = np.where(shut, 1.0, np.where(~held & (grip > 0.5), -1.0, 0.0))  # empty fingers open
    motion = np.clip(goal / STEP, -0.5, 0.5) * (command == 0)[:, None]
    return np.concatenate([motion, command[:, None]], 1)


def progress(state: Array) -> float:
    """How near a state [D] is to the end, mm: how far the cube is up, less what is missing to it."""
    return 100.0 * float(state[20]) - 1000.0 * NEAR * float(np.linalg.norm(state[21:24]))


class PickCube(RobotEnv):
    """One of the tasks."""

    def __init__(self, name: str, reward: str | None, horizon: int, sight: SightConfig | None) -> None:
        self._sim, self._anywhere = _panda(), name == "pick-cube-anywhere"
        task = TaskSpec("gymhil", name, 24, 4, horizon, 0.1, _TEXTS[0], gripper=True, paraphrases=_TEXTS[1:])
        model, data = self._sim.model, self._sim.data
        still = frozenset(model.body(i).name for i in range(model.nbody) if model.body(i).name != "block")
        stage = Scenery(task.id, (View("front"), View("handcam_rgb")), tuple(range(18)), ((0.25, -0.2, 0.001), (0.55, 0.2, 0.4)), still,
                        hand=lambda: data.site("pinch").xpos)
        super().__init__(task, reward=reward, eyes=eyes(sight, stage, model, data))

    def _begin(self, seed: int) -> Array:
        import mujoco
        sim = self._sim
        mujoco.mj_resetData(sim.model, sim.data)
        sim.reset_robot()
        place = self.np_random.uniform(*FIELD) if self._anywhere else (0.5, 0.0)
        sim.data.joint("block").qpos[:2] = place
        sim.data.joint("block").qpos[2] = sim.model.geom("block").size[2]
        mujoco.mj_forward(sim.model, sim.data)
        sim._z_init = float(sim.data.sensor("block_pos").data[2])
        sim._z_success = sim._z_init + LIFT
        return self._state()

    def _advance(self, action: Array) -> tuple[Array, float, bool, bool]:
        sim, command = self._sim, float(action[3] >= COMMAND) - float(action[3] <= -COMMAND)
        sim.apply_action(np.array([*(STEP * action[:3]), 0.0, 0.0, 0.0, command]))
        cube = sim.data.sensor("block_pos").data
        lost = bool((cube[:2] < np.array(FIELD[0]) - 0.05).any() or (cube[:2] > np.array(FIELD[1]) + 0.05).any())
        solved = bool(cube[2] - sim._z_init > LIFT)
        return self._state(), float(sim._compute_reward()), lost and not solved, solved

    def _state(self) -> Array:
        sim = self._sim
        own, cube = sim.get_robot_state().astype(np.float64), sim.data.sensor("block_pos").data
        hand = own[15:18]
        return np.concatenate([own[:7] - HOME, own[7:14], own[14:15] / 255, (hand - MIDDLE) / LIFT, (cube - MIDDLE) / LIFT,
                               (cube - hand) / NEAR])


def _panda() -> Any:
    """The package's environment, without the window that it opens to draw in."""
    from pathlib import Path

    import gym_hil
    from gym_hil.envs import PandaPickCubeGymEnv

    class Panda(PandaPickCubeGymEnv):  # type: ignore[misc]
        """What `apply_action` and the others look at."""

        def __init__(self) -> None:
            gym_hil.MujocoGymEnv.__init__(self, Path(gym_hil.__file__).parent / "assets" / "scene.xml", control_dt=0.1)
            self._home_position, self._cartesian_bounds = np.array(HOME), np.array(REACH)
            self._panda_dof_ids = np.array([self._model.joint(f"joint{i}").id for i in range(1, 8)])
            self._panda_ctrl_ids = np.array([self._model.actuator(f"actuator{i}").id for i in range(1, 8)])
            self._gripper_ctrl_id = self._model.actuator("fingers_actuator").id
            self._pinch_site_id = self._model.site("pinch").id
            self.reward_type = "dense"

    return Panda()
