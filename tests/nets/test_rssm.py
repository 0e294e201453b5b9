"""The recurrent state-space model: what it forgets, what it draws, where gradients go, and what cameras need."""

from __future__ import annotations

import pytest
import torch

from realrl.config import OutOfBounds
from realrl.nets.rssm import RSSM, Encoder, Latent, Painter, RSSMConfig, drawn

SMALL = RSSMConfig(deter=16, stoch=3, classes=4, hidden=12, units=12, depth=2)
BLOCKS = RSSMConfig(deter=16, stoch=3, classes=4, hidden=12, units=12, blocks=4, prior_layers=2)


def make(cfg: RSSMConfig = SMALL) -> RSSM:
    torch.manual_seed(0)
    return RSSM(cfg, 5, 2)


def world(length: int = 6, batch: int = 3, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(embed, action, first, noise)."""
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(length, batch, 5, generator=g), torch.rand(length, batch, 2, generator=g) * 2 - 1,
            torch.zeros(length, batch, dtype=torch.bool), -torch.rand(length, batch, 3, 4, generator=g).log())


@pytest.mark.parametrize("cfg", [SMALL, BLOCKS])
def test_a_beginning_hides_the_past(cfg: RSSMConfig) -> None:
    rssm, (embed, action, first, noise) = make(cfg), world()
    first[3, 1] = True
    plain, _ = rssm.observe(embed, action, first, noise)
    embed[:3, 1], action[:4, 1] = 9.0, -1.0
    other, _ = rssm.observe(embed, action, first, noise)
    for before, after in zip(plain, other, strict=True):
        assert torch.equal(before[3:, 1], after[3:, 1]), "what was seen, and the action that led to the beginning"
        assert torch.equal(before[:, [0, 2]], after[:, [0, 2]]), "the others do not notice"
    assert not torch.equal(plain.deter[2, 1], other.deter[2, 1])


def test_it_goes_on_from_a_state_that_is_remembered() -> None:
    rssm, (embed, action, first, noise) = make(), world()
    whole, _ = rssm.observe(embed, action, first, noise)
    known = Latent(whole.deter[2], whole.stoch[2])
    asked = torch.tensor([True, False, True])
    part, _ = rssm.observe(embed[2:], action[2:], first[2:], noise[2:], (known, asked))
    assert torch.allclose(part.deter[:, asked], whole.deter[2:, asked], atol=1e-6)
    assert not torch.allclose(part.deter[:, 1], whole.deter[2:, 1], atol=1e-3), "that column began with nothing"


def test_acting_step_by_step_is_what_was_learned() -> None:
    rssm, (embed, action, first, noise) = make(), world()
    whole, chances = rssm.observe(embed, action, first, noise)
    state = rssm.start(3)
    for t in range(len(embed)):
        deter = rssm.step(state, rssm.act(action[t]))
        probs = rssm.posterior(deter, rssm.post_embed(embed[t]))
        state = Latent(deter, drawn(probs, noise[t]))
        assert torch.allclose(deter, whole.deter[t], atol=1e-6) and torch.allclose(probs, chances[t], atol=1e-6)


def test_nothing_is_ever_sure() -> None:
    probs = make().chances(torch.tensor([[1000.0, 0, 0, 0, 0, 1000.0, 0, 0, 0, 0, 0, 0]]))
    assert torch.allclose(probs.sum(-1), torch.ones(1, 3)) and float(probs.min()) == pytest.approx(0.01 / 4)
    assert float(probs[0, 0, 0]) == pytest.approx(0.99 + 0.01 / 4)


def test_draws_have_their_chances_and_let_gradients_through() -> None:
    probs = torch.tensor([[0.1, 0.2, 0.7]]).expand(20000, 1, 3).clone().requires_grad_()
    noise = -torch.rand(20000, 1, 3, generator=torch.Generator().manual_seed(0)).log()
    hard = drawn(probs, noise)
    assert set(hard.detach().round(decimals=5).unique().tolist()) == {0.0, 1.0} and torch.allclose(hard.sum(-1), torch.ones(20000))
    assert torch.allclose(hard.detach().mean(0), torch.tensor([0.1, 0.2, 0.7]), atol=0.01)
    hard[:, 1].sum().backward()
    assert probs.grad is not None and torch.equal(probs.grad[0, 0], torch.tensor([0.0, 1.0, 0.0]))


def test_large_actions_are_as_if_at_the_edge() -> None:
    rssm = make()
    assert torch.allclose(rssm.act(torch.tensor([[3.0, -0.5]])), rssm.act(torch.tensor([[1.0, -0.5]])))


def test_what_is_seen_and_painted() -> None:
    torch.manual_seed(0)
    encoder, painter = Encoder(SMALL, 4, {"images.top": (32, 48, 3)}), Painter(SMALL, (32, 48, 3))
    picture = torch.randint(0, 256, (5, 2, 32, 48, 3), dtype=torch.uint8)
    one = encoder({"state": torch.ones(5, 2, 4), "images.top": picture})
    assert one.shape == (5, 2, encoder.size) == (5, 2, 12 + 16 * 2 * 3)
    row = encoder({"state": torch.ones(2, 4), "images.top": picture[3]})
    assert torch.allclose(one[3], row, atol=1e-5), "a stretch or a step"
    assert painter(torch.zeros(5, 2, SMALL.feature)).shape == picture.shape


def test_blocks_must_fit() -> None:
    with pytest.raises(OutOfBounds, match="blocks must divide deter = 10, got 4"):
        RSSMConfig(deter=10, blocks=4)
