"""What a run's files say, read with suspicion: every damaged file and every field of a wrong kind is named."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from realrl import files
from realrl.cell.evaluate import wilson
from realrl.files import read_plain
from realrl.run import read_metrics
from realrl.types import RealrlError

EACH_STEP = ", each step"  # ends the name of a metric that holds one value a denoising step


@dataclass(frozen=True)
class StageRow:
    """One entry of `summary.json`'s stages; None where the run has not measured it. Rates are fractions, times in the name's unit."""

    name: str
    rate: float | None
    n: int | None
    low: float | None
    high: float | None
    cycle_steps: float | None
    cycle_s: float | None
    per_hour: float | None
    p50_ms: float | None
    p99_ms: float | None
    env_steps: float | None
    wall_s: float | None
    edges: tuple[float, ...] = ()
    counts: tuple[float, ...] = ()


def read_text(path: Path) -> str | None:
    """The file's text, None where there is no file. Raises RealrlError on other than UTF-8 and on what is no plain file."""
    try:
        return read_plain(path).decode("utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as e:
        raise RealrlError(f"{path}: not UTF-8 text (byte {e.start}); restore or delete the file and make the report again") from e
    except OSError as e:
        raise RealrlError(f"{path} cannot be read ({e.strerror or e}); mend or delete it and make the report again") from e


def read_json(path: Path, kind: type) -> Any:
    """The file's content, None where there is no file. Raises RealrlError that names file and line."""
    if not path.exists():
        return None
    value = files.read_json(path, nan=True)
    if not isinstance(value, kind):
        raise RealrlError(f"{path}: expected a JSON {'object' if kind is dict else 'list'} at the top, found {type(value).__name__}")
    return value


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of `metrics.jsonl`, numbered scalars (`ratio_0`, `ratio_1` ...) joined to one list. Raises RealrlError on damage."""
    rows = read_metrics(path.parent)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise RealrlError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}")
    return [_join_numbered(row) for row in rows]


def _join_numbered(row: Mapping[str, Any]) -> dict[str, Any]:
    """`{"ratio_0": a, "ratio_1": b, "ratio_2": c}` -> `{"ratio, each step": [a, b, c]}`: a value a denoising step is one picture."""
    groups: dict[str, dict[int, str]] = {}
    for key in row:
        if match := re.fullmatch(r"(.+?)[_/.](\d+)", key):
            groups.setdefault(match[1], {})[int(match[2])] = key
    joined = {name: [keys[i] for i in sorted(keys)] for name, keys in groups.items() if len(keys) > 2}
    taken = {key for keys in joined.values() for key in keys}
    lists = {name + EACH_STEP: [math.nan if row[key] is None else row[key] for key in keys] for name, keys in joined.items()}
    return {key: value for key, value in row.items() if key not in taken} | lists


def number_of(entry: Mapping[str, Any], key: str, where: str) -> float | None:
    """A field that must be a number, None when it is absent or not finite. Raises RealrlError, naming `where`, on another kind."""
    value = entry.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RealrlError(f"{where}: field '{key}' should be a number, not {value!r}")
    return float(value) if math.isfinite(value) else None


def _object(entry: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = entry.get(key) or {}
    if not isinstance(value, Mapping):
        raise RealrlError(f"{where}: field '{key}' should be an object, not {value!r}")
    return value


def values_of(value: Any) -> list[float] | None:
    """A logged number or list of numbers as a list; None for anything else (text, nothing, not finite)."""
    listed = value if isinstance(value, list) else [value]
    if not listed or not all(isinstance(v, (int, float)) for v in listed) or not any(math.isfinite(v) for v in listed):
        return None
    return [float(v) for v in listed]


def counted(n: float) -> bool:
    """Whether a number can be that of episodes: files of others say anything."""
    return 1 <= n < 2**53


def wilson_bounds(rate: float, n: float) -> tuple[float, float]:
    """The 95 % interval of a rate (a fraction) over n episodes."""
    interval = wilson(round(rate * n), int(n))
    return interval.low, interval.high


def _stage(entry: Any, where: str) -> StageRow:
    if not isinstance(entry, Mapping):
        raise RealrlError(f"{where}: every stage should be an object, not {entry!r}")
    name = str(entry.get("name", "unnamed"))
    where = f"{where}, stage '{name}'"
    success, latency, histogram = (_object(entry, k, where) for k in ("success", "latency_ms", "cycle_histogram"))
    rate, n = number_of(success, "rate", where), number_of(success, "n", where)
    if rate is not None and not 0 <= rate <= 1:
        raise RealrlError(f"{where}: success rate {rate} is not a fraction between 0 and 1")
    low, high = number_of(success, "low", where), number_of(success, "high", where)
    n = n if n is not None and counted(n) else None
    if rate is not None and n is not None and (low is None or high is None):
        low, high = wilson_bounds(rate, n)
    edges, counts = (tuple(values_of(histogram.get(k)) or ()) for k in ("edges", "counts"))
    if counts and len(edges) != len(counts) + 1:
        raise RealrlError(f"{where}: cycle_histogram has {len(edges)} edges for {len(counts)} counts; there should be one more edge")
    own = {k: number_of(entry, k, where) for k in ("cycle_steps", "cycle_s", "env_steps", "wall_s")}
    return StageRow(name, rate, None if n is None else int(n), low, high, per_hour=number_of(entry, "successes_per_hour", where),
                 p50_ms=number_of(latency, "p50", where), p99_ms=number_of(latency, "p99", where), edges=edges, counts=counts, **own)


def stages_of(summary: Mapping[str, Any], where: str = "summary.json") -> list[StageRow]:
    """The stages of a summary in order, the demonstrator first. Raises RealrlError on a field of a wrong kind."""
    entries = summary.get("stages") or []
    if not isinstance(entries, list):
        raise RealrlError(f"{where}: field 'stages' should be a list, not {type(entries).__name__}")
    first = [summary["demonstrator"]] if summary.get("demonstrator") else []
    return [_stage(entry, where) for entry in [*first, *entries]]


def final_stage(stages: Sequence[StageRow]) -> StageRow | None:
    """The last stage whose success was measured, the demonstrator aside."""
    return next((s for s in reversed(stages) if s.rate is not None and s.name != "demonstrator"), None)


def family_of(stage: str) -> str:
    """`offline-2` -> `offline`, `offline-2-imitation` -> `offline-imitation`: rounds of one kind share a figure."""
    return re.sub(r"-\d+(?=-|$)", "", stage)
