"""A robot served for real: over a socket, in real time, with clients that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_keeper import Arm, Clock

from realrl.cell.rollout import rollout
from realrl.robots import wire
from realrl.robots.client import Link, RobotClient
from realrl.robots.guard import box_guard
from realrl.robots.log import ServerLog, describe, read_events, read_ticks
from realrl.robots.server import RobotServer
from realrl.robots.settings import ServerConfig
from realrl.types import RealrlError

pytest.importorskip("websockets")
pytest.importorskip("msgpack")


class Live(Clock):
    """The time of day."""

    @property
    def now(self) -> float:
        return time.monotonic()


@pytest.fixture
def serve(tmp_path, run_server):
    """Serves the arm of test_keeper; gives its server."""

    def start(**cfg):
        settings = {"fps": 50.0, "ticks": 200.0, "port": 0, "log": tmp_path, "park_after": 5.0, "start": (0.1, 0.04), "watchdog": 20.0,
                    **cfg}
        return run_server(Arm(Live()), ServerConfig(**settings))

    return start


def until(told, patience: float = 8.0) -> bool:
    """Whether something becomes so."""
    end = time.monotonic() + patience
    while not told() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(told())


def test_a_robot_is_an_environment(serve, tmp_path):
    server = serve(horizon=12)
    env = RobotClient(server.url)
    assert (env.task.id, env.task.action_dim, env.task.obs_dim, env.task.dt, env.task.live) == ("robot/robot", 2, 2, 0.02, True)

    class Push:
        name, chunk, n_obs = "push", 3, 1

        def start(self, batch):
            return {}

        def act(self, obs, state, *, greedy, rng):
            from realrl.types import Plan
            return Plan(np.tile(np.array([0.5, 0.0], np.float32), (1, 3, 1))), state

    (episode,) = rollout([env], Push(), [box_guard(env)], [7], greedy=True)
    assert len(episode) == 12 and episode.truncated
    assert episode.obs["state"][-1, 0] > episode.obs["state"][0, 0] + 0.05  # 12 steps of 10 mm, less what is under way
    gaps = np.diff(episode.time)
    assert np.median(gaps) == pytest.approx(0.02, abs=0.01)
    env.close()
    assert until(lambda: any(e["event"] == "bye" for e in server.log.recent))


def test_who_does_not_fit_is_told_and_the_lease_is_one(serve):
    server = serve()
    env = RobotClient(server.url)
    with pytest.raises(RealrlError, match="is commanded from"):
        RobotClient(server.url)
    with Link(server.url, "watcher") as watcher:
        assert watcher.ask({"type": "status"})["commander"]
        for message in ({"type": "act", "epoch": 1, "seq": 0, "action": np.zeros(2)}, {"type": "arm"}, {"type": "nonsense"}):
            with pytest.raises(RealrlError):
                watcher.ask(message)
        assert watcher.ask({"type": "look"})["state"].shape == (2,)
    env.reset(seed=0)
    env.link.send({"type": "act", "epoch": env.link.epoch - 1, "seq": 5, "action": np.zeros(2)})  # of a lease that is over
    with pytest.raises(RealrlError, match="epoch"):
        env.link.receive(2)
    env.close()
    assert until(lambda: RobotServer.about(server) and server._commander is None)
    RobotClient(server.url).close()
    assert server.epoch == 2


@pytest.mark.parametrize("hostile", [b"", b"\xff" * 50, b"\x93" * 5000, wire.pack({"type": "hello", "v": 99}), "text",
                                     wire.pack({"type": "hello", "v": 1, "role": "king"}),
                                     b"\x82\xa4type\xa5hello\xa1a\x83\xa2_a\xa3|O8\xa1s\x90\xa1b\xc4\x00"])
def test_what_is_no_hello_is_refused_and_the_robot_goes_on(serve, hostile):
    from websockets.sync.client import connect
    server = serve()
    with connect(server.url) as socket:
        socket.send(hostile)
        assert wire.unpack(socket.recv(timeout=5))["type"] == "error"
    with Link(server.url, "watcher") as link:
        assert link.ask({"type": "status"})["mode"] == "armed"


def test_a_page_of_a_browser_is_refused_and_so_is_too_much(serve):
    from websockets.exceptions import ConnectionClosed, InvalidStatus
    from websockets.sync.client import connect
    server = serve()
    with pytest.raises(InvalidStatus):
        connect(server.url, origin="http://evil.example")
    with Link(server.url, "watcher") as link, pytest.raises((RealrlError, ConnectionClosed)):
        link.send({"type": "status", "x": b"0" * (wire.LARGEST_IN + 1)})
        link.receive(2)
        link.receive(2)


def test_another_address_needs_a_token(serve, tmp_path, monkeypatch):
    with pytest.raises(RealrlError, match="token"):
        RobotServer(Arm(Live()), ServerConfig(host="0.0.0.0", log=None))
    (tmp_path / "short").write_text("secret")
    with pytest.raises(RealrlError, match="16"):
        RobotServer(Arm(Live()), ServerConfig(token=tmp_path / "short", log=None))
    (tmp_path / "token").write_text("0123456789abcdef\n")
    server = serve(token=tmp_path / "token")
    with pytest.raises(RealrlError, match="token is wrong"):
        Link(server.url, "person", token="0123456789abcdeX")
    monkeypatch.setenv("REALRL_ROBOT_TOKEN", "0123456789abcdef")
    Link(server.url, "person").close()


def test_a_stop_from_anywhere_ends_the_episode_and_only_a_person_arms(serve):
    server = serve()
    env = RobotClient(server.url)
    env.reset(seed=0)
    env.step(np.array([0.5, 0.0]))
    with Link(server.url, "watcher") as link:
        assert link.ask({"type": "stop"})["mode"] == "held"
    with pytest.raises(RealrlError, match=r"held.*realrl robot arm"):
        env.step(np.array([0.5, 0.0]))
        env.step(np.array([0.5, 0.0]))
    with Link(server.url, "person") as link:
        assert link.ask({"type": "arm"})["mode"] == "armed"
    env.reset(seed=1)
    env.close()


CLIENT = """
import sys, numpy as np
from realrl.robots.client import RobotClient
env = RobotClient(sys.argv[1], horizon=100000)
env.reset(seed=0)
for step in range(100000):
    env.step(np.array([0.3 if step % 40 < 20 else -0.3, 0.0]))
    if step == 10:
        print("moving", flush=True)
"""


def test_a_client_says_how_the_connection_to_its_server_ended(serve):
    server = serve()
    link = Link(server.url, "watcher")
    server.close()
    with pytest.raises(RealrlError, match=r"connection to the robot's server is lost \(received 1001 \(going away\)") as told:
        while True:
            link.ask({"type": "status"})
    assert "the robot brakes and holds" in str(told.value)
    link.close()


def test_a_client_that_is_killed_leaves_a_robot_that_brakes_holds_and_parks(serve):
    """kill -9, and the proof in the server's own log."""
    server = serve(park=(0.0, 0.04), watchdog=3.0, park_after=60.0)
    client = subprocess.Popen([sys.executable, "-c", CLIENT, server.url], stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None and client.stdout.readline().strip() == "moving"
    server.keeper.cfg = replace(server.keeper.cfg, park_after=0.3)
    killed = time.monotonic()
    os.kill(client.pid, signal.SIGKILL)
    client.wait()
    assert until(lambda: server.keeper.mode == "parked")
    server.close()
    folder = next(Path(server.cfg.log).iterdir())
    events = [e for e in read_events(folder) if e["time"] >= killed]
    assert [e["event"] for e in events if e["event"] in ("fault", "parking", "parked")] == ["fault", "parking", "parked"]
    fault = next(e for e in events if e["event"] == "fault")
    assert fault["name"] == "commander" and fault["time"] - killed < 0.5 and "commander" in describe(fault)
    ticks = [t for t in read_ticks(folder) if t.time >= killed]
    held = [t.command[0] for t in ticks if t.mode == "held"]
    assert len(held) > 10 and np.ptp(held[len(held) // 2:]) < 1e-6 and np.abs(np.diff(held)).max() < 0.3 / 200 * 1.5
    assert server.driver.calls[-3:] == ["park", "release", "close"]


def test_the_log_never_makes_anybody_wait(tmp_path):
    log = ServerLog(tmp_path / "log")
    (tmp_path / "log" / "events.jsonl").mkdir()  # a disk that refuses
    began = time.monotonic()
    for _ in range(200):
        log.event("something")
    assert time.monotonic() - began < 0.5
    log.close()
    assert log.lost == 200
