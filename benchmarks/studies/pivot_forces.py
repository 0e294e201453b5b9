"""What carries a block while it is set upright: how hard rod, wall and table press on it, by how far it is raised.

    python -m benchmarks.studies.pivot_forces --policy runs/pivot/policy --arms pivot pivot-dev-braced --trials 20

A line a trial, and of every arm a table of what succeeded and what fell: contact forces by the simulator, N, means over the times at which
the block was raised by so many degrees. Starts are none that anybody is judged on. Where the table carries nothing, the block hangs between
rod and wall, and falls when either slips.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from realrl import envs
from realrl.cell.rollout import rollout
from realrl.envs.assembly import LEVELS
from realrl.policies.folder import load_policy
from realrl.robots.guard import box_guard
from realrl.types import Array

FIRST = 5000
"""The first start."""
PRESS = ("rod", "wall", "table")
BANDS = (5, 25, 45, 65, 85)
"""Degrees between which forces are averaged."""


class Pressed(list[list[float]]):
    """A trace that also takes down, at each of its samples, the angle, rad, and what presses on the block, N. forces: rows of those [4]."""

    def __init__(self, env: Any) -> None:
        super().__init__()
        self._env, self.forces = env, list[list[float]]()

    def append(self, row: list[float]) -> None:
        """A sample of the trial that is under way."""
        import mujoco
        super().append(row)
        model, data = self._env.world
        pressed, out = dict.fromkeys(PRESS, 0.0), np.zeros(6)
        for i in range(data.ncon):
            names = {model.geom(g).name for g in (data.contact[i].geom1, data.contact[i].geom2)}
            mujoco.mj_contactForce(model, data, i, out)
            for name in names & pressed.keys() if "block" in names else ():
                pressed[name] += float(out[0])
        self.forces.append([row[1], *pressed.values()])


def trials(task: str, policy: Any, n: int) -> list[tuple[bool, Array]]:
    """(whether it succeeded, angle and forces [T, 4] until the block was raised most) of n trials."""
    env: Any = envs.make(task)
    found = []
    for start in range(FIRST, FIRST + n):
        env.trace = pressed = Pressed(env)
        (episode,) = rollout([env], policy, [box_guard(env)], [start], greedy=True, task=task)
        forces = np.array(pressed.forces)
        found.append((episode.succeeded, forces[:int(forces[:, 0].argmax()) + 1]))
        done = "upright" if episode.succeeded else "not upright"
        print(f"{task} {start}: {done}, raised by {math.degrees(forces[:, 0].max()):.0f} degrees", flush=True)
    return found


def lines(found: Sequence[tuple[bool, Array]]) -> list[str]:
    """A line a band of angles: forces where the trial succeeded, and where it did not."""
    out = []
    for low, high in pairwise(BANDS):
        cells = []
        for wanted in (True, False):
            rows = [f[(f[:, 0] >= math.radians(low)) & (f[:, 0] < math.radians(high)), 1:] for success, f in found if success == wanted]
            whole = np.concatenate(rows) if rows else np.zeros((0, 3))
            cells.append(", ".join(f"{name} {force:.1f}" for name, force in zip(PRESS, whole.mean(0), strict=True)) if len(whole) else "-")
        out.append(f"{low}-{high} degrees: upright {cells[0]}; not {cells[1]}")
    return out


def main(words: list[str] | None = None) -> int:
    """Try them one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path, required=True, help="folder of a policy")
    blocks = [name for name, level in LEVELS.items() if level.block]
    parser.add_argument("--arms", nargs="+", default=["pivot", "pivot-dev-braced"], choices=blocks)
    parser.add_argument("--trials", type=int, default=20)
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    policy = load_policy(args.policy)[0]
    for arm in args.arms:
        found = trials(f"assembly/{arm}", policy, args.trials)
        print(f"{arm}: {sum(success for success, _ in found)} of {len(found)} upright", *lines(found), sep="\n  ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
