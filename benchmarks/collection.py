"""Environment steps a second: our collector beside gymnasium's AsyncVectorEnv and a plain loop, same policy, same task.

    python -m benchmarks.collection --task metaworld/push-wall-v3 --episodes 100

Every way runs whole episodes of one untrained policy (or --policy DIR) and counts the steps that were really taken; start-up, the
processes' and the environments', is outside the timed part. Writes benchmarks/results/collection.jsonl.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv

from benchmarks.lib.common import RESULTS, Table
from realrl import envs
from realrl.cell.collect import Collector
from realrl.policies.diffusion import DiffusionPolicy, PolicyConfig
from realrl.policies.folder import load_policy
from realrl.scene import CollectConfig
from realrl.types import Policy


class Seeded(gymnasium.Wrapper):
    """Supplies a fresh seed to the resets that a vector environment does by itself."""

    def __init__(self, task: str, first: int) -> None:
        super().__init__(envs.make(task))
        self.next = first

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Start the next episode."""
        self.next += 1
        return self.env.reset(seed=self.next if seed is None else seed)


def with_collector(task: str, policy: Policy, episodes: int, workers: int) -> tuple[int, float]:
    """(steps, seconds) of our collector with 25 environments a worker."""
    with Collector(task, CollectConfig(workers=workers)) as collector:
        warm = range(10 ** 6, 10 ** 6 + 25 * workers)
        sum(1 for _ in collector.collect(policy, list(warm), greedy=True))
        began = time.perf_counter()
        steps = sum(len(e) for e in collector.collect(policy, list(range(episodes)), greedy=True))
        return steps, time.perf_counter() - began


def with_async(task: str, policy: Policy, episodes: int, workers: int) -> tuple[int, float]:
    """(steps, seconds) of gymnasium's AsyncVectorEnv, the policy batched over its environments in this process."""
    env = AsyncVectorEnv([functools.partial(Seeded, task, 10 ** 6 * (i + 1)) for i in range(workers)], context="spawn")
    rng = [np.random.default_rng(i) for i in range(workers)]
    try:
        return _vector_loop(env, policy, episodes, rng)
    finally:
        env.close()


def _vector_loop(env: AsyncVectorEnv, policy: Policy, episodes: int, rng: list[np.random.Generator]) -> tuple[int, float]:
    obs, _ = env.reset()
    begun = np.zeros(env.num_envs, bool)  # ended in the last step: the next one is a reset, which counts as no step
    ended = steps = 0
    began = time.perf_counter()
    while ended < episodes:
        plan, _ = policy.act({"state": obs["state"][:, None]}, policy.start(env.num_envs), greedy=True, rng=rng)
        for j in range(policy.chunk):
            obs, _, terminated, truncated, _ = env.step(plan.action[:, j])
            steps += int((~begun).sum())
            begun = terminated | truncated
            ended += int(begun.sum())
    return steps, time.perf_counter() - began


def with_loop(task: str, policy: Policy, episodes: int) -> tuple[int, float]:
    """(steps, seconds) of the loop one would write first: one environment, one observation at a time."""
    env, rng, steps = envs.make(task), [np.random.default_rng(0)], 0
    env.reset(seed=10 ** 6)
    began = time.perf_counter()
    for seed in range(episodes):
        obs, ended = env.reset(seed=seed)[0], False
        while not ended:
            plan, _ = policy.act({"state": obs["state"][None, None]}, policy.start(1), greedy=True, rng=rng)
            for action in plan.action[0]:
                obs, _, terminated, truncated, _ = env.step(action)
                steps, ended = steps + 1, terminated or truncated
                if ended:
                    break
    return steps, time.perf_counter() - began


def main(words: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="metaworld/push-wall-v3")
    parser.add_argument("--policy", help="folder of a policy; default: untrained, of the default size")
    parser.add_argument("--episodes", type=int, default=100, help="of every way")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    spec = envs.make(args.task).task
    torch.manual_seed(0)
    fresh = DiffusionPolicy(PolicyConfig(), spec.obs_dim, spec.action_dim)
    policy = load_policy(args.policy)[0] if args.policy else fresh.with_head("ddim")
    ways: dict[str, Callable[[], tuple[int, float]]] = {
        "plain loop": lambda: with_loop(args.task, policy, args.episodes),
        "AsyncVectorEnv, 2 processes": lambda: with_async(args.task, policy, args.episodes, 2),
        "collector, 1 process": lambda: with_collector(args.task, policy, args.episodes, 1),
        "collector, 2 workers": lambda: with_collector(args.task, policy, args.episodes, 2)}
    table, base = Table(RESULTS / "collection.jsonl", ("task", "method")), 0.0
    for method, way in ways.items():
        steps, seconds = way()
        base = base or steps / seconds
        table.put({"task": args.task, "method": method, "episodes": args.episodes, "steps": steps, "wall_s": round(seconds, 2),
                   "steps_per_s": steps / seconds, "times_plain_loop": steps / seconds / base})
        print(f"    {steps / seconds:.0f} steps/s, {steps / seconds / base:.2f} x the plain loop")
    return 0


if __name__ == "__main__":
    sys.exit(main())
