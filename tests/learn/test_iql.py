"""Implicit Q-learning against the closed-form values of toy/line, and the expectile by hand."""

import copy

import numpy as np
import pytest
import torch

from realrl import envs
from realrl.cell.collect import Collector
from realrl.data.views import ChunkView
from realrl.envs.toy import LineEnv, line_value
from realrl.learn.iql import CriticConfig, Critics, calibration, fit_critics, fit_whitener
from realrl.losses import explained_variance
from realrl.scene import CollectConfig
from realrl.types import Plan

GAMMA = 0.8
PLACES = torch.arange(1, LineEnv.CELLS + 1)[:, None] / LineEnv.CELLS
CONFIG = CriticConfig(steps=600, batch=128, lr=3e-3, hidden=32, target_rate=0.02, weight_decay=0.0)


class Coin:
    """Steps forward with probability p, else backward."""

    name, chunk, n_obs = "coin", 1, 1

    def __init__(self, p):
        self.p = p

    def start(self, batch):
        return {}

    def act(self, obs, state, *, greedy, rng):
        return Plan(np.array([[[1.0 if g.random() < self.p else -1.0]] for g in rng], np.float32)), state


def view(policy, count=60, horizon=20, chunk=1):
    with Collector("toy/line", CollectConfig(workers=1, envs_per_worker=count), horizon=horizon) as collector:
        episodes = sorted(collector.collect(policy, range(count), greedy=True), key=lambda e: e.seed)
    return ChunkView(episodes, chunk=chunk, n_obs=1, gamma=GAMMA)


def state(frames):
    return frames["state"]


def fitted(data, **changes):
    torch.manual_seed(0)
    critics = Critics(1, data.chunk, 1, CriticConfig(**{**vars(CONFIG), **changes}))
    fit_critics(critics, data.encoded(state), seed=0, log=lambda step, told: None)
    return critics


def values(critics):
    with torch.no_grad():
        return critics.v(PLACES).numpy()


def test_values_of_the_best_policy_from_its_own_data():
    """Where every recorded action is the best one, V = V* and Q(s, best) = V* whatever the expectile."""
    truth = line_value(PLACES[:, 0].numpy(), GAMMA)
    data = view(envs.expert("toy/line"))
    critics = fitted(data)
    with torch.no_grad():
        q = critics.q(PLACES, torch.ones(5, 1, 1)).numpy()
    assert np.abs(values(critics) - truth).max() < 0.05 and np.abs(q - truth).max() < 0.05
    assert np.allclose(truth, GAMMA ** np.arange(5))
    cond = data.encoded(state).cond
    told = calibration(critics, cond, data.returns)
    assert told["value_explained"] > 0.98 and told["value_mean"] == pytest.approx(told["return_mean"], abs=0.03)


@pytest.mark.slow
def test_a_high_expectile_finds_the_best_policy_in_data_of_a_poor_one():
    """60 % forward, 40 % backward: expectile 0.5 gives this policy's own value, 0.97 nearly the best one's, and Q ranks actions."""
    truth, data = line_value(PLACES[:, 0].numpy(), GAMMA), view(Coin(0.6), 150, horizon=50)
    mean, best = fitted(data, expectile=0.5), fitted(data, expectile=0.97)
    own = np.array([float(data.returns[(data.batch().obs["state"][:, 0, 0] - p).abs() < 1e-3].mean()) for p in PLACES[:, 0]])
    assert np.abs(values(mean) - own).max() < 0.12, (values(mean), own)
    assert (values(best) > values(mean) + 0.03)[1:].all(), "the expectile moves V up"
    assert np.abs(values(best) - truth).max() < 0.15 and (truth - values(mean)).max() > 0.25, (values(best), truth)
    ahead, back = (best.advantage(PLACES, torch.full((5, 1, 1), a)) for a in (1.0, -1.0))
    assert (ahead[:4] > back[:4] + 0.05).all(), "one step back costs gamma^2 of what lies ahead"


@pytest.mark.slow
def test_what_follows_a_time_limit_is_bootstrapped_and_what_follows_an_end_is_not():
    """Episodes of two steps at most never show the way from 5/5 to the goal in one piece: V is sewn together across them."""
    data, expert = view(envs.expert("toy/line"), horizon=2), envs.expert("toy/line")
    truth = line_value(PLACES[:, 0].numpy(), GAMMA)
    assert float(data.returns[(data.batch().obs["state"][:, 0, 0] > 0.9)].max()) == 0.0, "no episode from there was ever paid"
    assert np.abs(values(fitted(data)) - truth).max() < 0.06
    ended = view(expert, horizon=2)
    ended.discount[ended.last] = 0.0  # as if the clock's end were the task's end
    wrong = values(fitted(ended))
    assert wrong[4] < 0.1 and abs(wrong[0] - 1) < 0.05


def test_chunks_are_one_decision():
    """Three steps a decision: the same V*, with gamma^3 between decisions and nothing after the goal."""
    data = view(envs.expert("toy/line"), chunk=3)
    assert {round(d, 3) for d in data.discount.tolist()} == {0.0, 0.512}
    assert np.abs(values(fitted(data)) - line_value(PLACES[:, 0].numpy(), GAMMA)).max() < 0.06


def test_one_update_by_hand():
    """L_V = |tau - 1(u<0)| u^2 with u = min Q - V, L_Q = both twins' (r + discount V' - Q)^2; then the slow copy follows."""
    torch.manual_seed(0)
    critics = Critics(2, 1, 1, CriticConfig(hidden=8, expectile=0.9, target_rate=0.25))
    random = torch.Generator().manual_seed(1)
    cond, after = torch.randn(6, 2, generator=random), torch.randn(6, 2, generator=random)
    action, reward = torch.rand(6, 1, 1, generator=random), torch.rand(6, generator=random)
    discount = torch.tensor([0.9, 0.0, 0.9, 0.5, 0.0, 0.9])
    before = copy.deepcopy(critics)
    with torch.no_grad():
        twins = before.twin(torch.cat([cond, action[:, 0]], -1))[..., 0]
        u = twins.min(0).values - before.v(cond)
        loss_v = (torch.where(u < 0, 0.1, 0.9) * u**2).mean()
        loss_q = ((reward + discount * before.v(after) - twins) ** 2).mean(1).sum()
    told = critics.update(cond, action, reward, discount, after)
    assert told["loss_v"].item() == pytest.approx(loss_v.item(), rel=1e-5)
    assert told["loss_q"].item() == pytest.approx(loss_q.item(), rel=1e-5)
    for old, slow, fast in zip(before.target.parameters(), critics.target.parameters(), critics.twin.parameters(), strict=True):
        assert torch.allclose(slow, 0.75 * old + 0.25 * fast, atol=1e-6) and not slow.requires_grad
    with torch.no_grad():
        both = critics.target(torch.cat([cond, action[:, 0]], -1))[..., 0]
    assert torch.equal(critics.q(cond, action), both.min(0).values)
    assert torch.equal(critics.advantage(cond, action), critics.q(cond, action) - critics.v(cond))


def test_fits_repeat_from_their_seed():
    data, logged = view(envs.expert("toy/line"), 10), []
    a, b, c = fitted(data, steps=30), fitted(data, steps=30), fitted(data, steps=20)
    assert np.array_equal(values(a), values(b)) and not np.array_equal(values(a), values(c))
    fit_critics(a, data.encoded(state), seed=1, log=lambda step, told: logged.append((step, *told)))
    assert logged == []  # 30 steps: too short for a line
    fit_critics(Critics(1, 1, 1, CriticConfig(steps=500, hidden=8)), data.encoded(state), seed=1,
                log=lambda s, told: logged.append((s, *told)))
    assert logged == [(n, "critic_loss_v", "critic_loss_q") for n in (250, 500)]


def test_critics_of_eyes_find_what_is_faint_in_a_latent():
    """The reward hangs on a direction a thirtieth as strong as the others: whitened critics see it in a few steps."""
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(2000, 8, generator=generator) * 3
    latent[:, 0] = torch.randn(2000, generator=generator) * 0.1
    latent = latent @ torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    faint = torch.linalg.svd(latent, full_matrices=False).U[:, -1]
    reward = (faint > 0).float()
    action, nothing = torch.zeros(2000, 1, 1), torch.zeros(2000)
    explained = {}
    for whiten in (True, False):
        torch.manual_seed(0)
        critics = Critics(8, 1, 1, CriticConfig(hidden=32, lr=3e-3, whiten=whiten), eyes=True)
        fit_whitener(critics.value, latent)
        for _ in range(300):
            rows = torch.randint(2000, (256,), generator=generator)
            critics.update(latent[rows], action[rows], reward[rows], nothing[rows], latent[rows])
        explained[whiten] = explained_variance(critics.v(latent).detach(), reward)
    assert explained[True] > 0.6 and explained[True] > explained[False] + 0.3
    assert len(Critics(8, 1, 1, CriticConfig(hidden=32)).value) == len(critics.value), "the state needs none"
