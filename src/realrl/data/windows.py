"""Training windows with camera images: the decisions of `ChunkView`, their frames from a cache or decoded on the spot.

The numbers of a dataset (states, actions, rewards) stay in memory, its images do not. Both sources of frames answer to
`gather(rows)`: `realrl.data.cache.FrameCache` copies them out of a mapped file; `VideoFrames` decodes what a batch needs, file by
file and in order of time, for those who have more cores than disk.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from realrl.data.cache import FilmTable, Recordings, Size, cameras, cores, resize
from realrl.data.video import Reader
from realrl.data.views import ChunkView
from realrl.files import derive
from realrl.types import Array, Batch, RealrlError


class Frames(Protocol):
    """A source of images: rows of every camera's table of all frames, see `FilmTable`."""

    cameras: dict[str, FilmTable]

    def gather(self, rows: Mapping[str, Array]) -> dict[str, Tensor]:
        """Frames [*shape, H, W, 3] uint8 (depth: [*shape, H, W] uint16) at these rows, whatever their shape."""
        ...


class VideoFrames:
    """Frames decoded when they are asked for. May be used by one thread at a time.

    size: (height, width) to resize to; names: cameras, all by default; workers: decoding threads, one a core by default; keep: how many
    videos stay open. Raises RealrlError when a video is damaged or holds no frame at an episode's time.
    """

    def __init__(self, data: Recordings, *, size: Size | None = None, names: Sequence[str] | None = None, workers: int | None = None,
                 keep: int = 64) -> None:
        self.recorded = cameras(data, names)
        self.cameras = {key: camera.resized(size) for key, camera in self.recorded.items()}
        self._size, self._keep = size, keep
        self._pool = ThreadPoolExecutor(workers or cores(), thread_name_prefix="decode")
        self._open: OrderedDict[Path, Reader] = OrderedDict()  # the last one used at the end
        self._lock = threading.Lock()

    def gather(self, rows: Mapping[str, Array]) -> dict[str, Tensor]:
        """See `Frames`. A frame that is asked for several times is decoded once."""
        jobs, found = [], {}
        for key, wanted in rows.items():
            camera = self.cameras[key]
            unique, back = np.unique(wanted, return_inverse=True)
            frames = np.empty((len(unique), *camera.shape), camera.dtype)
            found[key] = frames, back.reshape(np.shape(wanted))
            file = camera.file_of(unique)
            for number in np.unique(file):
                mine = np.flatnonzero(file == number)
                jobs.append((key, camera.paths[number], camera.seconds[unique[mine]], frames, mine))
        for future in [self._pool.submit(self._decode, *job) for job in jobs]:
            future.result()
        return {key: torch.from_numpy(frames[back]) for key, (frames, back) in found.items()}

    def close(self) -> None:
        """End the threads and close the videos."""
        self._pool.shutdown()
        while self._open:
            self._open.popitem()[1].close()

    def _decode(self, key: str, path: Path, seconds: Array, frames: Array, mine: Array) -> None:
        """Fill frames[mine]. The reader is this thread's own until it is put back."""
        with self._lock:
            reader = self._open.pop(path, None)
        camera = self.recorded[key]
        reader = reader or Reader(path, camera.coding)
        pixels = reader.decode(seconds, camera.tolerance)
        if pixels.shape[1:] != (shape := camera.shape):
            raise RealrlError(f"{path}: its frames are {list(pixels.shape[1:])}, info.json says {list(shape)}; restore it from a copy")
        frames[mine] = resize(pixels, self._size)
        closing = [reader]
        with self._lock:
            if path not in self._open:
                self._open[path] = closing.pop()
            if len(self._open) > self._keep:
                closing.append(self._open.popitem(last=False)[1])
        for old in closing:
            old.close()


class ImageWindows:
    """All decisions of a dataset with images: `ChunkView` for the numbers, `frames` for the cameras, one `Batch` of both.

    episodes: their indices in the dataset, all by default; next_images: whether `next_obs` holds images too, which imitation does
    not look at; chunk, n_obs, gamma, every, device: as for `ChunkView`. Images stay uint8 [B, H, height, width, 3] (depth: uint16
    [B, H, height, width]); where an episode has no frame after its last step the last one seen is repeated.
    """

    def __init__(self, data: Recordings, frames: Frames, *, chunk: int, n_obs: int, gamma: float, every: str = "step",
                 episodes: Sequence[int] | None = None, next_images: bool = True, device: str | torch.device = "cpu") -> None:
        picked = np.arange(len(data)) if episodes is None else np.asarray(episodes, np.int64)
        read = data.read(picked.tolist(), images=False)
        self.view = ChunkView(read, chunk=chunk, n_obs=n_obs, gamma=gamma, every=every, device=device)
        self.frames, self.next_images, self.device = frames, next_images, torch.device(device)
        first = np.cumsum([0, *(len(e) + 1 for e in read)])
        self._rows = {key: _rows(camera, picked, first) for key, camera in frames.cameras.items()}

    @property
    def episode(self) -> Tensor:
        """Which episode a decision is of, [N]."""
        return self.view.episode

    def __len__(self) -> int:
        return len(self.view)

    def batch(self, index: Tensor) -> Batch:
        """The decisions at `index` [B]."""
        batch = self.view.batch(index)
        now, after = (rows.cpu().numpy() for rows in self.view.rows(index))
        wanted = np.concatenate([now, after]) if self.next_images else now
        images = self.frames.gather({key: rows[wanted] for key, rows in self._rows.items()})
        for key, pixels in images.items():
            placed = _to(pixels, self.device)
            batch.obs[key] = placed[:len(now)]
            if self.next_images:
                batch.next_obs[key] = placed[len(now):]
        return batch

    def sample(self, size: int, generator: torch.Generator) -> Batch:
        """A uniform batch, with replacement."""
        return self.batch(torch.randint(len(self), (size,), generator=generator, device=self.device))

    def stream(self, size: int, *, seed: int, start: int = 0, prefetch: int = 2) -> Iterator[Batch]:
        """Uniform batches without end. Batch i depends on (seed, i) alone, so a run resumes with `start`.

        prefetch: how many batches a background thread keeps ready, 0 for none. What goes wrong there is raised here; the thread
        ends when the iterator is closed or forgotten.
        """
        def batches() -> Iterator[Batch]:
            for i in itertools.count(start):
                yield self.sample(size, torch.Generator(self.device).manual_seed(derive(seed, i)))

        return ahead(batches(), prefetch) if prefetch else batches()


def ahead(items: Iterator[Batch], depth: int) -> Iterator[Batch]:
    """The same items, made by a thread that stays up to `depth` of them ahead."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: Batch | BaseException | None) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                return ready.put(item, timeout=0.1)

    def work() -> None:
        try:
            for item in items:
                put(item)
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:  # raised again where the items are used
            put(error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


def _rows(camera: FilmTable, episodes: Array, first: Array) -> Array:
    """The camera's row of every observation of some episodes, one after the other. first: where they begin among each other."""
    lengths = np.diff(first)
    if (wrong := np.flatnonzero(np.diff(camera.first)[episodes] != lengths)).size:
        raise RealrlError(f"{camera.root}: episode {episodes[wrong[0]]} has another length than when its images were looked up; "
                          "open the frames again")
    rows: Array = np.repeat(camera.first[episodes] - first[:-1], lengths) + np.arange(first[-1])
    return rows


def _to(pixels: Tensor, device: torch.device) -> Tensor:
    """On the device, from pinned memory where that lets the copy overlap with what runs there."""
    return pixels.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else pixels.to(device)
