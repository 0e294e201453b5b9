"""Symlog and two-hot codes against hand-computed numbers."""

import pytest
import torch
from torch import tensor

from realrl.nets import twohot


def test_symlog_and_back():
    x = tensor([-1000.0, -1.0, 0.0, 0.5, 20.0])
    assert torch.allclose(twohot.symlog(x), tensor([-6.9088, -0.6931, 0.0, 0.4055, 3.0445]), atol=1e-4)
    assert torch.allclose(twohot.symexp(twohot.symlog(x)), x, rtol=1e-5)


def test_a_two_hot_code_begins_at_nothing_exactly():
    bins = twohot.symexp_bins(255)
    assert len(bins) == 255 and bins[127] == 0 and torch.equal(bins, -bins.flip(0)) and float(bins[-1]) == pytest.approx(485165194.4)
    assert torch.equal(twohot.twohot_mean(torch.zeros(3, 255), bins), torch.zeros(3)), "not a rounding error times half a billion"
    with pytest.raises(ValueError, match="4 bins have no middle"):
        twohot.symexp_bins(4)


def test_two_hot_by_hand():
    bins = tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    logits = tensor([0.1, -0.3, 0.7, 0.2, 0.0])
    logp = logits.log_softmax(0)
    found = twohot.twohot_loss(logits.expand(4, 5), bins, tensor([0.25, -1.0, 7.0, -9.0]))
    want = tensor([-(0.75 * logp[2] + 0.25 * logp[3]), -logp[1], -logp[4], -logp[0]])
    assert torch.allclose(found, want), "between two bins, on one, and beyond the last"
    both = twohot.twohot_loss(logits.expand(4, 5), bins, tensor([0.25, -1.0, 7.0, -9.0]), tensor([0.0, 0.0, 0.0, 0.0]))
    assert torch.allclose(both, want - logp[2]), "of two targets the sum"
    assert torch.allclose(twohot.twohot_mean(logits, bins), (logits.softmax(0) * bins).sum())
