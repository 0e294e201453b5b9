"""How fast a peg can be in at all: `python -m benchmarks.studies.peg_bounds`, for judging cycle times of `benchmarks/hil_serl.py`.

For every peg that is in the hand from the start, mean control steps of the successes, and their share: as it is demonstrated (half the
speed, unsteady, knowing where the slot is), upright and tilting; upright at full speed and steady, which nobody beats who has to feel where
it is; at full speed by one who goes where the slot seems to be, presses, and knows the truth from the first touch on; and by two who never
know it: one slides in a spiral from where the slot seems to be until the peg falls in, one goes down beside it with a corner low, slides
until two walls press back, and sets the peg upright.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import numpy as np

from realrl.cell.evaluate import held_out
from realrl.envs import contact
from realrl.envs.contact import DEPTH, LEVELS, TILT, TILTED, Careful, Tilting
from realrl.types import Array

FORCE, SEEN, TURN = slice(15, 18), slice(0, 3), 8  # in the state: what is felt, where the slot seems to be (in units of 20 mm), its turn
TOUCH = 0.3  # of `FORCE`, felt as contact
PITCH, ARC, FAR = 0.0009, 0.002, 0.006  # of the spiral: between its turns, a step's way along it, its radius at most, m
NEWTON, WALL = 8.0, 5.0  # what `FORCE` is in units of, flattened; felt of a wall that stops the peg, N
Act = Callable[[Array], Array]


def demonstrator(reach: float, rng: np.random.Generator) -> Act:
    """Half the speed, with the demonstrations' noise."""
    careful = Careful(reach)
    return lambda state: careful(state) + rng.normal(0.0, 0.1, (1, 6))


def tilting(reach: float, rng: np.random.Generator) -> Act:
    """The same by one who tilts."""
    careful = Tilting(reach)
    return lambda state: careful(state) + rng.normal(0.0, 0.1, (1, 6))


def knowing(reach: float, rng: np.random.Generator) -> Act:
    """Full speed, steady."""
    return Careful(reach, 1.0)


class Feeling:
    """Full speed to where the slot seems to be and 3 mm below its mouth; as one who knows from the first touch on."""

    def __init__(self, reach: float, rng: np.random.Generator) -> None:
        self._careful, self._touched = Careful(reach, 1.0), False

    def __call__(self, state: Array) -> Array:
        self._touched |= bool(np.linalg.norm(state[0, FORCE]) > TOUCH)
        if self._touched:
            return self._careful(state)
        way = 0.02 * state[:, SEEN]
        way[:, 2] -= 0.003 * (np.abs(way[:, :2]).max() < 0.003)
        return self._careful.go(state, way, 0.1 * state[:, TURN])


class Searching:
    """Full speed to where the slot seems to be; from the first touch on along a spiral about it, pressing; where it falls in, down."""

    def __init__(self, reach: float, rng: np.random.Generator) -> None:
        self._careful, self._rim, self._angle = Careful(reach, 1.0), float("nan"), 0.0

    def __call__(self, state: Array) -> Array:
        seen, turn = 0.02 * state[0, SEEN], 0.1 * state[:, TURN]
        over = np.abs(seen[:2]).max() < 0.001 and abs(turn[0]) < 0.03
        if np.isnan(self._rim) and np.linalg.norm(state[0, FORCE]) > TOUCH:
            self._rim = seen[2]
        if np.isnan(self._rim):
            way = np.array([*seen[:2], max(seen[2] - 0.01, -0.006) if over else seen[2] + 0.003])
        elif seen[2] - self._rim > 0.001:
            way = np.array([0.0, 0.0, -0.02])
        else:
            radius = min(PITCH * self._angle / (2 * np.pi), FAR)
            way = np.array([radius * np.cos(self._angle) + seen[0], radius * np.sin(self._angle) + seen[1], -0.005])
            self._angle += ARC / max(radius, PITCH / (2 * np.pi))
        return self._careful.go(state, way[None], turn)


class Cornering:
    """Full speed, tilted, to 4.5 mm beside where the slot seems to be, and down; then feels alone: slides until walls have pressed
    back on two sides, sets the peg upright, presses; where it is not in after eight steps, all again."""

    def __init__(self, reach: float, rng: np.random.Generator) -> None:
        self._careful, self._doing, self._steps, self._rim = Careful(reach, 1.0), "reach", 0, 0.0
        self._stopped = np.zeros(2, bool)

    def __call__(self, state: Array) -> Array:
        seen, turn, tilt = 0.02 * state[0, SEEN], 0.1 * state[:, TURN], TILTED * state[0, TILT]
        force = NEWTON * np.arctanh(np.clip(state[0, FORCE], -0.999, 0.999))
        lean, self._steps = np.array([0.12, -0.12]) - tilt, self._steps + 1
        if self._doing == "reach":
            beside = seen[:2] + 0.0045
            over = np.abs(beside).max() < 0.002 and np.abs(lean).max() < 0.04 and abs(turn[0]) < 0.05
            way = np.array([*beside, -0.004 if over else seen[2] + 0.008])
            if over and np.linalg.norm(force) > 2.0:
                self._doing, self._steps, self._rim, self._stopped = "slide", 0, seen[2], np.zeros(2, bool)
        if self._doing == "slide":
            self._stopped |= (force[:2] > WALL) & (self._steps > 0)
            way = np.array([*np.where(self._stopped, -0.001, -0.005), -0.0015])
            if self._stopped.all() or self._steps > 14:
                self._doing, self._steps = "seat", 0
        if self._doing == "seat":
            lean, upright = -tilt, np.abs(tilt).max() < 0.03
            way = np.array([0.0, 0.0, -DEPTH - 0.005]) if upright else np.array([-0.0015, -0.0015, -0.004])
            if self._steps > 8 and seen[2] - self._rim < 0.004:
                self._doing, way = "reach", np.array([0.0, 0.0, 0.01])
        return self._careful.go(state, way[None], turn, lean[None])


WHO: dict[str, Callable[[float, np.random.Generator], Act]] = {
    "demonstrated": demonstrator, "demonstrated, tilting": tilting, "knowing, full speed": knowing, "feeling once, full speed": Feeling,
    "searching, full speed": Searching, "cornering, full speed": Cornering}


def trials(task: str, who: str, n: int) -> tuple[float, float]:
    """Share of successes and their mean steps."""
    env, steps, rng = contact.make(task), list[int](), np.random.default_rng(0)
    for seed in held_out(n, 1):
        obs, _ = env.reset(seed=seed)
        act = WHO[who](LEVELS[task].reach, rng)
        for step in range(1, env.task.horizon + 1):
            action = act(obs["privileged"][None].astype(np.float64))[0]
            obs, _, terminated, _, _ = env.step(np.clip(action, -1, 1))
            if terminated:
                steps.append(step)
                break
    return len(steps) / n, float(np.mean(steps)) if steps else float("nan")


def main(words: list[str] | None = None) -> int:
    """A line a task and hand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=100)
    args = parser.parse_args(words)
    for task in (name for name, level in LEVELS.items() if not level.picks):
        shown = 0.0
        for who in WHO:
            share, steps = trials(task, who, args.episodes)
            shown = shown or steps
            print(f"{task:9s} {who:25s} {100 * share:5.1f} %  {steps:5.1f} steps  {steps / shown:.2f} of the demonstrated", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
