"""OGBench's scene (arXiv 2410.20092; the ogbench package): a UR5e with a Robotiq gripper before a cube, two buttons, a drawer and a window.

20 decisions a second. Action [5]: the hand's motion (x, y, z, yaw) and the gripper's. State [43]: the arm's joints and their speeds, the
hand's place and yaw, gripper opening and contact [19 numbers], the cube's place, quaternion and yaw, the buttons, drawer and window, and
where the cube shall go (0 where nobody moves it), in OGBench's own scales. What a task is about stands at random within what leaves it to
be done, everything else anywhere; drawer and window are unlocked unless their button is the task. The demonstrators are the package's
memoryless oracles. An episode depends on its seed alone.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from realrl.envs.base import RobotEnv, ScriptedPolicy
from realrl.envs.mujoco import randomise as whims
from realrl.envs.mujoco.gl import windowless
from realrl.envs.mujoco.sight import Scenery, View, eyes
from realrl.scene import RandomiseConfig, SightConfig
from realrl.types import Array, Policy, RealrlError, TaskSpec

HORIZON = 150
_CENTRE, _SCALE = np.array([0.425, 0.0, 0.0]), 10.0
_DRAWER, _WINDOW = (18.0, -0.16), (15.0, 0.2)  # scale in the state; where it is open, m
_BLOCK, _BUTTONS, _SLIDES, _TARGET = 19, (28, 32), (36, 38), 40  # where they begin in the state
_TOPS = ((0.58, -0.05, 0.125), (0.58, 0.05, 0.121))
"""The buttons' tops, m; where the handles of drawer and window are follows from how far they are open."""


@dataclass(frozen=True)
class Job:
    """What is to be done. about: which thing; which: of two buttons; open: whether drawer or window shall be open."""

    texts: tuple[str, ...]
    about: Literal["cube", "button", "drawer", "window"]
    which: int = 0
    open: bool = False


JOBS = {
    "cube": Job(("carry the cube to its mark", "take the block over to the mark", "bring the red cube where it belongs"), "cube"),
    "button-drawer": Job(("press the button that frees the drawer", "unlock the drawer by its button", "push the left of both buttons"),
                         "button", 0),
    "button-window": Job(("press the button that frees the window", "unlock the window by its button", "push the right of both buttons"),
                         "button", 1),
    "drawer-open": Job(("draw the white drawer open", "get the drawer out by its handle", "move the drawer out"), "drawer", open=True),
    "drawer-close": Job(("shove the white drawer closed", "get the drawer back in by its handle", "move the drawer in"), "drawer"),
    "window-open": Job(("slide the pane to open the window", "get the window open by its handle", "move the pane to the right"), "window",
                       open=True),
    "window-close": Job(("slide the pane to close the window", "get the window shut by its handle", "move the pane to the left"), "window"),
}


def names() -> tuple[str, ...]:
    """All task names of this suite."""
    return tuple(JOBS)


def make(name: str, *, reward: str | None = None, horizon: int | None = None, sight: SightConfig | None = None,
         randomise: RandomiseConfig | None = None) -> RobotEnv:
    """Environment `name` of `names()`: reward sparse, horizon 150 steps of 50 ms unless given."""
    whims.refuse(f"ogbench/{name}", randomise, "its scene differs from start to start")
    return SceneEnv(name, reward, HORIZON if horizon is None else horizon, sight)


def expert(name: str, path: str | None = None) -> Policy:
    """The package's oracle. Raises RealrlError when given a path: a script needs no file."""
    if path is not None:
        raise RealrlError(f"ogbench/{name}: its expert is a script and takes no file, leave out the path {path!r}")
    with windowless():
        from ogbench.manipspace.oracles.markov import button_markov, cube_markov, drawer_markov, window_markov
    kind = {"cube": cube_markov.CubeMarkovOracle, "button": button_markov.ButtonMarkovOracle, "drawer": drawer_markov.DrawerMarkovOracle,
            "window": window_markov.WindowMarkovOracle}[JOBS[name].about]
    oracle = kind(env=None)
    oracle._final_pos, oracle._final_yaw, oracle._step = np.array([0.425, 0.0, 0.3]), 0.0, 0  # where it would go afterwards
    return ScriptedPolicy(f"oracle:{name}", functools.partial(_control, name, oracle))


def _control(name: str, oracle: Any, states: Array) -> Array:
    """The oracle's actions [B, 5] at states [B, 43]; a function of the module, so that worker processes can be sent it."""
    return np.stack([oracle.select_action(None, _told(JOBS[name], s.astype(np.float64))) for s in states])


def _told(job: Job, s: Array) -> dict[str, Any]:
    """What the package would tell an oracle of the scene, from a state [43]."""
    def handle(drawer: bool, slide: float) -> Array:
        return np.array([0.3304, -0.24 - slide, 0.08]) if drawer else np.array([0.286 + slide, 0.225, 0.237])

    drawer, window = s[_SLIDES[0]] / _DRAWER[0], s[_SLIDES[1]] / _WINDOW[0]
    return {
        "proprio/effector_pos": s[12:15] / _SCALE + _CENTRE, "proprio/effector_yaw": np.array([np.arctan2(s[16], s[15])]),
        "proprio/gripper_opening": s[17:18] / 3.0, "proprio/gripper_contact": s[18:19],
        "privileged/target_block": 0, "privileged/block_0_pos": s[_BLOCK:_BLOCK + 3] / _SCALE + _CENTRE,
        "privileged/block_0_yaw": np.array([np.arctan2(s[_BLOCK + 8], s[_BLOCK + 7])]),
        "privileged/target_block_pos": s[_TARGET:] / _SCALE + _CENTRE, "privileged/target_block_yaw": np.zeros(1),
        "privileged/target_button": job.which, "privileged/target_button_top_pos": np.array(_TOPS[job.which]),
        f"privileged/button_{job.which}_state": int(s[_BUTTONS[job.which] + 1] > 0.5), "privileged/target_button_state": 1,
        "privileged/drawer_handle_pos": handle(True, drawer), "privileged/drawer_handle_yaw": np.array([np.pi]),
        "privileged/target_drawer_handle_pos": handle(True, _DRAWER[1] * job.open),
        "privileged/window_handle_pos": handle(False, window), "privileged/window_handle_yaw": np.array([np.pi / 2]),
        "privileged/target_window_handle_pos": handle(False, _WINDOW[1] * job.open)}


@functools.lru_cache(maxsize=1)
def _built() -> Any:
    """The package's scene, compiled: seconds, so once a process."""
    with windowless():
        from ogbench.manipspace.envs.scene_env import SceneEnv as Theirs
    sim = Theirs("scene", mode="data_collection", visualize_info=False)
    sim.reset(seed=0)
    return sim


class SceneEnv(RobotEnv):
    """One of the tasks of the scene."""

    def __init__(self, name: str, reward: str | None, horizon: int, sight: SightConfig | None) -> None:
        import mujoco
        self._job = job = JOBS[name]
        self._entered: dict[str, Array] | None = None
        sim = self._sim = copy.copy(_built())  # what it changes is its own from here on
        sim._model = copy.copy(sim._model)
        sim._data = mujoco.MjData(sim._model)
        sim._cur_button_states, sim._target_button_states = sim._cur_button_states.copy(), sim._target_button_states.copy()
        task = TaskSpec("ogbench", name, _TARGET + 3, 5, horizon, 0.05, job.texts[0], paraphrases=job.texts[1:])
        arm = [sim._model.body(i).name for i in range(sim._model.nbody)]
        still = frozenset(body for body in arm if body == "world" or (body.startswith("ur5e/") and "robotiq" not in body))
        stage = Scenery(task.id, (View("front_pixels"),), tuple(range(_BLOCK)), ((0.2, -0.45, 0.01), (0.7, 0.45, 0.45)), still,
                        hand=lambda: sim._data.site_xpos[sim._pinch_site_id])
        super().__init__(task, reward=reward, kinds=("sparse",), eyes=eyes(sight, stage, sim._model, sim._data))

    def _begin(self, seed: int) -> Array:
        import mujoco
        sim, job = self._sim, self._job
        sim.reset(seed=seed)
        if self._entered is None:
            self._scatter()
        else:
            sim._data.qpos[:], sim._data.qvel[:], sim._data.ctrl[:] = (self._entered[k] for k in ("qpos", "qvel", "ctrl"))
            sim._cur_button_states[:] = self._entered["buttons"]
        sim._apply_button_states()  # where the cube is has to be known before it gets its mark
        sim._target_button_states[:] = 1
        sim._target_task, sim._target_block, sim._target_button = job.about, 0, job.which
        sim._target_drawer_pos, sim._target_window_pos = _DRAWER[1] * job.open, _WINDOW[1] * job.open
        sim._model.site("drawer_handle_center_target").pos[1] = sim._target_drawer_pos
        sim._model.site("window_handle_center_target").pos[0] = sim._target_window_pos
        self._target = self._somewhere() if job.about == "cube" else np.array([0.0, 0.0, -0.3])
        sim._data.mocap_pos[sim._cube_target_mocap_ids[0]] = self._target
        sim.pre_step()
        mujoco.mj_forward(sim._model, sim._data)
        return self._state(sim.compute_observation())

    def _scatter(self) -> None:
        """Drawer and window anywhere, but for what has to be done; they are free, but for a button that is the task."""
        sim, job, random = self._sim, self._job, self.np_random
        closed, opened, share = random.uniform(0.0, 0.3, 2), random.uniform(0.88, 1.0, 2), random.uniform(0.0, 1.0, 2)
        for i, about in enumerate(("drawer", "window")):
            if job.about == about:
                share[i] = closed[i] if job.open else opened[i]
        sim._data.joint("drawer_slide").qpos[0], sim._data.joint("window_slide").qpos[0] = share * (_DRAWER[1], _WINDOW[1])
        sim._cur_button_states[:] = 1
        if job.about == "button":
            sim._cur_button_states[job.which] = 0

    # -- one task after the other in one world (`realrl.cell.pool`)

    def world(self) -> dict[str, Array]:
        """Where everything is, and what the motors are told."""
        data, buttons = self._sim._data, self._sim._cur_button_states
        return {"qpos": data.qpos.copy(), "qvel": data.qvel.copy(), "ctrl": data.ctrl.copy(), "buttons": buttons.copy()}

    def enter(self, world: dict[str, Array] | None) -> None:
        """The next episode begins in this world, of another task; None: in a start of its own."""
        self._entered = world

    def startable(self, world: dict[str, Array]) -> bool:
        """Whether it is still to be done in this world, and within reach."""
        job, model = self._job, self._sim._model
        if job.about == "button":
            return bool(world["buttons"][job.which] == 0)
        if job.about == "cube":
            x, y, z = world["qpos"][model.joint("object_joint_0").qposadr[0]:][:3]
            return bool(0.27 <= x <= 0.55 and -0.15 <= y <= 0.25 and z <= 0.06)
        wide, slide = (_DRAWER[1], "drawer_slide") if job.about == "drawer" else (_WINDOW[1], "window_slide")
        return bool(abs(world["qpos"][model.joint(slide).qposadr[0]] - wide * job.open) > 0.06)

    def _somewhere(self) -> Array:
        """A mark [3] for the cube, 10 cm from it at least."""
        cube = self._sim._data.joint("object_joint_0").qpos[:2]
        while True:
            place = self.np_random.uniform(*self._sim._target_sampling_bounds)
            if np.linalg.norm(place - cube) >= 0.1:
                return np.array([*place, 0.02])

    def _advance(self, action: Array) -> tuple[Array, float, bool, bool]:
        state, *_ = self._sim.step(action)
        return self._state(state), 0.0, False, bool(self._sim._success)

    def _state(self, seen: Array) -> Array:
        """The state [43] of the package's observation [40]; the cube's mark is drawn, which the package hides."""
        cube = self._job.about == "cube"
        for geom in self._sim._cube_target_geom_ids_list[0]:
            self._sim._model.geom_rgba[geom, 3] = 0.3 * cube
        return np.concatenate([seen, (self._target - _CENTRE) * _SCALE if cube else np.zeros(3)])
