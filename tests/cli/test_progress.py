"""Bars and lines that say how far something is, on a terminal and in a file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from realrl.cli import parser
from realrl.run import progress_bar

SOURCE = Path(parser.__file__).resolve().parents[2]


class Clock:
    """Seconds that pass when one says so."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize(("seconds", "count", "total", "lines"), [
    (0.1, 20, 20, []),  # over before anyone asks
    (4.0, 20, 20, ["2 of 20 (10 %) after 8 s", "4 of 20 (20 %) after 16 s"]),
    (1.0, 20, 20, ["3 of 20 (15 %) after 3 s", "6 of 20 (30 %) after 6 s"]),
    (10.0, 500, 500, ["3 of 500 (0 %) after 30 s", "6 of 500 (1 %) after 60 s"]),
    (10.0, 4, 3, ["1 of 3 (33 %) after 10 s", "2 of 3 (66 %) after 20 s", "3 of 3 (100 %) after 30 s", "4 after 40 s"]),
    (10.0, 9, None, ["3 after 30 s", "6 after 60 s", "9 after 90 s"]), (10.0, 0, 0, [])])
def test_progress_into_a_file_is_lines_one_can_read(seconds: float, count: int, total: int | None, lines: list[str],
                                                    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    monkeypatch.setattr(parser, "time", clock)
    seen = []
    for item in parser.progress(iter(range(count)), "copying", total):
        seen.append(item)
        clock.now += seconds
    out, err = capsys.readouterr()
    told = err.splitlines()
    assert seen == list(range(count)) and out == "" and "\x1b" not in err and "" not in told
    assert told[:len(lines)] == [f"copying: {line}" for line in lines] and (len(told) > len(lines)) == (count > 9 and bool(lines))


def test_a_bar_on_a_terminal_shows_brackets_as_they_are() -> None:
    """Of a folder called `[/b]`, say, from which episodes are imported."""
    hand, end = os.openpty()
    child = subprocess.run([sys.executable, "-c", "from realrl.cli.parser import progress\n"
                            "print(*progress(iter('xyz'), 'importing a[/b][red]:door:', 3))"],
                           stdout=subprocess.PIPE, stderr=end, env={**os.environ, "TERM": "xterm", "PYTHONPATH": str(SOURCE)})
    os.close(end)
    said = os.read(hand, 10**5)
    os.close(hand)
    assert (child.returncode, child.stdout) == (0, b"x y z\n") and b"importing a[/b][red]:door:" in said


def test_a_log_says_how_long_the_rest_takes_by_what_was_done_now(monkeypatch: pytest.MonkeyPatch,
                                                                      capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr("realrl.run.time.monotonic", lambda: now[0])
    with progress_bar("walk", 1000, 900) as advance:
        now[0] = 40.0
        advance(20)
    with progress_bar("known", 10, 10):
        pass
    with progress_bar("fresh", 10) as advance:
        advance(10)
    assert capsys.readouterr().out.splitlines() == ["walk: 920 of 1000, about 160 s to go", "walk: 920 of 1000, 20 of them now, in 40 s",
                                                    "fresh: 10 of 10 in 0 s"]


def test_a_log_of_more_than_was_asked_for_says_what_it_waits_for(monkeypatch: pytest.MonkeyPatch,
                                                                 capsys: pytest.CaptureFixture[str]) -> None:
    """Steps end between episodes only."""
    now = [0.0]
    monkeypatch.setattr("realrl.run.time.monotonic", lambda: now[0])
    with progress_bar("steps", 600) as advance:
        for done, seconds in ((590, 40.0), (100, 80.0), (136, 120.0)):
            now[0] = seconds
            advance(done, "2 asked")
    assert capsys.readouterr().out.splitlines() == [
        "steps: 590 of 600, about 1 s to go; 2 asked", "steps: 600 of 600, 90 beyond, until the episode under way ends; 2 asked",
        "steps: 600 of 600, 226 beyond, until the episode under way ends; 2 asked",
        "steps: 600 of 600 and 226 beyond, to an episode's end, in 120 s"]


def test_a_bar_of_more_than_was_asked_for_is_full() -> None:
    hand, end = os.openpty()
    child = subprocess.run([sys.executable, "-c", "from realrl.run import progress_bar\nwith progress_bar('steps', 600) as advance:\n"
                            "    advance(826)"],
                           stdout=end, stderr=end, env={**os.environ, "TERM": "xterm", "COLUMNS": "140", "PYTHONPATH": str(SOURCE)})
    os.close(end)
    said = os.read(hand, 10**5).decode()
    os.close(hand)
    assert child.returncode == 0 and "600/600" in said and "226 beyond, until the episode under way ends" in said and "826" not in said


@pytest.mark.parametrize("width", [80, 120])
def test_a_note_is_read_whole_on_a_narrow_terminal(width: int) -> None:
    """Who steers by it needs its last word, and the count beside the bar."""
    note = "policy acts; solved alone 12 %, helped 34 %; human 56 %; updates a step 4.0 of 4; 10000 + 2345 steps; let it try"
    hand, end = os.openpty()
    child = subprocess.run([sys.executable, "-c", "from realrl.run import progress_bar\nwith progress_bar('hil-serl: steps', 15000) "
                            f"as advance:\n    advance(12345, {note!r})\n    import time; time.sleep(0.3)"],
                           stdout=end, stderr=end, env={**os.environ, "TERM": "xterm", "COLUMNS": str(width), "PYTHONPATH": str(SOURCE)})
    os.close(end)
    said = os.read(hand, 10**5).decode()
    os.close(hand)
    assert child.returncode == 0 and "12345/15000" in said and "\u2026" not in said
    assert note in " ".join(said.split()), "broken between words at most"
