"""A policy at work on a served robot, and the robot examined before it: recorded, counted, parked whatever happens."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from realrl.cell.deploy import Operator, Tally, deploy
from realrl.cell.latency import Ahead, Latency, _channel, calibrate
from realrl.cell.preflight import preflight
from realrl.cell.rollout import rollout
from realrl.cli import main as cli
from realrl.data.store import Store
from realrl.data.tools.check import describe
from realrl.envs.base import RobotEnv
from realrl.policies.folder import check_fit
from realrl.robots.client import RobotClient
from realrl.robots.driver import Channel, Reading
from realrl.robots.guard import box_guard
from realrl.robots.server import RobotServer
from realrl.robots.settings import ServerConfig
from realrl.types import Plan, RealrlError, TaskSpec

pytest.importorskip("websockets")

CHANNELS = tuple(Channel(name, "m", "pose", -0.5, 0.5, 2.0, 60.0, 5000.0, step=0.02) for name in ("x", "y"))


class Table:
    """A hand over a table that follows at once; `mix` turns what it senses into what it says."""

    channels, state = CHANNELS, ("hand x", "hand y", "lamp")

    def __init__(self, mix: np.ndarray | None = None, lag: float = 0.0) -> None:
        self.mix, self.lag = np.eye(2) if mix is None else mix, lag
        self.places: list[tuple[float, np.ndarray]] = [(time.monotonic(), np.zeros(2))]

    def read(self) -> Reading:
        now = time.monotonic()
        at = next((p for t, p in reversed(self.places) if t <= now - self.lag), self.places[0][1]) + 1e-9 * np.sin(now * 1e4)
        return Reading(now, at, np.array([*self.mix @ at, 0.3]))

    def write(self, command: np.ndarray) -> np.ndarray:
        self.places.append((time.monotonic(), np.array(command)))
        return command

    def hold(self) -> None: ...

    def brake(self) -> None: ...

    def park(self) -> None:
        self.parked = True

    def release(self) -> None: ...

    def close(self) -> None: ...


class Wander:
    """Random steps, chunks of two."""

    name, chunk, n_obs = "wander", 2, 1

    def start(self, batch):
        return {}

    def act(self, obs, state, *, greedy, rng):
        return Plan(rng[0].uniform(-1, 1, (1, 4, 2)).astype(np.float32)), state


@pytest.fixture
def cell() -> Iterator:
    servers = []

    def serve(**how):
        driver = Table(**how)
        cfg = ServerConfig(fps=50.0, ticks=100.0, port=0, log=None, start=(0.0, 0.0), park=(0.0, 0.0), watchdog=100.0, horizon=30, pace=1.0)
        servers.append(RobotServer(driver, cfg, arm=True, say=lambda line: None))
        servers[-1].start()
        return servers[-1]

    yield serve
    for server in servers:
        server.close()


def test_attempts_are_recorded_counted_and_the_robot_is_parked(cell, tmp_path: Path) -> None:
    server = cell()
    env = RobotClient(server.url, horizon=12)
    operator, tally = Operator(env), Tally()
    for tally in deploy(env, Wander(), 4, folder=tmp_path / "out", operator=operator):
        if tally.steps in (3, 15, 27):
            operator.press({3: "\n", 15: "x", 27: "z"}[tally.steps])
    assert (tally.episodes, tally.successes, tally.judged, tally.discarded) == (4, 1, 2, 1)
    episodes = Store.open(tmp_path / "out").read()
    assert [e.succeeded for e in episodes] == [True, False, False] and len(episodes[2]) == 12
    assert [e.judged for e in episodes] == [True, True, False], "the clock ended the last one, and said nothing"
    assert describe(tmp_path / "out")["success_rate"] == 0.5
    assert server.keeper.mode in ("parking", "parked") and "parked" in server.keeper.faults
    assert any("success 50% of 2" in line for line in tally.lines(env))
    assert tally.lines(env, over=True)[0] == "robot/robot: 4 episodes, 40 steps"


def test_recordings_bear_the_text_that_a_policy_was_told(cell, tmp_path: Path) -> None:
    env = RobotClient(cell().url, horizon=4)
    for _ in deploy(env, Wander(), 1, folder=tmp_path / "out", text="wave at me"):
        pass
    store = Store.open(tmp_path / "out")
    assert store.tasks == ["wave at me"] and store.read()[0].task == "wave at me"


def test_an_attempt_that_is_cut_short_is_no_failure(cell, tmp_path: Path) -> None:
    """By Ctrl-C; a kill leaves the same logs, which are recovered the same way."""
    env = RobotClient(cell().url, horizon=30)
    operator = Operator(env)
    with contextlib.closing(deploy(env, Wander(), 4, folder=tmp_path / "out", operator=operator)) as attempts:
        for tally in attempts:
            if tally.steps == 3:
                operator.press("\n")
            if tally.episodes == 1 and tally.steps == 16:
                break
    assert tally.lines(env, over=True)[0] == "robot/robot: 1 episode, 16 steps, one more was cut short"
    episodes = Store.open(tmp_path / "out").read()
    assert [(e.judged, e.succeeded, e.failed) for e in episodes] == [(True, True, False), (False, False, False)]
    assert describe(tmp_path / "out")["outcomes"] == {"success": 1, "failure": 0, "unknown": 1}


def test_a_takeover_is_one_press_moves_while_a_key_is_held_and_is_recorded(cell, tmp_path: Path) -> None:
    env = RobotClient(cell().url, horizon=16)
    operator = Operator(env)
    for tally in deploy(env, Wander(), 1, folder=tmp_path / "out", operator=operator):
        if tally.steps in (4, 12):
            operator.press("\t")
        if 6 <= tally.steps < 9:
            operator.press("q")
    (episode,) = Store.open(tmp_path / "out").read()
    assert episode.source.tolist() == [0] * 4 + [1] * 8 + [0] * 4
    assert episode.action[7, 0] == 1.0 and not episode.action[4:6].any() and tally.takeovers == 1


def test_a_robot_that_is_held_is_parked_all_the_same(cell) -> None:
    server = cell()
    env = RobotClient(server.url)
    env.reset(seed=0)
    env.step(np.array([0.5, 0.0]))
    server.keeper.latch("force", "too much of it")  # of which the client has been told, and has not heard yet
    env.park()
    env.close()
    assert server.keeper.mode in ("parking", "parked")


def test_it_parks_on_an_error_and_a_recorder_that_fails_stops_nothing(cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Wander):
        def act(self, obs, state, *, greedy, rng):
            if obs["state"].any() and float(obs["state"][0, -1, 0]) != 0.0:
                raise ValueError("the network is broken")
            return super().act(obs, state, greedy=greedy, rng=rng)

    server = cell()
    with pytest.raises(ValueError, match="broken"):
        list(deploy(RobotClient(server.url), Broken(), 1, folder=None))
    assert "parked" in server.keeper.faults
    server = cell()
    from realrl.data.record.recorder import Recorder
    monkeypatch.setattr(Recorder, "add", lambda self, step: (_ for _ in ()).throw(RealrlError("the disk is full")))
    *_, tally = deploy(RobotClient(server.url, horizon=6), Wander(), 1, folder=tmp_path / "out")
    assert tally.steps == 6 and any("disk is full" in note for note in tally.notes)


class Flat(RobotEnv):
    """The table in lock-step."""

    def __init__(self, numbers: int = 3) -> None:
        super().__init__(TaskSpec("lab", "flat", numbers, 2, 60, 0.02, "wander"), native_low=-0.02, native_high=0.02)

    def _begin(self, seed: int) -> np.ndarray:
        self.place = np.zeros(2)
        return self._shows()

    def _shows(self) -> np.ndarray:
        return np.array([*self.place, 0.3, 0.0])[:self.task.obs_dim]

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        self.place = self.place + action
        return self._shows(), 0.0, False, self._t >= 40


def recorded(folder: Path, fps: int = 50, numbers: int = 3, episodes: int = 3) -> Path:
    env = Flat(numbers)
    episodes = list(rollout([env], Wander(), [box_guard(env)], range(episodes), greedy=True))
    Store.create(folder, task="lab/flat", fps=fps).append(episodes)
    return folder


@pytest.mark.parametrize(("mix", "words"), [
    (np.eye(2), []), (np.diag([-1.0, 1.0]), ["x is asked: hand x moves the other way"]),
    (np.eye(2)[::-1], ["x is asked: hand y moves", "another order"]),
    (np.diag([1.0, 57.3]), ["y is asked: hand y moves by another amount"])])
def test_preflight_names_the_channel_that_is_off(cell, tmp_path: Path, mix: np.ndarray, words: list[str]) -> None:
    env = RobotClient(cell(mix=mix).url, horizon=10_000)
    found = preflight(env, recorded(tmp_path / "demos"))
    env.close()
    told = "; ".join(f.text for f in found if not f.fine)
    assert all(word in told for word in words) and bool(told) == bool(words), told


class Told(Flat):
    """Its state says where the hand was sent, too."""

    def __init__(self) -> None:
        super().__init__(5)

    def _shows(self) -> np.ndarray:
        return np.array([*self.place, *self.place, 0.3])


@pytest.mark.parametrize(("mix", "words"), [(np.eye(2), ""), (np.eye(2)[::-1], "hand y moves, in the recordings hand x did"),
                                            (np.diag([1.0, 1000.0]), "hand y moves by another amount")])
def test_preflight_is_not_taken_in_by_a_state_that_says_what_was_asked(cell, tmp_path: Path, mix: np.ndarray, words: str) -> None:
    lab, server = Told(), cell(mix=mix)
    demos = list(rollout([lab], Wander(), [box_guard(lab)], range(3), greedy=True))
    Store.create(tmp_path / "demos", task="lab/flat", fps=50).append(demos)
    server.driver.state, read = ("hand x", "hand y", "sent x", "sent y", "lamp"), server.driver.read
    server.driver.read = lambda: replace(read(), state=np.array([*read().state[:2], *server.driver.places[-1][1], 0.3]))
    env = RobotClient(server.url, horizon=10_000)
    off = [f.text for f in preflight(env, tmp_path / "demos") if not f.fine]
    env.close()
    assert bool(off) == bool(words) and all(words in text for text in off[:1]), off


def test_preflight_names_a_channel_that_nothing_follows(cell, tmp_path: Path) -> None:
    server = cell()
    read = server.driver.read
    server.driver.read = lambda: replace(read(), state=read().state * [0, 1, 1])
    env = RobotClient(server.url, horizon=10_000)
    off = [f.text for f in preflight(env, recorded(tmp_path / "demos")) if not f.fine]
    env.close()
    assert len(off) == 1 and "x is asked: hand x stands still" in off[0], off


class Lagging(Flat):
    """Its hand is slow, and its y stands: the demonstrator moves it hardly, and only together with x."""

    def _begin(self, seed: int) -> np.ndarray:
        self.asked, self.rng = np.zeros(2), np.random.default_rng(seed)
        return super()._begin(seed)

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        self.asked = self.asked + action
        self.place = self.place + 0.3 * (self.asked - self.place) * [1, 0] + self.rng.normal(0, 1e-4, 2)
        return self._shows(), 0.0, False, self._t >= 40


class Together(Wander):
    """What it does with y is a little of how it changes its mind about x."""

    def start(self, batch):
        self.before = 0.0
        return {}

    def act(self, obs, state, *, greedy, rng):
        ways = np.clip(self.before + np.cumsum(rng[0].normal(0, 0.5, 3)), -1, 1)
        ways, self.before = np.array([self.before, *ways]), ways[-1]
        return Plan(np.stack([ways[1:], 0.2 * np.diff(ways)], 1)[None, :2].astype(np.float32)), state


def test_preflight_accuses_no_channel_that_the_recordings_hardly_know(cell, tmp_path: Path) -> None:
    lab = Lagging()
    Store.create(tmp_path / "demos", task="lab/flat", fps=50).append(list(rollout([lab], Together(), [box_guard(lab)], [0], greedy=True)))
    env = RobotClient(cell().url, horizon=10_000)
    found = preflight(env, tmp_path / "demos")
    env.close()
    assert not [f.text for f in found if not f.fine]


def test_a_value_a_little_outside_is_not_taken_for_another_unit(cell, tmp_path: Path) -> None:
    server = cell()
    read = server.driver.read
    server.driver.read = lambda: replace(read(), state=read().state + np.array([0.4, 0, 0]))
    env = RobotClient(server.url, horizon=10_000)
    (off,) = [f for f in preflight(env, recorded(tmp_path / "demos"), probe=False) if not f.fine]
    assert off.what == "hand x" and "degrees" not in off.text
    env.close()


def test_a_policy_that_needs_no_camera_is_deployed_on_a_robot_that_has_one(cell, tmp_path: Path) -> None:
    """What it does not look at is recorded all the same."""
    server = cell()
    read = server.driver.read
    picture = np.full((16, 16, 3), 80, np.uint8)
    server.driver.read = lambda: replace(read(), images={"front": (time.monotonic(), picture)})
    time.sleep(0.1)
    env = RobotClient(server.url, horizon=6)
    (spec, policy) = env.task, SimpleNamespace(obs_dim=3, action_dim=2, senses={})
    check_fit(policy, spec, "policy", "lab/flat")  # type: ignore[arg-type]
    with pytest.raises(RealrlError, match="serve the robot with the cameras"):
        check_fit(SimpleNamespace(obs_dim=3, action_dim=2, senses={"images.wrist": (8, 8, 3)}), spec, "policy", "lab")  # type: ignore[arg-type]
    for _ in deploy(env, Wander(), 1, folder=tmp_path / "out"):
        pass
    (episode,) = Store.open(tmp_path / "out").read()
    assert episode.obs["images.front"].shape[1:] == (16, 16, 3)


def test_preflight_sees_another_rate_another_unit_and_another_size(cell, tmp_path: Path) -> None:
    server = cell()
    read = server.driver.read
    server.driver.read = lambda: replace(read(), state=read().state * np.array([1, 1, 180 / np.pi]))
    env = RobotClient(server.url, horizon=10_000)
    found = preflight(env, recorded(tmp_path / "demos"), probe=False)
    assert any(f.what == "lamp" and not f.fine and "degrees for radians" in f.text for f in found)
    assert server.keeper.mode == "held" and "lamp is 17.19" in server.keeper.faults["stop"], "nobody moves it until a person arms it"
    server.keeper.arm()
    found = preflight(env, recorded(tmp_path / "other", 10, 4), probe=False)
    assert [f.what for f in found if not f.fine] == ["rate", "numbers"]
    env.close()


def test_latency_is_measured_kept_and_read(cell, tmp_path: Path) -> None:
    env = RobotClient(cell(lag=0.06).url, horizon=10_000)
    found = calibrate(env, swings=2)
    env.close()
    assert all(0.04 <= late <= 0.1 for late in found.channels.values()) and set(found.channels) == {"x", "y"}
    assert found.reading < 0.02 and 0.04 < found.whole < 0.15
    found.save(tmp_path / "latency.json")
    assert Latency.load(tmp_path / "latency.json") == found
    with pytest.raises(RealrlError, match="calibrate latency"):
        Latency.load(tmp_path / "nothing.json")


def test_the_lag_of_a_swing_is_found() -> None:
    t = np.arange(0, 3, 0.01)
    place = lambda at: np.sin(2 * np.pi * at)
    seen = [{"now": x, "stamp": x - 0.02, "commanded": np.array([place(x)]), "measured": np.array([0.3 * place(x - 0.02 - 0.12) + 1])}
            for x in t]
    assert _channel(seen, 0) == pytest.approx(0.12, abs=0.004)
    assert _channel(seen[:10], 0) is None


def test_what_is_due_already_is_left_out() -> None:
    obs, rng = {"state": np.zeros((1, 1, 3))}, lambda: [np.random.default_rng(0)]
    whole = Wander().act(obs, {}, greedy=True, rng=rng())[0].action
    for delay, first in ((0.0, 0), (0.022, 1), (9.0, 2)):
        ahead = Ahead(Wander(), delay, 0.02)
        assert np.array_equal(ahead.act(obs, {}, greedy=True, rng=rng())[0].action, whole[:, first:])


@pytest.mark.slow
def test_train_evaluate_and_deploy_take_a_robot(cell, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From recordings to attempts, by the command line."""
    url, demos, run = cell().url, recorded(tmp_path / "demos", episodes=6), tmp_path / "run"
    small = ["--policy.chunk", "2", "--policy.hidden", "32", "--policy.blocks", "1", "--imitation.steps", "20", "--eval-episodes", "2"]
    assert cli.main(["train", "bc", "--robot", url, "--data", str(demos), "--run", str(run), "--horizon", "10", *small]) == 0
    assert cli.main(["evaluate", "--robot", url, "--policy", str(run / "policy"), "--episodes", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["task"] == "robot/robot"
    out = tmp_path / "deployed"
    flags = ["--policy", str(run / "policy"), "--episodes", "2"]
    assert cli.main(["deploy", "--robot", url, *flags, "--horizon", "8", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"loading {run / 'policy'}, then connecting to {url}\n") and "tab take over" not in said
    assert "no keyboard here" in said and "attempt 2: " in said and "robot/robot: 2 episodes, 16 steps" in said and "recorded:" in said
    assert [len(e) for e in Store.open(out).read()] == [8, 8]
    assert cli.main(["evaluate", "--robot", url, *flags]) == 2  # it is parked
    assert "realrl robot arm" in capsys.readouterr().err
    assert cli.main(["robot", "status", url]) == 1 and "parked" in capsys.readouterr().out
    assert cli.main(["robot", "arm", url]) == 0
