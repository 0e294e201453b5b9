"""Readings that must not be believed, and limits that cannot be kept: said at once, and never acted on."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from test_keeper import ARM, TICK, Bench

from realrl.robots.driver import Channel, Held
from realrl.types import RealrlError

PICTURE = np.zeros((4, 4, 3), np.uint8)


def test_a_driver_with_another_clock_is_found_out():
    """With `time.time()` for a stamp no reading would ever be old."""
    bench = Bench()
    real = bench.arm.read
    bench.arm.read = lambda: replace(real(), stamp=time.time())
    with pytest.raises(Held, match=r"time\.monotonic"):
        bench.armed()


@pytest.mark.parametrize(("seen", "words"), [((np.nan, PICTURE), "picture of front"), ((100.0, PICTURE.astype(np.float32)), "uint8"),
                                             ((100.0, PICTURE[..., 0]), "uint8"), ((100.0, PICTURE.tolist()), "uint8"),
                                             ((1e9, PICTURE), r"time\.monotonic")])
def test_pictures_that_are_none_hold_it(seen, words):
    bench = Bench()
    bench.arm.images = {"front": seen}
    with pytest.raises(Held, match=words):
        bench.armed()


def test_a_camera_that_is_gone_grows_old():
    """A driver that shows it no longer is as bad as one that shows its last picture again."""
    bench = Bench()
    bench.arm.images = {"front": (bench.clock.now + 0.1, PICTURE)}
    bench.armed().arm.images = {}
    bench.act(0.01)
    assert "front" in bench.answers[-1].reading.images  # who looks for it finds the last one
    bench.run(0.7)
    assert bench.keeper.mode == "held" and "camera front" in bench.keeper.faults


def test_a_limit_of_force_without_a_sensor_is_no_limit():
    bench = Bench(force=20.0)
    real = bench.arm.read
    bench.arm.read = lambda: replace(real(), force=None)
    with pytest.raises(Held, match="no force is measured"):
        bench.armed()


BOX = (-0.3, -1.0, -1.0, 0.3, 1.0, 1.0)


@pytest.mark.parametrize(("given", "words"), [
    ({"stall": (0.1,)}, "stall.*2 numbers"), ({"start": (0.1,)}, "start.*2 numbers"), ({"start": (0.9, 0.04)}, "start.*inside the limits"),
    ({"park": (0.4, 0.0), "workspace": BOX}, "park.*outside the workspace")])
def test_what_does_not_fit_the_robot_is_refused_before_it_moves(given, words, monkeypatch):
    monkeypatch.setattr("test_keeper.Arm.tip", lambda self, at: np.array([at[0], 0.0, 0.0]), raising=False)
    with pytest.raises(RealrlError, match=words):
        Bench(**given)


def test_steps_that_did_not_arrive_have_not_been_gone():
    """What is sent by how much to go is not sent twice; where the robot is, the guard goes on knowing."""
    bench = Bench()
    delta = Channel("x", "m", "delta", -0.5, 0.5, 0.3, 6.0, 200.0, step=0.02)
    bench.arm.channels = (delta, ARM[1])
    where = [0.1]

    def write(command):
        bench.arm.tries = getattr(bench.arm, "tries", 0) + 1
        if bench.arm.tries % 3 == 0:
            raise OSError("lost")
        where[0] += command[0]
        bench.arm.at = np.array([where[0], command[1]])
        return command

    bench.arm.write = write
    bench.keeper = type(bench.keeper)(bench.arm, bench.keeper.cfg, bench.log, clock=bench.clock, deliver=bench.answers.append)
    bench.armed()
    for _ in range(60):
        bench.act(0.02)
    bench.run(5 * TICK)
    assert bench.keeper.guard.place[0] == pytest.approx(where[0], abs=0.004) and 0.45 < where[0] <= 0.5
