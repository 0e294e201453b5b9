"""What a scene is: the task, what is seen of it, what varies in it, how its episodes are produced and where is learned. Plain values."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from realrl.config import OutOfBounds, check, shown
from realrl.types import RealrlError

if TYPE_CHECKING:
    import torch

SightKind = Literal["state", "rgb", "depth", "pointcloud"]
COMMAND = 0.5
"""From which on an action's last number shuts a gripper, and below its negative opens it (`TaskSpec.gripper`)."""


@dataclass(frozen=True)
class SightConfig:
    """What is seen beside the robot's own joints."""

    kind: SightKind = "state"
    """state: the simulator's numbers, no eyes; rgb: pictures; depth: distances in millimetres; pointcloud: points in metres."""
    cameras: tuple[str, ...] | None = None
    """Cameras to look through; the task's own choice by default."""
    height: int = 84
    """Pixels of a picture from top to bottom."""
    width: int = 84
    """Pixels of a picture from left to right."""
    points: int = 512
    """Points of a cloud."""
    colour: bool = False
    """Whether the points of a cloud carry their colour: six columns instead of three."""
    source: Literal["rays", "depth"] = "rays"
    """How a simulated cloud is made: by casting rays (no OpenGL), or from rendered depth as a real depth camera would."""
    frame: Literal["world", "hand"] = "world"
    """A cloud's origin: the world's, or the robot's hand (the axes are the world's): what is to be grasped is where it has yet to go."""

    def __post_init__(self) -> None:
        check(self, height="[1, 2048]", width="[1, 2048]", points="[1, 1e6]")
        if self.cameras is not None and (isinstance(self.cameras, str) or not self.cameras):
            raise OutOfBounds(SightConfig, "cameras", f"must be a tuple of names, or None for the task's own, got {shown(self.cameras)}")


@dataclass(frozen=True)
class RandomiseConfig:
    """What is drawn anew at every reset, from the episode's seed; all off by default."""

    light: float = 0.0
    """Lights: intensity times 1 +- this, position +- this in metres."""
    colour: float = 0.0
    """Colours of everything: each channel +- this, of 1."""
    camera: float = 0.0
    """Cameras: position +- this in metres, in each direction."""
    angle: float = 0.0
    """Cameras: turned by up to this, in degrees, about an axis drawn at random."""
    distractors: int = 0
    """Coloured balls and boxes lying about, which are seen but cannot be touched."""
    friction: float = 0.0
    """Sliding friction of everything, times 1 +- this."""
    mass: float = 0.0
    """Mass of every body, times 1 +- this."""
    push: float = 0.0
    """Quadrupeds: impulse of a horizontal push on the trunk, N s; it lasts 0.1 s and comes from a direction drawn anew for each."""
    push_every: float = 5.0
    """Seconds from one push to the next; the first comes after half to all of that."""

    def __post_init__(self) -> None:
        check(self, light="[0, 1)", colour="[0, 1)", camera="[0, 100]", angle="[0, 180]", distractors="[0, 100]", friction="[0, 1)",
              mass="[0, 1)", push="[0, 1000]", push_every="[0.2, 1e6]")

    @property
    def active(self) -> bool:
        """Whether anything is randomised at all."""
        return any(getattr(self, entry.name) for entry in dataclasses.fields(self) if entry.name != "push_every")


@dataclass(frozen=True)
class CollectConfig:
    """How episodes are produced."""

    workers: int = 0
    """Worker processes; 0 = one per CPU core, 1 = inside this process."""
    envs_per_worker: int = 25
    """Environments a worker steps in turn; more make larger policy batches."""
    every_frame: bool = False
    """Whether simulated eyes open at every step also where only the plans' beginnings count (online rounds, evaluations); slower."""

    def __post_init__(self) -> None:
        check(self, workers="[0, 1024]", envs_per_worker="[1, 10000]")


@dataclass(frozen=True)
class GuardConfig:
    """What the guard allows beside the environment's own limits."""

    max_delta: float | None = None
    """Largest change of an action from one step to the next, in the environment's units, of every dimension; None = no limit."""
    hold: Literal["auto", "last", "zeros"] = "auto"
    """Sent for an action that is not finite: the last one sent (for positions), zeros (for velocities), or as the task's control asks."""

    def __post_init__(self) -> None:
        check(self, max_delta="(0, 1e9]")


@dataclass(frozen=True)
class RecordedConfig:
    """How recordings are taken where they themselves are the task: `--data DIR` without a task."""

    names: tuple[str, ...] = ()
    """What the recording calls otherwise, as ours=theirs, e.g. observation.state=state, or several: action=action.arm,action.hand."""
    state: tuple[str, ...] = ()
    """Recorded numbers that make up the state, in that order; observation.state by default, or all vectors where there is none."""
    control: Literal["auto", "absolute", "relative"] = "auto"
    """Whether an action says where to be or how to move; auto asks the data whether actions lie near the measured state."""
    low: tuple[float, ...] = ()
    """Least action of each joint in its own unit; by default what demonstrations reach and a twentieth of the range more (few: more)."""
    high: tuple[float, ...] = ()
    """Largest action of each joint in its own unit."""
    units: tuple[str, ...] = ()
    """Units of the actions, e.g. rad rad m; one for all, or one each."""
    held_out: float = 0.1
    """Share of the demonstrations, at least one, that is kept for the comparison with what was really done."""
    missing: Literal["refuse", "episodes", "camera"] = "refuse"
    """What to leave out where a video is missing: nothing, refuse; the episodes that lack one; or the camera."""
    tolerance: float | None = None
    """Seconds that a picture may be off its frame's time; half a frame by default."""
    data_path: str | None = None
    """How the tables are called, where meta/info.json is wrong."""
    video_path: str | None = None
    """How the videos are called, where meta/info.json is wrong."""

    def __post_init__(self) -> None:
        check(self, held_out="(0, 0.9]", low="[-1e9, 1e9]", high="[-1e9, 1e9]", tolerance="[0, 1e6]")
        if wrong := [word for word in self.names if not all(word.partition("="))]:
            raise OutOfBounds(RecordedConfig, "names", f"must be pairs such as action=actions, got {shown(wrong[0])}")


@dataclass(frozen=True)
class Scene:
    """What every method's configuration says of its task and its robots."""

    task: str = "toy/obstacle"
    """Environment, see `realrl tasks`."""
    seed: int = 0
    """Seeds everything: networks, starts, noise."""
    data: str | None = None
    """A recorded data set (folder) whose successes are the demonstrations; None = ask the task's scripted expert."""
    demos: int = 20
    """Successful demonstrations to ask the expert for."""
    demo_noise: float = 0.3
    """Standard deviation of the noise on the scripted expert's actions (a hurried teleoperator); a saved policy has none added."""
    expert: str | None = None
    """Who demonstrates: weights of a network, or a manner (contact/peg: upright, tilting); of rl100, bc and flow a policy's folder, too."""
    horizon: int | None = None
    """Steps until an episode is truncated; None = the task's own."""
    sight: SightConfig = field(default_factory=SightConfig)
    """What the policy sees: the state, pictures, depth or a point cloud."""
    recall: int = 0
    """The last actions stand beside the state, so many of them: what is under way where readings are late, as a robot's are."""
    late: int = 0
    """Control steps that readings of a simulated task are late."""
    randomise: RandomiseConfig = field(default_factory=RandomiseConfig)
    """How the simulated scene varies from episode to episode."""
    recorded: RecordedConfig = field(default_factory=RecordedConfig)
    """How recordings that are the task themselves are taken."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """What the guard allows beside the environment's own limits."""
    collect: CollectConfig = field(default_factory=CollectConfig)
    """Workers for episodes."""
    eval_episodes: int = 200
    """Held-out episodes after a stage."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def __post_init__(self) -> None:
        check(self, seed="[0, 2e18]", demos="[1, 50000]", demo_noise="[0, 10]", horizon="[1, 1e6]", recall="[0, 100]", late="[0, 100]",
              eval_episodes="[1, 1000000]")
        if not re.fullmatch(r"auto|cpu|(cuda|mps|xpu)(:\d{1,3})?", self.device):
            raise OutOfBounds(type(self), "device", f"must be auto, cpu, cuda or cuda:N, got {shown(self.device)}")


def device(wish: str) -> torch.device:
    """ "auto" is the GPU where there is one. Raises RealrlError for a device that is not here."""
    import torch  # a second to import, and lists and help need none of it
    wish = ("cuda" if torch.cuda.is_available() else "cpu") if wish == "auto" else wish
    try:
        return torch.zeros(1, device=wish).device
    except torch.OutOfMemoryError:
        raise  # it is here, and others use it
    except (RuntimeError, AssertionError, NotImplementedError):
        raise RealrlError(f"--device {wish}: torch finds no such device here; give cpu, or auto for what there is") from None
