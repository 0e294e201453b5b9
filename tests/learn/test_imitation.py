"""Imitation learns a two-way task and keeps both ways; resumed, it continues to the same bits."""

import math

import numpy as np
import pytest
import torch

from realrl import envs
from realrl.cell.collect import Collector
from realrl.checkpoint import read_parts, save_parts
from realrl.data.views import ChunkView
from realrl.learn.imitation import Averaged, Imitation, ImitationConfig, cosine, generator, prepare
from realrl.policies.diffusion import DiffusionPolicy, PolicyConfig
from realrl.scene import CollectConfig

SMALL = ImitationConfig(steps=4, batch=16, warmup=1)


@pytest.fixture(scope="module")
def demos():
    with Collector("toy/obstacle", CollectConfig(workers=1)) as collector:
        return sorted(collector.collect(envs.expert("toy/obstacle"), range(60), greedy=True), key=lambda e: e.seed)


def policy_for(view, seed=0, hidden=64, **options):
    torch.manual_seed(seed)
    policy = DiffusionPolicy(PolicyConfig(chunk=2, hidden=hidden, **options), view.frames["state"].shape[-1], 2)
    policy.normaliser.fit(view.frames["state"])
    return policy


def view_of(demos):
    return ChunkView(demos, chunk=2, n_obs=1, gamma=0.99)


def train(training, steps):
    return [training.update()["loss"] for _ in range(steps)]


@pytest.mark.slow
def test_learns_the_task_and_keeps_both_ways(demos):
    view = view_of(demos)
    policy = policy_for(view)
    training = Imitation(policy, view, ImitationConfig(steps=800, batch=128, lr=2e-3, warmup=50), seed=0)
    loss = train(training, 800)
    training.finish()
    assert np.mean(loss[-50:]) < 0.5 * np.mean(loss[:20])
    for greedy, least in ((True, 0.8), (False, 0.75)):
        with Collector("toy/obstacle", CollectConfig(workers=1, envs_per_worker=50)) as collector:
            tried = list(collector.collect(policy.eval(), range(1000, 1150), greedy=greedy))
        won = [e for e in tried if e.succeeded]
        up = np.mean([e.obs["state"][np.abs(e.obs["state"][:, 0]).argmin(), 1] > 0 for e in won])
        assert len(won) / len(tried) > least, (greedy, len(won))
        assert 0.2 < up < 0.8, "demonstrations pass on both sides, the policy must too"


def test_two_steps_and_resume_to_four_equal_four(demos, tmp_path):
    view = view_of(demos)
    make = lambda seed: Imitation(policy_for(view, seed, dropout=0.2), view, SMALL, seed=7)
    whole = make(0)
    expected = train(whole, 4)
    whole.finish()
    first = make(0)
    assert train(first, 2) == expected[:2]
    save_parts(tmp_path, first.step, {"imitation": first})
    torch.manual_seed(99)  # another process has other global noise, and freshly drawn weights
    second = make(1)
    step, parts = read_parts(tmp_path)
    second.load_state_dict(parts["imitation"])
    assert step == second.step == 2
    assert train(second, 2) == expected[2:]
    second.finish()
    a, b = whole.policy.state_dict(), second.policy.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a if k.startswith("net."))


JUDGED = ImitationConfig(steps=48, batch=16, warmup=1, validation=0.2)


def judged(demos, seed=0):
    """A fit whose weights unseen episodes choose, and how much of the reference's error every look left."""
    view = view_of(demos)
    policy = policy_for(view, seed, reference="linear", dropout=0.2)
    prepare(policy, view)
    training = Imitation(policy, view, JUDGED, seed=7)
    follow, said = training.witness._follow, []
    training.witness._follow = lambda most: said.append(follow(most)) or said[-1]
    return training, said


def run_out(training, until=math.inf):
    while training.step < min(training.steps, until):
        training.update()


def test_unseen_episodes_choose_the_weights_and_end_a_fit_that_gains_nothing_any_more(demos):
    training, _ = judged(demos)
    script = iter([0.9, 0.8, 0.7, 0.71, 0.75, 0.72, 0.9, 1.0])
    kept = []

    def follow(most):
        kept.append({k: v.clone() for k, v in training.actor.state_dict().items()})
        return next(script)

    training.witness._follow = follow
    run_out(training)
    assert training.step == training.steps == 7 * 4, "looked at every four steps; four looks without gain after the third"
    training.finish()
    assert all(torch.equal(kept[2][k], v) for k, v in training.actor.state_dict().items())
    never, _ = judged(demos)
    never.witness._follow = lambda most: 1.0
    run_out(never)
    assert never.step == 48, "what was never followed may still come"


def test_a_judged_fit_resumes_to_the_same_weights_and_gain(demos, tmp_path):
    whole, said = judged(demos)
    run_out(whole)
    whole.finish()
    assert len(said) > 3 and whole.witness.left == min(said)
    first, _ = judged(demos)
    run_out(first, 10)
    save_parts(tmp_path, first.step, {"imitation": first})
    second, rest = judged(demos, 1)
    second.policy.load_state_dict({k: v for k, v in first.policy.state_dict().items() if not k.startswith("net.")}, strict=False)
    second.load_state_dict(read_parts(tmp_path)[1]["imitation"])
    run_out(second)
    second.finish()
    assert rest == said[2:] and (second.witness.left, second.witness.found) == (whole.witness.left, whole.witness.found)
    a, b = whole.policy.state_dict(), second.policy.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a if k.startswith(("net.", "reference.")))


def test_seeds_differ_and_repeat(demos):
    view = view_of(demos)
    losses = [train(Imitation(policy_for(view), view, SMALL, seed=seed), 3) for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    a, b, c = (torch.rand(3, generator=generator(*tags)) for tags in ((0, "x", 1), (0, "x", 1), (0, "y", 1)))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_weights_choose_what_is_imitated(demos):
    """Decisions of weight 0 leave no trace: training on all with one side's weights at 0 passes on the other side only."""
    view = view_of(demos)
    side = torch.tensor([float(np.sign(e.obs["state"][:, 1][np.abs(e.obs["state"][:, 1]).argmax()])) for e in demos])
    policy = policy_for(view)
    training = Imitation(policy, view, ImitationConfig(steps=400, batch=256, lr=2e-3, warmup=50), seed=0,
                         weight=2.0 * (side[view.episode] > 0))
    train(training, 400)
    training.finish()
    with Collector("toy/obstacle", CollectConfig(workers=1, envs_per_worker=50)) as collector:
        tried = list(collector.collect(policy.eval(), range(1000, 1050), greedy=True))
    beside = [e.obs["state"][np.abs(e.obs["state"][:, 0]).argmin(), 1] for e in tried if e.succeeded]
    assert len(beside) > 35 and np.mean(np.array(beside) > 0) > 0.95


def test_learning_rate_by_hand():
    assert [cosine(s, 110, 10) for s in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert [cosine(s, 110, 10) for s in (10, 35, 60, 110)] == pytest.approx([1.0, 0.5 * (1 + math.cos(math.pi / 4)), 0.5, 0.0], abs=1e-9)
    assert cosine(0, 5, 0) == 1.0


def test_weight_average_by_hand():
    net = torch.nn.Linear(1, 1, bias=False)
    average, expected = Averaged(net, 0.75), None
    for step, value in enumerate((1.0, 3.0, -2.0, 5.0)):
        net.weight.data.fill_(value)
        average.update_parameters(net)
        decay = 1 - (1 + step) ** -0.75
        expected = value if step == 0 else decay * expected + (1 - decay) * value
        assert average.module.weight.item() == pytest.approx(expected)


def test_finish_hands_over_the_average(demos):
    view = view_of(demos)
    training = Imitation(policy_for(view), view, SMALL, seed=0)
    train(training, 4)
    last = training.policy.net.stem.weight.clone()
    training.finish()
    assert torch.equal(training.policy.net.stem.weight, training.average.module["net"].stem.weight)
    assert not torch.equal(training.policy.net.stem.weight, last) and not training.policy.net.training
