"""What a recorded set's linear reference foresees of its own demonstrations, so that it can be changed without a look at what is held out.

    python -m benchmarks.studies.reference --data ../shared/data

The demonstrations that `realrl train` fits are split once more, and the reference is fitted to one side and asked for the other: of the
stretches of one episode a fifth of each in the midst of the rest (nine ways), of a short one its beginning (two to four fifths of it, nine
ways) and the quarter of that which follows, of several the episodes left out in turn, in at most five groups. The held-out episodes of
benchmarks/real_data.py are never read. No network takes part. Rows go to benchmarks/results/reference.jsonl; their last line is the
reference's error as a share of the best of three baselines', in the geometric mean.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lib.common import RESULTS, Part, Table, arguments, run_parts
from benchmarks.real_data import SETS, Setting
from realrl.algos.bc import BCConfig
from realrl.cell.foresight import Examiner
from realrl.cell.kept_back import piece
from realrl.cell.recordings import Material, read, sized
from realrl.data.views import ChunkView
from realrl.learn.reference import fit_reference
from realrl.nets.reference import Reference
from realrl.scene import SightConfig
from realrl.types import Episode

SHARES, FOLDS = np.arange(0.4, 0.81, 0.05), 5
BASELINES = ("keep still", "mean action", "ridge")
HEAD = ("training part of (% of the joints' ranges)", "splits", *BASELINES, "reference", "reference / best of the three")
Split = tuple[list[Episode], list[Episode]]


def splits(demos: list[Episode]) -> Iterator[Split]:
    """(to fit, to be asked for) of the demonstrations."""
    if all(e.cut for e in demos):
        for share in SHARES:
            cuts = [(e, int(len(e) * (share - 0.1)), int(len(e) * (share + 0.1))) for e in demos]
            fitted = [replace(piece(e, *side), cut=True) for e, a, b in cuts for side in ((0, a), (b, len(e)))]
            yield fitted, [piece(e, a, b) for e, a, b in cuts if b > a]
        return
    if len(demos) > 1:
        count = min(len(demos), FOLDS)
        for left in range(count):
            yield [e for i, e in enumerate(demos) if i % count != left], [e for i, e in enumerate(demos) if i % count == left]
        return
    (only,) = demos
    for share in SHARES:
        end = int(len(only) * share)
        yield [piece(only, 0, end)], [piece(only, end, min(len(only), int(len(only) * share * 1.25)))]


def errors(material: Material, split: Split, chunk: int, n_obs: int) -> dict[str, float]:
    """Mean absolute error as a share of the range, of the baselines and of the reference."""
    seen, unseen = (ChunkView(side, chunk=chunk, n_obs=n_obs, gamma=1.0) for side in split)
    examiner, robot = Examiner(material.robot, seen, unseen), material.robot
    state = examiner.batch.obs["state"]
    reference = Reference(state[0].numel(), chunk, len(robot.actions))
    fit_reference(reference, seen, robot)
    said = {who: examiner.baselines[who] for who in BASELINES} | {"reference": robot.to_robot(reference(state).numpy())}
    return {who: float(np.mean(examiner.error(chunks) / (2 * robot.half))) for who, chunks in said.items()}


def measure(setting: Setting, name: str) -> None:
    """The row of a set."""
    folder = setting.folder(name)
    cfg = sized(BCConfig(data=str(folder)))
    material = read(str(folder), cfg.recorded, SightConfig(), setting.out / "spare")
    asked = itertools.islice(splits(material.demos), 2 if setting.smoke else None)
    found = [errors(material, split, cfg.policy.chunk, cfg.policy.n_obs) for split in asked]
    setting.table.put({"set": name, "splits": len(found), **{who: float(np.mean([f[who] for f in found])) for who in found[0]}})


def lines(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A line a set, and the geometric mean of their last column."""
    share = [row["reference"] / min(row[who] for who in BASELINES) for row in rows]
    out = [[row["set"], str(row["splits"]), *(f"{100 * row[who]:.2f}" for who in (*BASELINES, "reference")), f"{s:.2f}"]
           for row, s in zip(rows, share, strict=True)]
    return [*out, [f"geometric mean of {len(rows)}", *["-"] * 5, f"{np.exp(np.mean(np.log(share))):.3f}"]] if out else []


def main(words: list[str] | None = None) -> int:
    """Run what is missing, and say what it comes to."""
    parser = arguments(__doc__ or "", seeds=(0,))
    parser.add_argument("--data", type=Path, required=True, help="folder of the recordings")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    args = parser.parse_args(words)
    out = args.out / ("smoke" if args.smoke else "real_data")
    table = Table((out if args.smoke else RESULTS) / "reference.jsonl", ("set",))
    setting = Setting(args.data.resolve(), out, table, args.smoke, None, 0, 0)
    code = run_parts([Part(name, lambda name=name: table.find(name) is not None, partial(measure, setting, name)) for name in args.sets],
                     args.budget)
    for line in lines([row for name in args.sets if (row := table.find(name)) is not None]):
        print(f"{line[0]:28}", *(f"{cell:>8}" for cell in line[1:]))
    return min(code, 1)


if __name__ == "__main__":
    sys.exit(main())
