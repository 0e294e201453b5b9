"""Recordings of robosuite, played again in robosuite 1.5: "robosuite/Lift", "robosuite-1.0/Door", ... by robosuite's own names.

This is no suite to learn in: it begins where a recording began and nowhere else. One arm, a Panda, under robosuite's pose controller
(OSC_POSE: six numbers for the gripper's way, one for its fingers) at 20 Hz, the setting of robosuite's own demonstrations.

Recordings of robosuite 1.0 ("robosuite-1.0/...") fit: the simulator's state has the same joints in the same order. The hand turned
the other way round then, so the three numbers of its rotation change their sign (measured: in the human recording of NutAssembly the
hand turns by -0.12 times what is asked). Where table, bins, door and robot stand is taken from the recording's model
(`extra["model_file"]`). The rest of the two versions' models and controllers differs, contact geometry above all, so that a replay
drifts; docs/benchmarks.md says how far.
"""

from __future__ import annotations

import contextlib
import io
import logging
import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np

from realrl.envs.base import RobotEnv
from realrl.types import Array, Episode, Obs, RealrlError, TaskSpec

OLD = "robosuite-1.0"
SUITES = ("robosuite", OLD)
_HZ = 20
_RENAMED = {"Door": "Door_main"}  # body in robosuite 1.0's models -> in 1.5's
_FOOT = "robot0_link0"
_GRIP = "gripper0_right_grip_site"


def make(suite: str, name: str, *, horizon: int) -> RobosuiteEnv:
    """The player of a task; suite: "robosuite" or "robosuite-1.0". Raises RealrlError when robosuite is missing or has no such task."""
    return RobosuiteEnv(suite, name, horizon)


class RobosuiteEnv(RobotEnv):
    """robosuite's task `name` under this project's episode rules. Observation: positions, then velocities, of all joints."""

    def __init__(self, suite: str, name: str, horizon: int) -> None:
        inner = _build(name)
        model = inner.sim.model
        self._positions = int(model.nq)
        task = TaskSpec(suite, name, int(model.nq + model.nv), int(inner.action_dim), horizon, 1 / _HZ, name)
        super().__init__(task, reward="dense", kinds=("dense",))
        self._inner = inner
        self._sign = np.ones(task.action_dim)
        if suite == OLD:
            self._sign[3:6] = -1.0

    def restore(self, episode: Episode) -> Obs:
        """Start at the first recorded state, `extra["sim_state"]` [T, 1 + D] or else the first observation; see `realrl.cell.playback`."""
        if "sim_state" in episode.extra:
            first = np.asarray(episode.extra["sim_state"][0], np.float64)
        else:
            first = np.array([0.0, *episode.obs["state"][0]])
        if first.shape != (1 + self.task.obs_dim,) or not np.isfinite(first).all():
            raise RealrlError(f"{self.task.id}: a recorded state has {first.size - 1} finite numbers after the time, this task "
                              f"{self.task.obs_dim}: was it recorded with another robot or task?")
        self._inner.reset()
        self._place(episode)
        self._inner.sim.set_state_from_flattened(first)
        self._inner.sim.forward()
        self._inner.robots[0].composite_controller.update_state()
        self._inner.robots[0].composite_controller.reset()
        self._t = 0
        return self._observe(self._state())

    def difference(self, recorded: Array, replayed: Array) -> Array:
        """What lies between two observations, positions alone [..., nq]: metres, radians and quaternions."""
        gap: Array = (np.asarray(replayed, np.float64) - np.asarray(recorded, np.float64))[..., :self._positions]
        return gap

    def gripper(self, states: Array) -> Array:
        """Where the point between the fingers is at observed states: [T, D] -> [T, 3] m. Not while an episode runs."""
        sim, out = self._inner.sim, []
        for state in np.asarray(states, np.float64):
            sim.set_state_from_flattened(np.array([0.0, *state]))
            sim.forward()
            out.append(np.array(sim.data.get_site_xpos(_GRIP)))
        self._t = -1
        return np.stack(out)

    def close(self) -> None:
        """Free the simulator."""
        self._inner.close()

    def _place(self, episode: Episode) -> None:
        """Put what stands still (table, bins, the door's frame, the robot's foot) where the recorded model has it."""
        xml = str(episode.extra.get("model_file", ""))
        if not xml:
            return
        try:
            world = ElementTree.fromstring(xml).find("worldbody")
        except ElementTree.ParseError as error:
            raise RealrlError(f"{self.task.id}: the recorded model is no XML ({error}): import the recording again") from None
        model, data = self._inner.sim.model, self._inner.sim.data
        for body in world if world is not None else ():
            name = _RENAMED.get(body.get("name", ""), body.get("name", ""))
            if body.tag != "body" or name not in model.body_names:
                continue
            place, index = _numbers(body.get("pos", "0 0 0"), 3), model.body_name2id(name)
            if name == _FOOT:  # fixed to other bodies in 1.5: move them all
                model.body_pos[model.body_name2id("robot0_base")] += place - data.get_body_xpos(name)
            elif model.body_jntnum[index] == 0:
                model.body_pos[index], model.body_quat[index] = place, _numbers(body.get("quat", "1 0 0 0"), 4)

    def _begin(self, seed: int) -> Array:
        raise RealrlError(f"{self.task.id}: only recordings are played here, there are no starts by seed")

    def _advance(self, action: Array) -> tuple[Array, float, bool, bool]:
        _, reward, _, _ = self._inner.step(action * self._sign)
        return self._state(), float(reward), False, bool(self._inner._check_success())

    def _state(self) -> Array:
        state: Array = np.asarray(self._inner.sim.get_state().flatten())[1:]
        return state


def _numbers(text: str, count: int) -> Array:
    """The numbers of an XML attribute. Raises RealrlError."""
    try:
        values = np.array([float(word) for word in text.split()])
    except ValueError:
        values = np.array([np.nan])
    if values.shape != (count,) or not np.isfinite(values).all():
        raise RealrlError(f"the recorded model has {text[:60]!r} where {count} numbers belong: import the recording again")
    return values


def _build(name: str) -> Any:
    """robosuite's environment, with its greetings kept quiet."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
            import robosuite
    except ImportError as error:
        raise RealrlError(f"robosuite/{name}: robosuite is not installed ({error}); pip install --no-deps robosuite==1.5.2 numba llvmlite "
                          "termcolor") from error
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    if robosuite.__version__.startswith("1.4."):
        raise RealrlError(f"robosuite/{name}: robosuite is {robosuite.__version__} here, LIBERO's (best in an environment of its own); "
                          "recordings are played in a newer one: pip install --no-deps robosuite==1.5.2")
    if name not in robosuite.ALL_ENVIRONMENTS:
        raise RealrlError(f"no task 'robosuite/{name}': robosuite has {', '.join(sorted(robosuite.ALL_ENVIRONMENTS))}")
    return robosuite.make(name, robots="Panda", has_renderer=False, has_offscreen_renderer=False, use_camera_obs=False,
                          use_object_obs=False, control_freq=_HZ, ignore_done=True, hard_reset=False)
