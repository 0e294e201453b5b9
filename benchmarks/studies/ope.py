"""Does off-policy evaluation rank policies rightly? Rank correlation with true success, over the candidates that runs' gates judged.

    python -m benchmarks.studies.ope --runs runs/bench

Reads every ope.json below --runs: what each measure estimated for a candidate, and its success in the simulator, measured after all
training and used for nothing. Estimates of different runs come from different models, so they are ranked within their run only; the
pooled figure correlates these ranks. Intervals: 95 % bootstrap over runs and over the candidates within them.
Writes benchmarks/results/ope.jsonl.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from benchmarks.lib.common import RESULTS, Table
from realrl.types import RealrlError

MEASURES = {"amq": "ope_amq", "returns": "ope_returns", "success": "ope_success"}
Points = Sequence[tuple[float, float]]  # (estimate, truth) of a run's candidates


def read_runs(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """run and round -> its candidates; every round has a model of its own, so only they can be ranked against each other. Rounds with
    one candidate, or whose candidates are all equally good, cannot be ranked: left out."""
    found = {}
    for file in sorted(folder.rglob("ope.json")):
        try:
            points = json.loads(file.read_text())["points"]
        except (ValueError, KeyError, TypeError) as error:
            raise RealrlError(f"{file}: not the audit of a run ({error}): delete it, or train that run again") from None
        for stage in dict.fromkeys(p["stage"] for p in points):
            mates = [p for p in points if p["stage"] == stage]
            if len({p["true_success"] for p in mates}) > 1:
                found[f"{file.parent.relative_to(folder)} {stage}"] = mates
    return found


def ranks(points: Points) -> np.ndarray:
    """Ranks within a run, centred and scaled to variance 1: [N, 2]; zeros in a column that is constant."""
    columns = [rankdata(column) for column in zip(*points, strict=True)]
    return np.stack([(c - c.mean()) / (c.std() or 1.0) for c in columns], 1)


def pooled(runs: Sequence[Points]) -> float:
    """Correlation of the ranks of all runs; with one run, Spearman's coefficient. 0 when a side is constant."""
    x, y = np.concatenate([ranks(points) for points in runs]).T
    scale = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / scale) if scale > 0 else 0.0


def interval(runs: Sequence[Points], draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of `pooled`: runs are drawn with replacement, and candidates within each."""
    rng, out = np.random.default_rng(seed), []
    for _ in range(draws):
        chosen = [runs[i] for i in rng.integers(len(runs), size=len(runs))]
        out.append(pooled([[points[j] for j in rng.integers(len(points), size=len(points))] for points in chosen]))
    low, high = np.percentile(out, [2.5, 97.5])
    return float(low), float(high)


def main(words: list[str] | None = None) -> int:
    """Correlate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/bench"), help="folder that holds finished runs")
    parser.add_argument("--results", type=Path, default=RESULTS / "ope.jsonl")
    args = parser.parse_args(words)
    found = read_runs(args.runs)
    if not found:
        print(f"{args.runs}: no run in it has an ope.json with at least 3 candidates of different success", file=sys.stderr)
        return 1
    table = Table(args.results, ("measure", "run"))
    for measure, column in MEASURES.items():
        runs = {name: [(p[column], p["true_success"]) for p in points] for name, points in found.items()}
        groups = {**{name: [points] for name, points in runs.items()}, "all": list(runs.values())}
        for name, group in groups.items():
            low, high = interval(group)
            table.put({"measure": measure, "run": name, "runs": len(group), "candidates": sum(map(len, group)),
                       "true_episodes": min(p["true_n"] for points in (found[name],) for p in points) if name != "all" else None,
                       "spearman": pooled(group), "low": low, "high": high})
            print(f"    {pooled(group):+.2f} [{low:+.2f}, {high:+.2f}]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
