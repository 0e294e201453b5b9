"""Turns as quaternions, w first, and as rotation vectors in the world's axes: in plain numbers, which a law needs every millisecond."""

from __future__ import annotations

import math
from collections.abc import Sequence


def rotation_vector(q: Sequence[float], origin: Sequence[float] = (1.0, 0.0, 0.0, 0.0)) -> list[float]:
    """The turn from `origin` to q (w first) as a rotation vector [3] in the world's axes, at most pi long."""
    w, x, y, z = q
    a, b, c, d = origin
    s = w * a + x * b + y * c + z * d  # q times the conjugate of origin
    i, j, k = x * a - w * b - y * d + z * c, y * a - w * c - z * b + x * d, z * a - w * d - x * c + y * b
    if s < 0:
        s, i, j, k = -s, -i, -j, -k
    size = math.sqrt(i * i + j * j + k * k)
    scale = 2 * math.atan2(size, s) / size if size > 1e-12 else 2.0
    return [i * scale, j * scale, k * scale]


def turned(q: Sequence[float], by: Sequence[float]) -> list[float]:
    """q (w first) after a rotation vector [3] in the world's axes; of length 1."""
    x, y, z = by
    angle = math.sqrt(x * x + y * y + z * z)
    scale = math.sin(angle / 2) / angle if angle > 1e-12 else 0.5
    a, b, c, d = math.cos(angle / 2), x * scale, y * scale, z * scale
    w, i, j, k = q
    out = [a * w - b * i - c * j - d * k, a * i + b * w + c * k - d * j, a * j - b * k + c * w + d * i, a * k + b * j - c * i + d * w]
    size = math.sqrt(sum(v * v for v in out))
    return [v / size for v in out]
