"""A person at a device: keys of the terminal, or a gamepad, as an `Intervention` for the control loop.

Touching the device takes over, letting go gives back, a few steps later. What is pressed beside it judges the episode: success, failure,
or that it shall end here and the next begin. A simulator runs at the person's speed: every question to the device waits for its tick.
"""

from __future__ import annotations

import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from realrl.robots.human import Verdict
from realrl.types import Array, Obs, RealrlError

TAKE, GIVE, RELEASE = 0.1, 0.05, 3
"""How far a device is moved to take over, and below what it is let go, of 1; control steps until letting go gives back. Between the two it
stays with whom it is, so that a stick that drifts a little is nobody."""
AXES = 6
"""A device moves forward, left, up, and turns about these; a seventh number is the gripper."""


@dataclass(frozen=True)
class Reading:
    """What a device says now. motion: [6 or more] in [-1, 1]; grip: of the gripper, None where it was not touched; verdict: on the episode;
    here: the person is at it, though it does not move."""

    motion: Array
    grip: float | None = None
    verdict: Verdict | None = None
    here: bool = False


class Device(Protocol):
    """Something to steer with."""

    def read(self) -> Reading:
        """What was done since. Raises RealrlError where it is gone."""
        ...


class Teleoperator:
    """Takes over while the device is moved, see `Attendant`. size: A, numbers of an action: six for the hand, a seventh for its
    gripper, or fewer, which are the first; period: seconds of a control step; commands: the gripper does what it was told last
    (`TaskSpec.gripper`), so that it is told once; else what was pressed is said until something else is."""

    def __init__(self, device: Device, size: int, period: float, *, cap: float = 1.0, commands: bool = False) -> None:
        self._device, self._size, self._period, self._cap, self._commands = device, size, period, cap, commands
        self._due, self._left, self._grip = 0.0, 0, 0.0
        self.verdict: Verdict | None = None

    def begin(self, seed: int) -> None:
        """An episode begins; what was pressed before does not count."""
        self._left, self._grip, self.verdict = 0, 0.0, None
        self._device.read()

    def end(self, succeeded: bool) -> None:
        """Nothing to remember."""

    def poll(self, obs: Obs, proposed: Array) -> Array | None:
        """The person's action [A] while the person has the robot, else None. Raises RealrlError when the device is gone: the loop stops,
        and the robot with it."""
        now = time.monotonic()
        self._due = max(self._due + self._period, now) if self._due else now
        time.sleep(max(self._due - now, 0.0))
        found = self._device.read()
        self.verdict = found.verdict
        most = float(np.abs(found.motion).max())
        if found.here or found.grip is not None or most > (GIVE if self._left else TAKE):
            self._left = RELEASE
        elif self._left:
            self._left -= 1
        if not self._left:
            return None
        self._grip = found.grip if found.grip is not None else 0.0 if self._commands else self._grip
        motion = np.where(np.abs(found.motion) > GIVE, self._cap * found.motion, 0.0)
        action = np.zeros(self._size, np.float32)
        action[:min(AXES, self._size)] = motion[:min(AXES, self._size)]
        if self._size > AXES:
            action[AXES] = self._grip
        return action


# ---- keys


KEYS = {"w": (0, 1), "s": (0, -1), "a": (1, 1), "d": (1, -1), "r": (2, 1), "f": (2, -1), "u": (3, -1), "o": (3, 1), "k": (4, -1),
        "i": (4, 1), "l": (5, -1), "j": (5, 1)}
"""Key -> the number of an action that it moves, and which way."""
VERDICTS: dict[str, Verdict] = {"1": "success", "0": "failure", "x": "abort"}
HELP = {"keyboard": "w s a d r f move, u o i k j l turn, g opens and shuts, space holds still, 1 success, 0 failure, x next episode",
        "gamepad": "left stick and right stick's up and down move, triggers, cross and right stick's sides turn, button 4 opens, 5 shuts, "
                   "0 success, 2 failure, 1 next episode"}
"""Device -> what its keys do, for who is at it."""


REPEATS = 0.7
"""Seconds after which a terminal has begun to repeat a key that is held."""


@dataclass
class Keyboard:
    """Keys as a terminal sends them: presses and repeats, no releases. Each that moves acts for `lasts` control steps, so that the gap
    before it begins to repeat is all that is felt of it; the others count once, however long they are held: what judges an episode shall
    not judge the next one, too."""

    descriptor: int
    lasts: int = 2
    _until: dict[int, tuple[int, int]] = field(default_factory=dict)
    _last: dict[str, float] = field(default_factory=dict)
    _shut: bool = False

    def read(self) -> Reading:
        """What was typed since. Raises RealrlError where the terminal is gone."""
        verdict, here, grip = None, False, None
        for key in self._typed():
            if key in KEYS:
                axis, sign = KEYS[key]
                self._until[axis] = (self.lasts, sign)
            here = here or key == " "
            if key in VERDICTS and self._pressed(key):
                verdict = VERDICTS[key]
            if key == "g" and self._pressed(key):
                self._shut = not self._shut
                grip = 1.0 if self._shut else -1.0
        motion = np.zeros(AXES)
        for axis, (left, sign) in list(self._until.items()):
            motion[axis] = sign
            self._until[axis] = (left - 1, sign)
            if left <= 1:
                del self._until[axis]
        return Reading(motion, grip, verdict, here)

    def _pressed(self, key: str) -> bool:
        """Whether a key that came was let go of before."""
        now, before = time.monotonic(), self._last.get(key, -math.inf)
        self._last[key] = now
        return now - before > REPEATS

    def _typed(self) -> str:
        text = b""
        while select.select([self.descriptor], [], [], 0)[0]:
            try:
                more = os.read(self.descriptor, 1024)
            except OSError:  # the other side of a terminal that was closed
                more = b""
            if not more:
                raise RealrlError("the keyboard is gone (its terminal was closed) and nobody steers: go on in another with --resume")
            text += more
        return text.decode("utf-8", "ignore").lower()


@contextmanager
def keyboard(descriptor: int | None = None) -> Iterator[Keyboard]:
    """The terminal's keys, unechoed and at once, until the body is left. Raises RealrlError where there is no terminal."""
    try:
        number = sys.stdin.fileno() if descriptor is None else descriptor
    except (OSError, ValueError):  # closed, or none at all
        number = -1
    if number < 0 or not os.isatty(number):
        raise RealrlError("--human keyboard needs a terminal to type in, and standard input is none: run it in one, or take --human "
                          "gamepad, scripted or none")
    import termios
    import tty
    before = termios.tcgetattr(number)
    try:
        tty.setcbreak(number)
        with _outliving():
            yield Keyboard(number)
    finally:
        with suppress(termios.error):  # it is gone
            termios.tcsetattr(number, termios.TCSADRAIN, before)


@contextmanager
def _outliving() -> Iterator[None]:
    """A terminal that is closed is noticed by who reads it, and the robot is stopped in good order: the signal that tells of it, too, would
    end the process amid a step. What was shown there then goes nowhere, for it would be an error to write it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    shown = [number for number in (1, 2) if os.isatty(number)]

    def gone(*_: object) -> None:
        with open(os.devnull, "w") as nowhere:
            for number in shown:
                os.dup2(nowhere.fileno(), number)

    before = signal.signal(signal.SIGHUP, gone)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


# ---- gamepads


BUTTONS: dict[int, Verdict] = {0: "success", 1: "abort", 2: "failure"}
TRIGGERS = (2, 5)
"""The axes of the left and the right one. At rest they are at -1, but at 0 until they are touched for the first time."""


class Gamepad:
    """Left stick: forward and left; right stick: turn and up; shoulder triggers: roll; the cross: pitch. Buttons: 0 success, 1 next
    episode, 2 failure, 4 opens the gripper, 5 shuts it. One that judges counts once, however
    long it is held."""

    def __init__(self, library: Any, stick: Any) -> None:
        self._library, self._stick = library, stick
        self._moved: set[int] = set()
        self._held: set[int] = set()

    def read(self) -> Reading:
        """Where sticks and buttons are, and what was pressed since. Raises RealrlError where it was unplugged."""
        pressed: set[int] = set()
        for event in self._library.event.get():
            if event.type == self._library.JOYDEVICEREMOVED:
                raise RealrlError("the gamepad was unplugged and nobody steers: plug it in again and go on with --resume")
            if event.type == self._library.JOYBUTTONDOWN:  # it may be up again
                pressed.add(event.button)
        stick = self._stick
        axes = [stick.get_axis(i) for i in range(stick.get_numaxes())]
        self._moved |= {i for i in TRIGGERS if i < len(axes) and axes[i]}
        left, right = (axes[i] if i in self._moved else -1.0 for i in TRIGGERS) if len(axes) > max(TRIGGERS) else (0.0, 0.0)
        axes += [0.0] * 6
        _, pitch = stick.get_hat(0) if stick.get_numhats() else (0, 0)
        held = {i for i in range(stick.get_numbuttons()) if stick.get_button(i)}
        pressed, down, self._held = pressed | held - self._held, pressed | held, held
        motion = np.array([-axes[1], -axes[0], -axes[4], (right - left) / 2, pitch, -axes[3]])
        verdict = next((BUTTONS[i] for i in sorted(pressed & BUTTONS.keys())), None)
        return Reading(motion, -1.0 if 4 in down else 1.0 if 5 in down else None, verdict)


@contextmanager
def gamepad() -> Iterator[Gamepad]:
    """The first gamepad there is. Raises RealrlError where there is none, or pygame is missing."""
    library = _pygame()
    try:
        if not library.joystick.get_count():
            raise RealrlError("--human gamepad: no gamepad is plugged in (`realrl doctor` lists what is there): plug one in, or take "
                              "--human keyboard")
        stick = library.joystick.Joystick(0)
        stick.init()
        yield Gamepad(library, stick)
    finally:
        library.quit()


def gamepads() -> list[str]:
    """The names of the gamepads that are plugged in. Raises RealrlError where pygame is missing."""
    library = _pygame()
    try:
        return [library.joystick.Joystick(i).get_name() for i in range(library.joystick.get_count())]
    finally:
        library.quit()


def _pygame() -> Any:
    """pygame with its joysticks, without a window or a word."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    try:
        import pygame
    except ImportError as error:
        raise RealrlError(f"a gamepad is read through pygame, which cannot be imported ({error}): pip install pygame") from error
    pygame.display.init()
    pygame.joystick.init()
    return pygame


DEVICES: dict[str, Callable[[], Any]] = {"keyboard": keyboard, "gamepad": gamepad}
