"""Large matrix products by the quicker of torch's two CPU libraries, small ones as ever.

torch multiplies float32 by MKL, which runs at half speed on AMD processors; oneDNN, in the same wheel, does not. torch hands products
to oneDNN where "medium" precision is allowed. That means bfloat16 on a processor with tiles for it (AMX) and full float32 on one without,
so it is allowed on AMD processors alone, and only where products are measured to stay exact. Products of fewer than some 20 rows
are slower so: what acts for a robot or a few keeps to MKL.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch

EXACT = 1e-5  # largest error of an entry, as a share of the largest entry; float32 has 1e-7, bfloat16 more than 1e-3


@contextmanager
def _precision(allowed: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(allowed)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _instead(usual: str, allowed: str) -> Iterator[None]:
    """Only where it was so before: somebody may have chosen a precision of their own."""
    if torch.get_float32_matmul_precision() == usual and by_onednn():
        with _precision(allowed):
            yield
    else:
        yield


def large_products(place: torch.device | None = None) -> AbstractContextManager[None]:
    """While something learns. place: where, by default on the CPU; a GPU would take the same word for leave to round to TF32."""
    return nullcontext() if place is not None and place.type != "cpu" else _instead("highest", "medium")


def small_products() -> AbstractContextManager[None]:
    """While something acts."""
    return _instead("medium", "highest")


@functools.cache
def by_onednn() -> bool:
    """Whether this machine's large products go to oneDNN; the same for all processes on it, so that a resumed run repeats its numbers."""
    return _vendor() == "AuthenticAMD" and medium_error() < EXACT


def medium_error() -> float:
    """The largest error of a product that is allowed medium precision, as a share of its largest entry."""
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=random) for _ in range(2))
    with _precision("medium"):
        found = a @ b
    right = a.double() @ b.double()
    return float((found - right).abs().max() / right.abs().max())


def _vendor() -> str:
    """Who made the processor, as it says itself; nothing where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")
