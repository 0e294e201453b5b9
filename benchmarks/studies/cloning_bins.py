"""How the bins' things should be told of, if ten episodes are to teach anything: `python -m benchmarks.studies.cloning_bins`.

A plain network of 128 units is fitted to what the script of bins/panda chose, as a hurried teleoperator, in ten episodes (1,000 decisions),
and plays ten held-out ones. Printed: its mean return, taking the likeliest move and drawing one, where the things' places are those on
the table, in an order that the hand has no part in; the same as seen from the hand; and as the task tells them, the nearest first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from realrl import envs
from realrl.envs.base import RobotEnv
from realrl.envs.bins import OWN
from realrl.files import derive
from realrl.nets.twohot import symlog
from realrl.types import Array

EPISODES, NOISE, UPDATES = 10, 0.3, 1000
Choose = Callable[[Array], int]


def main(words: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument("--episodes", type=int, default=EPISODES)
    args = parser.parse_args(words)
    env, rng = envs.make("bins/panda"), np.random.default_rng(0)
    script = envs.expert("bins/panda", noise=NOISE)
    states, choices, paid = list[Array](), list[int](), list[float]()
    for i in range(args.episodes):
        def shown(state: Array) -> int:
            plan, _ = script.act({"state": state[None, None]}, script.start(1), greedy=True, rng=[rng])
            states.append(state)
            choices.append(int(plan.action[0, 0].argmax()))
            return choices[-1]
        paid.append(play(env, shown, derive(0, "shown", i) % 2**31))
    print(f"the script: {np.mean(paid):.1f}\nplaces told                      likeliest  drawn")
    for text, view in (("on the table", table), ("from the hand", hand), ("from the hand, nearest first", np.asarray)):
        net = fitted(np.stack([view(s) for s in states]), np.array(choices), args.updates)
        found = [np.mean([play(env, chooser(net, view, greedy), derive(0, "judged", i) % 2**31) for i in range(args.episodes)])
                 for greedy in (True, False)]
        print(f"{text:31s}  {found[0]:9.1f}  {found[1]:5.1f}")
    return 0


def hand(state: Array) -> Array:
    """Things as seen from the hand, in the order of their places on the table."""
    things = state[OWN:].reshape(-1, 3)
    return np.concatenate([state[:OWN], things[np.lexsort((things + state[:3]).T[[0, 1]])].ravel()])


def table(state: Array) -> Array:
    """Things' places on the table, in their order."""
    seen = hand(state)
    return np.concatenate([seen[:OWN], (seen[OWN:].reshape(-1, 3) + state[:3]).ravel()])


def fitted(states: Array, choices: Array, updates: int) -> nn.Module:
    """A network [D] -> [6] that makes the choices likely."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(states.shape[1], 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 6))
    x, y = symlog(torch.as_tensor(states, dtype=torch.float32)), torch.as_tensor(choices)
    optimiser = torch.optim.Adam(net.parameters(), 1e-3, weight_decay=1e-4)
    for _ in range(updates):
        rows = torch.randint(len(x), (256,))
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimiser.step()
    return net


def chooser(net: nn.Module, view: Callable[[Array], Array], greedy: bool) -> Choose:
    """What the network chooses."""
    rng = np.random.default_rng(0)

    def choose(state: Array) -> int:
        with torch.no_grad():
            out = net(symlog(torch.as_tensor(view(state), dtype=torch.float32)))
        noise = np.zeros(len(out)) if greedy else rng.gumbel(size=len(out))
        return int((out.numpy() + noise).argmax())
    return choose


def play(env: RobotEnv, choose: Choose, seed: int) -> float:
    """The return of an episode."""
    obs, _ = env.reset(seed=seed)
    total, over = 0.0, False
    while not over:
        obs, reward, ended, late, _ = env.step(np.eye(6, dtype=np.float32)[choose(obs["state"])])
        total, over = total + reward, ended or late
    return total


if __name__ == "__main__":
    sys.exit(main())
