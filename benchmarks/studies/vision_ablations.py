"""What of RL-100's choices matters with eyes: the paper's ablations on Adroit door, one script, one budget.

    python -m benchmarks.studies.vision_ablations --experts ../shared/data/adroit_hand_dapg/policies_npz --seeds 0

Each variant changes one thing of "base" (a cloud of 512 points, both regularisers, encoder trained online, sigma_max 0.8, noise
prediction). DDIM against one step is in every variant's last two rows. The demonstrations are few and noisy, so that RL has something
to do. Rows go to benchmarks/results/vision_ablations.jsonl, the curves of online success beside them; the same command goes on where it was
stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import rl100_vision
from benchmarks.lib.common import RESULTS, Table, arguments, experts_folder, experts_option, overridden, run_parts
from benchmarks.lib.comparison import KEY, Comparison, in_phases, toy_size
from realrl.algos.rl100 import RL100Config
from realrl.scene import SightConfig


def base() -> RL100Config:
    """Adroit door from 10 noisy demonstrations, half the usual horizon (a success takes 55 steps) and a budget of which one
    core carries seven in about an hour and a half."""
    cfg = rl100_vision.settings("door")
    return replace(cfg, demos=10, demo_noise=0.2, horizon=100, imitation=replace(cfg.imitation, steps=800, batch=64),
                   critic=replace(cfg.critic, steps=2000), ope=replace(cfg.ope, horizon=100 // cfg.policy.chunk),
                   offline=replace(cfg.offline, rollouts=60, reimitation=200), online=replace(cfg.online, iterations=8, episodes=60),
                   eval_episodes=100, final_episodes=200)


def _encoder(cfg: RL100Config, **changes: Any) -> RL100Config:
    return replace(cfg, policy=replace(cfg.policy, encoder=replace(cfg.policy.encoder, **changes)))


def _diffusion(cfg: RL100Config, **changes: Any) -> RL100Config:
    return replace(cfg, policy=replace(cfg.policy, diffusion=replace(cfg.policy.diffusion, **changes)))


VARIANTS: dict[str, Callable[[RL100Config], RL100Config]] = {
    "base": lambda cfg: cfg,
    "pictures": lambda cfg: replace(cfg, sight=SightConfig(kind="rgb")),
    "no regularisers": lambda cfg: _encoder(cfg, recon=0.0, kl=0.0),
    "encoder frozen online": lambda cfg: replace(cfg, online=replace(cfg.online, learn_encoder=False)),
    "noise cooled": lambda cfg: replace(cfg, online=replace(cfg.online, cool=0.1)),
    "sigma_max 0.1": lambda cfg: _diffusion(cfg, sigma_max=0.1),
    "sigma_max none": lambda cfg: _diffusion(cfg, sigma_max=10.0),
    "sample prediction": lambda cfg: _diffusion(cfg, predict="sample")}


def main(words: list[str] | None = None) -> int:
    """Run what is missing."""
    parser = arguments(__doc__ or "", seeds=(0,))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    experts_option(parser)
    args, flags = parser.parse_known_args(words)
    expert = experts_folder(parser, args)
    out, results = (args.out / "smoke", args.out / "smoke") if args.smoke else (args.out, RESULTS)
    table = Table(Path(results) / "vision_ablations.jsonl", KEY)
    start = overridden(toy_size(base()) if args.smoke else base(), flags)
    comparisons = [Comparison(replace(VARIANTS[name](start), seed=seed, expert=expert),
                              out / "vision_ablations" / f"{name.replace(' ', '-')}-s{seed}", table, name)
                   for seed in args.seeds for name in args.variants]
    parts = [part for c in comparisons for part in [*in_phases([], [c], baselines=False), c.curve()]]
    return min(run_parts(parts, args.budget), 1)


if __name__ == "__main__":
    sys.exit(main())
