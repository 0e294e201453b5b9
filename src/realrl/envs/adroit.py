"""Adroit hand tasks of gymnasium-robotics (v1): "adroit/door", "adroit/hammer", "adroit/pen", "adroit/relocate".

Success, judged by the simulator at every control step (10 ms):
- door: the hinge stands at 1.35 rad or more;
- hammer: the nail head is within 1 cm of its goal;
- pen: the pen is within 7.5 cm of the target's place and its direction within acos(0.95), about 18 degrees, of the target's;
- relocate: the ball is within 10 cm of the target.
With the sparse reward an episode ends at the first such step. Elsewhere (Rajeswaran et al. 2018) success is 20-25 such steps
within the 200 of an episode: count `info["success"]` under reward="dense" for that.

The dense reward is that of Rajeswaran et al. (2018), section IV, computed here: in gymnasium-robotics 1.2.1 - 1.4.2
door, hammer and relocate pay +0.1 times the distance from palm to object, so that staying away pays.
"""

from __future__ import annotations

import contextlib
import functools
import io
import zipfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.linalg import norm

from realrl.envs.base import RobotEnv, ScriptedPolicy
from realrl.envs.mujoco.randomise import randomiser
from realrl.envs.mujoco.sight import Box, Mark, Scenery, View, eyes
from realrl.scene import RandomiseConfig, SightConfig
from realrl.types import Array, Episode, Obs, Policy, RealrlError, TaskSpec

HORIZON = 200
_SIZES = {"door": (39, 28), "hammer": (46, 26), "pen": (45, 24), "relocate": (39, 30)}  # observation, action
_TEXT = {
    "door": "undo the latch and open the door",
    "hammer": "pick up the hammer and drive the nail into the board",
    "pen": "turn the pen in the hand to the target's orientation",
    "relocate": "carry the ball to the target",
}
# What eyes see. The hand's joints come first in every observation; the arm's slide is among them in "relocate" alone.
_JOINTS = {"door": 27, "hammer": 26, "pen": 24, "relocate": 30}
_BOXES: dict[str, Box] = {
    "door": ((-0.45, -0.45, 0.05), (0.45, 0.55, 0.42)), "hammer": ((-0.45, -0.5, 0.005), (0.35, 0.3, 0.55)),
    "pen": ((-0.2, -0.4, 0.05), (0.35, 0.0, 0.45)), "relocate": ((-0.45, -0.5, 0.005), (0.45, 0.5, 0.6)),
}
# The model's cameras look over the forearm, which hides what the hand works on: they are moved to either side of it.
_VIEWS = {
    "door": (View("fixed", (-0.45, -0.75, 0.75), (0.0, 0.05, 0.2)), View("vil_camera", (0.55, -0.7, 0.7), (0.0, 0.05, 0.2))),
    "hammer": (View("fixed", (-0.65, -0.6, 0.6), (-0.08, -0.12, 0.12)), View("vil_camera", (0.3, -0.75, 0.6), (-0.08, -0.12, 0.12))),
    "pen": (View("fixed", (0.05, -0.6, 0.7), (0.08, -0.2, 0.22), 35.0), View("vil_camera", (0.1, 0.2, 0.6), (0.08, -0.2, 0.22), 35.0)),
    "relocate": (View("fixed", (-0.6, -0.6, 0.7), (0.0, 0.0, 0.13)), View("vil_camera", (0.6, -0.6, 0.7), (0.0, 0.0, 0.13))),
}
_AWAY = frozenset({"world", "table", "vive_tracker", "forearm", "frame"})  # a door's frame would take a third of its cloud


def names() -> tuple[str, ...]:
    """All task names of this suite."""
    return tuple(_SIZES)


def make(name: str, *, reward: str | None = None, horizon: int | None = None, sight: SightConfig | None = None,
         randomise: RandomiseConfig | None = None) -> RobotEnv:
    """Environment `name` of `names()`; default reward sparse, default horizon 200 steps (2 s)."""
    return AdroitEnv(name, reward, HORIZON if horizon is None else horizon, sight, randomise)


class AdroitEnv(RobotEnv):
    """An Adroit environment under this project's episode rules.

    Reset draws what the task randomises (door frame, board height, pen target, ball and target) into the MuJoCo model and
    resets all of MuJoCo's state, warm start included: nothing of the former episode is left.
    """

    def __init__(self, name: str, reward: str | None, horizon: int, sight: SightConfig | None = None,
                 randomise: RandomiseConfig | None = None) -> None:
        with contextlib.redirect_stderr(io.StringIO()):  # its import prints a notice about the rewards we do not use
            import gymnasium_robotics  # noqa: F401  registers the environments
        inner: Any = gymnasium.make(f"AdroitHand{name.capitalize()}-v1", disable_env_checker=True).unwrapped
        task = TaskSpec("adroit", name, *_SIZES[name], horizon, float(inner.dt), _TEXT[name])
        self._inner = inner
        box = _BOXES[name]
        stage = Scenery(task.id, _VIEWS[name], tuple(range(_JOINTS[name])), box, _AWAY, self._goals,
                      hand=lambda: inner.data.site("S_grasp").xpos)
        if name == "relocate":
            inner.model.site("target").rgba[3] = 0.5  # its ball is drawn so faint that a small picture loses it
        seen = eyes(sight, stage, inner.model, inner.data)
        super().__init__(task, reward=reward, eyes=seen,  # the simulator itself scales [-1, 1] to its joint ranges
                         whims=randomiser(randomise, inner.model, inner.data, seen, box))

    def _begin(self, seed: int) -> Array:
        state: Array = self._inner.reset(seed=seed)[0]
        return state

    def restore(self, episode: Episode) -> Obs:
        """Start where a recorded door episode started, hand and door at rest; see `realrl.cell.playback`.

        All of it is read off the first observation: the arm's slide from where the palm is, the frame's place from where the
        handle is. (The initial state that the human demonstrations carry lacks the arm.) Raises RealrlError for the other tasks,
        whose observations do not hold it.
        """
        if self._whims is not None:
            self._whims.restore()
        state = self._restored(episode)
        self._t = 0
        return self._observe(state, first=True)

    def _restored(self, episode: Episode) -> Array:
        first = np.asarray(episode.obs["state"][0], np.float64)
        if self.task.name != "door" or first.shape != (39,):
            raise RealrlError(f"{self.task.id}: its observation does not hold where an episode started; replay it by its seed")
        inner, data = self._inner, self._inner.data
        inner.reset(seed=0)
        qpos = np.array([0.0, *first[:27], first[28], first[27]])  # the observation lacks the slide and has the latch before the hinge
        inner.set_state(qpos, np.zeros(30))
        qpos[0] = (first[29:32] - data.site("S_grasp").xpos) @ data.joint("ARTz").xaxis
        inner.model.body("frame").pos += first[32:35] - data.site("S_handle").xpos
        inner.set_state(qpos, np.zeros(30))
        state: Array = inner._get_obs()
        return state

    def _advance(self, action: Array) -> tuple[Array, float, bool, bool]:
        state, _, _, _, info = self._inner.step(action)
        reward = dense_reward(self.task.name, self._inner.data) if self.reward_kind == "dense" else 0.0
        return state, reward, False, bool(info["success"])

    def close(self) -> None:
        """Free the simulator and the eyes."""
        super().close()
        self._inner.close()

    def _goals(self) -> list[Mark]:
        """The ball that "relocate" draws around its target; the other tasks' targets are bodies, which are seen as they are."""
        if self.task.name != "relocate":
            return []
        site = self._inner.model.site("target")
        return [Mark(self._inner.data.site("target").xpos, np.full(3, site.size[0]), site.rgba)]


def dense_reward(name: str, data: Any) -> float:
    """The shaped reward of Rajeswaran et al. (2018) at a MuJoCo state `data` (mujoco.MjData) of task `name`."""
    def site(key: str) -> Array:
        at: Array = data.site(key).xpos
        return at

    if name == "door":
        hinge = float(data.joint("door_hinge").qpos[0])
        reward = -0.1 * norm(site("S_grasp") - site("S_handle")) - 0.1 * (hinge - 1.57) ** 2 - 1e-5 * np.sum(data.qvel**2)
        return float(reward + 2 * (hinge > 0.2) + 8 * (hinge > 1.0) + 10 * (hinge > 1.35))
    thing = data.body("Object").xpos
    if name == "hammer":
        head, nail = site("tool"), site("S_target")
        left = norm(nail - site("nail_goal"))
        reward = -0.1 * norm(site("S_grasp") - thing) - norm(head - nail) - 10 * left - 1e-2 * norm(data.qvel)
        return float(reward + 2 * (thing[2] > 0.04 and head[2] > 0.04) + 25 * (left < 0.02) + 75 * (left < 0.01))
    if name == "relocate":
        palm, target = site("S_grasp"), site("target")
        left = norm(thing - target)
        reward = -0.1 * norm(palm - thing) + 10 * (left < 0.1) + 20 * (left < 0.05)
        return float(reward + (1 - 0.5 * norm(palm - target) - 0.5 * left if thing[2] > 0.04 else 0.0))
    distance = norm(thing - site("eps_ball"))
    along = site("object_top") - site("object_bottom")
    wanted = site("target_top") - site("target_bottom")
    likeness = along @ wanted / (norm(along) * norm(wanted))
    near = distance < 0.075
    return float(likeness - distance + 10 * (near and likeness > 0.9) + 50 * (near and likeness > 0.95) - 5 * (thing[2] < 0.075))


def expert(name: str, path: str | Path | None = None) -> Policy:
    """The published DAPG expert (Rajeswaran et al. 2018) for a task, acting with its mean.

    path: an npz file, or the folder that holds `<name>.npz`, with the arrays of the published tanh network:
    `fc_layers.{i}.weight` [out, in], `fc_layers.{i}.bias` [out], `in_shift`, `in_scale` [D], `out_shift`, `out_scale` [A].
    Raises RealrlError without a path, on an unreadable file and on arrays that are missing, misshapen or not finite.
    """
    if path is None:
        raise RealrlError(f"adroit/{name}: its expert is a trained network: give its npz file with --expert FILE (path, in Python). "
                          "The published ones, https://github.com/aravindr93/hand_dapg (dapg/policies), are pickles: "
                          "docs/howto/adroit.md has the script that makes npz files of them")
    file = Path(path) / f"{name}.npz" if Path(path).is_dir() else Path(path)
    return ScriptedPolicy(f"dapg-{name}", functools.partial(_control, *_load_network(file, *_SIZES[name])))


def _control(layers: list[tuple[Array, Array]], scales: list[Array], states: Array) -> Array:
    """The network's actions [B, A] for states [B, D]; a function of the module, so that worker processes can be sent it.

    Row by row: a matrix product's rounding depends on how many rows it has, an expert's actions must not.
    """
    return np.stack([_mean(layers, scales, s) for s in states])


def _mean(layers: list[tuple[Array, Array]], scales: list[Array], state: Array) -> Array:
    in_shift, in_scale, out_shift, out_scale = scales
    x = (state.astype(np.float64) - in_shift) / (in_scale + 1e-8)
    for weight, bias in layers[:-1]:
        x = np.tanh(weight @ x + bias)
    action: Array = (layers[-1][0] @ x + layers[-1][1]) * out_scale + out_shift
    return action


def _load_network(file: Path, obs_dim: int, action_dim: int) -> tuple[list[tuple[Array, Array]], list[Array]]:
    """The layers (weight, bias) and the four shift and scale vectors of a network file, checked."""
    if not file.is_file():
        raise RealrlError(f"{file}: no such file; an expert of Adroit is an npz file, or a folder with one called after the task")
    try:
        stored = np.load(file, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array")
        with stored:
            arrays = {key: stored[key] for key in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        why = "it is a pickle, which may hold any program and is not opened" if "pickle" in str(error) else error
        raise RealrlError(f"{file}: cannot read an expert from it ({why}); it must be an npz file") from error
    if str(arrays.get("nonlinearity", "tanh")) != "tanh":
        raise RealrlError(f"{file}: its nonlinearity is {arrays['nonlinearity']}, only tanh networks are known")

    def take(key: str, *shape: int) -> Array:
        if key not in arrays:
            raise RealrlError(f"{file}: no array {key!r} in it, it has {', '.join(sorted(arrays)) or 'none'}")
        array: Array = arrays[key]
        if array.shape != shape or array.dtype.kind != "f" or not np.isfinite(array).all():
            raise RealrlError(f"{file}: {key} is {array.dtype} {list(array.shape)}, expected finite floats {list(shape)}; "
                              "is it the expert of another task?")
        array = array.astype(np.float64)
        return array

    count = sum(key.startswith("fc_layers.") and key.endswith(".weight") for key in arrays)
    if not count:
        take("fc_layers.0.weight")
    hidden = [len(np.atleast_1d(arrays.get(f"fc_layers.{i}.weight", np.zeros(0)))) for i in range(count - 1)]
    widths = [obs_dim, *hidden, action_dim]
    layers = [(take(f"fc_layers.{i}.weight", widths[i + 1], widths[i]), take(f"fc_layers.{i}.bias", widths[i + 1]))
              for i in range(count)]
    return layers, [take("in_shift", obs_dim), take("in_scale", obs_dim), take("out_shift", action_dim), take("out_scale", action_dim)]
