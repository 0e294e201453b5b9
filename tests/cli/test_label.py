"""`realrl data label`: rules, lists, and one by one at a terminal."""

from __future__ import annotations

import io
import os
import termios
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from realrl.cli import main as cli
from realrl.data import labels
from realrl.data.store import Store
from realrl.types import Episode

NO_CAMERA = {"state": np.zeros((6, 2), np.float32)}


def episode(reward: float = 0.0, success: bool | None = None, obs: dict[str, np.ndarray] | None = None, task: str = "move") -> Episode:
    """Five steps. success: None for unknown."""
    n, last = 5, np.arange(5) == 4
    return Episode(obs=obs or NO_CAMERA, action=np.zeros((n, 2), np.float32), proposed=np.zeros((n, 2), np.float32),
                   source=np.ones(n, np.uint8), reward=(last * reward).astype(np.float32), success=last & bool(success),
                   time=np.arange(n) / 10, starts_plan=np.ones(n, bool), terminated=bool(success), truncated=not success, task=task,
                   policy="", judged=success is not None)


def dataset(folder: Path, episodes: Sequence[Episode]) -> Path:
    Store.create(folder, task="move", fps=10, codec="h264").append(episodes)
    return folder


def ended(folder: Path) -> list[bool | None]:
    return [e.succeeded if e.judged else None for e in Store.open(folder).read(images=False)]


def run(capsys: pytest.CaptureFixture[str], *args: object, code: int = 0) -> str:
    capsys.readouterr()
    got = cli.main(["data", "label", *map(str, args)])
    out, err = capsys.readouterr()
    assert got == code, (out, err)
    if code:
        line = err.strip()
        assert line.startswith("error: ") and "\n" not in line and not out
        return line
    return out


def test_rules_and_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = dataset(tmp_path / "d", [episode(1.0), episode(0.5, False), episode(0.0, True), episode(-1.0, False), episode()])
    assert ended(folder) == [None, False, True, False, None]
    out = run(capsys, folder, "--success", "all", "--failure", "1,3:5")
    assert ended(folder) == [True, False, True, False, False] and "5 of 5 episodes labelled: 2 success, 3 failure" in out
    run(capsys, folder, "--success", "reward", "--unknown", "4")
    assert ended(folder) == [True, True, False, False, None], "by the recorded reward, not by what the label before it pays"
    run(capsys, folder, "--success", "last")
    assert ended(folder) == [False, False, True, False, False]
    run(capsys, folder, "--failure", "all", "--success", "0")
    assert ended(folder) == [True, False, False, False, False]
    assert set(labels.read(folder, Store.open(folder).rows)["how"]) == {"--success 0 --failure all"}
    capsys.readouterr()
    assert cli.main(["data", "info", str(folder)]) == 0
    assert "20.0 % of the episodes (labels: 1 success, 4 failure)" in capsys.readouterr().out


def test_mistakes_are_one_line_and_label_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
                                                 ) -> None:
    folder = dataset(tmp_path / "d", [episode(), episode()])
    for words, said in ((("--success", "reward"), "never above 0"), (("--success", "last"), "never above 0"),
                        (("--success", "2"), "there is no number 2"), (("--failure", "reward"), "no number and no range"),
                        (("--success", "0", "--failure", "0:2"), "episode 0 stands in --success and in --failure"),
                        (("--success", "all", "--unknown", "all"), "both judge every episode"),
                        (("--success", "all", "--episodes", "1"), "leave them out")):
        assert said in run(capsys, folder, *words, code=2)
    monkeypatch.setattr("sys.stdin", io.StringIO("s"))
    line = run(capsys, folder, code=2)
    assert "no terminal" in line and "--success all" in line and "--failure" in line
    assert "not a LeRobot dataset" in run(capsys, tmp_path, "--success", "all", code=2)
    assert not (folder / "derived").exists()


class Keyboard:
    """A terminal at which somebody types."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hand, end = os.openpty()
        self.end = os.fdopen(end)
        monkeypatch.setattr("sys.stdin", self.end)
        self.before = termios.tcgetattr(end)

    def types(self, keys: str) -> None:
        os.write(self.hand, keys.encode())


def test_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    seen = {"state": np.zeros((6, 2), np.float32), "images.front": rng.integers(0, 255, (6, 32, 32, 3), np.uint8)}
    folder = dataset(tmp_path / "d", [episode(0.5, None, seen, "pick the cup"), *(episode(obs=seen) for _ in range(4))])
    board = Keyboard(monkeypatch)
    board.types("s\x1b[Dxq")  # an arrow and an unknown key change nothing
    out = run(capsys, folder)
    assert "\nepisode 0 of 0..4: 5 steps, 0.5 s, return 0.5, pick the cup\n  label: none, recorded: unknown\n" in out
    assert "1 success, 4 without a label; the same command continues" in out and ended(folder)[:2] == [True, None]
    film = Path(next(line for line in out.splitlines() if "look at " in line).partition("look at ")[2])
    assert film.is_file() and film.suffix == ".mp4" and film.parent == tmp_path / "d-view"
    board.types("fb\nuFq")  # back to what was just said, leave it, go on
    out = run(capsys, folder)
    assert ended(folder) == [True, False, None, False, None] and "episode 0" not in out
    assert labels.read(folder, Store.open(folder).rows)["label"] == ["success", "failure", "unknown", "failure", None]
    board.types("s")
    run(capsys, folder)
    assert "all 5 episodes have labels" in run(capsys, folder)
    board.types("q")
    assert "label: success" in run(capsys, folder, "--episodes", "4")
    assert termios.tcgetattr(board.end.fileno()) == board.before, "the terminal is as it was"


def test_what_cannot_be_shown_can_be_labelled(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = dataset(tmp_path / "d", [episode(), episode()])
    board = Keyboard(monkeypatch)
    board.types("sf")
    out = run(capsys, folder, "--out", tmp_path / "films")
    assert (tmp_path / "films/d-1.html").is_file() and str(tmp_path / "films/d-0.html") in out and ended(folder) == [True, False]
    (tmp_path / "file").write_text("")
    board.types("s")
    assert "look at nothing: " in run(capsys, folder, "--episodes", "1", "--out", tmp_path / "file") and ended(folder) == [True, True]
