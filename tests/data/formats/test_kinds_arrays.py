"""Zarr buffers and HDF5 files as other people write them: the same numbers under other names and in other shapes."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from PIL import Image

from realrl.cli.data.foreign import _as_flags
from realrl.data.formats import aloha, common, diffusion_policy, robomimic
from realrl.types import RealrlError

ENDS = (6, 10, 15)
LAST = np.isin(np.arange(15), np.array(ENDS) - 1)
RNG = np.random.default_rng(0)
STEPS: dict[str, Any] = {"state": RNG.uniform(size=(15, 2)), "action": RNG.uniform(size=(15, 2))}


def buffer(path: Path, arrays: Mapping[str, Any], ends: Any = ENDS, meta: Mapping[str, Any] | None = None) -> Path:
    root = zarr.create_group(str(path), zarr_format=2)
    for group, found in (("data", arrays), ("meta", {"episode_ends": np.asarray(ends), **(meta or {})})):
        there = root.create_group(group)
        for name, x in found.items():
            there.create_array(name, shape=x.shape, dtype=x.dtype)[...] = x
    return path


@pytest.mark.parametrize("ends", [np.array(ENDS, np.float64), np.array(ENDS)[:, None], np.array([0, 6, 6, 10, 15])])
def test_ends_of_episodes_in_other_shapes(tmp_path: Path, ends: Any) -> None:
    found = diffusion_policy.read(buffer(tmp_path / "b.zarr", STEPS, ends))
    assert [len(e) for e in found.episodes] == [6, 4, 5]
    assert ("left out: 2 episodes without a step" in found.notes) == (len(ends) == 5)


def test_ends_that_are_none_are_refused(tmp_path: Path) -> None:
    for number, ends in enumerate(([6.5, 15.0], [np.nan, 15.0], np.array([6, 2**63 + 9], np.uint64))):
        with pytest.raises(RealrlError, match="not a row of whole numbers"):
            diffusion_policy.read(buffer(tmp_path / f"{number}.zarr", STEPS, ends))


def test_what_a_learner_kept_beside_the_steps_is_no_observation(tmp_path: Path) -> None:
    more = {name: np.zeros(15) for name in ("mc_return", "advantage", "value", "log_prob", "next_done", "next_reward", "joint_values")}
    found = diffusion_policy.read(buffer(tmp_path / "b.zarr", STEPS | more))
    assert sorted(next(found.episodes).obs) == ["joint_values", "state"]


def test_flags_of_the_next_step_and_words_of_each_episode_say_who_succeeded(tmp_path: Path) -> None:
    paid = {"next_reward": LAST * (np.arange(15) > 9), "next_done": LAST}
    said = {"next": ({**STEPS, **paid}, {}), "row": (STEPS, {"episode_success": np.array([0, 0, 1])}),
            "other": (STEPS, {"failed": np.array([True, True, False])})}
    for name, (arrays, meta) in said.items():
        found = diffusion_policy.read(buffer(tmp_path / f"{name}.zarr", arrays, meta=meta))
        assert [e.succeeded for e in found.episodes] == [False, False, True], name


def test_outcomes_as_words_and_two_robots(tmp_path: Path) -> None:
    words = buffer(tmp_path / "words.zarr", STEPS, meta={"episode_success": np.array(["success", "Failure", "success"])})
    assert [e.succeeded for e in diffusion_policy.read(words).episodes] == [True, False, True]
    for name, told in {"outcome": np.array(["red", "blue", "success"]), "success": np.array([0.2, 0.9, 1.0])}.items():
        other = buffer(tmp_path / f"{name}.zarr", STEPS, meta={name: told})
        assert not any(e.judged for e in diffusion_policy.read(other).episodes)
    arms = {f"robot{i}_{name}": np.full((15, n), i + 1.0) for i in range(2) for name, n in (("eef_pos", 3), ("gripper_width", 1))}
    assert next(diffusion_policy.read(buffer(tmp_path / "umi.zarr", arms)).episodes).action[0].tolist() == [1, 1, 1, 1, 2, 2, 2, 2]


def test_steps_behind_the_last_end_are_told(tmp_path: Path) -> None:
    found = diffusion_policy.read(buffer(tmp_path / "b.zarr", STEPS, (5, 9, 14)))
    assert any("left out: 1 steps behind the end" in note for note in found.notes)
    assert not any("behind the end" in note for note in diffusion_policy.read(buffer(tmp_path / "c.zarr", STEPS)).notes)


def test_another_name_of_the_action(tmp_path: Path) -> None:
    named = {"state": STEPS["state"], "actions": STEPS["action"]}
    first = next(diffusion_policy.read(buffer(tmp_path / "a.zarr", named)).episodes)
    np.testing.assert_array_equal(first.action, STEPS["action"][:6].astype(np.float32))
    odd = buffer(tmp_path / "b.zarr", {"state": STEPS["state"], "cmd": STEPS["action"]})
    with pytest.raises(RealrlError, match="say which of cmd, state was sent: --option action=NAME"):
        diffusion_policy.read(odd)
    assert next(diffusion_policy.read(odd, action="cmd").episodes).action.shape == (6, 2)


@pytest.mark.parametrize(("rate", "told"), [(30, 30), (29.97, 29.97), (59.94, 59.94), (12.5, 12.5), (10.02, 10), (23.976, 23.976)])
def test_a_rate_by_its_clock_is_not_cut(rate: float, told: float) -> None:
    assert common.rate_from(1 / rate) == told


def test_a_buffers_clock(tmp_path: Path) -> None:
    found = diffusion_policy.read(buffer(tmp_path / "b.zarr", STEPS | {"timestamp": np.arange(15) / 29.97}))
    assert found.fps == 29.97 and any("29.97 steps a second, by timestamp" in note for note in found.notes)


@pytest.mark.parametrize("unit", [1, 1e3, 1e6, 1e9])
def test_a_clock_in_other_units_and_one_that_counts_steps(unit: float) -> None:
    assert common.rate_by(np.full(9, unit / 30)) == 30
    assert common.rate_by(np.ones(9)) is None and common.rate_by(np.zeros(0)) is None


def test_a_chunk_that_is_not_there_is_told(tmp_path: Path) -> None:
    root = buffer(tmp_path / "b.zarr", STEPS)
    assert not any("chunks" in note for note in diffusion_policy.read(root).notes)
    next(p for p in (root / "data/action").iterdir() if not p.name.startswith(".")).unlink()
    notes = diffusion_policy.read(root).notes
    assert any("action: 1 of its chunks are not stored, all of their values count as 0" in note for note in notes)


@pytest.mark.parametrize("place", ["meta", "data"])
def test_what_is_to_be_done_is_told_beside_the_steps(place: str, tmp_path: Path) -> None:
    texts, at = np.array(["pick", "place", "pick"]), np.repeat(np.arange(3), np.diff(ENDS, prepend=0))
    root = buffer(tmp_path / "b.zarr", STEPS | ({"language": texts[at]} if place == "data" else {}),
                  meta={"task": texts} if place == "meta" else None)
    found = diffusion_policy.read(root)
    assert any(note.startswith(f"tasks are what {place}/") for note in found.notes)
    assert not any("holds text" in note for note in found.notes)
    assert [e.task for e in found.episodes] == ["pick", "place", "pick"]
    assert [e.task for e in diffusion_policy.read(root, task="tidy").episodes] == ["tidy"] * 3


# ---- HDF5


def demos(path: Path, *, name: str = "demo_{}", action: str = "actions", attributes: Mapping[str, Any] | None = None,
          **arrays: Any) -> Path:
    """Two demonstrations. attributes: of each, name -> one value a demonstration; arrays: more of both, name -> [5, ...]."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "sim_args": {"dt": 1 / 59.94, "decimation": 2}})
        for i in range(2):
            demo = data.create_group(name.format(i))
            for key, values in (attributes or {}).items():
                demo.attrs[key] = values[i]
            demo[action], demo["obs/eef_pos"] = np.full((5, 2), 0.1 * i), np.ones((5, 3))
            for key, x in arrays.items():
                demo[key] = x
    return path


@pytest.mark.parametrize(("name", "action"), [("demo{}", "actions"), ("episode_{}", "action"), ("traj_{}", "actions"), ("{}", "actions")])
def test_demonstrations_and_actions_under_other_names(tmp_path: Path, name: str, action: str) -> None:
    found = robomimic.read(demos(tmp_path / "d.hdf5", name=name, action=action))
    assert [len(e) for e in found.episodes] == [5, 5] and found.fps == 29.97


@pytest.mark.parametrize("told", ["attribute", "array", "ep_meta"])
def test_every_demonstration_has_its_own_text(told: str, tmp_path: Path) -> None:
    own = {"attribute": {"language_instruction": ("pick", "place")}, "ep_meta": {"ep_meta": ('{"lang": "pick"}', '{"lang": "place"}')}}
    path = demos(tmp_path / "a.hdf5", attributes=own.get(told))
    if told == "array":
        with h5py.File(path, "a") as file:
            for i, text in enumerate(("pick", "place")):
                file[f"data/demo_{i}/task_description"] = text
    assert [e.task for e in robomimic.read(path).episodes] == ["pick", "place"]
    assert [e.task for e in robomimic.read(path, task="tidy").episodes] == ["tidy"] * 2


@pytest.mark.parametrize("attributes", [{"success": ("True", "False")}, {"success": (np.array([True]), np.array([False]))},
                                        {"is_success": (1, 0)}, {"failed": (False, True)}])
def test_success_of_a_demonstration_in_other_words(tmp_path: Path, attributes: Mapping[str, Any]) -> None:
    assert [e.succeeded for e in robomimic.read(demos(tmp_path / "d.hdf5", attributes=attributes)).episodes] == [True, False]


def test_columns_of_one_number_may_be_two_dimensional(tmp_path: Path) -> None:
    paid = np.eye(1, 5, 4).T
    (first, _) = robomimic.read(demos(tmp_path / "d.hdf5", rewards=paid, dones=paid.astype(bool))).episodes
    assert first.succeeded and first.terminated and first.reward.tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("padded", [False, True])
def test_compressed_pictures_and_arrays_with_nothing_in_them(padded: bool, tmp_path: Path) -> None:
    path = demos(tmp_path / "d.hdf5", **{"obs/nothing": np.zeros((5, 0)), "obs/words": np.array([b"abc"] * 5)})
    kept = io.BytesIO()
    Image.new("RGB", (24, 16), (200, 60, 10)).save(kept, "JPEG", quality=95)
    row = np.frombuffer(kept.getvalue(), np.uint8)
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            if padded:
                demo["obs/cam_image"] = np.stack([np.append(row, np.zeros(9, np.uint8))] * 5)
            else:
                demo.create_dataset("obs/cam_image", (5,), h5py.vlen_dtype(np.uint8))[...] = [row] * 5
    found = robomimic.read(path)
    first = next(found.episodes)
    assert first.obs["images.cam"].shape == (6, 16, 24, 3) and np.abs(first.obs["images.cam"][2, 5, 5] - [200, 60, 10.0]).max() < 6
    assert any("left out: nothing, words" in note for note in found.notes) and "nothing" not in first.obs


def test_liberos_instruction_is_the_task_and_other_layouts_are_told_what_to_do(tmp_path: Path) -> None:
    path = demos(tmp_path / "d.hdf5")
    with h5py.File(path, "a") as file:
        file["data"].attrs["problem_info"] = json.dumps({"language_instruction": "open the drawer"})
    assert next(robomimic.read(path).episodes).task == "open the drawer"
    with h5py.File(tmp_path / "act.hdf5", "w") as file:
        file["action"] = np.zeros((5, 2))
    with pytest.raises(RealrlError, match="it holds action; it looks like one episode of ALOHA's: format=aloha"):
        robomimic.read(tmp_path / "act.hdf5")


def test_an_action_of_another_name_is_offered_and_taken_by_its_option(tmp_path: Path) -> None:
    path = demos(tmp_path / "d.hdf5", action="processed_actions", dones=np.zeros(5))
    with pytest.raises(RealrlError, match=r"say which of processed_actions was sent: --option action=NAME"):
        robomimic.read(path)
    assert [e.action.shape for e in robomimic.read(path, action="processed_actions").episodes] == [(5, 2)] * 2
    both = demos(tmp_path / "both.hdf5", raw_actions=np.ones((5, 2)))
    assert [float(e.action[0, 0]) for e in robomimic.read(both, action="raw_actions").episodes] == [1.0, 1.0]
    assert float(next(robomimic.read(both).episodes).action[0, 0]) == 0.0, "unasked it is actions"


def test_observations_may_be_called_so_and_other_groups_of_demonstrations_are_told(tmp_path: Path) -> None:
    path = demos(tmp_path / "d.hdf5")
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            demo.move("obs", "observations")
            demo["states/articulation/joint_position"] = np.zeros((5, 9))
        file.copy("data", "failed")
    found = robomimic.read(path)
    assert list(next(found.episodes).obs) == ["eef_pos", "state"] and any("left out: failed (other groups" in note for note in found.notes)


def test_a_folder_that_is_no_set_is_told_what_it_is(tmp_path: Path) -> None:
    from realrl.data import formats
    for name in ("many/one set", "many/other"):
        (tmp_path / name / "meta").mkdir(parents=True)
        (tmp_path / name / "meta/info.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/episode_0.npz").symlink_to(tmp_path / "x.npz")
    for name, words in {"many": f'give them one by one: "{tmp_path}/many/one set", {tmp_path}/many/other',
                        "empty": "there is nothing in it",
                        "many/other/meta": f"a part of a LeRobot dataset, give the whole folder: {tmp_path}/many/other",
                        "linked": "episode_0.npz in it is a link that leads out of it"}.items():
        with pytest.raises(RealrlError) as caught:
            formats.detect(tmp_path / name)
        assert words in str(caught.value)


def test_a_format_is_named_as_one_types_it() -> None:
    assert _as_flags("it looks like ALOHA's: format=aloha") == "it looks like ALOHA's: --format aloha"
    assert _as_flags("say which one with format=") == "say which one with --format"


@pytest.mark.parametrize("kind", ["zarr", "hdf5", "npz"])
def test_floats_are_fractions_or_levels_in_a_whole_set(kind: str, tmp_path: Path) -> None:
    """An episode of nothing but 0 and 1 is black where others reach 200, and white where they are fractions."""
    for most, bright in ((200, 1), (0.5, 255)):
        films = [np.full((4, 16, 16, 3), most, np.float32) for most in (1, most)]
        films[1][0] = 0
        path = tmp_path / f"{most}.{kind}"
        if kind == "zarr":
            found = diffusion_policy.read(buffer(path, {"action": np.zeros((8, 2)), "img": np.concatenate(films)}, [4, 8]))
        elif kind == "hdf5":
            with h5py.File(path, "w") as file:
                for i, film in enumerate(films):
                    file[f"data/demo_{i}/actions"], file[f"data/demo_{i}/obs/top_image"] = np.zeros((4, 2)), film
            found = robomimic.read(path)
        else:
            path.mkdir()
            for i, film in enumerate(films):
                np.savez(path / f"episode_{i}.npz", action=np.zeros((4, 2)), image=film)
            found = aloha.read(path)
        dark, other = (next(iter(episode.obs.values())) for episode in found.episodes)
        assert (dark == bright).all() and int(other.max()) == (200 if most == 200 else 128)
