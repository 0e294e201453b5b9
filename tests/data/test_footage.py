"""Cameras in the store: pictures in and out, several episodes to a file, and nothing lost whatever dies when."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from test_store import PROCESSES, die_at, digest, episode, errors, one_camera, pictures

from realrl.data import footage, video
from realrl.data.stats import image_stats, sampled_frames
from realrl.data.store import Store
from realrl.data.tools.check import check, describe
from realrl.types import Array, Episode, RealrlError

FILMS = ("images.top", "images.wrist", "depth.top")


def new(directory: Path, codec: video.Codec = "h264") -> Store:
    return Store.create(directory, task="task 0", fps=50, codec=codec)


def bare(e: Episode) -> Episode:
    return dataclasses.replace(e, obs={k: v for k, v in e.obs.items() if k not in FILMS})


def same(read: Episode, made: Episode) -> bool:
    """Numbers and depth exactly, colours as nearly as a codec keeps them; a neighbouring frame would differ by 5."""
    films = [(read.obs[k].astype(int), made.obs[k]) for k in FILMS if k in made.obs]
    near = all(np.array_equal(a, b) if b.ndim == 3 else np.abs(a - b).mean() < 2 for a, b in films)
    return near and digest(bare(read)) == digest(bare(made))


def seen(store: Store) -> list[dict[str, bytes]]:
    return [{k: e.obs[k].tobytes() for k in FILMS if k in e.obs} for e in store.read()]


def test_pictures_come_back_where_they_were(tmp_path: Path) -> None:
    made = [episode(i, 5 + i, film=True) for i in range(6)]
    store = new(tmp_path / "d")
    store.append(made[:3])
    store.append(made[3:4])
    store.append(made[4:])
    reader = Store.open(tmp_path / "d")
    assert reader.cameras == list(FILMS)
    for got in (store.read(), reader.read(), reader.read([3, 1, 4, 0, 2, 5])):
        by_task = sorted(got, key=lambda e: e.policy)
        assert all(same(r, m) for r, m in zip(by_task, made, strict=True))
    assert {len(list((tmp_path / "d").glob(f"videos/observation.{k}/*/*.mp4"))) for k in FILMS} == {3}
    plain = reader.read(images=False)
    assert [digest(e) for e in plain] == [digest(bare(e)) for e in made]
    path, at = reader.pictures(1, "images.wrist")
    assert np.array_equal(video.decode(path, at), reader.read([1])[0].obs["images.wrist"]) and len(at) == len(made[1]) + 1
    assert check(tmp_path / "d", decode=True) == []


def test_the_layout_of_cameras_is_lerobots(tmp_path: Path) -> None:
    store = new(tmp_path / "d")
    made = [episode(i, 8, film=True) for i in range(2)]
    store.append(made)
    info = json.loads((tmp_path / "d/meta/info.json").read_text())
    assert info["video_path"] == "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    wrist = info["features"]["observation.images.wrist"]
    assert wrist["dtype"] == "video" and wrist["shape"] == [32, 48, 3] and wrist["names"] == ["height", "width", "channels"]
    told = {"video.height": 32, "video.width": 48, "video.codec": "h264", "video.pix_fmt": "yuv420p", "video.fps": 50, "video.channels": 3,
            "video.is_depth_map": False, "has_audio": False, "video.encoder": "libx264"}
    assert wrist["info"] == told
    assert info["features"]["observation.depth.top"]["info"]["video.is_depth_map"] is True
    table = pq.read_table(tmp_path / "d/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    fields = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    spans = [[r[f"videos/observation.images.top/{k}"] for k in fields] for r in table]
    assert spans == [[0, 0, 0.0, 0.16], [0, 0, 0.16, 0.32]]  # back to back: readers count frames
    mean = np.array(table[0]["stats/observation.images.top/mean"])
    assert mean.shape == (3, 1, 1) and abs(mean[0, 0, 0] - made[0].obs["images.top"][:-1].mean() / 255) < 0.03
    stats = json.loads((tmp_path / "d/meta/stats.json").read_text())
    assert np.array(stats["observation.images.wrist"]["q99"]).shape == (3, 1, 1) and stats["observation.images.wrist"]["count"] == [16]
    assert "observation.images.top" not in pq.read_schema(tmp_path / "d/data/chunk-000/file-000.parquet").names


def test_av1_is_the_default_and_another_writer_keeps_to_the_first_one(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "d", task="t", fps=50)
    store.append([episode(0, 4, film=True)])
    assert store.info["features"]["observation.images.top"]["info"]["video.codec"] == "av1"
    again = Store.open_or_create(tmp_path / "d", task="t", fps=50, codec="h264")
    again.append([episode(1, 4, film=True)])
    again.compact()
    assert all(same(r, episode(i, 4, film=True)) for i, r in enumerate(again.read())) and check(tmp_path / "d") == []
    with pytest.raises(RealrlError, match="codec 'mpeg' is not one of av1, h264"):
        Store.create(tmp_path / "e", task="t", fps=50, codec="mpeg")


def test_image_statistics_are_those_of_the_pixels() -> None:
    rng = np.random.default_rng(0)
    film = rng.integers(0, 256, (20, 32, 40, 3), np.uint8)
    got, flat = image_stats(film), film.reshape(-1, 3) / 255
    assert got["count"] == [20]
    for name, true in {"min": flat.min(0), "max": flat.max(0), "mean": flat.mean(0), "std": flat.std(0)}.items():
        np.testing.assert_allclose(got[name][:, 0, 0], true, atol=1e-12)
    for name, q in {"q01": 0.01, "q50": 0.5, "q99": 0.99}.items():
        np.testing.assert_allclose(got[name][:, 0, 0], np.quantile(flat, q, axis=0), atol=1 / 255)
    depth = image_stats(rng.integers(1000, 2000, (2, 32, 32), np.uint16))
    assert depth["mean"].shape == (1, 1, 1) and 1000 / 65535 < depth["mean"][0, 0, 0] < 2000 / 65535
    assert sampled_frames(7).tolist() == list(range(7)) and len(sampled_frames(1000)) == 177 and sampled_frames(1000)[-1] == 999


# ---- encoded while it was recorded


def encoded(film: Array, codec: video.Codec = "h264", fps: int = 50) -> tuple[video.Header, list[video.Packet]]:
    encoder = video.PacketEncoder(film.shape[2], film.shape[1], fps, codec, depth=film.ndim == 3)
    packets = [p for frame in film for p in encoder.encode(frame)]
    return encoder.header, packets + encoder.finish()


def test_encoded_packets_are_as_good_as_pictures(tmp_path: Path) -> None:
    made, stores = [episode(i, 9 + i, film=True) for i in range(3)], [new(tmp_path / "a"), new(tmp_path / "b")]
    for e in made:
        stores[0].append([e])
        films = {k: encoded(e.obs[k]) for k in FILMS}
        assert stores[1].append_encoded(bare(e), films) == len(stores[1]) - 1
    assert seen(stores[0]) == seen(stores[1]) and check(tmp_path / "b") == []
    stores[1].compact()
    assert seen(stores[0]) == seen(Store.open(tmp_path / "b"))
    told = [json.loads((s.dir / "meta/stats.json").read_text())["observation.images.top"]["mean"] for s in stores]
    np.testing.assert_allclose(*told, atol=0.02)


def test_an_encoder_that_stands_still_is_left_alone_and_another_encodes_the_film(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footage, "STUCK", 0.3)
    made, film = list[video.PacketEncoder](), pictures(0, 5)
    plain = footage.encode([(film, "h264")], 10.0)

    class Standing(video.PacketEncoder):
        still = 1

        def encode(self, frame: Array) -> list[video.Packet]:
            if not made or self is not made[-1]:
                made.append(self)
            if len(made) <= self.still and self._count == 2:
                threading.Event().wait()
            return super().encode(frame)

    monkeypatch.setattr(video, "PacketEncoder", Standing)
    with pytest.warns(UserWarning, match="the film is encoded anew"):
        assert footage.encode([(film, "h264")], 10.0) == plain and len(made) == 2
    Standing.still = 99
    with pytest.warns(UserWarning), pytest.raises(RealrlError, match="3 video encoders one after another"):
        footage.encode([(film, "h264")], 10.0)
    with pytest.raises(RealrlError, match="cannot be encoded"):  # the work's own faults come through at once
        footage.encode([(np.zeros((2, 0, 4, 3), np.uint8), "h264")], 10.0)


def test_packets_that_do_not_belong_are_refused(tmp_path: Path) -> None:
    store, e = new(tmp_path / "d"), episode(1, 9, film=True)
    films = {k: encoded(e.obs[k]) for k in FILMS}
    store.append_encoded(bare(e), films)
    wrong = {
        "must have 10 packets": {"images.top": (films["images.top"][0], films["images.top"][1][:-1])},
        r"video.codec av1, the dataset has h264": {"images.top": encoded(e.obs["images.top"], "av1")},
        r"video.width 40, the dataset has 32": {"images.top": encoded(pictures(1, 10, 40))},
        r"at 30 fps, the dataset runs at 50": {"images.top": encoded(e.obs["images.top"], fps=30)},
    }
    for message, change in wrong.items():
        with pytest.raises(RealrlError, match=message):
            store.append_encoded(bare(e), films | change)
    with pytest.raises(RealrlError, match=r"observation.images.wrist is missing"):
        store.append_encoded(bare(e), {k: v for k, v in films.items() if k != "images.wrist"})
    assert len(store) == 1 and check(tmp_path / "d") == []


@pytest.mark.parametrize(("obs", "message"), [
    ({"images.top": np.zeros((10, 32, 40, 3), np.uint8)}, r"episode 1 .*images.top is uint8 \[10, 32, 40, 3\], wanted uint8 \[10, 32, 32"),
    ({"images.top": np.zeros((10, 32, 32, 3), np.float32)}, r"images.top is float32"),
    ({"images.top": np.zeros((9, 32, 32, 3), np.uint8)}, r"images.top has shape \(9, 32, 32, 3\), wanted \[10"),
    ({"depth.top": np.zeros((10, 32, 32), np.uint8)}, r"depth.top is uint8 .* wanted uint16"),
    ({"images.new": np.zeros((10, 32, 32, 3), np.uint8)}, r"images.new is not in the dataset"),
])
def test_pictures_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path, obs: dict[str, Array], message: str) -> None:
    store, e = new(tmp_path / "d"), episode(1, 9, film=True)
    store.append([e])
    before = sorted((tmp_path / "d").rglob("*"))
    with pytest.raises(RealrlError, match=message):
        store.append([dataclasses.replace(e, obs={**e.obs, **obs})])
    with pytest.raises(RealrlError, match=r"images.top is missing"):
        store.append([dataclasses.replace(e, obs={k: v for k, v in e.obs.items() if k != "images.top"})])
    assert sorted((tmp_path / "d").rglob("*")) == before
    with pytest.raises(RealrlError, match=r"observation.images.x is float32 .* a camera is uint8"):
        new(tmp_path / "e").append([dataclasses.replace(e, obs={"images.x": np.zeros((10, 3), np.float32)})])


# ---- compaction


def test_compaction_copies_pictures_and_keeps_every_one(tmp_path: Path) -> None:
    store = new(tmp_path / "d")
    made = [episode(i, 3 + i, film=True) for i in range(9)]  # odd and even lengths: a last picture may need the one before it
    for a, b in ((0, 1), (1, 4), (4, 5), (5, 6), (6, 9)):
        store.append(made[a:b])
    before, reader = seen(store), Store.open(tmp_path / "d")
    store.compact()
    assert len(list((tmp_path / "d").glob("videos/*/*/*.mp4"))) == len(FILMS) == describe(tmp_path / "d")["video_files"]
    assert seen(store) == before == seen(reader)  # also one that was open while the files moved
    store.append([episode(9, 4, film=True)])
    store.compact()
    assert seen(Store.open(tmp_path / "d"))[:9] == before and check(tmp_path / "d", decode=True) == []
    rows = store.rows.to_pylist()
    spans = [(r["videos/observation.images.top/from_timestamp"], r["length"] / 50) for r in rows]
    assert np.allclose(np.cumsum([0, *(n for _, n in spans)])[:-1], [start for start, _ in spans])


def test_files_of_other_settings_are_not_joined(tmp_path: Path) -> None:
    frames = np.zeros((4, 16, 16, 3), np.uint8)
    video.encode(tmp_path / "a.mp4", frames, 30, "h264")
    for name, x, fps, codec in (("size", frames[:, :, :8], 30, "h264"), ("rate", frames, 20, "h264"), ("codec", frames, 30, "ffv1")):
        video.encode(tmp_path / f"{name}.mp4", x, fps, codec)
        with pytest.raises(RealrlError, match="different settings"):
            footage.merge([(tmp_path / "a.mp4", 4), (tmp_path / f"{name}.mp4", 4)], io.BytesIO())


def test_video_files_stay_within_their_limit(tmp_path: Path) -> None:
    store = new(tmp_path / "d")
    path = tmp_path / "d/meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"video_files_size_in_mb": 1}))
    store = Store.open(tmp_path / "d")
    noise = np.random.default_rng(0).integers(0, 2**16, (8, 21, 64, 64), np.uint16)
    for i in range(8):
        store.append([dataclasses.replace(episode(i, 20), obs={"state": np.zeros((21, 1), np.float32), "depth.top": noise[i]})])
    store.compact()
    files = list((tmp_path / "d").glob("videos/*/*/*.mp4"))
    assert 1 < len(files) < 8 and all(f.stat().st_size < 2**20 for f in files)
    assert all(np.array_equal(e.obs["depth.top"], x) for e, x in zip(store.read(), noise, strict=True))


# ---- damage and death


def test_a_missing_or_torn_video_is_named_and_the_numbers_still_read(tmp_path: Path) -> None:
    store = new(tmp_path / "d")
    made = [episode(i, 12, film=True) for i in range(2)]
    for e in made:
        store.append([e])
    path = tmp_path / "d/videos/observation.images.top/chunk-000/file-001.mp4"
    whole = path.read_bytes()
    for cut in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:cut])
        try:
            assert same(store.read([1])[0], made[1]) and cut > 0.9 * len(whole)  # only a trailing comment is lost
        except RealrlError as error:
            assert "file-001.mp4" in str(error) and "\n" not in str(error) and errors(tmp_path / "d")
    path.unlink()
    with pytest.raises(RealrlError, match=r"file-001\.mp4 is missing.*--option missing=episodes.*images=False.*data repair"):
        Store.open(tmp_path / "d").read()
    assert [digest(e) for e in store.read(images=False)] == [digest(bare(e)) for e in made]
    assert same(store.read([0])[0], made[0])


def _record(directory: str, acknowledged: str, first: int) -> None:
    store, log = Store.open(directory), os.open(acknowledged, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for i in range(first, first + 100_000):
        (index,) = store.append([one_camera(episode(i, 6, film=True))])
        os.write(log, f"{index} {i}\n".encode())
        if i % 3 == 0:
            store.compact()


def test_a_killed_writer_loses_no_picture_it_returned_for(tmp_path: Path) -> None:
    new(tmp_path / "d")
    log, rng = tmp_path / "acknowledged", np.random.default_rng(3)
    log.touch()
    for life in range(5):
        size = log.stat().st_size
        writer = PROCESSES.Process(target=_record, args=(str(tmp_path / "d"), str(log), 1000 * life))
        writer.start()
        while log.stat().st_size == size and writer.is_alive():
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.2))
        assert writer.pid is not None and writer.is_alive()
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        assert errors(tmp_path / "d") == []
        promised = [tuple(map(int, line.split())) for line in log.read_text().splitlines()]
        there = Store.open(tmp_path / "d").read()
        assert all(same(there[index], one_camera(episode(i, 6, film=True))) for index, i in promised)
        assert len(there) - len(promised) <= life + 1
    Store.open(tmp_path / "d").append([one_camera(episode(5, film=True))])
    assert not [p for p in check(tmp_path / "d", decode=True) if "set aside" not in p.what]


@pytest.mark.parametrize("action", ["append", "compact"])
def test_death_at_every_rename_and_removal_leaves_whole_pictures(tmp_path: Path, action: str) -> None:
    store = new(tmp_path / "base")
    for i in range(2):
        store.append([one_camera(episode(i, 4, film=True))])
    before, n = seen(store), 0
    while True:
        n += 1
        folder = tmp_path / f"d{n}"
        shutil.copytree(tmp_path / "base", folder)
        process = PROCESSES.Process(target=die_at, args=(n, str(folder), action, True))
        process.start()
        process.join()
        assert errors(folder) == []
        store = Store.open(folder)
        assert seen(store)[:2] == before and len(store) in (2, 4 if action == "append" else 2)
        store.append([one_camera(episode(99, 4, film=True))])
        assert same(store.read([len(store) - 1])[0], one_camera(episode(99, 4, film=True)))
        assert {p.what for p in check(folder)} <= ({"unfinished recording, set aside"} if action == "append" else set())
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert n > (5 if action == "append" else 10)
