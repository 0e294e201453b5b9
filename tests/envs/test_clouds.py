"""Clouds: known planes and spheres come back from their depth pictures, cropped and sampled as promised."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from realrl.envs import clouds
from realrl.envs.clouds import Pinhole
from realrl.types import Array, RealrlError

BOX = np.array([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])


def above(height: float) -> Array:
    """The pose of a camera that looks straight down from (0.1, -0.2, height): its x is the world's x, its y is minus the world's."""
    pose = np.diag([1.0, -1.0, -1.0, 1.0])
    pose[:3, 3] = 0.1, -0.2, height
    return pose


def rays(camera: Pinhole, shape: tuple[int, int]) -> Array:
    """Directions [H, W, 3] in the camera's frame with z = 1."""
    v, u = np.indices(shape)
    return np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones(shape)], -1)


def ball(camera: Pinhole, shape: tuple[int, int], centre: Array, radius: float) -> Array:
    """Depth [H, W] m of a ball; 0 beside it."""
    way = rays(camera, shape)
    middle = camera.pose[:3, :3].T @ (centre - camera.pose[:3, 3])
    a, b, c = (way**2).sum(-1), way @ middle, middle @ middle - radius**2
    inside = b**2 - a * c
    return np.where(inside > 0, (b - np.sqrt(np.maximum(inside, 0))) / a, 0.0)


def test_a_plane_by_hand() -> None:
    camera = Pinhole(fx=100.0, fy=50.0, cx=1.0, cy=0.5, pose=above(2.0))
    points = clouds.deproject(np.full((2, 3), 2.0), camera)
    assert np.allclose(points[:, 2], 0.0)
    assert np.allclose(points[0], [0.1 - 2 / 100, -0.2 + 2 * 0.5 / 50, 0.0])
    assert np.allclose(points[5], [0.1 + 2 / 100, -0.2 - 2 * 0.5 / 50, 0.0])


def test_a_ball_lies_on_its_surface_in_metres_and_in_millimetres() -> None:
    camera = Pinhole.upright(60, 80, 45.0, above(1.5))
    centre = np.array([0.2, -0.1, 0.3])
    depth = ball(camera, (60, 80), centre, 0.2)
    points = clouds.deproject(depth, camera)
    assert len(points) == (depth > 0).sum() > 300
    assert np.abs(np.linalg.norm(points - centre, axis=-1) - 0.2).max() < 1e-9
    assert points[:, 2].max() == pytest.approx(0.5, abs=0.01) and points[:, 2].min() > 0.28, "the upper half alone is seen"
    millimetres = clouds.deproject(np.round(1000 * depth).astype(np.uint16), camera)
    assert np.abs(millimetres - points).max() < 0.0006


def test_a_large_picture_is_thinned_and_stays_where_it_is() -> None:
    camera, centre = Pinhole.upright(480, 640, 45.0, above(1.5)), np.array([0.2, -0.1, 0.3])
    depth = ball(camera, (480, 640), centre, 0.2)
    colour = np.zeros((480, 640, 3), np.uint8)
    colour[depth > 0] = (255, 0, 0)
    points = clouds.cloud([depth], [camera], BOX, 512, [colour])
    assert np.abs(np.linalg.norm(points[:, :3] - centre, axis=-1) - 0.2).max() < 1e-6
    assert np.array_equal(points[:, 3:], np.tile(np.float32([1, 0, 0]), (512, 1)))


def test_what_was_not_measured_is_left_out() -> None:
    depth = np.array([[1.0, 0.0, np.nan], [np.inf, -1.0, 2.0]])
    points = clouds.deproject(depth, Pinhole(1.0, 1.0, 0.0, 0.0, np.eye(4)))
    assert points.tolist() == [[0.0, 0.0, 1.0], [4.0, 2.0, 2.0]]


def test_cameras_agree_and_are_fused_inside_the_box() -> None:
    side = np.eye(4)
    side[:3, :3], side[:3, 3] = np.stack([(0.0, 1.0, 0.0), (0.0, 0.0, -1.0), (-1.0, 0.0, 0.0)], -1), (1.5, 0.0, 0.3)
    cameras = [Pinhole.upright(50, 50, 40.0, above(1.5)), Pinhole.upright(50, 50, 40.0, side)]
    centre = np.array([0.0, 0.0, 0.3])
    depths = [ball(c, (50, 50), centre, 0.25) for c in cameras]
    pictures = [np.full((50, 50, 3), value, np.uint8) for value in (0, 255)]
    cloud = clouds.cloud(depths, cameras, [[-1, -1, 0.3], [1, 1, 1]], 200, pictures)
    assert cloud.shape == (200, 6) and cloud.dtype == np.float32
    assert np.allclose(np.linalg.norm(cloud[:, :3] - centre, axis=-1), 0.25, atol=1e-5) and cloud[:, 2].min() >= 0.3
    assert set(np.unique(cloud[:, 3:])) == {0.0, 1.0} and cloud[cloud[:, 3] == 1, 0].min() > 0, "the side camera sees its own side"
    assert np.array_equal(clouds.cloud(depths, cameras, [[-1, -1, 0.3], [1, 1, 1]], 200), cloud[:, :3])


@pytest.mark.parametrize("n", [1, 7, 300])
def test_farthest_points_by_brute_force(n: int) -> None:
    points = np.random.default_rng(n).normal(size=(300, 3)).astype(np.float32)
    for sampler in (clouds.farthest_plainly, clouds.farthest):
        got = sampler(points, n).tolist()
        chosen = got[:1]
        for _ in range(n - 1):
            chosen.append(int(((points[:, None] - points[chosen]) ** 2).sum(-1).min(1).argmax()))
        assert got == chosen
    assert clouds.farthest_plainly(points, n)[0] == 0


def test_both_samplers_cover_a_large_cloud_equally(monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (5000, 3))

    def gap(chosen: Array) -> float:
        return float(np.sqrt(((points[:, None] - points[chosen]) ** 2).sum(-1).min(1)).max())

    own = gap(clouds.farthest_plainly(points, 128))
    assert gap(clouds.farthest(points, 128)) == pytest.approx(own, rel=0.1) and gap(np.arange(128)) > 1.4 * own
    monkeypatch.setitem(sys.modules, "fpsample", None)
    clouds._fpsample.cache_clear()
    try:
        assert np.array_equal(clouds.farthest(points, 128), clouds.farthest_plainly(points, 128))
    finally:
        clouds._fpsample.cache_clear()


def test_sample_repeats_what_there_is_and_is_repeatable() -> None:
    few = np.arange(9.0).reshape(3, 3)
    assert clouds.sample(few, 7).tolist() == [*few.tolist(), *few.tolist(), few[0].tolist()]
    assert not clouds.sample(np.zeros((0, 6)), 4).any() and clouds.sample(np.zeros((0, 6)), 4).shape == (4, 6)
    many = np.random.default_rng(1).normal(size=(clouds.MOST + 500, 3))
    first = clouds.sample(many, 64)
    assert np.array_equal(first, clouds.sample(many, 64)) and len(np.unique(first, axis=0)) == 64


def test_crop_keeps_the_faces() -> None:
    points = np.array([[1.0, 0, 0, 7], [1.01, 0, 0, 8], [-1, -1, -1, 9]])
    assert clouds.crop(points, BOX)[:, 3].tolist() == [7, 9]


def test_a_cloud_about_the_hand() -> None:
    points = np.array([[1.0, 2.0, 3.0, 0.5], [0.0, 0.0, 0.0, 0.25]], np.float32)
    assert np.array_equal(clouds.about(points, [1, 1, 1]), [[0, 1, 2, 0.5], [-1, -1, -1, 0.25]])
    assert points[0, 0] == 1, "the other stays as it was"
    nothing = np.zeros((3, 3), np.float32)
    assert np.array_equal(clouds.about(nothing, [1, 1, 1]), nothing)
    for bad in ([1, 1], [np.nan, 0, 0]):
        with pytest.raises(RealrlError, match=r"origin .*three finite numbers"):
            clouds.about(points, bad)


def test_a_matrix_of_a_calibration() -> None:
    camera = Pinhole.of([[600, 0, 320], [0, 610, 240], [0, 0, 1]], np.eye(4))
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (600, 610, 320, 240)
    with pytest.raises(RealrlError, match="expected \\[\\[fx"):
        Pinhole.of([[600, 5, 320], [0, 610, 240], [0, 0, 1]], np.eye(4))


def test_mistakes_get_one_line() -> None:
    with pytest.raises(RealrlError, match="focal lengths above 0"):
        Pinhole(0.0, 1.0, 0.0, 0.0, np.eye(4))
    with pytest.raises(RealrlError, match="last row"):
        Pinhole(1.0, 1.0, 0.0, 0.0, np.eye(3))
    mirrored = np.diag([1.0, 1.0, -1.0, 1.0])
    for pose in (mirrored, np.diag([2.0, 1.0, 1.0, 1.0])):
        with pytest.raises(RealrlError, match="no rotation"):
            Pinhole(1.0, 1.0, 0.0, 0.0, pose)
    camera = Pinhole(1.0, 1.0, 0.0, 0.0, np.eye(4))
    with pytest.raises(RealrlError, match="uint16 millimetres or float metres"):
        clouds.deproject(np.ones((2, 2), np.int32), camera)
    with pytest.raises(RealrlError, match="low below its high"):
        clouds.crop(np.zeros((1, 3)), BOX[::-1])
    with pytest.raises(RealrlError, match="at least 1"):
        clouds.sample(np.zeros((1, 3)), 0)
    with pytest.raises(RealrlError, match="every depth needs its camera"):
        clouds.cloud([np.ones((2, 2))], [], BOX, 4)
    with pytest.raises(RealrlError, match="same height and width"):
        clouds.cloud([np.ones((2, 2))], [camera], BOX, 4, [np.zeros((3, 2, 3), np.uint8)])
