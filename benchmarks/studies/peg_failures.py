"""Why a peg does not get in: `python -m benchmarks.studies.peg_failures RUN ... [--episodes 100]`.

First, of the hand without a policy: what the wrist feels of a peg that is pressed on the rim, upright and with a low corner, where the slot
is off to one side or to two. Then, for every RUN (the folder of a `realrl train hil-serl --task contact/peg...`), of the policy that it
stands at (the average), greedy, from held-out starts: success by how wrong the slot is seen; and of the failures' last forty steps where
the slot seemed to be and where it was, how far the peg was tilted, how much of them it was in contact, and what the critics gave for it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from realrl import config
from realrl.algos.hil_serl import Average, HILConfig, make_actor
from realrl.cell.evaluate import held_out
from realrl.envs.contact import TILT, TILTED, TRUTH
from realrl.envs.mujoco.peg import PegEnv
from realrl.learn.sac import SAC
from realrl.run import Run
from realrl.types import Array, RealrlError

FELT, SEEN, PRESS = slice(15, 21), slice(0, 2), 17  # in the state: the wrench, where the slot seems to be (in units of 20 mm), the push
TOUCH, LAST = 0.15, 40
PLACES = ((1, 0), (4, 0), (0, 1), (0, 4), (1, 1), (2, 2), (-2, 3))


@dataclass
class Trial:
    """An episode: full states [T+1, FULL], the critics' means [T], how wrong the slot was seen [2], m, and whether it got in."""

    states: Array
    values: Array
    wrong: Array
    won: bool


def main(words: list[str] | None = None) -> int:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--episodes", type=int, default=100)
    args = parser.parse_args(words)
    statics()
    for run in args.runs:
        print(run.name)
        cfg = config.from_dict(HILConfig, config.read(run / "config.yaml"), source=str(run / "config.yaml"))
        tell(trials(run, cfg, args.episodes), cfg.sac.gamma)
    return 0


def statics() -> None:
    """What the wrist feels of a slot beside the peg."""
    print("pressed with 6 N; off the slot by mm (forward, left) -> torque about roll and pitch, mN m, and how deep the tip is, mm")
    env = PegEnv("peg-hard")
    for lean in (0.0, 0.1):
        print("upright" if not lean else f"tilted by {lean} rad about both, the low corner behind and to the right")
        for x, y in PLACES:
            state = pressed(env, 0.001 * x, 0.001 * y, lean)
            roll, pitch = 100 * np.arctanh(np.clip(state[FELT][3:5], -0.9999, 0.9999))
            print(f"  ({x:2d}, {y:2d})  torque ({roll:4.0f}, {pitch:4.0f})  depth {1000 * state[TRUTH][2]:5.2f}")


def pressed(env: PegEnv, x: float, y: float, lean: float) -> Array:
    """The full state of a peg that was pressed down for 0.8 s at a place beside the slot, turned as it is."""
    model, data = env.world
    env.reset(seed=0)
    at, turn = model.body("slot").pos.copy(), 2 * np.arctan2(model.body("slot").quat[3], model.body("slot").quat[0])
    c, s = np.cos(turn), np.sin(turn)
    data.qpos[:6] = [at[0] + c * x - s * y, at[1] + s * x + c * y, 0.0025, turn, -lean, lean]
    env.start_from_here()
    for _ in range(8):
        state: Array = env.step(np.array([0.0, 0.0, -0.5, 0.0, 0.0, 0.0]))[0]["privileged"]
    return state


@torch.no_grad()
def trials(run: Path, cfg: HILConfig, n: int) -> list[Trial]:
    """The deployed policy, greedy, from starts that no run was trained or judged on."""
    env = PegEnv(cfg.task.removeprefix("contact/"))
    agent = SAC(make_actor(cfg, env.task), cfg.sac, seed=0)
    average = Average(agent, None)
    with Run(run, resume=True) as book:
        if book.load("hil-serl", agent=agent, average=average) is None:
            raise RealrlError(f"{run} has no checkpoint yet: name one that has")
    policy, found = average.policy(), list[Trial]()
    for seed in held_out(n, 7):
        obs, won = env.reset(seed=seed)[0], False
        seen, states, values = [obs["state"]] * policy.n_obs, [obs["privileged"]], list[float]()
        for _ in range(env.task.horizon):
            cond = torch.from_numpy(np.concatenate(seen[-policy.n_obs:])[None].astype(np.float32))
            action = policy.distribution(cond)[0].tanh()
            values.append(float(agent.critic(torch.cat([cond, action], -1))[..., 0].mean()))
            obs, _, won, _, _ = env.step(action[0].numpy())
            seen.append(obs["state"])
            states.append(obs["privileged"])
            if won:
                break
        wrong = (states[0][:2] * 0.02 - states[0][TRUTH][:2])
        found.append(Trial(np.array(states), np.array(values), wrong, won))
    return found


def tell(found: Sequence[Trial], gamma: float) -> None:
    """What became of them. gamma: what a value loses with every step."""
    won, wrong = np.array([t.won for t in found]), 1000 * np.array([np.hypot(*t.wrong) for t in found])
    bands = [(lo, hi, (wrong >= lo) & (wrong < hi)) for lo, hi in ((0, 1), (1, 2), (2, 3), (3, 9))]
    print(f"  {100 * won.mean():.0f} % of {len(won)}; by how wrong the slot is seen: "
          + ", ".join(f"{lo} to {hi} mm {100 * won[m].mean():.0f} % of {m.sum()}" for lo, hi, m in bands if m.any()))
    leans = {name: [1000 * TILTED * np.abs(t.states[1:, TILT]).max(1)[touching(t)].mean() for t in found
                    if t.won == ok and touching(t).any()] for name, ok in (("successes", True), ("failures", False))}
    print("  tilt in contact on the rim: " + ", ".join(f"{name} {np.mean(v):.0f} mrad" for name, v in leans.items() if v))
    lost = [t for t in found if not t.won]
    if not lost:
        return
    seemed = np.mean([np.abs(20 * t.states[-LAST:, SEEN].mean(0)) for t in lost])
    was = np.mean([np.abs(1000 * t.states[-LAST:, TRUTH][:, :2].mean(0)) for t in lost])
    touch, value = (np.mean([x[-LAST:].mean() for x in some]) for some in ([touching(t) for t in lost], [t.values for t in lost]))
    print(f"  failures, last {LAST} steps: the middle of where it went was {seemed:.1f} mm a side from where the slot seemed to be and "
          f"{was:.1f} mm from where it was; in contact {100 * touch:.0f} % of them; the critics said {value:.2f}, which is a success in "
          f"{np.log(max(value, 1e-9)) / np.log(gamma):.0f} steps")


def touching(trial: Trial) -> Array:
    """Of every state but the first [T]: whether it is in contact on the rim."""
    found: Array = (np.abs(trial.states[1:, PRESS]) > TOUCH) & (np.abs(trial.states[1:, TRUTH][:, 2]) < 0.0015)
    return found


if __name__ == "__main__":
    sys.exit(main())
