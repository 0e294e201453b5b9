"""The table of `benchmarks/rl100_all.py`: a line a task, and whether any stage lost what the one before it had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from realrl.learn.trials import Duel, duel

Row = dict[str, Any]
STAGES = ("imitation", "offline-1", "offline-2", "online", "one-step")
HEAD = ("task", "seed", "setting", "demonstrator", "imitation", "offline 1", "offline 2", "online", "one step", "lost", "steps", "minutes")
TABLE = "docs/benchmarks.md#every-meta-world-task-one-set-of-defaults"
FIRST = 1_000_000_000  # of the held-out starts


def lines(rows: Sequence[Row]) -> list[list[str]]:
    """A line a finished run. lost: stages that solved fewer of the same held-out starts than the one before them, with the probability
    that luck did so (one-sided McNemar test), where that is at most 5 %."""
    runs = [r for r in rows if r["method"] == "run"]
    out = []
    for run in sorted(runs, key=lambda r: (r["setting"] != "defaults", r["setting"], r["task"], r["seed"])):
        of = {r["method"]: r for r in rows if all(r[k] == run[k] for k in ("task", "seed", "setting"))}
        cells = [rate(of.get(name), name) for name in ("demonstrator", *STAGES)]
        lost = [f"{name}: {said.old} -> {said.new} of {said.n}, p = {said.luck():.3f}" for name, said in duels(of) if said.worse(0.05)]
        out.append([run["task"], str(run["seed"]), run["setting"], *cells, "; ".join(lost) or "nothing", f"{run['env_steps']:,}",
                    f"{run['wall_s'] / 60:.0f}"])
    return out


def rate(row: Row | None, name: str) -> str:
    """A success rate with its number of trials, or why there is none."""
    if row is None:
        return "held back" if name == "one-step" else "-"
    return f"{100 * row['success']['rate']:.1f} % of {row['success']['n']}"


def duels(of: Mapping[str, Row]) -> list[tuple[str, Duel]]:
    """Each stage against the one before it, on the held-out starts that both were judged on."""
    there = [name for name in STAGES if name in of]
    shared = [(old, new, min(of[old]["success"]["n"], of[new]["success"]["n"])) for old, new in pairwise(there)]
    return [(new, duel(solved(of[new], n), solved(of[old], n))) for old, new, n in shared]


def solved(row: Row, n: int) -> list[bool]:
    """How the first n held-out starts ended."""
    failures = set(row["failures"])
    return [FIRST + i not in failures for i in range(n)]


def newcomer(rows: Sequence[Row]) -> str:
    """What README tells of all this: first training seed, defaults."""
    runs = [r for r in rows if r["method"] == "run" and r["setting"] == "defaults" and r["seed"] == 0]
    if not runs:
        return "What to expect on a new task: not run."
    stages = {run["task"]: {r["method"]: r for r in rows if all(r[k] == run[k] for k in ("task", "seed", "setting"))} for run in runs}
    first = [of["imitation"]["success"]["rate"] for of in stages.values()]
    ends = {task: of[[name for name in STAGES if name in of][-1]]["success"] for task, of in stages.items()}
    rates = [end["rate"] for end in ends.values()]
    short = [f"{task.removesuffix('-v3')} {100 * end['rate']:.1f}" for task, end in sorted(ends.items(), key=lambda e: e[1]["rate"])
             if end["rate"] < 0.99]
    least = f"; the others: {', '.join(short)} %" if short else ""
    fell = sum(any(said.worse(0.01) for _, said in duels(of)) for of in stages.values())
    numbers = " or ".join(str(n) for n in sorted({end["n"] for end in ends.values()}))
    suites = ", ".join(["Meta-World", *sorted({task.partition("/")[0].capitalize() for task in stages if "/" in task})])
    return "\n".join([
        f"What to expect on a new task: on {len(runs)} of [{suites}]({TABLE}), {100 * min(first):.3g} to "
        f"{100 * max(first):.3g} % after imitation", f"became 99 % or more in the end on {sum(r >= 0.99 for r in rates)} and 95 % or more "
        f"on {sum(r >= 0.95 for r in rates)}{least}. One set of defaults,",
        f"training seed 0, n = {numbers} held-out starts each; a stage lost something significantly (p < 0.01) on {fell or 'none'}.",
        "Three of the tasks were looked at while the defaults were made."])


def verdict(rows: Sequence[Row]) -> str:
    """What it comes to, a line a setting. The product of a run is the last stage that it has."""
    runs: dict[tuple[str, str, int], dict[str, Row]] = {(r["setting"], r["task"], r["seed"]): {} for r in rows if r["method"] == "run"}
    for row in rows:
        if (key := (row["setting"], row["task"], row["seed"])) in runs and row["method"] in STAGES:
            runs[key][row["method"]] = row
    told = []
    for setting in dict.fromkeys(key[0] for key in runs):
        mine = [of for key, of in runs.items() if key[0] == setting]
        ends = [of[[name for name in STAGES if name in of][-1]]["success"]["rate"] for of in mine]
        fell = sum(any(said.worse(0.01) for _, said in duels(of)) for of in mine)
        told.append(f"- {setting}: {len(mine)} runs; the product succeeds in 99 % or more in {sum(e >= 0.99 for e in ends)}, in 95 % or "
                    f"more in {sum(e >= 0.95 for e in ends)}; a stage lost something at p < 0.01 in {fell}.")
    return "\n".join(told)
