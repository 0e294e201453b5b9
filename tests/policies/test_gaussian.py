"""The squashed Gaussian: its density, its two ways to act, its folder, and bad files in one line."""

import json

import numpy as np
import pytest
import torch

from realrl.policies.diffusion import DiffusionPolicy, PolicyConfig
from realrl.policies.folder import load_diffusion, load_policy, save_policy
from realrl.policies.gaussian import GaussianConfig, GaussianPolicy, squash
from realrl.types import Policy, RealrlError


def make(norm="renorm", seed=0):
    torch.manual_seed(seed)
    policy = GaussianPolicy(GaussianConfig(chunk=2, n_obs=2, hidden=(16, 8), norm=norm), 3, 2, name="mine")
    if norm == "renorm":
        policy.net.learn([torch.rand(2, 1, 1, size) for size in policy.net.features])
    return policy


def observe(batch):
    return {"state": np.random.default_rng(0).normal(size=(batch, 2, 3)).astype(np.float32)}


def act(policy, *, greedy, batch=5):
    return policy.act(observe(batch), policy.start(batch), greedy=greedy, rng=[np.random.default_rng(s) for s in range(batch)])[0].action


def test_the_density_of_a_squashed_sample():
    torch.manual_seed(0)
    mean, log_std, noise = torch.randn(50, 3), torch.randn(50, 3), torch.randn(50, 3)
    action, logp = squash(mean, log_std, noise)
    base = torch.distributions.Normal(mean.double(), log_std.double().exp())
    truth = torch.distributions.TransformedDistribution(base, torch.distributions.TanhTransform(cache_size=1))
    sample = truth.transforms[0](mean.double() + log_std.double().exp() * noise.double())
    assert torch.allclose(action, sample.float()) and torch.allclose(logp, truth.log_prob(sample).sum(-1).float(), atol=1e-3)
    assert torch.isfinite(squash(torch.full((1, 1), 40.0), torch.zeros(1, 1), torch.zeros(1, 1))[1]).all(), "where tanh is 1"


def test_it_acts_with_its_middle_or_a_sample():
    policy = make()
    assert isinstance(policy, Policy)
    mean, log_std, _ = policy.distribution(policy.encode({"state": torch.from_numpy(observe(5)["state"])}))
    assert np.allclose(act(policy, greedy=True), mean.tanh().detach().view(5, 2, 2), atol=1e-6)
    noise = torch.from_numpy(np.stack([np.random.default_rng(s).standard_normal(4, dtype=np.float32) for s in range(5)]))
    assert np.allclose(act(policy, greedy=False), squash(mean, log_std, noise)[0].detach().view(5, 2, 2), atol=1e-6)


def test_a_gripper_is_told_the_command_of_the_highest_value(tmp_path):
    torch.manual_seed(0)
    policy = GaussianPolicy(GaussianConfig(n_obs=2, hidden=(16,)), 3, 4, gripper=True)
    cond = policy.encode({"state": torch.from_numpy(observe(40)["state"])})
    best = policy.grasp(cond)[0].argmax(-1) - 1
    assert len(best.unique()) == 3
    for greedy in (True, False):
        action = act(policy, greedy=greedy, batch=40)
        assert action.shape == (40, 1, 4) and np.array_equal(action[:, 0, 3], best) and np.abs(action[..., :3]).max() < 1
    assert np.allclose(act(policy, greedy=True, batch=40)[:, 0, :3], policy.distribution(cond)[0].tanh().detach(), atol=1e-6)
    save_policy(policy, tmp_path, task="toy/obstacle")
    loaded, _ = load_policy(tmp_path)
    assert loaded.gripper and np.array_equal(act(loaded, greedy=False), act(policy, greedy=False))
    with pytest.raises(RealrlError, match="gripper is commanded step by step and beside a motion: it needs chunk 1"):
        GaussianPolicy(GaussianConfig(chunk=2), 3, 4, gripper=True)


@pytest.mark.parametrize("norm", ["none", "layer", "renorm"])
def test_a_saved_one_acts_bit_for_bit_the_same(tmp_path, norm):
    policy = make(norm)
    save_policy(policy, tmp_path, task="toy/obstacle")
    loaded, task = load_policy(tmp_path)
    assert task == "toy/obstacle" and isinstance(loaded, GaussianPolicy) and (loaded.cfg, loaded.name) == (policy.cfg, "mine")
    for greedy in (True, False):
        assert np.array_equal(act(loaded, greedy=greedy), act(policy, greedy=greedy))
    if norm == "renorm":
        assert torch.equal(loaded.net.running, policy.net.running) and not torch.equal(loaded.net.running, make(seed=1).net.running.zero_())


def error(folder, mend, load=load_policy):
    save_policy(make(), folder, task="toy/obstacle")
    mend(folder)
    with pytest.raises(RealrlError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def described(change):
    def mend(folder):
        about = json.loads((folder / "policy.json").read_text())
        change(about)
        (folder / "policy.json").write_text(json.dumps(about))
    return mend


def test_files_that_are_no_gaussian(tmp_path):
    assert "hidden must be a whole number of at least 1" in error(tmp_path, described(lambda a: a["config"].update(hidden=[16, -8])))
    assert "at least one layer" in error(tmp_path, described(lambda a: a["config"].update(hidden=[])))
    assert "'config.norm' must be one of" in error(tmp_path, described(lambda a: a["config"].update(norm="batch")))
    assert "do not fit policy.json" in error(tmp_path, described(lambda a: a["config"].update(norm="layer")))
    assert "do not fit policy.json" in error(tmp_path, described(lambda a: a.update(action_dim=3)))
    assert "unknown field 'chunk'" not in error(tmp_path, described(lambda a: a.update(kind="diffusion"))), "the file is named"
    assert "a diffusion policy is needed here" in error(tmp_path, lambda folder: None, load_diffusion)


def test_a_variance_below_zero_is_refused(tmp_path):
    policy = make()
    policy.net.running[1, 0, 0, 0] = -1.0
    save_policy(policy, tmp_path, task="toy/obstacle")
    with pytest.raises(RealrlError, match="variance below 0"):
        load_policy(tmp_path)


def test_a_diffusion_policy_is_still_found_as_one(tmp_path):
    save_policy(DiffusionPolicy(PolicyConfig(hidden=8, blocks=1), 3, 2), tmp_path, task="toy/obstacle")
    assert isinstance(load_diffusion(tmp_path)[0], DiffusionPolicy)


def test_an_observation_of_another_shape():
    with pytest.raises(RealrlError, match=r"shape \[2, 4\] but the policy was trained on \[2, 3\]"):
        make().act({"state": np.zeros((1, 2, 4), np.float32)}, {}, greedy=True, rng=[])
