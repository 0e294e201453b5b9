"""Training samples a second from video: the frame cache and direct decoding beside a plain PyAV loader and LeRobot's own.

    LEROBOT_PYTHON=/path/to/venv/bin/python python -m benchmarks.loading

A sample is a window of 2 observations (2 cameras of 96x96 and a state) and 8 actions, a batch 64 of them, drawn at random from 50
episodes of 200 frames in AV1. All read the same folder, one after the other, with as many workers as there are cores (or, where it says so,
none). The second part samples low-dimensional windows, 256 at a time. Writes benchmarks/results/loading.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from benchmarks.lib.common import RESULTS, Table
from realrl.data.cache import FrameCache, cameras, cores
from realrl.data.store import Store
from realrl.data.views import ChunkView
from realrl.data.windows import ImageWindows, VideoFrames
from realrl.types import Array, Batch, Episode, RealrlError, Source

BATCH, N_OBS, CHUNK, SIZE, FPS = 64, 2, 8, 96, 10
CAMERAS = ("images.front", "images.wrist")


# -- the recordings ------------------------------------------------------------------------------------------------------------


def film(rng: np.random.Generator, frames: int) -> Array:
    """A coloured disc that wanders over a patterned, slightly noisy table: [frames, SIZE, SIZE, 3] uint8."""
    y, x = np.mgrid[:SIZE, :SIZE]
    table = rng.integers(60, 200, (12, 12, 3)).repeat(SIZE // 12, 0).repeat(SIZE // 12, 1)
    pictures = np.clip(table + rng.normal(0, 3, (frames, SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
    centre = np.clip(SIZE / 2 + np.cumsum(rng.normal(0, 2, (frames, 2)), 0), 8, SIZE - 8)
    for picture, (cx, cy) in zip(pictures, centre, strict=True):
        picture[(x - cx) ** 2 + (y - cy) ** 2 < 80] = rng.integers(0, 255, 3)
    return pictures


def recording(rng: np.random.Generator, frames: int) -> Episode:
    """An episode with two cameras, a state of 7 numbers and 7 joint actions."""
    action = np.tanh(np.cumsum(rng.normal(0, 0.1, (frames, 7)), 0)).astype(np.float32)
    obs = {"state": rng.normal(size=(frames + 1, 7)).astype(np.float32), **{key: film(rng, frames + 1) for key in CAMERAS}}
    return Episode(obs=obs, action=action, proposed=action, source=np.full(frames, Source.SCRIPT, np.uint8),
                   reward=np.zeros(frames, np.float32), success=np.zeros(frames, bool), time=np.arange(frames) / FPS,
                   starts_plan=np.ones(frames, bool), terminated=False, truncated=True, task="push", policy="random walk", seed=None)


def record(folder: Path, episodes: int, frames: int) -> Store:
    """The dataset that everybody reads."""
    rng, store = np.random.default_rng(0), Store.create(folder, task="push", fps=FPS)
    for _ in range(episodes):
        store.append([recording(rng, frames)])
    store.compact()  # as a dataset is published: few large files
    return store


# -- the ways ------------------------------------------------------------------------------------------------------------------


def per_frame(store: Store) -> Iterator[dict[str, Any]]:
    """The loader one would write first: for each frame open the file, seek, decode up to it."""
    found, view = cameras(store), ChunkView(store.read(images=False), chunk=CHUNK, n_obs=N_OBS, gamma=0.99)
    rng = np.random.default_rng(0)
    while True:
        index = rng.integers(0, len(view), BATCH)
        batch = view.batch(torch.from_numpy(index))
        images: dict[str, list[Array]] = {key: [] for key in found}
        for i in index:
            episode = int(view.episode[i])
            for key, camera in found.items():
                steps = [max(0, int(view.start[i]) + h) for h in range(1 - N_OBS, 1)]
                images[key] += [one_frame(camera.paths[camera.file[episode]], camera.seconds[camera.first[episode] + t]) for t in steps]
        pixels = {key: torch.from_numpy(np.stack(x)).unflatten(0, (BATCH, N_OBS)) for key, x in images.items()}
        yield {"action": batch.action, **batch.obs, **pixels}


def one_frame(path: Path, seconds: float) -> Array:
    """Open, seek, decode."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        container.seek(int(seconds / stream.time_base), stream=stream)
        for picture in container.decode(stream):
            if picture.time > seconds - 0.5 / FPS:
                return picture.to_ndarray(format="rgb24")
    raise RealrlError(f"{path} has no frame at {seconds:.3f} s")


def as_floats(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Images as LeRobot gives them: float32 in [0, 1], channels first."""
    for batch in batches:
        for key in CAMERAS:
            batch.obs[key] = batch.obs[key].permute(0, 1, 4, 2, 3).contiguous().float().div_(255)
        yield batch


def rate(batches: Iterator[Any], seconds: float) -> tuple[int, float]:
    """(batches, seconds), after three to warm up."""
    for _ in range(3):
        next(batches)
    count, began = 0, time.perf_counter()
    while time.perf_counter() < began + seconds:
        next(batches)
        count += 1
    return count, time.perf_counter() - began


def lerobot(python: Path, folder: Path, workers: int, backend: str, seconds: float) -> dict[str, Any]:
    """LeRobot's figures from its own environment. Raises RealrlError with its last line when it does not run there."""
    ask = {"batch": BATCH, "n_obs": N_OBS, "chunk": CHUNK, "workers": workers, "backend": backend, "seconds": seconds}
    script = Path(__file__).with_name("lerobot_loader.py")
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    ran = subprocess.run([python, script, folder, json.dumps(ask)], capture_output=True, text=True, env=clean)
    if ran.returncode:
        raise RealrlError(f"{python} cannot run LeRobot's loader ({backend}): {(ran.stderr.strip().splitlines() or ['no reason'])[-1]}")
    found: dict[str, Any] = json.loads(ran.stdout.strip().splitlines()[-1])
    return found


# -- the table -----------------------------------------------------------------------------------------------------------------


def images(store: Store, args: argparse.Namespace, table: Table) -> None:
    """Every way of loading windows with images."""
    began = time.perf_counter()
    cache = FrameCache.build(store)
    build_s = time.perf_counter() - began
    common = {"chunk": CHUNK, "n_obs": N_OBS, "gamma": 0.99, "next_images": False}
    cached = ImageWindows(store, cache, **common)
    direct = ImageWindows(store, VideoFrames(store), **common)
    ways: dict[str, Callable[[], Iterator[Any]]] = {
        "cache": lambda: cached.stream(BATCH, seed=0, prefetch=0),
        "cache, prefetching": lambda: cached.stream(BATCH, seed=0),
        "cache, prefetching, float32 channels first": lambda: as_floats(cached.stream(BATCH, seed=0)),
        "direct decoding": lambda: direct.stream(BATCH, seed=0),
        "plain PyAV, a frame a call": lambda: per_frame(store)}

    def put(method: str, count: int, seconds: float, **more: Any) -> None:
        figure = count * BATCH / seconds
        table.put({"kind": "images", "method": method, "samples_per_s": figure, "batches": count, "wall_s": round(seconds, 2),
                   "episodes": len(store), "frames": store.frames, **more})
        print(f"    {figure:,.0f} samples/s")

    for method, way in ways.items():
        extra = {"build_s": round(build_s, 2), "cache_mb": cache.nbytes / 1e6} if method == "cache" else {}
        put(method, *rate(way(), args.seconds), **extra)
    for backend, workers in (("torchcodec", 0), ("torchcodec", cores()), ("pyav", cores())) if args.lerobot_python else ():
        try:
            found = lerobot(args.lerobot_python, store.dir, workers, backend, args.seconds)
        except RealrlError as error:
            print(error, file=sys.stderr)
            continue
        put(f"LeRobot {found['version']}, {backend}, {workers or 'no'} workers", found["batches"], found["wall_s"],
            their_torch=found["torch"])


def numbers(frames: int, calls: int, table: Table) -> None:
    """256 low-dimensional windows a call, out of sets of two sizes."""
    rng = np.random.default_rng(0)
    for total in (10_000, frames):
        action = rng.random((200, 28), np.float32)
        shown = [Episode(obs={"state": rng.random((201, 39), np.float32)}, action=action, proposed=action, source=np.zeros(200, np.uint8),
                         reward=np.zeros(200, np.float32), success=np.zeros(200, bool), time=np.arange(200) / FPS,
                         starts_plan=np.ones(200, bool), terminated=False, truncated=True, task="door", policy="none")
                 for _ in range(total // 200)]
        view, generator, taken = ChunkView(shown, chunk=CHUNK, n_obs=N_OBS, gamma=0.99), torch.Generator().manual_seed(0), []
        for _ in range(calls):
            began = time.perf_counter()
            view.sample(256, generator)
            taken.append(1e3 * (time.perf_counter() - began))
        table.put({"kind": "numbers", "method": f"{total:,} frames", "p50_ms": statistics.median(taken),
                   "p90_ms": float(np.percentile(taken, 90)), "calls": calls, "batch": 256})
        print(f"    {statistics.median(taken):.3f} ms a batch of 256")


def main(words: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lerobot-python", type=Path, metavar="PATH", default=os.environ.get("LEROBOT_PYTHON"),
                        help="interpreter of an environment that has lerobot (default: $LEROBOT_PYTHON; none: LeRobot is not run)")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--frames", type=int, default=200, help="of every episode")
    parser.add_argument("--seconds", type=float, default=10, help="of every way")
    parser.add_argument("--smoke", action="store_true", help="a few short episodes, to see that the script works; no results are kept")
    args = parser.parse_args(words)
    if args.smoke:
        args.episodes, args.frames, args.seconds = 3, 30, 0.3
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="loading-") as home:
        table = Table((Path(home) if args.smoke else RESULTS) / "loading.jsonl", ("kind", "method"))
        images(record(Path(home) / "dataset", args.episodes, args.frames), args, table)
        numbers(20_000 if args.smoke else 500_000, 30 if args.smoke else 1000, table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
