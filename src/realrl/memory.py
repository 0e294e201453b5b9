"""How a process that learns keeps its memory."""

from __future__ import annotations

import ctypes

_OPTIONS = ((-3, 2**25), (-1, 2**31 - 1), (-2, 2**26))  # glibc's M_MMAP_THRESHOLD, at its most; M_TRIM_THRESHOLD; M_TOP_PAD: bytes


def keep_freed_memory() -> None:
    """Tell the C library to keep what is freed, as far as it knows how (glibc): the large arrays of an update come and go, and pages that
    are given back to the system and fetched anew cost a sixth of it."""
    tell = getattr(ctypes.CDLL(None), "mallopt", lambda option, value: 0)
    for option, value in _OPTIONS:
        tell(option, value)
