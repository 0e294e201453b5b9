"""RL-100 with eyes: which stage trains the encoder, that it learns, that it resumes, and what is said of the wrong sight."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from realrl import envs
from realrl.algos import rl100
from realrl.algos.rl100 import OfflineConfig, OfflineRound, Online, OnlineConfig
from realrl.cell.cell import WorkCell
from realrl.cell.collect import Collector
from realrl.cell.curriculum import Practice
from realrl.cell.evaluate import evaluate
from realrl.cell.judge import judged
from realrl.data.cache import FrameCache
from realrl.data.store import Store
from realrl.data.views import ChunkView
from realrl.data.windows import ImageWindows
from realrl.learn.imitation import Imitation, ImitationConfig
from realrl.learn.iql import CriticConfig
from realrl.learn.ppo import DenoisingPPO, PPOConfig
from realrl.learn.trials import Trials
from realrl.nets.encoder import EncoderConfig
from realrl.policies.diffusion import DiffusionPolicy
from realrl.policies.folder import check_fit, load_policy
from realrl.run import Run
from realrl.scene import CollectConfig, SightConfig
from realrl.types import RealrlError, Source
from toy_runs import metrics, results, small_policy, tiny, weights

CLOUD = SightConfig(kind="pointcloud", points=16)
EYES = EncoderConfig(size=16, hidden=(16, 16), latent=8, jitter=0.01)


def config(**changes):
    return tiny(**{"task": "toy/reach", "sight": CLOUD, "policy": small_policy(encoder=EYES), "demos": 10,
                   "imitation": ImitationConfig(steps=60, batch=32, lr=2e-3, warmup=10),
                   "offline": OfflineConfig(rounds=1, rollouts=16, iterations=2, states=64, gate_every=2, reimitation=20),
                   "online": OnlineConfig(iterations=2, episodes=10, warmup=1, save_every=1),
                   "eval_episodes": 6, "final_episodes": 6, "audit_episodes": 0, **changes})


def episodes(count=12, sight=CLOUD):
    with Collector("toy/reach", CollectConfig(workers=1), sight=sight) as collector:
        return list(collector.collect(envs.expert("toy/reach", noise=0.2), range(count), greedy=True, source=Source.SCRIPT))


def make_policy(view=None, sight=CLOUD, n_obs=1):
    spec = envs.make("toy/reach", sight=sight).task
    torch.manual_seed(0)
    policy = DiffusionPolicy(small_policy(encoder=EYES, n_obs=n_obs), spec.obs_dim, spec.action_dim, senses=spec.senses).eval()
    if view is not None:
        policy.fit_senses(view.frames)
    return policy


def replace_chunk(policy, chunk):
    """The same kind of policy, untrained, with longer plans."""
    other = DiffusionPolicy(replace(policy.cfg, chunk=chunk), policy.obs_dim, policy.action_dim, senses=policy.senses)
    other.normaliser.load_state_dict(policy.normaliser.state_dict())
    return other.eval()


def view_of(found, n_obs=1):
    return ChunkView(found, chunk=2, n_obs=n_obs, gamma=0.98)


def snapshot(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def moved(module, before):
    return any(not torch.equal(v, before[k]) for k, v in module.state_dict().items())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder, configuration) of a run through all stages that nothing happened to."""
    folder, cfg = tmp_path_factory.mktemp("eyes"), config()
    with Run.start(folder, cfg) as run, WorkCell(run, cfg) as cell:
        rl100.train(cfg, cell)
    return folder, cfg


def test_all_stages_run_and_the_policy_remembers_its_sight(whole):
    folder, _ = whole
    assert [s["name"] for s in results(folder)] == ["imitation", "offline-1", "online", "one-step"]
    recorded = Store.open(folder / "dataset").read([0])[0]
    assert recorded.obs["pointcloud"].shape[1:] == (16, 3) and recorded.obs["privileged"].shape[1:] == (4,)
    policy, task = load_policy(folder / "policy")
    assert policy.senses == {"pointcloud": (16, 3)} and policy.obs_dim == 2 and task == "toy/reach"
    fits = [line for line in metrics(folder) if "recon" in line or "regularisers" in line]
    assert fits and all(np.isfinite(line.get("recon", line.get("regularisers"))) for line in fits)


def test_an_interrupted_run_continues_to_the_same_numbers(whole, tmp_path, monkeypatch):
    straight, cfg = whole
    learn, calls = Online._learn, []

    def interrupted(self, *found):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return learn(self, *found)

    monkeypatch.setattr(Online, "_learn", interrupted)
    with pytest.raises(KeyboardInterrupt), Run.start(tmp_path, cfg) as run, WorkCell(run, cfg) as cell:
        rl100.train(cfg, cell)
    with Run.start(tmp_path, cfg, resume=True) as run, WorkCell(run, cfg) as cell:
        rl100.train(cfg, cell)
    mine, its = weights(tmp_path), weights(straight)
    assert mine.keys() == its.keys() and all(torch.equal(v, its[k]) for k, v in mine.items())
    assert results(tmp_path) == results(straight)


def test_offline_the_encoder_is_frozen_and_looks_at_every_frame_once(monkeypatch):
    found = episodes()
    view = view_of(found)
    policy, looks = make_policy(view), []
    forward = type(policy.encoder).forward
    monkeypatch.setattr(type(policy.encoder), "forward", lambda self, state, seen: looks.append(len(state)) or forward(self, state, seen))
    before = snapshot(policy.encoder)
    cfg = config()
    stage = OfflineRound(policy, view, replace(cfg, ope=replace(cfg.ope, horizon=5)), seed=0, log=lambda step, values: None)
    stage.improve(lambda n: None)
    assert sum(looks) == sum(len(e) + 1 for e in found)
    assert not moved(policy.encoder, before)


@pytest.mark.parametrize("n_obs", [1, 3])
def test_latents_of_all_frames_are_those_of_the_decisions(n_obs):
    view = view_of(episodes(), n_obs)
    policy = make_policy(view, n_obs=n_obs)
    batch = view.batch()
    with torch.no_grad():
        now, after = policy.encode(batch.obs), policy.encode(batch.next_obs)
    table = view.encoded(policy.features)
    mine = table.cond, table.next_cond
    assert torch.allclose(mine[0], now, atol=1e-5) and torch.allclose(mine[1], after, atol=1e-5)


def test_frames_inside_a_plan_are_not_encoded():
    policy = make_policy(view_of(episodes()))
    with Collector("toy/reach", CollectConfig(workers=1), sight=CLOUD) as collector:
        found = list(collector.collect(policy, range(100, 106), greedy=False))
    view = ChunkView(found, chunk=2, n_obs=1, gamma=0.98, every="plan")
    asked = []
    table = view.encoded(lambda frames: asked.append(len(frames["state"])) or policy.features(frames))
    assert asked[0] == sum(len(e.extra["chain"]) + 1 for e in found) < sum(len(e) + 1 for e in found)
    batch = view.batch()
    with torch.no_grad():
        assert torch.allclose(table.next_cond, policy.encode(batch.next_obs), atol=1e-5)


@pytest.mark.parametrize("n_obs", [1, 2])
def test_a_glance_shows_what_plans_are_made_from(n_obs):
    """With eyes closed in between everything that acts and learns by plans is the same, and less is looked at."""
    policy = replace_chunk(make_policy(view_of(episodes()), n_obs=n_obs), 4)
    with Collector("toy/reach", CollectConfig(workers=1, envs_per_worker=2), sight=CLOUD) as collector:
        whole, brief, after = (list(collector.collect(policy, range(5), greedy=False, glance=glance)) for glance in (False, True, False))
    with Collector("toy/reach", CollectConfig(workers=1, envs_per_worker=2, every_frame=True), sight=CLOUD) as collector:
        asked = list(collector.collect(policy, range(5), greedy=False, glance=True))
    held = 0
    for e, b, a, q in zip(*(sorted(found, key=lambda e: e.seed) for found in (whole, brief, after, asked)), strict=True):
        assert all(np.array_equal(e.obs["pointcloud"], other.obs["pointcloud"]) for other in (a, q)), "nothing is left closed"
        for other in (b, a, q):
            assert np.array_equal(e.action, other.action) and np.array_equal(e.obs["state"], other.obs["state"])
        plans = np.flatnonzero(e.starts_plan)
        fresh = np.append(np.unique([np.maximum(plans - back, 0) for back in range(n_obs)]), len(e))
        assert np.array_equal(e.obs["pointcloud"][fresh], b.obs["pointcloud"][fresh])
        between = np.setdiff1d(np.arange(len(e)), fresh)
        assert all(np.array_equal(b.obs["pointcloud"][t], b.obs["pointcloud"][t - 1]) for t in between)
        held += sum(not np.array_equal(e.obs["pointcloud"][t], b.obs["pointcloud"][t]) for t in between)
    assert held > 10


@pytest.mark.parametrize("learns", [True, False])
def test_online_the_encoder_learns_unless_told_not_to(learns):
    cfg = config(online=OnlineConfig(episodes=8, warmup=0, learn_encoder=learns))
    policy = make_policy(view_of(episodes()))
    stage = Online(policy, None, cfg, Practice(0.0, 0))
    with Collector("toy/reach", CollectConfig(workers=1), sight=CLOUD) as collector:
        found = list(collector.collect(policy, range(100, 108), greedy=False))
    before, net = snapshot(policy.encoder), snapshot(policy.net)
    stats = stage._learn(found)
    assert moved(policy.encoder, before) == learns and moved(policy.net, net) and ("regularisers" in stats) == learns


@pytest.mark.parametrize("learns", [True, False])
def test_v_goes_back_with_the_encoder_that_it_knows(learns):
    """Latents of another encoder mean nothing to V; one that stays as it is takes nothing of what V has learned."""
    cfg = config(online=OnlineConfig(episodes=8, warmup=0, learn_encoder=learns))
    policy = make_policy(view_of(episodes()))
    stage = Online(policy, None, cfg, Practice(0.0, 0))
    value, encoder = snapshot(stage.value), snapshot(policy.encoder)
    with torch.no_grad():
        for p in (*stage.value.parameters(), *policy.encoder.parameters()):
            p += 0.1
    stage.ppo.revert(stage.best)
    assert moved(stage.value, value) == moved(policy.encoder, encoder) == (not learns)


def test_a_round_whose_encoder_goes_back_leaves_no_v_of_the_other_latents(tmp_path, monkeypatch):
    """And a solved task rests there, too, though its old policy can no longer be tried in the model."""
    rounds, begin, settle, rollouts = [], OfflineRound.__init__, Trials.settle, Trials.rollouts

    def back(self, policy, began, *others):
        settle(self, policy, began, *others)
        policy.load_state_dict(began)
        return True

    def solved(self, *asked):
        found = rollouts(self, *asked)
        self.won = [True] * 1000
        return found

    monkeypatch.setattr(OfflineRound, "__init__", lambda self, *args, **how: rounds.append(self) or begin(self, *args, **how))
    monkeypatch.setattr(Trials, "settle", back)
    monkeypatch.setattr(Trials, "rollouts", solved)
    found = []
    for folder in ("a", "b"):
        cfg = config(stages=("imitation", "offline"), imitation=ImitationConfig(steps=20, batch=32, lr=2e-3, warmup=10),
                     critic=CriticConfig(steps=20, batch=64, hidden=32))
        with Run.start(tmp_path / folder, cfg) as run, WorkCell(run, cfg) as cell:
            rl100.train(cfg, cell)
            found.append(run.read("offline-1")[1]["value"])
    assert rounds[0].left < 0.05 and rounds[0].gate.tried is None
    assert any(not torch.equal(v, found[0][k]) for k, v in rounds[0].critics.value.state_dict().items())
    assert all(torch.equal(v, found[1][k]) for k, v in found[0].items()), "the same one every time"


def test_a_fit_through_the_encoder_begins_at_a_ratio_of_one():
    view = view_of(episodes())
    policy = make_policy(view)
    cond = view.encoded(policy.features).cond
    random = torch.Generator().manual_seed(0)
    chain = policy.explore(cond, random)
    ppo = DenoisingPPO(policy, PPOConfig(lr=1e-30, clip=1e-3, minibatch=40), encoder=True)
    seen = []

    def look(rows):
        seen.append(len(rows))
        return policy.regularise(view.batch(rows).obs, random)

    stats = ppo.fit(cond, chain, torch.randn(len(cond), generator=random), random, look)
    assert stats["kl"] < 1e-8 and stats["clip_fraction"] == 0
    assert sum(seen) == 5 * len(view), "a pass looks at every decision once"


def test_a_policy_that_sees_learns_where_the_state_alone_cannot():
    """The target is in the cloud only: a third of random starts is solved blind, most are with eyes."""
    found = episodes(60)
    view = ChunkView(found, chunk=2, n_obs=1, gamma=0.98)
    policy = make_policy(view)
    trainer = Imitation(policy, view, ImitationConfig(steps=300, batch=64, lr=3e-3, warmup=20), seed=0)
    while trainer.step < 300:
        losses = trainer.update()
    trainer.finish()
    assert losses["recon"] > 0 and losses["kl"] > 0
    with Collector("toy/reach", CollectConfig(workers=1), sight=CLOUD) as collector:
        assert evaluate(collector, policy, 60, dt=0.1).success.rate > 0.6


def test_a_frozen_trunk_stays_as_it_came():
    sight = SightConfig(kind="rgb", height=24, width=24)
    view = view_of(episodes(4, sight))
    policy = DiffusionPolicy(small_policy(encoder=replace(EYES, frozen=True)), 2, 2, senses={"images.top": (24, 24, 3)})
    policy.fit_senses(view.frames)
    trunk, head = (getattr(policy.encoder.eyes["images-top"], part) for part in ("trunk", "head"))
    before = snapshot(trunk), snapshot(head)
    trainer = Imitation(policy, view, ImitationConfig(steps=3, batch=8, warmup=1), seed=0)
    for _ in range(3):
        trainer.update()
    trainer.finish()
    assert not moved(trunk, before[0]) and moved(head, before[1])


@pytest.mark.parametrize("kind", ["rgb", "depth"])
def test_pictures_take_the_same_road(kind):
    sight = SightConfig(kind=kind, height=24, width=24)
    view = view_of(episodes(4, sight))
    policy = make_policy(view, sight)
    trainer = Imitation(policy, view, ImitationConfig(steps=3, batch=8, warmup=1), seed=0)
    first = [trainer.update() for _ in range(3)]
    assert all(np.isfinite(v) for losses in first for v in losses.values())
    with Collector("toy/reach", CollectConfig(workers=1), sight=sight) as collector:
        assert len(list(collector.collect(policy, [1, 2], greedy=True))) == 2


def test_pictures_on_disk_teach_what_pictures_in_memory_teach(tmp_path):
    """The codec of a run loses nothing, so both views give the same losses to the last bit."""
    sight = SightConfig(kind="rgb", height=24, width=24)
    found = episodes(4, sight)
    store = Store.create(tmp_path / "d", task="toy/reach", fps=10, codec="ffv1")
    store.append(found)
    disk = ImageWindows(store, FrameCache.build(store, progress=False), chunk=2, n_obs=1, gamma=0.98, next_images=False)
    told = []
    for view in (view_of(found), disk):
        policy = make_policy(view_of(found), sight)
        trainer = Imitation(policy, view, ImitationConfig(steps=3, batch=8, warmup=1), seed=0)
        told.append([trainer.update() for _ in range(3)])
    assert told[0] == told[1]


def test_the_wrong_sight_is_named():
    policy = make_policy()
    with pytest.raises(RealrlError, match=r"sees pointcloud \[16, 3\], but toy/reach shows the state alone: give the --sight"):
        check_fit(policy, envs.make("toy/reach").task, "runs/x", "toy/reach")
    obs = {"state": np.zeros((1, 1, 2), np.float32)}
    with pytest.raises(RealrlError, match="'pointcloud' is missing"):
        policy.act(obs, {}, greedy=True, rng=[np.random.default_rng(0)])
    with pytest.raises(RealrlError, match=r"'pointcloud' has shape \[1, 9, 3\]"):
        policy.act({**obs, "pointcloud": np.zeros((1, 1, 9, 3), np.float32)}, {}, greedy=True, rng=[np.random.default_rng(0)])


def test_the_audit_sees_with_the_eyes_that_were_judged(whole):
    """The encoder learns on after the round; a judged candidate gets the one it was judged with."""
    folder, cfg = whole
    with Run(folder, resume=True) as run:
        policy, _ = load_policy(folder / "policy")
        with torch.no_grad():
            for p in policy.encoder.parameters():
                p += 0.1  # it learned on; in so short a run trials may have sent it back
        _, parts = run.read("offline-1")
        candidates = [candidate for _, candidate in judged(run, cfg.offline.rounds, policy)]
    kept = {k.removeprefix("encoder."): v for k, v in parts["policy"].items() if k.startswith("encoder.")}
    assert candidates and moved(policy.encoder, kept)
    assert all(not moved(c.encoder, kept) for c in candidates)
