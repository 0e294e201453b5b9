"""A generalist's cycle on the page: success of every task by stage, data by where they came from, what its success classifier is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from realrl.report.reading import StageRow, number_of
from realrl.report.tables import MISSING, Grid, count, percent
from realrl.types import RealrlError


def cycle_parts(summary: Mapping[str, Any], stages: Sequence[StageRow], where: str) -> dict[str, Any] | None:
    """Text and tables, None for a run without lineage. Raises RealrlError on fields of a wrong kind."""
    rows = summary.get("lineage")
    if not rows:
        return None
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise RealrlError(f"{where}: field 'lineage' should be a list of objects")
    text = (cycled(summary, where) or "The cycle is not at its end: what is there so far.").replace(" %", "\xa0%")
    return {"text": text, "tasks": tasks_grid(stages), "data": data_grid(rows, where),
            "audit": audit_grid(_object(summary, "classifier", where), where), "pool": pool_grid(_object(summary, "pool", where), where)}


def cycled(summary: Mapping[str, Any], where: str = "summary") -> str:
    """What a cycle's practice came to, in a sentence or two; nothing before its end, and for other runs."""
    head = _object(summary, "headline", where)
    before, after = number_of(head, "before", where), number_of(head, "after", where)
    if not summary.get("lineage") or before is None or after is None:
        return ""
    helped = number_of(head, "interventions_per_hour", where)
    return (f"On the held-out tasks together the fine-tuned policies succeed in {percent(before / 100)} before practice, the next "
            f"generalist in {percent(after / 100)} after it."
            + ("" if helped is None else f" Somebody had to put the scene in order {helped:.1f} times an hour."))


def tasks_grid(stages: Sequence[StageRow]) -> Grid:
    """A row a task, a column a stage: what is named "stage task"."""
    found = {tuple(s.name.rpartition(" ")[::2]): s for s in stages if " " in s.name}
    names, tasks = (list(dict.fromkeys(key[i] for key in found)) for i in (0, 1))
    return Grid(["Task", *names], [[task, *(percent(found[name, task].rate) if (name, task) in found else MISSING for name in names)]
                                   for task in tasks])


def data_grid(rows: Sequence[Mapping[str, Any]], where: str) -> Grid:
    """A row a task, round and policy: how many episodes, how many succeeded, how many were taken for successes."""
    numbers = ("episodes", "steps", "successes", "taken_for_success")
    return Grid(["Task", "Round", "Origin", "Made by", "Episodes", "Steps", "Succeeded", "Taken for success"],
                [[str(r.get("task")), str(r.get("round")), str(r.get("origin")), str(r.get("policy")),
                  *(count(number_of(r, name, where)) for name in numbers)] for r in rows])


def audit_grid(audits: Mapping[str, Any], where: str) -> Grid | None:
    """The success classifiers on the practising policy's own episodes, which they had not seen."""
    if not audits:
        return None
    rows = []
    for stage, found in audits.items():
        found = _object(audits, stage, where)
        taken, true, failures, false, missed = (count(number_of(found, key, where)) for key in
                                                ("taken", "true", "failures", "false", "missed"))
        rows.append([stage, count(number_of(found, "episodes", where)), true, taken, f"{false} of {failures}", f"{missed} of {true}",
                     percent(number_of(found, "precision", where)), percent(number_of(found, "recall", where))])
    return Grid(["Stage", "Episodes", "Succeeded", "Taken for success", "False positives", "Missed", "Precision", "Recall"], rows)


def pool_grid(pools: Mapping[str, Any], where: str) -> Grid | None:
    """Tasks that ran in turn without resets, and how often somebody had to put things right."""
    if not pools:
        return None
    rows = []
    for stage in pools:
        found = _object(pools, stage, where)
        values = [number_of(found, key, where) for key in ("episodes", "hours", "interventions", "interventions_per_hour")]
        rows.append([stage, count(values[0]), MISSING if values[1] is None else f"{values[1]:.2f}", count(values[2]),
                     MISSING if values[3] is None else f"{values[3]:.1f}"])
    return Grid(["Stage", "Episodes", "Hours of robot time", "Interventions", "Interventions an hour"], rows)


def _object(entry: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = entry.get(key) or {}
    if not isinstance(value, Mapping):
        raise RealrlError(f"{where}: field '{key}' should be an object, not {type(value).__name__}")
    return value
