"""The report says what the files say, stands alone, and names what is wrong with a damaged file."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from realrl.data.tools.faults import Problem, alike
from realrl.report import markdown_table, stage_table, write_report
from realrl.report.curves import _panels, curves
from realrl.report.pictures import tell_once
from realrl.report.reading import _join_numbered
from realrl.types import RealrlError


def stage(name: str, good: int, n: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "success": {"rate": good / n, "n": n, "low": good / n - .01, "high": min(1.0, good / n + .01)}, **more}


SUMMARY: dict[str, Any] = {
    "task": "metaworld/peg-insert-side-v3", "seed": 3, "wall_s": 1083.0, "env_steps": 612_400, "commit": "0123456789abcdef", "stages": [
        stage("demonstrator", 41, 50, cycle_steps=104.0, cycle_s=1.3, cycle_histogram={"edges": [80, 100, 120], "counts": [15, 26]}),
        stage("imitation", 124, 200, cycle_steps=110.5, latency_ms={"p50": 2.91, "p99": 4.4}, env_steps=20_000, wall_s=28.4),
        {"name": "offline-1"},
        stage("online", 500, 500, cycle_steps=72.0, latency_ms={"p50": 2.88}, env_steps=520_000, wall_s=540),
        stage("one-step", 497, 500, cycle_steps=71.0, cycle_s=.91, successes_per_hour=3900.4, latency_ms={"p50": .243, "p99": .389},
              cycle_histogram={"edges": [60, 70, 80], "counts": [200, 297]}),
    ]}


def metrics() -> list[dict[str, Any]]:
    """Twelve figures, a second and a half to draw."""
    rows: list[dict[str, Any]] = [{"stage": "imitation", "step": i, "time": i / 10, "loss": 1 / (i + 1), "odd": i} for i in range(200)]
    for i in range(8):
        rows.append({"stage": f"offline-{1 + i // 4}", "step": i % 4, "advantage_mean": .1 * i, "ope_gain": .02 - .01 * i,
                     "ope_low": -.01 * i, "accepted": float(i < 3), **{f"clip_fraction_{k}": .01 * k for k in range(10)},
                     "clip_fraction": .045})
        rows.append({"stage": "online", "step": i, "env_steps": 2500 * i, "success_rate": .9, "ratio": [1.0, .9, 1.1], "kl": None})
    return rows


def write_run(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    points = [{"stage": "offline-1", "iteration": i, "estimate": .1 * i, "low": .1 * i - .05, "high": .1 * i + .05,
               "true_success": .5 + .1 * i, "true_n": 200} for i in range(4)]
    (folder / "ope.json").write_text(json.dumps({"points": points}))
    failing = [{"stage": "one-step", "seed": 17, "steps": 200}, *({"stage": "imitation", "seed": s, "steps": 150 + s} for s in range(76))]
    (folder / "failures.json").write_text(json.dumps(failing))
    (folder / "config.yaml").write_text("online:\n  clip: 0.15  # <half>\n")
    (folder / "meta.json").write_text(json.dumps({"command": ["/somewhere/bin/realrl", "train", "rl100", "--note", "two words"],
                                                  "versions": {"torch": "2.13.0"}, "resumed": [{"commit": "fedcba"}]}))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run with every kind of figure, and its report: for who only reads them."""
    folder = write_run(tmp_path_factory.mktemp("whole") / "main", metrics())
    return folder, write_report(folder)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with every file, and a single curve."""
    return write_run(tmp_path / "main", metrics()[:5])


def drawings(html: str) -> list[str]:
    """The SVG text of every embedded figure."""
    return [base64.b64decode(data).decode() for data in re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', html)]


def test_the_report_contains_the_numbers(whole: tuple[Path, Path]) -> None:
    run, path = whole
    assert path == run / "report.html"
    html = path.read_text(encoding="utf-8")
    for text in ("metaworld/peg-insert-side-v3", "seed 3", "commit 0123456789", "497 of 500", "99.4 %", "98.4 – 100.0 %", "0.243 ms",
                 "30\xa0% faster than the demonstrator", "612 k", "18 min of wall time", "3,900", "520,000", "2.91", "4.40", "62.0 %",
                 "+1.00 over 4 checkpoints", "2.13.0", "resumed.1.commit", "clip: 0.15  # &lt;half&gt;"):
        assert text in html, text
    assert "OPE gate: 3 of 8 candidates accepted" in html
    assert "realrl train rl100 --note &#39;two words&#39;" in html
    assert "/somewhere" not in html
    assert "<b>17</b>" in html and "and 52 more" in html
    assert "left out" not in html


def test_every_figure_is_there_and_whole(whole: tuple[Path, Path]) -> None:
    html = whole[1].read_text(encoding="utf-8")
    figures = drawings(html)
    # success; curves of imitation (one known, one other), offline (gate, advantage, clipping and two heat maps of it), online;
    # cycle time (main, every stage has only one); OPE
    assert len(figures) == 1 + 2 + 5 + 2 + 1 + 1
    assert all(svg.lstrip().startswith("<?xml") and svg.rstrip().endswith("</svg>") for svg in figures)
    assert sum("<image" in svg for svg in figures) == 3  # heat maps: numbered scalars offline in two rounds, lists online
    for title in ("OPE gate", "Clip fraction, offline-1", "Clip fraction, offline-2"):  # the page's text, which wraps where it is long
        assert f'<div class="title">{title}</div>' in html


def test_it_is_self_contained_and_repeatable(whole: tuple[Path, Path]) -> None:
    run, path = whole
    html = path.read_text(encoding="utf-8")
    assert not re.search(r'(?:src|href)="(?!data:)', html)
    assert not re.search(r"url\(|@import|<script|<link", html)
    for svg in drawings(html):
        assert not re.search(r'href="(?!#|data:)', svg)
    assert write_report(run).read_text(encoding="utf-8") == html
    assert {p.name for p in run.iterdir()} == {"summary.json", "metrics.jsonl", "ope.json", "failures.json", "config.yaml", "meta.json",
                                               "report.html"}


@pytest.mark.parametrize(("name", "note"), [
    ("summary.json", "Success per stage left out"), ("metrics.jsonl", "Learning curves left out"),
    ("ope.json", "Offline estimate against truth left out"), ("failures.json", "Failing seeds left out"),
    ("config.yaml", "Configuration left out")])
def test_a_missing_file_leaves_its_section_out(run: Path, name: str, note: str) -> None:
    (run / name).unlink()
    assert note in write_report(run).read_text(encoding="utf-8")


def test_a_young_run_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"stage": "imitation", "step": 0, "loss": 1.25}\n{"stage": "imi')
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "No stage of this run has a measured success rate yet." in html
    assert not drawings(html) and "<td>Loss</td><td>1.25</td>" in html  # one number is no curve
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"stage": "imitation", "step": {i}, "loss": 1.0}}\n' for i in range(2)))
    assert len(drawings(write_report(tmp_path).read_text(encoding="utf-8"))) == 1


def test_a_summary_with_bare_stages_has_a_report(tmp_path: Path) -> None:
    summary = {"stages": [{"name": "imitation", "success": {"rate": 0.0, "n": 20}, "cycle_histogram": {}}]}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "0 of 20" in html and "0.0 – 16.1 %" in html  # Wilson's interval where the file has none


def test_failing_seeds_may_come_from_the_summary(run: Path) -> None:
    (run / "failures.json").unlink()
    summary = json.loads((run / "summary.json").read_text())
    summary["stages"][-1]["failures"] = [17, 18, 19]
    (run / "summary.json").write_text(json.dumps(summary))
    html = write_report(run).read_text(encoding="utf-8")
    assert "<b>17</b>" in html and "<b>19</b>" in html and "Failing seeds left out" not in html


def test_metrics_of_a_denoising_step_stand_beside_their_mean() -> None:
    rows = [{"stage": "online", "step": i, "kl": .1, **{f"kl_{k}": .01 * k for k in range(5)}, "value_explained": .5, "student_gap": .1}
            for i in range(3)]
    main, rest = _panels([_join_numbered(row) for row in rows])
    assert [p.title for p in main] == ["KL to the behaviour policy", "KL to the behaviour policy", "Explained variance of V",
                                       "Student-teacher gap"]
    assert [p.ylabel for p in main[:2]] == ["KL (nats)", "denoising step"] and not rest


def test_what_was_measured_once_a_stage_is_a_table() -> None:
    rows = [{"stage": f"offline-{i}", "step": 0, "value_explained": .4 + i / 10, "clip_fraction": .05, "model_r2": .001234}
            for i in (1, 2)]
    (part,) = curves([*rows, {"stage": "offline-2", "step": 1, "clip_fraction": .06}])
    assert part["title"] == "Offline" and [title for title, _ in part["main"].pictures] == ["Clip fraction"]
    assert part["once"].headers == ["Measured once", "offline-1", "offline-2"]
    assert part["once"].rows == [["Explained variance of V (1 = all)", "0.5", "0.6"]]
    assert (part["rest"], part["rest_once"].rows, part["count"]) == (None, [["model_r2", "0.00123", "0.00123"]], 1)
    (part,) = curves(rows[:1])
    assert part["main"] is None and [row[1:] for row in part["once"].rows] == [["5"], ["0.5"]]


def test_one_round_over_the_denoising_steps_is_a_line() -> None:
    main, _ = _panels([{"stage": "online", "step": 3, "kl": [.1, .2, .3]}])
    assert [(p.ylabel, p.xlabel) for p in main] == [("KL (nats)", "denoising step")]
    main[0].draw(axes := Figure().add_subplot())
    assert axes.lines[0].get_xydata().tolist() == [[1, .1], [2, .2], [3, .3]]


def test_rounds_of_one_kind_share_a_figure() -> None:
    rows = [{"stage": f"offline-{i}-imitation", "step": s, "loss": .5} for i in (1, 2) for s in range(3)]
    (part,) = curves(rows)
    assert part["title"] == "Offline imitation" and len(part["main"].pictures) == 1


def test_what_explores_and_what_is_deployed_are_drawn_together() -> None:
    rows = [{"stage": "trials", "step": i, "exploring": .5 + .1 * i, "deployed": .8, "gap": .1 * i - .3, "env_steps": 100 * i}
            for i in (1, 2)]
    (part,) = curves(rows)
    assert part["title"] == "Trials" and len(part["main"].pictures) == 1 and not part["count"] and part["once"] is None
    main, _ = _panels(rows)
    main[0].draw(axes := Figure().add_subplot())
    assert [(line.get_label(), list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines] == \
        [("exploring", [100, 200], pytest.approx([60, 70])), ("deployed", [100, 200], pytest.approx([80, 80]))]


def test_what_was_decided_is_told(run: Path) -> None:
    assert "What was decided" not in write_report(run).read_text(encoding="utf-8")
    line = "offline round 2 was sent back: 58 % of 150 trials against 64 %"
    (run / "summary.json").write_text(json.dumps({**SUMMARY, "decisions": {"offline round 2": line + " <b>"}}))
    html = write_report(run).read_text(encoding="utf-8")
    assert line.replace(" %", "\xa0%") + " &lt;b&gt;" in html
    (run / "summary.json").write_text(json.dumps({**SUMMARY, "decisions": [1]}))
    with pytest.raises(RealrlError, match="'decisions' should be an object"):
        write_report(run)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_candidates_of_the_gate_have_whole_numbers(count: int) -> None:
    rows = [{"stage": "offline-1", "ope_gain": .1, "ope_low": .05, "accepted": True}] * count
    main, _ = _panels(rows)
    main[0].draw(axes := Figure().add_subplot())
    low, high = axes.get_xlim()
    assert [t for t in axes.get_xticks() if low <= t <= high] == list(range(1, count + 1))


def test_heat_is_where_it_was_measured() -> None:
    main, _ = _panels([{"stage": "online", "step": s, "kl": [.1, .2, .3]} for s in (10, 20, 30)])
    main[0].draw(axes := Figure().add_subplot())
    assert axes.images[0].get_extent() == [5, 35, .5, 3.5]


def test_a_fault_of_every_episode_is_told_once() -> None:
    films = [{"camera": camera, "pictures": [], "error": error}
             for camera, error in (("a", "a.mp4 is damaged"), ("b", "b.mp4 is damaged"), ("a", "a.mp4 is damaged"), ("c", ""))]
    tell_once([{"films": films[:2]}, {"films": films[2:]}])
    assert [f["error"] for f in films] == ["a.mp4 is damaged", "b.mp4 is damaged", "as above", ""]


def test_problems_that_differ_in_numbers_alone_are_one() -> None:
    problems = [Problem("error", f"/d/file-{i}.parquet", f"episode {i} has {1.5 * i} frames too many", f"delete episode {i}")
                for i in range(40)]
    other = Problem("warning", "/d", "action leaves [-1, 1]", "clip")
    assert [(group[0], len(group)) for group in alike([problems[0], other, *problems[1:]])] == [(problems[0], 40), (other, 1)]


def test_errors_say_where(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RealrlError, match="no such run directory"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RealrlError, match=r"neither summary\.json nor metrics\.jsonl"):
        write_report(tmp_path / "empty")
    good = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(good.replace('"step": 2,', '"step": ,', 1))
    with pytest.raises(RealrlError, match=r"metrics\.jsonl, line 3"):
        write_report(run)
    (run / "metrics.jsonl").write_text("[1]\n")
    with pytest.raises(RealrlError, match=r"metrics\.jsonl, line 1: expected a JSON object"):
        write_report(run)
    (run / "metrics.jsonl").write_text(good)
    (run / "ope.json").write_text('{"points": [\n  {"estimate": 1,,}\n]}')
    with pytest.raises(RealrlError, match=r"ope\.json is not valid JSON \(.*line 2"):
        write_report(run)


@pytest.mark.parametrize("n", [-1, 0, .5, 1e308])
def test_a_number_of_episodes_that_cannot_be_gives_no_interval(run: Path, n: float) -> None:
    (run / "ope.json").write_text(json.dumps({"points": [{"estimate": .1, "true_success": .5, "true_n": n}]}))
    (run / "summary.json").write_text(json.dumps({"stages": [{"name": "imitation", "success": {"rate": .5, "n": n}}]}))
    assert "Offline estimate against truth" in write_report(run).read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 10_000, "{\"a\": }", "3", "\ud800"])
@pytest.mark.parametrize("name", ["summary.json", "ope.json", "failures.json", "meta.json"])
def test_what_no_reader_can_bear_is_one_line(run: Path, name: str, text: str) -> None:
    (run / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(RealrlError, match=re.escape(name)) as told:
        write_report(run)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["summary.json", "config.yaml"])
def test_a_pipe_is_not_waited_for(run: Path, name: str) -> None:
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(RealrlError, match=f"{name} is no plain file"):
        write_report(run)


@pytest.mark.parametrize(("stages", "message"), [
    ({}, "stages"), ([3], "every stage should be an object"),
    ([{"name": "online", "success": {"rate": "high"}}], r"stage 'online'.*'rate' should be a number, not 'high'"),
    ([{"name": "online", "success": {"rate": 99.4}}], "not a fraction between 0 and 1"),
    ([{"name": "online", "cycle_histogram": {"edges": [1, 2], "counts": [1, 2]}}], "2 edges for 2 counts")])
def test_a_wrong_field_is_named(tmp_path: Path, stages: Any, message: str) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"stages": stages or {"a": 1}}))
    with pytest.raises(RealrlError, match=message):
        write_report(tmp_path)


def test_tables_for_terminal_and_markdown() -> None:
    screen = io.StringIO()
    Console(file=screen, width=140).print(stage_table(SUMMARY))
    text = markdown_table(SUMMARY)
    assert text.splitlines()[-1] == "| one-step | 99.4 % | 98.4 – 100.0 % | 500 | 71.0 | 0.243 / 0.389 | – | – |"
    assert text.splitlines()[4] == "| offline-1 | – | – | – | – | – | – | – |"
    for cell in ("99.4 %", "98.4 – 100.0 %", "0.243 / 0.389", "2.88 / –", "520,000", "9 min"):
        assert cell in screen.getvalue(), cell


def test_a_rare_failure_is_not_rounded_away() -> None:
    assert "| 99.98 % |" in markdown_table({"stages": [stage("online", 9998, 10_000)]})
    assert "| 100.0 % |" in markdown_table({"stages": [stage("online", 500, 500)]})
