"""The page: everything the template shows, and `write_report`, which puts it beside the run's files."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from realrl.files import write_text
from realrl.losses import spearman
from realrl.report import films
from realrl.report.curves import curves
from realrl.report.cycle import cycle_parts
from realrl.report.dreaming import dreaming_parts
from realrl.report.experience import experience_parts
from realrl.report.failures import failure_parts
from realrl.report.figures import STYLE, cycle_figures, ope_figure, success_figure
from realrl.report.foresight import foresight_of, foresight_parts, verdict
from realrl.report.insertion import insertion_parts
from realrl.report.practice import practice_films
from realrl.report.reading import StageRow, final_stage, number_of, read_json, read_rows, read_text, stages_of
from realrl.report.tables import (
    MISSING,
    PAGE,
    Grid,
    count,
    duration,
    faster,
    figure3,
    interval,
    latency_grid,
    percent,
    short_count,
    stage_grid,
)
from realrl.report.template import render
from realrl.types import RealrlError

MOST_SEEDS = 24  # listed a stage; the files have them all


def _lead(stages: Sequence[StageRow]) -> list[str]:
    final = final_stage(stages)
    if final is None or final.rate is None:
        return ["No stage of this run has a measured success rate yet."]
    many = f"{round(final.rate * final.n):,} of {final.n:,} held-out episodes ({percent(final.rate)})" if final.n else percent(final.rate)
    first = next((s for s in stages if s.name == "imitation" and s.rate is not None), None)
    since = f"; imitation alone: {percent(first.rate)}" if first and first is not final else ""
    lines = [f"The {final.name} policy succeeds in {many}{since}."]
    base = next((s for s in stages if s.name == "demonstrator"), None)
    if base and (pace := faster(final, base)):
        lines[0] += f" A successful episode is {pace}."
    return [line.replace(" %", "\xa0%") for line in lines]


def _tiles(summary: Mapping[str, Any], stages: Sequence[StageRow], where: str) -> list[dict[str, str]]:
    tiles = []
    final, base = final_stage(stages), next((s for s in stages if s.name == "demonstrator"), None)
    if final:
        detail = f"95 % interval {interval(final)}\nn = {count(final.n)} episodes"
        tiles.append({"what": f"Success, {final.name}", "value": percent(final.rate), "detail": detail})
    timed = [s for s in stages if s.p50_ms is not None]
    if timed:
        one = next((s for s in timed if s.name == "one-step"), timed[-1])
        tiles.append({"what": f"Action latency, {one.name}", "value": f"{figure3(one.p50_ms)} ms",
                      "detail": f"median, one robot\n99th percentile {figure3(one.p99_ms)} ms"})
    if final and final.cycle_steps is not None:
        unit, measure = ("s", "cycle_s") if final.cycle_s is not None else ("steps", "cycle_steps")
        old = getattr(base, measure) if base else None
        against = f"\ndemonstrator {figure3(old)} {unit}" if old else ""
        pace = faster(final, base).removesuffix(" than the demonstrator") if base else ""
        tiles.append({"what": f"Cycle time, {final.name}", "value": f"{figure3(getattr(final, measure))} {unit}",
                      "detail": (pace or "mean of the successes") + against})
    if (steps := number_of(summary, "env_steps", where)) is not None:
        wall = number_of(summary, "wall_s", where)
        detail = f"in all stages together\n{duration(wall)} of wall time" if wall is not None else "in all stages together"
        tiles.append({"what": "Environment steps", "value": short_count(steps), "detail": detail})
    return tiles


def _decisions(summary: Mapping[str, Any], where: str) -> list[str]:
    """What was decided, a line each. Raises RealrlError on something else."""
    told = summary.get("decisions") or {}
    if not isinstance(told, Mapping):
        raise RealrlError(f"{where}: field 'decisions' should be an object with a line for each stage")
    return [str(line).replace(" %", "\xa0%") for line in told.values()]


def _failures(entries: Sequence[Any], stages: Sequence[StageRow], where: str) -> tuple[str, list[dict[str, Any]]]:
    if not all(isinstance(e, Mapping) and "seed" in e for e in entries):
        raise RealrlError(f"{where}: every entry should be an object with 'stage', 'seed' and 'steps'")
    final = final_stage(stages)
    order = {s.name: i for i, s in enumerate(stages)}
    names = sorted(dict.fromkeys(str(e.get("stage") or "run") for e in entries), key=lambda n: order.get(n, len(order)))
    last = {str(e["seed"]) for e in entries if final and e.get("stage") == final.name}
    rows = []
    for name in names:
        own = [e for e in entries if str(e.get("stage") or "run") == name]
        steps = sorted({round(v) for e in own if (v := number_of(e, "steps", where)) is not None})
        span = MISSING if not steps else str(steps[0]) if len(steps) == 1 else f"{steps[0]} – {steps[-1]}"
        seeds = sorted(((str(e["seed"]), str(e["seed"]) in last) for e in own), key=lambda s: not s[1])
        rows.append({"stage": name, "steps": span, "count": len(seeds), "seeds": seeds[:MOST_SEEDS]})
    if final is None:
        return "Episodes that did not succeed, by the seed of their start.", rows
    text = f"Seeds in bold also fail at the end ({final.name})." if last else f"No seed fails at the end ({final.name})."
    return f"Evaluation episodes that did not succeed, by the seed of their start. {text}", rows


def _failed_starts(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The failing seeds that the summary itself lists, in the form of `failures.json`."""
    return [{"stage": entry.get("name"), "seed": seed} for entry in summary.get("stages") or [] for seed in entry.get("failures") or []]


def _besides(summary: Mapping[str, Any], where: str) -> Grid | None:
    """What a method wanted to know of its stages' episodes, means; None where it asked nothing."""
    found: dict[str, Mapping[str, Any]] = {str(s.get("name")): s["measured"] for s in summary.get("stages") or [] if s.get("measured")}
    if not all(isinstance(measured, Mapping) for measured in found.values()):
        raise RealrlError(f"{where}: field 'measured' of a stage should be an object with numbers")
    names = list(dict.fromkeys(name for measured in found.values() for name in measured))
    rows = [[stage, *(figure3(number_of(measured, name, where)) for name in names)] for stage, measured in found.items()]
    return Grid(["Stage", *(name.replace("_", " ") for name in names)], rows) if rows else None


def _flatten(value: Any, name: str = "") -> list[list[str]]:
    """Nested JSON as rows (dotted name, text)."""
    if isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
        value = dict(enumerate(value, 1))
    if isinstance(value, Mapping):
        return [row for k, v in value.items() for row in _flatten(v, f"{name}.{k}" if name else str(k))]
    return [[name, shlex.join(map(str, value)) if isinstance(value, list) else MISSING if value is None else str(value)]]


def _command(meta: Mapping[str, Any]) -> str:
    """The command line as one would type it: the program's name without the folder it was installed in."""
    told = meta.get("command") or ""
    if not isinstance(told, list):
        return str(told)
    program = Path(str(told[0])).name
    return " ".join(filter(None, ["python -m realrl" if program == "__main__.py" else program, shlex.join(map(str, told[1:]))]))


def _short_commit(commit: Any) -> str:
    return str(commit)[:10] + ("-dirty" if str(commit).endswith("-dirty") else "")


def _ope_parts(ope: Mapping[str, Any], where: str) -> dict[str, Any]:
    points = ope.get("points") or []
    if not isinstance(points, list) or not all(isinstance(p, Mapping) for p in points):
        raise RealrlError(f"{where}: field 'points' should be a list of objects")
    points = [p for p in points if number_of(p, "estimate", where) is not None and number_of(p, "true_success", where) is not None]
    if not points:
        return {"ope": None, "ope_text": ""}
    estimate, truth = ([p[key] for p in points] for key in ("estimate", "true_success"))
    rank = number_of(ope, "spearman", where)
    if rank is None and min(len(set(estimate)), len(set(truth))) > 1:
        rank = spearman(estimate, truth)
    told = f"Rank correlation (Spearman) {rank:+.2f} over {len(points)} checkpoints; " if rank is not None else ""
    text = told + "+1 means that the offline estimate puts the checkpoints in the order of their true success, 0 that it says nothing."
    return {"ope": ope_figure(points, where), "ope_text": text[:1].upper() + text[1:]}


LEFT_OUT = {
    "success": "Success per stage left out: no measured stage in summary.json.",
    "curves": "Learning curves left out: nothing logged in metrics.jsonl.",
    "cycle": "Cycle-time histogram left out: no cycle_histogram in summary.json.",
    "ope": "Offline estimate against truth left out: no points in ope.json.",
    "latency": "Action latency left out: no latency_ms in summary.json.",
    "failures": "Failing seeds left out: none in failures.json or summary.json.",
    "meta": "Commit and versions left out: no meta.json.",
    "config": "Configuration left out: no config.yaml.",
}


def _page(run_dir: Path) -> dict[str, Any]:
    """Everything the template shows. Raises RealrlError where a file is damaged."""
    names = ("summary.json", "metrics.jsonl", "ope.json", "failures.json", "meta.json")
    at_summary, at_metrics, at_ope, at_failures, at_meta = (run_dir / name for name in names)
    summary = read_json(at_summary, dict) or {}
    meta = read_json(at_meta, dict) or {}
    stages = stages_of(summary, str(at_summary))
    timed = [s for s in stages if s.p50_ms is not None]
    generations = cycle_parts(summary, stages, str(at_summary))
    dreaming = dreaming_parts(run_dir, summary)
    main = [s for s in stages if s.name.startswith("generalist")] if generations else stages  # the others are controls
    main = [s for s in stages if not s.name.endswith("-noisy")] if dreaming else main
    cycle, cycle_all = cycle_figures(stages)
    failing = read_json(at_failures, list) or _failed_starts(summary)
    text, failures = _failures(failing, stages, str(at_failures))
    commit = summary.get("commit") or meta.get("commit")
    kicker = [f"realrl run {run_dir.resolve().name}", f"seed {summary['seed']}" if "seed" in summary else "",
              f"commit {_short_commit(commit)}" if commit else ""]
    facts = _flatten({**({"commit": commit} if commit else {}), **{k: v for k, v in meta.items() if k != "command"}})
    return {
        "foresight": foresight_parts(run_dir, summary, str(at_summary)), "generations": generations,
        "practised": practice_films(run_dir) if generations else None,
        "title": str(summary.get("task") or meta.get("task") or run_dir.resolve().name), "kicker": " · ".join(filter(None, kicker)),
        "lead": [generations["text"]] if generations else [verdict(summary)] if foresight_of(summary, str(at_summary)) else
                [dreaming["lead"]] if dreaming and dreaming["lead"] else _lead(stages),
        "decisions": _decisions(summary, str(at_summary)),
        "tiles": _tiles(summary, main, str(at_summary)), "success": success_figure(stages),
        "stages": stage_grid(stages, PAGE, drop_empty=True), "besides": _besides(summary, str(at_summary)),
        "curves": curves(read_rows(at_metrics)),
        "insertions": insertion_parts(run_dir), "experience": experience_parts(run_dir, summary, str(at_summary)),
        "cycle": cycle, "cycle_all": cycle_all, "failures": failures, "failures_text": text, "kept": failure_parts(run_dir),
        "film": sorted(p.relative_to(run_dir).as_posix() for p in (run_dir / "film").glob("*.mp4")), "left_out": LEFT_OUT,
        "stages_of_practice": films.kept(run_dir), "dreaming": dreaming,
        "latency": latency_grid(timed) if timed else None, "command": _command(meta), "config": read_text(run_dir / "config.yaml"),
        "facts": Grid(["Item", "Value"], facts), **_ope_parts(read_json(at_ope, dict) or {}, str(at_ope)),
    }


def write_report(run_dir: Path) -> Path:
    """Write `run_dir/report.html` from the run's files and return its path.

    Raises RealrlError when there is no such directory, when it holds neither summary.json nor metrics.jsonl, and when a file is
    damaged (with file and line).
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise RealrlError(f"{run_dir}: no such run directory; give the folder that `realrl train` wrote")
    if not any((run_dir / name).is_file() for name in ("summary.json", "metrics.jsonl")):
        raise RealrlError(f"{run_dir}: neither summary.json nor metrics.jsonl in it, so there is nothing to report; is it a run directory?")
    with matplotlib.rc_context(STYLE):
        html = render("page.html", _page(run_dir))
    target = run_dir / "report.html"
    write_text(target, html)
    return target
