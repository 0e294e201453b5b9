"""The tables of `benchmarks/peers.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PARTS = ("all", "collect", "update")
ONLINE = ("online RL, processor ms an environment step", "cores", "all", "collection", "update", "all, wall ms", "times ours",
          "by wall time", "collection: times ours, with and without recording", "update: times ours", "network", "what a round is")
IMITATION = ("U-Net imitation", "cores", "processor ms a gradient step", "wall ms", "times ours", "by wall time", "network", "batch")
PLAN = ("a plan at batch 1", "cores", "processor ms", "wall ms", "times faster than LeRobot", "by wall time", "network")


def _of(rows: Sequence[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    return [r for r in rows if r["what"] == what]


def _times(row: dict[str, Any], name: str) -> list[str]:
    """By processor time, by wall time."""
    return [f"{row[name][clock]:.2f}" if name in row else "-" for clock in ("cpu", "wall")]


def online(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A line a contestant."""
    lines = []
    for r in _of(rows, "online"):
        mine, bare = (r.get(f"times {who}") for who in ("realrl", "realrl, not recorded"))
        ratios = ([f"**{mine['cpu']['all']:.2f}**", f"{mine['wall']['all']:.2f}", f"{mine['cpu']['collect']:.2f}, "
                   f"{bare['cpu']['collect']:.2f}", f"{mine['cpu']['update']:.2f}"] if mine and bare else ["-"] * 4)
        share = f", {100 * r['pairs']:.0f} % of the pairs a pass" if "pairs" in r else ""
        what = (f"{r['steps']:,} steps of {r['envs']} environments, {r['denoising']} denoising steps, {r['learned']} of them learn, "
                f"{r['epochs']} epochs, minibatches of {r['minibatch']:,}{share}")
        lines.append([r["who"], str(r["threads"]), *(f"{r['cpu_ms'][p]:.3f}" for p in PARTS), f"{r['wall_ms']['all']:.3f}", *ratios,
                      f"{r['parameters'] / 1e6:.2f} M", what])
    return lines


def imitation(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A line a contestant and number of cores."""
    return [[r["who"], str(r["threads"]), f"{r['cpu_ms']:.1f}", f"{r['wall_ms']:.1f}", *_times(r, "times realrl"),
             f"{r['parameters'] / 1e6:.2f} M", str(r["batch"])] for r in _of(rows, "imitation")]


def plan(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A line a contestant."""
    return [[r["who"], str(r["threads"]), f"{r['cpu_ms']:.2f}", f"{r['wall_ms']:.2f}", *_times(r, "times faster"),
             f"{r['parameters'] / 1e6:.2f} M"] for r in _of(rows, "plan")]


GRIDS = ((ONLINE, online), (IMITATION, imitation), (PLAN, plan))
