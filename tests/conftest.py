"""Fixtures shared by all tests, the ring of quick ones, and the order in which files are handed out."""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.forkserver
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from realrl.robots.driver import Driver
    from realrl.robots.server import RobotServer
    from realrl.robots.settings import ServerConfig

# Torch takes it up as it is imported: results do not depend on the machine's cores, small nets run faster so, and threads that wait take
# a core, of what tests start, too.
os.environ["OMP_NUM_THREADS"] = "1"
# `--device auto` is the CPU in all tests and in all that they start: numbers are compared to the bit. REALRL_DEVICE=cuda is for
# `tests/test_gpu.py`.
if "REALRL_DEVICE" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# The children of multiprocessing's forkserver begin from a clean process that has imported this already: a start costs milliseconds.
multiprocessing.get_context("forkserver").set_forkserver_preload(
    ["realrl.run", "pytest", "torch._dynamo", "mujoco", "scipy.stats", "matplotlib.pyplot", "realrl.data.store", "realrl.data.tools.check",
     "realrl.data.tools.edit", "realrl.data.tools.repair", "realrl.cell.cell", "realrl.algos.rl100", "realrl.cli.main"])

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
TESTS = ROOT / "tests"
# `--quick`: architecture, maths and contracts; a folder stands for all that is in it. Tests marked `slow` stay out.
QUICK = ("test_architecture.py", "test_losses.py", "test_config.py", "test_docs.py", "nets", "generative", "learn", "policies", "robots",
         "data/test_views.py", "data/test_side.py", "cell/test_rollout.py", "cell/test_evaluate.py", "envs/test_toy.py")
# The longest first, so that no process is left alone with one at the end; `--dist loadfile` hands out whole files in this order.
# (The very first makes the run that others wait for, see `tiny_run`, while the second does not ask for it.)
LONG = ("test_nothing_lost.py", "learn/test_sac.py", "learn/test_trials.py", "algos/test_daydreamer.py", "algos/test_dreamer.py",
        "algos/test_rl100.py", "test_benchmarks.py", "data/tools/test_repair.py", "algos/test_rl100_eyes.py", "data/test_store.py",
        "test_resume.py", "cli/test_cli.py", "envs/test_sight.py", "envs/test_metaworld.py", "cell/test_deploy.py",
        "data/test_hostile_sets.py", "serve/test_export.py", "cell/test_cell.py", "test_own_robot_page.py", "algos/test_hil_serl.py",
        "test_learns.py", "data/record/test_recorder.py", "robots/test_sim.py", "data/test_fuzz.py", "data/test_footage.py",
        "algos/test_walk.py", "learn/test_iql.py", "test_your_data_page.py", "test_human.py", "report/test_report.py",
        "data/record/test_recorder_kill.py", "algos/test_robocat.py", "cli/test_cli_data.py", "data/tools/test_edit.py",
        "robots/test_through_server.py", "test_hostile_runs.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--quick` and `--long`."""
    parser.addoption("--quick", action="store_true", help="only architecture, maths and contracts: the ring for the hand")
    parser.addoption("--long", action="store_true", help="as many kills as it takes to trust a release")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `--quick`, files outside the ring are not even imported."""
    if not config.getoption("--quick") or collection_path.is_dir():
        return None
    there = collection_path.relative_to(TESTS)
    return None if any(there.is_relative_to(place) for place in QUICK) else True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long files first; with `--quick`, slow tests not at all."""
    rank = {TESTS / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path, len(LONG)))
    if config.getoption("--quick"):
        items[:] = [item for item in items if item.get_closest_marker("slow") is None]


@pytest.fixture(scope="module", autouse=True)
def lasting() -> None:
    """What is there when a file's tests begin, half a million objects of libraries, stays to the end: garbage is not looked for among
    them, which takes a third of a second each time that a simulator is closed."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """A test leaves the process as it found it: one that stayed urgent would starve what later tests start, without an end."""
    before = _manners()
    yield
    assert _manners() == before, "whether garbage is collected, the scheduling or the cores of the process"


def _manners() -> tuple[object, ...]:
    if not hasattr(os, "sched_getscheduler"):
        return gc.isenabled(),
    flag = os.SCHED_RESET_ON_FORK  # where `ulimit -r` alone allows to be urgent, nobody gets rid of it again
    return gc.isenabled(), os.sched_getscheduler(0) & ~flag, os.sched_getaffinity(0)


@pytest.fixture(scope="session", autouse=True)
def brief(request: pytest.FixtureRequest) -> None:
    """See `children.hasty`."""
    if not request.config.getoption("--quick"):
        from children import hasty
        hasty()


@pytest.fixture(scope="session", autouse=True)
def forkserver(request: pytest.FixtureRequest) -> None:
    """It starts beside the first tests, with the environment that all have in common."""
    if not request.config.getoption("--quick"):
        multiprocessing.forkserver.ensure_running()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of recorded demonstrations beside the checkout; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs recorded demonstrations in {SHARED}, which is absent")
    return SHARED


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> bool:
    """Whether to kill two hundred times rather than sixteen."""
    return bool(request.config.getoption("--long"))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of `toy_runs.tiny()` that nothing happened to, made once for all processes: read it, copy it to change it."""
    from realrl import files
    from toy_runs import through, tiny

    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # what the processes have in common
    with files.lock(base / "tiny-run.lock", wait=500):
        if not (base / "tiny-run-made").exists():
            through(base / "tiny-run", tiny())
            (base / "tiny-run-made").touch()
    return base / "tiny-run"


@pytest.fixture
def run_server() -> Iterator[Callable[[Driver, ServerConfig], RobotServer]]:
    """Starts the server of a robot, armed; closes it after the test."""
    from realrl.robots.server import RobotServer
    running = []

    def start(driver: Driver, cfg: ServerConfig) -> RobotServer:
        server = RobotServer(driver, cfg, arm=True, say=lambda line: None)
        running.append(server)
        server.start()
        return server

    yield start
    for server in running:
        server.close()
