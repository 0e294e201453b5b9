"""`plugins/lerobot_robot_realrl`: LeRobot's command line records with a served robot and replays on it, where there is a Python with it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from realrl.robots.log import read_ticks
from realrl.robots.server import RobotServer
from realrl.robots.settings import ServerConfig
from realrl.robots.sim import simulated

PLUGIN = Path(__file__).resolve().parents[2] / "plugins" / "lerobot_robot_realrl"
CHILD = """
import sys, time, torch
from dataclasses import dataclass
register, torch.library.register_fake = torch.library.register_fake, lambda *_, **__: lambda function: function
try:
    import torchvision  # a build for CUDA beside a torch without it lacks operators that its import describes
except ModuleNotFoundError:
    pass
torch.library.register_fake = register
import lerobot_robot_realrl
from lerobot.scripts import lerobot_record, lerobot_replay
from lerobot.teleoperators.config import TeleoperatorConfig
from lerobot.teleoperators.teleoperator import Teleoperator

@TeleoperatorConfig.register_subclass("nudge")
@dataclass(kw_only=True)
class NudgeConfig(TeleoperatorConfig):
    pass

class Nudge(Teleoperator):
    config_class, name = NudgeConfig, "nudge"
    action_features = {key: float for key in ("x.delta", "y.delta", "z.delta", "width.delta")}
    feedback_features, is_connected, is_calibrated = {}, True, True
    def connect(self, calibrate=True): pass
    def calibrate(self): pass
    def configure(self): pass
    def get_action(self): return {"x.delta": 0.005, "y.delta": 0.0, "z.delta": -0.5, "width.delta": 0.0}
    def send_feedback(self, feedback): pass
    def disconnect(self): pass

url, root = sys.argv[1:]
robot = ["--robot.type=realrl", f"--robot.url={url}", "--play_sounds=false"]
data = ["--dataset.repo_id=me/nudged", f"--dataset.root={root}", "--dataset.fps=20"]
sys.argv = ["lerobot-record", *robot, *data, "--teleop.type=nudge", "--dataset.single_task=nudge it", "--dataset.num_episodes=2",
            "--dataset.episode_time_s=1", "--dataset.reset_time_s=0.5", "--dataset.push_to_hub=false", "--dataset.video=false"]
lerobot_record.main()
sys.argv = ["lerobot-replay", *robot, *data, "--dataset.episode=1"]
lerobot_replay.main()
from lerobot.datasets.lerobot_dataset import LeRobotDataset
told = LeRobotDataset("me/nudged", root=root)
print("recorded", told.num_episodes, told.features["action"]["names"], len(told.features["observation.state"]["names"]))
"""


def test_lerobot_records_and_replays_on_a_served_robot(tmp_path: Path) -> None:
    """LEROBOT_PYTHON: a Python with lerobot; LEROBOT_PYTHONPATH: where it finds websockets and msgpack, if not by itself."""
    python = os.environ.get("LEROBOT_PYTHON")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PLUGIN), os.environ.get("LEROBOT_PYTHONPATH", "")]),
           "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    needed = "import lerobot, websockets, msgpack, cv2, rerun"
    if not python or subprocess.run([python, "-c", needed], capture_output=True, env=env).returncode:
        pytest.skip("LEROBOT_PYTHON names no Python with all that lerobot-record imports, websockets and msgpack")
    driver, cfg = simulated("arm/panda-reach", ServerConfig(port=0, log=tmp_path / "log", watchdog=20.0, park_after=600.0))
    server = RobotServer(driver, cfg, arm=True, say=lambda line: None)
    server.start()
    try:
        found = subprocess.run([python, "-c", CHILD, server.url, str(tmp_path / "data")], capture_output=True, text=True, timeout=300,
                               env=env, stdin=subprocess.DEVNULL)
        assert found.returncode == 0, found.stderr[-3000:]
        assert found.stdout.splitlines()[-1] == "recorded 2 ['x.delta', 'y.delta', 'z.delta', 'width.delta'] 14"
        assert not server.keeper.faults, "between episodes the robot was told to hold"
        assert [e["event"] for e in server.log.recent].count("bye") == 2
    finally:
        server.close()
    ticks = list(read_ticks(next((tmp_path / "log").iterdir())))
    assert max(t.command[0] for t in ticks) > 0.5 and min(t.command[2] for t in ticks) > 0.0199, "it moved, and not into the table"
