"""Soft actor-critic: its losses by plain formulas, every variant learns, one graph is the same numbers, a resumed one the same bits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch._inductor.config
from torch.nn.functional import layer_norm

from realrl.checkpoint import encode, read_parts, restore, save_parts
from realrl.files import derive
from realrl.learn.sac import CROSSQ, DROQ, PRESETS, SAC, SAC_LAYERNORM, SACConfig
from realrl.policies.gaussian import GaussianConfig, GaussianPolicy, squash
from realrl.types import Batch, RealrlError, Source

SMALL = {"hidden": (48, 48), "batch": 64}
VARIANTS = {
    "crossq": replace(CROSSQ, **SMALL, warmup=100, alpha=0.1, alpha_lr=1e-2),
    "crossq, delayed": replace(CROSSQ, **SMALL, warmup=100, alpha=0.1, policy_delay=3, utd=2),
    "droq": replace(DROQ, **SMALL, utd=4, policy_delay=4, critic_lr=3e-3, actor_lr=3e-3, target_rate=0.02),
    "sac": replace(SAC_LAYERNORM, **SMALL, critic_lr=3e-3, actor_lr=3e-3, target_rate=0.02),
    "sac, bare": SACConfig(**SMALL, norm="none", critic_lr=3e-3, actor_lr=3e-3, target_rate=0.02, actor_q="mean", entropy_backup=False),
    "redq": SACConfig(**SMALL, critics=5, subset=2, actor_q="mean", utd=4, policy_delay=4, critic_lr=3e-3, actor_lr=3e-3, target_rate=0.02),
    "fixed temperature, no target nets": SACConfig(**SMALL, alpha=0.02, alpha_lr=0.0, target_rate=0.0, critic_lr=3e-3, actor_lr=3e-3)}


def agent(cfg, seed=0, chunk=1, obs=2, action=2, **options):
    torch.manual_seed(derive(seed, "weights"))
    norm = "renorm" if cfg.norm == "renorm" else "none"
    net = GaussianConfig(chunk=chunk, hidden=cfg.hidden, norm=norm, warmup=cfg.warmup)
    return SAC(GaussianPolicy(net, obs, action), cfg, seed=seed, **options)


def batch_of(state, action, reward, discount, after):
    """Transitions [B, ...] as a batch."""
    rows, chunk = len(state), action.shape[1]
    return Batch(obs={"state": state[:, None]}, action=action, reward=reward, discount=discount, next_obs={"state": after[:, None]},
                 valid=torch.ones(rows, chunk, dtype=torch.bool), source=torch.zeros(rows, chunk, dtype=torch.uint8))


def noise(rows, seed=0, obs=2, action=2, chunk=1):
    """A batch of anything."""
    random = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=random)
    return batch_of(draw(rows, obs), draw(rows, chunk, action).tanh(), draw(rows), torch.rand(rows, generator=random), draw(rows, obs))


SPEED, GAMMA = 0.3, 0.9


def steer(state, action):
    """A point [B, 2] that goes where an action [B, 2] pushes it; the reward is minus its distance from the middle, afterwards."""
    after = (state + SPEED * action).clamp(-1, 1)
    return after, -after.norm(dim=-1)


def random_pushes(rows, step, chunk=1):
    """Decisions of `chunk` random pushes from everywhere."""
    random = torch.Generator().manual_seed(derive(0, "pushes", step))
    state = first = torch.rand(rows, 2, generator=random) * 2 - 1
    action = torch.rand(rows, chunk, 2, generator=random) * 2 - 1
    total = torch.zeros(rows)
    for k in range(chunk):
        state, reward = steer(state, action[:, k])
        total += GAMMA ** k * reward
    return batch_of(first, action, total, torch.full((rows,), GAMMA ** chunk), state)


def cost(policy, steps=6):
    """Mean distance from the middle while a policy steers, greedily; the best there is costs 0.09."""
    state = torch.rand(200, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
    total = 0.0
    while steps > 0:
        plan = policy.act({"state": state.numpy()[:, None]}, {}, greedy=True, rng=[])[0].action
        for action in torch.from_numpy(plan).unbind(1):
            state, reward = steer(state, action)
            total, steps = total - float(reward.mean()), steps - 1
    return total / 6


def best(state):
    return (-state / SPEED).clamp(-1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_learns_to_steer(name):
    """From random pushes alone; to do nothing costs 0.75."""
    cfg = VARIANTS[name]
    learner = agent(cfg)
    before = cost(learner.policy)
    for step in range(360 // cfg.utd):
        told = learner.update(random_pushes(learner.rows, step))
    assert before > 0.5 and cost(learner.policy) < 0.22, {k: float(v) for k, v in told.items()}
    assert learner.step == 360 // cfg.utd * cfg.utd


@pytest.mark.slow
def test_a_chunk_is_one_decision():
    learner = agent(replace(VARIANTS["sac"], utd=1, policy_delay=1), chunk=3)
    for step in range(350):
        learner.update(random_pushes(64, step, chunk=3))
    assert cost(learner.policy) < 0.22


@pytest.mark.slow
def test_the_value_of_a_known_policy():
    """With termination inside: Q of the last step is its reward, of the one before gamma more."""
    cfg = replace(VARIANTS["sac"], alpha=0.0, alpha_lr=0.0)
    learner = agent(cfg)
    for step in range(350):
        random = torch.Generator().manual_seed(step)
        place = torch.randint(2, (128,), generator=random).float()
        state = torch.stack([place, 1 - place], -1)
        after = torch.stack([torch.ones(128), torch.zeros(128)], -1)
        action = torch.rand(128, 1, 2, generator=random) * 2 - 1
        learner.update(batch_of(state, action, place, torch.where(place == 1, 0.0, 0.9), after))
    q = learner.critic(torch.tensor([[0.0, 1, 0, 0], [1, 0, 0, 0]]))[..., 0].detach()
    assert torch.allclose(q, torch.tensor([[0.9, 1.0]]), atol=0.05), "a fall does not bootstrap, anything else does"


# ---- one update, by other means -----------------------------------------------------------------------------------------------


def plain_q(learner, weights, pair, *, statistics=None):
    """Q [N, B] of one member after another, by formulas of its own. statistics: None, "batch" or the running ones [2, N, 1, F]."""
    norm, out = learner.cfg.norm, []
    for e in range(learner.cfg.critics):
        p = {name: value[e] for name, value in weights.items()}
        starts = np.cumsum([0, *learner.critic.features])

        def normed(h, place, p=p, starts=starts):
            here = slice(starts[place], starts[place + 1])
            return h * p["scale"][:, here] + p["shift"][:, here]

        def renorm(h, place, e=e, starts=starts, normed=normed):
            if statistics == "batch":
                mean, var = h.mean(0), h.var(0, unbiased=False)
            else:
                mean, var = statistics[:, e, 0, starts[place]:starts[place + 1]]
            return normed((h - mean) / (var + 1e-3).sqrt(), place)

        h = renorm(pair, 0) if norm == "renorm" else pair
        for i in range(2):
            h = h @ p[f"weight{i}"] + p[f"bias{i}"]
            h = normed(layer_norm(h, h.shape[-1:]), i) if norm == "layer" else h
            h = h.relu()
            h = renorm(h, i + 1) if norm == "renorm" else h
        out.append((h @ p["weight2"] + p["bias2"])[:, 0])
    return torch.stack(out)


def drawn(learner):
    """The noise of the next update, as the learner draws it: (of the next actions, of the actor, the subset)."""
    random = torch.Generator().manual_seed(derive(learner.seed, "sac", learner.step))
    both = torch.randn(2, learner.cfg.batch, learner.size, generator=random)
    return both[0], both[1], torch.rand(1, learner.cfg.critics, generator=random).argsort(1)[0, :learner.cfg.subset]


@pytest.mark.parametrize("name", ["sac", "sac, bare", "redq", "fixed temperature, no target nets", "crossq"])
def test_both_losses_by_hand(name):
    cfg = replace(VARIANTS[name], utd=1, policy_delay=1, dropout=0.0)
    learner = agent(cfg)
    learner.update(noise(64, seed=1))  # so that target and critics differ, and statistics hold something
    data, (ahead, now, subset) = noise(64, seed=2), drawn(learner)
    state, after, alpha = data.obs["state"][:, 0], data.next_obs["state"][:, 0], float(learner.alpha)
    weights = {k: v.clone() for k, v in learner.weights.views().items()}
    slow = weights if learner.target is None else {k: v.clone() for k, v in learner.weights.views(learner.target).items()}
    action, logp = squash(*learner.policy.distribution(after)[:2], ahead)
    pair, later = torch.cat([state, data.action[:, 0]], -1), torch.cat([after, action], -1)
    if cfg.norm == "renorm":
        q, q_later = plain_q(learner, weights, torch.cat([pair, later]), statistics="batch").split(64, 1)
        running = learner.critic.running.clone()
    else:
        q, q_later, running = plain_q(learner, weights, pair), plain_q(learner, slow, later), None
    y = data.reward + data.discount * (q_later[subset].amin(0) - (alpha * logp if cfg.entropy_backup else 0.0))
    wanted = (q - y).square().mean(1).sum()
    drawn_action, drawn_logp = squash(*learner.policy.distribution(state, train=cfg.norm == "renorm")[:2], now)
    told = learner.update(data)
    assert torch.allclose(told["critic_loss"], wanted, rtol=1e-4) and torch.allclose(told["q"], q.mean(), atol=1e-5)
    assert torch.allclose(told["entropy"], -drawn_logp.mean(), atol=1e-4) and float(told["alpha"]) == pytest.approx(alpha)
    if running is not None:  # the actor's critics are at rest, with what they have seen just now
        running = learner.critic.running
    fresh = plain_q(learner, learner.weights.views(), torch.cat([state, drawn_action], -1), statistics=running)
    reached = fresh.mean(0) if cfg.actor_q == "mean" else fresh.amin(0)
    assert torch.allclose(told["actor_loss"], (alpha * drawn_logp - reached).mean(), rtol=1e-3, atol=1e-4)


def test_steps_are_adams_and_targets_polyaks():
    """Weights after some updates against torch's own optimiser on the same losses."""
    cfg = SACConfig(**SMALL, norm="layer", critic_lr=1e-2, target_rate=0.1, alpha=0.0, alpha_lr=0.0)
    learner = agent(cfg)
    weights = {k: v.clone().requires_grad_() for k, v in learner.weights.views().items()}
    slow = {k: v.detach().clone() for k, v in weights.items()}
    adam = torch.optim.Adam(weights.values(), lr=1e-2)
    for step in range(5):
        data, (ahead, _, _) = noise(64, seed=step), drawn(learner)
        state, after = data.obs["state"][:, 0], data.next_obs["state"][:, 0]
        with torch.no_grad():
            action, _ = squash(*learner.policy.distribution(after)[:2], ahead)
            y = data.reward + data.discount * plain_q(learner, slow, torch.cat([after, action], -1)).amin(0)
        adam.zero_grad()
        (plain_q(learner, weights, torch.cat([state, data.action[:, 0]], -1)) - y).square().mean(1).sum().backward()
        adam.step()
        slow = {k: v.lerp(weights[k].detach(), 0.1) for k, v in slow.items()}
        learner.update(data)
    for name, value in learner.weights.views().items():
        assert torch.allclose(value, weights[name], atol=2e-4), name
    for name, value in learner.weights.views(learner.target).items():
        assert torch.allclose(value, slow[name], atol=2e-4), name


def test_the_actor_is_updated_as_often_as_it_says_and_others_stand_still_meanwhile():
    learner = agent(replace(VARIANTS["crossq, delayed"], utd=1))
    moved = []
    for step in range(7):
        actor, critic = learner.actor_weights.value.clone(), learner.weights.value.clone()
        told = learner.update(noise(64, seed=step))
        moved.append(not torch.equal(actor, learner.actor_weights.value))
        assert moved[-1] == ("actor_loss" in told) and not torch.equal(critic, learner.weights.value)
    assert moved == [False, False, True, False, False, True, False] and int(learner.policy.net.seen) == 2 and int(learner.critic.seen) == 7


@pytest.mark.parametrize(("wanted", "rises"), [(-3.0, False), (2.0, True)])
def test_the_temperature_steers_to_its_entropy(wanted, rises):
    learner = agent(replace(VARIANTS["sac"], alpha=0.5, alpha_lr=1e-2, entropy=wanted))
    for step in range(10):
        told = learner.update(random_pushes(128, step))
    assert (2 * wanted > float(told["entropy"])) == rises == (float(learner.alpha) > 0.5)
    assert float(agent(VARIANTS["fixed temperature, no target nets"]).alpha) == pytest.approx(0.02)


# ---- the same numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["crossq, delayed", "droq", "redq"])
def test_a_resumed_one_is_the_same_to_the_bit(tmp_path, name):
    cfg = VARIANTS[name]
    straight, first = agent(cfg), agent(cfg)
    for step in range(5):
        straight.update(noise(cfg.batch * cfg.utd, seed=step))
        if step < 2:
            first.update(noise(cfg.batch * cfg.utd, seed=step))
    save_parts(tmp_path, first.step, {"learner": first})
    again = agent(cfg)
    again.update(noise(cfg.batch * cfg.utd, seed=9))  # whatever it was
    restore(read_parts(tmp_path)[1], {"learner": again}, tmp_path)
    for step in range(2, 5):
        again.update(noise(cfg.batch * cfg.utd, seed=step))
    one, two = (encode(a.state_dict(), tensors := {}) and tensors for a in (straight, again))
    assert len(one) > 15 and one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    assert torch.equal(straight.actor_weights.value, again.actor_weights.value)


def test_a_checkpoint_of_another_shape_is_one_line(tmp_path):
    save_parts(tmp_path, 0, {"learner": agent(VARIANTS["crossq"])})
    for other in (agent(VARIANTS["crossq"], obs=3), agent(VARIANTS["sac"])):
        with pytest.raises(RealrlError, match="part 'learner' does not fit") as caught:
            restore(read_parts(tmp_path)[1], {"learner": other}, tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["crossq", "droq"])
def test_one_graph_gives_the_same_numbers(name):
    """The graph itself, without the minutes that generating code for it takes."""
    cfg = VARIANTS[name]
    eager, graph = agent(cfg), agent(cfg)
    graph._parts = [torch.compile(part, fullgraph=True, dynamic=False, backend="aot_eager") for part in graph._parts]
    for step in range(2):
        data = noise(eager.rows, seed=step)
        one, two = eager.update(data), graph.update(data)
        assert one.keys() == two.keys() and all(torch.allclose(one[k], two[k], rtol=1e-3, atol=1e-4) for k in one)
    for one, two in ((eager.weights, graph.weights), (eager.actor_weights, graph.actor_weights)):
        # where a gradient is almost 0, Adam's first steps make much of its sign: single weights may differ by a step
        assert float((one.value - two.value).abs().mean()) < 1e-4


@pytest.mark.slow
def test_without_a_compiler_it_goes_on_as_it_is():
    plain, other = agent(VARIANTS["sac"]), agent(VARIANTS["sac"], compiled=True)
    nothing = {"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}
    with torch._inductor.config.patch(nothing), pytest.warns(UserWarning, match="could not be compiled"):
        other.update(noise(plain.rows))
    for step in range(2):
        plain.update(noise(plain.rows, seed=step))
        if step:
            other.update(noise(plain.rows, seed=step))
    assert torch.equal(plain.weights.value, other.weights.value) and torch.equal(plain.actor_weights.value, other.actor_weights.value)
    assert other.compile_s > 0


# ---- what makes no sense ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "said"), [
    ({"subset": 3}, "subset must be at most critics = 2"), ({"norm": "renorm"}, "target_rate must be 0 with norm renorm"),
    ({"hidden": ()}, "at least one layer"), ({"dropout": 1.0}, "dropout must be at least 0 and at most 0.9"),
    ({"alpha": 0.0}, "alpha must be above 0 to be learned"), ({"actor_q": "max"}, "must be one of 'mean', 'min'"),
    ({"critic_lr": float("nan")}, "critic_lr"), ({"utd": 0}, "utd must be a whole number of at least 1")])
def test_values_that_make_no_sense(changes, said):
    with pytest.raises(RealrlError, match=said):
        SACConfig(**changes)


def test_presets_are_values_and_batches_come_whole():
    assert PRESETS["droq"].utd == PRESETS["droq"].policy_delay == 20 and PRESETS["crossq"].target_rate == 0
    with pytest.raises(ValueError, match="a batch of 65 rows"):
        agent(VARIANTS["crossq"]).update(noise(65))


def test_metrics_wait_for_nobody():
    told = agent(VARIANTS["crossq"]).update(noise(64))
    assert set(told) == {"critic_loss", "q", "actor_loss", "entropy", "alpha"}
    assert all(isinstance(v, torch.Tensor) and np.isfinite(float(v)) for v in told.values())


def test_imitation_fits_what_was_done_and_how_steadily():
    learner = agent(SACConfig(hidden=(32,), batch=64, actor_lr=3e-3))
    critics = learner.weights.value.clone()
    random = torch.Generator().manual_seed(0)
    told = []
    for _ in range(400):
        state = torch.rand(64, 2, generator=random) * 2 - 1
        action = (0.5 * state + 0.1 * torch.randn(64, 2, generator=random)).clamp(-1, 1)[:, None]
        told.append(float(learner.imitate(batch_of(state, action, torch.zeros(64), torch.ones(64), state))["imitation_loss"]))
    state = torch.rand(500, 2, generator=random) * 1.6 - 0.8
    mean, log_std, _ = learner.policy.distribution(state)
    assert (mean.tanh() - 0.5 * state).abs().mean() < 0.05 and 0.07 < float(log_std.exp().mean()) < 0.16
    assert told[-1] < told[0] - 1 and torch.equal(learner.weights.value, critics) and learner.step == 400


def test_people_are_imitated_where_the_critics_do_not_know_better():
    cfg = SACConfig(hidden=(16, 16), batch=64)
    plain, imitating = agent(cfg), agent(replace(cfg, imitation=0.3))
    human = torch.arange(64) % 2
    data = replace(noise(64, seed=2), source=human * int(Source.HUMAN))
    state, action, now = data.obs["state"][:, 0], data.action[:, 0], drawn(plain)[1]
    mean, log_std, _ = plain.policy.distribution(state)
    told = [learner.update(data) for learner in (plain, imitating)]
    own, theirs = (plain_q(plain, plain.weights.views(), torch.cat([state, a], -1)) for a in (squash(mean, log_std, now)[0], action))
    trusted = human * ((theirs - own).mean(0) + (theirs - own).std(0, unbiased=False) >= 0)
    assert 0 < int(trusted.sum()) < 32 and torch.equal(plain.weights.value, imitating.weights.value), "critics imitate nobody"
    density = -torch.distributions.Normal(mean, log_std.exp()).log_prob(action.clamp(-0.999, 0.999).atanh()).mean(-1)
    wanted = 0.3 * (trusted * (density - 0.5 * np.log(2 * np.pi))).mean()
    assert torch.allclose(told[1]["actor_loss"] - told[0]["actor_loss"], wanted, rtol=1e-3, atol=1e-4)


def test_the_actor_may_wait_until_the_critics_know_something():
    learner = agent(SACConfig(hidden=(16,), batch=8, actor_start=5))
    first, told = learner.actor_weights.value.clone(), []
    for i in range(7):
        told.append("actor_loss" in learner.update(noise(8, i)))
        assert torch.equal(learner.actor_weights.value, first) == (i < 5)
    assert told == [False] * 5 + [True] * 2
