"""A dreamer's optimiser by hand, and the states that it remembers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from realrl.learn.dreaming import Books, LaProp, Memory
from realrl.learn.replay import Replay
from realrl.nets.rssm import Latent, RSSMConfig

SIZE = RSSMConfig(deter=16, stoch=4, classes=4)


def test_states_are_remembered_by_the_number_of_their_observation() -> None:
    memory, replay = Memory(SIZE, torch.device("cpu")), Replay()
    for first in (0, 21, 42):  # what is read is an observation's number
        replay.begin({"state": np.array([first], np.float32)})
        for t in range(20):
            replay.add(np.zeros(1, np.float32), 0.0, {"state": np.array([first + 1 + t], np.float32)}, truncated=t == 19)
    s = replay.segments(8, 8, torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(0)
    deter = torch.rand(9, 8, 16, generator=g).half().float()
    stoch = torch.nn.functional.one_hot(torch.randint(4, (9, 8, 4), generator=g), 4).flatten(-2).float()
    alone = torch.tensor([[int((s.frame == f).sum()) == 1 for f in row] for row in s.frame])  # where stretches overlap any may stand
    memory.put(s, Latent(deter, stoch))

    def asked(memory: Memory, frame: torch.Tensor, frames: int = s.frames) -> tuple[Latent, torch.Tensor]:
        return memory.get(replace(s, frame=frame[None], frames=frames, obs={"state": frame[None, :, None].float()}))
    found, known = asked(memory, s.frame[alone])
    assert bool(known.all()) and torch.equal(found.deter, deter[alone]) and torch.equal(found.stoch, stoch[alone])
    again = Memory(SIZE, torch.device("cpu"))
    again.load_state_dict(memory.state_dict())
    assert torch.equal(asked(again, s.frame[alone])[0].deter, deter[alone])
    assert bool(memory.get(s)[1].all())
    assert not bool(memory.get(replace(s, frame=s.frame + 1, frames=s.frames + 1))[1].any()), "a step more long ago: other numbers"
    again.load_state_dict({name: x for name, x in memory.state_dict().items() if name != "seen"})
    assert not bool(asked(again, s.frame[alone][s.frame[alone] > 0])[1].any()), "a checkpoint that does not say of what its states are"
    blind = Memory(SIZE, torch.device("cpu"))
    blind.put(replace(s, valid=torch.zeros_like(s.valid)), Latent(deter, stoch))
    assert int(blind.known.sum()) == len(s.frame[0].unique()), "of what was never there nothing is kept"
    with torch.autocast("cpu", torch.bfloat16):
        assert not bool(asked(memory, torch.tensor([5000]), 5001)[1].any()), "nothing is known there yet"
    assert torch.equal(asked(memory, s.frame[alone])[0].deter, deter[alone])


def test_the_optimiser_by_hand() -> None:
    weight = torch.tensor([3.0, 4.0])
    optimiser = LaProp([weight], lr=0.1, warmup=0, clip=0.3)
    optimiser.step([torch.tensor([0.6, -0.8])], 0)
    assert torch.allclose(weight, torch.tensor([2.9, 4.1]), atol=1e-5), "the first step has the gradient's sign alone"
    optimiser.step([None], 1)
    norm = float(torch.tensor([2.9, 4.1]).norm())
    optimiser.step([torch.tensor([1e6, 0.0])], 2)
    assert float(optimiser.square[0][0]) < 0.001 * ((0.3 * norm * 1.1) ** 2 + 0.6 ** 2 * 1.1), "a gradient's length: 0.3 of its tensor's"


def test_who_is_slower_lets_updates_go() -> None:
    books = Books(24.0, 24, 40)  # an update a step
    books.see([0.0] * 41)
    assert books.owed(0) == 1
    books.see([0.0] * 200)
    books.tick(0)
    assert 40 <= books.owed(0) <= 42
    assert books.ratio(10) == pytest.approx(10 * 24 / 201)
    assert books.most == 2 and Books(96.0, 24, 40).most == 5, "more than one update a step, where that is asked"
    again = Books(24.0, 24, 40)
    again.load_state_dict(books.state_dict())
    again.see([0.0] * 241)
    assert again.owed(10) == books.owed(10)
    assert "made 10 of the 201 updates that --ratio asks for" in books.remarks(10, acted=1, alone=0)["daydreamer: pace"]
    prompt = Books(24.0, 24, 40)
    prompt.see([0.0] * 45)
    prompt.tick(0)
    assert not prompt.remarks(5, acted=1, alone=0) and [*prompt.remarks(5, acted=0, alone=9)] == ["daydreamer"]
