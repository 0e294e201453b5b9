"""How much of the return do critics on an encoder's latents explain, in episodes that they were not fitted to?

    python -m benchmarks.studies.critic_fit --run runs/bench/vision/peg-insert-side-v3-s0

IQL's critics are fitted to two thirds of the first rollouts of a finished offline round, seen by the encoder which that round used, and
judged on the others; with latents as they are and whitened (`CriticConfig.whiten`), after several numbers of steps, and beside them on
the simulator's full state, normalised. Rows go to benchmarks/results/critic_fit.jsonl, one a run, input and number of steps.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.lib.common import RESULTS, Table
from realrl import config, envs
from realrl.algos.rl100 import RL100Config
from realrl.data.store import Store
from realrl.data.views import ChunkView
from realrl.learn.iql import Critics, fit_whitener
from realrl.losses import explained_variance
from realrl.nets.normalise import Normaliser
from realrl.policies.diffusion import DiffusionPolicy
from realrl.run import Run
from realrl.types import Episode, RealrlError

STEPS = (3000, 8000)


def rollouts(folder: Path) -> list[Episode]:
    """The first rollouts that a run recorded. Raises RealrlError without any."""
    store = Store.open(folder / "dataset")
    rows = store.rows.select(["policy", "episode_index"]).to_pylist()
    found = [r["episode_index"] for r in rows if r["policy"] == "rollout-1"]
    if not found:
        raise RealrlError(f"{folder}: no rollouts in it: run its offline stage first, or name another run")
    return sorted(store.read(found), key=lambda e: e.seed or 0)


def encoder_of(folder: Path, cfg: RL100Config) -> DiffusionPolicy:
    """The policy whose encoder the first offline round used. Raises RealrlError for a run without that or without eyes."""
    env = envs.make(cfg.task, sight=cfg.sight)
    env.close()
    policy = DiffusionPolicy(cfg.policy, env.task.obs_dim, env.task.action_dim, senses=env.task.senses).eval()
    with Run(folder, resume=True) as run:
        if policy.encoder is None or run.load("offline-1", policy=policy) is None:
            raise RealrlError(f"{folder}: no finished offline round of a policy with eyes in it: name another run")
    return policy


def conditions(view: ChunkView, policy: DiffusionPolicy, scale: Normaliser | None) -> tuple[Tensor, Tensor]:
    """What critics see before and after every decision, each [N, C]: latents, or with `scale` the full state."""
    if scale is None:
        table = view.encoded(policy.features)
        return table.cond, table.next_cond
    now, after = view.rows()
    state: Mapping[str, Tensor] = view.frames
    return scale(state["privileged"][now[:, -1]]), scale(state["privileged"][after[:, -1]])


def explained(cfg: RL100Config, fitted: ChunkView, other: ChunkView, seen: tuple[Tensor, Tensor], judged: Tensor, *,
              eyes: bool) -> dict[int, tuple[float, float, float]]:
    """steps -> how much V explains of the returns it was fitted to and of the others, and Q of the others."""
    torch.manual_seed(0)
    random, batch = torch.Generator().manual_seed(0), fitted.batch()
    critics = Critics(seen[0].shape[1], cfg.policy.chunk, batch.action.shape[-1], cfg.critic, eyes=eyes)
    fit_whitener(critics.value, seen[0])
    out = {}
    for step in range(1, max(STEPS) + 1):
        rows = torch.randint(len(fitted), (cfg.critic.batch,), generator=random)
        critics.update(seen[0][rows], batch.action[rows], batch.reward[rows], batch.discount[rows], seen[1][rows])
        if step in STEPS:
            with torch.no_grad():
                out[step] = (explained_variance(critics.v(seen[0]), fitted.returns), explained_variance(critics.v(judged), other.returns),
                             explained_variance(critics.q(judged, other.batch().action), other.returns))
    return out


def main(words: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of an RL-100 run with eyes that has had its offline stage")
    args = parser.parse_args(words)
    table = Table(RESULTS / "critic_fit.jsonl", ("run", "seen", "steps"))
    try:
        cfg = config.load(RL100Config, args.run / "config.yaml")
        found, policy = rollouts(args.run), encoder_of(args.run, cfg)
    except RealrlError as error:
        parser.error(str(error))
    cut = [[e for i, e in enumerate(found) if (i % 3 == 0) == held] for held in (False, True)]
    fitted, other = (ChunkView(part, chunk=policy.chunk, n_obs=policy.n_obs, gamma=cfg.gamma) for part in cut)
    scale = Normaliser(int(fitted.frames["privileged"].shape[-1]))
    scale.fit(fitted.frames["privileged"])
    seen, judged = (conditions(view, policy, None) for view in (fitted, other))
    full, its = (conditions(view, policy, scale) for view in (fitted, other))
    for name, whiten, pair, there in (("latents as they are", False, seen, judged[0]), ("latents, whitened", True, seen, judged[0]),
                                      ("full state", False, full, its[0])):
        changed = replace(cfg, critic=replace(cfg.critic, whiten=whiten))
        for steps, (own, v, q) in explained(changed, fitted, other, pair, there, eyes=whiten).items():
            table.put({"run": f"{cfg.task}, {cfg.sight.kind} ({cfg.sight.frame})", "seen": name, "steps": steps, "v_fitted": own,
                       "v_other": v, "q_other": q, "episodes": len(found)})
            print(f"    V explains {own:.2f} of the fitted returns, {v:.2f} of the others, Q {q:.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
