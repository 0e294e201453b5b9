"""Meta-World v3 (arXiv 1910.10897; the metaworld package): 50 tasks of a Sawyer arm, state observations, scripted experts.

Observation [39]: hand position, gripper opening, object poses, the same one step earlier, goal position. Action [4]: hand motion
and gripper. Success is the simulator's own, at the first step that reaches it.

Three things are done differently from the package. Its `reset` leaves traces of earlier episodes (moved bodies, attributes set in
the last reset, the solver's warm start), so the same seed gives different episodes; here every reset starts from a pristine copy.
Its shaped reward is most of the cost of a step; with the sparse reward the parts that cannot change success are skipped. And much of what
is left goes into stacking small arrays, in half of the tasks into one quaternion by scipy: `_frame` and `Turn` find the same numbers.
"""

from __future__ import annotations

import copy
import functools
import importlib
import math
import sys
import warnings
from typing import Any

import mujoco
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS

from realrl.envs.base import RobotEnv, ScriptedPolicy
from realrl.envs.mujoco.randomise import randomiser
from realrl.envs.mujoco.sight import Mark, Scenery, View, eyes
from realrl.envs.texts import TEXTS
from realrl.scene import RandomiseConfig, SightConfig
from realrl.types import Array, Policy, RealrlError, TaskSpec

HORIZON = 200
_MODEL_FIELDS = ("body_pos", "body_quat", "site_pos", "site_quat", "geom_pos", "geom_quat", "geom_size", "geom_rgba")
_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
# The experts ask for more than [-1, 1] on purpose and the package warns of it on standard error.
warnings.filterwarnings("ignore", r"Constant\(s\) may be too high", UserWarning)
# From behind the robot's shoulders: over the right one (where DP3, arXiv 2403.03954, has its only camera) and over the left one.
_VIEWS = (View("corner2", (0.8, 0.2, 0.9), (0.05, 0.66, 0.08), 50.0), View("corner", (-0.8, 0.2, 0.9), (-0.05, 0.66, 0.08), 50.0))
_BOX = ((-0.6, 0.35, -0.05), (0.65, 1.0, 0.6))
# What stands still for every task, and the arm above the hand.
_AWAY = frozenset(["world", "tablelink", "RetainingWall", "controller_box", "pedestal", "pedestal_feet", "torso", "right_arm_base_link",
                   "head", "screen", "right_l1_2", *(f"right_l{i}" for i in range(7))])
_PLAIN = (int, float, bool, str, tuple, list, np.ndarray, np.generic, type(None))


def names() -> tuple[str, ...]:
    """The 50 tasks, e.g. "peg-insert-side-v3"."""
    return tuple(sorted(ALL_V3_ENVIRONMENTS))


def make(name: str, *, reward: str | None = None, horizon: int | None = None, sight: SightConfig | None = None,
         randomise: RandomiseConfig | None = None) -> RobotEnv:
    """A Meta-World task; reward "sparse" (default) or "dense"; horizon 200 steps of 12.5 ms unless given."""
    return MetaWorldEnv(name, reward=reward, horizon=HORIZON if horizon is None else horizon, sight=sight, randomise=randomise)


def expert(name: str, path: str | None = None) -> Policy:
    """The package's scripted expert. Raises RealrlError if the task has none, or when given a path: a script needs no file."""
    if path is not None:
        raise RealrlError(f"metaworld/{name}: its expert is a script and takes no file, leave out the path {path!r}")
    stem = "".join(part.capitalize() for part in name.removesuffix("-v3").split("-"))
    policies = importlib.import_module("metaworld.policies")
    script = getattr(policies, f"Sawyer{_IRREGULAR.get(stem, stem)}V3Policy", None)
    if script is None:
        raise RealrlError(f"metaworld/{name}: no scripted expert comes with this task, record demonstrations instead")
    return ScriptedPolicy(f"script:{name}", functools.partial(_control, script()))


def _control(script: Any, states: Array) -> Array:
    """The script's actions [B, 4] for states [B, 39]; a function of the module, so that worker processes can be sent it."""
    return np.stack([script.get_action(s.astype(np.float64)) for s in states])


_IRREGULAR = {"PegInsertSide": "PegInsertionSide"}


class Turn:
    """The little of scipy's `Rotation` that the package asks for."""

    def __init__(self, quat: Array) -> None:
        self._quat = quat

    @classmethod
    def from_matrix(cls, matrix: Array) -> Turn:
        """Of a rotation matrix [3, 3]; by its largest component, as scipy does (Markley 2008, doi 10.2514/1.31730)."""
        (a, b, c), (d, e, f), (g, h, i) = matrix.tolist()
        trace = a + e + i
        most = max(a, e, i, trace)
        if most == a:
            quat = (1 - trace + 2 * a, d + b, g + c, h - f)
        elif most == e:
            quat = (b + d, 1 - trace + 2 * e, h + f, c - g)
        elif most == i:
            quat = (c + g, h + f, 1 - trace + 2 * i, d - b)
        else:
            quat = (h - f, c - g, d - b, 1 + trace)
        size = math.sqrt(sum(x * x for x in quat))
        return cls(np.array([x / size for x in quat]))

    def as_quat(self) -> Array:
        """[4], the scalar last."""
        return self._quat


def _turn_quickly(sim: Any) -> None:
    """Where the package's module of a task uses scipy's `Rotation`, let it use `Turn`."""
    for cls in type(sim).__mro__:
        module = sys.modules[cls.__module__]
        if cls.__module__.startswith("metaworld.") and hasattr(module, "Rotation"):
            module.Rotation = Turn  # type: ignore[attr-defined]


class MetaWorldEnv(RobotEnv):
    """One of the 50 tasks with resets that depend on their seed alone."""

    def __init__(self, name: str, *, reward: str | None, horizon: int, sight: SightConfig | None = None,
                 randomise: RandomiseConfig | None = None) -> None:
        sim: Any = ALL_V3_ENVIRONMENTS[name]()  # Any: its methods are replaced below
        _turn_quickly(sim)
        text, *others = TEXTS[name]
        dt = sim.model.opt.timestep * sim.frame_skip
        task = TaskSpec("metaworld", name, 39, 4, horizon, dt, text, paraphrases=tuple(others))
        stage = Scenery(task.id, _VIEWS, (*range(4), *range(18, 22)), _BOX, _AWAY, self._goals, self._settle,
                      hand=lambda: sim.data.body("hand").xpos)
        seen = eyes(sight, stage, sim.model, sim.data)
        super().__init__(task, reward=reward, eyes=seen, whims=randomiser(randomise, sim.model, sim.data, seen, _BOX))
        sim._partially_observable = False
        sim.__dict__.pop("sawyer_observation_space", None)  # it was cached for the goal-hiding variant
        sim._set_task_called, sim._freeze_rand_vec, sim.seeded_rand_vec = True, False, True
        sim.max_path_length = horizon + 1
        sim.touching_object = self._touching  # the same test without a Python loop over contacts
        sim._get_curr_obs_combined_no_goal, self._claws = self._frame, [sim.data.body(f"{side}claw").id for side in ("right", "left")]
        if self.reward_kind == "sparse":
            sim._gripper_caging_reward = lambda *args, **kwargs: 0.0
        self._sim = sim
        self._hand: tuple[list[Array], Array, dict[str, Any]] | None = None
        self._reset_hand = sim._reset_hand
        sim._reset_hand = self._reset_hand_once
        self._model = {f: getattr(sim.model, f).copy() for f in _MODEL_FIELDS}
        self._attributes = self._plain_attributes()

    def _begin(self, seed: int) -> Array:
        sim = self._sim
        for field, value in self._model.items():
            getattr(sim.model, field)[:] = value
        self._restore(self._attributes)
        sim._np_random = np.random.default_rng(seed)
        mujoco.mj_resetData(sim.model, sim.data)
        obs = np.asarray(sim.reset_model(), np.float64).copy()
        sim._prev_obs = obs[:18].copy()
        obs[18:36] = sim._prev_obs  # there is no earlier frame: repeat the first
        return obs

    def _advance(self, action: Array) -> tuple[Array, float, bool, bool]:
        state, reward, _, _, info = self._sim.step(action)
        return state, float(reward), False, info["success"] > 0

    def _goals(self) -> list[Mark]:
        """The goals that the simulator draws: a ball each. (What a task does not use it puts ten metres away.)"""
        sites = [(self._sim.model.site(name), at) for name, at in self._sim._target_site_config]
        return [Mark(at, np.full(3, max(site.size[0], 0.01)), site.rgba) for site, at in sites]

    def _settle(self) -> None:
        for name, at in self._sim._target_site_config:
            self._sim._set_pos_site(name, at)

    def _plain_attributes(self) -> dict[str, Any]:
        return {k: copy.deepcopy(v) for k, v in self._sim.__dict__.items() if isinstance(v, _PLAIN)}

    def _restore(self, attributes: dict[str, Any]) -> None:
        for name in [k for k, v in self._sim.__dict__.items() if isinstance(v, _PLAIN) and k not in attributes]:
            del self._sim.__dict__[name]
        self._sim.__dict__.update(copy.deepcopy(attributes))

    def _situation(self) -> list[Array]:
        sim = self._sim
        return [sim.data.qpos.copy(), sim.data.qvel.copy(), sim.data.mocap_pos.copy(), sim.model.body_pos.copy()]

    def _reset_hand_once(self, steps: int = 50) -> None:
        """250 physics steps that end the same whenever they begin the same: run them once, then restore the outcome.

        The first time restores too, so that every reset goes through the same arithmetic.
        """
        sim, before = self._sim, self._situation()
        if self._hand is None or not all(np.array_equal(a, b) for a, b in zip(before, self._hand[0], strict=True)):
            self._reset_hand(steps)
            state = np.empty(mujoco.mj_stateSize(sim.model, _STATE))
            mujoco.mj_getState(sim.model, sim.data, state, _STATE)
            self._hand = (before, state, self._plain_attributes())
            mujoco.mj_resetData(sim.model, sim.data)
        mujoco.mj_setState(sim.model, sim.data, self._hand[1], _STATE)
        mujoco.mj_forward(sim.model, sim.data)
        self._restore(self._hand[2])

    def _frame(self) -> Array:
        """[18], what is seen of now: hand, opening, and of up to two objects place and turn; the package's numbers without its stacking."""
        sim, (right, left) = self._sim, self._sim.data.xpos[self._claws]
        places, turns = sim._get_pos_objects(), sim._get_quat_objects()
        seen = np.zeros(18)
        seen[:3], seen[3] = sim.get_endeff_pos(), min(float(np.linalg.norm(right - left)) / 0.1, 1.0)
        for n in range(len(places) // 3):
            seen[4 + 7 * n:7 + 7 * n], seen[7 + 7 * n:11 + 7 * n] = places[3 * n:3 * n + 3], turns[4 * n:4 * n + 4]
        return seen

    def _touching(self, geom: int) -> bool:
        data, contact = self._sim.data, self._sim.data.contact
        for pad in (data.geom("leftpad_geom").id, data.geom("rightpad_geom").id):
            pair = ((contact.geom1 == pad) | (contact.geom2 == pad)) & ((contact.geom1 == geom) | (contact.geom2 == geom))
            if not data.efc_force[contact.efc_address[pair]].sum() > 0:
                return False
        return True
