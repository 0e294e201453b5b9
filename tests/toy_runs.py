"""Small configurations of whole methods on toy tasks, for the tests that run them: seconds on one core."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from realrl import config
from realrl.algos.rl100 import OfflineConfig, OnlineConfig, RL100Config, train
from realrl.cell.cell import WorkCell
from realrl.generative.diffusion import DiffusionConfig, DistillConfig
from realrl.learn.imitation import ImitationConfig
from realrl.learn.iql import CriticConfig
from realrl.learn.ope import OPEConfig
from realrl.learn.trials import TrialsConfig
from realrl.policies.diffusion import PolicyConfig
from realrl.policies.folder import load_policy
from realrl.run import Run, read_metrics
from realrl.scene import CollectConfig


def small_policy(chunk: int = 2, **changes: Any) -> PolicyConfig:
    """A diffusion policy of a few thousand weights that explores widely."""
    return PolicyConfig(**{"chunk": chunk, "hidden": 48, "blocks": 2,
                           "diffusion": DiffusionConfig(steps=5, sigma_max=0.8, sigma_min=0.05), **changes})


def small(**changes: Any) -> RL100Config:
    """All four stages on toy/obstacle in some twenty seconds; they end above 90 %."""
    base: dict[str, Any] = {
        "task": "toy/obstacle", "demos": 15, "demo_noise": 0.5, "gamma": 0.98, "policy": small_policy(),
        "imitation": ImitationConfig(steps=300, batch=128, lr=2e-3, warmup=30),
        "critic": CriticConfig(steps=800, batch=128, hidden=64, lr=1e-3),
        "ope": OPEConfig(members=3, elites=2, hidden=(64, 64), steps=400, starts=100, horizon=20),
        "offline": OfflineConfig(rounds=1, rollouts=100, iterations=8, states=512, gate_every=4, reimitation=100),
        "online": OnlineConfig(iterations=14, episodes=60, warmup=1, save_every=4),
        "distill": DistillConfig(batch=256, chains=500, beside_rl=3, steps=800),
        "trials": TrialsConfig(episodes=50, every=5), "collect": CollectConfig(workers=1),
        "eval_episodes": 150, "final_episodes": 150, "audit_episodes": 30}
    return RL100Config(**{**base, **changes})


def tiny(**changes: Any) -> RL100Config:
    """All four stages, every one crossed by checkpoints, in about three seconds; too short to learn much."""
    return small(**{
        "demos": 8, "demo_noise": 0.0, "imitation": ImitationConfig(steps=620, batch=32, lr=2e-3, warmup=30),
        "critic": CriticConfig(steps=60, batch=64, hidden=32),
        "ope": OPEConfig(members=2, elites=2, hidden=(32,), steps=40, starts=30, horizon=10),
        "offline": OfflineConfig(rounds=1, rollouts=24, iterations=5, states=128, gate_every=2, reimitation=60, max_drift=1.0),
        "online": OnlineConfig(iterations=5, episodes=16, warmup=1, save_every=2),
        "distill": DistillConfig(batch=64, chains=64, beside_rl=2, steps=150), "trials": TrialsConfig(episodes=10, every=3),
        "eval_episodes": 12, "final_episodes": 12, "audit_episodes": 6, **changes})


def killed_at_saves(monkeypatch: pytest.MonkeyPatch, saves: Sequence[int], run: Callable[[], object]) -> None:
    """Begin a run as often as there are numbers, each time interrupted just before so many more checkpoints are written; what was done
    since the last one is lost."""
    save, left = Run.save, list(saves)

    def dies(self: Run, *args: Any, **parts: Any) -> None:
        left[0] -= 1
        if not left[0]:
            left.pop(0)
            raise KeyboardInterrupt
        save(self, *args, **parts)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "save", dies)
        for _ in saves:
            with pytest.raises(KeyboardInterrupt):
                run()


def through(folder: Path, cfg: RL100Config, ignore: Sequence[str] = ()) -> dict[str, Any]:
    """Run or resume RL-100 in `folder` to its end, see `Run.start`; the summary."""
    with Run.start(folder, cfg, resume=True, ignore=ignore) as run, WorkCell(run, cfg) as cell:
        return train(cfg, cell)


def weights(folder: Path) -> dict[str, Any]:
    """Every weight of a saved policy."""
    return dict(load_policy(folder / "policy")[0].state_dict())


def metrics(folder: Path) -> list[dict[str, Any]]:
    """A run's metrics without the time of day."""
    return [{k: v for k, v in line.items() if k != "time"} for line in read_metrics(folder)]


def results(folder: Path) -> list[dict[str, Any]]:
    """A run's stages as summary.json has them, without what a clock measured."""
    stages = json.loads((folder / "summary.json").read_text())["stages"]
    return [{k: v for k, v in stage.items() if k not in ("latency_ms", "wall_s")} for stage in stages]


class Notebook:
    """A cell whose trials end as it is told, one list an asking, in success where it is told nothing; `asked` and `said`: what came."""

    def __init__(self, *outcomes: list[bool]) -> None:
        self.outcomes, self.asked, self.summary = list(outcomes), list[Any](), {"env_steps": 7}
        self.said: dict[Any, Any] = {}
        self.run = SimpleNamespace(rewind=lambda stage, step: None, log=lambda step, told, stage: self.said.update({step: told}))

    def seeds(self, stage: int, count: int, first: int = 0) -> list[int]:
        """Starts of a stage."""
        return list(range(1000 * stage + first, 1000 * stage + first + count))

    def practise(self, label: str, policy: Any, seeds: list[int], **how: Any) -> list[Any]:
        """Episodes that only have an end."""
        self.asked.append((label, seeds, how))
        won = self.outcomes.pop(0) if self.outcomes else [True] * len(seeds)
        return [SimpleNamespace(succeeded=w) for w in won]

    def tell(self, stage: str, line: str) -> None:
        """Keep a line."""
        self.said[stage] = line


def tried_labels(decisions: Mapping[str, str]) -> list[str]:
    """Labels of the trials that a run's decisions tell of: products of offline rounds, re-imitation's, and a runoff. What is decided hangs
    on a processor's last bits."""
    out = []
    for stage, line in decisions.items():
        if (m := re.fullmatch(r"offline round (\d+)(, without RL,)?", stage)) and "trials" in line:
            out.append(f"rollout-{int(m[1]) + 1}-deployed{'-again' if m[2] else ''}")
        if (m := re.fullmatch(r"online round (\d+)", stage)) and "other starts" in line:
            out += [f"online-{int(m[1]) - 1}-deployed-{who}" for who in ("newest", "best")]
    return out


def main(folder: str, file: str) -> None:
    """Run or resume RL-100 in `folder` with the configuration in `file`: for the tests that kill the process."""
    through(Path(folder), config.from_dict(RL100Config, config.read(Path(file)), source=file))
