"""What was practised by itself, as strips of pictures: of every task of the newest round a success, a failure, and what a success
classifier got wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from realrl.data.store import Store
from realrl.report.failures import AT
from realrl.report.pictures import film_strip, tell_once
from realrl.report.reading import read_text
from realrl.types import RealrlError

Row = Mapping[str, Any]
SAID = {(True, True): "succeeded", (False, False): "failed", (False, True): "failed, and was taken for a success",
        (True, False): "succeeded, and was taken for a failure"}


def practice_films(run: Path) -> dict[str, Any] | None:
    """Cards, and a note where they cannot be shown; None for a run that has practised nothing yet."""
    cards: list[dict[str, Any]] = []
    newest = 0
    try:
        lines = [json.loads(line) for line in (read_text(run / "lineage.jsonl") or "").splitlines()]
        own = [row for row in lines if row.get("origin") == "practice"]
        if not own:
            return None
        newest = max(int(row.get("round", 0)) for row in own)
        where = dict(_recorded(run, f"practice-{newest}"))
        for row in _chosen([row for row in own if row.get("round") == newest]):
            store, i = where.get((row.get("task"), row.get("seed")), (None, 0))
            if store is not None and store.cameras:
                facts = [_said(row), f"{row.get('steps')} steps", f"by {row.get('policy')}"]
                cards.append({"title": f"{row.get('task')}, seed {row.get('seed')}", "facts": facts,
                              "films": [film_strip(store, i, camera, AT) for camera in store.cameras]})
        note = "" if cards else "It was recorded without pictures. realrl view TASK --policy DIR --mp4 films a policy at work."
    except (RealrlError, OSError, ValueError, TypeError, AttributeError) as error:  # the last three: lines that are no objects
        note = f"The recordings cannot be shown: {error}"
    tell_once(cards)
    return {"round": newest, "cards": cards, "note": note}


def _chosen(rows: list[Row]) -> list[Row]:
    """Of every task the first episode of each outcome."""
    first: dict[tuple[Any, str], Row] = {}
    for row in rows:
        first.setdefault((row.get("task"), _said(row)), row)
    return list(first.values())


def _said(row: Row) -> str:
    return SAID[bool(row.get("success")), bool(row.get("taken_for_success"))]


def _recorded(run: Path, label: str) -> Iterator[tuple[tuple[Any, Any], tuple[Store, int]]]:
    """((task, seed), (data set, number of the episode in it)) of what was practised under a label, in turn or not."""
    for folder in sorted(run.glob("dataset*")):
        if not (folder / "meta").is_dir():
            continue
        store = Store.open(folder)
        for row in store.rows.select(["policy", "seed", "tasks", "episode_index"]).to_pylist():
            if row["policy"] in (label, f"{label}-pool"):
                yield (row["tasks"][0], row["seed"]), (store, row["episode_index"])
