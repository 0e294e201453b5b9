"""Learning to walk: the wiring of the loop, the same weights after a kill, what the headline says; and, in the long ring, that it walks."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from realrl import config, envs
from realrl.algos.admittance import AdmittanceConfig
from realrl.algos.walk import Gait, Price, WalkConfig, charged, followed, headline, measured, preset, recommanded, rhythm, train
from realrl.cell.cell import WorkCell
from realrl.checkpoint import encode
from realrl.cli import main as cli
from realrl.config import OutOfBounds
from realrl.data.store import Store
from realrl.envs.quadruped import commands, motion
from realrl.learn.practice import Earlier
from realrl.learn.replay import Replay
from realrl.learn.sac import DROQ, PRESETS, SAC
from realrl.policies.folder import load_policy
from realrl.run import Run
from realrl.scene import CollectConfig, RandomiseConfig, SightConfig
from realrl.types import Batch, Episode, Moment, RealrlError, Source, Step
from toy_runs import killed_at_saves, metrics

ONE = CollectConfig(workers=1, envs_per_worker=4)


def tiny(algorithm: str = "crossq", **changes: Any) -> WalkConfig:
    """Enough for the wiring; nothing walks after ten seconds."""
    cfg = preset(algorithm)
    few = min(cfg.sac.utd, 4)
    sac = replace(cfg.sac, utd=few, policy_delay=few, batch=8, hidden=(16,), warmup=20)
    return replace(cfg, sac=sac, policy=replace(cfg.policy, hidden=(16,), warmup=20), collect=ONE,
                   horizon=40, steps=180, random_steps=60, save_every=40, log_every=50, eval_episodes=2, **changes)


def run_of(folder: Path, cfg: WalkConfig) -> dict[str, Any]:
    with Run.start(folder, cfg, resume=True) as run, WorkCell(run, cfg) as cell:
        return train(cfg, cell)


def test_updates_that_are_no_numbers_end_the_run_before_the_robot_hears_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = SAC.update

    def poisoned(self: SAC, batch: Batch) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            if self.step > 8:
                self.actor_weights.value.fill_(float("inf"))
        return usual(self, batch)

    monkeypatch.setattr(SAC, "update", poisoned)
    with pytest.raises(RealrlError, match="learning diverged"):
        run_of(tmp_path, tiny())


@pytest.mark.parametrize("algorithm", list(PRESETS))
def test_it_learns_while_it_walks(algorithm: str, tmp_path: Path) -> None:
    cfg = tiny(algorithm)
    summary = run_of(tmp_path, cfg)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    head = summary["headline"]
    assert head["utd"] == head["utd_asked"] == cfg.sac.utd and head["steps_to_half_mps"] is None
    assert abs(head["speed_mps"]) < 1 and 0 <= head["net_of_path"] <= 1 and head["wall_min"] > 0
    assert head["noisy_action_change"] > head["action_change"] + 0.05, "judged with its noise, too"
    assert [s["name"] for s in summary["stages"]] == ["walk", "walk-noisy"] and summary["env_steps"] >= cfg.steps
    policy, task = load_policy(tmp_path / "policy")
    assert task == cfg.task and policy.name == "walk" and policy.cfg == cfg.policy
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [50, 100, 150, 200]
    wanted = "speed falls_per_minute entropy alpha q critic_loss actor_loss updates_per_s utd_reached"
    assert {*wanted.split()} <= {*lines[-1]}
    assert "q" not in lines[0], "nothing is learned from the random steps alone"
    actions = np.concatenate([e.action for e in Store.open(tmp_path / "dataset").read()])
    assert abs(np.abs(actions[:60]).mean() - 0.5) < 0.05, "it begins with even noise"


def test_a_killed_run_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = tiny()
    whole = run_of(tmp_path / "straight", cfg)
    killed_at_saves(monkeypatch, (3, 1, 2), lambda: run_of(tmp_path / "killed", cfg))
    again = run_of(tmp_path / "killed", cfg)
    one, two = (weights(tmp_path / name) for name in ("straight", "killed"))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    clock = {"wall_min", "minutes_to_half_mps"}
    assert all(again["headline"][k] == v for k, v in whole["headline"].items() if k not in clock)
    a, b = (sorted(Store.open(tmp_path / name / "dataset").read(), key=lambda e: e.seed or 0) for name in ("straight", "killed"))
    assert len(a) == len(b) and all(np.array_equal(x.action, y.action) for x, y in zip(a, b, strict=True)), "nothing twice"
    keep = lambda folder: [{k: v for k, v in line.items() if k in ("step", "utd_reached", "episodes")} for line in metrics(folder)]
    assert keep(tmp_path / "straight") == keep(tmp_path / "killed")


def test_it_goes_on_from_an_earlier_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = replace(tiny(), steps=60, random_steps=30, eval_episodes=1)
    run_of(tmp_path / "first", first)
    before = Store.open(tmp_path / "first" / "dataset").frames
    more = replace(first, after=str(tmp_path / "first"), steps=30, save_every=10, horizon=10,
                   random_steps=10**6, randomise=RandomiseConfig(push=5.0, push_every=1.0))
    drawn_from, handed, drawn, handing = Replay.sample, [], [], Earlier.hand_over

    def spy(self: Replay, *args: Any) -> Batch:
        drawn.append(self.steps)
        return drawn_from(self, *args)

    def told(self: Earlier, agent: Any, *args: Any) -> None:
        handing(self, agent, *args)
        tensors: dict[str, torch.Tensor] = {}
        encode({"agent": agent.state_dict()}, tensors)
        handed.append(tensors)
    monkeypatch.setattr(Replay, "sample", spy)
    monkeypatch.setattr(Earlier, "hand_over", told)
    summary = run_of(tmp_path / "straight", more)
    old = weights(tmp_path / "first")
    assert all(torch.equal(old[k], v) for k, v in handed[0].items()), "as it was, optimisers and all"
    assert drawn[0] == before + 1 and len(drawn) == summary["env_steps"] and summary["headline"]["utd"] == 1.0, "at once, and from all"
    killed_at_saves(monkeypatch, (1, 1), lambda: run_of(tmp_path / "killed", more))
    run_of(tmp_path / "killed", more)
    one, two = (weights(tmp_path / name) for name in ("straight", "killed"))
    assert all(torch.equal(one[k], two[k]) for k in one)
    with pytest.raises(RealrlError, match=r"--after .*first: what it learned .*--config .*first/config\.yaml.* part 'agent' does not fit"):
        run_of(tmp_path / "other", replace(more, policy=replace(more.policy, hidden=(8,))))
    with pytest.raises(RealrlError, match=r"--after .*nowhere: there is no checkpoint 'walk' in it"):
        run_of(tmp_path / "none", replace(more, after=str(tmp_path / "nowhere")))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    with Run(folder, resume=True) as run:
        found = run.read("walk")
    assert found
    tensors: dict[str, torch.Tensor] = {}
    encode({k: found[1][k] for k in ("agent", "stream")}, tensors)
    return tensors


# ---- how it walks


def fake(speeds: list[float], *, fell: bool = False) -> Episode:
    """An upright robot with these speeds along where it shall go."""
    state = np.zeros((len(speeds) + 1, 47), np.float32)
    state[1:, 27], state[:, 32], state[:, 33] = speeds, -1.0, 1.0
    n = len(speeds)
    action = np.zeros((n, 12), np.float32)
    action[1::2] = 0.5
    state[1:, -12:] = action  # what the servos got is observed
    return Episode({"state": state}, action, action, np.zeros(n, np.uint8), np.zeros(n, np.float32), np.zeros(n, bool), np.arange(n) * 0.05,
                   np.ones(n, bool), fell, not fell, "quadruped/go1", "walk", 1)


def test_what_an_episode_says_of_the_gait() -> None:
    found = measured(fake([1.0] * 20 + [-0.5] * 20, fell=True), 0.05)
    assert found == pytest.approx({"speed": 0.25, "fell": 1.0, "seconds": 2.0, "net": 0.5, "path": 1.5, "change": 0.5, "hz": 10.0,
                                   "sine": 0.25 * math.sqrt(2) * 4 / math.pi})
    told = {"measured": found}
    gait, agent = Gait(0.05), type("Agent", (), {"step": 0})()
    head = headline(WalkConfig(), {"stages": [{"name": "walk", **told}, {"name": "walk-noisy", **told}]}, agent, gait)
    assert (head["speed_mps"], head["falls_per_minute"], head["net_of_path"]) == (0.25, 30.0, 0.3333)


def test_how_commands_are_followed() -> None:
    """Two commands: the first is followed by its end, the second forward only by half; then the robot falls, or does not."""
    state = np.zeros((151, 48), np.float32)
    state[:, 32] = -1.0
    state[:100, 33:36] = 0.5, 0.0, -0.5
    state[100:, 33:36] = 0.4, 0.3, 0.0
    state[51:101, 27:30] = 0.45, 0.05, 0.0
    state[51:101, 26] = -0.45 / 10
    state[101:, 27:30] = 0.4, 0.15, 0.0
    action = np.zeros((150, 12), np.float32)
    walks, falls = (Episode({"state": state}, action, action, np.zeros(150, np.uint8), np.zeros(150, np.float32), np.zeros(150, bool),
                            np.arange(150) * 0.05, np.ones(150, bool), fell, not fell, "quadruped/go1-command", "walk", 1)
                    for fell in (False, True))
    found = followed(walks, 0.05)
    assert found == pytest.approx({"followed": 0.5, "forward_off": 0.025, "left_off": 0.1, "turning_off": 0.025})
    walks.obs["state"][101:, 28] = 0.25
    assert followed(walks, 0.05)["followed"] == 1.0 and followed(falls, 0.05)["followed"] == 0.5, "a fall follows nothing"
    told = {"measured": measured(walks, 0.05)}
    head = headline(WalkConfig(), {"stages": [{"name": "walk", **told}, {"name": "walk-noisy", **told}]},
                    type("Agent", (), {"step": 0})(), Gait(0.05))
    assert (head["followed"], head["noisy_turning_off_radps"], head["left_off_mps"]) == (1.0, 0.025, 0.05)


def under(commands: Any, actions: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(observations [T + 1, 1, 48], rewards [T]) of a robot that does the same whatever it is commanded, one command a step."""
    env: Any = envs.make("quadruped/go1-command")
    obs, rewards = [env.reset(seed=1, options={"command": commands[0]})[0]["state"]], []
    for action, command in zip(actions, commands, strict=True):
        env._command = np.array(command)
        seen, reward, *_ = env.step(action)
        obs.append(seen["state"])
        rewards.append(reward)
    return torch.tensor(np.stack(obs))[:, None], torch.tensor(rewards, dtype=torch.float32)


@pytest.mark.parametrize(("command", "size"), [((0.2, 0.0, 0.0), 0.3), ((0.8, -0.3, 0.8), 0.6)])
def test_another_command_pays_what_the_task_would_have_paid(command: tuple[float, ...], size: float) -> None:
    n, random = 60, torch.Generator()
    actions = size * np.random.default_rng(0).uniform(-1, 1, (n, 12))
    states, reward = under([command] * n, actions)
    batch = Batch({"state": states[:-1]}, torch.zeros(n, 1, 12), reward, torch.ones(n), {"state": states[1:]},
                  torch.ones(n, 1, dtype=torch.bool), torch.zeros(n, 1))
    assert recommanded(batch, 0.0, random.manual_seed(0), commands("quadruped/go1-command")).reward.equal(reward)
    found = recommanded(batch, 0.75, random.manual_seed(0), commands("quadruped/go1-command"))
    asked, known = found.obs["state"][:, 0, 33:36], reward > 0
    drawn = (asked != batch.obs["state"][:, 0, 33:36]).any(-1)
    assert 30 < drawn.sum() < 57 and found.obs["state"][..., 33:36].equal(found.next_obs["state"][..., 33:36])
    assert batch.obs["state"].equal(states[:-1]) and found.reward[~drawn].equal(reward[~drawn])
    off = found.reward - under(asked.tolist(), actions)[1]
    assert (drawn & known).sum() > 10 and off[drawn & known].abs().max() < 1e-3, "to the cent"
    if size > 0.4:
        assert (drawn & ~known).sum() > 5 and off[drawn & ~known].abs().mean() < 0.6, "of 10: only the torques are guessed"


def test_what_a_gait_needs_is_told_from_jitter() -> None:
    """A sine of 2.5 Hz and size 0.4 changes by 0.4 * 2 sin(pi / 8) * 2 / pi a step; jitter adds to what is measured."""
    t = np.arange(400) * 0.05
    sine = 0.4 * np.sin(2 * np.pi * 2.5 * t[:, None] + np.arange(12))
    wanted = 0.4 * 2 * math.sin(math.pi / 8) * 2 / math.pi
    assert rhythm(sine, 0.05) == pytest.approx((2.5, wanted))
    jitter = sine + 0.2 * (-1.0) ** np.arange(400)[:, None]
    hz, smooth = rhythm(jitter, 0.05)
    assert hz == 2.5 and smooth < 1.3 * wanted and np.abs(np.diff(jitter, axis=0)).mean() > 2 * wanted


def test_walking_begins_with_five_seconds_of_half_a_metre_in_one_episode() -> None:
    gait = Gait(0.05)
    gait.remember([fake([0.6] * 99), fake([0.6] * 99, fell=True)])
    assert gait.first is None and gait.falls == 1, "two halves of two episodes are no five seconds"
    gait.remember([fake([0.0] * 20 + [0.55] * 100)])
    assert gait.first == 2 * 99 + 20 + 91, "the first step at which the mean of 100 is 0.5: 91 of them at 0.55, nine at rest"
    again = Gait(0.05)
    again.load_state_dict({"seconds": 9.0, "first_s": 4.0})
    again.remember([fake([0.0] * 100)])
    assert again.seconds == 9.0
    again.remember([fake([0.0] * 500)])
    assert again.seconds == pytest.approx(499 * 0.05), "the clock went on while nobody wrote a checkpoint"
    episode = fake([0.55] * 100)
    steps = [Step({}, a, a, Source.POLICY, 0.0, False, False, False, 0.0) for a in episode.action]
    again.see([Moment(s, {"state": x}, 1, i == 0) for i, (s, x) in enumerate(zip(steps, episode.obs["state"][1:], strict=True))])
    assert (again.first, again.first_s) == (700, 4.0), "when it was is in the checkpoint"


# ---- what a change of the action costs


def test_a_change_of_the_action_is_charged_by_hand_computed_numbers() -> None:
    """0.5 more in every joint and a price of 2: 10 * 2 * 0.25 = 5 off, never below zero, and what was below stays."""
    before, after = torch.zeros(4, 1, 47), torch.zeros(4, 1, 47)
    before[:, 0, -12:], after[:, 0, -12:], after[:, 0, :35] = 0.25, 0.75, 9.0  # only the action counts
    after[3, 0, -12:] = torch.tensor([0.25] * 6 + [1.25] * 6)  # a whole one, in half of the joints
    reward, none = torch.tensor([8.0, 3.0, -1.0, 12.0]), torch.zeros(4)
    batch = Batch({"state": before}, torch.zeros(4, 1, 12), reward, none, {"state": after}, none, none)
    assert charged(batch, 12, 2.0).reward.tolist() == [3.0, 0.0, -1.0, 2.0]
    assert charged(batch, 12, 0.0) is batch and reward.tolist() == [8.0, 3.0, -1.0, 12.0], "what is stored stays"


def test_the_price_rises_with_speed_to_spare_and_falls_with_too_little() -> None:
    price = Price(1.0, 0.05)
    price.follow(0.6)
    assert price.now == pytest.approx(0.3 * (1 + 0.3 * 0.1 * 0.05)), "three hundredths a second for a tenth of a m/s"
    for _ in range(20 * 60):
        price.follow(2.0)
    assert price.now == 1.0, "no more than was said"
    price.follow(0.0)
    assert price.now == pytest.approx(1 - 0.04 * 0.05), "at most four hundredths a second, down as up"
    for _ in range(20 * 60):
        price.follow(0.0)
    assert price.now == 0.3, "it is never given up"
    little = Price(0.1, 0.05)
    little.follow(0.5)
    assert little.now == 0.1


def test_nothing_is_charged_before_it_walks_and_the_recording_says_what_then() -> None:
    gait = Gait(0.05, 1.0)
    gait.remember([fake([0.6] * 99), fake([0.2] * 200)])
    assert gait.price.now == 0.0
    gait.remember([fake([0.6] * 100)])
    at = gait.price.now
    assert at > 0.3
    gait.remember([fake([0.9] * 99)])
    assert gait.price.now == at, "five seconds of one episode have to be seen"
    gait.remember([fake([0.4] * 300)])
    live = Gait(0.05, 1.0)
    for episode in (fake([0.6] * 99), fake([0.2] * 200), fake([0.6] * 100), fake([0.9] * 99), fake([0.4] * 300)):
        steps = [Step({}, a, a, Source.POLICY, 0.0, False, False, False, 0.0) for a in episode.action]
        live.see([Moment(s, {"state": x}, 1, i == 0) for i, (s, x) in enumerate(zip(steps, episode.obs["state"][1:], strict=True))])
    assert live.price.now == gait.price.now < at, "the same from memory"


def test_a_priced_run_is_the_same_until_it_walks_and_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free, never = (replace(tiny(), steps=100, random_steps=40, save_every=20, price=price) for price in (0.0, 1.0))
    run_of(tmp_path / "free", free)
    run_of(tmp_path / "never", never)
    one, two = (weights(tmp_path / name) for name in ("free", "never"))
    assert all(torch.equal(one[k], two[k]) for k in one), "who does not walk pays nothing"
    monkeypatch.setattr("realrl.algos.walk.SPEED", -10.0)  # anything is walking
    monkeypatch.setattr("realrl.algos.walk.LAST", 0.5)
    run_of(tmp_path / "straight", never)
    killed_at_saves(monkeypatch, (3, 1, 2), lambda: run_of(tmp_path / "killed", never))
    run_of(tmp_path / "killed", never)
    one, three, four = (weights(tmp_path / name) for name in ("free", "straight", "killed"))
    assert not all(torch.equal(one[k], three[k]) for k in one) and all(torch.equal(three[k], four[k]) for k in three)
    assert [line["price"] > 0.3 for line in metrics(tmp_path / "straight")] == [True] * len(metrics(tmp_path / "straight"))


@pytest.mark.parametrize("task", ["go1", "go1-paper", "go1-command"])
def test_the_observation_tells_what_the_simulator_knows(task: str) -> None:
    env = envs.make(f"quadruped/{task}")
    obs, _ = env.reset(seed=3)
    rng, states, told = np.random.default_rng(0), [], []
    for t in range(60):
        swing = np.sin(0.8 * t + np.repeat([0, np.pi, np.pi, 0], 3)) * np.tile([0.2, 0.7, 0.5], 4)
        obs, _, terminated, truncated, info = env.step((swing + rng.normal(0, 0.1, 12)).clip(-1, 1).astype(np.float32))
        states.append(obs["state"])
        told.append(info)
        if terminated or truncated:
            break
    speed, over = motion(np.stack(states), 0.05)
    assert np.allclose(speed, [i["speed"] for i in told], atol=1e-5) and np.abs(speed).max() > 0.05
    place = np.linalg.norm(over.sum(0) * 0.05)
    assert abs(place - told[-1]["net"]) < 0.1 * told[-1]["path"], "the simulator's place, but for what lies between two readings"
    env.close()


# ---- asked wrongly


def test_algorithms_are_one_flag_apart() -> None:
    assert WalkConfig() == preset("crossq") and preset("droq").sac == DROQ
    with pytest.raises(OutOfBounds, match=r"algorithm is 'droq', but sac\.norm is 'renorm'"):
        WalkConfig(algorithm="droq")
    with pytest.raises(OutOfBounds, match=r"price charges single steps: it needs sac\.n_step 1 and policy\.chunk 1, got 1 and 2"):
        WalkConfig(price=1.0, policy=replace(preset("crossq").policy, chunk=2))
    with pytest.raises(OutOfBounds, match="learned from nothing"):
        WalkConfig(data="somewhere")
    with pytest.raises(OutOfBounds, match="recall is 2: a walker's state ends with its last action already"):
        WalkConfig(recall=2)
    from realrl.cli.train import _method
    cls, _, default = _method("walk", ["--algorithm", "droq", "--sac.utd", "10"])
    cfg = config.parse(cls, ["--algorithm", "droq", "--sac.utd", "10"], prog="", description="", default=default)
    assert cfg == replace(preset("droq"), sac=replace(DROQ, utd=10))
    assert _method("walk", ["--algorithm=sac"])[2] == preset("sac") and _method("walk", ["--algorithm", "magic"])[2] is None


@pytest.mark.parametrize("kind", [WalkConfig, AdmittanceConfig])
def test_who_looks_at_the_state_alone_is_given_no_eyes(kind: Any) -> None:
    with pytest.raises(OutOfBounds, match=r"sight is 'depth': .* looks? at the state alone, leave it out"):
        kind(sight=SightConfig(kind="depth"))


def test_from_the_command_line_to_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--steps 100 --random-steps 40 --horizon 40 --sac.batch 8 --sac.hidden 16 --policy.hidden 16 --eval-episodes 2 --no-film"
    folder = tmp_path / "run"
    assert cli.main(["train", "walk", "--run", str(folder), "--collect.workers", "1", *flags.split()]) == 0
    assert "walk-noisy" in capsys.readouterr().out and not (folder / "film").exists()
    (folder / "film").mkdir()
    (folder / "film" / "episodes-1.mp4").touch()
    assert cli.main(["train", "walk", "--run", str(folder), "--resume"]) == 0, "with its own configuration"
    page = (folder / "report.html").read_text()
    assert '<video src="film/episodes-1.mp4"' in page and json.loads((folder / "summary.json").read_text())["headline"]["speed_mps"] < 1


def test_commands_are_learned_step_by_step(tmp_path: Path) -> None:
    cfg = replace(tiny(), task="quadruped/go1-command", steps=40, random_steps=20, horizon=20, eval_episodes=1)
    head = run_of(tmp_path / "run", cfg)["headline"]
    assert 0 <= head["followed"] <= 1 and head["forward_off_mps"] > 0 and head["noisy_turning_off_radps"] > 0
    with pytest.raises(RealrlError, match=r"recommand is of single steps, sac\.n_step is 3 and policy\.chunk 1: give --recommand 0"):
        run_of(tmp_path / "chunks", replace(cfg, sac=replace(cfg.sac, n_step=3)))


def test_who_does_not_tell_its_speed_gets_a_line(tmp_path: Path) -> None:
    for task, size in (("toy/obstacle", 2), ("quadruped/go1-from-back", 42)):
        with pytest.raises(RealrlError, match=rf"an observation of {size} numbers tells no speed: take a .* from-back .*train daydreamer"):
            run_of(tmp_path / str(size), tiny(task=task))


def test_it_walks(tmp_path: Path, long: bool) -> None:
    """From nothing to half a metre a second."""
    if not long:
        pytest.skip("a minute: asked for with --long")
    cfg = replace(WalkConfig(), steps=6000, collect=ONE, eval_episodes=4)
    head = run_of(tmp_path, cfg)["headline"]
    assert head["steps_to_half_mps"] is not None and head["noisy_speed_mps"] > 0.4 and head["falls_per_minute"] < 5
