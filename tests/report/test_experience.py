"""What a run that learns from its experience took for good, as its report shows it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from realrl import envs
from realrl.cell.collect import Collector
from realrl.data import side
from realrl.data.store import Store
from realrl.report import write_report
from realrl.report.experience import keep
from realrl.scene import CollectConfig
from realrl.types import Episode, RealrlError


def episode(who: str, steps: int, good: bool, seed: int) -> Episode:
    zeros = np.zeros(steps, np.float32)
    return Episode({"state": np.zeros((steps + 1, 2), np.float32)}, zeros[:, None], zeros[:, None], zeros.astype(np.uint8), zeros,
                   np.arange(steps) == (steps - 1 if good else -1), np.arange(steps) / 20, zeros > 0, good, not good, "toy/red", who, seed)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Five labelled episodes of one task, and one that was recorded later."""
    store = Store.create(tmp_path / "dataset", task="toy/red", fps=20)
    store.append([episode("demonstration fast", 4, True, 0), episode("demonstration slow", 8, True, 1), episode("rollout-1", 5, True, 2),
                  episode("rollout-1", 3, False, 3), episode("corrected-1", 2, True, 4)])
    value = np.linspace(-1, 0, 22)
    for name, of in {"value": value, "advantage": value / 10, "indicator": np.arange(22) < 4}.items():
        side.write(store.dir, f"{name}-red", {f"{name}-red": of.astype(np.float64)})
    store.append([episode("evaluation", 6, True, 9)])
    headline = {"stages": {"fine-tuned": {"success": 0.5, "per_hour": 100.0, "per_hour_5s": 50.0}, "recap-1": {
        "success": 0.75, "per_hour": 321.0, "per_hour_5s": None}}}
    (tmp_path / "summary.json").write_text(json.dumps({"task": "toy/red", "headline": headline}))
    return tmp_path


def text(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html))


def test_a_report_shows_values_advantages_and_what_was_taken_for_good(run: Path) -> None:
    shown = text(write_report(run).read_text())
    assert "Values of rollout-1" in shown, "the newest of which some failed"
    assert "Advantages" in shown
    assert "demonstration fast 1 100.0 % 4 100.0 %" in shown and "demonstration slow 1 100.0 % 8 0.0 %" in shown
    assert "rollout-1 2 50.0 % 8 0.0 %" in shown, "both episodes of the round in one row"
    assert "recap-1 75.0 % 321 –" in shown and "evaluation 1" not in shown


def test_values_are_shown_over_the_film_of_the_newest_practice(run: Path) -> None:
    """Of state-only runs, too, whose recordings hold no pictures: the actions are played again."""
    said: list[str] = []
    env = envs.make("toy/reach")
    store = Store.create(run / "dataset-1", task="toy/reach", fps=10)
    with Collector("toy/reach", CollectConfig(workers=1)) as collector:
        shown = list(collector.collect(envs.expert("toy/reach"), range(7), greedy=True))
    for i, e in enumerate(shown):
        e.policy = ("demonstration fast", "rollout-1", "rollout-2", "rollout-2", "rollout-2", "corrected-2", "evaluation")[i]
    store.append(shown)
    frames = sum(map(len, shown))
    for name in ("value", "advantage", "indicator"):
        column = np.linspace(-1, 0, frames)
        column[-len(shown[-1]):] = np.nan
        side.write(store.dir, f"{name}-reach", {f"{name}-reach": column})
    keep(run, {"red": "toy/red", "reach": env.task.id}, simulated=True, tell=said.append)
    page = (run / "values" / "reach.html").read_text()
    assert all(f"{name}-reach" in page for name in ("value", "advantage", "indicator")) and "images.top" in page
    assert re.findall(r"episode (\d)", text(page).lower())[:2] == ["4", "5"], "two of the newest round, those beside a person last"
    assert any("toy/red: no 'rgb' observations" in line for line in said) and (run / "values" / "red.html").exists()
    report = write_report(run).read_text()
    assert 'href="values/reach.html"' in report and 'href="values/red.html"' in report, "also of another robot's data set"
    (run / "values" / "reach.html").write_text("kept")
    keep(run, {"reach": "toy/reach"}, simulated=True, tell=said.append)
    assert (run / "values" / "reach.html").read_text() == "kept"


def test_a_run_without_labels_has_no_such_part(run: Path) -> None:
    (run / "dataset" / "derived" / "indicator-red" / "v1.parquet").unlink()
    assert "taken for good" not in write_report(run).read_text()


def test_stages_that_are_none_are_one_line(run: Path) -> None:
    (run / "summary.json").write_text(json.dumps({"headline": {"stages": {"fine-tuned": 3}}}))
    with pytest.raises(RealrlError, match=r"summary.json: field 'headline.stages'"):
        write_report(run)
