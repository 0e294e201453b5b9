"""Point clouds from depth pictures: the same few functions for a depth camera on a robot and for a simulated one.

A depth picture is float, in metres, or uint16, in millimetres, both along the optical axis; 0, NaN and infinity mean that nothing was
measured. Points are in the frame that the camera's pose leads to: the world's, or the robot's base.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from realrl.types import Array, RealrlError

MOST = 16_384
"""Points that farthest point sampling starts from; of more, every k-th is taken: a camera of 640 x 480 has 300 000."""
PIXELS = 4 * MOST
"""Pixels of a depth picture that `cloud` looks at; of larger ones every k-th row and column. Most pixels lie outside of the crop box."""


@dataclass(frozen=True, eq=False)
class Pinhole:
    """A pinhole camera without distortion, as OpenCV has it: x to the right, y down, z forward; pixel centres at whole numbers.

    fx, fy: focal lengths in pixels; cx, cy: the principal point in pixels; pose: [4, 4], from the camera's frame to the world's, m.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    pose: Array

    def __post_init__(self) -> None:
        """Raises RealrlError on focal lengths that are not above 0 and a pose that is no rigid motion."""
        if not (np.isfinite([self.fx, self.fy, self.cx, self.cy]).all() and self.fx > 0 and self.fy > 0):
            raise RealrlError(f"camera: fx={self.fx}, fy={self.fy}, cx={self.cx}, cy={self.cy}: give finite pixels, focal lengths above 0")
        pose = np.asarray(self.pose, np.float64)
        if pose.shape != (4, 4) or not np.isfinite(pose).all() or not np.allclose(pose[3], (0, 0, 0, 1)):
            raise RealrlError(f"camera: its pose is {pose.tolist()}, expected [4, 4] from camera to world whose last row is 0 0 0 1")
        turn = pose[:3, :3]
        if not np.allclose(turn @ turn.T, np.eye(3), atol=1e-3) or np.linalg.det(turn) < 0:
            raise RealrlError("camera: the upper left 3 x 3 of its pose is no rotation: its columns must be unit, orthogonal, right-handed")
        object.__setattr__(self, "pose", pose)

    @classmethod
    def of(cls, intrinsics: ArrayLike, pose: ArrayLike) -> Pinhole:
        """From a matrix [3, 3] as calibrations give it. Raises RealrlError on a skew or another shape."""
        k = np.asarray(intrinsics, np.float64)
        if k.shape != (3, 3) or not np.allclose((k[0, 1], k[1, 0], *k[2]), (0, 0, 0, 0, 1)):
            raise RealrlError(f"camera: intrinsics {k.tolist()}: expected [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]")
        return cls(float(k[0, 0]), float(k[1, 1]), float(k[0, 2]), float(k[1, 2]), np.asarray(pose))

    @classmethod
    def upright(cls, height: int, width: int, fovy: float, pose: ArrayLike) -> Pinhole:
        """A camera with square pixels. fovy: vertical field of view in degrees; the principal point is the picture's middle."""
        focal = height / 2 / np.tan(np.radians(fovy) / 2)
        return cls(focal, focal, (width - 1) / 2, (height - 1) / 2, np.asarray(pose))


def deproject(depth: Array, camera: Pinhole) -> Array:
    """The points [M, 3] of a depth picture [H, W], row by row, in float64 metres; what was not measured is left out."""
    return _deproject(depth, camera)[0]


def _deproject(depth: Array, camera: Pinhole) -> tuple[Array, Array]:
    """The points [M, 3], and which pixels they come from: [H, W] bool."""
    metres = _metres(depth)
    with np.errstate(invalid="ignore"):
        seen = np.isfinite(metres) & (metres > 0)
    rows, columns = np.nonzero(seen)
    z = metres[seen]
    local = np.stack([(columns - camera.cx) / camera.fx * z, (rows - camera.cy) / camera.fy * z, z], -1)
    return local @ camera.pose[:3, :3].T + camera.pose[:3, 3], seen


def _metres(depth: Array) -> Array:
    depth = np.asarray(depth)
    if depth.ndim != 2 or (depth.dtype != np.uint16 and depth.dtype.kind != "f"):
        raise RealrlError(f"depth is {depth.dtype} {list(depth.shape)}: expected [height, width], uint16 millimetres or float metres")
    return depth / 1000.0 if depth.dtype == np.uint16 else depth.astype(np.float64)


def crop(points: Array, box: ArrayLike) -> Array:
    """The rows of [M, 3 or more] whose x, y, z lie in a box [2, 3] (low, high), its faces included. Raises RealrlError on a bad box."""
    low, high = check_box(box)
    kept: Array = points[((points[:, :3] >= low) & (points[:, :3] <= high)).all(-1)]
    return kept


def about(points: Array, place: ArrayLike) -> Array:
    """A cloud [N, 3 or more] with its origin moved to a place [3], m: the hand's, say, from the robot's forward kinematics. A cloud that
    saw nothing, zeros, stays as it is. Raises RealrlError on another shape or numbers that are not finite."""
    origin = np.asarray(place, np.float64)
    if origin.shape != (3,) or not np.isfinite(origin).all():
        raise RealrlError(f"a cloud's origin {origin.tolist()}: expected three finite numbers, x, y, z in metres")
    moved = points.copy()
    if points[:, :3].any():
        moved[:, :3] -= origin.astype(points.dtype)
    return moved


def check_box(box: ArrayLike) -> Array:
    """A box as float64 [2, 3]. Raises RealrlError unless its low corner is below its high one."""
    corners = np.asarray(box, np.float64)
    if corners.shape != (2, 3) or np.isnan(corners).any() or not (corners[0] < corners[1]).all():
        raise RealrlError(f"crop box {corners.tolist()}: expected [[x, y, z] low, [x, y, z] high] in metres, each low below its high")
    return corners


def sample(points: Array, n: int) -> Array:
    """n rows of [M, 3 or more] that lie far apart: farthest point sampling (Eldar et al. 1997).

    The same points give the same rows. Fewer points than n are repeated in turn; without any the answer is zeros.
    """
    if n < 1:
        raise RealrlError(f"a cloud of {n} points: it must have at least 1")
    if len(points) > max(MOST, n):
        points = points[::-(-len(points) // max(MOST, n))]
    if len(points) == 0:
        return np.zeros((n, points.shape[1]), points.dtype)
    if len(points) <= n:
        return points[np.arange(n) % len(points)]
    return points[farthest(points[:, :3], n)]


def farthest(points: Array, n: int) -> Array:
    """Indices [n] of n <= M of the points [M, 3], by fpsample where it is installed (5 to 10 times as fast), else `farthest_plainly`.

    Both are exact; they differ in the point they begin with, here row 0, there one that fpsample's tree has first.
    """
    fast = _fpsample()
    chosen = fast(points, n) if fast else farthest_plainly(points, n)
    return chosen


@functools.cache
def _fpsample() -> Callable[[Array, int], Array] | None:
    """The bucket-based algorithm (Han et al. 2023) of the package fpsample: as exact, O(M log M) in practice."""
    try:
        import fpsample
    except ImportError:
        return None

    def fast(points: Array, n: int) -> Array:
        height = 3 if len(points) < 5000 else 5  # of its tree: measured
        chosen: Array = fpsample.bucket_fps_kdline_sampling(np.ascontiguousarray(points, np.float32), n, h=height, start_idx=0)
        return chosen.astype(np.intp)
    return fast


def farthest_plainly(points: Array, n: int) -> Array:
    """Indices [n] of n <= M of the points [M, 3]: each is the farthest from those before it, the first is row 0. O(n M)."""
    x, y, z = np.ascontiguousarray(np.asarray(points, np.float32).T)
    chosen, nearest = np.zeros(n, np.intp), np.full(len(x), np.inf, np.float32)
    for i in range(1, n):
        last = chosen[i - 1]
        np.minimum(nearest, (x - x[last]) ** 2 + (y - y[last]) ** 2 + (z - z[last]) ** 2, out=nearest)
        chosen[i] = nearest.argmax()
    return chosen


def cloud(depths: Sequence[Array], cameras: Sequence[Pinhole], box: ArrayLike, n: int, colours: Sequence[Array] | None = None) -> Array:
    """One cloud, float32 [n, 3], of what several cameras see inside a box; [n, 6] with r, g, b in [0, 1] where `colours` are given.

    depths: each [H, W], see the top of this file; colours: each uint8 [H, W, 3], aligned with its depth. Raises RealrlError when the
    pictures and cameras do not pair up.
    """
    pictures = [None] * len(depths) if colours is None else list(colours)
    if not len(depths) == len(cameras) == len(pictures) or not depths:
        raise RealrlError(f"a cloud of {len(depths)} depth pictures, {len(cameras)} cameras and {len(pictures)} colour pictures: "
                          "every depth needs its camera, and its colours if there are any")
    parts = []
    for depth, camera, picture in zip(depths, cameras, pictures, strict=True):
        if picture is not None and (picture.shape != (*np.shape(depth), 3) or picture.dtype != np.uint8):
            raise RealrlError(f"colours are {picture.dtype} {list(picture.shape)}, the depth {list(np.shape(depth))}: expected uint8 of "
                              "the same height and width, 3 channels")
        depth, camera, picture = _thinned(depth, camera, picture)
        points, seen = _deproject(depth, camera)
        if picture is not None:
            points = np.concatenate([points, picture[seen] / 255.0], -1)
        parts.append(crop(points, box))
    return sample(np.concatenate(parts), n).astype(np.float32)


def _thinned(depth: Array, camera: Pinhole, picture: Array | None) -> tuple[Array, Pinhole, Array | None]:
    """Every k-th row and column of a picture with many more pixels than `PIXELS`, and the camera that would have taken it."""
    k = int((np.size(depth) / PIXELS) ** 0.5)
    if k < 2:
        return depth, camera, picture
    smaller = Pinhole(camera.fx / k, camera.fy / k, camera.cx / k, camera.cy / k, camera.pose)
    return depth[::k, ::k], smaller, None if picture is None else picture[::k, ::k]
