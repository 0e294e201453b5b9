"""Twenty faults on a simulated robot at work, judged by its server's own log; the table of docs/howto/your-robot.md.

    python -m benchmarks.faults --times 100 --minutes 20    # without a camera: cameras are drawn by the processor
    python -m benchmarks.faults --times 20 --only 5 --cameras front
    python -m benchmarks.faults --first 50 --times 60                 # rounds 50 to 59, beside another that makes those before

It goes on where it was: a round of all faults is a row of benchmarks/results/faults.jsonl, and what is said at the end is of all rounds.
A round takes about 80 s of real time and a third of that of a processor's, four servers that start included. The server's logs of a
round in which anything went wrong, or which broke off, are kept (--keep).
What a lab runs on the simulation of its own cell is `realrl robot fault-campaign`.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.lib.common import RESULTS, Table
from realrl.cell.campaign import Trial, campaign, table
from realrl.cell.faults import Rig

KEY = ("task", "only", "round")
HEAD = ("robot", "fault", "times", "noticed after, median [ms]", "at most [ms]", "reacted rightly", "commands beyond a limit",
        "episodes lost that should have gone on")


def main() -> None:
    """Run what is missing, write the rows, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="arm/panda-pick")
    parser.add_argument("--times", type=int, default=100, help="rounds in all")
    parser.add_argument("--first", type=int, default=0, help="the first of them that this command makes")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no round after so many")
    parser.add_argument("--only", type=int, nargs="*", default=[])
    parser.add_argument("--cameras", nargs="*", default=[])
    parser.add_argument("--keep", type=Path, default=Path("runs/faults"), help="where logs of rounds that went wrong go")
    args = parser.parse_args()
    rows, begun = Table(RESULTS / "faults.jsonl", KEY), time.monotonic()
    missing = [number for number in range(args.first, args.times) if rows.find(args.task, args.only, number) is None]
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(args.task, Path(folder), args.cameras)
        try:
            for number in missing:
                if time.monotonic() - begun > 60 * args.minutes:
                    break
                trials = [asdict(trial) for trial in campaign(rig, 1, only=args.only, first=number)]
                rows.put({"task": args.task, "only": args.only, "round": number, "trials": trials})
                if any(trial["lost"] or trial["unsafe"] or not trial["reacted"] for trial in trials):
                    shutil.copytree(folder, args.keep / f"round-{number}", dirs_exist_ok=True)
        except BaseException:
            shutil.copytree(folder, args.keep / f"broken-off-{args.first}", dirs_exist_ok=True)
            raise
        finally:
            rig.close()
    for line in table(trials_of([row for row in rows.rows if (row["task"], row["only"]) == (args.task, args.only)])):
        print(line)


def trials_of(rows: Sequence[dict[str, Any]]) -> list[Trial]:
    """What came of every fault of every round."""
    return [Trial(**trial) for row in rows for trial in row["trials"]]


def lines(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A line a robot and fault."""
    out = []
    for task in dict.fromkeys(row["task"] for row in rows):
        for found in table(trials_of([row for row in rows if row["task"] == task])):
            times = [found[name] if found[name] is not None else "-" for name in ("median_ms", "most_ms")]
            out.append([task, f"{found['number']}: {found['fault']}", str(found["times"]), *map(str, times),
                        f"{found['right']} of {found['times']}", str(found["unsafe"]), str(found["lost"])])
    return out


if __name__ == "__main__":
    main()
