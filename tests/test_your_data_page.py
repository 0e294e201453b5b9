"""docs/howto/your-data.md does what it says: its commands and its code run on small sets, one made here, one of a real robot."""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import fields
from pathlib import Path

from children import Child
from realrl.scene import RecordedConfig
from teleoperation import teleoperated, written

PAGE = Path(__file__).resolve().parent.parent / "docs/howto/your-data.md"
SMALL = "--imitation.steps 20 --imitation.batch 16 --distill.steps 5 --policy.hidden 32 --policy.blocks 1"
SMALL_PICTURES = "--sight.height 24 --sight.width 32"  # as the set here has them
OFFLINE = "--critic.steps 20 --ope.steps 20 --ope.members 2 --ope.elites 2 --offline.iterations 1 --offline.reimitation 10"
LABELS = " --success all --failure 1"  # nobody sits at this terminal


def run(folder: Path, line: str) -> str:
    """A command of the page, run in the folder; what it printed."""
    words = [*(["-m", "realrl"] if line.startswith("realrl") else []), *shlex.split(line, comments=True)[1:]]
    code, out, err = Child(*words, cwd=folder).wait()
    assert code == 0, out + err
    return out + err


def commands() -> list[str]:
    """The page's commands about a folder DIR, each with a budget of seconds."""
    text = PAGE.read_text().split("## Training in a simulator")[0]
    blocks = [block for kind, block in re.findall(r"```(\w*)\n(.*?)```", text, re.S) if not kind]
    found = [line for block in blocks for line in block.splitlines() if line.startswith("realrl ")]
    budget = lambda line: (f" {SMALL} {SMALL_PICTURES}" + (f" {OFFLINE}" if "rl100" in line else "")) if "train" in line else ""
    return [line.partition("#")[0] + budget(line) + (LABELS if "label" in line else "") for line in found]


def test_every_command_and_the_code_of_the_page(tmp_path: Path) -> None:
    written(tmp_path / "DIR", teleoperated(6, cameras=True))
    said = {line.split()[1] + " " + line.split()[2]: run(tmp_path, line) for line in commands()}
    assert set(said) == {"train bc", "data check", "data info", "data label", "train rl100"}
    assert "Held-out error" in said["train bc"] and "keep still" in said["train bc"]
    assert "No trial was run" in said["train rl100"]
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    (tmp_path / "act.py").write_text(code)
    assert "shoulder.pos" in run(tmp_path, "python act.py")


def test_the_one_command_on_a_real_robots_recordings(shared_data: Path, tmp_path: Path) -> None:
    """Three episodes of a Reachy 2: even with next to no training the policy is better than keeping still, which a clone of its absolute
    joint targets loses to."""
    files = shared_data / "reachy2_apple_storage"
    for name, place in {"info.json": "meta/info.json", "tasks.parquet": "meta/tasks.parquet", "file-000.parquet":
                        "data/chunk-000/file-000.parquet", "episodes_file-000.parquet": "meta/episodes/chunk-000/file-000.parquet"}.items():
        (tmp_path / "DIR" / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(files / name, tmp_path / "DIR" / place)
    out = run(tmp_path, f"realrl train bc --data DIR --run runs/mine {SMALL}")
    assert "camera image left out" in out and "better than keeping still" in out.replace("\n", " ")


def test_the_page_names_every_field() -> None:
    told = PAGE.read_text()
    assert not [f.name for f in fields(RecordedConfig) if f"--recorded.{f.name.replace('_', '-')}" not in told]
