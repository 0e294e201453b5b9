"""docs/howto/own-robot.md does what it says: its files are written out and its commands run, with small numbers."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

from children import Child
from realrl.data.store import Store
from realrl.data.tools.check import check
from toy_runs import tried_labels

PAGE = Path(__file__).resolve().parent.parent / "docs/howto/own-robot.md"
SMALL = ("--policy.hidden 32 --policy.blocks 1 --imitation.steps 150 --imitation.batch 32 "
         "--offline.rounds 1 --offline.rollouts 4 --offline.iterations 1 --offline.reimitation 10 "
         "--critic.steps 20 --ope.steps 20 --ope.members 2 --ope.elites 2 --online.iterations 1 --online.episodes 3 "
         "--distill.steps 20 --distill.chains 64 --distill.batch 64 --eval-episodes 3 --final-episodes 3")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's files in it."""
    folder = tmp_path_factory.mktemp("lab")
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S):
        if name := re.match(r'"""(\w+\.py): ', code):
            (folder / name[1]).write_text(code)
    return folder


def run(lab: Path, line: str, code: int = 0) -> str:
    """A command of the page, run in the folder; what it printed."""
    words = [*(["-m"] if line.startswith("realrl") else []), *shlex.split(line.removeprefix("python "))]
    found, out, err = Child(*words, cwd=lab).wait()
    assert found == code, out + err
    return out + err


def test_every_command_of_the_page(lab: Path) -> None:
    commands = [line for block in re.findall(r"```\w*\n(.*?)```", PAGE.read_text(), re.S) for line in block.splitlines()
                if line.startswith(("python ", "realrl "))]
    assert len(commands) == 6
    for line in commands:
        out = run(lab, line.replace("--episodes 50", "--episodes 4") + (f" {SMALL}" if "train" in line else ""))
        if "train" in line:
            assert "evaluate --policy runs/plug/policy --env lab:Plug" in out and (lab / "runs/plug/report.html").is_file()
    assert "runs/plug was started with --env" in run(lab, "realrl train rl100 --run runs/plug --resume", code=2)
    summary = json.loads((lab / "runs/plug/summary.json").read_text())
    assert [s["name"] for s in summary["stages"]] == ["imitation", "offline-1", "online", "one-step"]
    store = Store.open(lab / "runs/plug/dataset")
    count = Counter(e.policy for e in store.read())
    others = {label: 2 if label.startswith("rollout") else 3 for label in tried_labels(summary["decisions"])}
    assert count == {"rollout-1": 2, "rollout-1-deployed": 2, "online-0": 3, "online-0-deployed": 3, "rollout-one-step-1": 3, **others}
    assert not [p for p in check(lab / "runs/plug/dataset") if p.severity == "error"]


@pytest.mark.parametrize(("flags", "words"), [
    ("--env lab", "give a module and what builds"), ("--env nowhere:Plug", "no module 'nowhere'"), ("--env lab:Hole", "has no 'Hole'"),
    ("--env lab:np", "np' is a module"), ("--env lab:Plug", "no scripted expert: record demonstrations")])
def test_mistakes_are_one_line(lab: Path, flags: str, words: str) -> None:
    out = run(lab, f"realrl train bc {flags} --run runs/mistake", 2)
    (line,) = [line for line in out.splitlines() if line.startswith("error")]
    assert words in line and "Traceback" not in out


@pytest.mark.parametrize(("flags", "words"), [
    ("bc --sight.kind rgb", "lab/plug shows the state alone"), ("bc --randomise.mass 0.1", "--randomise.mass: lab/plug is not"),
    ("bc --horizon 9", "(horizon=40)"), ("recap --tasks toy/red", "lab/plug is the one task here")])
def test_what_an_environment_of_ones_own_would_not_heed_is_told_before_there_is_a_folder(lab: Path, flags: str, words: str) -> None:
    out = run(lab, f"realrl train {flags} --env lab:Plug --run runs/unheeded", 2)
    assert words in out and out.count("\n") == 1 and not (lab / "runs/unheeded").exists()
