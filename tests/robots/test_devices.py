"""A person at a device: who has the robot when, what keys and buttons mean, and one line when the device is gone."""

from __future__ import annotations

import os
import pty
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from realrl.robots.devices import GIVE, TAKE, Gamepad, Keyboard, Reading, Teleoperator, gamepads, keyboard
from realrl.robots.human import Attendant
from realrl.types import RealrlError

OBS, PROPOSED = {"state": np.zeros(1)}, np.zeros(6, np.float32)


class Stick:
    """A device that says what it is told to."""

    def __init__(self, *readings: Reading) -> None:
        self.readings = [Reading(np.zeros(6)), *readings]

    def read(self) -> Reading:
        return self.readings.pop(0)


def pushed(*sizes: float) -> list[Reading]:
    return [Reading(np.array([0, s, 0, 0, 0, 0.0])) for s in sizes]


def polled(readings: list[Reading], size: int = 6) -> list[Any]:
    who = Teleoperator(Stick(*readings), size, 0.0)
    assert isinstance(who, Attendant)
    who.begin(0)
    return [who.poll(OBS, PROPOSED) for _ in readings]


def test_a_stick_that_drifts_is_nobody_and_letting_go_gives_back_later() -> None:
    between = (TAKE + GIVE) / 2
    found = polled(pushed(between, between, 0.6, between, 0.0, 0.0, 0.0, between, 0.0))
    assert [a is not None for a in found] == [False, False, True, True, True, True, False, False, False]
    assert found[2][1] == pytest.approx(0.6) and found[3][1] == pytest.approx(between) and not found[4].any()


def test_the_seventh_number_is_the_gripper_and_stays_as_it_was() -> None:
    found = polled([Reading(np.zeros(6), grip=1.0), *pushed(0.5), Reading(np.zeros(6), here=True)], size=7)
    assert [a[6] for a in found] == [1.0, 1.0, 1.0] and found[1][1] == 0.5
    once = Teleoperator(Stick(Reading(np.zeros(6), grip=1.0), *pushed(0.5, 0.5)), 7, 0.0, commands=True)
    once.begin(0)
    said = [once.poll(OBS, PROPOSED) for _ in range(3)]
    assert [a[6] for a in said if a is not None] == [1.0, 0.0, 0.0], "a command is given once"
    assert polled(pushed(0.5), size=2)[0].shape == (2,)


def test_a_simulator_goes_at_the_persons_speed() -> None:
    who = Teleoperator(Stick(*pushed(*[0.0] * 6)), 6, 0.02)
    who.begin(0)
    began = time.monotonic()
    for _ in range(6):
        who.poll(OBS, PROPOSED)
    assert time.monotonic() - began >= 0.1 - 1e-3


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    ours, theirs = pty.openpty()
    yield ours, theirs
    for end in (ours, theirs):
        with suppress(OSError):  # a test closed it
            os.close(end)


def arrived(device: Keyboard) -> Reading:
    """What is typed takes a moment through the terminal."""
    for _ in range(200):
        if (found := device.read()).motion.any() or found.verdict or found.here or found.grip is not None:
            return found
        time.sleep(0.005)
    raise AssertionError("nothing was typed")


def test_keys_move_turn_hold_and_judge(terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    with keyboard(theirs) as device:
        os.write(ours, b"wF")
        found = arrived(device)
        assert found.motion.tolist() == [1, 0, -1, 0, 0, 0] and found.verdict is None
        assert device.read().motion.tolist() == [1, 0, -1, 0, 0, 0] and not device.read().motion.any(), "a press lasts two steps"
        os.write(ours, b" ")
        assert arrived(device).here
        os.write(ours, b"g")
        assert arrived(device).grip == 1.0
        device._last.clear()  # as if it had been let go of
        os.write(ours, b"g")
        assert arrived(device).grip == -1.0
        for key, verdict in ((b"1", "success"), (b"0", "failure"), (b"x", "abort")):
            os.write(ours, key)
            assert arrived(device).verdict == verdict


def test_a_key_that_is_held_judges_one_episode(terminal: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal sends it again after half a second, and then thirty times a second; the next episode has begun by then."""
    ours, theirs = terminal
    now = [100.0]
    with keyboard(theirs) as device:
        monkeypatch.setattr("realrl.robots.devices.time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))
        said = []
        for wait in (0.0, 0.5, 0.1, 0.1, 1.0):
            now[0] += wait
            os.write(ours, b"1g ")
            said.append(arrived(device))
        assert [r.verdict for r in said] == ["success", None, None, None, "success"]
        assert [r.grip for r in said] == [1.0, None, None, None, -1.0] and all(r.here for r in said)


def test_a_terminal_that_goes_away_amid_a_correction_stops_the_robot(terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    with keyboard(theirs) as device:
        who = Teleoperator(device, 6, 0.0)
        who.begin(0)
        os.write(ours, b"a")
        while who.poll(OBS, PROPOSED) is None:
            time.sleep(0.005)
        os.close(ours)
        with pytest.raises(RealrlError, match=r"the keyboard is gone .* go on in another with --resume"):
            for _ in range(100):
                who.poll(OBS, PROPOSED)
                time.sleep(0.005)


def test_the_signal_of_a_closed_terminal_does_not_end_the_process_amid_a_step(terminal: tuple[int, int]) -> None:
    """It would leave the robot as it is; who reads the terminal finds out, and ends the run in good order."""
    before = signal.getsignal(signal.SIGHUP)
    with keyboard(terminal[1]) as device:
        os.kill(os.getpid(), signal.SIGHUP)
        os.close(terminal[0])
        with pytest.raises(RealrlError, match="the keyboard is gone"):
            for _ in range(100):
                device.read()
                time.sleep(0.005)
    assert signal.getsignal(signal.SIGHUP) is before


def test_no_terminal_no_keyboard(tmp_path: Any) -> None:
    with open(tmp_path / "file", "w") as file, pytest.raises(RealrlError, match="needs a terminal to type in"), keyboard(file.fileno()):
        pass


def pad(**parts: Any) -> Any:
    """A joystick as pygame shows it."""
    axes, pressed = parts.get("axes", [0.0] * 6), parts.get("pressed", ())
    return SimpleNamespace(get_axis=lambda i: axes[i], get_numaxes=lambda: len(axes), get_numhats=lambda: 0, get_numbuttons=lambda: 8,
                           get_button=lambda i: i in pressed)


def library(*kinds: int, button: int = -1) -> Any:
    """What has happened since it was last asked."""
    events = [SimpleNamespace(type=k, button=button) for k in kinds]
    taken = lambda: [events.pop() for _ in range(len(events))][::-1]
    return SimpleNamespace(event=SimpleNamespace(get=taken), JOYDEVICEREMOVED=7, JOYBUTTONDOWN=8)


def test_a_gamepads_sticks_and_buttons() -> None:
    found = Gamepad(library(), pad(axes=[0.2, -0.5, 0, 0.1, -1.0, 0], pressed=(5, 1))).read()
    assert found.motion == pytest.approx([0.5, -0.2, 1.0, 0, 0, -0.1]) and (found.grip, found.verdict) == (1.0, "abort")
    assert Gamepad(library(), pad(axes=[0.0, 0.5])).read().motion == pytest.approx([-0.5, 0, 0, 0, 0, 0]), "fewer axes will do"


def test_a_button_judges_once_however_long_or_short_it_is_held() -> None:
    down = [0]
    device = Gamepad(library(), pad(pressed=down))
    assert [device.read().verdict for _ in range(3)] == ["success", None, None], "the next episode has begun by then"
    down.clear()
    assert device.read().verdict is None
    assert Gamepad(library(8, button=2), pad()).read().verdict == "failure", "up again before anybody looked"
    assert Gamepad(library(8, button=4), pad()).read().grip == -1.0
    shut = Gamepad(library(), pad(pressed=(5,)))
    assert [shut.read().grip for _ in range(2)] == [1.0, 1.0]


def test_a_trigger_is_at_rest_before_it_is_touched_and_after() -> None:
    """It says 0 until it is touched for the first time, and -1 from then on: a half turn for ever, if both meant the same."""
    axes = [0.0] * 6
    device = Gamepad(library(), pad(axes=axes))
    for right, turned in ((0.0, 0.0), (1.0, 1.0), (-1.0, 0.0)):
        axes[5] = right
        assert device.read().motion.tolist() == [0, 0, 0, turned, 0, 0]
    axes[2] = 1.0
    assert device.read().motion[3] == -1.0


def test_an_unplugged_gamepad_is_one_line() -> None:
    with pytest.raises(RealrlError, match="the gamepad was unplugged and nobody steers"):
        Gamepad(library(3, 7), pad()).read()


def test_what_is_plugged_in_is_listed() -> None:
    pytest.importorskip("pygame")
    assert all(isinstance(name, str) for name in gamepads())
