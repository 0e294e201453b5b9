"""The table of `benchmarks/robocat.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
METHODS = {"fine-tuned-1": "fine-tuned, before practice", "fine-tuned-2": "**fine-tuned, after practice**",
           "fine-tuned-3": "fine-tuned, after two rounds", "generalist-2": "the next generalist as it is",
           "generalist-3": "the generalist after two rounds as it is", "demonstrations-generalist": "the same without own episodes",
           "demonstrations": "fine-tuned, no own episodes (as many steps)", "simulator": "after practice, the simulator's labels",
           "no-failures": "after practice, no failures", "more-demonstrations": "as many demonstrations as own successes",
           "scratch": "after practice, no generalist under it", "goal alone": "after practice, shown goals alone",
           "text alone": "after practice, told by text alone", "goal swapped": "after practice, another task's goals alone",
           "variety-0": "unseen tasks, from scratch", "variety-1": "unseen tasks, from the first generalist",
           "variety-2": "unseen tasks, from the next generalist", "variety-3": "unseen tasks, from the one after"}
HEAD = ("tasks, sweep", "policy", "seeds", "success [95 %]", "n", "by task [%]")


def lines(rows: Sequence[Row]) -> list[list[str]]:
    """A line a group, sweep and method, pooled over its seeds; then what the classifiers were worth."""
    from realrl.cell.evaluate import wilson
    out = []
    for task, sweep in sorted({(r["task"], r["sweep"]) for r in rows}):
        mine = [r for r in rows if (r["task"], r["sweep"]) == (task, sweep)]
        for method, name in METHODS.items():
            of = [r for r in mine if r["method"] == method]
            if not of:
                continue
            n, good = (sum(round(r["success"][key] * (r["success"]["n"] if key == "rate" else 1)) for r in of) for key in ("n", "rate"))
            rate = wilson(good, n)
            tasks = {t: 100 * sum(r["by_task"][t]["rate"] for r in of) / len(of) for t in of[0]["by_task"]}
            out.append([f"{task}, {sweep}", name, str(len(of)), f"{100 * rate.rate:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}]",
                        str(n), ", ".join(f"{t} {share:.0f}" for t, share in tasks.items())])
        audits = [a for r in mine if r["method"] == "classifier" for a in r["by_task"].values()]
        if audits:
            taken, false, failures, true, missed = (sum(a[key] for a in audits) for key in ("taken", "false", "failures", "true", "missed"))
            out.append([f"{task}, {sweep}", "the success classifier", str(sum(r["method"] == "classifier" for r in mine)),
                        f"{false} of {failures} failures taken for successes, {missed} of {true} successes missed",
                        str(sum(a["episodes"] for a in audits)), f"precision {100 * (1 - false / max(taken, 1)):.0f}"])
    return out
