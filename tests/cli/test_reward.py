"""`realrl reward`: frames are labelled, a classifier is fitted and audited, a false positive is one command from being none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from realrl.cli import main as cli
from realrl.cli.reward import read
from realrl.data.store import Store
from realrl.learn import classifier
from realrl.types import Episode, Source


def approach(seed: int, *, succeeds: bool, steps: int = 12) -> Episode:
    """Something comes nearer; solved is below 0.25, and it stays there."""
    way = np.maximum(1.0 - np.arange(steps + 1) / steps * (1.2 if succeeds else 0.5), 0.0)
    state = np.stack([way, np.full(steps + 1, seed % 5)], 1).astype(np.float32)
    solved = way[1:] < 0.25
    zeros = np.zeros((steps, 1), np.float32)
    return Episode({"state": state}, zeros, zeros, np.full(steps, Source.POLICY, np.uint8), solved.astype(np.float32), solved,
                   np.arange(steps) * 0.1, np.ones(steps, bool), False, True, "lab/near", "x", seed)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    store = Store.create(tmp_path / "demos", task="lab/near", fps=10)
    store.append([approach(i, succeeds=i % 2 > 0) for i in range(24)])
    return tmp_path / "demos"


def labels(folder: Path) -> list[str]:
    """Of every episode, a letter a frame."""
    return ["".join({classifier.YES: "y", classifier.NO: "n", classifier.UNLABELLED: "."}[int(x)] for x in part)
            for part in read(Store.open(folder))]


def test_labels_begin_as_recorded_and_are_changed_by_a_command(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    word = str(recording)
    assert cli.main(["reward", "label", word]) == 0
    assert labels(recording)[:2] == ["n" * 12, "n" * 7 + "y" * 5]
    assert cli.main(["reward", "label", word, "--near", "2", "--last", "6"]) == 0
    assert labels(recording)[1] == "nnnn..yyyyyy" and labels(recording)[0] == "n" * 12
    assert cli.main(["reward", "label", word, "--wrong", "1,3", "--solved", "0:10:12", "--unsolved", "5:0:6"]) == 0
    assert labels(recording)[0] == "n" * 10 + "yy" and labels(recording)[1] == labels(recording)[3] == "n" * 12
    assert labels(recording)[5] == "n" * 6 + "yyyyyy" and labels(recording)[7] == "nnnn..yyyyyy", "what nobody changed stays"
    assert cli.main(["reward", "label", word, "--again"]) == 0
    assert labels(recording)[5] == "n" * 7 + "y" * 5 and labels(recording)[1] == "n" * 12, "what was wrong stays a failure"
    told = capsys.readouterr().out
    assert "episodes 1,3 count as failures from now on" in told and "50 frames solved, 238 frames unsolved" in told.splitlines()[-1]
    failed = [i for i, e in enumerate(Store.open(recording).read()) if e.failed]
    assert {1, 3} <= set(failed) and 5 not in failed, "for a run that goes on, too"
    assert cli.main(["data", "label", word, "--success", "1"]) == cli.main(["reward", "label", word, "--again"]) == 0
    assert labels(recording)[1] == "n" * 7 + "y" * 5


def test_a_run_that_practised_more_is_labelled_again_and_keeps_what_was_said(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    word = str(recording)
    cli.main(["reward", "label", word, "--near", "2", "--solved", "0:10:12"])
    Store.open(recording).append([approach(i, succeeds=i % 2 > 0) for i in range(24, 28)])
    assert cli.main(["reward", "fit", word, "--out", str(recording.parent / "seated")]) == 2
    assert f"4 of its 28 episodes came after its frames were labelled: realrl reward label {word}, which" in capsys.readouterr().err
    assert cli.main(["reward", "label", word, "--wrong", "25"]) == 0
    found = labels(recording)
    assert found[0] == "n" * 10 + "yy" and found[1] == "nnnnn..yyyyy", "as it was said before"
    assert found[24:] == ["n" * 12, "n" * 12, "n" * 12, "n" * 7 + "y" * 5]


def test_fitted_audited_and_mended(recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, flags = tmp_path / "seated", ["--hidden", "16", "--steps", "300", "--batch", "32", "--dropout", "0"]
    assert cli.main(["reward", "fit", str(recording), "--out", str(out), *flags]) == 2
    assert "have no labels yet: realrl reward label" in capsys.readouterr().err
    cli.main(["reward", "label", str(recording)])
    assert cli.main(["reward", "fit", str(recording), "--out", str(out), *flags]) == 0
    assert "unsolved frames taken for solved" in capsys.readouterr().out
    model = classifier.load(out)
    assert model.cfg.steps == 300
    assert cli.main(["reward", "fit", str(recording), "--out", str(out), *flags]) == 2
    assert "not empty; choose a new folder" in capsys.readouterr().err, "a run may rely on it"
    seen = np.array([[0.9, 3.0], [0.1, 3.0]], np.float32)
    assert (model.probability(model.features({"state": seen})) > model.threshold).tolist() == [False, True]
    other = tmp_path / "tuesday"
    Store.create(other, task="lab/near", fps=10).append([approach(i, succeeds=i % 2 > 0) for i in range(100, 106)])
    cli.main(["reward", "label", str(other)])
    assert cli.main(["reward", "audit", str(out), "--data", str(other), "--frames", "1"]) == 0
    assert "(1 in a row)" in capsys.readouterr().out
    cli.main(["reward", "label", str(other), "--wrong", "0:6"])
    assert cli.main(["reward", "audit", str(out), "--data", str(other)]) == 0
    said = capsys.readouterr().out
    assert "3 of 6" in said and "nothing to judge" in said and "it would end episodes too soon" in said


def test_an_audit_is_on_episodes_that_had_no_part_in_the_fit(recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever they lie: half of them were fitted, a quarter chose the threshold."""
    out, copy, few = tmp_path / "seated", tmp_path / "copy", tmp_path / "few"
    cli.main(["reward", "label", str(recording)])
    assert cli.main(["reward", "fit", str(recording), "--out", str(out), "--hidden", "16", "--steps", "50", "--batch", "32"]) == 0
    Store.create(copy, task="lab/near", fps=10).append(Store.open(recording).read())
    cli.main(["reward", "label", str(copy)])
    capsys.readouterr()
    assert cli.main(["reward", "audit", str(out), "--data", str(copy)]) == 0
    said = capsys.readouterr().out
    assert f"18 of the 24 episodes of {copy} had a part in the fit and are left out" in said and "of 6" in said
    cli.main(["reward", "label", str(copy), "--wrong", "0:24"])
    assert cli.main(["reward", "audit", str(out), "--data", str(copy)]) == 0
    assert "ROC nothing to judge, all frames are of one kind" in capsys.readouterr().out
    model = classifier.load(out)
    Store.create(few, task="lab/near", fps=10).append([e for e in Store.open(recording).read() if model.identity(e) in model.fitted])
    cli.main(["reward", "label", str(few)])
    assert cli.main(["reward", "audit", str(out), "--data", str(few)]) == 2
    assert "all of its 18 episodes had a part in the fit" in capsys.readouterr().err


@pytest.mark.parametrize("words, said", [
    (["--solved", "3:4"], "'3:4' is no span of frames"), (["--solved", "99:0:1"], "there are 24 episodes"),
    (["--unsolved", "3:4:13"], "episode 3 has 12 frames"), (["--wrong", "50"], "50")])
def test_spans_that_make_no_sense(recording: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reward", "label", str(recording), *words]) == 2
    assert said in capsys.readouterr().err
