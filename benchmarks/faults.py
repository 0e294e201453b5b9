"""Twenty faults on a simulated robot at work, judged by its server's own log; the table of docs/howto/your-robot.md.

    python -m benchmarks.faults --times 100                # without a camera: cameras are drawn by the processor
    python -m benchmarks.faults --times 20 --only 5 --cameras front

What a lab runs on the simulation of its own cell is `realrl robot fault-campaign`. Writes benchmarks/results/faults.jsonl.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.lib.common import RESULTS, Table
from realrl.robots.campaign import KINDS, Rig, Trial, campaign, table

KEY = ("fault", "task")


def main() -> None:
    """Run it and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="arm/panda-pick")
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--only", type=int, nargs="*", default=[])
    parser.add_argument("--cameras", nargs="*", default=[])
    args = parser.parse_args()
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(args.task, Path(folder), args.cameras)
        try:
            for trial in campaign(rig, args.times, only=args.only):
                trials.append(trial)
                if len(trials) % len(KINDS) == 0:
                    print(f"{len(trials)} faults, {sum(not t.reacted for t in trials)} reactions wrong", flush=True)
        finally:
            rig.close()
    rows = Table(RESULTS / "faults.jsonl", KEY)
    for row in table(trials):
        rows.put({**row, "task": args.task})
        print(row)


if __name__ == "__main__":
    main()
