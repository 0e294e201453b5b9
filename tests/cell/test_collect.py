"""Collection: worker processes give the same episodes, and whatever happens to one of them ends in one clear line."""

import multiprocessing
import os
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from realrl import envs
from realrl.cell.collect import Collector, _work, pack, processes
from realrl.envs.base import ScriptedPolicy
from realrl.policies.diffusion import DiffusionPolicy, PolicyConfig
from realrl.scene import CollectConfig
from realrl.types import RealrlError, Source

SEEDS = list(range(12))


class Broken(ScriptedPolicy):
    """A policy with a bug."""

    def __init__(self):
        super().__init__("broken", np.ones_like)

    def act(self, obs, state, *, greedy, rng):
        raise ZeroDivisionError("a bug in the user's own code")


def collector(task="toy/obstacle", workers=2, **options):
    return Collector(task, CollectConfig(workers=workers, envs_per_worker=3), **options)


@pytest.fixture(scope="module")
def pair():
    """Two worker processes, started once for the tests that leave them alive."""
    with collector() as made:
        yield made


def collect(made, policy, **options):
    return {e.seed: e for e in made.collect(policy, SEEDS, greedy=False, **options)}


def test_workers_give_the_same_episodes_as_this_process(pair):
    expert = envs.expert("toy/obstacle", noise=0.3)
    there, here = collect(pair, expert, noise_seed=5, source=Source.SCRIPT), collect(collector(workers=1), expert, noise_seed=5)
    assert len(pair.crew.processes) == 2 and sorted(there) == sorted(here) == SEEDS
    for seed in SEEDS:
        a, b = there[seed], here[seed]
        assert np.array_equal(a.action, b.action) and np.array_equal(a.obs["state"], b.obs["state"])
        assert a.reward.tolist() == b.reward.tolist() and (a.task, a.policy) == ("toy/obstacle", b.policy)
        assert set(a.source) == {Source.SCRIPT} and set(b.source) == {Source.POLICY}


def test_workers_are_kept_and_get_the_newest_policy(pair):
    torch.manual_seed(0)
    policy = DiffusionPolicy(PolicyConfig(chunk=2, hidden=32), 2, 2).eval()
    running = [p.pid for p in pair.crew.processes]
    before = collect(pair, policy)
    with torch.no_grad():
        for p in policy.net.parameters():
            p.mul_(0.5)
    after, here = collect(pair, policy), collect(collector(workers=1), policy)
    assert [p.pid for p in pair.crew.processes] == (running or [p.pid for p in pair.crew.processes])
    for seed in SEEDS:
        assert not np.array_equal(before[seed].action[0], after[seed].action[0])
        assert len(after[seed]) == len(here[seed]) and np.abs(after[seed].action - here[seed].action).max() < 1e-5
        assert np.abs(after[seed].extra["chain"] - here[seed].extra["chain"]).max() < 1e-5


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="looks for processes in /proc")
def test_workers_are_forked_from_one_clean_process(pair):
    collect(pair, envs.expert("toy/obstacle"))
    parents = {int(Path(f"/proc/{p.pid}/stat").read_text().rpartition(")")[2].split()[1]) for p in pair.crew.processes}
    assert len(parents) == 1 and os.getpid() not in parents


def test_where_nothing_forks_workers_import_everything_anew(monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    assert processes().get_start_method() == "spawn"


def test_a_few_seeds_need_no_workers():
    with collector() as made:
        assert len(list(made.collect(envs.expert("toy/obstacle"), [0, 1, 2], greedy=True))) == 3
        assert made.crew.processes == []


def test_a_killed_worker_is_one_clear_error_and_the_next_collection_works():
    policy = envs.expert("toy/line")
    with collector("toy/line", reward="dense", horizon=2000) as made:
        stream = made.collect(policy, list(range(40)), greedy=True)
        assert len(next(stream)) == 2000
        victim, other = (p.pid for p in made.crew.processes)
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(RealrlError, match=r"toy/line: a collection worker died \(exit code -9\): run again"):
            list(stream)
        for pid in (victim, other):
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
        assert sorted(e.seed for e in made.collect(policy, range(6), greedy=True)) == list(range(6)), "it starts new workers"
        os.kill(made.crew.processes[1].pid, signal.SIGKILL)  # this time between two collections
        made.crew.processes[1].join()
        with pytest.raises(RealrlError, match="a collection worker died"):
            list(made.collect(policy, range(6), greedy=True))
        assert made.crew.processes == []


def test_a_new_collector_works_after_another_was_abandoned(pair):
    stream = pair.collect(envs.expert("toy/obstacle"), SEEDS, greedy=True)
    next(stream)
    stream.close()  # the caller lost interest: nothing half-read may reach the next call
    assert sorted(collect(pair, envs.expert("toy/obstacle"))) == SEEDS


@pytest.mark.parametrize("orders", [0, 1])
def test_a_worker_whose_results_nobody_wants_ends_quietly(orders):
    here, there = multiprocessing.Pipe()
    policy = envs.expert("toy/obstacle")
    with collector(workers=1) as made:
        for _ in range(orders):
            here.send((made.bench(), pack(policy), SEEDS, True, 0, Source.SCRIPT, False))
        there.send("read by nobody, so that the pipe's end is a reset")
        here.close()
        _work(there)
    there.close()


def test_an_exception_in_a_worker_is_handed_over(pair):
    with pytest.raises(RealrlError, match="toy/obstacle: collection failed in a worker") as caught:
        collect(pair, Broken())
    assert "ZeroDivisionError: a bug in the user's own code" in str(caught.value) and "test_collect.py" in str(caught.value)
    with pytest.raises(ZeroDivisionError):  # as the hint of a dead worker promises: one worker shows the bug itself
        collect(collector(workers=1), Broken())


def test_a_mistake_in_an_environment_is_handed_over_in_one_line():
    with collector(horizon=0) as made, pytest.raises(RealrlError, match=r"collection failed in a worker: .*horizon is 0") as caught:
        collect(made, envs.expert("toy/obstacle"))
    assert "\n" not in str(caught.value)


def test_a_policy_that_cannot_travel_is_refused_before_anything_starts():
    with collector() as made:
        with pytest.raises(RealrlError, match=r"'home-made' cannot be sent to worker processes .*workers 1"):
            collect(made, ScriptedPolicy("home-made", lambda states: states))
        assert made.crew.processes == []


def check_travels(expert, obs_dim):
    states = np.random.default_rng(0).uniform(-0.5, 0.5, (3, 1, obs_dim)).astype(np.float32)
    acts = [e.act({"state": states}, e.start(3), greedy=True, rng=[np.random.default_rng(i) for i in range(3)])[0].action
            for e in (expert, pickle.loads(pickle.dumps(expert)))]
    assert np.array_equal(*acts) and np.abs(acts[0]).max() > 0


@pytest.mark.filterwarnings("ignore:Constant")  # of the package's experts; pytest undoes the module's own filter
@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize(("task", "obs_dim"), [("toy/identity", 2), ("toy/obstacle", 2), ("toy/line", 1), ("metaworld/door-open-v3", 39)])
def test_experts_travel_to_workers(task, obs_dim, noise):
    check_travels(envs.expert(task, noise=noise), obs_dim)


def test_network_experts_travel_to_workers(shared_data):
    check_travels(envs.expert("adroit/door", shared_data / "adroit_hand_dapg" / "policies_npz"), 39)
