"""One contestant of benchmarks/dream_speed.py: `PYTHON benchmarks/lib/dreamers.py DESCRIPTION`, in whichever environment has it.

DESCRIPTION is JSON: "who" ("realrl"; "peer", a checkout of github.com/NM512/dreamerv3-torch whose folder is "code"), "threads", "device",
and what both are told alike. It learns from random stretches of a walker's size. A unit is one update, the drawing of its batch included;
for a line with a number below 0 so many are done with a halt after every part, and it says how long each took.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

STATE, ACTION, EPISODES, STEPS = 24, 6, 10, 500
PARTS = ("draw", "model", "behaviour", "backward", "optimiser")
"""Of an update: its batch; the world model's losses; dreams and the losses of actor and critic; all gradients; what they do to weights."""


class Clock:
    """How long parts take, where somebody wants to know: then it waits for a GPU before and after each; on a core, what is computed."""

    def __init__(self, wait: Callable[[], None] | None) -> None:
        self._wait, self._now, self.on = wait or (lambda: None), time.perf_counter if wait else time.process_time, False
        self.spent = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """The time inside is that part's, and not that of the part around it."""
        if not self.on:
            yield
            return
        self._wait()
        began, inside = self._now(), sum(self.spent.values())
        yield
        self._wait()
        self.spent[name] += self._now() - began - (sum(self.spent.values()) - inside)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, as that part."""
        def call(*given: Any, **named: Any) -> Any:
            with self.part(name):
                return function(*given, **named)
        return call


def ours(told: Mapping[str, Any], clock: Clock) -> tuple[Callable[[], object], int]:
    """(an update of `algos/daydreamer.py`, parameters)."""
    import numpy as np
    import torch

    from realrl.algos.daydreamer import Dreamer
    from realrl.cell.products import large_products
    from realrl.learn.dreaming import DreamConfig
    from realrl.learn.replay import Replay
    from realrl.memory import keep_freed_memory
    from realrl.nets.rssm import RSSMConfig
    from realrl.policies.recurrent import RecurrentConfig, RecurrentPolicy
    torch.manual_seed(0)
    keep_freed_memory()  # as a run does
    size = RSSMConfig(deter=told["deter"], hidden=told["units"], stoch=told["stoch"], classes=told["classes"], units=told["units"],
                      layers=told["layers"])
    cfg = DreamConfig(batch=told["batch"], length=told["length"] - 1, last=told["length"], imagine=told["horizon"], remember=False,
                      through=told["through"])
    policy = RecurrentPolicy(RecurrentConfig(size), STATE, ACTION).to(told["device"])
    agent = Dreamer(policy, cfg, seed=0, bf16=told["half"], cuda_graph=told["graph"])
    replay, noise = Replay(device=told["device"]), np.random.default_rng(0)
    for _ in range(EPISODES):
        replay.begin({"state": noise.standard_normal(STATE)})
        for t in range(STEPS):
            replay.add(noise.uniform(-1, 1, ACTION), noise.uniform(), {"state": noise.standard_normal(STATE)}, truncated=t == STEPS - 1)
    random = torch.Generator(told["device"]).manual_seed(0)
    for name, part in (("_model", "model"), ("_imagine", "behaviour"), ("_behave", "behaviour"), ("_replayed", "behaviour")):
        setattr(agent, name, clock.timed(part, getattr(agent, name)))
    torch.autograd.grad = clock.timed("backward", torch.autograd.grad)
    for optimiser in (agent.optimiser, agent.practice):
        optimiser.step = clock.timed("optimiser", optimiser.step)

    def update() -> object:
        with clock.part("draw"):
            segment = replay.segments(cfg.batch, cfg.length, random)
        with large_products(policy.device):  # as in a run
            return agent.update(segment)
    return update, sum(p.numel() for p in agent._parts.parameters())


def theirs(told: Mapping[str, Any], clock: Clock) -> tuple[Callable[[], object], int]:
    """(an update of the checkout as its dreamer.py does it, parameters), with its own settings for control from numbers but for sizes."""
    import numpy as np
    import yaml
    code = Path(told["code"]).resolve()
    sys.path.insert(0, str(code))
    import models
    import networks
    import tools
    import torch
    tools.set_seed_everywhere(0)
    made = networks.MLP.__init__
    made.__defaults__ = tuple(told["device"] if x == "cuda" else x for x in made.__defaults__)  # its encoder is on a GPU or nowhere
    said = numbers(yaml.safe_load((code / "configs.yaml").read_text(encoding="utf-8")))
    cfg = said["defaults"]
    for key, value in said["dmc_proprio"].items():
        cfg[key] = {**cfg[key], **value} if isinstance(value, dict) else value
    wide = {"mlp_layers": told["layers"], "mlp_units": told["units"]}
    cfg |= {"device": told["device"], "num_actions": ACTION, "dyn_deter": told["deter"], "dyn_hidden": told["units"],
            "dyn_stoch": told["stoch"], "dyn_discrete": told["classes"], "units": told["units"], "imag_horizon": told["horizon"],
            "precision": 16 if told["half"] else 32, "imag_gradient": "dynamics" if told["through"] else "reinforce",
            "encoder": {**cfg["encoder"], **wide, "mlp_keys": "state"}, "decoder": {**cfg["decoder"], **wide, "mlp_keys": "state"}}
    for name in ("actor", "critic", "reward_head", "cont_head"):
        cfg[name] = {**cfg[name], "layers": told["layers"]}
    config = SimpleNamespace(**cfg)
    space = SimpleNamespace(spaces={"state": np.zeros(STATE), "image": np.zeros((1, 1, 1))})  # it wants a picture, looked at or not
    model = models.WorldModel(space, None, 0, config).to(told["device"])
    behaviour = models.ImagBehavior(config, model).to(told["device"])
    model.requires_grad_(False)
    behaviour.requires_grad_(False)
    noise = np.random.default_rng(0)
    episodes = {str(i): {"state": noise.standard_normal((STEPS, STATE), np.float32), "image": np.zeros((STEPS, 1, 1, 1), np.uint8),
                         "action": noise.uniform(-1, 1, (STEPS, ACTION)).astype(np.float32), "discount": np.ones(STEPS, np.float32),
                         "reward": noise.uniform(size=STEPS).astype(np.float32), "is_first": np.arange(STEPS) == 0,
                         "is_terminal": np.zeros(STEPS, bool)} for i in range(EPISODES)}
    drawn = tools.from_generator(tools.sample_episodes(episodes, told["length"]), told["batch"])
    torch.Tensor.backward = clock.timed("backward", torch.Tensor.backward)
    model._train, behaviour._train = clock.timed("model", model._train), clock.timed("behaviour", behaviour._train)
    tools.Optimizer.__call__ = clock.timed("optimiser", tools.Optimizer.__call__)

    def worth(feature: Any, state: Any, action: Any) -> Any:
        return model.heads["reward"](model.dynamics.get_feat(state)).mode()

    def update() -> object:
        with clock.part("draw"):
            data = next(drawn)
        start, _, metrics = model._train(data)
        metrics.update(behaviour._train(start, worth)[-1])
        return metrics
    return update, sum(p.numel() for p in (*model.parameters(), *behaviour.actor.parameters(), *behaviour.value.parameters()))


def numbers(value: Any) -> Any:
    """Numbers such as 3e-4, which this YAML takes for words, made numbers."""
    if isinstance(value, dict):
        return {k: numbers(v) for k, v in value.items()}
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def main() -> None:
    """Serve."""
    from turns import pin, serve  # from beside this file, whatever the environment
    told = json.loads(sys.argv[1])
    pin(told["threads"])
    import torch
    torch.set_num_threads(told["threads"])
    wait = torch.cuda.synchronize if told["device"] == "cuda" else None
    clock = Clock(wait)
    began = time.monotonic()
    update, parameters = (ours if told["who"] == "realrl" else theirs)(told, clock)
    for _ in range(5):  # the GPU's kernels are recorded within
        update()
    if wait:
        wait()

    def run(count: int) -> dict[str, Any]:
        clock.on, clock.spent = count < 0, dict.fromkeys(PARTS, 0.0)
        for _ in range(abs(count)):
            update()
        if wait:
            wait()
        return {"parts": {k: 1e3 * v / abs(count) for k, v in clock.spent.items()}} if count < 0 else {}

    serve(run, {"ready": time.monotonic() - began, "parameters": parameters, "torch": torch.__version__})


if __name__ == "__main__":
    main()
