"""Whose a run's folder is: what may begin in it, and what becomes of a run whose folder goes away."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from realrl.cell.account import Account
from realrl.files import write_json
from realrl.run import Run
from realrl.types import RealrlError


@dataclass(frozen=True)
class Job:
    lr: float = 1e-3


def test_a_run_that_somebody_deletes_ends(tmp_path: Path) -> None:
    """It would go on for hours into a folder that has neither its configuration nor its recordings."""
    with Run.start(tmp_path / "run", Job()) as run:
        run.save("part", 1, part={"x": torch.ones(1)})
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(RealrlError, match="was deleted or moved while the run wrote there"):
            run.save("part", 2, part={"x": torch.ones(1)})
        assert not (tmp_path / "run").exists()
    with Run.start(tmp_path / "run", Job()) as run:
        run.log(0, {"loss": 1.0})
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        with pytest.raises(RealrlError, match="is continued where it is now, with --resume"):
            run.save("part", 1, part={"x": torch.ones(1)})
    assert not (tmp_path / "run").exists()
    Run.start(tmp_path / "elsewhere", Job(), resume=True).close()


def test_nothing_of_a_run_that_was_moved_stands_there_anew(tmp_path: Path) -> None:
    with Run.start(tmp_path / "run", Job()) as run:
        account = Account(run, "toy/line", 0, lambda: 7)
        account.save()
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        account.save()
    assert not (tmp_path / "run").exists() and (tmp_path / "elsewhere" / "summary.json").is_file()


def test_what_somebody_wrote_or_waited_for_is_not_begun_over(tmp_path: Path) -> None:
    """A configuration that a run is to begin from, and results that no line of metrics.jsonl tells of."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.yaml").write_text("# mine\nlr: 0.1\n")
    Run.start(tmp_path / "judged", Job()).close()
    write_json(tmp_path / "judged" / "summary.json", {"stages": [{"name": "imitation", "success": 0.5}]})
    for name in ("own", "judged"):
        with pytest.raises(RealrlError, match="not empty; continue it with --resume"):
            Run.start(tmp_path / name, Job())
    assert (tmp_path / "own" / "config.yaml").read_text() == "# mine\nlr: 0.1\n" and (tmp_path / "judged" / "summary.json").exists()
    write_json(tmp_path / "judged" / "summary.json", {"stages": [], "wall_s": 0.1})
    Run.start(tmp_path / "judged", Job()).close()
    assert not (tmp_path / "judged" / "summary.json").exists()
