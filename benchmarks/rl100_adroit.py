"""RL-100 on Adroit door, hammer and pen from 25 demonstrations each of the published experts, and door from 25 human ones.

    python benchmarks/rl100_adroit.py --experts ../shared/data/adroit_hand_dapg/policies_npz \\
        --human ../shared/data/adroit_hand_dapg/door_human.npz

The experts' weights (door.npz, hammer.npz, pen.npz) and the human demonstrations are those of https://github.com/aravindr93/hand_dapg.
Without the human file its part is left out. Rows go to benchmarks/results/adroit.json; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import RESULTS, Part, Table, arguments, judge, overridden, run_parts
from comparison import KEY, Comparison, demonstrators, in_phases, step_seconds, toy_size

from realrl import envs
from realrl.algos.rl100 import RL100Config
from realrl.data.views import ChunkView
from realrl.generative.consistency import start_from_teacher
from realrl.generative.diffusion import DiffusionConfig
from realrl.imitation import Imitation, ImitationConfig
from realrl.ope import OPEConfig
from realrl.policy import DiffusionPolicy, PolicyConfig
from realrl.run import derive
from realrl.types import Episode, RealrlError, Source

TASKS = ("door", "hammer", "pen")
HINGE, OPEN = 28, 1.35  # where the door's angle [rad] stands in an observation, and the environment's threshold of success


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


# -- the human demonstrations ---------------------------------------------------------------------------------------------------


def human_door(file: Path) -> list[Episode]:
    """The 25 human demonstrations of Adroit door as episodes with sparse rewards.

    Actions are clipped to [-1, 1] (5.6 % of the entries exceed it), observations are as recorded. Rewards and success are computed
    from the hinge: most demonstrations stop short of the environment's threshold. The recording has no observation after an
    episode's last action, so that action is left out. Raises RealrlError when the file cannot be read.
    """
    try:
        with np.load(file, allow_pickle=False) as stored:
            obs, action, ends = (stored[k] for k in ("observations", "actions", "episode_ends"))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise RealrlError(f"{file}: cannot read human demonstrations from it ({error}); it must be door_human.npz") from None
    spans = zip([0, *ends[:-1]], ends, strict=True)
    return [_episode(obs[a:b], action[a:b - 1], seed) for seed, (a, b) in enumerate(spans)]


def _episode(obs: np.ndarray, action: np.ndarray, seed: int) -> Episode:
    """One demonstration, cut at its first success, which ends the task. obs: [T+1, D]; action: [T, A]."""
    solved = obs[1:, HINGE] >= OPEN
    steps = int(solved.argmax()) + 1 if solved.any() else len(action)
    success, action = solved[:steps], np.clip(action[:steps], -1.0, 1.0).astype(np.float32)
    return Episode(obs={"state": obs[:steps + 1].astype(np.float32)}, action=action, proposed=action.copy(),
                   source=np.full(steps, Source.HUMAN, np.uint8), reward=success.astype(np.float32), success=success,
                   time=np.arange(steps) * 0.01, starts_plan=np.ones(steps, bool), terminated=bool(success[-1]),
                   truncated=not success[-1], task="adroit/door", policy="human", seed=seed)


def imitate(cfg: RL100Config, episodes: list[Episode], folder: Path) -> DiffusionPolicy:
    """A diffusion policy fitted to episodes, successful or not, in a folder that a run can start from (`init`)."""
    spec = envs.make(cfg.task).task
    torch.manual_seed(derive(cfg.seed, "weights"))
    policy = DiffusionPolicy(cfg.policy, spec.obs_dim, spec.action_dim, name="imitation")
    view = ChunkView(episodes, chunk=policy.chunk, n_obs=policy.n_obs, gamma=cfg.gamma)
    policy.normaliser.fit(view.frames["state"])
    trainer = Imitation(policy, view, cfg.imitation, seed=derive(cfg.seed, "imitation"))
    while trainer.step < cfg.imitation.steps:
        trainer.update()
    trainer.finish()
    start_from_teacher(policy.student, policy.net)
    policy.save(folder, task=cfg.task)
    return policy


def human_part(comparison: Comparison) -> Part:
    """Imitation of the human demonstrations: the policy that the run starts from."""
    cfg, table = comparison.cfg, comparison.table

    def run() -> None:
        assert cfg.init and comparison.demos
        episodes = comparison.demos()
        policy = imitate(cfg, episodes, Path(cfg.init))
        result = judge(cfg.task, policy.with_head("ddim"), cfg.eval_episodes, horizon=cfg.horizon, collect=cfg.collect,
                       dt=step_seconds(cfg.task))
        table.put({"task": comparison.name, "seed": cfg.seed, "method": "imitation", **result, "env_steps": sum(map(len, episodes)),
                   "demos_succeeded": sum(e.succeeded for e in episodes)})

    def done() -> bool:
        return not comparison.missing("imitation")

    return Part(f"{comparison.name} seed {cfg.seed}: imitation", done, run)


# -- the script -----------------------------------------------------------------------------------------------------------------


def main(words: list[str] | None = None) -> int:
    """Run what is missing."""
    parser = arguments(__doc__ or "", seeds=(0, 1, 2))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--experts", type=Path, default=os.environ.get("REALRL_EXPERTS"), help="folder of the experts' npz files; "
                        "default: the environment variable REALRL_EXPERTS")
    parser.add_argument("--human", type=Path, help="door_human.npz")
    parser.add_argument("--baselines", action=argparse.BooleanOptionalAction, default=True, help="also what a sceptic would try")
    args, flags = parser.parse_known_args(words)
    if args.experts is None:
        parser.error("the experts are trained networks: name their folder with --experts DIR or REALRL_EXPERTS")
    out, results = (args.out / "smoke", args.out / "smoke") if args.smoke else (args.out, RESULTS)
    shrink: Callable[[RL100Config], RL100Config] = toy_size if args.smoke else lambda cfg: cfg
    extra = {"extra": 10} if args.smoke else {}
    table = Table(Path(results) / "adroit.json", KEY)
    configs = [replace(overridden(shrink(settings(t)), flags), seed=s, expert=str(args.experts)) for s in args.seeds for t in args.tasks]
    comparisons = [Comparison(c, out / "adroit" / f"{c.task.partition('/')[2]}-s{c.seed}", table, c.task.partition("/")[2], **extra)
                   for c in configs]
    first = [part for c in configs[:len(args.tasks)] for part in demonstrators(c, table, c.task.partition("/")[2])]
    if args.human is None or not args.human.exists():
        print(f"door from human demonstrations: left out, {'no --human FILE given' if args.human is None else f'{args.human} is absent'}")
    else:
        base = overridden(shrink(settings("door", horizon=300)), flags)
        human = [_from_human(base, seed, args.human, out, table, extra) for seed in args.seeds]
        first += [human_part(c) for c in human]
        comparisons += human
    return min(run_parts(in_phases(first, comparisons, baselines=args.baselines), args.budget), 1)


def _from_human(cfg: RL100Config, seed: int, file: Path, out: Path, table: Table, extra: dict[str, int]) -> Comparison:
    """A run that starts from the imitation of the human demonstrations. Its offline data are rollouts alone, too few of them
    successes to imitate at first, so the weights go on from the imitation."""
    folder = out / "adroit" / f"door-human-s{seed}"
    init = str(folder.with_name(folder.name + "-imitation"))
    cfg = replace(cfg, seed=seed, init=init, offline=replace(cfg.offline, reimitation=0))
    return Comparison(cfg, folder, table, "door (human)", demos=lambda: human_door(file), **extra)


if __name__ == "__main__":
    sys.exit(main())
