"""OGBench's scene: its oracles solve its tasks, a seed is an episode, one task goes on where another ended, and it can be looked at."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import pairwise

import numpy as np
import pytest

from realrl import envs
from realrl.cell.pool import in_turn
from realrl.cell.rollout import rollout
from realrl.envs import ogbench
from realrl.envs.texts import TEXTS
from realrl.nets.text import words
from realrl.robots.guard import box_guard
from realrl.scene import RandomiseConfig, SightConfig
from realrl.types import RealrlError

needs = pytest.mark.skipif(not all(find_spec(name) for name in ("ogbench", "dm_control", "lxml")),
                           reason="needs OGBench: pip install --no-deps ogbench dm_control dm_env lxml")


def test_texts_are_its_own() -> None:
    said = [text for job in ogbench.JOBS.values() for text in job.texts]
    others = {tuple(words(text)) for of in TEXTS.values() for text in of}
    assert len({tuple(words(text)) for text in said}) == len(said) and not others & {tuple(words(text)) for text in said}


def test_without_its_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ModuleNotFoundError("No module named 'dm_control'", name="dm_control")

    monkeypatch.setattr(ogbench, "_built", missing)
    with pytest.raises(RealrlError, match=r"ogbench/cube: its simulator is not installed .*dm_control.*pip install --no-deps ogbench"):
        envs.make("ogbench/cube")


@needs
def test_the_oracles_solve_it_and_a_seed_is_an_episode() -> None:
    for name in ("cube", "button-drawer", "window-open"):
        task = f"ogbench/{name}"
        env, other = envs.make(task), envs.make(task)
        first, second, again = rollout([env], envs.expert(task), [box_guard(env)], [3, 4, 3], greedy=True)
        (elsewhere,) = rollout([other], envs.expert(task), [box_guard(other)], [3], greedy=True)
        assert first.succeeded and second.succeeded and len(first) > 3, task
        assert np.array_equal(first.obs["state"], again.obs["state"]) and np.array_equal(first.obs["state"], elsewhere.obs["state"]), task
        assert not np.array_equal(first.obs["state"][0], second.obs["state"][0])


@needs
def test_an_oracle_is_told_what_the_package_would_tell_it() -> None:
    for name in ("cube", "drawer-open", "window-close", "button-window"):
        env = envs.make(f"ogbench/{name}")
        obs, _ = env.reset(seed=5)
        told, theirs = ogbench._told(ogbench.JOBS[name], obs["state"].astype(float)), env._sim.compute_ob_info()
        for key, value in told.items():
            if key != "privileged/target_block_yaw" and (key in ("privileged/target_block_pos",)) <= (name == "cube"):
                if key.startswith("privileged/target_") and ogbench.JOBS[name].about not in key:
                    continue  # of another thing
                turn = np.pi if key.endswith("handle_yaw") else 2 * np.pi  # a handle is the same when turned by half a turn
                off = np.asarray(value, float) - np.asarray(theirs[key], float)
                off = (off + turn / 2) % turn - turn / 2 if "yaw" in key else off
                assert np.abs(off).max() < 3e-3, (name, key, value, theirs[key])


@needs
def test_drawer_and_window_undo_one_another_without_resets() -> None:
    tasks = [f"ogbench/{name}" for name in ("drawer-open", "drawer-close", "window-open", "window-close")]
    worlds = {task: envs.make(task) for task in tasks}
    found = list(in_turn(worlds, {task: envs.expert(task) for task in tasks}, {t: box_guard(e) for t, e in worlds.items()}, range(8),
                         noise_seed=0))
    assert sum(e.succeeded for _, e, _ in found) >= 7 and not any(helped for *_, helped in found)
    assert {task for task, *_ in found} == set(tasks)
    for (_, before, _), (_, after, _) in pairwise(found):
        assert np.allclose(before.obs["state"][-1][19:22], after.obs["state"][0][19:22], atol=1e-3), "the cube stays where it was"


@needs
def test_it_can_be_looked_at_and_the_mark_is_seen() -> None:
    env = envs.make("ogbench/cube", sight=SightConfig(kind="rgb", height=48, width=48))
    obs, _ = env.reset(seed=1)
    (key,) = env.task.senses
    assert obs[key].shape == (48, 48, 3) and obs["state"].shape == (19,) and obs["privileged"].shape == (43,) and obs[key].std() > 5
    env.close()
    with pytest.raises(RealrlError, match="differs from start to start"):
        envs.make("ogbench/cube", randomise=RandomiseConfig(mass=0.2))
