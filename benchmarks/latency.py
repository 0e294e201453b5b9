"""From observation to plan at batch 1 on one thread: our one-step and 10-step policies beside diffusers' DDIM with the same network.

    python -m benchmarks.latency                 # skip-net, and a U-Net of 4.4 M parameters
    python -m benchmarks.latency --nets skip --calls 3000

All contestants share one set of weights, one normaliser and the same work around the network (array in, array out), take turns
call by call, and run eagerly under inference mode. diffusers' time steps are set once, outside the timed part, which favours it.
Writes benchmarks/results/latency.jsonl.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from diffusers import DDIMScheduler

from benchmarks.lib.common import RESULTS, Table
from realrl.generative.diffusion import DiffusionConfig
from realrl.policies.diffusion import DiffusionPolicy, PolicyConfig

OBS, ACTION, TARGET_MS = 39, 4, 0.3
NETS = {"skip": PolicyConfig(chunk=4), "unet": PolicyConfig(chunk=16, net="unet", hidden=64),
        "unet-large": PolicyConfig(chunk=16, net="unet", hidden=256)}
Call = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def contestants(cfg: PolicyConfig) -> dict[str, Call]:
    """name -> a function from an observation [1, 1, D] to a plan [1, K, A], all with the same weights."""
    # the probability-flow chain is what diffusers' DDIM computes; our default sampler costs the same
    cfg = PolicyConfig(chunk=cfg.chunk, net=cfg.net, hidden=cfg.hidden, diffusion=DiffusionConfig(greedy="ddim"))
    torch.manual_seed(0)
    policy = DiffusionPolicy(cfg, OBS, ACTION).eval()
    ddim, one_step = policy.with_head("ddim"), policy.with_head("one-step")

    def ours(head: DiffusionPolicy) -> Call:
        return lambda obs, rng: head.act({"state": obs}, {}, greedy=True, rng=[rng])[0].action

    return {"one step": ours(one_step), "10 steps": ours(ddim), "10 steps, diffusers": peer(ddim)}


def peer(policy: DiffusionPolicy) -> Call:
    """diffusers-style eager DDIM of the policy's network."""
    cfg = policy.cfg.diffusion
    scheduler = DDIMScheduler(num_train_timesteps=cfg.train_steps, beta_schedule="squaredcos_cap_v2", clip_sample=True,
                              set_alpha_to_one=True, steps_offset=cfg.offset, prediction_type="epsilon", timestep_spacing="leading")
    scheduler.set_timesteps(cfg.steps)
    shape = (1, policy.chunk, policy.action_dim)

    @torch.inference_mode()
    def act(obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        cond = policy.encode({"state": torch.as_tensor(obs, dtype=torch.float32)})
        x = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
        for t in scheduler.timesteps:
            x = scheduler.step(policy.net(x, t.expand(1), cond), t, x, eta=0.0).prev_sample
        return x.clamp(-1.0, 1.0).numpy()

    return act


def measure(calls: dict[str, Call], count: int, warmup: int = 50) -> dict[str, np.ndarray]:
    """Milliseconds of `count` calls each; the contestants take turns, beginning with another one every time."""
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    rng = np.random.default_rng(0)
    for i in range(count + warmup):
        obs = rng.standard_normal((1, 1, OBS), dtype=np.float32)
        for name in names[i % len(names):] + names[:i % len(names)]:
            before = time.perf_counter()
            calls[name](obs, rng)
            times[name].append((time.perf_counter() - before) * 1e3)
    return {name: np.array(values[warmup:]) for name, values in times.items()}


def agree(calls: dict[str, Call]) -> float:
    """Largest difference between our 10-step plan and diffusers' from the same noise: they are the same sampler."""
    obs = np.random.default_rng(1).standard_normal((1, 1, OBS), dtype=np.float32)
    ours, theirs = (calls[name](obs, np.random.default_rng(2)) for name in ("10 steps", "10 steps, diffusers"))
    return float(np.abs(ours - theirs).max())


def main(words: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=["skip", "unet"], choices=list(NETS))
    parser.add_argument("--calls", type=int, default=1000, help="timed calls of each")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    table = Table(RESULTS / "latency.jsonl", ("net", "method"))
    for net in args.nets:
        calls = contestants(NETS[net])
        gap = agree(calls)
        if gap > 1e-3:
            print(f"{net}: our sampler and diffusers' differ by {gap:.2g}, so a comparison would mean nothing", file=sys.stderr)
            return 1
        times = measure(calls, args.calls)
        rival = float(np.median(times["10 steps, diffusers"]))
        size = sum(p.numel() for p in DiffusionPolicy(NETS[net], OBS, ACTION).net.parameters())
        for method, ms in times.items():
            p50, p99 = (float(v) for v in np.percentile(ms, [50, 99]))
            table.put({"net": net, "method": method, "parameters": size, "chunk": NETS[net].chunk, "calls": len(ms), "p50_ms": p50,
                       "p99_ms": p99, "times_faster_than_diffusers": rival / p50, "largest_difference": gap,
                       "target_ms": TARGET_MS if (net, method) == ("skip", "one step") else None})
            print(f"    p50 {p50:.3f} ms, p99 {p99:.3f} ms, {rival / p50:.1f} x diffusers' rate")
    return 0


if __name__ == "__main__":
    sys.exit(main())
