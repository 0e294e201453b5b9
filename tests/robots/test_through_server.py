"""Learning through a robot's server, in real time: stops, servers that go, scripts of the task that is simulated."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from realrl import envs
from realrl.algos.hil_serl import HILConfig, operator
from realrl.cell.cell import WorkCell
from realrl.cell.collect import Collector
from realrl.cell.rollout import rollout
from realrl.cli import main as cli
from realrl.cli.train import _in_order
from realrl.data.store import Store
from realrl.data.tools.check import check
from realrl.envs.base import ScriptedPolicy
from realrl.policies.folder import read_recall
from realrl.robots.client import Link, RobotClient, remote
from realrl.robots.guard import box_guard
from realrl.robots.server import RobotServer
from realrl.robots.settings import ServerConfig
from realrl.robots.sim import simulated
from realrl.run import Run
from realrl.scene import CollectConfig, Scene
from realrl.types import RealrlError, Source, TaskSpec

pytest.importorskip("websockets")
pytest.importorskip("msgpack")

SMALL = "--policy.hidden 16 --policy.blocks 1 --policy.diffusion.steps 2 --imitation.steps 5 --imitation.batch 8 --eval-episodes 1"


@pytest.fixture
def serve(tmp_path: Path, run_server: Callable[..., RobotServer]) -> Callable[..., RobotServer]:
    """Serves a simulated robot."""

    def start(task: str, latency: float = 0.0, **cfg: Any) -> RobotServer:
        cfg = {"port": 0, "log": tmp_path / "log", "watchdog": 100.0, "pace": 1.0, "stale": 10.0, **cfg}
        return run_server(*simulated(task, ServerConfig(**cfg), latency=latency))

    return start


def recorded(folder: Path) -> list[Any]:
    assert not [p for p in check(folder / "dataset") if p.severity == "error"]
    return Store.open(folder / "dataset").read()


def stop_and_arm(server: RobotServer, seen: Callable[[], bool]) -> threading.Thread:
    """A person who presses stop once something is seen, and arms the robot when it was waited for."""
    def person() -> None:
        with Link(server.url, "person") as link:
            while not seen():
                time.sleep(0.01)
            link.ask({"type": "stop"})
            time.sleep(0.5)
            link.ask({"type": "arm"})

    thread = threading.Thread(target=person, daemon=True)
    thread.start()
    return thread


def test_a_stop_cuts_the_episode_short_and_the_next_waits_for_a_person(serve: Callable[..., RobotServer],
                                                                     capsys: pytest.CaptureFixture[str]) -> None:
    server = serve("arm/panda-reach")
    env = remote(server.url, 20)()
    away = ScriptedPolicy("away", lambda state: np.tile([-1.0, 0.0, 0.0, 0.0], (len(state), 1)))
    person = stop_and_arm(server, lambda: server.keeper.running)
    first, second = rollout([env], away, [box_guard(env)], [1, 2], greedy=True)
    person.join()
    env.close()
    assert len(first) < 20 and first.truncated and not first.terminated and not first.succeeded
    assert np.array_equal(first.action[-1], np.zeros(4)), "what was sent last: nothing"
    assert np.array_equal(first.obs["state"][-1], first.obs["state"][-2])
    assert len(second) == 20, "it went on"
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("realrl robot arm") == 1 and "pressed stop" in said and "this episode ends here" in said
    with pytest.raises(RealrlError, match="is held"):
        impatient = RobotClient(server.url)
        assert remote(server.url)().task == impatient.task, "to ask what it is takes it from nobody"
        with pytest.raises(RealrlError, match="is commanded from"):
            remote(server.url)().reset(seed=1)
        server.keeper.stop("a test")
        impatient.reset(seed=1)
    impatient.close()


def test_a_simulated_robot_is_demonstrated_by_its_tasks_script(serve: Callable[..., RobotServer], tmp_path: Path) -> None:
    server = serve("contact/peg-easy", ticks=200.0)
    scene = Scene(task="robot/peg-easy", demos=1, demo_noise=0.0)
    with Run(tmp_path / "run") as run, WorkCell(run, scene, make=remote(server.url)) as cell:
        (demo,) = cell.demonstrations()
        assert cell.spec.twin == "contact/peg-easy" and cell.spec.privileged == 35
    assert demo.succeeded and demo.obs["state"].shape[1] == 27 and demo.obs["privileged"].shape[1] == 35
    assert (demo.source == Source.SCRIPT).all() and [e.policy for e in recorded(tmp_path / "run")] == ["demonstration"]


def test_rl100_goes_on_through_the_server_and_after_a_stop(serve: Callable[..., RobotServer], tmp_path: Path, long: bool) -> None:
    """Imitation of the simulated task's script, then rounds through the server, whose readings are late; its button is pressed."""
    if not long:
        pytest.skip("half a minute of real time: see `make test-long`")
    server = serve("arm/panda-reach", latency=0.1)
    run = tmp_path / "run"
    flags = f"--robot {server.url} --run {run} --horizon 12 --final-episodes 1 --trials.episodes 0 {SMALL}"
    assert cli.main(shlex.split(f"train rl100 {flags} --demos 1 --demo-noise 0 --horizon 60 --stages imitation")) == 0
    made = [e for e in recorded(run) if e.policy == "demonstration"]
    assert made and made[-1].succeeded and (made[-1].source == Source.SCRIPT).all()
    flags = flags.replace(str(run), str(online := tmp_path / "online"))
    person = stop_and_arm(server, lambda: server.keeper.episode >= 7 and server.keeper.running)
    assert cli.main(shlex.split(f"train rl100 {flags} --init {run}/policy --stages online --online.iterations 2 --online.episodes 3 "
                                "--online.warmup 1 --online.practice 0")) == 0
    person.join()
    done = recorded(online)
    assert [e.policy for e in done] == ["online-0"] * 3 + ["online-1"] * 3
    assert "the robot" not in str(done[0].task) and (online / "policy/policy.json").is_file()


def test_a_server_that_goes_says_how_to_go_on(serve: Callable[..., RobotServer], tmp_path: Path,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    server = serve("arm/panda-reach")
    closing = threading.Thread(target=lambda: (_until(lambda: server.keeper.running), server.close()), daemon=True)
    closing.start()
    flags = f"--robot {server.url} --run {tmp_path / 'run'} {SMALL}"
    assert cli.main(shlex.split(f"train bc {flags} --demos 2")) == 2
    closing.join()
    said = " ".join(capsys.readouterr().err.split())
    assert "is lost" in said and f"continue with: realrl train bc --run {tmp_path / 'run'} --resume --robot" in said


def _until(told: Callable[[], bool]) -> None:
    while not told():
        time.sleep(0.01)


def test_hil_serl_practises_with_a_scripted_person_who_knows_the_simulated_task(serve: Callable[..., RobotServer], tmp_path: Path,
                                                                              long: bool) -> None:
    if not long:
        pytest.skip("half a minute of real time: see `make test-long`")
    server = serve("contact/peg-easy", ticks=200.0)
    run = tmp_path / "run"
    flags = ("--steps 40 --start 10 --demos 1 --demo-noise 0 --sac.batch 8 --sac.hidden 16 --sac.utd 1 --policy.hidden 16 "
             "--eval-episodes 1 --operator.patience 2 --horizon 60 --operator.reaction 0")
    assert cli.main(shlex.split(f"train hil-serl --robot {server.url} --run {run} {flags}")) == 0
    done = recorded(run)
    practice = [e for e in done if e.policy == "hil-serl"]
    assert [e for e in done if e.policy == "demonstration" and e.succeeded] and sum(map(len, practice)) >= 40
    assert all(e.obs["state"].shape[1] == 27 and e.obs["privileged"].shape[1] == 35 for e in done)
    assert any((e.source == Source.HUMAN).any() for e in practice), "somebody helped"


def test_on_a_robot_of_flesh_nobody_is_scripted() -> None:
    spec = TaskSpec("robot", "lab-arm", 3, 2, 10, 0.1, "", live=True)
    with pytest.raises(RealrlError, match="--human keyboard, gamepad or none"), operator(HILConfig(task="robot/lab-arm"), spec):
        pass


def test_what_is_under_way_stands_beside_a_late_reading(serve: Callable[..., RobotServer]) -> None:
    server = serve("arm/panda-reach", latency=0.15)
    env = remote(server.url, 30)()
    with pytest.raises(RealrlError, match="leave --late out"):
        env.lag(4, late=1)
    env.lag(4)  # a reading is three steps old, and the guard's easing makes it nearly four until it shows what was asked for
    seen, sent = [env.reset(seed=0)[0]], list(np.zeros((4, 4)))
    for action in np.random.default_rng(0).uniform(-0.5, 0.5, (24, 4)):
        seen.append(env.step(action)[0])
        assert env.sent is not None
        sent.append(env.sent)
    env.close()
    aims = np.array([obs["privileged"][7:10] for obs in seen])  # where the hand is drawn to
    for t, obs in enumerate(seen):
        assert env.observation_space.contains(obs) and np.array_equal(obs["state"][:14], obs["privileged"])
        assert np.allclose(obs["state"][14:], np.ravel(sent[t:t + 4]))
    # what was so, and the actions since, say where it is drawn to now, which is seen four steps later
    now = aims + [0.0125 * np.sum(sent[t:t + 4], 0)[:3] for t in range(len(seen))]
    told, seen_alone = (float(np.square(x[:-4] - aims[4:]).mean()) for x in (now, aims))
    assert told < 0.2 * seen_alone, (told, seen_alone)


def test_a_policy_that_sees_late_is_taught_through_the_server(serve: Callable[..., RobotServer], tmp_path: Path, long: bool) -> None:
    if not long:
        pytest.skip("half a minute of real time: see `make test-long`")
    sim, run = tmp_path / "sim", tmp_path / "run"
    assert cli.main(shlex.split(f"train bc --task arm/panda-reach --demos 2 --run {sim} {SMALL}")) == 0
    server = serve("arm/panda-reach", latency=0.1)
    assert cli.main(shlex.split(f"train dida --robot {server.url} --init {sim}/policy --recall 3 --rounds 2 --episodes 2 --horizon 15 "
                                f"--run {run} {SMALL}")) == 0
    done = recorded(run)
    assert [e.policy for e in done] == ["dida-1"] * 2 + ["dida-2"] * 2
    assert {e.obs["state"].shape[1] for e in done} == {14 + 3 * 4} and read_recall(run / "policy") == 3
    assert all(np.allclose(e.obs["state"][3:, -4:], e.action[2:]) for e in done), "what was sent"
    assert cli.main(shlex.split(f"deploy --policy {run}/policy --robot {server.url} --episodes 1 --horizon 8 --out {tmp_path}/out")) == 0
    assert Store.open(tmp_path / "out").read()[0].obs["state"].shape[1] == 26


@pytest.mark.parametrize("what", ["action", "observation.state"])
def test_recordings_in_another_order_of_joints_are_refused_before_anything(what: str, serve: Callable[..., RobotServer], tmp_path: Path,
                                                                         capsys: pytest.CaptureFixture[str]) -> None:
    """Every method would have taken the second joint for the first."""
    server = serve("arm/panda-reach")
    with Link(server.url, "watcher") as link:
        robot = link.welcome["robot"]
    names = {"action": [c["name"] for c in robot["channels"]], "observation.state": list(robot["state"])}
    with Collector("arm/panda-reach", CollectConfig(workers=1), horizon=3) as collector:
        shown = list(collector.collect(envs.expert("arm/panda-reach"), range(2), greedy=True))
    for e in shown:
        e.success[-1], e.terminated, e.truncated = True, True, False
    Store.create(tmp_path / "right", task="reach", fps=robot["fps"]).append(shown, names=names)
    _in_order(str(tmp_path / "right"), server.url)
    other = names | {what: [names[what][1], names[what][0], *names[what][2:]]}
    Store.create(tmp_path / "demos", task="reach", fps=robot["fps"]).append(shown, names=other)
    assert cli.main(["train", "flow", "--policy.reader", "words", "--robot", server.url, "--data", str(tmp_path / "demos"), "--run",
                     str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert f"in the order {other[what][0]}, {other[what][1]}" in said and not (tmp_path / "run").exists()
