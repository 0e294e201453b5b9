"""From what the cameras deliver to a plan, batch 1, one thread, stage by stage: sampling the cloud, encoder, action head.

    python -m benchmarks.vision_latency

- cloud: a depth picture of 84 x 84 (as in simulation) and one of 480 x 640 (a real depth camera) become 1024 points; PointNet; head;
- pictures: two of 96 x 96; the small CNN, ResNet-18 and EfficientNet-lite0; head;
- the flow policy (docs/methods/recap.md): the same two through its frozen network and prefix, "encoder" here; its expert, "head".

`--clock thread` counts the thread's own time, for a machine that others use: what the wall's clock would say if they did not.
The depth shows a tilted plane with a bump, of which the crop box keeps about two thirds. One-step and 10-step heads take turns.
Writes benchmarks/results/vision_latency.jsonl.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.lib.common import RESULTS, Table
from realrl.envs.clouds import Pinhole, cloud
from realrl.generative.flow import euler
from realrl.nets.encoder import EncoderConfig
from realrl.policies.diffusion import DiffusionPolicy, PolicyConfig
from realrl.policies.flow import Body, FlowPolicy, FlowPolicyConfig, Told
from realrl.types import Array

POINTS, OWN, ACTION = 1024, 8, 4
BOX = ((-0.5, -0.4, -1.0), (0.5, 0.4, 2.0))
POSE = np.eye(4)


def depth(height: int, width: int, rng: np.random.Generator) -> tuple[Array, Pinhole]:
    """uint16 [H, W] of a plane with a bump about 1 m away, other noise every time, and its camera."""
    y, x = np.mgrid[:height, :width] / np.array([height, width])[:, None, None] - 0.5
    metres = 1.0 + 0.2 * y - 0.15 * np.exp(-40 * (x**2 + y**2)) + rng.normal(0, 0.002, (height, width))
    return (1000 * metres).astype(np.uint16), Pinhole.upright(height, width, 60.0, POSE)


def cloud_input(height: int, width: int) -> Callable[[np.random.Generator], Callable[[], dict[str, Array]]]:
    """Draws a depth picture; what it returns is the timed part, from the picture to the observation."""
    def draw(rng: np.random.Generator) -> Callable[[], dict[str, Array]]:
        picture, camera = depth(height, width, rng)
        return lambda: {"pointcloud": cloud([picture], [camera], BOX, POINTS)[None, None]}
    return draw


def pictures(rng: np.random.Generator) -> Callable[[], dict[str, Array]]:
    """Two cameras of 96 x 96."""
    seen = {f"images.{name}": rng.integers(0, 256, (1, 1, 96, 96, 3), np.uint8) for name in ("front", "wrist")}
    return lambda: seen


CLOUD = {"pointcloud": (POINTS, 3)}
PAIR = {"images.front": (96, 96, 3), "images.wrist": (96, 96, 3)}
CASES: dict[str, tuple[dict[str, tuple[int, ...]], EncoderConfig, Any]] = {
    "cloud from 84 x 84": (CLOUD, EncoderConfig(), cloud_input(84, 84)),
    "cloud from 480 x 640": (CLOUD, EncoderConfig(), cloud_input(480, 640)),
    "2 x 96 px, cnn": (PAIR, EncoderConfig(image="cnn"), pictures),
    "2 x 96 px, resnet18": (PAIR, EncoderConfig(image="resnet18"), pictures),
    "2 x 96 px, efficientnet-lite0": (PAIR, EncoderConfig(image="efficientnet-lite0"), pictures)}


FLOW = "2 x 96 px, flow policy"
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "thread": time.thread_time}


def draws(policy: DiffusionPolicy | FlowPolicy) -> Callable[[Tensor, Tensor], Tensor]:
    """A policy's head: (noise [1, K, A], condition) -> plan."""
    if policy.head == "one-step":
        return policy.one_step
    if policy.KIND == "flow":
        return lambda noise, cond: euler(policy.velocity(cond), noise, policy.cfg.flow.steps)[:, -1].clamp(-1, 1)
    return lambda noise, cond: policy.diffusion.sample(policy.net, cond, noise[:, None], stochastic=False)[:, -1].clamp(-1, 1)


@torch.inference_mode()
def timed(policy: DiffusionPolicy | FlowPolicy, look: Callable[[], dict[str, Array]], rng: np.random.Generator,
          now: Callable[[], float]) -> dict[str, float]:
    """Milliseconds of each stage of one decision."""
    plan, draw = (policy.cfg.plan if policy.KIND == "flow" else policy.chunk), draws(policy)
    marks = [now()]
    seen = look()
    marks.append(now())
    obs = {k: torch.from_numpy(v) for k, v in seen.items()}
    cond = policy.encode({"state": torch.zeros(1, 1, OWN), **obs})
    marks.append(now())
    draw(torch.from_numpy(rng.standard_normal((1, plan, ACTION), dtype=np.float32)), cond).numpy()
    marks.append(now())
    sampling, encoder, head = (np.diff(marks) * 1e3).tolist()
    return {"sampling": sampling, "encoder": encoder, "head": head, "all": sampling + encoder + head}


def contestants(case: str) -> tuple[dict[str, DiffusionPolicy | FlowPolicy], int]:
    """The heads of a case's policy, and how many weights see for it."""
    torch.manual_seed(0)
    if case == FLOW:
        flow = FlowPolicy(FlowPolicyConfig(reader="words"), [Body("arm", OWN, ACTION)], {"task": Told(("open the door",))}, senses=PAIR)
        return {"one-step": flow.with_head("one-step"), "flow": flow.with_head("flow")}, sum(p.numel() for p in flow.eyes.parameters())
    senses, encoder, _ = CASES[case]
    policy = DiffusionPolicy(PolicyConfig(encoder=encoder), OWN, ACTION, senses=senses).eval()
    eyes = sum(p.numel() for p in (policy.encoder or policy.net).parameters())
    return {"one-step": policy.with_head("one-step"), "ddim": policy.with_head("ddim")}, eyes


def main(words: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=[*CASES, FLOW], choices=[*CASES, FLOW])
    parser.add_argument("--calls", type=int, default=500, help="timed calls of each")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="whose time")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    table = Table(RESULTS / "vision_latency.jsonl", ("case", "head"))
    for case in args.cases:
        who, parameters = contestants(case)
        draw = pictures if case == FLOW else CASES[case][2]
        rng, found = np.random.default_rng(0), {head: [] for head in who}
        for i in range(args.calls + 30):
            for head in list(who) if i % 2 else list(who)[::-1]:
                found[head].append(timed(who[head], draw(rng), rng, CLOCKS[args.clock]))
        for head in who:
            ms = {stage: np.array([row[stage] for row in found[head][30:]]) for stage in found[head][0]}
            parts = {stage: dict(zip(("p50", "p99"), np.percentile(x, [50, 99]).tolist(), strict=True)) for stage, x in ms.items()}
            table.put({"case": case, "head": head, "calls": args.calls, "clock": args.clock, "ms": parts, "parameters": parameters})
            print("    " + ", ".join(f"{stage} {x['p50']:.2f} / {x['p99']:.2f} ms" for stage, x in parts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
