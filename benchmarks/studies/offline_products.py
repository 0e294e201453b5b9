"""What an offline round's estimates were worth: what was said of each product that finished runs tried, beside what its trials said.

    python -m benchmarks.studies.offline_products       # the runs that `benchmarks/rl100_all.py` left; trains and tries nothing

Trials of a round's product and of what the round began with lie in every run's recordings, from the same training starts with the same
noise; the estimates, drift and the errors of critics and model in its logs and checkpoints. A round's product that is not better than
what it began with was sent back by these trials, so nothing here is about evaluation starts. Rows go to
benchmarks/results/offline_products.jsonl, one a product.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.lib.baselines import labelled
from benchmarks.lib.common import RESULTS, Table
from realrl import config
from realrl.algos.rl100 import RL100Config
from realrl.data.store import Store
from realrl.run import read_metrics, read_parts

KEY = ("task", "seed", "round", "product")
FITTED = ("value_explained", "model_r2", "model_error")


def products(folder: Path, cfg: RL100Config, m: int) -> list[dict[str, Any]]:
    """A row for each product that round m (from 0) of a run tried: RL's, re-imitation's, or both."""
    points = folder / "checkpoints"
    records = read_parts(points / f"offline-{m + 1}-candidates")[1]["judged"]["records"]
    of = {int(r["iteration"]): r for r in records}
    passed = [i for i, r in of.items() if i > 0 and r["accepted"]]
    if not {-1, 0} <= of.keys():  # nothing was re-imitated, or an encoder was
        return []
    began = read_parts(points / f"offline-{m}")[1]["trials"]["tried"] if m else "rollout-1-deployed"
    logged = [line for line in read_metrics(folder) if line["stage"] == f"offline-{m + 1}"]
    known = {k: float(v) for line in logged if line["step"] == 0 for k, v in line.items() if k in FITTED}
    drift = {line["step"]: float(line["drift"]) for line in logged if "drift" in line}
    store, out = Store.open(folder / "dataset"), []
    label = f"rollout-{m + 2}-deployed"
    for name, tried, i in (("RL" if passed else "re-imitation", label, passed[-1] if passed else 0), ("re-imitation", f"{label}-again", 0)):
        if not (episodes := labelled(store, tried)):
            continue
        said = {k: float(of[i][f"ope_{k}"] - of[-1][f"ope_{k}"]) for k in ("returns", "success", "amq")}
        signs = {**said, **known, **({"drift": drift[i]} if i else {})}
        out.append({"task": cfg.task.removeprefix("metaworld/"), "seed": cfg.seed, "round": m + 1, "product": name,
                    "before": word(labelled(store, began)), "ended": word(episodes), "signs": signs})
    return out


def word(episodes: list[Any]) -> str:
    """How trials ended, a 1 or 0 each."""
    return "".join(str(int(e.succeeded)) for e in episodes)


def main(words: list[str] | None = None) -> int:
    """Read every round that is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="where the runs are kept")
    parser.add_argument("--results", type=Path, default=RESULTS / "offline_products.jsonl")
    args = parser.parse_args(words)
    folders = sorted(file.parent for file in (args.out / "all").glob("*-defaults/config.yaml"))
    if not folders:
        parser.error(f"{args.out / 'all'}: no run in it: see benchmarks/rl100_all.py")
    table = Table(args.results, KEY)
    for folder in folders:
        cfg = config.from_dict(RL100Config, config.read(folder / "config.yaml"), source=str(folder / "config.yaml"))
        for m in range(cfg.offline.rounds):
            if (folder / "checkpoints" / f"offline-{m + 1}").exists():
                for row in products(folder, cfg, m):
                    table.put(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
