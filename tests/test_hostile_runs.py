"""Damaged runs, policies and flags, and disks that are full: what a command answers is its result or one line, never a traceback.

The cases are the same on every run; REALRL_FUZZ=2000 asks for as many new ones a test.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from realrl import config
from realrl.algos.bc import BCConfig
from realrl.cli.main import main
from realrl.learn.imitation import ImitationConfig
from realrl.scene import CollectConfig
from toy_runs import small_policy, tiny

MORE = os.environ.get("REALRL_FUZZ")
CASES = int(MORE or 12)
FIRST = random.SystemRandom().randrange(10**9) if MORE else 0
NASTY: list[Any] = [None, True, -1, 0, 1.5, 1e308, math.nan, math.inf, 2**40, 2**63, 10**400, "", "x", "../..", "\x1b[2J", "\ud800",
                    "x" * 10_000, [], {}, [[]], [1, 2], {"a": {}}, {"$dict": 5}, {"$tensor": "x"}, {"$tuple": None}]
SMALL = BCConfig(task="toy/obstacle", demos=2, demo_noise=0.0, policy=small_policy(), imitation=ImitationConfig(steps=4, batch=8),
                 collect=CollectConfig(workers=1), eval_episodes=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run, with a checkpoint that is read when it goes on."""
    folder = tmp_path_factory.mktemp("hostile")
    config.save(SMALL, folder / "small.yaml")
    assert main(["train", "bc", "--run", str(folder / "run"), "--config", str(folder / "small.yaml")]) == 0
    return folder / "run"


def ask(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a command answers: "" where it worked, else its one line."""
    try:
        code = main([str(word) for word in words])
    except SystemExit as left:  # a flag's mistake, which tyro tells in a box
        code = int(left.code or 0)
        assert code in (0, 2)
        return "" if code == 0 else "error: a flag"
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code in (0, 2) and (code == 0 or len(told) == 1), (code, told)
    if code:
        assert len(told[0]) < 1500 and "\x1b" not in told[0]
    return "" if code == 0 else told[0]


def damage(file: Path, dice: random.Random) -> None:
    """Change a node of a JSON tree, or some bytes, or make the file what it is not."""
    how = dice.choice(["tree", "tree", "tree", "bytes", "cut", "deep", "pipe", "link", "folder", "empty"])
    if how == "tree" and file.suffix in (".json", ".jsonl"):
        lines = file.read_text().splitlines() or ["{}"] if file.suffix == ".jsonl" else [file.read_text()]
        at = dice.randrange(len(lines))
        lines[at] = json.dumps(changed(json.loads(lines[at]), dice))
        file.write_text("\n".join(lines) + "\n")
    elif how in ("tree", "bytes"):
        data = bytearray(file.read_bytes() or b"x")
        for _ in range(dice.randint(1, 4)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        file.write_bytes(data)
    elif how == "cut":
        os.truncate(file, int(dice.random() * file.stat().st_size))
    elif how in ("deep", "empty"):
        file.write_text("[" * 50_000 if how == "deep" else "")
    else:
        file.unlink()
        {"pipe": os.mkfifo, "link": lambda f: f.symlink_to("/dev/zero"), "folder": Path.mkdir}[how](file)


def changed(tree: Any, dice: random.Random) -> Any:
    """The tree with one node replaced by something nasty, removed, or renamed."""
    node = copy.deepcopy(tree)
    root, parent, key = node, None, None
    for _ in range(dice.randint(1, 6)):
        keys = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
        if not keys:
            break
        parent, key = node, dice.choice(keys)
        node = parent[key]
    if parent is None:
        return dice.choice(NASTY)
    if dice.random() < 0.2:
        del parent[key]
    else:
        parent[key] = dice.choice(NASTY)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("case", range(FIRST, FIRST + CASES))
def test_damaged_files_of_a_run(case: int, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dice, there = random.Random(case), tmp_path / "run"
    shutil.copytree(run, there)
    files = sorted(p for p in there.rglob("*") if p.suffix in (".json", ".jsonl", ".yaml", ".safetensors") and "dataset" not in p.parts)
    damage(victim := dice.choice(files), dice)
    words: list[object] = ["evaluate", "--policy", there / "policy", "--episodes", 1, "--workers", 1]
    if victim.parent == there:
        words = dice.choice([["report", there], ["train", "bc", "--run", there, "--resume"]])
    elif "checkpoints" in victim.parts or dice.random() < 0.3:
        words = ["train", "bc", "--run", there, "--resume"]
    ask(capsys, *words)


def numbers(tree: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """(flag, default) of every number of a configuration."""
    for name, value in config.to_dict(tree).items() if not isinstance(tree, dict) else tree.items():
        flag = f"{at}{name.replace('_', '-')}"
        if isinstance(value, dict):
            yield from numbers(value, f"{flag}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield flag, value


@pytest.mark.slow
@pytest.mark.parametrize("case", range(FIRST, FIRST + 2 * CASES))
def test_flags_that_make_no_sense(case: int, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A refused flag leaves no folder behind; one that is accepted trains."""
    dice = random.Random(case)
    flag, value = dice.choice(list(numbers(SMALL)))
    word = dice.choice(["nan", "inf", "-inf", "-1", "0", "1e999", "9" * 30, "9" * 5000, "x", "", "1.5", str(value)])
    said = ask(capsys, "train", "bc", "--run", tmp_path / "new", "--config", run.parent / "small.yaml", f"--{flag}={word}")
    assert bool(said) != (tmp_path / "new").exists(), said


@contextlib.contextmanager
def disk(folder: Path, size: str) -> Iterator[Path]:
    """A small disk of its own, where we may mount one."""
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("needs leave to mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["12k", "60k", "200k", "500k", "800k", "1200k"])
def test_a_disk_that_fills_up_while_training(size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the first metrics to the online rounds' checkpoints: one line that says how to go on, and nothing half-written is left."""
    cfg = tiny(eval_episodes=3, final_episodes=3, audit_episodes=0, demos=4, imitation=ImitationConfig(steps=60, batch=16, warmup=3))
    config.save(cfg, tmp_path / "tiny.yaml")
    with disk(tmp_path / "disk", size) as full:
        said = ask(capsys, "train", "rl100", "--run", full / "run", "--config", tmp_path / "tiny.yaml")
        assert "(No space left on device)" in said and "free space" in said
        assert f", then continue with: realrl train rl100 --run {full / 'run'} --resume" in said
        assert list(full.rglob(".*.tmp")) == []


def test_a_report_on_a_full_or_read_only_disk(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with disk(tmp_path / "disk", "16k") as full:
        shutil.copy(run / "summary.json", full)
        assert ask(capsys, "report", full).endswith("report.html could not be written (No space left on device); free space")
    with disk(tmp_path / "fixed", "4m") as fixed:
        shutil.copytree(run, fixed / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(fixed)], check=True)
        assert ask(capsys, "report", fixed / "run").endswith("could not be written (Read-only file system); mend the permissions")
        assert "Read-only file system" in ask(capsys, "train", "bc", "--run", fixed / "run", "--resume")


def test_two_runs_in_one_folder(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second is told who has it; readers are not in the way of it."""
    from realrl.run import Run
    shutil.copytree(run, tmp_path / "run")
    with Run(tmp_path / "run", resume=True):
        said = ask(capsys, "train", "bc", "--run", tmp_path / "run", "--resume")
        assert said == f"error: {tmp_path / 'run'} is being written by process {os.getpid()}; wait for it or end it"
        assert ask(capsys, "report", tmp_path / "run") == ""


def test_standard_output_that_is_full() -> None:
    code = "import sys; from realrl.cli.main import main; sys.exit(main(['tasks', 'toy']))"
    with open("/dev/full", "w") as full:
        job = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    assert job.returncode == 2 and job.stderr.splitlines() == [
        "error: a file could not be written (No space left on device); free space"]
