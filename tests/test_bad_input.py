"""What users get wrong, in the calls they make: one line that says what, where and how to mend it; nothing half-made is left."""

import importlib.util

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from realrl import envs
from realrl.algos import bc, rl100
from realrl.cell.cell import WorkCell
from realrl.cell.collect import Collector
from realrl.cli import doctor
from realrl.data.store import Store
from realrl.data.tools.check import check
from realrl.envs.mujoco import gl
from realrl.generative.diffusion import DiffusionConfig
from realrl.learn.imitation import ImitationConfig
from realrl.learn.ope import OPEConfig
from realrl.policies.diffusion import DiffusionPolicy
from realrl.policies.folder import load_policy, save_policy
from realrl.report.failures import room
from realrl.run import Run
from realrl.scene import CollectConfig
from realrl.types import RealrlError
from toy_runs import small_policy, tiny

LOCAL = CollectConfig(workers=1)


def complaint(call, *words):
    """The one line that a mistake is answered with; it must hold the given words."""
    with pytest.raises(RealrlError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line and 20 < len(line) < 500, line
    assert not [w for w in words if w not in line], line
    return line


def improve(folder, **changes):
    cfg = tiny(**changes)
    with Run.start(folder, cfg, resume=True) as run, WorkCell(run, cfg) as cell:
        return rl100.train(cfg, cell)


def clone(folder, **changes):
    cfg = bc.BCConfig(**{"task": "toy/obstacle", "policy": small_policy(), "imitation": ImitationConfig(steps=4, batch=8), "collect": LOCAL,
                         "eval_episodes": 2, **changes})
    with Run.start(folder, cfg, resume=True) as run, WorkCell(run, cfg) as cell:
        return bc.train(cfg, cell)


@pytest.fixture
def data(tmp_path):
    """A data set of twelve demonstrations in two files."""
    with Collector("toy/obstacle", LOCAL) as collector:
        episodes = list(collector.collect(envs.expert("toy/obstacle"), range(12), greedy=True))
    store = Store.create(tmp_path / "data", task="toy/obstacle", fps=10)
    store.append(episodes[:6])
    store.append(episodes[6:])
    return tmp_path / "data"


def files(data):
    """Its data files."""
    return sorted((data / "data").rglob("*.parquet"))


# -- tasks and experts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "nearest"), [
    ("toy/obstakle", "toy/obstacle"), ("obstacle", "toy/obstacle"), ("metaworld/peg-insert-side", "metaworld/peg-insert-side-v3"),
    ("adroit/dor", "adroit/door"), ("something else altogether", "realrl tasks")])
def test_a_wrong_task_is_answered_with_the_nearest(task, nearest, tmp_path):
    complaint(lambda: improve(tmp_path, task=task), repr(task), nearest)
    complaint(lambda: clone(tmp_path / "bc", task=task), repr(task), nearest)


@pytest.mark.skipif(importlib.util.find_spec("gymnasium_robotics") is None, reason="needs gymnasium-robotics")
def test_an_expert_that_must_be_fetched(tmp_path):
    complaint(lambda: improve(tmp_path, task="adroit/door"), "adroit/door", "npz")
    complaint(lambda: improve(tmp_path, task="adroit/door", expert=str(tmp_path / "no.npz")), "no.npz")


def test_a_task_without_an_expert(tmp_path):
    complaint(lambda: envs.expert("gym/HalfCheetah-v5"), "gym/HalfCheetah-v5", "no scripted expert")
    complaint(lambda: improve(tmp_path, expert="weights.npz"), "toy/obstacle", "takes no file", "weights.npz")


def test_demonstrations_that_never_succeed(tmp_path):
    """Five steps are too few to get there: it gives up in finite time, and keeps what it recorded."""
    complaint(lambda: improve(tmp_path, demos=3, horizon=5), "toy/obstacle", "succeeded 0 times in 60 attempts", "3 demonstrations")
    assert len(Store.open(tmp_path / "dataset")) == 60


# -- settings ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wrong", "words"), [
    ({"sigma_min": 0.5, "sigma_max": 0.1}, ("sigma_min", "0.5", "0.1")), ({"sigma_min": 0.0}, ("sigma_min", "above 0")),
    ({"steps": 0}, ("steps", "at least 1")), ({"steps": 101}, ("steps", "101")), ({"offset": 50}, ("offset", "0..9"))])
def test_a_sampler_that_cannot_be(wrong, words, tmp_path):
    complaint(lambda: improve(tmp_path, policy=small_policy(diffusion=DiffusionConfig(**wrong))), "diffusion.", *words)


def test_a_single_model_cannot_disagree_with_itself(tmp_path):
    complaint(lambda: improve(tmp_path, ope=OPEConfig(members=1, elites=1)), "ope.members", "at least 2", "got 1")
    complaint(lambda: improve(tmp_path, ope=OPEConfig(members=3, elites=4)), "ope.elites", "2..3 (members)")


def test_nothing_to_start_from(tmp_path):
    complaint(lambda: improve(tmp_path, stages=("online",)), "no policy to start from", "--init")
    complaint(lambda: improve(tmp_path / "b", init=str(tmp_path / "nowhere")), "nowhere", "policy.json")


# -- checkpoints ------------------------------------------------------------------------------------------------------------------


def test_an_observation_of_another_shape_than_the_checkpoints(tmp_path):
    save_policy(DiffusionPolicy(small_policy(), 5, 2), tmp_path / "policy", task="toy/other")
    complaint(lambda: improve(tmp_path / "run", init=str(tmp_path / "policy")), "trained on toy/other", "with 5 observation",
              "toy/obstacle has 2 and 2")
    policy, _ = load_policy(tmp_path / "policy")
    rng = [np.random.default_rng(0)]
    for shape in ((1, 1, 2), (1, 2, 5), (1, 5)):
        complaint(lambda s=shape: policy.act({"state": np.zeros(s, np.float32)}, {}, greedy=True, rng=rng), "'state'", "[1, 5]", "n_obs")
    with Collector("toy/obstacle", LOCAL) as collector:
        complaint(lambda: list(collector.collect(policy, [1], greedy=True)), "[1, 2]", "[1, 5]")


def test_a_damaged_checkpoint(tmp_path):
    policy = DiffusionPolicy(small_policy(), 2, 2)
    save_policy(policy, tmp_path / "policy", task="toy/obstacle")
    file = next((tmp_path / "policy").glob("tensors-*"))
    file.write_bytes(file.read_bytes()[:-100])
    complaint(lambda: improve(tmp_path / "run", init=str(tmp_path / "policy")), file.name, "damaged or truncated")


# -- data sets --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("column", "name"), [("observation.state", "'state'"), ("action", "'action'"), ("next.reward", "'reward'")])
def test_nan_in_a_data_set(column, name, data, tmp_path):
    table = pq.read_table(files(data)[1])
    values = np.array(table.column(column).to_pylist(), np.float32)
    values[3] = np.nan
    field = table.schema.get_field_index(column)
    kind = table.schema.field(column).type
    table = table.set_column(field, table.schema.field(column), pa.array(values.tolist(), kind))
    pq.write_table(table, files(data)[1])
    complaint(lambda: clone(tmp_path / "run", data=str(data)), "episode 6", name, "step 3", "NaN")
    assert any(p.severity == "error" and column in str(p) for p in check(data)), check(data)


def test_a_truncated_data_set(data, tmp_path):
    whole = files(data)[1].read_bytes()
    files(data)[1].write_bytes(whole[: len(whole) // 2])
    complaint(lambda: clone(tmp_path / "a", data=str(data)), files(data)[1].name)
    files(data)[1].unlink()
    complaint(lambda: clone(tmp_path / "b", data=str(data)), "file-001.parquet", "realrl data repair")


def test_a_folder_that_is_no_data_set(data, tmp_path):
    complaint(lambda: clone(tmp_path / "a", data=str(tmp_path / "nowhere")), "nowhere")
    (data / "meta" / "info.json").write_text("{")
    complaint(lambda: clone(tmp_path / "b", data=str(data)), "info.json")


def test_a_data_set_of_another_task(data, tmp_path):
    complaint(lambda: clone(tmp_path / "a", task="toy/line", data=str(data)), "2 observed numbers and 2 actions", "toy/line has 1 and 1")
    complaint(lambda: improve(tmp_path / "b", task="toy/line", data=str(data)), "toy/line has 1 and 1")


@pytest.mark.parametrize(("change", "words"), [
    ({"fps": 20}, ("20 Hz", "10 Hz")), ({"action": 3.0}, ("actions reach", "[-1, 1]")), ({"success": False}, ("12 episodes", "success"))])
def test_a_data_set_that_does_not_fit(change, words, data, tmp_path):
    episodes = Store.open(data).read()
    for e in episodes:
        e.time, e.reward = np.arange(len(e)) / change.get("fps", 10), e.reward * change.get("success", True)
        e.action, e.success = e.action * change.get("action", 1.0), e.success & change.get("success", True)
    Store.create(tmp_path / "other", task="toy/obstacle", fps=change.get("fps", 10)).append(episodes)
    complaint(lambda: clone(tmp_path / "a", data=str(tmp_path / "other")), str(tmp_path / "other"), *words)


def test_episodes_that_are_not_finite_are_never_recorded(data):
    store = Store.open(data)
    episode = store.read([0])[0]
    episode.obs["state"][4] = np.nan
    complaint(lambda: store.append([episode]), "state")
    assert len(store) == len(Store.open(data)) == 12


@pytest.mark.parametrize("method", [clone, improve])
def test_a_device_that_is_not_here(method, tmp_path):
    complaint(lambda: method(tmp_path / "other", device="quantum"), "device must be auto, cpu", "'quantum'")
    assert not (tmp_path / "other").exists()
    complaint(lambda: method(tmp_path / "run", device="cuda:99"), "--device cuda:99", "give cpu, or auto")
    assert not len(Store.open(tmp_path / "run/dataset")), "and nothing was collected for it"


@pytest.mark.parametrize("wrong", ["foo", "osmesa"])
def test_a_graphics_back_end_that_is_not_here(wrong, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", wrong)
    monkeypatch.setattr(gl, "osmesa_works", lambda: False)
    gl.backend.cache_clear()
    complaint(lambda: envs.make("metaworld/reach-v3"), f"MUJOCO_GL={wrong}", "unset")
    found = next(f for f in doctor.report() if f.name == "MUJOCO_GL")
    assert not found.ok and f"MUJOCO_GL={wrong}" in found.mend
    gl.backend.cache_clear()
    assert envs.make("toy/line").task.id == "toy/line"


def test_failures_that_have_no_folder_to_go_to(tmp_path):
    (tmp_path / "taken").write_text("")
    complaint(lambda: room(tmp_path / "taken"), "taken is a file", "--out")
