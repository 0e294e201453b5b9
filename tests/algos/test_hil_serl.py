"""HIL-SERL: what a correction adds to which memory, what ends a return, two seeds of everything, resumed runs, what the person is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from realrl.algos import hil_serl
from realrl.algos.hil_serl import HILConfig, advice, train
from realrl.cell.cell import WorkCell
from realrl.checkpoint import encode
from realrl.cli import main as cli
from realrl.config import OutOfBounds
from realrl.data.store import Store
from realrl.learn.classifier import Classifier, ClassifierConfig, Labelled, audit, save
from realrl.learn.corrections import Memory, Trial, moments, refuse_contradictions
from realrl.learn.grasp import commands
from realrl.learn.help import Help
from realrl.learn.sac import SAC, SACConfig
from realrl.policies.diffusion import DiffusionPolicy, PolicyConfig
from realrl.policies.folder import load_policy, save_policy
from realrl.policies.gaussian import GaussianConfig, GaussianPolicy
from realrl.policies.residual import Observer, ResidualPolicy
from realrl.robots.human import OperatorConfig
from realrl.run import Run, read_metrics
from realrl.scene import CollectConfig, SightConfig
from realrl.streaming import StreamConfig
from realrl.types import Episode, Moment, RealrlError, Source, Step
from toy_runs import killed_at_saves

ONE = CollectConfig(workers=1, envs_per_worker=2)


def tiny(**changes: Any) -> HILConfig:
    """A run of seconds, in which a person helps now and then."""
    small = SACConfig(utd=2, policy_delay=2, batch=8, hidden=(16,), gamma=0.97, alpha=0.01, entropy_backup=False)
    return replace(HILConfig(sac=small, policy=GaussianConfig(hidden=(16,), norm="layer"), operator=OperatorConfig(patience=4), steps=130,
                             start=30, horizon=25, demos=2, save_every=40, log_every=40, eval_episodes=3, collect=ONE), **changes)


def run_of(folder: Path, cfg: HILConfig) -> dict[str, Any]:
    with Run.start(folder, cfg, resume=True) as run, WorkCell(run, cfg) as cell:
        return train(cfg, cell)


def learner(n_step: int = 1, n_obs: int = 1) -> SAC:
    torch.manual_seed(0)
    policy = GaussianPolicy(GaussianConfig(hidden=(16,), n_obs=n_obs), 2, 1)
    return SAC(policy, SACConfig(hidden=(16,), batch=8, gamma=0.9, n_step=n_step), seed=0)


def episode(sources: str, *, succeeded: bool = False, aborted: bool = False, seed: int = 1) -> Episode:
    """h: a person acted, at 0.5 where the policy wanted -0.5. The observation counts the steps."""
    n = len(sources)
    human = np.array([s == "h" for s in sources])
    wanted = np.full((n, 1), -0.5, np.float32)
    state = np.stack([np.full(n + 1, seed), np.arange(n + 1)], 1).astype(np.float32)
    reward = np.zeros(n, np.float32)
    reward[-1] = succeeded
    return Episode({"state": state, "privileged": state}, np.where(human[:, None], np.float32(0.5), wanted), wanted,
                   np.where(human, Source.HUMAN, Source.POLICY).astype(np.uint8), reward, reward > 0, np.arange(n) * 0.1, np.ones(n, bool),
                   succeeded, not succeeded, "lab/peg", "hil-serl", seed)


def memory(agent: SAC, *practice: Episode, cost: float = 0.0, share: float = 0.5) -> Memory:
    made = Memory(agent, [episode("hhhh", succeeded=True, seed=9)], 0.1, cost, share=share)
    made.see(moments(practice))
    return made


# ---- what is learned from


def test_a_correction_adds_exactly_its_steps_to_what_people_did() -> None:
    agent = learner()
    made = memory(agent)
    assert (made.prior.steps, made.online.steps) == (4, 0)
    made.see(moments([episode("ppphhpphhhp")]))
    assert (made.prior.steps, made.online.steps) == (4 + 5, 11)
    added = made.prior.batch(torch.arange(4, 9))
    assert added.obs["state"][:, 0, 1].tolist() == [3, 4, 7, 8, 9]
    assert added.next_obs["state"][:, 0, 1].tolist() == [4, 5, 8, 9, 10], "each step's own next observation, also the last one's"
    assert added.discount.tolist() == pytest.approx([0.9] * 5), "a correction's end is no end of the task"
    assert (added.source == Source.HUMAN).all() and (added.action == 0.5).all()
    assert made.spent() == {"human_s": 0.5, "takeovers": 2.0}


def test_what_was_executed_is_learned_from_and_what_was_proposed_is_not() -> None:
    made = memory(learner(), episode("pphhp"))
    assert made.online.batch(torch.arange(5)).action[:, 0, 0].tolist() == [-0.5, -0.5, 0.5, 0.5, -0.5]


def test_success_ends_the_return_and_a_clock_or_an_abort_does_not() -> None:
    made = memory(learner(), episode("pphh", succeeded=True), episode("pphh", seed=2))
    ends = made.online.batch(torch.tensor([3, 7]))
    assert ends.discount.tolist() == [0.0, pytest.approx(0.9)] and ends.reward.tolist() == [1.0, 0.0]
    assert ends.next_obs["state"][:, 0].tolist() == [[1, 4], [2, 4]], "never the next episode's"
    people = made.prior.batch(torch.tensor([5, 7]))
    assert people.discount.tolist() == [0.0, pytest.approx(0.9)]


def test_a_correction_is_seen_as_part_of_its_episode() -> None:
    """Histories reach back before it, returns beyond it, and neither into another episode."""
    made = memory(learner(n_step=3, n_obs=2), episode("hhpphh"), episode("phpp", seed=2))
    rows = made.prior.batch(torch.arange(4, 9))
    assert rows.obs["state"][..., 1].tolist() == [[0, 0], [0, 1], [3, 4], [4, 5], [0, 1]]
    assert rows.next_obs["state"][:, -1].tolist() == [[1, 3], [1, 4], [1, 6], [1, 6], [2, 4]]
    assert rows.discount.tolist() == pytest.approx([0.729, 0.729, 0.81, 0.9, 0.729]) and made.spent()["takeovers"] == 3
    running = memory(learner(n_step=3), episode("pphh", succeeded=True))
    steps = list(moments([episode("phh", seed=3)]))
    steps[-1].step.truncated = False
    running.see(steps)
    drawn = running.prior.sample(400, torch.Generator().manual_seed(0)).obs["state"][:, 0]
    assert {tuple(s) for s in drawn.tolist() if s[0] == 3} == set(), "not before all that follows is known"


def test_to_be_helped_costs_the_step_before() -> None:
    made = memory(learner(), episode("pphhpph"), episode("hp", seed=2), cost=0.5)
    assert made.online.batch(torch.arange(9)).reward.tolist() == [0, -0.5, 0, 0, 0, -0.5, 0, 0, 0], "never the step of another episode"
    assert made.prior.batch(torch.arange(8)).reward.tolist() == [0, 0, 0, 1, 0, 0, 0, 0], "what the person did costs nothing"


def test_half_of_every_batch_is_what_people_did_however_little_it_is() -> None:
    made = memory(learner(), episode("p" * 400))
    people = made.both.sample(256, made.random(0, 0)).source[:, 0] == Source.HUMAN
    assert int(people.sum()) == 128
    for share in (0.25, 0.0):
        other = memory(learner(), episode("p" * 400), share=share)
        drawn = other.both.sample(256, other.random(0, 0))
        assert int((drawn.source[:, 0] == Source.HUMAN).sum()) == 256 * share, "and with none of it, demonstrations are not drawn at all"


def test_read_back_from_a_recording_it_is_the_same(tmp_path: Path) -> None:
    """What was recorded on the way fills the memories to the same numbers in the same order."""
    cfg, kept = tiny(), []
    made = Memory.see

    def see(self: Memory, found: Any) -> None:
        made(self, found)
        kept.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Memory, "see", see)
        run_of(tmp_path, cfg)
    live = kept[-1]
    with Run(tmp_path, resume=True) as run, WorkCell(run, cfg) as cell:
        agent = SAC(GaussianPolicy(cfg.policy, 27, 6), cfg.sac, seed=0)
        again = Memory(agent, cell.demonstrations(), 0.1, cfg.takeover_cost)
        again.see(moments(sorted(cell.book.labelled("hil-serl"), key=lambda e: e.seed or 0)))
    assert again.trials == live.trials and live.spent()["takeovers"] > 0
    for one, two in ((live.online, again.online), (live.prior, again.prior)):
        assert one.steps == two.steps
        a, b = one.batch(torch.arange(one.steps)), two.batch(torch.arange(two.steps))
        assert torch.equal(a.action, b.action) and torch.equal(a.discount, b.discount) and torch.equal(a.obs["state"], b.obs["state"])
        assert torch.equal(a.next_obs["state"], b.next_obs["state"]) and torch.equal(a.reward, b.reward) and torch.equal(a.source, b.source)


def test_demonstrations_that_contradict_themselves_are_refused() -> None:
    good = episode("hhhh", succeeded=True)
    refuse_contradictions([good, episode("hhhh")])
    cases = {"succeeded, but a clock ended it": replace(good, terminated=False, truncated=True),
             "ended with reward 0 and success": replace(good, reward=np.zeros(4, np.float32)),
             "ended with reward 1 and failure": replace(good, success=np.zeros(4, bool)),
             "was ended by the task and by a clock": replace(good, truncated=True)}
    for said, wrong in cases.items():
        with pytest.raises(RealrlError, match=f"demonstration 1 .* {said}.*realrl data delete-episodes"):
            refuse_contradictions([good, wrong])


# ---- runs


def test_a_run_leaves_a_policy_a_recording_and_its_headline(tmp_path: Path) -> None:
    cfg = tiny(judge_every=60)
    summary = run_of(tmp_path, cfg)
    head = summary["headline"]
    assert head["transitions"] >= cfg.steps and head["utd"] == pytest.approx(2.0) and 0 < head["human_share"] < 1
    assert head["episodes"] == 3 and head["success"] <= 1 and head["human_s"] > 0 and head["takeovers"] >= 1
    assert [s["name"] for s in summary["stages"]] == ["at 60", "at 120", "hil-serl"]
    assert 0 < summary["stages"][0]["measured"]["human_s"] < summary["stages"][1]["measured"]["human_s"] <= head["human_s"]
    policy, task = load_policy(tmp_path / "policy")
    assert task == cfg.task and policy.cfg == cfg.policy
    lines = [line for line in read_metrics(tmp_path) if line["stage"] == "hil-serl"]
    assert [line["step"] for line in lines] == [40, 80, 120]
    assert {"success", "success_helped", "human_share", "prior_steps", "utd_reached", "q", "entropy", "human_s"} <= {*lines[-1]}
    done = [e for e in Store.open(tmp_path / "dataset").read() if e.policy == "hil-serl"]
    human = np.concatenate([e.source == Source.HUMAN for e in done])
    moved = np.concatenate([np.abs(e.action - e.proposed).max(1) > 1e-6 for e in done])
    assert human.any() and (human == moved).all(), "recorded with what the policy had wanted"


def test_nobody_helps_in_an_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from realrl.cell import evaluate
    found: list[Episode] = []
    blind = evaluate.blind
    monkeypatch.setattr("realrl.cell.judge.blind", lambda e: (found.append(e), blind(e))[1])
    run_of(tmp_path, tiny())
    assert len(found) == 3 and all((e.source == Source.POLICY).all() for e in found)


def test_a_killed_run_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = tiny(judge_every=60, clone_steps=10)
    whole = run_of(tmp_path / "straight", cfg)
    killed_at_saves(monkeypatch, (3, 1, 2), lambda: run_of(tmp_path / "killed", cfg))
    again = run_of(tmp_path / "killed", cfg)
    one, two = (weights(tmp_path / name) for name in ("straight", "killed"))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    assert again["headline"] == whole["headline"]
    a, b = ({(e.policy, e.seed): e for e in Store.open(tmp_path / name / "dataset").read()} for name in ("straight", "killed"))
    assert a.keys() == b.keys() and all(np.array_equal(a[k].action, b[k].action) for k in a), "the person did the same again"
    books = ("step", "success", "success_helped", "human_share", "takeovers", "prior_steps", "utd_reached", "human_s")
    kept = lambda folder: [[line.get(k) for k in books] for line in read_metrics(folder) if line["stage"] == "hil-serl"]
    assert kept(tmp_path / "straight") == kept(tmp_path / "killed")


def test_what_is_mirrored_is_learned_from(tmp_path: Path) -> None:
    both = [run_of(tmp_path / str(mirrored), tiny(symmetric=mirrored, recall=1, steps=60)) for mirrored in (False, True)]
    assert both[0]["headline"]["transitions"] == both[1]["headline"]["transitions"]
    assert any(not torch.equal(one, two) for one, two in zip(*(weights(tmp_path / str(m)).values() for m in (False, True)), strict=True))


def test_from_pictures_a_killed_run_ends_with_the_same_weights_and_its_policy_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = tiny(sight=SightConfig("rgb", height=32, width=32), policy=GaussianConfig(hidden=(16,), n_obs=2, glance=6, scaled=True), steps=60)
    whole = run_of(tmp_path / "straight", cfg)
    killed_at_saves(monkeypatch, (1,), lambda: run_of(tmp_path / "killed", cfg))
    again = run_of(tmp_path / "killed", cfg)
    one, two = (weights(tmp_path / name) for name in ("straight", "killed"))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one) and again["headline"] == whole["headline"]
    policy, _ = load_policy(tmp_path / "straight/policy")
    assert isinstance(policy, GaussianPolicy) and policy.senses == {"images.wrist": (32, 32, 3)} and policy.cond_dim == 2 * 24 + 6
    found = next(e for e in Store.open(tmp_path / "straight/dataset").read() if e.policy == "hil-serl")
    shown = {key: found.obs[key][None, :2] for key in ("state", "images.wrist")}
    kept = {key: rows[None, :2] for key, rows in Observer(policy, 0).whole(found).items()}
    conds = [policy.encode({key: torch.from_numpy(rows) for key, rows in obs.items()}) for obs in (shown, kept)]
    assert torch.allclose(*conds, atol=1e-4) and float(conds[0][0, -6:].abs().max()) > 0.1, "what is kept of a picture is what acting sees"
    after = run_of(tmp_path / "after", replace(cfg, after=str(tmp_path / "straight"), seed=1, steps=30))
    assert after["headline"]["transitions"] >= 30 and torch.equal(weights(tmp_path / "after")["agent/policy/glance.basis"],
                                                                  one["agent/policy/glance.basis"]), "with the eyes of before"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    with Run(folder, resume=True) as run:
        found = run.read("hil-serl")
    assert found and found[1]["stream"]["human"]["rewarded"] is not None
    tensors: dict[str, torch.Tensor] = {}
    encode({k: v for k, v in found[1].items() if k != "help"}, tensors)
    return tensors


# ---- a hand with a gripper


def test_a_grasp_critic_is_saved_resumed_and_deployed_with_the_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = tiny(task="contact/pick-peg", horizon=60, steps=60, start=20, save_every=20, eval_episodes=1)
    whole = run_of(tmp_path / "straight", cfg)
    killed_at_saves(monkeypatch, (2,), lambda: run_of(tmp_path / "killed", cfg))
    again = run_of(tmp_path / "killed", cfg)
    one, two = (weights(tmp_path / name) for name in ("straight", "killed"))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one) and again["headline"] == whole["headline"]
    assert {"grasp/target", "average/grasp", "agent/policy/grasp.weight0"} <= one.keys()
    policy, _ = load_policy(tmp_path / "straight/policy")
    assert isinstance(policy, GaussianPolicy) and policy.gripper
    assert torch.equal(policy.grasp.weight0.flatten(), one["average/grasp"][: policy.grasp.weight0.numel()])  # type: ignore[union-attr]
    lines = [line for line in read_metrics(tmp_path / "straight") if line["stage"] == "hil-serl"]
    assert {"grasp_loss", "grasp_q", "q"} <= {*lines[-1]}
    found = Store.open(tmp_path / "straight/dataset").read()
    told = np.concatenate([e.proposed[:, -1] for e in found if e.policy == "hil-serl"])
    assert set(np.unique(told)) <= {-1.0, 0.0, 1.0} and len(np.unique(told)) > 1, "no noise in a command, also while it explores"
    by_people = np.concatenate([e.action[e.source == Source.HUMAN, -1] for e in found if e.policy == "hil-serl"])
    assert len(by_people) and set(np.unique(by_people)) <= {-1.0, 0.0, 1.0}, "a button is neither capped nor unsteady"


def test_what_a_grasp_critic_learns_from_and_does_without(tmp_path: Path) -> None:
    """The executed command, whoever gave it; and the arm without it, whose last number is a motion like the others."""
    agent = SAC(GaussianPolicy(GaussianConfig(hidden=(16,)), 2, 2, gripper=True), SACConfig(hidden=(16,), batch=8), seed=0)
    both = [replace(e, action=np.repeat(e.action, 2, 1), proposed=np.repeat(e.proposed, 2, 1))
            for e in (episode("hhhh", succeeded=True, seed=9), episode("pphhp"))]
    made = Memory(agent, both[:1], 0.1, 0.0)
    made.see(moments(both[1:]))
    assert commands(made.online.batch(torch.arange(5)).action).tolist() == [0, 0, 2, 2, 0]
    run_of(tmp_path / "motion", tiny(task="contact/pick-peg", horizon=60, grasp_critic=False, steps=40, eval_episodes=1))
    policy, _ = load_policy(tmp_path / "motion/policy")
    assert isinstance(policy, GaussianPolicy) and not policy.gripper and policy.moves == 7
    run_of(tmp_path / "cloned", tiny(task="contact/pick-peg", horizon=60, learner="hg-dagger", clone_steps=20, steps=40, eval_episodes=1))
    lines = [line for line in read_metrics(tmp_path / "cloned") if line["stage"] == "hil-serl"]
    assert "grasp_imitation_loss" in lines[-1] and "grasp_q" not in lines[-1]
    with pytest.raises(RealrlError, match=r"policy\.chunk is 2, and contact/pick-peg has a gripper, .*--no-grasp-critic"):
        run_of(tmp_path / "chunks", tiny(task="contact/pick-peg", horizon=60, policy=GaussianConfig(chunk=2)))


# ---- a residual on a frozen policy


def base(folder: Path) -> Path:
    """Of a policy for "contact/peg" that plans three actions and looks at two observations; untrained."""
    torch.manual_seed(1)
    policy = DiffusionPolicy(PolicyConfig(chunk=3, n_obs=2, hidden=16, blocks=1), 27, 6)
    save_policy(policy, folder, task="contact/peg")
    return folder


def test_a_residual_is_learned_resumed_and_deployed_with_its_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = tiny(init=str(base(tmp_path / "base")), residual=0.1, steps=60, start=20, save_every=20, eval_episodes=1)
    whole = run_of(tmp_path / "straight", cfg)
    killed_at_saves(monkeypatch, (2,), lambda: run_of(tmp_path / "killed", cfg))
    again = run_of(tmp_path / "killed", cfg)
    one, two = (weights(tmp_path / name) for name in ("straight", "killed"))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one) and again["headline"] == whole["headline"]
    before, after = load_policy(tmp_path / "base")[0], load_policy(tmp_path / "straight/policy")[0]
    assert isinstance(after, ResidualPolicy) and after.scale == 0.1
    kept = after.base.state_dict()
    assert all(torch.equal(kept[k], v) for k, v in before.state_dict().items()), "the base stays as it is"
    assert float(after.net.weight1.abs().max()) > 0, "and what it learned is in the folder"
    assert cli.main(["evaluate", "--policy", str(tmp_path / "straight/policy"), "--episodes", "1", "--out", str(tmp_path / "judged")]) == 0
    with pytest.raises(RealrlError, match=r"corrects one action at a time, got policy\.chunk 2"):
        run_of(tmp_path / "chunks", replace(cfg, policy=GaussianConfig(chunk=2)))
    with pytest.raises(RealrlError, match="was trained on contact/peg, with 27 observation and 6 action numbers, but contact/pick-peg has"):
        run_of(tmp_path / "other", replace(cfg, task="contact/pick-peg"))


def test_what_a_residual_learns_from_is_what_its_base_said_when_it_acted(tmp_path: Path) -> None:
    """Noise of the control loop, plans and corrections included: before anything is learned, an action is the base's and at most 0.2."""
    cfg = tiny(init=str(base(tmp_path / "base")), steps=100, start=10**6, eval_episodes=1)
    made, kept = Memory.see, list[Memory]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Memory, "see", lambda self, found: (kept.append(self), made(self, found))[1])
        run_of(tmp_path / "run", cfg)
    done = [e for e in Store.open(tmp_path / "run/dataset").read() if e.policy == "hil-serl"]
    seen = kept[-1].online.batch(torch.arange(kept[-1].online.steps))
    said, noise = seen.obs["base"][:, -1].numpy(), np.concatenate([e.proposed for e in done]) - seen.obs["base"][:, -1].numpy()
    inside = (np.abs(said) < 0.8) & (np.concatenate([e.source for e in done]) == Source.POLICY)[:, None]
    assert inside.sum() > 50 and 0.09 < np.abs(noise[inside]).mean() < 0.2 and np.abs(noise).max() < 0.2 + 1e-6
    assert any((e.source == Source.HUMAN).any() for e in done)


def test_chunks_are_decisions_from_the_first_step_on(tmp_path: Path) -> None:
    """What was executed, a person's actions among it, is one decision; nothing is drawn before one is whole."""
    cfg = tiny(policy=GaussianConfig(hidden=(16,), norm="layer", chunk=3), start=0, steps=60, eval_episodes=1)
    assert run_of(tmp_path, cfg)["headline"]["transitions"] >= 60
    policy, _ = load_policy(tmp_path / "policy")
    assert policy.chunk == 3
    agent = SAC(GaussianPolicy(GaussianConfig(hidden=(16,), chunk=3), 2, 1), SACConfig(hidden=(16,), batch=8, gamma=0.9), seed=0)
    made = memory(agent, episode("pphhp", succeeded=True))
    rows = made.online.batch(torch.arange(5))
    assert rows.action[1, :, 0].tolist() == [-0.5, 0.5, 0.5] and rows.source[1].tolist() == [0, 1, 1]
    assert rows.reward.tolist() == pytest.approx([0, 0, 0.81, 0.9, 1]) and rows.discount.tolist() == pytest.approx([0.729, 0.729, 0, 0, 0])


def test_imitation_of_the_person_alone(tmp_path: Path) -> None:
    summary = run_of(tmp_path, tiny(learner="hg-dagger", clone_steps=20))
    lines = [line for line in read_metrics(tmp_path) if line["stage"] == "hil-serl"]
    assert "imitation_loss" in lines[-1] and "q" not in lines[-1] and summary["headline"]["utd"] == pytest.approx(2.0)
    with pytest.raises(OutOfBounds, match="sight is 'pointcloud': actor and critics look at the state or at pictures"):
        tiny(sight=SightConfig("pointcloud"))
    with pytest.raises(OutOfBounds, match="symmetric knows the state alone, and sight is rgb"):
        tiny(sight=SightConfig("rgb"), symmetric=True)
    with pytest.raises(OutOfBounds, match="hg-dagger imitates a person's corrections, and human is 'none'"):
        tiny(learner="hg-dagger", human="none")


def test_what_is_deployed_begins_with_the_clone(tmp_path: Path) -> None:
    """Not with the untaught actor, of which two thirds would be left after 200 steps."""
    run_of(tmp_path, tiny(human="none", clone_steps=20, steps=1, start=10**6))
    saved, agent = load_policy(tmp_path / "policy")[0], SAC(GaussianPolicy(tiny().policy, 27, 6), tiny().sac, seed=0)
    with Run(tmp_path, resume=True) as run:
        run.load("hil-serl", agent=agent)
    assert isinstance(saved, GaussianPolicy) and agent.step == 20
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), agent.policy.parameters(), strict=True))


def test_a_classifier_may_say_when_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends practice, by what the robot itself sees; the simulator goes on until then, and still judges the evaluation."""
    model = Classifier({"state": (27,)}, ClassifierConfig(hidden=(), frames=2))
    weight = torch.zeros(1, 27)
    weight[0, 2] = 100.0  # how deep the tip seems to be, in units of 20 mm
    model.load_state_dict({**model.state_dict(), "net.0.weight": weight, "net.0.bias": torch.tensor([-100.0])})
    save(model, audit(model, Labelled(torch.zeros(2, 27), np.array([0, 1]), np.array([0, 1]))), tmp_path / "seated")
    cfg = tiny(reward=str(tmp_path / "seated"), horizon=60, steps=150, operator=OperatorConfig(patience=2, cap=1.0))
    notes = kept_notes(monkeypatch)
    summary = run_of(tmp_path / "run", cfg)
    done = [e for e in Store.open(tmp_path / "run/dataset").read() if e.policy == "hil-serl"]
    won = [e for e in done if e.succeeded]
    assert won and all(e.terminated and e.reward.sum() == 1.0 for e in won)
    for e in won:
        seen = e.obs["state"][1:, 2] > 1.0
        assert seen[-2:].all() and not (seen[:-2] & seen[1:-1]).any(), "two frames in a row, and not before"
        assert -e.obs["privileged"][-1, 33] < -0.018, "beyond the depth at which the simulator would have ended it"
    assert all(e.truncated and not e.reward.any() for e in done if not e.succeeded)
    shown = {n.split("success seen by ")[1].split(";")[0] for n in notes}
    assert "1.00 of 0.50" in shown and "0.00 of 0.50" in shown
    assert summary["headline"]["episodes"] == 3


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--steps 40 --start 20 --horizon 20 --demos 2 --sac.batch 8 --sac.hidden 16 --policy.hidden 16 --eval-episodes 2 "
             "--collect.workers 1")
    folder = tmp_path / "run"
    assert cli.main(["train", "hil-serl", "--run", str(folder), "--human", "none", *flags.split()]) == 0
    assert json.loads((folder / "summary.json").read_text())["headline"]["human_s"] == 0
    assert cli.main(["train", "hil-serl", "--run", str(tmp_path / "typed"), "--human", "keyboard", *flags.split()]) == 2
    assert "needs a terminal to type in" in capsys.readouterr().err


# ---- what the person is told


@pytest.mark.parametrize("trials, said", [
    ([], "let it try, help where it gets stuck"),
    ([Trial(100, 10, 1, False)] * 8 + [Trial(30, 10, 1, True)] * 2, "too few rewarded episodes: help it finish"),
    ([Trial(30, 20, 1, True)] * 10, "you do most of it: shorter corrections"),
    ([Trial(60, 10, 2, True)] * 10, "let it try 20 to 30 steps"),
    ([Trial(60, 10, 2, True)] * 10 + [Trial(20, 0, 0, True)] * 10, "it succeeds alone"),
    ([Trial(20, 0, 0, True)] * 12 + [Trial(60, 10, 2, True)], "let it try 20 to 30 steps"),
])
def test_advice(trials: list[Trial], said: str) -> None:
    assert advice(trials).startswith(said)


def kept_notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines beside the bar, as they come."""
    notes: list[str] = []
    note = hil_serl.Pen.note
    monkeypatch.setattr(hil_serl.Pen, "note", lambda self, found: (notes.append(note(self, found)), notes[-1])[1])
    return notes


def test_the_note_says_who_acts_and_how_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = kept_notes(monkeypatch)
    run_of(tmp_path, tiny())
    assert {n.split()[0] for n in notes} == {"policy", "human"}
    assert "updates a step 2.0 of 2" in notes[-1] and "solved alone" in notes[-1] and "human" in notes[-1]


class Opinion:
    """Critics that say what they are told to."""

    def __init__(self, *worth: float) -> None:
        self.left = list(worth)

    def worth(self, count: int) -> torch.Tensor:
        return torch.tensor([self.left.pop(0) for _ in range(count)])


def moment(first: bool, source: Source = Source.POLICY) -> Moment:
    zero = np.zeros(1, np.float32)
    return Moment(Step({}, zero, zero, source, 0.0, False, False, False, 0.0), {}, 0, first)


def test_the_robot_asks_for_help_where_its_value_does_not_rise(tmp_path: Path) -> None:
    cfg = tiny(help_after=4)
    rising, flat = [0.2 * cfg.sac.gamma ** -i for i in range(8)], [0.2] * 8
    help, said = Help(cfg.help_after, cfg.sac.gamma, Opinion(*rising, *flat, 0.2, *flat).worth), []
    for i in range(8 + 8 + 1 + 8):
        human = i == 16
        help.see([moment(i in (0, 8), Source.HUMAN if human else Source.POLICY)])
        said.append(help.asks)
    assert said == [False] * 8 + [False] * 4 + [True] * 4 + [False] + [False] * 3 + [True] * 5
    assert help.asked == 2
    summary = run_of(tmp_path, tiny(help_after=3, steps=200))
    asked = [line["asked_for_help"] for line in read_metrics(tmp_path) if "asked_for_help" in line]
    assert 0 < summary["headline"]["takeovers"] <= asked[-1], "who is asked comes only then"
    with pytest.raises(OutOfBounds, match=r"help_after is above 0, and with stream\.realtime nobody"):
        tiny(help_after=3, stream=StreamConfig(realtime=True))


def test_it_learns_to_insert(tmp_path: Path, long: bool) -> None:
    """From twenty demonstrations and a person's corrections to a policy that hardly ever fails."""
    if not long:
        pytest.skip("minutes: asked for with --long")
    head = run_of(tmp_path, HILConfig(steps=12_000, eval_episodes=100, collect=ONE))["headline"]
    assert head["success"] > 0.9 and head["cycle_ratio"] < 1 and head["human_share"] < 0.2
