"""What a learner keeps of pictures: the directions in which they vary most, the same for a frame wherever it stands."""

import pytest
import torch

from realrl.policies.glance import Glance, directions
from realrl.types import RealrlError


def test_directions_are_the_principal_ones_and_of_unit_deviation():
    torch.manual_seed(0)
    x = torch.randn(50, 3) @ torch.randn(3, 12) + 1e-4 * torch.randn(50, 12)
    x -= x.mean(0)
    along = x @ directions(x, 5)
    assert torch.allclose(along[:, :3].T @ along[:, :3] / 50, torch.eye(3), atol=1e-3)
    assert not along[:, 3:].any(), "what hardly varies is noise, and is not raised"
    u = torch.linalg.svd(x, full_matrices=False)[0]
    assert torch.allclose((along[:, :3].T @ u[:, :3]).abs() / 50 ** 0.5, torch.eye(3), atol=1e-2)
    assert directions(x[:4], 8).shape == (12, 8), "fewer frames than directions"


def test_a_glance_is_fitted_once_and_says_the_same_of_a_frame_alone():
    torch.manual_seed(0)
    glance = Glance({"images.wrist": (32, 32, 3), "images.side": (32, 48, 3)}, 4)
    seen = {key: torch.randint(256, (20, *shape), dtype=torch.uint8) for key, shape in
            (("images.wrist", (32, 32, 3)), ("images.side", (32, 48, 3)))}
    glance.fit(seen)
    said = glance(seen)
    assert said.shape == (20, 8) == (20, glance.size)
    assert said.mean(0).abs().max() < 1e-3 and torch.allclose(said.std(0, unbiased=False), torch.ones(8), atol=1e-2)
    assert torch.allclose(glance({key: rows[3:4] for key, rows in seen.items()})[0], said[3], atol=1e-4)
    assert {*glance.state_dict()} == {"mean", "basis"}, "the network comes with its package"
    assert glance({key: torch.full_like(rows, 255) for key, rows in seen.items()}).abs().max() <= Glance.MOST
    with pytest.raises(RealrlError, match="'pointcloud': this policy looks at pictures or the state alone"):
        Glance({"pointcloud": (8, 3)}, 4)
