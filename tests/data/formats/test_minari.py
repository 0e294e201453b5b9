"""Minari's datasets, with Minari itself writing what we read and reading what we write, and folders that mean harm."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from format_samples import assert_same, sample, small_disk
from gymnasium import spaces

from realrl.data import formats
from realrl.data.formats import minari as ours
from realrl.data.store import Store
from realrl.types import RealrlError, Source

minari = pytest.importorskip("minari")
h5py = pytest.importorskip("h5py")
STEPS = 6
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")  # it would like to be told about an env for evaluation
TREE = spaces.Dict({"observation": spaces.Box(-np.inf, np.inf, (4,), np.float64), "desired_goal": spaces.Box(-1, 1, (2,), np.float32),
                    "camera": spaces.Box(0, 255, (48, 64, 3), np.uint8), "mission": spaces.Text(20),
                    "nested": spaces.Dict({"on": spaces.Discrete(2),
                                           "pair": spaces.Tuple((spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (2, 3))))})})
BOX = spaces.Box(-2, 2, (3,), np.float32)


def tree(rng: np.random.Generator, rows: int) -> dict[str, Any]:
    """Smooth pictures, which JPEG hardly changes, and numbers."""
    y, x = np.mgrid[:48, :64]
    camera = np.stack([np.stack([y * 5, x * 3, np.full_like(y, 20 * t)], -1) for t in range(rows)]).astype(np.uint8)
    return {"observation": rng.normal(size=(rows, 4)), "desired_goal": rng.uniform(-1, 1, (rows, 2)).astype(np.float32), "camera": camera,
            "mission": ["pick the ball"] * rows,
            "nested": {"on": rng.integers(0, 2, rows), "pair": (rng.uniform(-1, 1, (rows, 1)).astype(np.float32),
                                                               rng.uniform(-1, 1, (rows, 2, 3)).astype(np.float32))}}


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Minari looks for datasets."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


def made(name: str, form: str, observation: Any, action: Any, episodes: list[dict[str, Any]], env: Any = None) -> Any:
    """A dataset that Minari writes, and Minari's view of it."""
    buffers = [minari.data_collector.EpisodeBuffer(
        id=None, seed=i, observations=e["obs"], actions=e["action"], rewards=list(np.arange(STEPS) / 2.0),
        terminations=[False] * (STEPS - 1) + [i == 0], truncations=[False] * (STEPS - 1) + [i != 0],
        infos={"success": [False] * STEPS + [i == 0]}) for i, e in enumerate(episodes)]
    return minari.create_dataset_from_buffers(name, buffers, env=env, observation_space=observation, action_space=action, data_format=form,
                                              algorithm_name="expert", author="a", author_email="a@b.c", code_permalink="https://x.y",
                                              description="made by a test")


@pytest.mark.parametrize("form", ["hdf5", "arrow", "parquet"])
def test_a_tree_of_observations_reads_as_minari_reads_it(library: Path, form: str) -> None:
    rng = np.random.default_rng(0)
    told = made("ours/tree-human-v0", form, TREE, BOX, [{"obs": tree(rng, STEPS + 1), "action": rng.uniform(-2, 2, (STEPS, 3)).astype(
        np.float32)} for _ in range(2)])
    path = library / "ours/tree-human-v0"
    assert formats.detect(path) == formats.detect(path / "data") == "minari"
    imported = formats.read(path, fps=25)
    assert (imported.task, imported.fps, imported.count) == ("ours/tree-human-v0", 25, 2)
    assert any("mission" in note for note in imported.notes) and any("[-1, 1]" in note for note in imported.notes)
    for number, (mine, theirs) in enumerate(zip(imported.episodes, told.iterate_episodes(), strict=True)):
        np.testing.assert_array_equal(mine.action, theirs.actions)
        np.testing.assert_array_equal(mine.reward, theirs.rewards)
        assert (mine.terminated, mine.truncated, mine.succeeded) == (number == 0, number != 0, number == 0)
        assert mine.success.sum() == (number == 0) and mine.seed == number and mine.policy == "expert"
        assert (mine.source == Source.HUMAN).all()
        seen = theirs.observations
        np.testing.assert_array_equal(mine.obs["images.camera"], seen["camera"])
        np.testing.assert_array_equal(mine.obs["observation"], seen["observation"].astype(np.float32))
        np.testing.assert_array_equal(mine.obs["nested.on"][:, 0], seen["nested"]["on"])
        np.testing.assert_array_equal(mine.obs["nested.pair.1"], seen["nested"]["pair"][1])
        np.testing.assert_array_equal(mine.obs["state"], np.concatenate([mine.obs["observation"], mine.obs["desired_goal"]], axis=1))


def test_pictures_that_lie_channels_first_are_turned(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (5, 3, 10, 12), np.uint8)
    for number, tree in enumerate(({"rgb": pictures, "pos": np.zeros((5, 2))}, {"": pictures})):
        data = tmp_path / f"set{number}-v0/data"
        data.mkdir(parents=True)
        (data / "metadata.json").write_text(json.dumps({"data_format": "hdf5", "dataset_id": f"set{number}-v0"}))
        with h5py.File(data / "main_data.hdf5", "w") as file:
            for name, x in tree.items():
                file[f"episode_0/observations/{name}".rstrip("/")] = x
            for name in ("actions", "rewards", "terminations", "truncations"):
                file[f"episode_0/{name}"] = np.zeros((4, 2) if name == "actions" else 4)
        episode = next(formats.read(data.parent).episodes)
        np.testing.assert_array_equal(episode.obs["images.image" if number else "images.rgb"], np.moveaxis(pictures, 1, 3))



@pytest.mark.parametrize("form", ["hdf5", "arrow", "parquet"])
def test_a_single_array_is_the_state(library: Path, form: str) -> None:
    rng = np.random.default_rng(0)
    action = {"obs": rng.normal(size=(STEPS + 1, 5)), "action": [int(a) for a in rng.integers(0, 4, STEPS)]}
    told = made("plain-v0", form, spaces.Box(-np.inf, np.inf, (5,), np.float64), spaces.Discrete(4), [action])
    imported = formats.read(library / "plain-v0", action_range=(0, 3))
    assert any("discrete" in note for note in imported.notes) and not any("[-1, 1];" in note for note in imported.notes)
    mine, theirs = next(imported.episodes), told[0]
    assert list(mine.obs) == ["state"]
    np.testing.assert_array_equal(mine.obs["state"], np.asarray(theirs.observations).astype(np.float32))
    np.testing.assert_allclose(mine.action[:, 0], np.asarray(theirs.actions) / 1.5 - 1, atol=1e-6)
    assert (mine.source == Source.POLICY).all()


def test_pictures_that_are_not_compressed(library: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (STEPS + 1, 32, 32, 3), dtype=np.uint8)
    made("image-v0", "hdf5", spaces.Box(0, 255, (32, 32, 3), np.uint8), BOX,
         [{"obs": pictures, "action": np.zeros((STEPS, 3), np.float32)}])
    path = library / "image-v0/data/main_data.hdf5"
    with h5py.File(path, "a") as file:
        del file["episode_0/observations"]
        file["episode_0/observations"] = pictures
    np.testing.assert_array_equal(next(formats.read(library / "image-v0").episodes).obs["images.image"], pictures)


def test_what_an_environment_made_goes_through_a_store(library: Path, tmp_path: Path) -> None:
    env, runs = gymnasium.make("Pendulum-v1"), []
    for seed in range(2):
        obs, actions = [env.reset(seed=seed)[0]], []
        for _ in range(STEPS):
            actions.append(env.action_space.sample())
            obs.append(env.step(actions[-1])[0])
        runs.append({"obs": np.stack(obs), "action": np.stack(actions)})
    told = made("pendulum/random-v0", "hdf5", env.observation_space, env.action_space, runs, env=env)
    imported = formats.read(library / "pendulum/random-v0", action_range=(-2, 2))
    assert imported.robot_type == "Pendulum-v1"
    episodes = list(imported.episodes)
    store = Store.create(tmp_path / "store", task=imported.task, fps=imported.fps)
    store.append(episodes)
    for one, other, theirs in zip(episodes, store.read(), told.iterate_episodes(), strict=True):
        assert_same(one, other)
        np.testing.assert_array_equal(one.obs["state"], theirs.observations)
        np.testing.assert_allclose(one.action, theirs.actions / 2, atol=1e-6)


@pytest.mark.parametrize("images", [True, False])
def test_minari_opens_what_we_write(library: Path, images: bool) -> None:
    episodes = [sample(i, 4 + i, images=images, terminated=bool(i % 2)) for i in range(3)]
    for episode in episodes:
        if not images:
            del episode.obs["grip"]
    formats.write("minari", episodes, library / "ours/door-human-v0", fps=30, dataset_id="ours/door-human-v0")
    assert list(minari.list_local_datasets()) == ["ours/door-human-v0"]
    told = minari.load_dataset("ours/door-human-v0")
    assert told.total_episodes == 3 and told.total_steps == 4 + 5 + 6
    for one, theirs in zip(episodes, told.iterate_episodes(), strict=True):
        seen = theirs.observations if images else {"state": theirs.observations}
        assert seen.keys() == one.obs.keys()
        for key, x in one.obs.items():
            np.testing.assert_array_equal(seen[key], x)
        np.testing.assert_array_equal(theirs.actions, one.action)
        np.testing.assert_array_equal(theirs.rewards, one.reward)
        assert bool(theirs.terminations[-1]) == one.terminated and bool(theirs.truncations[-1]) == one.truncated
        np.testing.assert_array_equal(theirs.infos["success"][1:], one.success)
    assert told.observation_space.contains({k: x[0] for k, x in episodes[0].obs.items()} if images else episodes[0].obs["state"][0])
    assert told.action_space == spaces.Box(-1, 1, (2,), np.float32)
    assert next(iter(told.storage.get_episode_metadata([1])))["seed"] == 1
    imported = formats.read(library / "ours/door-human-v0")
    assert imported.fps == 30
    for one, other in zip(episodes, imported.episodes, strict=True):
        assert_same(one, other)


def test_actions_are_mapped_back(library: Path) -> None:
    episode = sample(3)
    ours.write([episode], library / "x-v0", fps=10, action_range=(0, 512))
    told = minari.load_dataset("x-v0")
    np.testing.assert_allclose(told[0].actions, 256 * (episode.action + 1), rtol=1e-6)
    assert told.action_space.contains(told[0].actions[0])
    back = next(formats.read(library / "x-v0", action_range=(0, 512)).episodes)
    np.testing.assert_allclose(back.proposed, episode.proposed, atol=1e-6)


def test_writing_refuses(tmp_path: Path) -> None:
    odd = sample(1)
    odd.obs["state"] = odd.obs["state"].astype(np.float64)
    for name, episodes, options, words in (("door", [sample()], {}, "named like"), ("a-v0", [sample()], {"dataset_id": "b-v0"}, "end with"),
                                           ("a-v0", [], {}, "no episodes"), ("a-v0", [sample(), odd], {}, "write them apart"),
                                           ("a-v0", [sample()], {"author": "me"}, "dataset_id")):
        with pytest.raises(RealrlError, match=words):
            formats.write("minari", episodes, tmp_path / name, fps=10, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("options", "words"), [
    ({"keys": ["image"]}, "grip, images.front, state"), ({"state": ["pose"]}, "grip, state"), ({"source": "robot"}, "human, script"),
    ({"fps": 0}, "above 0"), ({"last": "drop"}, "action_range")])
def test_wrong_options_are_answered_with_what_there_is(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    ours.write([sample()], tmp_path / "x-v0", fps=10)
    with pytest.raises(RealrlError, match=words):
        formats.read(tmp_path / "x-v0", **options)


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with small_disk(50_000), pytest.raises(RealrlError, match="free space"):
        formats.write("minari", [sample()], tmp_path / "x-v0", fps=10)
    assert not list(tmp_path.iterdir())


# ---- harm


def change(path: Path, **changes: Any) -> None:
    file = path / "data/metadata.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def link_out(path: Path) -> None:
    (path / "data/main_data.hdf5").rename(path.parent / "secret")
    (path / "data/main_data.hdf5").symlink_to(path.parent / "secret")


def metadata_link(path: Path) -> None:
    (path / "data/metadata.json").rename(path.parent / "secret")
    (path / "data/metadata.json").symlink_to(path.parent / "secret")


def external_link(path: Path) -> None:
    with h5py.File(path / "data/main_data.hdf5", "a") as file:
        del file["episode_0/actions"]
        file["episode_0/actions"] = h5py.ExternalLink("/etc/passwd", "x")


def unknown_form(path: Path) -> None:
    change(path, data_format="pickle")


def no_json(path: Path) -> None:
    (path / "data/metadata.json").write_bytes(b'"data_format" \xff')


def a_list(path: Path) -> None:
    (path / "data/metadata.json").write_text('["data_format"]')


def huge(path: Path) -> None:
    with h5py.File(path / "data/main_data.hdf5", "a") as file:
        del file["episode_0/observations/state"]
        file["episode_0/observations"].create_dataset("state", (2**40, 3), "f4", chunks=(100, 3))


def no_rewards(path: Path) -> None:
    with h5py.File(path / "data/main_data.hdf5", "a") as file:
        del file["episode_0/terminations"]


def wrong_facts(path: Path) -> None:
    with h5py.File(path / "data/main_data.hdf5", "a") as file:
        file["episode_0"].attrs["realrl"] = '{"task": 3}'


def cut_picture(path: Path) -> None:
    with h5py.File(path / "data/main_data.hdf5", "a") as file:
        del file["episode_0/observations/images.front"]
        rows = file["episode_0/observations"].create_dataset("images.front", (8,), dtype=h5py.vlen_dtype(np.uint8))
        for i in range(8):
            rows[i] = np.frombuffer(b"\xff\xd8\xff\xe0 cut", np.uint8)


def nested_for_ever(path: Path) -> None:
    with h5py.File(path / "data/main_data.hdf5", "a") as file:
        file["episode_0/observations/again"] = file["episode_0/observations"]


def no_episodes(path: Path) -> None:
    with h5py.File(path / "data/main_data.hdf5", "w"):
        pass


@pytest.mark.parametrize("harm", [link_out, metadata_link, external_link, unknown_form, no_json, a_list, huge, no_rewards, wrong_facts,
                                  cut_picture, nested_for_ever, no_episodes], ids=lambda f: f.__name__)
def test_harm_is_one_line(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    path = tmp_path / "x-v0"
    ours.write([sample()], path, fps=10)
    harm(path)
    with pytest.raises(RealrlError) as caught:
        list(formats.read(path, "minari").episodes)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_an_environment_that_the_metadata_name_is_not_built(tmp_path: Path) -> None:
    """Minari imports and calls the entry point of a dataset without spaces."""
    ours.write([sample()], tmp_path / "x-v0", fps=10)
    change(tmp_path / "x-v0", observation_space=None, action_space=None,
           env_spec=json.dumps({"id": "Evil-v0", "entry_point": "os:mkdir", "kwargs": {"path": str(tmp_path / "owned")}}))
    imported = formats.read(tmp_path / "x-v0")
    assert_same(next(imported.episodes), sample())
    assert imported.robot_type == "Evil-v0" and not (tmp_path / "owned").exists()


@pytest.mark.parametrize("form", ["arrow", "parquet"])
def test_tables_changed_anywhere_are_one_line_or_harmless(library: Path, form: str, long: bool) -> None:
    rng, refused = np.random.default_rng(0), 0
    made("plain-v0", form, spaces.Box(-np.inf, np.inf, (5,), np.float64), BOX,
         [{"obs": rng.normal(size=(STEPS + 1, 5)), "action": rng.uniform(-2, 2, (STEPS, 3)).astype(np.float32)}])
    path, = (library / "plain-v0/data/0").glob(f"*.{form}")
    whole = path.read_bytes()
    for number in range(120 if long else 40):
        data = bytearray(whole)
        for at in rng.integers(len(data), size=3):
            data[at] = rng.integers(256)
        path.write_bytes(data[:int(rng.integers(1, len(data)))] if number % 4 == 0 else data)
        try:
            list(formats.read(library / "plain-v0").episodes)
        except RealrlError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused >= (number + 1) // 4
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(RealrlError, match="leads out"):
        formats.read(library / "plain-v0")


def test_other_things_are_told_from_it(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/metadata.json").write_text("{}")
    (tmp_path / "pipe/data").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe/data/metadata.json")
    assert not any(ours.detect(p) for p in tmp_path.iterdir())
