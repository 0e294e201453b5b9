"""The tables of `benchmarks/studies/gate.py`: what each walk came to, and what rules that were chosen on other tasks would have made of it.

A rule says how far RL goes on: to the last candidate before its sign first passes a threshold. The threshold of a task is
the one that gains most on all others, so no figure is fitted to what it is about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

Row = dict[str, Any]
LOSS = 10
"""Points of success, what RL went on from less a product, from which on a round is called lost."""
WALKED = ("task", "round", "began", "RL goes on from", "at", "2", "4", "6", "8", "10 iterations", "V explains", "model's error")
RULED = ("what decides", "rank correlation", "change, points [95 %]", f"rounds that lost {LOSS} or more", "after 25 trials, points")
PRODUCED = ("task", "round", "product", "before", "after", "return gained in the model", "drift", "V explains", "model's R2", "its error")
FORETOLD = ("what was known before the trials", "rank correlation with their change [95 %]", "products")
KNOWN = {"returns": "gain of the discounted return in the model", "success": "gain of the success in the model", "amq": "gain of AM-Q",
         "drift": "drift", "value_explained": "what V explains of the returns", "model_r2": "the model's R2 on held-out episodes",
         "model_error": "the model's error on the trials before"}
SIGNS: dict[str, tuple[str, int]] = {  # sign -> (what the table calls it, 1 where much of it is good, -1 where little is)
    "returns": ("gain of the discounted return in the model", 1), "returns_low": ("its lower bound", 1),
    "success": ("gain of the success in the model", 1), "amq": ("gain of AM-Q", 1), "critics": ("gain of the advantage", 1),
    "drift": ("drift of the deployed action", -1), "kl": ("KL per denoising step, mean", -1),
    "kl_most": ("KL per denoising step, the largest", -1), "stopped": ("what the model could not be trusted with", -1),
    "model_apart": ("disagreement of the model's members", -1), "critics_apart": ("disagreement of the twin critics", -1),
    "value_explained": ("what V explains of the returns", 1), "model_error": ("the model's error on the trials", -1)}


@dataclass(frozen=True)
class Step:
    """A candidate of a walk. won: how its trials ended [N]; signs: what was known without them."""

    iteration: int
    won: np.ndarray
    signs: Mapping[str, float]


@dataclass(frozen=True)
class Walked:
    """A round, walked on: what it began with, what RL went on from (that, or what re-imitation made of it), and the candidates in turn."""

    task: str
    seed: int
    number: int
    base: str
    began: np.ndarray
    first: Step
    steps: list[Step]

    def change(self, step: Step) -> float:
        """Points of success that a candidate has more than what RL went on from."""
        return float(100 * (step.won.mean() - self.first.won.mean()))


def walks(rows: Sequence[Row]) -> list[Walked]:
    """Every round whose last row is there."""
    found = []
    def place(row: Row) -> tuple[str, int, int, str]:
        return row["task"], row["seed"], row["round"], row.get("base", "re-imitated")  # the first rows did not say it

    for last in sorted((r for r in rows if r["iteration"] == -1), key=place):
        mine = [Step(r["iteration"], ended(r), r["signs"]) for r in rows if place(r) == place(last) and r["iteration"] >= 0]
        first, *steps = sorted(mine, key=lambda s: s.iteration)
        found.append(Walked(*place(last), ended(last), first, steps))
    return found


def ended(row: Row) -> np.ndarray:
    """How its trials ended, [N] bool."""
    return np.array([letter == "1" for letter in row["ended"]])


# -- rules ---------------------------------------------------------------------------------------------------------------------

Choice = Callable[[Walked], Step]


def until(sign: str, limit: float) -> Choice:
    """The last candidate before one whose sign is worse than the limit; what RL went on from where the first one's is."""
    good = SIGNS[sign][1]

    def choose(walk: Walked) -> Step:
        chosen = walk.first
        for step in walk.steps:
            if good * step.signs[sign] < good * limit:
                break
            chosen = step
        return chosen

    return choose


def highest(sign: str) -> Choice:
    """The candidate with the highest estimate, what RL went on from where none gains."""
    return lambda walk: max((s for s in walk.steps if s.signs[sign] > 0), key=lambda s: s.signs[sign], default=walk.first)


def fitted(sign: str, others: Sequence[Walked]) -> Choice:
    """`until` with the limit that gains most on other tasks' walks: between two values that occur there, or none of them passes."""
    seen = np.unique([s.signs[sign] for w in others for s in w.steps])
    limits = [*(seen[1:] + seen[:-1]) / 2, seen[0] - 1, seen[-1] + 1]
    return max((until(sign, float(limit)) for limit in limits), key=lambda rule: sum(w.change(rule(w)) for w in others))


def foreseen(others: Sequence[Walked], strength: float = 10.0) -> Choice:
    """The candidate with the highest change that a ridge regression on all signs, fitted to other tasks, foresees; none where that is below
    nothing."""
    def vector(step: Step) -> np.ndarray:
        return np.array([step.signs[sign] for sign in SIGNS])

    x = np.array([vector(s) for w in others for s in w.steps])
    y = np.array([w.change(s) for w in others for s in w.steps])
    mean, spread = x.mean(0), x.std(0) + 1e-9
    z = (x - mean) / spread
    slope = np.linalg.solve(z.T @ z + strength * np.eye(z.shape[1]), z.T @ (y - y.mean()))
    said = lambda step: float((vector(step) - mean) / spread @ slope + y.mean())
    return lambda walk: max((s for s in walk.steps if said(s) > 0), key=said, default=walk.first)


def chosen(found: Sequence[Walked], make: Callable[[Sequence[Walked]], Choice]) -> list[Step]:
    """What a rule makes of every walk, leave-one-task-out. make: other tasks' walks -> the rule."""
    rules = {task: make([w for w in found if w.task != task]) for task in {w.task for w in found}}
    return [rules[walk.task](walk) for walk in found]


# -- tables --------------------------------------------------------------------------------------------------------------------


def walked_lines(rows: Sequence[Row]) -> list[list[str]]:
    """A line a round: success, and how far the deployed action has drifted."""
    out = []
    for walk in walks(rows):
        at = {s.iteration: f"{100 * s.won.mean():.0f} ({s.signs['drift']:.2f})" for s in walk.steps}
        told = walk.first.signs
        out.append([walk.task, str(walk.number), f"{100 * walk.began.mean():.0f} %", walk.base, f"{100 * walk.first.won.mean():.0f} %",
                    *(at.get(i, "-") for i in (2, 4, 6, 8, 10)), f"{told['value_explained']:.2f}", f"{told['model_error']:.2f}"])
    return out


def ruled_lines(rows: Sequence[Row]) -> list[list[str]]:
    """A line a rule."""
    found = walks(rows)
    if len({w.task for w in found}) < 3:
        return []
    rules: dict[str, tuple[str, Callable[[Sequence[Walked]], Choice]]] = {
        "no RL": ("-", lambda others: lambda walk: walk.first),
        "nothing: all ten iterations": ("-", lambda others: lambda walk: walk.steps[-1])}
    for sign, (name, _) in SIGNS.items():
        rules[f"{name}, up to a limit"] = (correlation(found, sign), lambda others, sign=sign: fitted(sign, others))  # type: ignore[misc]
    for sign in ("returns", "success", "amq"):
        rules[f"{SIGNS[sign][0]}, the highest"] = ("-", lambda others, sign=sign: highest(sign))  # type: ignore[misc]
    rules["all of them, ridge regression"] = ("-", foreseen)
    rules["(the best candidate, known afterwards)"] = ("-", lambda others: lambda walk: max([walk.first, *walk.steps], key=walk.change))
    return [[name, rank, *judged(found, chosen(found, make))] for name, (rank, make) in rules.items()]


def judged(found: Sequence[Walked], products: Sequence[Step]) -> list[str]:
    """(mean change with its interval over rounds, rounds lost, the mean after real trials)."""
    change = np.array([w.change(s) for w, s in zip(found, products, strict=True)])
    rng = np.random.default_rng(0)
    low, high = np.percentile(rng.choice(change, (2000, len(change))).mean(1), [2.5, 97.5])
    after = np.mean([tried(w, s) for w, s in zip(found, products, strict=True)])
    return [f"{change.mean():+.1f} [{low:+.1f}, {high:+.1f}]", f"{(change <= -LOSS).sum()} of {len(change)}", f"{after:+.1f}"]


def tried(walk: Walked, step: Step) -> float:
    """Points gained where every other start is a trial that may send a product back to what RL went on from, and the rest is the truth;
    mean of both ways to split them."""
    gains = []
    for half in (0, 1):
        trial, truth = slice(half, None, 2), slice(1 - half, None, 2)
        back = step.won[trial].sum() < walk.first.won[trial].sum()
        gains.append(0.0 if back else 100 * (step.won[truth].mean() - walk.first.won[truth].mean()))
    return float(np.mean(gains))


def correlation(found: Sequence[Walked], sign: str) -> str:
    """Spearman's coefficient over all candidates, signed so that + is a sign that tells the truth."""
    found_rank = rank([(SIGNS[sign][1] * s.signs[sign], w.change(s)) for w in found for s in w.steps])
    return "-" if np.isnan(found_rank) else f"{found_rank:+.2f}"


# -- products that runs have tried themselves ----------------------------------------------------------------------------------


def gained(row: Row) -> float:
    """Points of success that a product's trials have more than those of what its round began with, start by start."""
    pairs = list(zip(row["ended"], row["before"], strict=False))
    return 100 * sum(int(new) - int(old) for new, old in pairs) / len(pairs)


def produced_lines(rows: Sequence[Row]) -> list[list[str]]:
    """A line a product, the worst first."""
    share = lambda word: f"{100 * word.count('1') / len(word):.0f} %"
    shown = ("drift", "value_explained", "model_r2", "model_error")
    return [[r["task"], str(r["round"]), r["product"], share(r["before"]), share(r["ended"]), f"{r['signs']['returns']:+.2f}",
             *(f"{r['signs'][name]:.2f}" if name in r["signs"] else "-" for name in shown)] for r in sorted(rows, key=gained)]


def foretold_lines(rows: Sequence[Row]) -> list[list[str]]:
    """How each sign ranks the products. Interval: 95 % bootstrap over tasks."""
    out, rng = [], np.random.default_rng(0)
    for sign, name in KNOWN.items():
        mine = [r for r in rows if sign in r["signs"]]
        by = {task: [(r["signs"][sign], gained(r)) for r in mine if r["task"] == task] for task in dict.fromkeys(r["task"] for r in mine)}
        if len(by) < 3:
            continue
        draws = [[by[list(by)[i]] for i in rng.integers(len(by), size=len(by))] for _ in range(1000)]
        low, high = np.nanpercentile([rank([p for task in draw for p in task]) for draw in draws], [2.5, 97.5])
        out.append([name, f"{rank([p for task in by.values() for p in task]):+.2f} [{low:+.2f}, {high:+.2f}]", str(len(mine))])
    return out


def rank(points: Sequence[tuple[float, float]]) -> float:
    """Spearman's coefficient, NaN where a side does not vary."""
    x, y = (rankdata(column) for column in zip(*points, strict=True))
    return float(np.corrcoef(x, y)[0, 1]) if x.std() * y.std() > 0 else float("nan")
