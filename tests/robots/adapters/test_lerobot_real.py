"""The classes of LeRobot itself, its SO-101 and its leader, served through the adapter: with a bus that behaves as their servos do."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "howto" / "your-robot.md"
CHILD = """
import contextlib, sys, time, numpy as np, torch
register, torch.library.register_fake = torch.library.register_fake, lambda *_, **__: lambda function: function
with contextlib.suppress(ModuleNotFoundError):
    import torchvision  # a build for CUDA beside a torch without it lacks operators that its import describes
torch.library.register_fake = register
from lerobot.robots.so_follower import so_follower
from lerobot.teleoperators.so_leader import SO101Leader, SO101LeaderConfig, so_leader

class Servos:
    '''STS3215s: with torque they go to their goal at once, also when they get it.'''
    def __init__(self, port, motors, calibration=None):
        self.motors, self.is_connected, self.is_calibrated = motors, False, True
        self.present, self.goal, self.torque, self.jump = dict.fromkeys(motors, 20.0), dict.fromkeys(motors, 60.0), False, 0.0
    def connect(self): self.is_connected = True
    def disconnect(self, disable_torque=True):
        self.is_connected, self.torque = False, self.torque and not disable_torque
    def configure_motors(self): pass
    def write(self, *_): pass
    def sync_read(self, what): return dict(self.present if what == "Present_Position" else dict.fromkeys(self.motors, int(self.torque)))
    def sync_write(self, what, values):
        self.goal.update(values)
        self._go()
    def _go(self):
        if self.torque:
            self.jump = max(self.jump, *(abs(self.goal[m] - at) for m, at in self.present.items()))
            self.present = dict(self.goal)
    def enable_torque(self, *_):
        self.torque = True
        self._go()
    def disable_torque(self, *_): self.torque = False
    @contextlib.contextmanager
    def torque_disabled(self, *_):
        self.disable_torque()
        yield
        self.enable_torque()

so_follower.FeetechMotorsBus = so_leader.FeetechMotorsBus = Servos
so_follower.make_cameras_from_configs = lambda cameras: {}
from so101 import build
from realrl.robots.adapters.lerobot import LeRobotHand
from realrl.robots.keeper import Keeper
from realrl.robots.log import ServerLog
from realrl.robots.settings import ServerConfig

arm = build("/dev/null")
bus = arm._robot.bus
print("connected", bus.jump, bus.torque)
keeper = Keeper(arm, ServerConfig(fps=20, ticks=50, log=None, watchdog=100.0), ServerLog(None))

def run(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        keeper.tick()
        time.sleep(0.015)

run(0.5)
keeper.arm()
leader = SO101Leader(SO101LeaderConfig(port="/dev/null", use_degrees=True))
leader.connect(calibrate=False)
hand = LeRobotHand(leader, arm.channels, leader=True)
hand.engaged = True
steps = np.array([c.step for c in arm.channels])
for i in range(15):
    leader.bus.present["shoulder_pan"] = 20.0 + 2 * i
    keeper.act(i + 1, hand.poll({}, None) * steps, source=1)
    run(0.06)
run(0.3)
print("followed", round(bus.present["shoulder_pan"] - 20, 1), round(bus.present["elbow_flex"] - 20, 1), bus.jump < 5)
bus.disable_torque()
bus.present["shoulder_pan"] = -30.0
bus.jump = 0.0
keeper.latch("overload", "a servo cut itself off")
arm.hold()
arm.order(lambda: None, wait=True)
print("woken", bus.jump, bus.torque)
arm.close()
print("left", bus.torque, bus.is_connected)
"""


def test_lerobots_own_arm_and_leader_are_served(tmp_path: Path) -> None:
    """LEROBOT_PYTHON: a Python with lerobot from 0.4.4; LEROBOT_PYTHONPATH: where it finds what realrl imports, if not by itself."""
    python = os.environ.get("LEROBOT_PYTHON")
    env = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "PYTHONPATH": os.pathsep.join(
        [str(ROOT / "src"), str(tmp_path), os.environ.get("LEROBOT_PYTHONPATH", "")])}
    needed = CHILD.split("from lerobot.robots")[0] + "import lerobot.robots.so_follower.config_so_follower, realrl.robots.keeper"
    lacks = subprocess.run([python, "-c", needed], capture_output=True, env=env, text=True).stderr if python else ""
    if not python or lacks:
        pytest.skip(f"LEROBOT_PYTHON names no Python with lerobot and what realrl imports: {lacks[-200:]}")
    (tmp_path / "so101.py").write_text(re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1])
    found = subprocess.run([python, "-c", CHILD], capture_output=True, text=True, timeout=200, env=env, stdin=subprocess.DEVNULL)
    assert found.returncode == 0, found.stderr[-3000:]
    assert found.stdout.splitlines() == ["connected 0.0 True", "followed 28.0 0.0 True", "woken 0.0 True", "left True False"]
