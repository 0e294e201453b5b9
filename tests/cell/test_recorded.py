"""A recorded set as its own task: read, sized, compared, saved, with nothing but its folder named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from realrl.algos.bc import BCConfig
from realrl.cell.foresight import Examiner
from realrl.cell.kept_back import stretches
from realrl.cell.recordings import follower, read, say_where, sized
from realrl.cli.main import main
from realrl.data.store import Store
from realrl.data.views import ChunkView
from realrl.learn.imitation import worthy
from realrl.policies.folder import load_policy, read_robot
from realrl.scene import RecordedConfig, SightConfig
from realrl.types import Array, Episode, RealrlError
from teleoperation import JOINTS, teleoperated, written

QUICK = ("--imitation.steps", "30", "--imitation.batch", "32", "--distill.steps", "5", "--policy.hidden", "32", "--policy.blocks", "1")


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("sets") / "arm", teleoperated(8))


def test_one_command_from_data_to_a_policy_with_its_table(arm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["train", "bc", "--data", str(arm), "--run", str(run), "--recorded.units", "deg", *QUICK]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("greedy", "exploring", "one-step", "keep still", "mean action", "ridge", "shoulder.pos [deg]"))
    summary = json.loads((run / "summary.json").read_text())
    assert summary["headline"]["held_out_decisions"] > 0 and summary["recorded"]["control"] == "absolute"
    told = summary["stages"][0]["foresight"]
    assert told["joints"] == JOINTS and told["episodes"] == 1 and len(told["errors"]["greedy"]) == 3 and 0 < told["denoising_loss"] < 5
    robot = read_robot(run / "policy")
    assert robot is not None and robot.actions == tuple(JOINTS) and robot.units == ("deg",) * 3 and robot.drives == (0, 1, 2)
    assert -120 < robot.low[0] < -20 and 20 < robot.high[0] < 120
    policy, task = load_policy(run / "policy")
    assert task == "recorded/arm" and policy.distilled and policy.reference is not None
    state = np.tile(np.array([10.0, -20.0, 30.0], np.float32), (1, 2, 1))
    plan, _ = policy.act({"state": state}, {}, greedy=True, rng=[np.random.default_rng(0)])
    assert (np.abs(robot.to_robot(plan.action)[0, 0] - state[0, 0]) < 25).all(), "degrees come out, near where the arm is"
    assert "Foreseen against recorded" in (run / "report.html").read_text()


def test_resumed_it_ends_with_the_same_weights(arm: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(["train", "bc", "--data", str(arm), *QUICK, "--run", str(one)]) == 0
    shutil.copytree(one, two)
    (two / "summary.json").unlink()
    assert main(["train", "bc", "--run", str(two), "--resume"]) == 0
    first, second = (load_policy(folder / "policy")[0].state_dict() for folder in (one, two))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_set_with_cameras_is_looked_at(tmp_path: Path) -> None:
    data = written(tmp_path / "seen", teleoperated(3, cameras=True))
    cfg = sized(BCConfig(data=str(data)))
    assert cfg.sight.kind == "rgb" and cfg.policy.reference == "linear" and cfg.one_step
    material = read(str(data), cfg.recorded, replace(cfg.sight, height=16, width=20), tmp_path / "spare")
    assert material.spec.senses == {"images.top": (16, 20, 3)} and material.robot.cameras == {"images.top": "images.top"}
    assert all(e.obs["images.top"].shape == (len(e) + 1, 16, 20, 3) for e in material.demos)
    blind = read(str(data), cfg.recorded, SightConfig(), tmp_path / "spare")
    assert not blind.spec.senses and not blind.robot.cameras


@pytest.mark.parametrize(("joints", "predicted"), [(6, "velocity"), (28, "sample")])
def test_a_plan_too_wide_for_the_network_is_predicted_as_it_is(tmp_path: Path, joints: int, predicted: str) -> None:
    data = Store.create(tmp_path / "hand", task="door", fps=40)
    data.append([replace(e, action=np.tile(e.action, joints)[:, :joints], proposed=np.tile(e.proposed, joints)[:, :joints])
                 for e in teleoperated(2)])
    cfg = sized(BCConfig(data=str(tmp_path / "hand")))
    assert cfg.policy.diffusion.predict == predicted
    assert predicted == "sample" or cfg.policy.hidden >= 2 * cfg.policy.chunk * joints


@pytest.mark.parametrize("lost", [1, 3])
def test_a_missing_video_costs_its_episodes_or_its_camera_by_a_flag(tmp_path: Path, lost: int) -> None:
    data = tmp_path / "seen"
    store = Store.create(data, task="reach", fps=10)
    for episode in teleoperated(3, cameras=True):
        store.append([episode])
    for file in sorted(data.rglob("*.mp4"))[:lost]:
        file.unlink()
    sight = SightConfig(kind="rgb", height=16, width=16)
    if lost == 3:  # a phantom: nobody can want it
        assert "3 of 3 episodes have no video" in read(str(data), RecordedConfig(), sight, tmp_path).notes[0]
        return
    with pytest.raises(RealrlError, match=r"--recorded.missing episodes .* --recorded.missing camera"):
        read(str(data), RecordedConfig(), sight, tmp_path)
    fewer = read(str(data), RecordedConfig(missing="episodes"), sight, tmp_path)
    assert len(fewer.demos) + len(fewer.held_out) == 2 and "images.top" in fewer.spec.senses
    without = read(str(data), RecordedConfig(missing="camera"), sight, tmp_path)
    assert len(without.demos) + len(without.held_out) == 3 and not without.spec.senses


def test_motions_are_told_from_places(tmp_path: Path) -> None:
    data = written(tmp_path / "moved", teleoperated(4, relative=True))
    found = read(str(data), RecordedConfig(), SightConfig(), tmp_path)
    assert found.robot.control == "relative" and set(found.robot.drives) == {-1}
    assert read(str(data), RecordedConfig(control="absolute"), SightConfig(), tmp_path).robot.control == "absolute"


def test_what_an_action_drives_is_found_by_name_by_place_or_by_nearness() -> None:
    random = np.random.default_rng(0)
    states = random.normal(size=(200, 4))
    near = states[:, [2, 0]] + 0.01 * random.normal(size=(200, 2))
    assert follower(near, states, ["a", "b"], ["b", "x", "a", "y"]).tolist() == [2, 0]
    assert follower(near, states, ["p", "q"], ["b", "x", "a", "y"]).tolist() == [2, 0]
    assert follower(states, states, list("pqrs"), list("abcd")).tolist() == [0, 1, 2, 3]
    assert follower(states, states, list("ppqq"), list("ppqq")).tolist() == [0, 1, 2, 3], "a name of two joints says of neither which"
    assert follower(random.normal(size=(200, 1)), states, ["p"], list("abcd")).tolist() == [-1]
    rare = np.where(random.uniform(size=(200, 1)) < 0.05, 1.0, 0.0)  # a motion now and then; a number that stays 0 is not what it drives
    assert follower(rare, np.zeros((200, 2)), ["p"], ["a", "b"]).tolist() == [-1]


@pytest.mark.parametrize("unit", [1.0, 57.3])
def test_places_are_told_from_motions_in_any_unit(unit: float) -> None:
    random = np.random.default_rng(0)
    way = np.cumsum(random.normal(0, 0.1, (61, 3)), 0).astype(np.float32)
    idle = np.zeros((61, 1), np.float32)
    state = np.concatenate([unit * way + 3, idle], 1)

    def recorded(action: Array) -> list[Episode]:
        first = teleoperated(1)[0]
        return [replace(first, obs={"state": state}, action=np.concatenate([action, idle[1:]], 1).astype(np.float32))]

    assert say_where(recorded(way[1:])) and say_where(recorded(way[1:] + random.normal(0, 0.05, (60, 3))))
    assert not say_where(recorded(np.diff(way, axis=0))) and not say_where(recorded(random.normal(size=(60, 3))))
    assert not say_where(recorded(np.zeros((60, 3))))


def test_several_tasks_in_one_set_are_said(tmp_path: Path) -> None:
    made = teleoperated(3)
    made[1].task = "push"
    found = read(str(written(tmp_path / "two", made)), RecordedConfig(), SightConfig(), tmp_path)
    assert any("2 task texts" in note for note in found.notes)


def test_limits_can_be_given(arm: Path, tmp_path: Path) -> None:
    found = read(str(arm), RecordedConfig(low=(-90.0,), high=(90.0, 45.0, 30.0)), SightConfig(), tmp_path).robot
    assert found.low == (-90.0,) * 3 and found.high == (90.0, 45.0, 30.0)
    with pytest.raises(RealrlError, match=r"--recorded.low has 2 numbers, there are 3 joints"):
        read(str(arm), RecordedConfig(low=(-1.0, -1.0)), SightConfig(), tmp_path)


def test_the_same_episodes_are_kept_back_in_every_run_and_never_fitted(arm: Path, tmp_path: Path) -> None:
    one, two = (read(str(arm), RecordedConfig(held_out=0.3), SightConfig(), tmp_path) for _ in range(2))
    assert len(one.held_out) == 2 and len(one.demos) == 6
    assert all(np.array_equal(a.obs["state"], b.obs["state"]) for a, b in zip(one.held_out, two.held_out, strict=True))
    assert not any(np.array_equal(a.obs["state"], b.obs["state"]) for a in one.held_out for b in one.demos)


def test_limits_are_learned_from_what_is_fitted_and_the_truth_is_not_cut_off(tmp_path: Path) -> None:
    """An episode that was kept back went beyond all others: it neither widens the limits nor is it made to look as if it had not."""
    made = teleoperated(3)
    made[1].action[5:] += 500
    data = written(tmp_path / "far", made)
    found = read(str(data), RecordedConfig(), SightConfig(), tmp_path)
    assert max(found.robot.high) < 150
    views = [ChunkView(episodes, chunk=4, n_obs=2, gamma=1.0) for episodes in (found.demos, found.held_out)]
    assert Examiner(found.robot, *views).truth.max() > 400


def test_an_only_episode_is_cut_in_two(tmp_path: Path) -> None:
    data = written(tmp_path / "one", teleoperated(1))
    found = read(str(data), RecordedConfig(), SightConfig(), tmp_path)
    assert len(found.demos) == len(found.held_out) == 1 and len(found.demos[0]) > 3 * len(found.held_out[0])
    assert "one episode alone" in found.notes[-1]
    again = Store.open(data).read()[0]
    assert len(found.demos[0]) + len(found.held_out[0]) == len(again)


def test_a_long_one_is_cut_into_stretches_so_that_its_end_is_learned(tmp_path: Path) -> None:
    """The end of an only episode was kept back: the lift of the cube was never learned, and asked of who had never seen it."""
    made = teleoperated(1)
    long = replace(made[0], **{name: np.concatenate([getattr(made[0], name)] * 8) for name in
                               ("action", "proposed", "source", "reward", "success", "time", "starts_plan")},
                   obs={k: np.concatenate([*[x[:-1]] * 8, x[-1:]]) for k, x in made[0].obs.items()})
    fitted, held = stretches(long, 0.1)
    assert len(fitted) == 5 and len(held) == 4 and all(e.cut for e in (*fitted, *held))
    assert np.array_equal(np.concatenate([fitted[0].action, held[0].action, fitted[1].action]), long.action[:len(held[0]) + len(
        fitted[0]) + len(fitted[1])]) and np.array_equal(fitted[-1].action[-1], long.action[-1])
    assert sum(map(len, held)) == pytest.approx(0.2 * len(long), abs=4) and sum(map(len, fitted + held)) == len(long)
    fitted[-1].success[-1] = True
    assert worthy(fitted) == fitted  # a success is imitated whole
    assert fitted[-1].truncated == long.truncated and all(e.truncated and not e.terminated for e in fitted[:-1])


@pytest.mark.parametrize("steps", [3, 9])
def test_an_episode_of_a_few_steps_is_enough_to_run(tmp_path: Path, steps: int) -> None:
    (whole,) = teleoperated(1)
    short = replace(whole, obs={k: x[:steps + 1] for k, x in whole.obs.items()},
                    **{k: getattr(whole, k)[:steps] for k in ("action", "proposed", "source", "reward", "success", "time", "starts_plan")})
    data = written(tmp_path / "short", [short])
    assert main(["train", "bc", "--data", str(data), "--run", str(tmp_path / "run"), *QUICK]) == 0


@pytest.mark.parametrize(("flags", "told"), [
    (("--recorded.state", "observation.tcp"), "no vector observation.tcp in it; --recorded.state can name state"),
    (("--recorded.names", "action"), "must be pairs such as action=actions"), (("--recorded.held-out", "1.5"), "held_out must"),
    (("--recorded.names", "action=actions"), "actions")])
def test_what_does_not_fit_is_one_line_and_leaves_no_folder(arm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                            flags: tuple[str, ...], told: str) -> None:
    assert main(["train", "bc", "--data", str(arm), "--run", str(tmp_path / "run"), *flags]) == 2
    error = capsys.readouterr().err.strip()
    assert told in error and "\n" not in error and not (tmp_path / "run").exists()


def test_failures_are_not_imitated(tmp_path: Path) -> None:
    made = teleoperated(6)
    for i, episode in enumerate(made):
        episode.judged, episode.success[-1] = True, i < 4
    data = written(tmp_path / "some", made)
    found = read(str(data), RecordedConfig(), SightConfig(), tmp_path)
    assert len(found.demos) + len(found.held_out) == 4 and len(found.rest) == 2
    for episode in made:
        episode.success[:] = False
    bad = written(tmp_path / "none", made)
    with pytest.raises(RealrlError, match=r"its 6 episodes are marked failures .*realrl data label"):
        read(str(bad), RecordedConfig(), SightConfig(), tmp_path)
