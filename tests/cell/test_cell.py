"""The work cell: nothing is collected twice, nothing finished is lost, and the summary says what was done."""

import contextlib
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from realrl import envs
from realrl.cell.cell import WorkCell, recorded_demonstrations
from realrl.cell.evaluate import HELD_OUT
from realrl.cell.judge import latency
from realrl.data.store import Store
from realrl.data.views import ChunkView
from realrl.learn.imitation import Imitation, ImitationConfig, imitate, worthy
from realrl.policies.diffusion import DiffusionPolicy
from realrl.run import Run, read_metrics
from realrl.scene import CollectConfig, Scene, device
from realrl.types import RealrlError, Source, TaskSpec
from toy_runs import small_policy

LOCAL = CollectConfig(workers=1, envs_per_worker=5)


@pytest.fixture
def cell(tmp_path):
    with open_cell(tmp_path) as made:
        yield made


@contextlib.contextmanager
def open_cell(folder, task="toy/obstacle", **scene):
    with Run(folder, resume=True) as run, WorkCell(run, Scene(task=task, **{"collect": LOCAL, "demo_noise": 1.0, **scene})) as made:
        yield made


def policy(seed=0):
    torch.manual_seed(seed)
    return DiffusionPolicy(small_policy(), 2, 2).eval()


def bits(episodes):
    return [(e.seed, e.policy, e.action.tobytes(), e.obs["state"].tobytes()) for e in episodes]


def broken_after(cell, count, error=KeyboardInterrupt):
    """Let the collector be interrupted once, after `count` episodes; returns the seeds it was asked for, call by call."""
    collect, asked, left = cell.collector.collect, [], [count]

    def collecting(policy, seeds, **options):
        asked.append(list(seeds))
        for i, episode in enumerate(collect(policy, seeds, **options)):
            if left and i == left[0]:
                left.clear()
                raise error
            yield episode

    cell.collector.collect = collecting
    return asked


# -- collection -------------------------------------------------------------------------------------------------------------------


def test_episodes_come_in_the_order_of_their_starts_and_are_recorded(cell):
    seeds = [9, 2, 30, 4, 17, 8, 1]
    out = cell.practise("trial", policy(), seeds, noise_seed=3)
    assert [e.seed for e in out] == seeds and {e.policy for e in out} == {"trial"}
    stored = cell.book.store.read(list(cell.book.recorded("trial").values()))
    assert sorted(bits(stored)) == sorted(bits(out)) and set(cell.book.recorded("trial")) == set(seeds)
    assert cell.book.recorded("other") == {} and all(set(e.source) == {Source.POLICY} for e in out)
    scripted = cell.practise("shown", envs.expert("toy/obstacle"), [1], source=Source.SCRIPT)
    assert set(scripted[0].source) == {Source.SCRIPT}, "the same start under another label is another episode"
    assert cell.summary["env_steps"] == cell.book.store.frames == sum(map(len, out + scripted))


def test_an_interruption_keeps_what_is_finished_and_the_rest_is_added(tmp_path):
    with open_cell(tmp_path / "whole") as whole:
        expected = whole.practise("trial", policy(), range(30), noise_seed=3)
    with pytest.raises(KeyboardInterrupt), open_cell(tmp_path / "parts") as cell:
        broken_after(cell, 23)
        cell.practise("trial", policy(), range(30), noise_seed=3)
    assert len(Store.open(tmp_path / "parts" / "dataset")) == 23, "twenty in a group, and the three since"
    with open_cell(tmp_path / "parts") as cell:
        asked = broken_after(cell, 99)
        out = cell.practise("trial", policy(), range(30), noise_seed=3)
        assert len(asked[0]) == 7 and bits(out) == bits(expected)
        assert cell.practise("trial", policy(), range(30), noise_seed=3)[0].seed == 0 and asked[1] == []
        assert cell.summary["env_steps"] == cell.book.store.frames == sum(map(len, expected))


def test_an_interruption_just_after_an_append_records_nothing_twice(tmp_path, monkeypatch):
    append = Store.append

    def interrupted(self, episodes):
        append(self, episodes)
        monkeypatch.setattr(Store, "append", append)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_cell(tmp_path) as cell:
        monkeypatch.setattr(Store, "append", interrupted)
        cell.practise("trial", policy(), range(30), noise_seed=3)
    with open_cell(tmp_path) as cell:
        cell.practise("trial", policy(), range(30), noise_seed=3)
        assert sorted(e.seed for e in cell.book.store.read()) == list(range(30))


def test_chains_are_kept_beside_the_recording_and_read_back(tmp_path):
    with open_cell(tmp_path) as cell:
        first = cell.practise("online", policy(), range(12), chains=True)
    with open_cell(tmp_path) as cell:
        asked = broken_after(cell, 99)
        again = cell.practise("online", policy(), range(15), chains=True)
        assert asked == [[12, 13, 14]] and bits(again[:12]) == bits(first) and len(cell.book.store) == 15
        assert all(np.array_equal(a.extra["chain"], b.extra["chain"]) for a, b in zip(again, first, strict=False))
        assert all(len(e.extra["chain"]) == e.starts_plan.sum() for e in again) and again[0].extra["chain"].shape[1:] == (6, 2, 2)
        assert not cell.practise("online", policy(), range(12))[0].extra, "only who asks for them gets them"
        (cell.book.dir / "derived/chains/online/000001.safetensors").unlink()
        with pytest.raises(RealrlError, match="start 0 carried is not there; restore the folder"):
            cell.practise("online", policy(), range(12), chains=True)


def test_steps_are_counted_as_if_nothing_had_been_interrupted(tmp_path):
    """A resumed run that goes back to a label before the newest reports the steps up to that label."""
    with open_cell(tmp_path) as cell:
        steps = []
        for label in ("a", "b", "c"):
            cell.practise(label, policy(), range(6), chains=True)
            steps.append(cell.summary["env_steps"])
    with open_cell(tmp_path) as cell:
        assert cell.summary["env_steps"] == steps[2]
        cell.practise("b", policy(), range(6), chains=True)
        assert cell.summary["env_steps"] == steps[1]
        cell.practise("b", policy(), [], chains=True)
    assert json.loads((tmp_path / "summary.json").read_text())["env_steps"] == steps[2]


def test_recent_episodes_do_not_depend_on_who_came_first(tmp_path):
    """Worker processes finish in any order; what is learned from must not."""
    found = []
    for name, order in (("one", [0, 1, 2, 3]), ("two", [3, 1, 0, 2])):
        with open_cell(tmp_path / name) as cell:
            old, new = (list(cell.collector.collect(policy(), range(first, first + 4), greedy=True)) for first in (500, 100))
            for label, episodes in (("old", old), ("new", new)):
                for e in episodes:
                    e.policy = label
                cell.book.store.append([sorted(episodes, key=lambda e: e.seed)[i] for i in order])
            found.append(cell.recent(6))
    assert [(e.policy, e.seed) for e in found[0]] == [("old", 502), ("old", 503), *(("new", 100 + i) for i in range(4))]
    assert bits(found[0]) == bits(found[1])


def test_starts_never_meet(tmp_path):
    """Between stages, rounds, run seeds and every evaluation."""
    seen = set()
    for seed in (0, 1, 7):
        with open_cell(tmp_path / str(seed), seed=seed) as cell:
            for stage in (0, 1, 5):
                for first in (0, 100):
                    starts = cell.seeds(stage, 100, first)
                    assert len(starts) == 100 and not seen & set(starts) and max(starts) < HELD_OUT
                    seen |= set(starts)


# -- demonstrations ---------------------------------------------------------------------------------------------------------------


def test_demonstrations_are_successes_and_failures_are_kept(tmp_path):
    with open_cell(tmp_path, demos=8) as cell:
        _demonstrate(cell)


def _demonstrate(cell):
    good = cell.demonstrations()
    stored = cell.book.store.read()
    assert len(good) == 8 and all(e.succeeded for e in good)
    assert len(stored) > 8 and not all(e.succeeded for e in stored) and len(stored) % 8 == 0
    assert bits(cell.demonstrations()) == bits(good) and len(cell.book.store) == len(stored), "not asked for twice"


def test_demonstrations_from_a_data_set(tmp_path):
    with open_cell(tmp_path, demos=5) as cell:
        good, recorded = cell.demonstrations(), cell.book.store.read()
    spec, other, none = cell.spec, tmp_path / "other", tmp_path / "none"
    for path, task, match in ((other, "toy/line", "name the task it was recorded on"), (none, None, "empty data set")):
        store = Store.create(path, task="x", fps=10)
        if task:
            with open_cell(tmp_path / "cell", task) as another:
                store.append(another.practise("x", envs.expert(task), [1, 2]))
        with pytest.raises(RealrlError, match=match):
            recorded_demonstrations(str(path), spec)
    with open_cell(tmp_path / "again", data=str(tmp_path / "dataset")) as cell:
        assert bits(cell.demonstrations()) == bits([e for e in recorded if e.succeeded])
    assert len(good) == 5


# -- learning and evaluation ------------------------------------------------------------------------------------------------------


def test_imitation_logs_saves_and_hands_over(tmp_path):
    with open_cell(tmp_path, demos=3, demo_noise=0.0) as cell:
        view = ChunkView(cell.demonstrations(), chunk=2, n_obs=1, gamma=1.0)
        trainer = Imitation(policy(), view, ImitationConfig(steps=510, batch=8), seed=0)
        imitate(cell.run, trainer, "imitation")
        assert [line["step"] for line in read_metrics(tmp_path)] == list(range(50, 501, 50))
        assert cell.run.read("imitation-fit")[0] == 510, "its end, too"
        other = Imitation(policy(5), view, ImitationConfig(steps=510, batch=8), seed=0)
        imitate(cell.run, other, "imitation")
    assert other.step == 510 and len(read_metrics(tmp_path)) == 10
    assert all(torch.equal(a, b) for a, b in zip(trainer.policy.net.parameters(), other.policy.net.parameters(), strict=True))


def test_stages_are_kept_replaced_and_read_back(tmp_path):
    expert = envs.expert("toy/obstacle")
    with open_cell(tmp_path) as cell:
        cell.finish_stage("first", expert, 12)
        assert len(cell.book.store) == 0, "held-out episodes are never recorded"
        first = cell.account.stage("first")
        assert cell.summary["headline"]["success_pct"] == 100.0 and cell.summary["headline"]["episodes"] == 12
        assert first["success"]["rate"] == 1.0 and first["success"]["n"] == 12 and cell.account.stage("second") is None
        cell.finish_stage("second", policy(), 5)
        cell.finish_stage("first", expert, 6)
        assert cell.account.stage("first") == first, "what is there is not measured again"
        cell.finish_stage("first", expert, 6, version=1)
    with open_cell(tmp_path) as cell:
        assert [s["name"] for s in cell.summary["stages"]] == ["second", "first"]
        assert cell.account.stage("first")["success"]["n"] == 6
        first, second = (cell.judge.evaluate(policy(), 20, seed=s).failures for s in (0, 1))
        assert min(first) >= HELD_OUT and not set(first) & set(second)
    (tmp_path / "summary.json").write_text('{"stages": [')
    with pytest.raises(RealrlError, match=r"summary\.json is not valid JSON .*delete it") as caught, open_cell(tmp_path):
        pass
    assert "\n" not in str(caught.value)


def test_the_demonstrator_is_judged_once(tmp_path):
    with open_cell(tmp_path, demo_noise=1.5) as cell:
        cell.judge_demonstrator(20)
        first = cell.summary["demonstrator"]
        assert first["success"]["n"] == 20 and 0 < first["success"]["rate"] < 1 and min(first["failures"]) >= HELD_OUT
        assert len(cell.book.store) == 0 and cell.summary["stages"] == []
    with open_cell(tmp_path) as cell:
        cell.judge_demonstrator(99)
        assert cell.summary["demonstrator"] == first


def test_the_steps_of_a_stage_are_counted_on_disk(tmp_path):
    """Killed before the summary was saved, a resumed run still says what it took."""
    with open_cell(tmp_path) as cell:
        cell.practise("trial", policy(), range(5))
    (tmp_path / "summary.json").unlink()
    with open_cell(tmp_path) as cell:
        cell.finish_stage("stage", policy(), 2)
        assert cell.account.stage("stage")["env_steps"] == cell.book.store.frames > 0


def test_time_goes_on_where_it_stopped(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("realrl.cell.account.time", SimpleNamespace(monotonic=lambda: now[0]))
    for expected in (7.0, 14.0):
        with open_cell(tmp_path):
            now[0] += 7.0
        assert json.loads((tmp_path / "summary.json").read_text())["wall_s"] == expected
        now[0] += 1000.0


def test_time_of_a_stage_adds_up_over_interruptions(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("realrl.cell.account.time", SimpleNamespace(monotonic=lambda: now[0]))
    for seconds in (3.0, 4.0):
        with pytest.raises(KeyboardInterrupt), open_cell(tmp_path) as cell, cell.timed("stage"):
            now[0] += seconds
            raise KeyboardInterrupt
        now[0] += 100.0
    with open_cell(tmp_path) as cell:
        cell.finish_stage("stage", policy(), 2)
        assert cell.account.stage("stage")["wall_s"] == 7.0


def test_what_is_worth_imitating():
    """Successes; without any, the better half by return; nothing where all are equally poor."""
    trial = lambda won, *reward: SimpleNamespace(succeeded=won, judged=True, cut=False, reward=np.array(reward))
    a, b, c, d = trial(False, 9.0), trial(True, 0.0, 1.0), trial(False, 1.0), trial(False, 3.0, 2.0)
    assert worthy([a, b, c, d]) == [b] and worthy([a, c, d]) == [a, d]
    assert worthy([c, c]) == [] and worthy([]) == []


def test_the_audit_goes_on_and_ranks_within_rounds(tmp_path):
    """Estimates of two rounds come from two models: only ranks within a round mean anything."""
    expert, wild = envs.expert("toy/obstacle"), envs.expert("toy/obstacle", noise=3.0)
    judged = [({"stage": "offline-1", "iteration": i, "estimate": e}, p) for i, e, p in ((1, 0.9, expert), (2, 0.1, wild), (3, 0.2, wild))]
    later = [({"stage": "offline-2", "iteration": 1, "estimate": -50.0}, expert)]
    with open_cell(tmp_path) as cell:
        cell.judge.audit(judged, 10)
        first = json.loads((tmp_path / "ope.json").read_text())
        seen = broken_after(cell, 99)
        cell.judge.audit(judged + later, 10)
    assert len(seen) == 1, "only the new one is tried"
    told = json.loads((tmp_path / "ope.json").read_text())
    assert told["points"][:3] == first["points"] and len(told["points"]) == 4
    assert [p["true_success"] for p in told["points"]] == [1.0, 0.0, 0.0, 1.0] and all(p["true_n"] == 10 for p in told["points"])
    assert told["spearman"] == first["spearman"] == pytest.approx(0.866, abs=1e-3)  # ranks 3, 1, 2 against 3, 1.5, 1.5


def test_devices():
    assert device("cpu").type == "cpu" and device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_latency_is_of_one_robot_on_one_thread():
    threads = []

    class Slow:
        name, chunk, n_obs = "slow", 1, 2

        def start(self, batch):
            assert batch == 1
            return {"calls": torch.zeros(1)}

        def act(self, obs, state, *, greedy, rng):
            assert obs["state"].shape == (1, 2, 3) and greedy and len(rng) == 1
            threads.append(torch.get_num_threads())
            return None, {"calls": state["calls"] + 1}

    before = torch.get_num_threads()
    found = latency(Slow(), TaskSpec("lab", "slow", 3, 1, 10, 0.1, "wait"), calls=50, seconds=60.0)
    assert set(threads) == {1} and len(threads) == 60 and torch.get_num_threads() == before
    assert 0 < found["p50"] <= found["p99"] < 50
    threads.clear()
    latency(Slow(), TaskSpec("lab", "slow", 3, 1, 10, 0.1, "wait"), least=20, seconds=0.0)
    assert len(threads) == 30, "what is slow is asked less often"


def test_of_a_set_of_several_tasks_a_run_takes_its_own_and_failures_where_it_wants_them(cell, tmp_path):
    """A run of one task took the other tasks' episodes for its own, and who learns from failures never saw those of a set."""
    shown = [e for e in cell.practise("shown", envs.expert("toy/obstacle"), range(6), greedy=True, source=Source.SCRIPT) if e.succeeded][:3]
    failed = replace(shown[2], success=np.zeros(len(shown[2]), bool), judged=True)
    said = ("TOY/obstacle.", "wave", "toy/obstacle")
    episodes = [replace(e, task=text) for e, text in zip([*shown[:2], failed], said, strict=True)]
    Store.create(tmp_path / "several", task="toy/obstacle", fps=cell.book.store.fps).append(episodes)
    notes: list[str] = []
    found = recorded_demonstrations(str(tmp_path / "several"), cell.spec, tell=notes.append)
    assert bits(found) == bits(shown[:1]) and len(notes) == 1
    assert "1 of the 3 episodes of" in notes[0] and "are of other tasks (wave) and left out" in notes[0]
    assert [e.succeeded for e in recorded_demonstrations(str(tmp_path / "several"), cell.spec, failures=True)] == [True, False]
    Store.create(tmp_path / "other", task="x", fps=cell.book.store.fps).append([replace(e, task="put it there") for e in shown])
    assert len(recorded_demonstrations(str(tmp_path / "other"), cell.spec)) == 3, "a set of one task, whatever it is called there"


def test_demonstrations_whose_videos_are_gone_still_teach_a_state_policy(cell, tmp_path):
    shown = [e for e in cell.practise("shown", envs.expert("toy/obstacle"), [1, 2], greedy=True, source=Source.SCRIPT) if e.succeeded]
    filmed = [replace(e, obs=e.obs | {"images.top": np.zeros((len(e) + 1, 16, 16, 3), np.uint8)}) for e in shown]
    Store.create(tmp_path / "filmed", task="toy/obstacle", fps=cell.book.store.fps, codec="h264").append(filmed)
    shutil.rmtree(tmp_path / "filmed" / "videos")
    found = recorded_demonstrations(str(tmp_path / "filmed"), cell.spec)
    assert bits(found) == bits(shown) and all(set(e.obs) == {"state"} for e in found)
