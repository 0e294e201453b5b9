"""The schedule and both samplers against diffusers, likelihoods against torch.distributions, and that imitation keeps two modes."""

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from realrl.generative.diffusion import Diffusion, DiffusionConfig, ddpm_sigma, imitation_loss
from realrl.nets.mlp import SkipNet
from realrl.types import RealrlError

K, A, C = 3, 2, 4
UNCLIPPED = {"sigma_min": 1e-12, "sigma_max": 10.0}  # sigma is then DDIM's own


def random_net(seed=0, gain=3.0):
    """A fixed random function of (x, t, cond), large enough that clipping of the clean action is at work."""
    torch.manual_seed(seed)
    net = SkipNet(K, A, C, steps=100, hidden=32).eval().requires_grad_(False)
    return lambda x, t, cond: gain * net(x, t, cond)


def peer(cfg):
    """diffusers' sampler with the settings that the schedule here stands for."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=100, beta_schedule="squaredcos_cap_v2", clip_sample=True, set_alpha_to_one=True,
        prediction_type={"sample": "sample", "velocity": "v_prediction"}.get(cfg.predict, "epsilon"), timestep_spacing="leading",
        steps_offset=cfg.offset)
    scheduler.set_timesteps(cfg.steps)
    return scheduler


@pytest.mark.parametrize("offset", [0, 3])
def test_schedule_is_diffusers(offset):
    cfg = DiffusionConfig(steps=10, offset=offset)
    ours, theirs = Diffusion(cfg), peer(cfg)
    assert torch.allclose(ours.abar, theirs.alphas_cumprod, atol=1e-6)
    assert ours.t.tolist() == theirs.timesteps.tolist() == [t + offset for t in range(90, -1, -10)]
    action, noise = torch.randn(2, 5, K, A, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 3, 50, 98, 99])
    assert torch.allclose(ours.corrupt(action, t, noise), theirs.add_noise(action, noise, t), atol=1e-5)


@pytest.mark.parametrize("predict", ["noise", "sample", "velocity"])
@pytest.mark.parametrize("stochastic", [False, True], ids=["eta-0", "eta-1"])
@pytest.mark.parametrize(("steps", "offset"), [(10, 0), (10, 5), (7, 9), (1, 99)])
def test_samplers_are_diffusers_step_by_step(steps, offset, stochastic, predict):
    cfg = DiffusionConfig(steps=steps, offset=offset, greedy="ddim", predict=predict, **UNCLIPPED)
    ours, theirs, net = Diffusion(cfg), peer(cfg), random_net()
    g = torch.Generator().manual_seed(1)
    cond, noise = torch.randn(6, C, generator=g), torch.randn(6, steps + 1, K, A, generator=g)
    chain = ours.sample(net, cond, noise, stochastic=stochastic)
    assert chain.shape == (6, steps + 1, K, A) and torch.equal(chain[:, 0], noise[:, 0])
    for k, t in enumerate(theirs.timesteps):
        eps = net(chain[:, k], t.expand(6), cond)
        after = theirs.step(eps, t, chain[:, k], eta=float(stochastic), variance_noise=noise[:, k + 1],
                            use_clipped_model_output=predict != "noise").prev_sample
        assert torch.allclose(chain[:, k + 1], after, rtol=1e-4, atol=1e-5), k


def test_the_mean_sampler_is_the_stochastic_one_without_its_noise():
    ours, net, g = Diffusion(DiffusionConfig()), random_net(), torch.Generator().manual_seed(1)
    cond, noise = torch.randn(6, C, generator=g), torch.randn(6, 11, K, A, generator=g)
    noise[:, 1:] = 0
    assert torch.equal(ours.sample(net, cond, noise, stochastic=False), ours.sample(net, cond, noise, stochastic=True))


def test_sigma_is_clipped_inside_the_bound():
    cfg = DiffusionConfig(sigma_min=0.05, sigma_max=0.3)
    diffusion = Diffusion(cfg)
    bound = (1 - diffusion.after).sqrt()
    own = ddpm_sigma(diffusion.now, diffusion.after)
    assert (diffusion.sigma <= bound).all() and (diffusion.sigma <= cfg.sigma_max).all()
    free = bound > cfg.sigma_min
    assert free.sum() >= 8 and (diffusion.sigma[free] >= cfg.sigma_min).all()
    inside = (own > cfg.sigma_min) & (own < cfg.sigma_max)
    assert inside.any() and torch.allclose(diffusion.sigma[inside], own[inside], atol=1e-6)
    assert (own > cfg.sigma_max).any(), "the test must see the upper clip at work"
    # what sigma takes, the direction gives: both together keep the noise level of the schedule
    assert torch.allclose(diffusion.sigma**2 + diffusion.direction**2, 1 - diffusion.after, atol=1e-6)


def test_bound_wins_over_sigma_min():
    diffusion = Diffusion(DiffusionConfig(sigma_min=5.0, sigma_max=5.0))
    assert torch.allclose(diffusion.sigma, (1 - diffusion.after).sqrt()) and diffusion.direction.max() < 1e-6


@pytest.mark.parametrize("steps", [1, 5, 10])
def test_all_but_the_last_step_have_a_likelihood(steps):
    diffusion = Diffusion(DiffusionConfig(steps=steps, offset=0))
    assert diffusion.likely == list(range(steps - 1)) and diffusion.sigma[-1] == 0


@pytest.mark.parametrize("heat", [1.0, 0.3])
def test_chain_is_mean_plus_sigma_times_noise_and_its_likelihood_is_normal(heat):
    diffusion, net = Diffusion(DiffusionConfig(sigma_max=0.8)), random_net()
    diffusion.heat.fill_(heat)
    g = torch.Generator().manual_seed(2)
    cond, noise = torch.randn(8, C, generator=g), torch.randn(8, 11, K, A, generator=g)
    chain = diffusion.sample(net, cond, noise, stochastic=True)
    for step in range(10):
        k = torch.full((8,), step)
        mean = diffusion.mean(net, chain[:, step], k, cond)
        assert torch.allclose(chain[:, step + 1], mean + heat * diffusion.sigma[step] * noise[:, step + 1], atol=1e-6)
        if step in diffusion.likely:
            expected = Normal(mean, heat * diffusion.sigma[step]).log_prob(chain[:, step + 1]).sum((-2, -1))
            assert torch.allclose(diffusion.logp(chain[:, step + 1], mean, k), expected, rtol=1e-4, atol=1e-3)


def test_a_chain_that_has_cooled_down_is_the_deployed_one():
    diffusion, net = Diffusion(DiffusionConfig(sigma_max=0.8)), random_net()
    diffusion.heat.fill_(0.0)
    g = torch.Generator().manual_seed(2)
    cond, noise = torch.randn(8, C, generator=g), torch.randn(8, 11, K, A, generator=g)
    assert torch.equal(diffusion.sample(net, cond, noise, stochastic=True), diffusion.sample(net, cond, noise, stochastic=False))


def test_steps_may_differ_within_a_batch():
    """Learning mixes denoising steps in one batch; every row must be as if it were alone."""
    diffusion, net = Diffusion(DiffusionConfig()), random_net()
    g = torch.Generator().manual_seed(3)
    x, cond, k = torch.randn(9, K, A, generator=g), torch.randn(9, C, generator=g), torch.arange(9)
    together = diffusion.mean(net, x, k, cond)
    logp = diffusion.logp(together + 0.01, together, k)
    for i in range(9):
        alone = diffusion.mean(net, x[i:i + 1], k[i:i + 1], cond[i:i + 1])
        assert torch.allclose(together[i], alone[0], atol=1e-5)
        assert torch.allclose(logp[i], Normal(alone[0], diffusion.sigma[i]).log_prob(alone[0] + 0.01).sum(), rtol=1e-3)


def test_deterministic_chain_ignores_later_noise():
    diffusion, net = Diffusion(DiffusionConfig()), random_net()
    g = torch.Generator().manual_seed(4)
    cond, noise = torch.randn(3, C, generator=g), torch.randn(3, 11, K, A, generator=g)
    full, short = (diffusion.sample(net, cond, n, stochastic=False) for n in (noise, noise[:, :1]))
    assert torch.equal(full, short)
    assert not torch.allclose(full[:, -1], diffusion.sample(net, cond, noise, stochastic=True)[:, -1], atol=1e-3)


@pytest.mark.parametrize(("field", "bad"), [("steps", {"steps": 0}), ("steps", {"steps": 101}), ("sigma_min", {"sigma_min": 0.0}),
                                            ("sigma_min", {"sigma_min": 0.2, "sigma_max": 0.1}),
                                            ("offset", {"offset": -1}), ("offset", {"steps": 10, "offset": 10})])
def test_bad_settings_name_the_field(field, bad):
    with pytest.raises(RealrlError, match=rf"diffusion\.{field}"):
        Diffusion(DiffusionConfig(**bad))


def test_imitation_loss_looks_at_valid_actions_and_weights():
    diffusion = Diffusion(DiffusionConfig())
    action, cond = torch.zeros(4, K, A), torch.zeros(4, C)
    valid = torch.ones(4, K, dtype=torch.bool)
    zero = lambda x, t, c: torch.zeros_like(x)
    loss = lambda valid, weight=None: imitation_loss(diffusion, zero, action, valid, cond, torch.Generator().manual_seed(0), weight)
    g = torch.Generator().manual_seed(0)
    torch.randint(100, (4,), generator=g)
    noise = torch.randn(4, K, A, generator=g)  # the same draws: a net that says 0 is wrong by exactly the noise
    assert torch.allclose(loss(valid), noise.square().mean())
    valid[1, 1:] = valid[3] = False
    assert torch.allclose(loss(valid), noise.square().mean(-1)[valid].mean())
    weight = torch.tensor([2.0, 0.0, 1.0, 5.0])
    assert torch.allclose(loss(valid, weight), (noise.square().mean(-1) * weight[:, None])[valid].sum() / valid.sum())


@pytest.mark.parametrize("stochastic", [False, True], ids=["ddim", "stochastic"])
def test_imitation_keeps_both_modes(stochastic):
    torch.manual_seed(0)
    diffusion, net, g = Diffusion(DiffusionConfig(greedy="ddim")), SkipNet(1, 2, 1, steps=100, hidden=64), torch.Generator().manual_seed(0)
    modes = torch.tensor([[-0.6, 0.5], [0.6, 0.5]])
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(300):
        action = modes[torch.randint(2, (256,), generator=g)] + 0.03 * torch.randn(256, 2, generator=g)
        loss = imitation_loss(diffusion, net, action[:, None], torch.ones(256, 1, dtype=torch.bool), torch.zeros(256, 1), g)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        noise = torch.randn(1000, 11, 1, 2, generator=g)
        sample = diffusion.sample(net.eval(), torch.zeros(1000, 1), noise, stochastic=stochastic)[:, -1, 0]
    distance = torch.cdist(sample, modes)
    share = (distance < 0.2).float().mean(0)
    assert (share > 0.3).all(), share
    assert share.sum() > 0.9 and np.mean(np.abs(sample[:, 0].numpy()) < 0.3) < 0.05


@pytest.mark.parametrize("predict", ["noise", "sample", "velocity"])
def test_a_network_that_says_what_is_wanted_lands_on_the_action(predict):
    ours, g = Diffusion(DiffusionConfig(predict=predict)), torch.Generator().manual_seed(2)
    action, noise = torch.rand(4, K, A, generator=g) * 2 - 1, torch.randn(4, K, A, generator=g)
    for k in range(9):
        index = torch.full((4,), k)
        t = ours.t[index]
        x = ours.corrupt(action, t, noise)
        said = ours.wanted(action, t, noise)
        mean = ours.mean(lambda x, t, cond, said=said: said, x, index, torch.zeros(4, C))
        assert torch.allclose(mean, ours.after[k].sqrt() * action + ours.direction[k] * noise, atol=2e-5), k


@pytest.mark.parametrize("predict", ["noise", "sample", "velocity"])
def test_leverage_is_the_derivative_of_the_mean_over_its_spread(predict):
    ours, g = Diffusion(DiffusionConfig(predict=predict)), torch.Generator().manual_seed(3)
    ours.heat.fill_(0.5)
    x, said = 0.01 * torch.randn(1, K, A, generator=g), (0.001 * torch.randn(1, K, A, generator=g)).requires_grad_(True)
    for k, leverage in zip(ours.likely, ours.leverage(), strict=True):  # small numbers: nothing is clipped
        mean = ours.mean(lambda x, t, cond: said, x, torch.tensor([k]), torch.zeros(1, C))
        slope, = torch.autograd.grad(mean.sum(), said)
        assert leverage == pytest.approx(float(slope[0, 0, 0].abs() / ours.spread(torch.tensor(k))), rel=1e-4)


def test_velocity_spreads_the_trust_region_over_the_steps_and_sample_prediction_does_not():
    late = {p: Diffusion(DiffusionConfig(predict=p)).leverage()[-5:] for p in ("noise", "sample", "velocity")}
    assert late["velocity"].max() < 4 * late["velocity"].min() and late["noise"].max() < 4 * late["noise"].min()
    assert late["sample"].max() > 10 * late["sample"].min()
