"""RL-100 on Adroit door, hammer and pen from 25 demonstrations each of the published experts, and door from 25 human ones.

    python -m benchmarks.rl100_adroit --experts ../shared/data/adroit_hand_dapg/policies_npz \\
        --human ../shared/data/adroit_hand_dapg/door_human.npz

The experts' weights (door.npz, hammer.npz, pen.npz) and the human demonstrations are those of https://github.com/aravindr93/hand_dapg.
Without the human file its part is left out; --tasks with nothing after it leaves out the experts'. The human part starts from the
demonstrations' arm poses before new doors (door.py), because nobody demonstrated anything from the simulator's own.

Rows go to benchmarks/results/adroit.jsonl; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.lib.common import RESULTS, Part, Table, arguments, experts_folder, experts_option, judge, overridden, run_parts
from benchmarks.lib.comparison import KEY, Comparison, demonstrators, in_phases, step_seconds, toy_size
from benchmarks.lib.door import DOOR, HORIZON, DemonstratedDoor, human_door, smooth
from realrl import envs
from realrl.algos.rl100 import RL100Config
from realrl.data.views import ChunkView
from realrl.files import derive
from realrl.generative.diffusion import DiffusionConfig, start_from_teacher
from realrl.learn.imitation import Imitation, ImitationConfig
from realrl.learn.ope import OPEConfig
from realrl.policies.diffusion import DiffusionPolicy, PolicyConfig
from realrl.policies.folder import save_policy
from realrl.types import Episode

TASKS = ("door", "hammer", "pen")


def settings(task: str, horizon: int = 200, chunk: int = 2) -> RL100Config:
    """Short chunks, as a hand needs; sigma_max 0.8, the paper's for Adroit; a model that is rolled out over the whole horizon."""
    cfg = RL100Config(task=f"adroit/{task}", demos=25, demo_noise=0.0, horizon=horizon, gamma=0.99,
                      policy=PolicyConfig(chunk=chunk, diffusion=DiffusionConfig(sigma_max=0.8)),
                      imitation=ImitationConfig(steps=3000), ope=OPEConfig(horizon=horizon // chunk))
    return pen(cfg) if task == "pen" else cfg


def pen(cfg: RL100Config) -> RL100Config:
    """The one task whose expert fails in earnest (it holds the pen still at a wrong angle), so RL has all to do; docs/methods/rl100.md
    has the reasons. Noisy demonstrations give the clone something to explore with, a small lambda and the last denoising steps alone
    make an advantage that can be seen through the noise of 48 numbers a decision, and there are many rounds. Self-imitation would
    narrow the exploration again. The horizon is the task's own in Rajeswaran et al. (2018), 1 s.
    """
    offline, online = cfg.offline, cfg.online
    return replace(
        cfg, horizon=100, demo_noise=0.3, imitation=replace(cfg.imitation, steps=2000),
        ope=replace(cfg.ope, horizon=100 // cfg.policy.chunk),
        critic=replace(cfg.critic, steps=8000, weight_decay=1e-2),
        offline=replace(offline, rollouts=300, reimitation=0, max_drift=0.06, ppo=replace(offline.ppo, last=5)),
        online=replace(online, iterations=100, episodes=250, lam=0.3, ppo=replace(online.ppo, lr=3e-5, last=5)))


def from_people() -> RL100Config:
    """Door from human demonstrations: the recipe that imitates them (door.py), pen's online stage for the same reasons (112 numbers a
    decision), and no re-imitation, because the rollouts hold too few successes at first. The network predicts the velocity, which clones
    people better and which RL still moves (docs/methods/rl100.md); the noise stays, because each run that cooled it lost what it had won.
    """
    cfg = settings("door", horizon=HORIZON, chunk=DOOR.chunk)
    policy = replace(DOOR, diffusion=replace(DOOR.diffusion, predict="velocity"))
    return replace(
        cfg, policy=policy, imitation=ImitationConfig(steps=10_000, batch=128), offline=replace(cfg.offline, reimitation=0),
        online=replace(cfg.online, iterations=50, episodes=150, lam=0.3, ppo=replace(cfg.online.ppo, lr=3e-5, last=5)))


# -- the human demonstrations ---------------------------------------------------------------------------------------------------


def imitate(cfg: RL100Config, episodes: list[Episode], folder: Path) -> DiffusionPolicy:
    """A diffusion policy fitted to episodes, successful or not, in a folder that a run can start from (`init`)."""
    spec = envs.make(cfg.task).task
    torch.manual_seed(derive(cfg.seed, "weights"))
    policy = DiffusionPolicy(cfg.policy, spec.obs_dim, spec.action_dim, name="imitation")
    view = ChunkView(episodes, chunk=policy.chunk, n_obs=policy.n_obs, gamma=cfg.gamma)
    policy.fit_senses(view.frames)
    trainer = Imitation(policy, view, cfg.imitation, seed=derive(cfg.seed, "imitation"))
    while trainer.step < cfg.imitation.steps:
        trainer.update()
    trainer.finish()
    start_from_teacher(policy.student, policy.net)
    save_policy(policy, folder, task=cfg.task)
    return policy


def human_part(comparison: Comparison) -> Part:
    """Imitation of the human demonstrations: the policy that the run starts from."""
    cfg, table = comparison.cfg, comparison.table

    def run() -> None:
        assert cfg.init and comparison.demos
        episodes = comparison.demos()
        began = time.monotonic()
        policy = imitate(cfg, episodes, Path(cfg.init))
        wall = round(time.monotonic() - began, 1)
        result = judge(cfg.task, policy.with_head("ddim"), cfg.eval_episodes, horizon=cfg.horizon, collect=cfg.collect,
                       dt=step_seconds(cfg.task), make=comparison.make)
        table.put({"task": comparison.name, "seed": cfg.seed, "method": "imitation", **result, "env_steps": sum(map(len, episodes)),
                   "demos_succeeded": sum(e.succeeded for e in episodes), "wall_s": wall})

    def done() -> bool:
        return not comparison.missing("imitation")

    return Part(f"{comparison.name} seed {cfg.seed}: imitation", done, run)


# -- the script -----------------------------------------------------------------------------------------------------------------


def main(words: list[str] | None = None) -> int:
    """Run what is missing."""
    parser = arguments(__doc__ or "", seeds=(0, 1, 2))
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS)
    experts_option(parser)
    parser.add_argument("--human", type=Path, help="door_human.npz")
    parser.add_argument("--baselines", action=argparse.BooleanOptionalAction, default=True, help="also what a sceptic would try")
    args, flags = parser.parse_known_args(words)
    expert = experts_folder(parser, args) if args.tasks else None
    out, results = (args.out / "smoke", args.out / "smoke") if args.smoke else (args.out, RESULTS)
    shrink: Callable[[RL100Config], RL100Config] = toy_size if args.smoke else lambda cfg: cfg
    extra = {"extra": 10} if args.smoke else {}
    table = Table(Path(results) / "adroit.jsonl", KEY)
    configs = [replace(overridden(shrink(settings(t)), flags), seed=s, expert=expert) for s in args.seeds for t in args.tasks]
    comparisons = [Comparison(c, out / "adroit" / f"{c.task.partition('/')[2]}-s{c.seed}", table, c.task.partition("/")[2], **extra)
                   for c in configs]
    first = [part for c in configs[:len(args.tasks)] for part in demonstrators(c, table, c.task.partition("/")[2])]
    if args.human is None or not args.human.exists():
        print(f"door from human demonstrations: left out, {'no --human FILE given' if args.human is None else f'{args.human} is absent'}")
    else:
        base = overridden(shrink(from_people()), flags)
        human = [_from_human(base, seed, args.human, out, table, extra) for seed in args.seeds]
        first += [human_part(c) for c in human]
        comparisons += human
    last = [c.exploring() for c in comparisons if c.make]
    return min(run_parts([*in_phases(first, comparisons, baselines=args.baselines), *last], args.budget), 1)


def _from_human(cfg: RL100Config, seed: int, file: Path, out: Path, table: Table, extra: dict[str, int]) -> Comparison:
    """A run that starts from the imitation of the human demonstrations. Its offline data are rollouts alone."""
    folder = out / "adroit" / f"door-human-s{seed}"
    init = str(folder.with_name(folder.name + "-imitation"))
    demos = functools.cache(lambda: [smooth(e) for e in human_door(file)])
    return Comparison(replace(cfg, seed=seed, init=init), folder, table, "door (human)", demos=demos,
                      make=lambda: DemonstratedDoor(demos(), False, "sparse"), **extra)


if __name__ == "__main__":
    sys.exit(main())
