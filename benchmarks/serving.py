"""From an observation to a guarded action at batch 1 on one thread: eager and exported, one step and ten, alone and behind a server.

    python -m benchmarks.serving --lerobot LEROBOT_ENVIRONMENT/bin/python
    python -m benchmarks.serving --cases skip cloud --calls 200

A row a case and contestant. Ours: the policy in PyTorch with its 10-step head and with its one-step head, the same one-step head as an
ONNX graph, and that graph behind `realrl serve` on this machine, asked by our client. With --lerobot LeRobot's ACT as it comes, and its
diffusion policy with 10 DDIM steps and a U-Net as narrow as ours; what they see is the same, and no guard is counted against them.
Everybody takes turns within the same run, all on one thread, after a few decisions that are not counted: the first of them, which finds
nothing in the processor's caches, is in a column of its own ("cold", as in a loop that does much between decisions). Python's collector of
garbage looks at nothing that was there before, as in the control loop. Times are wall time, and beside them processor time, which does not
count that something else had the core. Weights are random: their values do not matter here. Writes benchmarks/results/serving.jsonl.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch

from benchmarks.lib.common import RESULTS, Table
from realrl.nets.encoder import EncoderConfig
from realrl.policies.diffusion import DiffusionPolicy, PolicyConfig
from realrl.policies.exported import ExportedPolicy, sense_type
from realrl.robots.guard import LimitGuard
from realrl.serve.client import RemotePolicy
from realrl.serve.export import TOLERANCE, compare, to_onnx
from realrl.serve.server import ServeConfig, Server
from realrl.serve.session import Served
from realrl.types import Obs, Policy

PEER = Path(__file__).parent / "lib" / "lerobot_latency.py"
PAIR = {"images.front": (96, 96, 3), "images.wrist": (96, 96, 3)}
CASES: dict[str, tuple[str, PolicyConfig, int, dict[str, tuple[int, ...]], float | None]] = {
    "skip": ("skip-net, chunk 4", PolicyConfig(), 39, {}, 0.3),
    "unet": ("U-Net, chunk 16", PolicyConfig(chunk=16, net="unet", hidden=64), 39, {}, 4.0),
    "cloud": ("1024 points, skip-net", PolicyConfig(), 8, {"pointcloud": (1024, 3)}, 8.0),
    "cameras": ("2 x 96 px, cnn, skip-net", PolicyConfig(), 8, PAIR, 15.0),
    "cameras-resnet": ("2 x 96 px, resnet18, skip-net", PolicyConfig(encoder=EncoderConfig(image="resnet18")), 8, PAIR, None)}
"""Name -> (in words, policy, numbers of its state, senses, target for the p99 of the exported one step in ms)."""
ACTION, WARM = 4, 3
PEERS = {"unet": ("act", "diffusion"), "cameras-resnet": ("act", "diffusion")}  # LeRobot has neither clouds nor small picture networks
Call = Callable[[int], list[list[float]]]
"""So many decisions: [wall ms, processor ms] of each."""


def look(policy: DiffusionPolicy, rng: np.random.Generator) -> Obs:
    """An observation, each entry [1, H, ...]."""
    seen: Obs = {"state": rng.standard_normal((1, policy.n_obs, policy.obs_dim), dtype=np.float32)}
    for key, shape in policy.senses.items():
        size = (1, policy.n_obs, *shape)
        whole = sense_type(key).kind == "u"
        seen[key] = rng.integers(0, 256, size).astype(sense_type(key)) if whole else rng.normal(0, 0.2, size).astype(np.float32)
    return seen


def caller(policy: Policy, seen: list[Obs]) -> Call:
    """Decisions of one of ours, its guard's work included."""
    guard, rng, state = LimitGuard(-np.ones(ACTION), np.ones(ACTION), max_delta=0.2), [np.random.default_rng(0)], policy.start(1)

    def call(count: int) -> list[list[float]]:
        found = []
        for i in range(count):
            obs = seen[i % len(seen)]
            wall, cpu = time.perf_counter(), time.thread_time()
            plan, _ = policy.act(obs, state, greedy=True, rng=rng)
            guard(obs, plan.action[0, 0])
            found.append([(time.perf_counter() - wall) * 1e3, (time.thread_time() - cpu) * 1e3])
        return found

    return call


def peer(python: str, who: str, case: str) -> tuple[Call, int]:
    """(decisions of LeRobot's in its own environment, how many parameters it has)."""
    _, cfg, obs_dim, senses, _ = CASES[case]
    told = json.dumps({"who": who, "state": obs_dim, "action": ACTION, "width": cfg.hidden if cfg.net == "unet" else 64,
                       "cameras": {key: shape for key, shape in senses.items()}})
    child = subprocess.Popen([python, str(PEER), told], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None and child.stdout is not None
    parameters = json.loads(child.stdout.readline() or "null")
    if parameters is None:
        raise SystemExit(f"{python}: LeRobot's {who} does not start, see above")

    def call(count: int) -> list[list[float]]:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(f"{count}\n")
        child.stdin.flush()
        found: list[list[float]] = json.loads(child.stdout.readline())
        return found

    return call, parameters


@contextmanager
def served(policy: ExportedPolicy) -> Iterator[RemotePolicy]:
    """The policy behind a server in a thread of this process, as our client sees it: its processor time is the client's alone."""
    started, found, stop = threading.Event(), [], asyncio.Event()
    loop, server = asyncio.new_event_loop(), Server(Served(policy, "", None, {}, ""), ServeConfig(port=0))

    def ready(port: int) -> None:
        found.append(port)
        started.set()

    thread = threading.Thread(target=lambda: loop.run_until_complete(server.run(ready, stop)), daemon=True)
    thread.start()
    started.wait()
    remote = RemotePolicy(f"ws://127.0.0.1:{found[0]}", timeout=60)
    try:
        yield remote
    finally:
        remote.close()
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def measure(calls: dict[str, Call], count: int, rounds: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """([count, 2] milliseconds, wall and processor, of each contestant's decisions, [rounds, 2] of the first of each of its turns); they
    take turns, beginning with another one every round."""
    names = list(calls)
    times: dict[str, list[list[float]]] = {name: [] for name in names}
    cold: dict[str, list[list[float]]] = {name: [] for name in names}
    for name in names:
        calls[name](min(5, count))  # what is made when it is used first
    gc.collect()
    gc.freeze()
    for i in range(rounds):
        for name in names[i % len(names):] + names[:i % len(names)]:
            slow = name.startswith("10 steps") or "LeRobot" in name
            cold[name].append(calls[name](WARM)[0])
            times[name] += calls[name](max(1, count // rounds // (10 if slow else 1)))
    gc.unfreeze()
    return {name: np.array(x) for name, x in times.items()}, {name: np.array(x) for name, x in cold.items()}


def contestants(case: str, lerobot: str | None, stack: ExitStack) -> tuple[dict[str, Call], dict[str, int], float]:
    """(name -> decisions, name -> parameters, the largest difference between the eager and the exported one step)."""
    _, cfg, obs_dim, senses, _ = CASES[case]
    torch.manual_seed(0)
    policy = DiffusionPolicy(cfg, obs_dim, ACTION, senses=senses).eval().requires_grad_(False)
    policy.distilled = True
    rng = np.random.default_rng(0)
    seen = [look(policy, rng) for _ in range(20)]
    one_step = policy.with_head("one-step")
    exported = ExportedPolicy(*to_onnx(one_step), case)
    gap = compare(one_step, exported, seen)
    size = sum(p.numel() for p in [*policy.student.parameters(), *(policy.encoder.parameters() if policy.encoder else ())])
    calls = {"10 steps, eager": caller(policy.with_head("ddim"), seen), "one step, eager": caller(one_step, seen),
             "one step, exported": caller(exported, seen), "one step, served": caller(stack.enter_context(served(exported)), seen)}
    sizes = dict.fromkeys(calls, size)
    for who in PEERS.get(case, ()) if lerobot else ():
        name = {"act": "LeRobot's ACT", "diffusion": "LeRobot's diffusion, 10 steps"}[who]
        calls[name], sizes[name] = peer(str(lerobot), who, case)
    return calls, sizes, gap


def main(words: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--calls", type=int, default=2000, help="timed decisions of each; a tenth of the slow ones")
    parser.add_argument("--rounds", type=int, default=20, help="turns that everybody takes")
    parser.add_argument("--lerobot", metavar="PYTHON", help="Python of an environment with LeRobot")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    table = Table(RESULTS / "serving.jsonl", ("case", "method"))
    for case in args.cases:
        what, *_, target = CASES[case]
        with ExitStack() as stack:
            calls, sizes, gap = contestants(case, args.lerobot, stack)
            if not gap <= TOLERANCE:
                print(f"{case}: the graph differs by {gap:.2g} from its policy, so a comparison would mean nothing", file=sys.stderr)
                return 1
            times, cold = measure(calls, args.calls, args.rounds)
            for name, ms in times.items():
                (p50, p99), (cpu50, cpu99) = (np.percentile(ms[:, i], [50, 99]).tolist() for i in (0, 1))
                table.put({"case": case, "what": what, "method": name, "parameters": sizes[name], "calls": len(ms), "p50_ms": p50,
                           "p99_ms": p99, "cpu_p50_ms": cpu50, "cpu_p99_ms": cpu99, "cold_ms": float(np.median(cold[name][:, 0])),
                           "largest_difference": gap,
                           "target_p99_ms": target if name == "one step, exported" else None})
                print(f"    p50 {p50:.3f} ms, p99 {p99:.3f} ms; of the processor {cpu50:.3f}, {cpu99:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
