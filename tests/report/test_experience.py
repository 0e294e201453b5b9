"""What a run that learns from its experience took for good, as its report shows it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from realrl.data import side
from realrl.data.store import Store
from realrl.report import write_report
from realrl.types import Episode, RealrlError


def episode(who: str, steps: int, good: bool, seed: int) -> Episode:
    zeros = np.zeros(steps, np.float32)
    return Episode({"state": np.zeros((steps + 1, 2), np.float32)}, zeros[:, None], zeros[:, None], zeros.astype(np.uint8), zeros,
                   np.arange(steps) == (steps - 1 if good else -1), np.arange(steps) / 20, zeros > 0, good, not good, "toy/red", who, seed)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Four labelled episodes of one task, and one that was recorded later."""
    store = Store.create(tmp_path / "dataset", task="toy/red", fps=20)
    store.append([episode("demonstration fast", 4, True, 0), episode("demonstration slow", 8, True, 1), episode("rollout-1", 5, True, 2),
                  episode("rollout-1", 3, False, 3)])
    value = np.linspace(-1, 0, 20)
    for name, of in {"value": value, "advantage": value / 10, "indicator": np.arange(20) < 4}.items():
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
    assert "Values of rollout-1" in shown and "Advantages" in shown
    assert "demonstration fast 1 100.0 % 4 100.0 %" in shown and "demonstration slow 1 100.0 % 8 0.0 %" in shown
    assert "rollout-1 2 50.0 % 8 0.0 %" in shown, "both episodes of the round in one row"
    assert "recap-1 75.0 % 321 –" in shown and "evaluation 1" not in shown


def test_a_run_without_labels_has_no_such_part(run: Path) -> None:
    (run / "dataset" / "derived" / "indicator-red" / "v1.parquet").unlink()
    assert "taken for good" not in write_report(run).read_text()


def test_stages_that_are_none_are_one_line(run: Path) -> None:
    (run / "summary.json").write_text(json.dumps({"headline": {"stages": {"fine-tuned": 3}}}))
    with pytest.raises(RealrlError, match=r"summary.json: field 'headline.stages'"):
        write_report(run)
