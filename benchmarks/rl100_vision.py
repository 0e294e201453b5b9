"""RL-100 from point clouds and pictures: Adroit door, hammer and pen, Meta-World box-close and peg-insert-side.

    python -m benchmarks.rl100_vision --experts ../shared/data/adroit_hand_dapg/policies_npz --tasks box-close-v3 --seeds 0

Demonstrations, imitation, offline RL, online RL and the one-step student, as in rl100_metaworld.py and rl100_adroit.py; only what the
policy sees differs. "door-rgb" sees pictures, all others a cloud of 512 points; both feel the robot's own joints and nothing of the
objects. The same script runs on a GPU, where there is one (`--device`). Human PushT from its images is a part of human.py.
Rows go to benchmarks/results/vision.jsonl; the same command goes on where it was stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks import rl100_adroit
from benchmarks.lib.common import RESULTS, Table, arguments, experts_folder, experts_option, overridden, run_parts
from benchmarks.lib.comparison import KEY, Comparison, in_phases, toy_size
from realrl.algos.rl100 import RL100Config
from realrl.scene import SightConfig

TASKS = ("door", "hammer", "pen", "box-close-v3", "peg-insert-side-v3", "door-rgb")


def settings(name: str) -> RL100Config:
    """The state run's settings with eyes. A frame costs a pass of the encoder, so batches are half as large, there is one offline round,
    and fewer rounds and episodes: what one core carries in about an hour. Few rounds must each gain much, so all tasks get the advantage
    that is least noisy in deterministic dynamics, a small lambda and the last denoising steps, as Adroit pen does.

    On Meta-World everything hangs on where the encoder believes things to be: learnt from 25 episodes a peg's place is off by 15 mm in
    new ones, from 50 by 7 mm (15 mm of play). So there are twice the demonstrations and longer fits, the second on 300 rollouts more. The
    cloud's origin is the hand, which is told how far to move; the network predicts the velocity, which clones better; and the critics
    take more steps, after which they explain more of the returns (docs/benchmarks.md has all three measured).
    """
    task, rgb = name.removesuffix("-rgb"), name.endswith("-rgb")
    cfg = rl100_adroit.settings(task) if task in rl100_adroit.TASKS else RL100Config(task=f"metaworld/{task}", demos=50)
    arm = name.endswith("-v3")
    steps, again, rollouts = (3000, 2500, 300) if arm else (1500, min(cfg.offline.reimitation, 750), cfg.offline.rollouts)
    online = replace(cfg.online, iterations=min(cfg.online.iterations, 16), lam=0.3, ppo=replace(cfg.online.ppo, last=5))
    return replace(
        cfg, online=online, sight=SightConfig(kind="rgb" if rgb else "pointcloud", frame="hand" if arm else "world"),
        policy=replace(cfg.policy, diffusion=replace(cfg.policy.diffusion, predict="velocity")) if arm else cfg.policy,
        critic=replace(cfg.critic, steps=10_000) if arm else cfg.critic,
        imitation=replace(cfg.imitation, steps=steps, batch=128),
        offline=replace(cfg.offline, rounds=1, reimitation=again, rollouts=rollouts), audit_episodes=0,
        eval_episodes=100, final_episodes=200)


def main(words: list[str] | None = None) -> int:
    """Run what is missing."""
    parser = arguments(__doc__ or "", seeds=(0, 1, 2))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    experts_option(parser)
    args, flags = parser.parse_known_args(words)
    experts = None if all(task.endswith("-v3") for task in args.tasks) else experts_folder(parser, args)
    out, results = (args.out / "smoke", args.out / "smoke") if args.smoke else (args.out, RESULTS)
    shrink: Callable[[RL100Config], RL100Config] = toy_size if args.smoke else lambda cfg: cfg
    table = Table(Path(results) / "vision.jsonl", KEY)
    comparisons = []
    for seed in args.seeds:
        for name in args.tasks:
            cfg = overridden(shrink(settings(name)), flags)
            expert = None if name.endswith("-v3") else experts
            comparisons.append(Comparison(replace(cfg, seed=seed, expert=expert), out / "vision" / f"{name}-s{seed}", table, name))
    return min(run_parts([*in_phases([], comparisons, baselines=False), *(c.curve() for c in comparisons)], args.budget), 1)


if __name__ == "__main__":
    sys.exit(main())
