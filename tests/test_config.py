"""Configurations survive YAML and the command line, and every mistake in one is named."""

from __future__ import annotations

import gc
import importlib
import math
import os
import re
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

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


# ---- what values make sense -----------------------------------------------------------------------------------------------------


def every_config() -> list[type]:
    """The configurations of the package, those that are parts of others included."""
    for path in Path(config.__file__).parent.rglob("*.py"):
        if re.search(r"^class (\w+Config|Scene)\b", path.read_text(), re.M):
            importlib.import_module(".".join(path.relative_to(Path(config.__file__).parents[1]).with_suffix("").parts))
    gc.unfreeze()  # what a real-time loop of an earlier test put aside is not listed
    found = {e for e in gc.get_objects() if issubclass(type(e), type) and str(e.__module__).startswith("realrl.") and is_dataclass(e)}
    return sorted((c for c in found if c.__name__.endswith("Config") or c.__name__ == "Scene"), key=lambda c: c.__name__)


SIGNED = {"OPEConfig.margin",  # a candidate may be let through that loses this much
          "SACConfig.entropy",  # of a density, which may be larger than 1
          "RecordedConfig.low", "RecordedConfig.high",  # a joint's limits
          "ServerConfig.start", "ServerConfig.park", "ServerConfig.workspace"}  # places


def test_every_number_of_every_configuration_has_its_bounds() -> None:
    """Whoever adds a field adds its interval to the class's `check`: NaN, infinities and absurd sizes get one line, not a traceback."""
    configs = every_config()
    assert {"RL100Config", "BCConfig", "Scene", "ImitationConfig", "GuardConfig", "SightConfig"} <= {c.__name__ for c in configs}
    for cls in configs:
        base = cls()
        for entry in fields(cls):
            kinds = set(config._leaves(get_type_hints(cls)[entry.name]))
            if not kinds & {int, float}:
                continue
            several = isinstance(getattr(base, entry.name), tuple)
            signed = f"{cls.__name__}.{entry.name}" in SIGNED
            for value in (math.nan, math.inf, -math.inf, 1e300, 2**70, -2**70, True, "1", *([] if signed else [-1])):
                with pytest.raises(RealrlError, match=rf"{entry.name} must be ") as caught:
                    replace(base, **{entry.name: (value,) if several else value})
                assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


@pytest.mark.parametrize(("flags", "line"), [
    (["--imitation.lr", "nan"], "imitation.lr must be above 0 and at most 1, got nan"),
    (["--imitation.lr", "inf"], "imitation.lr must be"), (["--imitation.lr", "0"], "imitation.lr must be"),
    (["--eval-episodes", "0"], "eval_episodes must be a whole number of at least 1"), (["--demos", "-1"], "demos must be"),
    (["--policy.chunk", "0"], "policy.chunk must be"), (["--policy.n-obs=0"], "policy.n_obs must be"),
    (["--policy.dropout", "2"], "policy.dropout must be"), (["--imitation.batch", "-1"], "imitation.batch must be"),
    (["--collect.workers", "-1"], "collect.workers must be"), (["--collect.envs-per-worker", "0"], "collect.envs_per_worker must be"),
    (["--offline.gate-every", "0"], "offline.gate_every must be"), (["--online.save-every", "0"], "online.save_every must be"),
    (["--online.ppo.clip", "nan"], "online.ppo.clip must be"), (["--offline.ppo.clip", "nan"], "offline.ppo.clip must be"),
    (["--gamma", "0"], "gamma must be"), (["--gamma", "2"], "gamma must be"), (["--demo-noise", "nan"], "demo_noise must be"),
    (["--critic.expectile", "1"], "critic.expectile must be above 0 and below 1"), (["--policy.hidden", "1099511627776"], "policy.hidden"),
    (["--ope.members", "3"], "ope.elites must lie in 2..3"),
    (["--policy.diffusion.steps", "200"], "policy.diffusion.steps must lie in 1..100"),
    (["--policy.net", "unet", "--policy.hidden", "20"], "policy.hidden must be a multiple of 8"), (["--device", "meta"], "device must be"),
    (["--sight.height", "0"], "sight.height must be"), (["--seed", "-1"], "seed must be"), (["--config"], "expected one argument")])
def test_a_flag_out_of_bounds_is_named_as_it_was_typed(flags: list[str], line: str) -> None:
    from realrl.algos.rl100 import RL100Config
    with pytest.raises(RealrlError) as caught:
        config.parse(RL100Config, flags, prog="realrl train rl100", description="")
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_out_of_bounds_is_named_with_its_field() -> None:
    from realrl.algos.rl100 import RL100Config
    with pytest.raises(RealrlError, match=r"^c\.yaml: online\.ppo\.clip must be above 0 and below 1, got 7\.0$"):
        config.from_dict(RL100Config, {"online": {"ppo": {"clip": 7}}}, source="c.yaml")


BOMBS = {
    "laughs": "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "deep": "seed: " + "[" * 30_000, "deeper": "seed: " + "{a: " * 30_000,
    "digits": "steps: " + "9" * 20_000, "hex": "clip: 0x" + "9" * 20_000, "power": "clip: 1" + "0" * 400,
    "tag": "steps: !!python/object:x.y {}", "bool": "steps: !!bool x", "keys": "1: 2", "list": "? [a]\n: 1",
    "twice": "steps: 1\nsteps: 2", "merge": "<<: {steps: 3}", "day": "steps: 2026-13-45", "null": "\0", "long": "steps: 1 #" + "x" * 70_000,
    "text": "steps: " + "x" * 60_000, "documents": "steps: 1\n---\nsteps: 2", "latin": "task: \udcff"}


@pytest.mark.parametrize("kind", BOMBS)
def test_yaml_that_is_a_trap_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(BOMBS[kind].encode(errors="surrogateescape"))
    with pytest.raises(RealrlError, match=r"c\.yaml") as caught:
        config.load(Job, file)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_what_is_no_plain_file_is_no_configuration(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(RealrlError, match=r"no plain file|Is a directory"):
            config.load(Job, name)
