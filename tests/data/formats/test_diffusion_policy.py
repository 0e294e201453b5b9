"""diffusion_policy's replay buffers, in and out, read as the zarr library reads them, and files that mean harm."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from format_samples import assert_same, sample, small_disk

from realrl.data import formats
from realrl.data.formats import diffusion_policy
from realrl.data.formats.zarr_files import Buffer
from realrl.data.store import Store
from realrl.types import RealrlError, Source

zarr = pytest.importorskip("zarr")
numcodecs = pytest.importorskip("numcodecs")
ENDS = (4, 6, 11)


def columns() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"action": rng.uniform(0, 512, (11, 2)).astype(np.float32), "state": rng.normal(size=(11, 5)),
            "img": rng.integers(0, 256, (11, 16, 20, 3)).astype(np.float32), "n_contacts": np.zeros((11, 1), np.float32)}


def buffer(path: Path, version: int = 2, **options: Any) -> Path:
    """A replay buffer written by the zarr library."""
    root = zarr.create_group(str(path), zarr_format=version)
    for name, x in columns().items():
        root.create_array(f"data/{name}", data=x, chunks=(3, *x.shape[1:]), **options)
    root.create_array("meta/episode_ends", data=np.array(ENDS, np.int64))
    return path


def packed(folder: Path, path: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for inside in folder.rglob("*"):
            if inside.is_file():
                file.write(inside, prefix + inside.relative_to(folder).as_posix())
    return path


V2 = {"blosc": numcodecs.Blosc("lz4"), "bitshuffle": numcodecs.Blosc("zstd", shuffle=2), "zstd": numcodecs.Zstd(), "gzip": numcodecs.GZip(),
      "zlib": numcodecs.Zlib(), "bz2": numcodecs.BZ2(), "lzma": numcodecs.LZMA(), "lz4": numcodecs.LZ4(), "raw": None}


@pytest.mark.parametrize("codec", V2)
@pytest.mark.parametrize("order", ["C", "F"])
def test_version_2_reads_as_the_library_does(tmp_path: Path, codec: str, order: str) -> None:
    check_columns(buffer(tmp_path / "x.zarr", compressors=V2[codec], order=order))


@pytest.mark.parametrize("codec", ["zstd", "gzip", "blosc", "none", "crc32c"])
@pytest.mark.parametrize("separator", [".", "/"])
def test_version_3_reads_as_the_library_does(tmp_path: Path, codec: str, separator: str) -> None:
    codecs = {"zstd": zarr.codecs.ZstdCodec(), "gzip": zarr.codecs.GzipCodec(), "blosc": zarr.codecs.BloscCodec(), "none": None,
              "crc32c": [zarr.codecs.ZstdCodec(), zarr.codecs.Crc32cCodec()]}
    check_columns(buffer(tmp_path / "x.zarr", 3, compressors=codecs[codec],
                         chunk_key_encoding={"name": "default", "separator": separator}))


def test_version_3_transposed_and_big_endian(tmp_path: Path) -> None:
    root = zarr.create_group(str(tmp_path / "x"), zarr_format=3)
    x = np.arange(2 * 3 * 4, dtype=np.int32).reshape(2, 3, 4)
    root.create_array("x", data=x, chunks=(2, 2, 3), filters=[zarr.codecs.TransposeCodec(order=(2, 0, 1))],
                      serializer=zarr.codecs.BytesCodec(endian="big"))
    found = Buffer(tmp_path / "x").array("x")
    assert found is not None
    np.testing.assert_array_equal(found.read(0, 2), x)


def check_columns(path: Path) -> None:
    files = Buffer(path)
    for name, x in columns().items():
        found = files.array(f"data/{name}")
        assert found is not None
        for start, stop in ((0, 11), (2, 3), (4, 10), (5, 5)):
            np.testing.assert_array_equal(found.read(start, stop), x[start:stop])


@pytest.mark.parametrize("prefix", ["", "pusht.zarr/"])
def test_a_zip_is_read_in_place(tmp_path: Path, prefix: str) -> None:
    path = packed(buffer(tmp_path / "x.zarr"), tmp_path / "x.zarr.zip", prefix)
    assert formats.detect(path) == formats.detect(tmp_path / "x.zarr") == "diffusion_policy"
    for one, other in zip(formats.read(path).episodes, formats.read(tmp_path / "x.zarr").episodes, strict=True):
        np.testing.assert_array_equal(one.obs["images.img"], other.obs["images.img"])


@pytest.mark.parametrize("last", ["repeat", "drop"])
def test_episodes_are_cut_at_their_ends(tmp_path: Path, last: str) -> None:
    imported = formats.read(buffer(tmp_path / "pusht.zarr"), last=last, action_range=(0, 512), success=True)
    assert (imported.task, imported.fps, imported.count) == ("pusht", 10, 3)
    told, short = columns(), int(last == "drop")
    for number, episode in enumerate(imported.episodes):
        start, stop = (0, *ENDS)[number], ENDS[number] - short
        assert len(episode) == stop - start and len(episode.obs["state"]) == len(episode) + 1
        np.testing.assert_array_equal(episode.obs["images.img"][:-1], told["img"][start:stop])
        assert episode.obs["images.img"].dtype == np.uint8
        np.testing.assert_array_equal(episode.obs["state"][:-1], told["state"][start:stop].astype(np.float32))
        np.testing.assert_allclose(episode.action, told["action"][start:stop] / 256 - 1, atol=1e-6)
        np.testing.assert_array_equal(episode.extra["recorded_action"], told["action"][start:ENDS[number]])
        assert episode.succeeded and episode.terminated and (episode.source == Source.HUMAN).all()


def test_human_pusht(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "pusht_human/pusht_cchi_v7_replay.zarr.zip"
    imported = formats.read(path, action_range=(0, 512), keys=["state", "n_contacts"])
    assert imported.count == 206 and not any("[-1, 1]" in note for note in imported.notes)
    assert any("12 to 511" in note for note in formats.read(path).notes)
    store = Store.create(tmp_path / "store", task=imported.task, fps=imported.fps)
    episodes = list(imported.episodes)
    store.append(episodes)
    assert sum(map(len, episodes)) == 25_650
    for one, other in zip(episodes, store.read(), strict=True):
        assert_same(one, other)
    with np.load(shared_data / "pusht_human/pusht_human_lowdim.npz") as told:
        np.testing.assert_array_equal(np.concatenate([e.extra["recorded_action"] for e in episodes]), told["action"])
        np.testing.assert_array_equal(np.concatenate([e.obs["state"][:-1] for e in episodes]), told["state"])
    image = next(formats.read(path, keys=["img", "state"]).episodes).obs["images.img"]
    with zarr.storage.ZipStore(path, mode="r") as storage:
        np.testing.assert_array_equal(image[:-1], zarr.open_group(storage, mode="r")["data/img"][:len(image) - 1])


@pytest.mark.parametrize("name", ["x.zarr", "x.zarr.zip"])
def test_round_trip_is_exact(tmp_path: Path, name: str) -> None:
    episodes = [sample(i, 4 + i, terminated=bool(i % 2)) for i in range(3)]
    for episode in episodes:
        del episode.obs["depth.front"]
    formats.write("diffusion_policy", episodes, tmp_path / name, fps=30)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    imported = formats.read(tmp_path / name)
    assert imported.fps == 30 and imported.count == 3
    for one, other in zip(episodes, imported.episodes, strict=True):
        assert_same(one, other)


def test_what_is_written_is_a_replay_buffer(tmp_path: Path) -> None:
    """What ReplayBuffer asserts of its root: every key as long as the last end, every entry of meta readable."""
    episodes = [sample(1, 5), sample(2, 3)]
    diffusion_policy.write(episodes, tmp_path / "x.zarr", fps=10, action_range=(0, 512))
    root = zarr.open_group(str(tmp_path / "x.zarr"), mode="r")
    assert root.metadata.zarr_format == 2
    assert root["meta/episode_ends"][:].tolist() == [5, 8] and root["meta/episode_ends"].dtype == np.int64
    assert all(x.shape[0] == 8 for _, x in root["data"].arrays()) and {"front", "state", "action"} <= set(root["data"].array_keys())
    assert all(len(x[:]) == 2 for _, x in root["meta"].arrays())
    np.testing.assert_array_equal(root["data/front"][:5], episodes[0].obs["images.front"][:-1])
    np.testing.assert_allclose(root["data/action"][5:], 256 * (episodes[1].action + 1), rtol=1e-6)
    back = list(formats.read(tmp_path / "x.zarr", action_range=(0, 512)).episodes)
    np.testing.assert_allclose(back[1].proposed, episodes[1].proposed, atol=1e-6)


def test_depth_stays_depth(tmp_path: Path) -> None:
    formats.write("diffusion_policy", [sample(0, 3)], tmp_path / "x.zarr", fps=10)
    assert_same(sample(0, 3), next(formats.read(tmp_path / "x.zarr").episodes))


def test_episodes_that_differ_are_not_mixed(tmp_path: Path) -> None:
    for other in (sample(1, images=False), sample(1)):
        other.obs["state"] = other.obs["state"][:, :2]
        with pytest.raises(RealrlError, match=r"write .* apart"):
            diffusion_policy.write([sample(0), other], tmp_path / "x.zarr", fps=10)
    with pytest.raises(RealrlError, match="no episodes"):
        diffusion_policy.write([], tmp_path / "x.zarr.zip", fps=10)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x.zarr", "x.zarr.zip"])
def test_a_full_disk_is_one_line(tmp_path: Path, name: str) -> None:
    with small_disk(20_000), pytest.raises(RealrlError, match="free space"):
        formats.write("diffusion_policy", [sample(i, 20) for i in range(2)], tmp_path / name, fps=10)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("options", "words"), [
    ({"keys": ["image"]}, "img, n_contacts, state"), ({"action": "act"}, "action, img"), ({"state": ["pose"]}, "n_contacts, state"),
    ({"image_scale": 255}, "image_scale"), ({"filter": "x"}, "action_range"), ({"action_range": ("a", 1)}, "two numbers")])
def test_wrong_options_are_answered_with_what_there_is(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(RealrlError, match=words):
        list(formats.read(buffer(tmp_path / "x.zarr"), **options).episodes)


def test_pixels_between_0_and_1(tmp_path: Path) -> None:
    path = buffer(tmp_path / "x.zarr")
    array = zarr.open_group(str(path), mode="a")["data/img"]
    array[:] = array[:] / 255
    with pytest.raises(RealrlError, match="image_scale=255"):
        list(formats.read(path, image_scale=1).episodes)
    for options in ({}, {"image_scale": 255}):
        first = next(formats.read(path, **options).episodes)
        np.testing.assert_array_equal(first.obs["images.img"][:-1], columns()["img"][:4])


# ---- harm


class Trap:
    """Makes a folder when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def header(path: Path, array: str, **changes: Any) -> None:
    file = path / array / ".zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def pickle_filter(path: Path) -> None:
    header(path, "data/state", dtype="|O", filters=[{"id": "pickle"}], compressor=None)
    for chunk in (path / "data/state").glob("[0-9]*"):
        chunk.write_bytes(pickle.dumps(Trap(path.parent / "owned")))


def pickle_compressor(path: Path) -> None:
    header(path, "data/state", compressor={"id": "pickle"})
    for chunk in (path / "data/state").glob("[0-9]*"):
        chunk.write_bytes(pickle.dumps(Trap(path.parent / "owned")))


def huge_shape(path: Path) -> None:
    header(path, "data/action", shape=[2**50, 2])


def huge_chunks(path: Path) -> None:
    header(path, "data/action", chunks=[2**40, 2])


def negative(path: Path) -> None:
    header(path, "data/action", shape=[-11, 2])


def many_chunks(path: Path) -> None:
    header(path, "data/state", shape=[11, 10**6], chunks=[1, 1])


def blosc_lies(path: Path) -> None:
    chunk = path / "data/state/0.0"
    data = bytearray(chunk.read_bytes())
    data[4:8] = (2**31 - 1).to_bytes(4, "little")
    chunk.write_bytes(data)


def blosc_cut(path: Path) -> None:
    chunk = path / "data/state/0.0"
    chunk.write_bytes(chunk.read_bytes()[:-9])


def bomb(path: Path) -> None:
    header(path, "data/state", compressor={"id": "gzip", "level": 9})
    (path / "data/state/0.0").write_bytes(numcodecs.GZip(9).encode(bytes(2**25)))


def link_out(path: Path) -> None:
    (path.parent / "secret").write_bytes((path / "data/state/0.0").read_bytes())
    (path / "data/state/0.0").unlink()
    (path / "data/state/0.0").symlink_to(path.parent / "secret")


def folder_link_out(path: Path) -> None:
    (path / "data/state").rename(path.parent / "secret")
    (path / "data/state").symlink_to(path.parent / "secret")


def pipe(path: Path) -> None:
    (path / "data/state/0.0").unlink()
    os.mkfifo(path / "data/state/0.0")


def no_json(path: Path) -> None:
    (path / "data/state/.zarray").write_bytes(b"\xff{")


def deep_json(path: Path) -> None:
    (path / "data/state/.zarray").write_text("[" * 100_000)


def ends_fall(path: Path) -> None:
    zarr.open_group(str(path), mode="a")["meta/episode_ends"][:] = np.array([6, 4, 11])


def ends_beyond(path: Path) -> None:
    zarr.open_group(str(path), mode="a")["meta/episode_ends"][:] = np.array([6, 9, 12])


def object_type(path: Path) -> None:
    header(path, "data/state", dtype=[["a", "|O"]])


@pytest.mark.parametrize("harm", [pickle_filter, pickle_compressor, huge_shape, huge_chunks, negative, many_chunks, blosc_lies, blosc_cut,
                                  bomb, link_out, folder_link_out, pipe, no_json, deep_json, ends_fall, ends_beyond, object_type],
                         ids=lambda f: f.__name__)
def test_harm_is_one_line(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    path = buffer(tmp_path / "x.zarr", compressors=numcodecs.Blosc("zstd"))
    harm(path)
    with pytest.raises(RealrlError) as caught:
        list(formats.read(path, "diffusion_policy").episodes)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "data\\..\\x", "C:/x", "link"])
def test_a_zip_that_leads_outside_is_refused(tmp_path: Path, name: str) -> None:
    path = packed(buffer(tmp_path / "x.zarr"), tmp_path / "x.zip")
    with zipfile.ZipFile(path, "a") as file:
        info = zipfile.ZipInfo(name)
        info.external_attr = (0o120777 if name == "link" else 0o100644) << 16
        file.writestr(info, "/etc/passwd")
    with pytest.raises(RealrlError, match=r"leads outside|is a link"):
        formats.read(path, "diffusion_policy")


@pytest.mark.parametrize("codec", ["imagecodecs_jpegxl", "nobodys"])
def test_pictures_whose_codec_is_not_there_are_left_out(tmp_path: Path, codec: str) -> None:
    path = buffer(tmp_path / "x.zarr")
    header(path, "data/img", compressor={"id": codec, "level": 90})
    imported = formats.read(path)
    assert any("img is left out" in note and codec in note for note in imported.notes)
    assert [sorted(e.obs) for e in imported.episodes] == [["n_contacts", "state"]] * 3
    assert not any("left out" in note for note in formats.read(path, keys=["state"]).notes)
    with pytest.raises(RealrlError, match=f"{codec}, which is not installed; (pip install imagecodecs|write it again)"):
        formats.read(path, keys=["img", "state"])
    header(path, "data/action", compressor={"id": codec})
    with pytest.raises(RealrlError, match=codec):
        formats.read(path)


def test_text_among_the_arrays_is_left_out(tmp_path: Path) -> None:
    path = buffer(tmp_path / "x.zarr")
    zarr.open_group(str(path), mode="a").create_array("data/said", data=np.array(["push"] * 11))
    imported = formats.read(path)
    assert any("said is left out: it holds text" in note for note in imported.notes) and len(list(imported.episodes)) == 3


def test_a_file_cut_or_changed_anywhere_is_one_line_or_harmless(tmp_path: Path, long: bool) -> None:
    whole = packed(buffer(tmp_path / "x.zarr", compressors=numcodecs.Blosc("zstd")), tmp_path / "x.zip").read_bytes()
    cut, rng, refused = tmp_path / "cut.zip", np.random.default_rng(0), 0
    for number in range(200 if long else 50):
        data = bytearray(whole)
        if number % 5 == 0:
            data = data[:int(rng.integers(len(whole)))]
        else:
            for at in rng.integers(len(whole), size=3):
                data[at] = rng.integers(256)
        cut.write_bytes(data)
        try:
            list(formats.read(cut, "diffusion_policy").episodes)
        except RealrlError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused >= (number + 1) // 5


def test_chunks_changed_anywhere_never_end_the_interpreter(tmp_path: Path, long: bool) -> None:
    """In a folder no checksum stands between a damaged chunk and the decompressor."""
    rng, refused = np.random.default_rng(1), 0
    for name, codec in V2.items():
        path = buffer(tmp_path / name, compressors=codec)
        chunk = path / "data/state/0.0"
        whole = chunk.read_bytes()
        for _ in range(30 if long else 8):
            data = bytearray(whole)
            for at in rng.integers(len(data), size=int(rng.integers(1, 5))):
                data[at] = rng.integers(256)
            chunk.write_bytes(data[:int(rng.integers(1, 2 * len(data)))])
            try:
                next(formats.read(path, keys=["state"]).episodes)
            except RealrlError as error:
                assert "\n" not in str(error)
                refused += 1
    assert refused > (150 if long else 40)


def test_other_things_are_told_from_it(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.zip").write_text("no")
    os.mkfifo(tmp_path / "pipe")
    assert not any(diffusion_policy.detect(p) for p in tmp_path.iterdir())
    for name in ("folder", "text.zip"):
        with pytest.raises(RealrlError):
            formats.read(tmp_path / name, "diffusion_policy")
        with pytest.raises(RealrlError, match="in none of the formats"):
            formats.read(tmp_path / name)


def test_a_zarr_of_another_layout_is_told_what_is_read(tmp_path: Path) -> None:
    group = zarr.open_group(str(tmp_path / "x.zarr"), mode="w")
    for number in range(2):
        group.create_group(f"episode_{number}")
    with pytest.raises(RealrlError, match=r"meta/episode_ends says .this one holds episode_0, episode_1.: write it so"):
        formats.read(tmp_path / "x.zarr")


# ---- RL-100's own buffers


def rl100(path: Path, **changes: Any) -> Path:
    """Three episodes of 4, 3 and 5 steps in the layout of RL-100's release: success, time out, success; None leaves an array out."""
    rng, ends = np.random.default_rng(0), np.array([4, 7, 12])
    last = np.isin(np.arange(12), ends - 1)[:, None]
    frames = {"state": rng.normal(size=(15, 7)), "point_cloud": rng.normal(size=(15, 40, 3)),
              "img": rng.integers(0, 256, (15, 3, 16, 16)), "depth": rng.uniform(0.2, 2, (15, 16, 16))}
    here = np.concatenate([np.arange(a, b) + n for n, (a, b) in enumerate(zip((0, 4, 7), ends, strict=True))])
    x: dict[str, Any] = {"img": np.uint8}
    x = {k: v[here].astype(x.get(k, np.float32)) for k, v in frames.items()} | {
        f"next_{k}": v[here + 1].astype(x.get(k, np.float32)) for k, v in frames.items()}
    action, paid = rng.uniform(-1, 1, (12, 8)).astype(np.float32), np.array([2, -1, 2])
    x |= {"action": action, "next_action": np.roll(action, -1, 0), "reward": np.zeros((12, 1)), "return": np.zeros((12, 1)),
          "done": last * 1.0, "timeout": np.zeros((12, 1))}
    x["reward"][last] = paid
    x["done"][6], x["timeout"][6] = 0, 1
    root = zarr.create_group(str(path), zarr_format=2)
    for name, rows in (x | changes).items():
        if rows is not None:
            root.create_array(f"data/{name}", data=np.asarray(rows))
    root.create_array("meta/episode_ends", data=ends)
    return path


def test_rl100s_buffers_are_read_as_they_are_meant(tmp_path: Path) -> None:
    imported = formats.read(rl100(tmp_path / "x.zarr"))
    episodes, root = list(imported.episodes), zarr.open_group(str(tmp_path / "x.zarr"), mode="r")["data"]
    assert [len(e) for e in episodes] == [4, 3, 5] and [e.succeeded for e in episodes] == [True, False, True]
    assert [e.terminated for e in episodes] == [True, False, True] and [e.reward[-1] for e in episodes] == [2, -1, 2]
    assert any("2 of 3 episodes count as successes" in note and "reward above 0" in note for note in imported.notes)
    assert not any("repeated" in note for note in imported.notes)
    for episode, end in zip(episodes, (4, 7, 12), strict=True):
        assert sorted(episode.obs) == ["depth.depth", "images.img", "pointcloud", "state"]
        np.testing.assert_array_equal(episode.obs["state"][-1], root["next_state"][end - 1])
        np.testing.assert_array_equal(episode.obs["pointcloud"][-1], root["next_point_cloud"][end - 1])
        np.testing.assert_array_equal(episode.obs["images.img"][-1], np.moveaxis(root["next_img"][end - 1], 0, 2))
        np.testing.assert_allclose(episode.obs["depth.depth"][0], 1000 * root["depth"][end - len(episode)], atol=0.51)


LAST = np.isin(np.arange(12), [3, 6, 11])[:, None]


@pytest.mark.parametrize(("changes", "won", "ended"), [
    ({"reward": None, "return": None}, [1, 0, 1], [1, 0, 1]),
    ({"done": LAST * 1.0, "timeout": np.zeros((12, 1))}, [1, 0, 1], [1, 1, 1]),  # a failure that is an end
    ({"reward": np.ones((12, 1))}, [1, 0, 1], [1, 0, 1]), ({"reward": -np.ones((12, 1))}, [1, 0, 1], [1, 0, 1]),  # dense: the end counts
    ({"done": LAST, "timeout": None, "reward": None}, [0, 0, 0], [0, 0, 0]),  # says that episodes end, and no more
    ({"done": None, "timeout": None}, [1, 0, 1], [1, 0, 1]), ({"done": None, "timeout": None, "reward": np.ones(12)}, [0, 0, 0], [0, 0, 0]),
    ({"success": np.repeat([0, 1, 0], [4, 3, 5])}, [0, 1, 0], [1, 1, 1])])
def test_success_is_what_the_ends_say(tmp_path: Path, changes: dict[str, Any], won: list[int], ended: list[int]) -> None:
    imported = formats.read(rl100(tmp_path / "x.zarr", **changes), keys=["state"])
    episodes = list(imported.episodes)
    assert [int(e.succeeded) for e in episodes] == won and [int(e.terminated) for e in episodes] == ended
    assert any("count as successes" in n or "does not say which" in n for n in imported.notes)
    assert all(e.succeeded for e in formats.read(tmp_path / "x.zarr", keys=["state"], success=True).episodes)


def test_what_has_no_next_is_repeated(tmp_path: Path) -> None:
    imported = formats.read(rl100(tmp_path / "x.zarr", next_img=None))
    episode = next(imported.episodes)
    assert (episode.obs["images.img"][-1] == episode.obs["images.img"][-2]).all()
    assert (episode.obs["state"][-1] != episode.obs["state"][-2]).any()
    assert any("of img" in note for note in imported.notes)
    short = next(formats.read(tmp_path / "x.zarr", last="drop").episodes)
    assert len(short) == 3 and short.succeeded and len(short.obs["state"]) == 4


def test_the_clock_says_the_rate(tmp_path: Path) -> None:
    path = buffer(tmp_path / "x.zarr")
    clock = np.arange(11) / 30 + np.repeat([0, 50, 90], [4, 2, 5])
    zarr.open_group(str(path), mode="a").create_array("data/timestamp", data=clock)
    imported = formats.read(path)
    assert imported.fps == 30 and "timestamp" not in next(imported.episodes).obs
