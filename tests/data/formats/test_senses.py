"""What is a picture, a distance, a cloud: by shape and name; and what becomes of their rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from realrl.data.formats import senses
from realrl.types import RealrlError

F, U, S = np.dtype(np.float32), np.dtype(np.uint8), np.dtype(np.uint16)


@pytest.mark.parametrize(("name", "shape", "dtype", "kind"), [
    ("img", (5, 48, 64, 3), U, "images"), ("img", (5, 3, 48, 64), U, "images"), ("img", (5, 3, 48, 64), F, "images"),
    ("rgba", (5, 48, 64, 4), U, "images"), ("depth", (5, 48, 64, 3), U, "images"), ("pose", (5, 4, 4), F, ""),
    ("poses", (5, 3, 4, 4), F, ""),
    ("depth", (5, 48, 64), F, "depth"), ("cam_depth", (5, 48, 64, 1), S, "depth"), ("depth.cam", (5, 1, 48, 64), S, "depth"),
    ("indepth", (5, 48, 64), F, ""), ("map", (5, 48, 64), F, ""), ("depth", (5, 1), F, ""),
    ("xyz", (5, 16, 16, 3), F, ""), ("cam", (5, 16, 16, 3), F, "images"),
    ("scan", (5, 64, 3), F, "pointcloud"), ("point_cloud", (5, 4, 6), F, "pointcloud"), ("pcd", (5, 3, 512), F, "pointcloud"),
    ("gray", (5, 48, 64), U, "images"), ("cam_left", (5, 1, 48, 64), U, "images"), ("ir", (5, 48, 64, 1), U, "images"),
    ("touch", (5, 16, 16), U, ""), ("cam_seg", (5, 48, 64), np.dtype(np.int32), "masks"), ("mask", (5, 48, 64, 1), U, "masks"),
    ("keypoints", (5, 9, 3), F, ""), ("scan", (5, 64, 4), F, ""), ("scan", (5, 64, 3), U, ""),
    ("state", (5, 64), F, ""), ("x", (5,), F, "")])
def test_kinds(name: str, shape: tuple[int, ...], dtype: np.dtype[np.float32], kind: str) -> None:
    assert senses.kind(name, shape, dtype) == kind


def test_names() -> None:
    cloud, picture, depth = ((5, 64, 3), F), ((5, 16, 16, 3), U), ((5, 16, 16), S)
    found = {"scan": cloud, "top_image": picture, "images.left": picture, "top_depth": depth, "depth.left": depth, "state": ((5, 3), F)}
    assert senses.names(found, Path("x"), "_image") == {
        "scan": "pointcloud", "top_image": "images.top", "images.left": "images.left", "top_depth": "depth.top", "depth.left": "depth.left",
        "state": "state"}
    assert senses.names({"seg": ((5, 16, 16), S), "masks.a": ((5, 16, 16), U)}, Path("x")) == {"seg": "masks.seg", "masks.a": "masks.a"}
    two = {"point_cloud": cloud, "wrist_cloud": cloud}
    assert list(senses.names(two, Path("x")).values()) == ["pointcloud", "pointcloud.wrist_cloud"]
    with pytest.raises(RealrlError, match=r"top_image and images.top would both be called images.top; write the set without"):
        senses.names({"top_image": picture, "images.top": picture}, Path("x"), "_image")


def test_rows() -> None:
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (2, 4, 10, 12), dtype=np.uint8)
    np.testing.assert_array_equal(senses.converted(rgba, "images.x", "x"), np.moveaxis(rgba, 1, 3)[..., :3])
    np.testing.assert_array_equal(senses.converted(rgba[:, :3] / np.float32(255), "images.x", "x"), np.moveaxis(rgba, 1, 3)[..., :3])
    metres = np.full((2, 10, 12, 1), 1.5, np.float32)
    for rows in (metres, metres * 1000, (metres * 1000).astype(np.uint16)[..., 0], (metres * 1000).astype(np.int32)):
        found = senses.converted(rows, "depth.x", "x")
        assert found.dtype == np.uint16 and found.shape == (2, 10, 12) and (found == 1500).all()
    for bad in (metres * np.nan, np.zeros((2, 10, 12), np.uint8)):
        with pytest.raises(RealrlError, match="write the set without it"):
            senses.converted(bad, "depth.x", "x")
    points = rng.uniform(0, 1, (2, 20, 6))
    far = np.concatenate([points[..., :3], 255 * points[..., 3:]], -1)
    for rows in (points, far, np.swapaxes(far, 1, 2)):
        np.testing.assert_allclose(senses.converted(rows, "pointcloud", "x"), points, atol=1e-6)
    assert senses.converted(np.arange(3), "x", "x").shape == (3, 1)
    grey = rgba[:, :1]
    np.testing.assert_array_equal(senses.converted(grey, "images.x", "x"), np.moveaxis(grey, 1, 3).repeat(3, 3))
    np.testing.assert_array_equal(senses.converted(grey.astype(np.int32), "masks.x", "x"), grey[:, 0])


def test_units_of_distances_and_colours_of_clouds_are_those_of_the_set() -> None:
    """Millimetres with nothing in view for the most part, behind them a wall; a cloud that is all but black."""
    levels, far = senses.Levels(), np.zeros((2, 9, 9), np.float32)
    far[:, :3] = 1500
    assert senses.converted(far, "depth.top", "here", levels=levels).max() == 1500
    assert senses.converted(np.where(far > 0, np.float32(40), 0), "depth.top", "here", levels=levels).max() == 40
    deep = np.full((2, 9, 9), 1000, np.float32)
    deep[:, :2] = 0.5
    assert senses.converted(deep, "depth.top", "here")[0, 0, 0] == 500, "metres before a far plane"
    dark, bright = np.ones((2, 40, 6), np.float32), np.full((2, 40, 6), 200, np.float32)
    levels.episodes = lambda: (senses.converted(x, "pointcloud", "here", levels=levels) for x in (dark, bright))
    assert np.allclose(senses.converted(dark, "pointcloud", "here", levels=levels)[..., 3:], 1 / 255)
