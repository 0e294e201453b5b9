"""Other ways on from a policy that `realrl train recap` fine-tuned, with about as many episodes as Recap practised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from realrl.algos import rl100
from realrl.algos.recap import RecapConfig
from realrl.algos.rl100 import RL100Config
from realrl.cell.cell import WorkCell
from realrl.run import Run
from realrl.scene import CollectConfig

RIVALS = ("rl100", "ppo")
PPO_ROUNDS = 8


@dataclass(frozen=True)
class Found:
    """What a rival came to. product: its last stage in summary.json; dt: seconds a control step; episodes: all that it tried, by label."""

    product: Mapping[str, Any]
    dt: float
    env_steps: int
    wall_s: float
    episodes: Mapping[str, int]


def rival(name: str, cfg: RecapConfig, folder: Path, which: int) -> Found:
    """Task number `which` of a finished run of Recap in `folder`, learned by another method, or what is left of that; judged from the
    same held-out starts. Its demonstrator is the task's fine-tuned policy."""
    task = cfg.tasks[which]
    teacher = folder / (f"fine-tuned-{task.partition('/')[2]}" if which else "fine-tuned")
    mine = budget(name, cfg, RL100Config(task=task, seed=cfg.seed, expert=str(teacher), collect=CollectConfig(workers=1), audit_episodes=0,
                                         eval_episodes=cfg.eval_episodes, final_episodes=cfg.eval_episodes))
    with (Run.start(folder.with_name(f"{folder.name}-{name}-{which}"), mine, resume=True, ignore=("collect",)) as run,
          WorkCell(run, mine) as cell):
        summary = rl100.train(mine, cell)
        tried = Counter(cell.book.store.rows["policy"].to_pylist())
        return Found(summary["stages"][-1], cell.spec.dt, summary["env_steps"], summary["wall_s"], dict(tried))


def budget(name: str, cfg: RecapConfig, mine: RL100Config) -> RL100Config:
    """The method with the episodes of a task that Recap practises, `rounds` x `rollouts`: a fifth are demonstrations of the fine-tuned
    policy. rl100: the rest are two offline rounds, and trials of their products, of which there are more where some are sent back; ppo:
    eight online rounds, without trials."""
    total = cfg.rounds * cfg.rollouts
    demos = max(total // 10, 1)  # two rounds of attempts, where some fail
    if name == "rl100":
        return replace(mine, demos=demos, stages=("imitation", "offline"), offline=replace(mine.offline, rollouts=max(total // 4, 2)))
    a_round = max((total - 2 * demos) // PPO_ROUNDS, 1)
    return replace(mine, demos=demos, stages=("imitation", "online"), trials=replace(mine.trials, episodes=0),
                   online=replace(mine.online, episodes=a_round, iterations=PPO_ROUNDS, warmup=1))
