"""The table of `benchmarks/robocat.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
LATER = range(3, 10)
"""Generalists after more than one round."""
METHODS = {"fine-tuned-1": "the first generalist fine-tuned, before practice", "generalist-2": "**the next generalist, after practice**",
           **{f"generalist-{k}": f"**the generalist after {k - 1} rounds**" for k in LATER},
           "demonstrations": "a generalist from all demonstrations alone", "simulator": "after practice, the simulator's labels",
           "no-failures": "after practice, no failures", "more-demonstrations": "as many demonstrations more as own successes",
           "random-goals": "as many episodes of random goals as own successes", "fine-tuned-2": "the next generalist, fine-tuned",
           **{f"fine-tuned-{k}": f"the generalist after {k - 1} rounds, fine-tuned" for k in LATER},
           "scratch": "a task's demonstrations alone, from scratch", "goal-alone": "the next generalist, shown goals alone",
           "text-alone": "the next generalist, told by text alone", "goal-swapped": "the next generalist, shown another task's goals alone",
           "variety-0": "unseen tasks, from scratch", "variety-1": "unseen tasks, from the first generalist",
           "variety-2": "unseen tasks, from the next generalist",
           **{f"variety-{k}": f"unseen tasks, from the generalist after {k - 1} rounds" for k in LATER}}
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
                        str(sum(a["episodes"] for a in audits)), f"precision {100 * (1 - false / taken):.0f}" if taken else "took nothing"])
    return out
