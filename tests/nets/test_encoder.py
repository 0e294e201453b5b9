"""Latents from senses: what goes in, what is regularised, and that the parts learn."""

import pytest
import torch

from realrl.nets.encoder import Encoder, EncoderConfig
from realrl.types import RealrlError

SMALL = EncoderConfig(size=16, hidden=(16, 16), latent=8, shift=1)
SENSES = {"pointcloud": (20, 3), "images.top": (24, 24, 3), "depth.top": (24, 24)}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def frames(count=6, seed=0):
    g = generator(seed)
    return torch.randn(count, 5, generator=g), {
        "pointcloud": torch.rand(count, 20, 3, generator=g),
        "images.top": torch.randint(0, 256, (count, 24, 24, 3), generator=g, dtype=torch.uint8),
        "depth.top": torch.randint(1, 2000, (count, 24, 24), generator=g, dtype=torch.int32).to(torch.uint16)}


def make(senses=SENSES, **changes):
    torch.manual_seed(0)
    return Encoder(EncoderConfig(**{**vars(SMALL), **changes}), 5, senses)


def test_every_sense_reaches_the_latent():
    encoder, (state, seen) = make().eval(), frames()
    z = encoder(state, seen)
    assert z.shape == (6, 8) and torch.equal(z, encoder(state, seen)), "at rest it is a function"
    other_state, other_seen = frames(seed=1)
    assert not torch.allclose(z, encoder(other_state, seen))
    for key in SENSES:
        assert not torch.allclose(z, encoder(state, {**seen, key: other_seen[key]})), key


def test_the_regularisers_are_the_papers():
    encoder, (state, seen) = make(jitter=0.0, dropout=0.0, shift=0, kl=0.3, recon=0.5), frames()
    z, losses = encoder.embed(state, seen, generator())
    mean = encoder(state, seen)
    log_std = encoder.log_std(encoder._features(state, seen)).clamp(-6, 2)
    noise = torch.randn(mean.shape, generator=generator())
    assert torch.allclose(z, mean + log_std.exp() * noise, atol=1e-6)
    peer = torch.distributions.kl_divergence(torch.distributions.Normal(mean, log_std.exp()), torch.distributions.Normal(0.0, 1.0))
    assert losses["kl"].item() == pytest.approx(0.3 * peer.sum(1).mean().item(), rel=1e-5)
    assert set(losses) == {"kl", "recon"} and losses["recon"] > 0
    same, loss = encoder.regularise(state, seen, generator())
    assert torch.equal(same, mean), "RL sees the mean"
    assert loss.item() == pytest.approx(0.1 * sum(v.item() for v in losses.values()), rel=1e-5)


def test_they_can_be_left_out():
    encoder, (state, seen) = make(kl=0.0, recon=0.0, jitter=0.0, dropout=0.0, shift=0), frames()
    z, losses = encoder.embed(state, seen, generator())
    assert not losses and torch.equal(z, encoder(state, seen)) and not len(encoder.decoders)
    assert encoder.regularise(state, seen, generator())[1] == 0


def test_what_was_seen_can_be_rebuilt_from_the_latent():
    encoder, (state, seen) = make({"pointcloud": (20, 3)}, kl=0.0, jitter=0.0, dropout=0.0), frames(4)
    encoder.fit(seen)
    optimiser, losses = torch.optim.AdamW(encoder.parameters(), lr=3e-3), []
    for _ in range(150):
        loss = encoder.embed(state, seen, generator())[1]["recon"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10


def test_augmentation_is_for_training_alone():
    encoder, (state, seen) = make(kl=0.0, jitter=0.05, dropout=0.5), frames()
    looked = encoder.embed(state, seen, generator())[0]
    assert not torch.allclose(looked, encoder(state, seen))
    assert torch.equal(looked, encoder.embed(state, seen, generator())[0]), "and its noise is the generator's"


def test_pictures_are_cropped_anywhere_in_training_and_in_the_middle_when_acting():
    encoder, (state, seen) = make({"images.top": (24, 24, 3), "depth.top": (24, 24)}, crop=4, shift=0, kl=0.0, recon=0.0), frames()
    z = encoder(state, seen)
    edge = {key: x.clone() for key, x in seen.items()}
    edge["images.top"][:, :2] = 0  # two of the four rows that go are above the window
    assert torch.equal(z, encoder(state, edge))
    assert not torch.allclose(z, encoder.embed(state, seen, generator())[0]), "the window is elsewhere"


def test_colours_are_jittered_in_training_alone():
    encoder, (state, seen) = make({"images.top": (24, 24, 3)}, colour=0.5, shift=0, kl=0.0, recon=0.0), frames()
    assert not torch.allclose(encoder(state, seen), encoder.embed(state, seen, generator())[0])


def test_an_unknown_sense_is_named():
    with pytest.raises(RealrlError, match=r"'sound' is neither pointcloud, images"):
        make({"sound": (3,)})


def test_a_history_is_augmented_as_one():
    """Equal frames of a history stay equal, those of other decisions move otherwise; depths, which torch hardly indexes, as well."""
    encoder = make({k: v for k, v in SENSES.items() if k != "pointcloud"}, shift=4, crop=4, colour=0.5)
    one = {k: v for k, v in frames(5)[1].items() if k != "pointcloud"}
    twice = {k: v.view(torch.int16).repeat_interleave(2, 0).view(torch.uint16) if v.dtype == torch.uint16 else v.repeat_interleave(2, 0)
             for k, v in one.items()}
    together, apart = (encoder._augment(twice, generator(), stack) for stack in (2, 1))
    for key in one:
        pair = together[key].to(torch.int32).unflatten(0, (5, 2))
        assert pair.shape[2:4] == (20, 20) and torch.equal(pair[:, 0], pair[:, 1])
        alone = apart[key].to(torch.int32).unflatten(0, (5, 2))
        assert not torch.equal(alone[:, 0], alone[:, 1])


@pytest.mark.parametrize(("wrong", "words"), [
    ({"shift": -1}, "encoder.shift must be .* at least 0"), ({"hidden": ()}, "at least one layer"), ({"latent": 0}, "at least 1"),
    ({"recon": -1.0}, "encoder.recon"), ({"dropout": 1.0}, "below 1"), ({"jitter": float("nan")}, "encoder.jitter must be .* got nan")])
def test_settings_that_cannot_be(wrong, words):
    with pytest.raises(RealrlError, match=words):
        EncoderConfig(**wrong)
