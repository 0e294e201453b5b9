"""One contestant of benchmarks/updates.py: `PYTHON benchmarks/lib/peers.py WHO METHOD THREADS`, in whichever environment has it.

WHO: realrl, realrl-eager, sbx or sb3; METHOD: sac, droq or crossq. It learns from random transitions of a walking robot's size, says
`{"ready": seconds until it has updated twice}`, and for every line with a number runs so many training calls and says how long they took.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

OBS, ACTION, BATCH, STORED = 46, 12, 256, 10_000
UPDATES = {"sac": 1, "droq": 20, "crossq": 1}  # critic updates of one training call; the actor's: one a call


def ours(method: str, compiled: bool) -> Callable[[], object]:
    """A training call of realrl: draw, and update."""
    from dataclasses import replace

    import numpy as np
    import torch

    from realrl.cell.products import large_products
    from realrl.learn.sac import CROSSQ, DROQ, SAC, SACConfig
    from realrl.memory import keep_freed_memory
    from realrl.policies.gaussian import GaussianConfig, GaussianPolicy
    keep_freed_memory()  # as a run does
    cfg = {"sac": SACConfig(norm="none"), "droq": DROQ, "crossq": replace(CROSSQ, batch=BATCH)}[method]
    torch.manual_seed(0)
    policy = GaussianPolicy(GaussianConfig(norm="renorm" if method == "crossq" else "none"), OBS, ACTION)
    learner = SAC(policy, cfg, seed=0, compiled=compiled)
    replay, noise = learner.replay(), np.random.default_rng(0)
    replay.begin({"state": noise.standard_normal(OBS)})
    for _ in range(STORED):
        replay.add(noise.uniform(-1, 1, ACTION), noise.standard_normal(), {"state": noise.standard_normal(OBS)})
    random = torch.Generator().manual_seed(0)

    def call() -> dict[str, float]:
        with large_products():  # as in a run
            return {k: float(v) for k, v in learner.update(replay.sample(BATCH, random, UPDATES[method])).items()}  # theirs wait, too

    return call


def theirs(who: str, method: str) -> Callable[[], object]:
    """A training call of sbx or stable-baselines3, with the same networks."""
    import gymnasium
    import numpy as np

    class Space(gymnasium.Env[Any, Any]):
        observation_space = gymnasium.spaces.Box(-9, 9, (OBS,))
        action_space = gymnasium.spaces.Box(-1, 1, (ACTION,))

        def reset(self, **_: Any) -> Any:
            return np.zeros(OBS, np.float32), {}

    def made(module: Any) -> Any:
        widths = {"pi": [256, 256], "qf": [256, 256]}
        if method == "crossq":
            return module.CrossQ("MlpPolicy", Space(), batch_size=BATCH, policy_delay=1, buffer_size=STORED,
                                 policy_kwargs={"net_arch": widths, "renorm_warmup_steps": 1000})
        extra = {"dropout_rate": 0.01, "layer_norm": True} if method == "droq" else {}
        delay = {"policy_delay": UPDATES[method]} if who == "sbx" else {}
        return module.SAC("MlpPolicy", Space(), batch_size=BATCH, buffer_size=STORED, policy_kwargs={"net_arch": widths, **extra}, **delay,
                          device="cpu")

    if who == "sbx":
        import sbx as module
    else:
        import stable_baselines3 as module
        import torch
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = made(module)
    model._setup_learn(1)
    noise = np.random.default_rng(0)
    for _ in range(STORED):
        state, after, action = noise.standard_normal(OBS), noise.standard_normal(OBS), noise.uniform(-1, 1, ACTION)
        model.replay_buffer.add(state, after, action, noise.standard_normal(1), np.zeros(1), [{}])
    return lambda: model.train(gradient_steps=UPDATES[method], batch_size=BATCH)


def main() -> None:
    """Serve."""
    from turns import pin, serve  # from beside this file, whatever the environment
    who, method, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    pin(threads)  # before JAX counts the cores
    began = time.monotonic()
    call = ours(method, who == "realrl") if who.startswith("realrl") else theirs(who, method)
    call()
    call()

    def run(count: int) -> None:
        for _ in range(count):
            call()

    serve(run, {"ready": time.monotonic() - began})


if __name__ == "__main__":
    main()
