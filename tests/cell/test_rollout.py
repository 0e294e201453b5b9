"""The control loop: an episode belongs to its seed, people and guards are obeyed, histories and chunks are right, time is kept."""

import numpy as np
import pytest
import torch

import realrl.cell.rollout as loop
from realrl import envs
from realrl.cell.rollout import Pace, rollout
from realrl.generative.diffusion import DiffusionConfig
from realrl.policies.diffusion import DiffusionPolicy, PolicyConfig
from realrl.robots.guard import LimitGuard, box_guard
from realrl.types import Plan, Source

COLUMNS = ("action", "proposed", "source", "reward", "success", "starts_plan")


class Fixed:
    """Plans action 0.1, 0.2, ... and keeps what it was shown."""

    name = "fixed"

    def __init__(self, chunk=1, n_obs=1):
        self.chunk, self.n_obs, self.seen = chunk, n_obs, []

    def start(self, batch):
        return {}

    def act(self, obs, state, *, greedy, rng):
        self.seen.append(obs["state"].copy())
        plan = 0.1 * np.arange(1, self.chunk + 1, dtype=np.float32)
        return Plan(np.tile(plan[None, :, None], (len(rng), 1, 1)), {"number": np.full(len(rng), len(self.seen))}), state


class TakeOver:
    """A person who moves at chosen polls and lets go at the others."""

    def __init__(self, at, action):
        self.at, self.action, self.polls, self.asked = at, np.array([action], np.float32), 0, []

    def poll(self, obs, proposed):
        self.asked.append(float(proposed[0]))
        self.polls += 1
        return self.action if self.polls - 1 in self.at else None


def line(horizon):
    """The line task with the dense reward: it goes on until its horizon."""
    return envs.make("toy/line", reward="dense", horizon=horizon)


def play(task, policy, seeds, slots, **options):
    made = [envs.make(task) for _ in range(slots)]
    return {e.seed: e for e in rollout(made, policy, [box_guard(e) for e in made], seeds, greedy=False, **options)}


def one(env, policy, seed=0, guard=None, **options):
    return next(rollout([env], policy, [guard or box_guard(env)], [seed], greedy=True, **options))


@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_an_episode_is_the_same_in_any_company(noise):
    expert, seeds = envs.expert("toy/obstacle", noise=noise), list(range(12))
    alone = play("toy/obstacle", expert, seeds, 1)
    assert sorted(alone) == seeds
    for slots, order in ((5, seeds), (5, seeds[::-1]), (30, seeds[3:] + seeds[:3])):
        together = play("toy/obstacle", expert, order, slots)
        assert sorted(together) == seeds
        for seed, e in alone.items():
            for name in COLUMNS:
                assert np.array_equal(getattr(e, name), getattr(together[seed], name)), (slots, seed, name)
            assert np.array_equal(e.obs["state"], together[seed].obs["state"])
            assert (e.terminated, e.truncated) == (together[seed].terminated, together[seed].truncated)
    sides = {np.sign(e.obs["state"][:, 1][np.abs(e.obs["state"][:, 1]).argmax()]) for e in alone.values()}
    assert sides == {-1.0, 1.0}, "were the side remembered from one episode to the next, there would be one"


def test_noise_seed_changes_the_noise_and_not_the_start():
    expert = envs.expert("toy/obstacle", noise=0.4)
    a, b = (play("toy/obstacle", expert, [3], 1, noise_seed=s)[3] for s in (0, 1))
    assert np.array_equal(a.obs["state"][0], b.obs["state"][0]) and not np.array_equal(a.action[0], b.action[0])


def test_a_networks_episode_is_the_same_in_any_company():
    torch.manual_seed(0)
    policy = DiffusionPolicy(PolicyConfig(chunk=3, n_obs=2, hidden=32, diffusion=DiffusionConfig(steps=5)), 2, 2).eval()
    seeds = list(range(6))
    alone, together = play("toy/obstacle", policy, seeds, 1), play("toy/obstacle", policy, seeds[::-1], 4)
    for seed in seeds:
        a, b = alone[seed], together[seed]
        assert len(a) == len(b) and a.extra["chain"].shape == (a.starts_plan.sum(), 6, 3, 2)
        for x, y in ((a.action, b.action), (a.obs["state"], b.obs["state"]), (a.extra["chain"], b.extra["chain"])):
            assert np.abs(x - y).max() < 1e-5
        first = a.extra["chain"][0, -1].clip(-1, 1)
        assert np.array_equal(a.proposed[:3], first[:len(a)])


def test_an_intervention_acts_at_once_and_ends_the_plan():
    human = TakeOver(at={1, 2}, action=-0.7)
    e = one(line(8), Fixed(chunk=4), human=human, task="toy/line")
    assert e.action[:, 0].tolist() == pytest.approx([0.1, -0.7, -0.7, 0.1, 0.2, 0.3, 0.4, 0.1])
    assert e.proposed[:, 0].tolist() == pytest.approx([0.1, 0.2, 0.1, 0.1, 0.2, 0.3, 0.4, 0.1])
    assert human.asked == pytest.approx(e.proposed[:, 0].tolist())
    P, H = Source.POLICY, Source.HUMAN
    assert e.source.tolist() == [P, H, H, P, P, P, P, P]
    assert e.starts_plan.tolist() == [True, False, True, True, False, False, False, True]
    assert e.extra["number"].tolist() == [1, 2, 3, 4], "one row a plan"
    assert (e.task, e.policy, e.seed) == ("toy/line", "fixed", 0)


def test_the_guard_has_the_last_word_over_policy_and_human():
    e = one(line(3), Fixed(chunk=3), guard=lambda obs, action: np.clip(action, -0.15, 0.15), human=TakeOver(at={2}, action=-0.9))
    assert e.action[:, 0].tolist() == pytest.approx([0.1, 0.15, -0.15])
    assert e.proposed[:, 0].tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert e.source.tolist() == [Source.POLICY, Source.POLICY, Source.HUMAN]
    moved = -np.diff(e.obs["state"][:, 0]) * 5  # cells: what the robot did is what the guard let through
    assert moved == pytest.approx([0.1, 0.15, -0.15], abs=1e-5)


def test_a_limit_on_change_does_not_reach_over_from_the_episode_before():
    made = [line(3)]
    guard = LimitGuard([-1.0], [1.0], max_delta=0.05)
    first, second = rollout(made, Fixed(chunk=3), [guard], [0, 1], greedy=True)
    assert first.action[:, 0].tolist() == second.action[:, 0].tolist() == pytest.approx([0.05, 0.1, 0.15]), "from standing still, both"


def test_policy_sees_the_last_observations_oldest_first():
    policy = Fixed(chunk=2, n_obs=3)
    e = one(line(6), policy)
    frames = e.obs["state"][:, 0]
    assert [s.shape for s in policy.seen] == [(1, 3, 1)] * 3
    for t, seen in zip((0, 2, 4), policy.seen, strict=True):
        assert seen[0, :, 0].tolist() == [frames[max(t + j, 0)] for j in (-2, -1, 0)]


def test_history_starts_afresh_with_every_episode():
    policy = Fixed(chunk=5, n_obs=2)
    made = [line(5)]
    both = list(rollout(made, policy, [box_guard(made[0])], [0, 1], greedy=True))
    assert [seen[0, :, 0].tolist() for seen in policy.seen] == [[e.obs["state"][0, 0]] * 2 for e in both]
    assert both[0].obs["state"][0] != both[1].obs["state"][0]


def test_a_chunk_is_cut_at_the_end_of_the_episode():
    e = one(line(6), Fixed(chunk=4))
    assert len(e) == 6 and e.truncated and not e.terminated and e.obs["state"].shape == (7, 1)
    assert np.flatnonzero(e.starts_plan).tolist() == [0, 4] and len(e.extra["number"]) == 2
    solved = one(envs.make("toy/identity"), envs.expert("toy/identity"))
    assert len(solved) == 1 and solved.terminated and solved.succeeded and solved.reward.tolist() == [1.0]


def test_only_the_policys_chunk_of_a_longer_plan_is_executed():
    policy = Fixed(chunk=4)
    act = policy.act

    def longer(obs, state, **options):
        plan, state = act(obs, state, **options)
        return Plan(np.concatenate([plan.action, np.full_like(plan.action, 9.0)], 1), plan.extra), state

    policy.act = longer
    assert one(line(8), policy).proposed[:, 0].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4] * 2)


def test_seeds_and_slots():
    made = [line(2) for _ in range(3)]
    guards = [box_guard(e) for e in made]
    run = lambda seeds: sorted(e.seed for e in rollout(made, Fixed(), guards, seeds, greedy=True, source=Source.SCRIPT))
    assert run([]) == [] and run([4]) == [4] and run(range(10, 17)) == list(range(10, 17))
    with pytest.raises(ValueError, match="3 envs but 2 guards"):
        next(rollout(made, Fixed(), guards[:2], [0], greedy=True))
    assert one(line(2), Fixed(), source=Source.SCRIPT).source.tolist() == [Source.SCRIPT] * 2


class Clock:
    """Time that passes only in sleep and on request."""

    def __init__(self):
        self.now, self.slept = 100.0, []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


def test_pace_keeps_its_period_and_does_not_hurry_after_a_late_step(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    pace, ticks = Pace(0.1), []
    for work in (0.0, 0.03, 0.06, 0.25, 0.02, 0.02):
        clock.now += work
        pace.wait()
        ticks.append(clock.now - 100)
    assert ticks == pytest.approx([0.1, 0.2, 0.3, 0.55, 0.65, 0.75])
    assert clock.slept == pytest.approx([0.1, 0.07, 0.04, 0.0, 0.08, 0.08])


def test_every_step_is_paced(monkeypatch):
    monkeypatch.setattr(loop, "time", Clock())
    e = one(line(5), Fixed(chunk=2), pace=Pace(0.1).wait)
    assert np.diff(e.time).tolist() == pytest.approx([0.1] * 4)


def test_a_glance_is_refused_where_a_person_may_end_a_plan():
    with pytest.raises(ValueError, match="every step must be seen"):
        one(line(5), Fixed(chunk=3), human=TakeOver([1], 0.5), glance=True)


class Attends(TakeOver):
    """A person who stays for whole episodes, and says after so many polls how it ended."""

    verdict = None

    def __init__(self, at, action, says):
        super().__init__(at, action)
        self.says, self.told = says, []

    def poll(self, obs, proposed):
        self.verdict = self.says.get(self.polls)
        return super().poll(obs, proposed)

    def begin(self, seed):
        self.told.append(seed)

    def end(self, succeeded):
        self.told.append(succeeded)


def test_a_person_is_told_of_every_episode_and_may_say_how_it_ended():
    env, person = line(6), Attends((), 0.5, {2: "success", 5: "abort", 7: "failure"})
    success, aborted, failed, clock = rollout([env], Fixed(), [box_guard(env)], [4, 5, 6, 7], greedy=True, human=person)
    assert person.told == [4, True, 5, False, 6, False, 7, False]
    assert [len(e) for e in (success, aborted, failed, clock)] == [3, 3, 2, 6]
    assert success.terminated and success.succeeded and success.reward[-1] == 1.0
    assert aborted.truncated and not aborted.terminated and not aborted.succeeded, "the return goes on"
    assert failed.terminated and not failed.truncated and failed.reward[-1] == 0.0
    assert clock.truncated and not clock.terminated
