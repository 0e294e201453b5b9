"""How people write that an episode succeeded: what columns, rows and attributes are called, and what stands in them."""

from __future__ import annotations

from typing import Any

import numpy as np

from realrl.types import Array

# The names: each of these words behind each of these beginnings.
_WHOSE = ("", "episode_", "is_", "task_", "episode_is_", "is_episode_", "is_task_", "trajectory_", "demo_", "rollout_")
_WON = ("success", "succeeded", "succeed", "successful", "outcome", "result", "success_label", "success_flag")
SUCCESSES = (*(f"{whose}{word}" for word in _WON for whose in _WHOSE), "next.success")
FAILURES = tuple(f"{whose}{word}" for word in ("failure", "failed", "fail") for whose in _WHOSE)  # the other way round
OUTCOMES = (*SUCCESSES, *FAILURES)
FRAMES = ("next.success", *(f"{place}{name}" for place in ("", "next.", "complementary_info.", "info.", "annotation.", "annotation.human.")
                            for name in SUCCESSES))  # of columns with a cell a frame
# The words: a verdict is one under any name, a flag says whether what its name says is so.
VERDICTS = {**dict.fromkeys(("success", "successful", "succeeded", "succeed", "passed", "pass", "good", "solved"), True),
            **dict.fromkeys(("failure", "failed", "fail", "unsuccessful", "bad", "unsolved"), False)}
_FLAGS = {**dict.fromkeys(("true", "yes", "y", "t", "1", "1.0"), True), **dict.fromkeys(("false", "no", "n", "f", "0", "0.0"), False)}


def said(name: str, value: Any) -> bool | None:
    """Whether an entry of that name says success, in words, flags or a number, 0 or 1; None where it says neither."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        word = value.strip().lower()
        flag = None if word in VERDICTS else _FLAGS.get(word)
        return VERDICTS.get(word) if flag is None else flag != (name in FAILURES)
    return bool(value) != (name in FAILURES) if isinstance(value, int | float) and value in (0, 1) else None


def frames(column: Array) -> Array | None:
    """Success of every frame, bool, of numbers of any shape; None where they say nothing: never filled in, or fractions, which are
    somebody's certainty."""
    if column.dtype.kind == "f":
        known = column[np.isfinite(column)]
        if not known.size or (known != np.rint(known)).any():
            return None
    found: Array = column > 0
    return found


def numbers(texts: Any, name: str) -> Array:
    """Words of success as float32, NaN for all else."""
    told = {text: said(name, text) for text in set(texts)}
    return np.array([np.nan if told[text] is None else float(bool(told[text])) for text in texts], np.float32)
