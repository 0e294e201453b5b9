"""A policy that was trained on somebody's recordings, on a served robot: its numbers mean there what they meant in the recording."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_deploy import Table

from realrl.cli import main as cli
from realrl.data.store import Store
from realrl.policies.folder import read_robot
from realrl.robots.driver import Channel, Reading
from realrl.robots.embodiment import fits
from realrl.robots.server import RobotServer
from realrl.robots.settings import ServerConfig
from realrl.types import Episode, RealrlError

pytest.importorskip("websockets")
PLACES = tuple(Channel(name, "m", "pose", -0.5, 0.5, 2.0, 60.0, 5000.0) for name in ("x", "y"))


class Arm(Table):
    """A hand that is told where to be, under a camera of more pixels than a policy looks at."""

    channels = PLACES

    def read(self) -> Reading:
        reading = super().read()
        return replace(reading, images={"top": (reading.stamp, np.full((40, 60, 3), 90, np.uint8))})


@pytest.fixture
def serve() -> Iterator[Callable[..., RobotServer]]:
    servers = []

    def start(**how: Any) -> RobotServer:
        cfg = ServerConfig(fps=how.pop("fps", 50.0), ticks=100.0, port=0, log=None, start=(0.15, 0.15), park=(0.15, 0.15), watchdog=100.0,
                           horizon=30, pace=1.0)
        servers.append(RobotServer(Arm(**how), cfg, arm=True, say=lambda line: None))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def recorded(folder: Path) -> Path:
    """Twelve sweeps between 0.1 and 0.2 m, a small part of where the robot may go, with a camera of another size."""
    episodes = []
    for number in range(12):
        t = np.linspace(0, 3, 31)[:, None]
        place = (0.15 + 0.05 * np.sin(t + np.array([0.0, 1.0]) + number)).astype(np.float32)
        n = len(place) - 1
        film = np.full((n + 1, 24, 36, 3), 90, np.uint8)
        obs = {"state": np.concatenate([place, np.full((n + 1, 1), 0.3, np.float32)], 1), "images.top": film}
        episodes.append(Episode(
            obs=obs, action=place[1:], proposed=place[1:], source=np.ones(n, np.uint8), success=np.arange(n) == n - 1,
            reward=np.zeros(n, np.float32), time=np.arange(n) / 50, starts_plan=np.ones(n, bool), terminated=True, truncated=False,
            task="sweep", policy="human", seed=number))
    Store.create(folder, task="sweep", fps=50, codec="h264").append(
        episodes, names={"action": ["x", "y"], "observation.state": ["hand x", "hand y", "lamp"]})
    return folder


def test_actions_are_sent_as_they_were_recorded_and_pictures_shown_in_their_size(
        serve: Callable[..., RobotServer], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run, server = recorded(tmp_path / "demos"), tmp_path / "run", serve()
    small = ["--imitation.steps", "20", "--imitation.batch", "16", "--distill.steps", "5", "--policy.hidden", "32", "--policy.blocks", "1",
             "--sight.height", "16", "--sight.width", "20", "--recorded.low", "0.09", "--recorded.high", "0.21"]
    assert cli.main(["train", "bc", "--data", str(data), "--run", str(run), *small]) == 0
    out = tmp_path / "deployed"
    told = ["deploy", "--robot", server.url, "--policy", str(run / "policy"), "--episodes", "1", "--horizon", "12", "--out", str(out)]
    assert cli.main(told) == 0
    said = capsys.readouterr()
    assert "nobody said in which units" in said.err and "--recorded.units" in said.err
    (episode,) = Store.open(out).read()
    place = episode.obs["state"][:, :2]
    assert place.min() > 0.08 and place.max() < 0.22, "not over all of the robot's range"
    assert episode.obs["images.top"].shape[1:] == (16, 20, 3)


def test_a_policy_that_is_told_is_deployed_under_a_text_and_recorded_so(serve: Callable[..., RobotServer], tmp_path: Path) -> None:
    data, run, server = recorded(tmp_path / "demos"), tmp_path / "run", serve()
    small = ["--imitation.steps", "10", "--imitation.batch", "16", "--distill.steps", "2", "--distill.chains", "2", "--policy.width", "16",
             "--policy.heads", "2", "--policy.expert", "1", "--sight.kind", "state", "--recorded.units", "m"]
    assert cli.main(["train", "flow", "--data", str(data), "--run", str(run), *small]) == 0
    out = tmp_path / "deployed"
    with pytest.warns(UserWarning, match="never seen in training"):
        assert cli.main(["deploy", "--robot", server.url, "--policy", str(run / "policy"), "--episodes", "1", "--horizon", "12",
                         "--out", str(out), "--text", "sweep twice"]) == 0
    (episode,) = Store.open(out).read()
    place = episode.obs["state"][:, :2]
    assert place.min() > 0.05 and place.max() < 0.25 and episode.task in ("sweep twice", "sweep"), "the robot judges, or nobody does"


@pytest.mark.parametrize(("change", "words"), [
    ({"actions": ("y", "x")}, "in the order y, x"), ({"units": ("mm", "mm")}, "trained on mm"), ({"fps": 30.0}, "30 actions a second"),
    ({"control": "relative"}, "says how to move"), ({"state": ("hand y", "hand x", "lamp")}, "the robot shows hand x, hand y, lamp")])
def test_another_robot_is_refused(change: dict[str, Any], words: str, serve: Callable[..., RobotServer], tmp_path: Path) -> None:
    about = serve().about()
    run = tmp_path / "run"
    small = ["--imitation.steps", "2", "--imitation.batch", "16", "--distill.steps", "2", "--policy.hidden", "16", "--policy.blocks", "1",
             "--sight.kind", "state", "--recorded.units", "m"]
    assert cli.main(["train", "bc", "--data", str(recorded(tmp_path / "demos")), "--run", str(run), *small]) == 0
    robot = read_robot(run / "policy")
    assert robot is not None and fits(robot, about, "p") == ""
    with pytest.raises(RealrlError, match=words):
        fits(replace(robot, **change), about, "p")
