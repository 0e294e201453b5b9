"""Decoded frames on disk: right, shared, extended, never wrong whatever was killed, cut or changed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from realrl.data import cache as module
from realrl.data import video
from realrl.data.cache import FrameCache, cameras, resize
from realrl.data.store import Store
from realrl.types import Episode, RealrlError, Source

FPS, LENGTHS = 10, (5, 3, 4, 6)


def episode(n: int, number: int) -> Episode:
    """Frames that say which they are, by their brightness; depth [mm] that says it exactly."""
    grey = (40 * number + 5 * np.arange(n + 1))[:, None, None, None] % 250
    front = (grey + np.zeros((1, 48, 64, 3))).astype(np.uint8)
    front[:, 10:20, 30:50] = [250, 10, 10]
    depth = (1000 * number + 10 * np.arange(n + 1)[:, None, None] + np.arange(24)[:, None] + np.zeros((1, 1, 32))).astype(np.uint16)
    action = np.zeros((n, 2), np.float32)
    return Episode(obs={"state": np.full((n + 1, 3), number, np.float32), "images.front": front, "depth.front": depth}, action=action,
                   proposed=action, source=np.full(n, Source.SCRIPT, np.uint8), reward=np.zeros(n, np.float32), success=np.zeros(n, bool),
                   time=np.arange(n) / FPS, starts_plan=np.ones(n, bool), terminated=True, truncated=False, task="look", policy="none")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four episodes; the middle two share their files, and so have their last pictures behind the others."""
    folder = tmp_path_factory.mktemp("recorded") / "data"
    store, shown = Store.create(folder, task="look", fps=FPS, codec="h264"), [episode(n, i) for i, n in enumerate(LENGTHS)]
    for group in (shown[:1], shown[1:3], shown[3:]):
        store.append(group)
    return folder


@pytest.fixture
def folder(recorded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded, tmp_path / "data"))


def everything(cache: FrameCache, key: str) -> np.ndarray:
    return cache.gather({key: np.arange(cache.cameras[key].first[-1])})[key].numpy()


def truth(folder: Path, key: str) -> np.ndarray:
    return np.concatenate([e.obs[key] for e in Store.open(folder).read()])


def quiet(dataset: Path, **options: Any) -> FrameCache:
    return FrameCache.build(Store.open(dataset), progress=False, **options)


def mark(cache: FrameCache, key: str = "images.front") -> None:
    """Spoil the first frame on disk, to see later whether it was decoded again."""
    with cache.files[key].open("r+b") as file:
        file.write(b"\x07" * cache.cameras[key].frame_bytes)


def marked(cache: FrameCache, key: str = "images.front") -> bool:
    return bool((everything(cache, key)[0] == 7).all())


# ---- what is in it


def test_every_frame_is_what_reading_gives(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cache = FrameCache.build(Store.open(folder))
    out, err = capfd.readouterr()
    assert "decoding 44 frames of 2 cameras: 0.00 GB" in err and not out, "the size is announced, and not where results are printed"
    for key in ("images.front", "depth.front"):
        assert np.array_equal(everything(cache, key), truth(folder, key))
    assert cache.nbytes == 22 * (48 * 64 * 3 + 24 * 32 * 2) == sum(f.stat().st_size for f in cache.files.values())
    assert FrameCache.build(Store.open(folder)).files == cache.files and not capfd.readouterr().err, "nothing left to do, nothing to say"


def test_after_compaction_and_for_other_peoples_recordings(folder: Path) -> None:
    """Theirs lack the picture after the last action: the last one seen is repeated."""
    before = quiet(folder)
    Store.open(folder).compact()
    compacted = quiet(folder)
    assert np.array_equal(everything(compacted, "images.front"), everything(before, "images.front"))
    for path in (folder / "meta/episodes").rglob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.select([c for c in table.column_names if not c.endswith("last_timestamp")]), path)
    theirs = quiet(folder)
    frames, first = everything(theirs, "images.front"), theirs.cameras["images.front"].first
    assert np.array_equal(frames, truth(folder, "images.front"))
    assert all(np.array_equal(frames[stop - 1], frames[stop - 2]) for stop in first[1:].tolist())


def test_rows_of_any_shape_and_one_camera(folder: Path) -> None:
    cache = quiet(folder, names=["depth.front"])
    assert list(cache.cameras) == ["depth.front"] and not (folder / "cache/observation.images.front").exists()
    rows = np.array([[0, 21], [6, 5]])
    found = cache.gather({"depth.front": rows})["depth.front"]
    assert found.dtype == torch.uint16 and found.shape == (2, 2, 24, 32)
    assert np.array_equal(found.numpy(), truth(folder, "depth.front")[rows])


def test_resized_frames(folder: Path, tmp_path: Path) -> None:
    small, full = quiet(folder, size=(24, 32), folder=tmp_path / "fast disk"), quiet(folder)
    assert small.files["images.front"].is_relative_to(tmp_path / "fast disk")
    for key in ("images.front", "depth.front"):
        assert np.array_equal(everything(small, key), resize(everything(full, key), (24, 32)))
    assert small.gather({"images.front": np.array([3])})["images.front"].shape == (1, 24, 32, 3)


def test_resizing_averages_colours_and_picks_distances(folder: Path) -> None:
    stripes = np.tile(np.array([0, 200], np.uint8)[None, None, :, None], (1, 4, 2, 3))
    assert set(np.unique(resize(stripes, (2, 1)))) == {100}
    depth = np.arange(36, dtype=np.uint16).reshape(1, 6, 6)
    assert resize(depth, (2, 2)).tolist() == [[[7, 10], [25, 28]]]
    assert resize(depth, (6, 6)) is depth and resize(depth, None) is depth
    with pytest.raises(RealrlError, match="cannot be resized to 0 x 3"):
        quiet(folder, size=(0, 3))


# ---- what changes


def test_appended_episodes_extend_it(folder: Path) -> None:
    old = quiet(folder)
    mark(old)
    Store.open(folder).append([episode(7, 5)])
    new = quiet(folder)
    assert new.files == old.files and marked(new), "what was there is not decoded again"
    assert np.array_equal(everything(new, "images.front")[22:], Store.open(folder).read([4])[0].obs["images.front"])


def test_a_changed_episode_and_those_after_it_are_decoded_again(folder: Path) -> None:
    old = quiet(folder)
    kept = everything(old, "images.front")
    mark(old)
    (path, _) = Store.open(folder).pictures(3, "images.front")
    video.encode(path, np.full((7, 48, 64, 3), 99, np.uint8), FPS, "h264")
    new = quiet(folder)
    assert new.files["images.front"] != old.files["images.front"] and new.files["depth.front"] == old.files["depth.front"]
    assert marked(new) and np.array_equal(everything(new, "images.front")[1:15], kept[1:15])
    assert np.abs(everything(new, "images.front")[15:].astype(int) - 99).max() < 4
    assert np.array_equal(everything(old, "images.front")[1:], kept[1:]), "who has mapped the old file keeps it"
    assert not old.files["images.front"].exists(), "but its name is gone"


def test_another_dataset_in_the_same_place_is_not_mistaken_for_it(folder: Path) -> None:
    mark(quiet(folder))
    keep = folder.parent / "keep"
    shutil.move(folder / "cache", keep)
    shutil.rmtree(folder)
    store = Store.create(folder, task="look", fps=FPS, codec="h264")
    store.append([episode(n, 3 - i) for i, n in enumerate(LENGTHS)])
    shutil.move(keep, folder / "cache")
    assert np.array_equal(everything(quiet(folder), "images.front"), truth(folder, "images.front"))


# ---- what goes wrong


def test_a_killed_build_goes_on(folder: Path) -> None:
    """Killed as soon as the index counts an episode: what it counts is right, and is not done again."""
    index = folder / "cache/observation.images.front/full/index.json"
    code = ("import sys, time; from realrl.data import cache; from realrl.data.store import Store; cache.COMMIT_S = 0.0\n"
            "slow = cache._episode_frames\n"
            "def slowly(*a):\n    time.sleep(0.2)\n    yield from slow(*a)\n"
            "cache._episode_frames = slowly\n"
            "cache.FrameCache.build(Store.open(sys.argv[1]), workers=1, progress=False)")
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)])
    deadline = time.monotonic() + 60
    while not (index.exists() and json.loads(index.read_text())["fingerprints"]) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = len(json.loads(index.read_text())["fingerprints"])
    assert 1 <= done < 4
    file = index.parent / "frames-0.bin"
    with file.open("r+b") as f:
        f.write(b"\x07" * (48 * 64 * 3))
        f.seek(0, os.SEEK_END)
        f.write(b"half a frame")
    cache = quiet(folder)
    assert marked(cache) and np.array_equal(everything(cache, "images.front")[1:], truth(folder, "images.front")[1:])


@pytest.mark.parametrize("name", ["index.json", "frames-0.bin"])
def test_cut_anywhere(folder: Path, name: str) -> None:
    """An index or a file that lost its end never gives wrong frames."""
    cache = quiet(folder, names=["depth.front"])
    file, right = cache.files["depth.front"].with_name(name), truth(folder, "depth.front")
    size = file.stat().st_size
    for at in range(0, size, max(1, size // 12)):
        file = quiet(folder, names=["depth.front"]).files["depth.front"]
        os.truncate(file.with_name(name) if name == "index.json" else file, at)
        assert np.array_equal(everything(quiet(folder, names=["depth.front"]), "depth.front"), right)


@settings(max_examples=60, deadline=None)
@given(st.recursive(st.none() | st.integers(0, 5) | st.sampled_from(["frames-0.bin", "../../meta/info.json", "/etc/passwd"]),
                    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.sampled_from(["version", "file", "shape", "fingerprints"]), x)))
def test_an_index_from_elsewhere_leads_nowhere(tmp_path_factory: pytest.TempPathFactory, content: object) -> None:
    home = tmp_path_factory.getbasetemp() / "hostile"
    home.mkdir(exist_ok=True)
    (home / "index.json").write_text(json.dumps(content))
    assert module._Index.read(home).file in ("", "frames-0.bin")


def test_the_disk_is_too_small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(RealrlError, match=r"decoding 44 frames takes 0.00 GB, only 0.00 GB are free; give another folder"):
        quiet(folder)
    assert not list((folder / "cache").rglob("*.bin"))


def test_the_disk_fills_up(folder: Path) -> None:
    """A limit on the file's size stands for it: one line, and what was done is kept."""
    code = ("import resource, signal, sys; from realrl.data import cache; from realrl.data.store import Store\n"
            "from realrl.types import RealrlError\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
            "try:\n    cache.FrameCache.build(Store.open(sys.argv[1]), names=['images.front'], workers=1, progress=False)\n"
            "except RealrlError as error:\n    print(error)")
    said = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True).stdout
    assert "the cache cannot be written (File too large)" in said
    done = json.loads((folder / "cache/observation.images.front/full/index.json").read_text())["fingerprints"]
    assert len(done) == 2, "ten frames, two episodes, fit"
    assert np.array_equal(everything(quiet(folder), "images.front"), truth(folder, "images.front"))


def test_a_folder_that_cannot_be_written(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RealrlError, match=r"the cache cannot be written \(Not a directory\); free space there or give another folder"):
        quiet(folder, folder=tmp_path / "file")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root, who may write everywhere
    with pytest.raises(RealrlError, match=r"the cache cannot be written \(Permission denied\)"):
        quiet(folder)


def test_interrupted_it_stops_soon_and_keeps_what_is_done(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the bar moves: no episode is begun any more."""
    begun: list[int] = []
    decode = module._episode_frames

    def watched(camera: module.FilmTable, number: int) -> Iterator[np.ndarray]:
        begun.append(number)
        time.sleep(0.1)
        yield from decode(camera, number)

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_episode_frames", watched)
    monkeypatch.setattr(module.Progress, "advance", interrupt)
    with pytest.raises(KeyboardInterrupt):
        quiet(folder, names=["images.front"], workers=1)
    assert begun in ([0], [0, 1])
    monkeypatch.undo()
    index = folder / "cache/observation.images.front/full/index.json"
    assert len(json.loads(index.read_text())["fingerprints"]) == 1
    assert np.array_equal(everything(quiet(folder), "images.front"), truth(folder, "images.front"))


def test_a_damaged_video_stops_it_and_mending_goes_on(folder: Path) -> None:
    right = truth(folder, "images.front")
    path, _ = Store.open(folder).pictures(3, "images.front")
    content = path.read_bytes()
    path.write_bytes(content[:len(content) // 2])
    with pytest.raises(RealrlError, match=path.name):
        quiet(folder, names=["images.front"])
    path.write_bytes(content)
    index = folder / "cache/observation.images.front/full/index.json"
    assert len(json.loads(index.read_text())["fingerprints"]) == 3
    assert np.array_equal(everything(quiet(folder, names=["images.front"]), "images.front"), right)


def test_a_video_of_another_recording(folder: Path) -> None:
    path, _ = Store.open(folder).pictures(3, "images.front")
    video.encode(path, np.zeros((4, 48, 64, 3), np.uint8), FPS, "h264")
    with pytest.raises(RealrlError, match=r"ends after 4 of the 7 frames of episode 3; .*run `realrl data check"):
        quiet(folder)
    video.encode(path, np.zeros((7, 24, 64, 3), np.uint8), FPS, "h264")
    with pytest.raises(RealrlError, match=r"its frames are \[24, 64, 3\], those of the first film \[48, 64, 3\]"):
        quiet(folder)
    video.encode(path, np.zeros((7, 48, 64, 3), np.uint8), 7, "h264")
    with pytest.raises(RealrlError, match=r"episode 3 has a frame at 0.2857 s that the tables do not know"):
        quiet(folder)
    path.unlink()
    with pytest.raises(RealrlError, match=r"cannot be read \(No such file or directory\)"):
        quiet(folder)


def test_no_cameras(tmp_path: Path, folder: Path) -> None:
    store = Store.create(tmp_path / "blind", task="feel", fps=FPS)
    with pytest.raises(RealrlError, match="has no episodes"):
        cameras(store)
    blind = episode(3, 0)
    blind.obs = {"state": blind.obs["state"]}
    store.append([blind])
    with pytest.raises(RealrlError, match="has no cameras; record some, or train without images"):
        cameras(store)
    with pytest.raises(RealrlError, match=r"no camera 'images.wrist'"):
        quiet(folder, names=["images.wrist"])


def test_several_processes_build_one_cache(folder: Path) -> None:
    code = ("import sys; from realrl.data.cache import FrameCache; from realrl.data.store import Store\n"
            "cache = FrameCache.build(Store.open(sys.argv[1]))\nfirst = cache.cameras['images.front'].first[:-1]\n"
            "print(cache.gather({'images.front': first})['images.front'].long().sum().item())")
    ran = [subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = {process.communicate()[0] for process in ran}
    assert [process.returncode for process in ran] == [0, 0]
    first = cameras(Store.open(folder))["images.front"].first[:-1]
    assert said == {f"{truth(folder, 'images.front')[first].astype(int).sum()}\n"}


def test_the_second_builder_waits_and_says_so(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base = folder / "cache"
    with module._turn(base, progress=False):
        other = threading.Thread(target=FrameCache.build, args=(Store.open(folder),), kwargs={"names": ["depth.front"]})
        other.start()
        deadline = time.monotonic() + 30
        while "waiting for another process" not in (said := capfd.readouterr().err) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert "waiting for another process" in said and other.is_alive()
    other.join(30)
    assert not other.is_alive()
    assert (base / "observation.depth.front/full/index.json").exists()
