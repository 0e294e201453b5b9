"""Seeds: all noise in realrl is a function of what it is for, never of a generator's running state."""

from __future__ import annotations

import hashlib
import json
import operator


def derive(seed: int, *tags: int | str) -> int:
    """A 63-bit seed that depends on nothing but its arguments: the same in every process, on every machine and Python."""
    names = [tag if isinstance(tag, str) else operator.index(tag) for tag in (seed, *tags)]
    return int.from_bytes(hashlib.sha256(json.dumps(names).encode()).digest()[:8], "big") >> 1
