"""Recording three cameras of 640 x 480 at 30 Hz: does the control loop keep its rate, and does the encoder keep up?

A loop renders three moving scenes with noise and calls `Recorder.add` every 1/30 s, as a robot would. For each codec it prints the
rate that was reached, what `add` took, how late the loop's ticks were, how many frames had to go to disk, how many waited for
the encoder when the episode ended, how long they then took, and the processors used. A rising backlog means that the rate does not
hold: then `limit_hz` says what the encoder can sustain, from frames encoded in the time it had.

    python -m benchmarks.recording --seconds 20
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lib.common import RESULTS, Table
from realrl.data.record.recorder import Recorder
from realrl.types import Array, Obs, Source, Step

HEIGHT, WIDTH = 480, 640


class Scene:
    """What a camera might see: a textured table that drifts, two shapes that move, and the noise of a sensor."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        coarse = rng.integers(40, 200, (HEIGHT // 20 + 2, WIDTH // 20 + 2, 3)).astype(np.float32)
        row, column = np.arange(HEIGHT) / 20, np.arange(WIDTH * 2) % (WIDTH + 20) / 20
        r, c = row.astype(int), column.astype(int)
        u, v = (row - r)[:, None, None], (column - c)[None, :, None]
        up, down = ((1 - v) * coarse[r + k][:, c] + v * coarse[r + k][:, c + 1] for k in (0, 1))
        self.table = ((1 - u) * up + u * down).astype(np.uint8)
        self.noise = rng.integers(0, 7, (8, HEIGHT, WIDTH, 3)).astype(np.uint8)  # +-3 grey levels

    def __call__(self, t: int) -> Array:
        shift = t % 20
        picture = self.table[:, shift:shift + WIDTH].copy()
        for k, colour in enumerate(((220, 40, 40), (40, 60, 210))):
            y, x = int(200 + 150 * np.sin(t / 20 + k)), int(300 + 230 * np.cos(t / 27 + 2 * k))
            picture[y:y + 80, x:x + 60] = colour
        picture += self.noise[t % len(self.noise)]
        return picture


def scenes(cameras: int) -> list[list[Array]]:
    """Two seconds of every camera, rendered beforehand: a robot's pictures cost its loop nothing but the copy."""
    return [[scene(t) for t in range(60)] for scene in map(Scene, range(cameras))]


def observation(films: list[list[Array]], t: int) -> Obs:
    swing = t % 118
    return {**{f"images.cam{k}": film[min(swing, 118 - swing)] for k, film in enumerate(films)},
            "state": np.full(14, t, np.float32)}


def cpu_seconds() -> float:
    """Processor time of this process and of the encoder processes that have ended."""
    told = os.times()
    return told.user + told.system + told.children_user + told.children_system


def run(codec: str, seconds: float, hz: int, films: list[list[Array]], ring_mb: int) -> dict[str, Any]:
    """One episode in real time."""
    folder = Path(tempfile.mkdtemp(prefix="recording-"))
    frames, took, late, began_cpu = round(seconds * hz), [], [], cpu_seconds()
    try:
        with Recorder(folder / "set", task="benchmark", fps=hz, cameras={f"cam{k}": (HEIGHT, WIDTH) for k in range(len(films))},
                      codec=codec, ring_mb=ring_mb) as recorder:  # type: ignore[arg-type]
            recorder.start_episode()
            action, begin = np.zeros(7, np.float32), time.monotonic()
            for t in range(frames):
                time.sleep(max(0.0, begin + t / hz - time.monotonic()))
                late.append(time.monotonic() - begin - t / hz)
                step = Step(observation(films, t), action, action, Source.POLICY, 0.0, False, False, False, time.monotonic())
                at = time.perf_counter()
                recorder.add(step)
                took.append(time.perf_counter() - at)
            loop, backlog = time.monotonic() - begin, recorder.stats.backlog
            at = time.perf_counter()
            recorder.finish(observation(films, frames), terminated=True, truncated=False)
            finish, stats = time.perf_counter() - at, recorder.stats
            while recorder.stats.backlog:
                time.sleep(0.005)
            encoded = time.monotonic() - begin
            recorder.flush()
            committed = time.monotonic() - begin
        size = sum(p.stat().st_size for p in (folder / "set/videos").rglob("*.mp4"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    ms = np.array(took) * 1e3
    holds = backlog < hz and stats.spilled == 0
    return {
        "codec": codec, "cameras": len(films), "hz": hz, "size": [HEIGHT, WIDTH], "frames": frames,
        "reached_hz": (frames - 1) / late_span(late, hz), "holds": holds, "limit_hz": None if holds else frames / encoded,
        "add_ms": {"p50": float(np.median(ms)), "p99": float(np.quantile(ms, 0.99)), "max": float(ms.max())},
        "finish_ms": finish * 1e3, "late_ms": {"p99": float(np.quantile(late, 0.99) * 1e3), "max": float(max(late) * 1e3)},
        "spilled": stats.spilled, "backlog": backlog, "catch_up_s": encoded - loop, "commit_s": committed - loop,
        "cpu_cores": (cpu_seconds() - began_cpu) / committed, "megabytes": size / 1e6}


def late_span(late: list[float], hz: int) -> float:
    """Seconds from the first tick to the last."""
    return (len(late) - 1) / hz + late[-1] - late[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the episode")
    parser.add_argument("--hz", type=int, nargs="+", default=[30], help="rates to try")
    parser.add_argument("--cameras", type=int, default=3)
    parser.add_argument("--codecs", nargs="+", default=["h264", "av1"])
    parser.add_argument("--ring-mb", type=int, default=128, help="memory for frames that wait for the encoder")
    parser.add_argument("--out", type=Path, default=RESULTS / "recording.jsonl")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    films, table = scenes(args.cameras), Table(args.out, ["codec", "cameras", "hz"])
    for codec in args.codecs:
        for hz in args.hz:
            row = run(codec, args.seconds, hz, films, args.ring_mb)
            table.put(row)
            print(report(row), flush=True)


def report(row: dict[str, Any]) -> str:
    """What a person wants to read of a row."""
    add, late = row["add_ms"], row["late_ms"]
    verdict = "holds" if row["holds"] else f"does NOT hold, the encoder sustains {row['limit_hz']:.1f} Hz"
    return (f"  {row['reached_hz']:.2f} Hz reached; add {add['p50']:.2f} / {add['p99']:.2f} / {add['max']:.1f} ms (p50 / p99 / max); "
            f"late {late['p99']:.1f} / {late['max']:.1f} ms (p99 / max); finish {row['finish_ms']:.1f} ms\n"
            f"  {verdict}: {row['spilled']} spilled, backlog {row['backlog']}, caught up {row['catch_up_s']:.2f} s and committed "
            f"{row['commit_s']:.2f} s after the last frame; {row['cpu_cores']:.2f} cores, {row['megabytes']:.1f} MB")


if __name__ == "__main__":
    main()
