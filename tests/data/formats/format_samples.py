"""Episodes that hold a bit of everything, and the comparison of two of them."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator

import numpy as np

from realrl.types import Episode


def sample(seed: int = 0, steps: int = 7, *, images: bool = True, terminated: bool = True) -> Episode:
    """A random episode: low-dimensional observations, a camera, a depth camera, a person who took over for a while."""
    rng = np.random.default_rng(seed)
    obs = {"state": rng.normal(size=(steps + 1, 3)).astype(np.float32), "grip": rng.normal(size=(steps + 1, 1)).astype(np.float32)}
    if images:
        obs["images.front"] = rng.integers(0, 256, (steps + 1, 32, 40, 3), dtype=np.uint8)
        obs["depth.front"] = rng.integers(0, 5000, (steps + 1, 32, 40), dtype=np.uint16)
    success = np.zeros(steps, bool)
    success[-1] = terminated
    return Episode(
        obs=obs, action=rng.uniform(-1, 1, (steps, 2)).astype(np.float32), proposed=rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
        source=rng.integers(0, 3, steps).astype(np.uint8), reward=rng.normal(size=steps).astype(np.float32), success=success,
        time=100.0 + np.cumsum(rng.uniform(0.01, 0.1, steps)), starts_plan=np.arange(steps) % 3 == 0, terminated=terminated,
        truncated=not terminated, task=f"task {seed}", policy="pi", seed=seed or None)


def assert_same(one: Episode, other: Episode) -> None:
    """Every number equal, of the same type; `extra` is not looked at."""
    assert list(one.obs) == list(other.obs) or sorted(one.obs) == sorted(other.obs)
    for key in one.obs:
        np.testing.assert_array_equal(one.obs[key], other.obs[key], err_msg=key)
        assert one.obs[key].dtype == other.obs[key].dtype, key
    for name in ("action", "proposed", "source", "reward", "success", "time", "starts_plan"):
        a, b = getattr(one, name), getattr(other, name)
        np.testing.assert_array_equal(a, b, err_msg=name)
        assert a.dtype == b.dtype, name
    for name in ("terminated", "truncated", "task", "policy", "seed"):
        assert getattr(one, name) == getattr(other, name), name


@contextlib.contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
