"""Configurations survive YAML and the command line, and every mistake in one is named."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from realrl import config
from realrl.types import RealrlError


@dataclass(frozen=True)
class Imitation:
    lr: float = 1e-3
    """Learning rate of the optimiser."""
    hidden: tuple[int, ...] = (512, 512)
    ema: bool = True


@dataclass(frozen=True)
class Job:
    """A job."""

    task: str = "toy/identity"
    sampler: Literal["ddim", "flow"] = "ddim"
    clip: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    folder: Path = Path("runs")
    steps: int = 10
    tags: dict[str, int] = field(default_factory=dict)
    imitation: Imitation = field(default_factory=Imitation)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError("steps must be positive")


@dataclass(frozen=True)
class Needy:
    task: str


JOB = Job(task="metaworld/box-close-v3", sampler="flow", clip=0.5, betas=(0.1, 0.2), folder=Path("a/b"), tags={"x": 1},
          imitation=Imitation(lr=3e-5, hidden=(3,), ema=False))


def parse(*args: str) -> Job:
    return config.parse(Job, args, prog="realrl train toy", description="Trains a toy.")


def test_yaml_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    config.save(JOB, file)
    assert config.load(Job, file) == JOB
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]  # no temporary file is left
    assert [line.partition(":")[0] for line in file.read_text().splitlines() if line[0].isalpha()] == [f.name for f in fields(Job)]


def test_hand_written_yaml(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("imitation: {lr: 1e-3, hidden: [1, 2]}\nclip: 1\n")  # YAML 1.1 reads 1e-3 as a string
    assert config.load(Job, file) == Job(clip=1.0, imitation=Imitation(hidden=(1, 2)))


@pytest.mark.parametrize(("tree", "words"), [
    ({"imitation": {"lrr": 1}}, ["c.yaml", "'imitation.lrr'", "did you mean 'lr'"]),
    ({"zzzzzz": 1}, ["'zzzzzz'", "known: betas, clip"]),
    ({"imitation": {"lr": "fast"}}, ["'imitation.lr' must be float", "'fast'"]),
    ({"imitation": {"lr": True}}, ["'imitation.lr' must be float"]),
    ({"imitation": {"ema": 1}}, ["'imitation.ema' must be bool"]),
    ({"imitation": 3}, ["imitation must be a mapping"]),
    ({"steps": True}, ["'steps' must be int"]),
    ({"steps": 1.5}, ["'steps' must be int"]),
    ({"steps": 0}, ["steps must be positive"]),
    ({"sampler": "dim"}, ["'sampler' must be one of 'ddim', 'flow'"]),
    ({"betas": [0.9]}, ["'betas' must hold 2 values"]),
    ({"betas": 0.9}, ["'betas' must be"]),
    ({"clip": "x"}, ["'clip' must be float"]),
    ({"tags": {"x": "y"}}, ["'tags.x' must be int"]),
])
def test_mistakes_are_named(tree: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(RealrlError) as caught:
        config.from_dict(Job, tree, source="c.yaml")
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_field_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(RealrlError, match="'task' of Needy is missing"):
        config.from_dict(Needy, {})
    with pytest.raises(RealrlError, match=r"nowhere\.yaml"):
        config.load(Job, tmp_path / "nowhere.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(RealrlError, match=r"bad\.yaml is not valid YAML"):
        config.load(Job, tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(RealrlError, match="must hold a mapping"):
        config.load(Job, tmp_path / "list.yaml")


def test_command_line_overrides_file_overrides_defaults(tmp_path: Path) -> None:
    assert parse() == Job()
    assert parse("--imitation.lr", "2e-4", "--imitation.no-ema", "--betas", "0.5", "0.6").imitation == Imitation(lr=2e-4, ema=False)
    config.save(JOB, tmp_path / "c.yaml")
    assert parse("--config", str(tmp_path / "c.yaml"), "--steps", "7") == replace(JOB, steps=7)
    assert parse("--steps", "7", f"--config={tmp_path / 'c.yaml'}", "--clip", "None") == replace(JOB, steps=7, clip=None)


def test_unknown_flag_answers_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--imitaton.lr", "1e-3")
    assert caught.value.code == 2
    assert "--imitation.lr" in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert all(words in text for words in ("Learning rate of the optimiser", "--config FILE", "--imitation.lr", "0.001"))


def test_differences() -> None:
    old, new = config.to_dict(Job()), config.to_dict(replace(JOB, folder=Path("runs")))
    assert config.differences(old, old) == []
    found = config.differences(old, new, ignore=("imitation", "tags", "betas", "sampler"))
    assert found == ["clip: None -> 0.5", "task: 'toy/identity' -> 'metaworld/box-close-v3'"]
    assert config.differences({"a": {}}, {"a": {"b": 1}}) == ["a: {} -> (absent)", "a.b: (absent) -> 1"]
