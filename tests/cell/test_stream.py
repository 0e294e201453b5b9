"""An actor beside a learner, in turns: the same episodes as whole ones, the same bits after a kill, nothing of a robot lost."""

from __future__ import annotations

import signal
import time

import numpy as np
import pytest
import torch
from test_live import ONE, Rail, home

from children import Child
from realrl import envs
from realrl.cell.cell import WorkCell
from realrl.checkpoint import encode
from realrl.data.store import Store
from realrl.envs.base import ScriptedPolicy
from realrl.files import derive
from realrl.learn.sac import SAC, SACConfig
from realrl.policies.gaussian import GaussianConfig, GaussianPolicy
from realrl.run import Run
from realrl.scene import CollectConfig, Scene
from realrl.streaming import StreamConfig
from realrl.types import Source

TOY = Scene(task="toy/obstacle", collect=ONE, horizon=9)
CODE = """import sys, test_live, test_stream; from pathlib import Path
test_stream.drive(Path(sys.argv[1]), test_live.Slow, 10**6)"""


def learner():
    torch.manual_seed(derive(0, "weights"))
    cfg = SACConfig(hidden=(16,), batch=8, norm="renorm", target_rate=0.0, warmup=20, policy_delay=2)
    return SAC(GaussianPolicy(GaussianConfig(hidden=(16,), norm="renorm", warmup=20), 2, 2), cfg, seed=0)


def practise(folder, episodes, *, dies_after=None, scene=TOY):
    """A method in small: act once, update once, a checkpoint every third episode. dies_after: episodes until it is as if killed."""
    agent = learner()
    with Run(folder, resume=True) as run, WorkCell(run, scene) as cell, cell.stream("walk", agent.policy, stage=1, warmup=30) as stream:
        run.load("walk", agent=agent, stream=stream)
        replay = agent.replay()
        replay.extend(stream.past())
        while stream.episodes < episodes:
            replay.put(stream.take())
            if stream.steps > 30:
                random = torch.Generator().manual_seed(derive(0, "replay", agent.step))
                agent.update(replay.sample(8, random))
                stream.publish(agent.policy)
            if stream.between and stream.episodes % 3 == 0:
                run.save("walk", stream.steps, agent=agent, stream=stream)
            if stream.episodes == dies_after:
                break
    return agent, stream.steps


def recording(folder):
    return {(e.policy, e.seed): e for e in Store.open(folder / "dataset").read()}


def test_step_by_step_it_is_the_same_as_whole_episodes(tmp_path):
    with Run(tmp_path) as run, WorkCell(run, TOY) as cell:
        policy = learner().policy
        seeds = cell.seeds(1, 4)
        whole = cell.practise("whole", policy, seeds, noise_seed=5)
        with cell.stream("stepwise", policy, stage=1, noise_seed=5) as stream:
            assert stream.past() == [] and stream.between
            moments = [stream.take()[0] for _ in range(sum(map(len, whole)))]
            assert stream.between and stream.episodes == 4
            stream.state_dict()
        assert [m.seed for m in moments if m.first] == seeds
        assert np.array_equal(np.stack([m.step.action for m in moments]), np.concatenate([e.action for e in whole]))
        after = np.concatenate([e.obs["state"][1:] for e in whole])
        assert np.array_equal(np.stack([m.after["state"] for m in moments]), after)
        again = [cell.book.read("stepwise", seeds, False)[s] for s in seeds]
        assert all(np.array_equal(a.action, b.action) and a.terminated == b.terminated for a, b in zip(again, whole, strict=True))


def test_a_resumed_run_is_the_same_to_the_bit(tmp_path):
    straight, steps = practise(tmp_path / "straight", 9)
    for until in (2, 5, 7):  # before the first checkpoint, between two, right behind one
        practise(tmp_path / "killed", 9, dies_after=until)
    resumed, again = practise(tmp_path / "killed", 9)
    one, two = (encode(a.state_dict(), tensors := {}) and tensors for a in (straight, resumed))
    assert steps == again > 60 and all(torch.equal(one[k], two[k]) for k in one)
    a, b = recording(tmp_path / "straight"), recording(tmp_path / "killed")
    assert a.keys() == b.keys() and len(b) == len(Store.open(tmp_path / "killed/dataset").read()) == 9, "nothing twice"
    assert all(np.array_equal(a[k].action, b[k].action) for k in a)


def test_it_begins_with_even_noise_and_then_the_policy_acts(tmp_path):
    with Run(tmp_path) as run, WorkCell(run, TOY) as cell:
        expert = envs.expert("toy/obstacle")
        with cell.stream("walk", expert, stage=1, warmup=400) as stream:
            actions = np.stack([stream.take()[0].step.action for _ in range(500)])
    assert abs(np.abs(actions[:400]).mean() - 0.5) < 0.05 and np.allclose(np.linalg.norm(actions[400:], axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize("live", [False, True])
def test_a_robot_that_is_guarded_by_the_clock_should_not_wait_for_updates(live, tmp_path):
    with Run(tmp_path) as run, WorkCell(run, Scene(task="lab/rail", collect=ONE), make=lambda: Rail(live=live)) as cell:
        with cell.stream("walk", ScriptedPolicy("hand", home), stage=1, cfg=StreamConfig()):
            pass
        assert ("--stream.realtime" in str(cell.summary.get("decisions"))) == live


def test_a_checkpoint_within_an_episode_is_a_bug(tmp_path):
    with Run(tmp_path) as run, WorkCell(run, TOY) as cell, cell.stream("walk", learner().policy, stage=1) as stream:
        stream.take()
        assert not stream.between
        with pytest.raises(ValueError, match="between two episodes"):
            run.save("walk", 1, stream=stream)


def drive(folder, make, steps):
    """A robot goes on from episode to episode; what is recorded of it before, and what it did now."""
    with Run(folder, resume=True) as run, WorkCell(run, Scene(task="lab/rail", collect=CollectConfig(workers=1, envs_per_worker=1)),
                                                   make=make) as cell:
        with cell.stream("walk", ScriptedPolicy("hand", home), stage=1) as stream:
            past, done = stream.past(), []
            while stream.steps < steps:
                done += stream.take()
        return past, done, stream.episodes


def test_a_killed_robots_steps_are_read_back_and_it_goes_on(tmp_path):
    process = Child("-c", CODE, tmp_path)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not any((tmp_path / "dataset/meta/episodes").rglob("*.parquet")):
        time.sleep(0.01)
    time.sleep(0.25)
    process.signal(signal.SIGKILL)
    assert process.wait()[0] == -signal.SIGKILL
    past, done, episodes = drive(tmp_path, Rail, 0)
    assert past and done == [] and [e.policy for e in past[:-1]] == ["walk"] * (len(past) - 1) and episodes == len(past)
    seeds = [e.seed for e in past]
    assert seeds == list(range(seeds[0], seeds[0] + len(seeds)))
    known = sum(map(len, past))
    past, done, episodes = drive(tmp_path, Rail, known + 5)
    assert sum(map(len, past)) == known and len(done) == 5 and done[0].first and done[0].seed == seeds[-1] + 1
    past, _, _ = drive(tmp_path, Rail, 0)
    assert sum(map(len, past)) == known + 5, "also of the episode that was left in the middle"


class Nudge:
    """A person who takes over at every third step, and remembers how many episodes there were."""

    verdict = None

    def __init__(self):
        self.episodes = self.polls = 0

    def begin(self, seed):
        self.polls = 0

    def end(self, succeeded):
        self.episodes += 1

    def poll(self, obs, proposed):
        self.polls += 1
        return np.full_like(proposed, 0.25) if self.polls % 3 == 0 else None

    def state_dict(self):
        return {"episodes": self.episodes}

    def load_state_dict(self, state):
        self.episodes = state["episodes"]


def test_a_person_may_take_over_and_is_part_of_a_checkpoint(tmp_path):
    first, second = Nudge(), Nudge()
    with Run(tmp_path) as run, WorkCell(run, TOY) as cell:
        with cell.stream("walk", learner().policy, stage=1, human=first) as stream:
            moments = [m for _ in range(60) for m in stream.take()]
            while not stream.between:
                moments += stream.take()
            kept = stream.state_dict()
        done = stream.episodes
        with cell.stream("walk", learner().policy, stage=1, human=second) as stream:
            stream.load_state_dict(kept)
    assert first.episodes == second.episodes == done == kept["human"]["episodes"] > 2
    sources = [m.step.source for m in moments]
    assert Source.HUMAN in sources and Source.POLICY in sources
    assert all((m.step.action == 0.25).all() for m in moments if m.step.source == Source.HUMAN)
    assert any((m.step.proposed != 0.25).any() for m in moments if m.step.source == Source.HUMAN)


class Hand:
    """A person at a device: takes over at every third step, and never does the same again."""

    verdict = None
    begin = end = lambda self, _: None

    def __init__(self, seed):
        self.rng, self.polls = np.random.default_rng(seed), 0

    def poll(self, obs, proposed):
        self.polls += 1
        return self.rng.uniform(-1, 1, len(proposed)).astype(np.float32) if self.polls % 3 == 0 else None


def helped(folder, seed, steps, *, saves=False):
    """A person stands beside a simulator for so many steps, then it is as if killed; what was done before, and what now."""
    with Run(folder, resume=True) as run, WorkCell(run, TOY) as cell, \
            cell.stream("walk", learner().policy, stage=1, human=Hand(seed)) as stream:
        run.load("walk", stream=stream)
        past, done = stream.past(), []
        while len(done) < steps or stream.between:  # amid an episode, whose step under way a kill may cost
            done += stream.take()
            if saves and stream.between:
                run.save("walk", stream.steps, stream=stream)
        return past, done[:-1]


def test_what_a_person_did_in_a_simulator_is_kept_and_not_asked_for_again(tmp_path):
    """No person can repeat a correction: what was done since the checkpoint is read back, also of the episode that was cut off."""
    _, first = helped(tmp_path, 1, 20, saves=True)
    _, second = helped(tmp_path, 2, 25)
    past, third = helped(tmp_path, 3, 5)
    done = [m.step.action for m in first + second]
    assert np.array_equal(np.concatenate([e.action for e in past]), np.stack(done)), "all of it, in its order"
    assert len({e.seed for e in past}) == len(past) and third[0].first and third[0].seed == past[-1].seed + 1
    everything = [e for e in Store.open(tmp_path / "dataset").read()]
    assert np.array_equal(np.concatenate([e.action for e in everything]), np.stack([*done, *(m.step.action for m in third)]))
    assert any((e.source == Source.HUMAN).any() for e in everything)
