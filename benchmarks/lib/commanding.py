"""How a policy of `quadruped/...-command` follows each of a fixed grid of velocities, held for an episode."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from realrl.cell.collect import Collector
from realrl.cell.evaluate import HELD_OUT, trials
from realrl.envs.mujoco.walking import QuadrupedEnv
from realrl.envs.quadruped import allowed, commands, following
from realrl.scene import CollectConfig
from realrl.types import Obs, Policy

Row = dict[str, Any]
GRID = (*((v, 0.0, 0.0) for v in (-0.4, -0.2, 0.0, 0.2, 0.4, 0.6, 0.8)), *((0.0, v, 0.0) for v in (-0.3, -0.15, 0.15, 0.3)),
        *((0.0, 0.0, v) for v in (-0.8, -0.4, 0.4, 0.8)), (0.4, 0.0, 0.4), (0.4, 0.0, -0.4), (0.4, 0.2, 0.0))
"""Forward and to the left in m/s, turning to the left in rad/s."""
SECONDS, JUDGED, STARTS = 10.0, 5.0, 2
"""Of an episode; of its end, over which its mean velocity is taken; episodes a command."""


class Asked(QuadrupedEnv):
    """The n-th held-out start has the n-th command of the grid."""

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        """See `QuadrupedEnv.reset`."""
        return super().reset(seed=seed, options={"command": GRID[(int(seed) - HELD_OUT) % len(GRID)]})


def judged(task: str, policy: Policy, *, starts: int = STARTS, seconds: float = SECONDS) -> list[Row]:
    """A row a command: what was asked, the mean velocity that came of it, in how many episodes it was as near as is allowed, falls. The
    policy acts without noise."""
    make = partial(Asked, task.partition("/")[2], horizon=round(20 * seconds))
    with Collector(task, CollectConfig(workers=1, envs_per_worker=6), make=make) as collector:
        dt = collector.spec().dt
        episodes = trials(collector, policy, starts * len(GRID), keep=lambda episode: episode)
    out = []
    for number, command in enumerate(GRID):
        mine = [e for e in episodes if e.seed is not None and (e.seed - HELD_OUT) % len(GRID) == number]
        did = np.array([following(e.obs["state"][1:])[0][-round(JUDGED / dt):].mean(0) for e in mine])
        near = (np.abs(did - command) <= allowed(np.array(command))).all(1) & ~np.array([e.terminated for e in mine])
        out.append({"asked": list(command), "did": [round(float(v), 3) for v in did.mean(0)], "followed": int(near.sum()),
                    "episodes": len(mine), "falls": sum(e.terminated for e in mine)})
    return out


# ---- the table

HEAD = ("", "asked: forward, left [m/s], turning [rad/s]", "did", "followed", "falls")


def lines(rows: Sequence[Row]) -> list[list[str]]:
    """A line a run and command that its task may draw."""
    out = []
    for r in sorted((r for r in rows if "commands" in r), key=lambda r: (r["task"], r["method"], r["seed"])):
        low, high = commands(f"quadruped/{r['task']}")
        drawn = [c for c in r["commands"] if (low <= c["asked"]).all() and (c["asked"] <= high).all()]
        for i, c in enumerate(drawn):
            who = (f"{r['task']}, {r['method']}, seed {r['seed']}: {100 * r['followed']:.0f} % of drawn ones followed, "
                   f"{100 * r['noisy_followed']:.0f} % with noise") if i == 0 else ""
            asked, did = (", ".join(f"{v:.2f}" for v in c[key]) for key in ("asked", "did"))
            out.append([who, asked, did, f"{c['followed']} of {c['episodes']}", str(c["falls"])])
    return out
