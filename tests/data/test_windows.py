"""Windows with images: the same decisions, the same pictures, whatever they come from and however far ahead."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from realrl.data.cache import FrameCache, resize
from realrl.data.store import Store
from realrl.data.views import ChunkView
from realrl.data.windows import Frames, ImageWindows, VideoFrames, ahead
from realrl.types import Batch, Episode, RealrlError, Source

FPS, LENGTHS = 10, (5, 3, 4, 6)
KEYS = ("images.front", "images.wrist", "depth.front")
HOW = {"chunk": 3, "n_obs": 2, "gamma": 0.9}


def episode(n: int, number: int) -> Episode:
    rng = np.random.default_rng(number)
    front, wrist = (rng.integers(0, 255, (n + 1, 3, 4, 3)).repeat(16, 1).repeat(16, 2).astype(np.uint8) for _ in range(2))
    action = rng.random((n, 2), np.float32)
    return Episode(obs={"state": rng.random((n + 1, 3), np.float32), "images.front": front, "images.wrist": wrist,
                        "depth.front": rng.integers(0, 60000, (n + 1, 24, 32)).astype(np.uint16)}, action=action, proposed=action,
                   source=np.full(n, Source.HUMAN, np.uint8), reward=rng.random(n, np.float32), success=np.zeros(n, bool),
                   time=np.arange(n) / FPS, starts_plan=np.arange(n) % 3 == 0, terminated=bool(number % 2), truncated=not number % 2,
                   task="look", policy="none")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store, shown = Store.create(tmp_path_factory.mktemp("windows") / "data", task="look", fps=FPS, codec="h264"), [
        episode(n, i) for i, n in enumerate(LENGTHS)]
    for group in (shown[:1], shown[1:3], shown[3:]):
        store.append(group)
    FrameCache.build(store, progress=False)
    return store


@pytest.fixture(params=["cache", "videos"])
def frames(request: pytest.FixtureRequest, store: Store) -> Frames:
    return FrameCache.build(store, progress=False) if request.param == "cache" else VideoFrames(store, workers=2, keep=2)


def same(a: Batch, b: Batch) -> None:
    assert a.obs.keys() == b.obs.keys() and a.next_obs.keys() == b.next_obs.keys()
    for x, y in [(a.obs[k], b.obs[k]) for k in a.obs] + [(a.next_obs[k], b.next_obs[k]) for k in a.next_obs] + [
            (getattr(a, name), getattr(b, name)) for name in ("action", "reward", "discount", "valid", "source")]:
        assert x.dtype == y.dtype and np.array_equal(x.numpy(), y.numpy())


@pytest.mark.parametrize("every", ["step", "plan"])
@pytest.mark.parametrize("picked", [None, [2, 0], [3]])
def test_the_same_as_a_view_that_holds_all_images_in_memory(store: Store, frames: Frames, every: str, picked: list[int] | None) -> None:
    windows = ImageWindows(store, frames, every=every, episodes=picked, **HOW)
    view = ChunkView(store.read(picked), every=every, **HOW)
    assert len(windows) == len(view) > 0
    index = torch.arange(len(view)).flip(0)
    same(windows.batch(index), view.batch(index))
    batch = windows.batch(index)
    assert batch.obs["images.front"].shape == (len(view), 2, 48, 64, 3) and batch.obs["images.front"].dtype == torch.uint8
    assert batch.obs["depth.front"].shape == (len(view), 2, 24, 32) and batch.obs["depth.front"].dtype == torch.uint16


def test_without_next_images(store: Store, frames: Frames) -> None:
    index = torch.tensor([4, 4, 0])
    batch, whole = (ImageWindows(store, frames, next_images=n, **HOW).batch(index) for n in (False, True))
    assert set(batch.next_obs) == {"state"} and set(batch.obs) == {"state", *KEYS}
    assert torch.equal(batch.obs["images.wrist"], whole.obs["images.wrist"])


def test_sampling_repeats_with_its_generator(store: Store, frames: Frames) -> None:
    windows = ImageWindows(store, frames, **HOW)
    same(*(windows.sample(7, torch.Generator().manual_seed(1)) for _ in range(2)))


def test_videos_resized_on_the_way_are_the_cache_resized(store: Store) -> None:
    rows = {"images.front": np.array([[3, 0], [7, 3]])}
    small = VideoFrames(store, size=(24, 32), names=["images.front"]).gather(rows)["images.front"]
    full = FrameCache.build(store, progress=False).gather(rows)["images.front"]
    assert np.array_equal(small.numpy(), resize(full.numpy().reshape(4, 48, 64, 3), (24, 32)).reshape(2, 2, 24, 32, 3))
    assert np.array_equal(small.numpy(), FrameCache.build(store, size=(24, 32), progress=False).gather(rows)["images.front"].numpy())


def test_videos_are_shared_by_threads_and_few_stay_open(store: Store) -> None:
    videos, whole = VideoFrames(store, workers=2, keep=1), FrameCache.build(store, progress=False)
    draws = [{key: np.random.default_rng(i).integers(0, 22, 9) for key in KEYS} for i in range(12)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(videos.gather, draws))
    for got, rows in zip(found, draws, strict=True):
        wanted = whole.gather(rows)
        assert all(np.array_equal(got[key].numpy(), wanted[key].numpy()) for key in KEYS)
    assert len(videos._open) == 1
    videos.close()
    assert not videos._open


def test_a_stream_depends_on_seed_and_number_alone(store: Store, frames: Frames) -> None:
    windows = ImageWindows(store, frames, **HOW)
    first = list(itertools.islice(windows.stream(4, seed=5, prefetch=0), 5))
    for batches in (windows.stream(4, seed=5, start=2), windows.stream(4, seed=5, start=2, prefetch=0)):
        for got, wanted in zip(batches, first[2:], strict=False):
            same(got, wanted)
    other = next(windows.stream(4, seed=6, prefetch=0))
    assert not torch.equal(other.action, first[0].action)


def threads() -> int:
    return sum(t.name == "prefetch" for t in threading.enumerate())


def test_the_thread_ends_with_its_iterator(store: Store) -> None:
    stream = ImageWindows(store, FrameCache.build(store, progress=False), **HOW).stream(2, seed=0, prefetch=2)
    next(stream)
    assert threads() == 1
    stream.close()
    assert threads() == 0


def test_what_goes_wrong_ahead_is_raised_where_it_is_used(store: Store) -> None:
    batch = ImageWindows(store, VideoFrames(store), **HOW).batch(torch.tensor([0]))

    def two() -> list[Batch]:
        yield batch
        raise RealrlError("the video is gone")

    items = ahead(two(), 3)
    assert next(items) is batch
    with pytest.raises(RealrlError, match="the video is gone"):
        next(items)
    assert threads() == 0 and list(ahead(iter([batch, batch]), 1)) == [batch, batch]


def test_a_damaged_video_is_named(store: Store, tmp_path: Path) -> None:
    videos = VideoFrames(store, names=["images.front"])
    path = videos.cameras["images.front"].paths[0]
    content = path.read_bytes()
    path.write_bytes(content[:200])
    try:
        with pytest.raises(RealrlError, match=path.name):
            videos.gather({"images.front": np.array([0])})
    finally:
        path.write_bytes(content)
    assert videos.gather({"images.front": np.array([0])})["images.front"].shape == (1, 48, 64, 3)


def test_a_dataset_that_changed_meanwhile_is_refused(store: Store, tmp_path: Path) -> None:
    other = Store.create(tmp_path / "other", task="look", fps=FPS)
    other.append([episode(n, i) for i, n in enumerate((5, 2, 4, 6))])
    with pytest.raises(RealrlError, match="episode 1 has another length than when its images were looked up"):
        ImageWindows(store, VideoFrames(other), **HOW)
