"""How a robot's server begins and ends, whoever ends it how often: parked before it lets go, and untouched where it must not be served."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_keeper import Arm
from test_server import Live, until

from realrl.cli import main as cli
from realrl.robots import wire
from realrl.robots.client import Link, RobotClient
from realrl.robots.driver import Held
from realrl.robots.log import ServerLog, read_events, read_ticks
from realrl.robots.server import RobotServer
from realrl.robots.settings import ServerConfig
from realrl.types import RealrlError

pytest.importorskip("websockets")

SLOW = """
import time
from pathlib import Path
import numpy as np
from realrl.robots.driver import Channel, Reading


class Slow:
    channels = (Channel("x", "m", "pose", -0.5, 0.5, 0.3, 6.0, 200.0, step=0.02),)
    state = ("x",)

    def __init__(self):
        self.place, self.calls = np.array([0.3]), Path("calls")
        self._note("built")

    def _note(self, what):
        with self.calls.open("a") as file:
            file.write(what + "\\n")

    def read(self):
        return Reading(time.monotonic(), self.place.copy(), self.place.copy())

    def write(self, command):
        self.place = np.array(command)
        return command

    def __getattr__(self, name):
        if name not in ("hold", "brake", "park", "release", "close"):
            raise AttributeError(name)
        return lambda: self._note(name)
"""
YAML = "name: slow\ndriver: slow:Slow\npark: [0.0]\npace: 0.5\nport: 0\nlog: log\n"


@pytest.fixture
def cell(tmp_path: Path):
    """Starts `realrl robot serve` with an arm that parks for four seconds; gives (process, address)."""
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "slow.yaml").write_text(YAML)
    started: list[subprocess.Popen[str]] = []

    def start(*flags: str, wrap: tuple[str, ...] = (), script: tuple[str, ...] = ("slow.yaml",), **how):
        command = [*wrap, sys.executable, "-m", "realrl", "robot", "serve", *script, *flags]
        heard = lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
        started.append(subprocess.Popen(command, cwd=tmp_path, text=True, stderr=subprocess.PIPE, preexec_fn=heard,
                                        **{"stdout": subprocess.PIPE, **how}))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def served(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return next(line.split()[4] for line in process.stdout if "is served at" in line)


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().split() if (folder / "calls").exists() else []


@pytest.mark.parametrize(("number", "again"), [(2, 2), (15, 15), (1, 2)], ids=["Ctrl-C", "SIGTERM", "SIGHUP"])
def test_who_presses_ctrl_c_twice_does_not_leave_the_arm_on_its_way(cell, tmp_path, number, again):
    process = cell("--arm")
    served(process)
    process.send_signal(number)
    for _ in range(4):
        time.sleep(0.3)
        process.send_signal(again)
    assert process.wait(30) == 0
    assert calls(tmp_path)[-3:] == ["park", "release", "close"]


def test_an_end_is_heard_that_comes_where_nobody_is_woken_by_it(cell, tmp_path):
    """As a signal that comes just before the listening thread goes to sleep: another thread has taken it."""
    (tmp_path / "slow.py").write_text(SLOW + """

def ends():
    while not Path("now").exists():
        time.sleep(0.05)
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)


import signal, threading
threading.Thread(target=ends, daemon=True).start()
""")
    process = cell("--arm")
    served(process)
    time.sleep(0.5)
    (tmp_path / "now").touch()
    assert process.wait(20) == 0
    assert calls(tmp_path)[-3:] == ["park", "release", "close"]


def test_a_closed_terminal_parks_the_arm(cell, tmp_path):
    """Of an ssh session that broke; its last words have nowhere to go."""
    mine, theirs = pty.openpty()
    process = cell("--arm", wrap=("setsid", "--ctty", "--wait"), stdin=theirs, stdout=theirs)
    os.close(theirs)
    said = b""
    while b"is served at" not in said:
        said += os.read(mine, 1000)
    os.close(mine)
    process.wait(30)
    assert calls(tmp_path)[-3:] == ["park", "release", "close"]


def test_what_was_stopped_is_not_moved_by_the_end_of_its_server(cell, tmp_path):
    process = cell("--arm")
    url = served(process)
    with Link(url, "person") as person:
        person.ask({"type": "stop"})
        at = person.ask({"type": "status"})["measured"]["x"]
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=15)
    assert "is not moved and holds" in out and "pressed stop" in out
    assert calls(tmp_path)[-2:] == ["hold", "close"] and "release" not in calls(tmp_path)
    (folder,) = (tmp_path / "log").iterdir()
    assert all(abs(t.command[0] - at) < 1e-6 for t in read_ticks(folder)) and read_events(folder)[-1]["event"] == "left holding"


def test_what_was_never_armed_is_left_as_it_was(cell, tmp_path):
    process = cell()
    served(process)
    process.terminate()
    assert process.wait(15) == 0
    assert calls(tmp_path) == ["built", "close"]


def test_a_server_that_cannot_serve_does_not_touch_the_robot(cell, tmp_path):
    """Another one that owns it may be at work."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = cell("--port", str(taken.getsockname()[1]))
        _, err = process.communicate(timeout=30)
    assert process.returncode == 2 and "cannot be listened on" in err and len(err.splitlines()) == 1
    process = cell("--host", "0.0.0.0")
    assert "token" in process.communicate(timeout=30)[1]
    assert calls(tmp_path) == []
    (tmp_path / "slow.yaml").write_text(YAML.replace("[0.0]", "[7.0]"))
    _, err = cell().communicate(timeout=30)
    assert "park [7.0] must be 1 numbers inside the limits" in err and calls(tmp_path) == ["built", "close"]


def test_one_robot_is_served_once(cell, tmp_path):
    first = cell()
    served(first)
    process = cell("--port", "0")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2 and "is served already" in err and calls(tmp_path) == ["built"]
    first.kill()  # which leaves nothing behind
    first.wait()
    served(cell())


@pytest.mark.parametrize(("change", "words"), [
    ("options: {speed: 3}", "could not be built with options {'speed': 3}"), ("driver: slow:Fast", "has no 'Fast'"),
    ("driver: os:getcwd", "no table of channels"), ("driver: slow", "MODULE|give a module"), ("driver: fast:Slow", "no module 'fast'")])
def test_a_driver_that_cannot_be_built_is_told_in_a_line(cell, tmp_path, change, words):
    key = change.partition(":")[0]
    (tmp_path / "slow.yaml").write_text("".join(line for line in YAML.splitlines(True) if not line.startswith(key)) + change + "\n")
    process = cell()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2 and len(err.splitlines()) == 1 and re.search(words, err) and "--env" not in err


def test_what_breaks_a_simulated_robot_is_ordered_by_hand_and_no_other_robot_has_it(cell, tmp_path, capsys):
    url = served(cell(script=("--sim", "arm/panda-reach", "--port", "0", "--log", "log")))
    assert cli.main(["robot", "fault", "estop", url]) == 0
    with Link(url, "person") as person:
        assert until(lambda: "estop" in person.ask({"type": "status"})["faults"])
        assert cli.main(["robot", "fault", "none", url]) == 0

        def arms() -> bool:
            try:
                return person.ask({"type": "arm"})["mode"] == "armed"
            except RealrlError:  # it has not been read since
                return False

        assert until(arms)
    assert cli.main(["robot", "fault", "hiccups", url]) == 2 and "known are none, latency" in capsys.readouterr().err
    assert cli.main(["robot", "fault", "nan", served(cell("--arm"))]) == 2 and "only a simulated" in capsys.readouterr().err


@pytest.fixture
def serve(run_server, tmp_path):
    return lambda **cfg: run_server(Arm(Live()), ServerConfig(**{"fps": 50.0, "ticks": 200.0, "port": 0, "log": tmp_path, "watchdog": 20.0,
                                                                 **cfg}))


def test_who_asks_for_the_lease_and_dies_at_once_gives_it_back(serve):
    from websockets.sync.client import connect
    server = serve()
    for _ in range(20):
        with contextlib.suppress(OSError), connect(server.url) as client:
            client.send(wire.pack({"type": "hello", "v": wire.VERSION, "role": "commander", "token": ""}))
            client.socket.close()  # as a kill does
    assert until(lambda: server._commander is None)
    RobotClient(server.url).close()


def test_nobody_keeps_a_person_from_stopping_it(serve):
    server = serve()
    watchers = [Link(server.url, "watcher") for _ in range(16)]
    with pytest.raises(RealrlError, match="others are connected"):
        Link(server.url, "watcher")
    with Link(server.url, "person") as person:
        assert person.ask({"type": "stop"})["mode"] == "held"
    for one in watchers:
        one.close()
    assert until(lambda: server._peers == {"person": 0, "other": 0})


def test_a_client_is_told_that_its_robot_was_not_parked(serve):
    server = serve(park=(0.0, 0.04))
    env = RobotClient(server.url)
    env.reset(seed=0)
    env.step(np.array([0.5, 0.0]))
    server.keeper.stop("somebody")
    assert "somebody pressed stop" in env.park() and server.keeper.mode == "held"
    env.close()


def test_what_brakes_still_when_its_server_ends_parks_once_it_stands(serve, monkeypatch, tmp_path):
    server = serve(park=(0.0, 0.04))
    keeper = server.keeper
    assert until(lambda: keeper.watch.reading is not None)
    keeper.arm()
    gather, tries = keeper._gather, []

    def braking(there: np.ndarray) -> None:
        tries.append(keeper.mode)
        if len(tries) < 4:
            raise Held("the robot still brakes: arm it once it stands")
        gather(there)

    monkeypatch.setattr(keeper, "_gather", braking)
    server.close()
    assert tries == ["held"] * 4 and [e["event"] for e in read_events(server.log.folder)][-2:] == ["parked", "released"]


def test_two_servers_of_one_second_have_logs_of_their_own(tmp_path):
    logs = [ServerLog.begun(tmp_path / "log") for _ in range(3)]
    assert len({log.folder for log in logs}) == 3
    for log in logs:
        log.close()
    (tmp_path / "file").touch()
    for bad in (tmp_path / "file", tmp_path / "file" / "deeper", Path("/proc/nowhere")):
        with pytest.raises(RealrlError, match="--log"):
            ServerLog.begun(bad)


FULL = """
import resource, signal, sys, time
from pathlib import Path
from realrl.robots.log import ServerLog, Tick
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = ServerLog(Path(sys.argv[1]))
row = lambda i: Tick(float(i), 0.0, "armed", [0.0] * 6, [0.0] * 6, [0.0] * 6, [0] * 7, i)
for i in range(500):
    log.tick(row(i))
time.sleep(0.6)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, ((log.folder / "ticks-0000.msgpack").stat().st_size + 50, hard))  # half a row more
for i in range(500, 510):
    log.tick(row(i))
time.sleep(0.6)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
for i in range(510, 520):
    log.tick(row(i))
log.close()
print(log.lost)
"""


def test_a_disk_that_was_full_for_a_while_spoils_no_row_before_or_after(tmp_path):
    (tmp_path / "log").mkdir()
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path / "log")], capture_output=True, text=True, check=True)
    assert [t.seq for t in read_ticks(tmp_path / "log")] == [*range(500), *range(510, 520)] and int(done.stdout) > 0


def test_a_robot_that_was_never_read_is_looked_at_in_a_line(run_server):
    arm = Arm(Live())
    arm.broken = "silent"
    server = RobotServer(arm, ServerConfig(port=0, log=None), say=lambda line: None)
    server.start()
    try:
        with Link(server.url, "watcher") as link, pytest.raises(RealrlError, match="has not been read"):
            link.ask({"type": "look"})
    finally:
        server.close()
