"""What an environment may be asked to see, and what a suite says of a task to be looked at; `realrl.envs.mujoco.eyes` does the looking.

Pictures are drawn without shadows, reflections and smoothed edges, which is 8 to 12 times as fast on a processor. A cloud holds what
lies inside the task's box, without the table and the arm, and comes from rays (no OpenGL, see `realrl.envs.mujoco.rays`) or from rendered
depth, through the code that a real depth camera goes through (`realrl.envs.clouds`).

A goal that is only a ball in the air is seen as a person sees it: pictures and depth have it drawn, rays get a few points on its near
side from every camera that it is not hidden from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from realrl.scene import SightConfig, SightKind
from realrl.types import Array, RealrlError

if TYPE_CHECKING:  # it imports the simulator
    from realrl.envs.mujoco.eyes import Sight

Box = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Low and high corner, m."""
KINDS: tuple[SightKind, ...] = ("rgb", "depth", "pointcloud")
"""What a MuJoCo task with a workspace gives."""


def sees(task: str, cfg: SightConfig | None, kinds: Sequence[SightKind], instead: str = "") -> bool:
    """Whether a task is asked for eyes. kinds: what it can give beside "state"; instead: where to find more.

    Raises RealrlError when it is asked for another kind.
    """
    if cfg is None or cfg.kind == "state":
        return False
    if cfg.kind not in kinds:
        has = f"it gives {' and '.join(map(repr, ('state', *kinds)))}"
        raise RealrlError(f"{task}: no {cfg.kind!r} observations, {has}{'; ' + instead if instead else ''}")
    return True


def choose(task: str, cfg: SightConfig, known: Sequence[str], default: Sequence[str]) -> tuple[str, ...]:
    """The cameras to look through. Raises RealrlError on one the task does not have."""
    for name in cfg.cameras or ():
        if name not in known:
            raise RealrlError(f"{task}: no camera {name!r}, it has {', '.join(known) or 'none'}")
    return tuple(dict.fromkeys(cfg.cameras or default))


@dataclass(frozen=True, eq=False)
class Mark:
    """A thing that is drawn, but is no geom: a goal's ball, a distractor. size: [3], the radius or half sizes along the axes, m."""

    centre: Array
    size: Array
    rgba: Array
    ball: bool = True


@dataclass(frozen=True)
class View:
    """A camera of the model, as a suite wants it. None: as the model has it; position, target: world, m; fovy: degrees."""

    camera: str
    position: tuple[float, float, float] | None = None
    target: tuple[float, float, float] | None = None
    fovy: float | None = None


@dataclass(frozen=True, eq=False)
class Scenery:
    """What a suite says of a task to be looked at."""

    task: str
    views: tuple[View, ...]
    """The cameras looked through unless others are asked for: pictures through the first of them, a cloud through all."""
    own: tuple[int, ...]
    """Which numbers of the full state are the robot's own."""
    box: Box | None = None
    """Low and high corner of what a cloud holds; None: no clouds."""
    hidden: frozenset[str] = frozenset()
    """Bodies that are no part of a cloud: what stands still and the arm, as a robot's own mask would cut them away."""
    marks: Callable[[], list[Mark]] = list
    """Where the goals' balls are now. Pictures and rendered depth have them from the model's sites."""
    settle: Callable[[], None] = lambda: None
    """Puts drawn goals where they belong after kinematics were computed anew."""
    hand: Callable[[], Array] | None = None
    """Where the robot's hand is now, [3] m in the world; None: it has none."""


def eyes(cfg: SightConfig | None, scenery: Scenery, model: Any, data: Any, kinds: Sequence[SightKind] = KINDS,
         instead: str = "") -> Sight | None:
    """The eyes of a MuJoCo environment, None where none are asked for. Raises RealrlError as `sees` and `Sight` do."""
    if cfg is None or not sees(scenery.task, cfg, kinds, instead):
        return None
    from realrl.envs.mujoco.eyes import Sight
    return Sight(cfg, scenery, model, data)
