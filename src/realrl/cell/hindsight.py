"""What offline reinforcement learning on recordings alone may say of its product. Nobody has tried it: all of it is an estimate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from realrl.run import Run, read_metrics
from realrl.types import Episode


def hindsight(run: Run, stage: str, episodes: Sequence[Episode], gamma: float) -> dict[str, Any] | None:
    """What a round's gate said, and what it knew: None for a stage that had no gate.

    episodes: what critics and model were fitted to. judged, accepted: candidates; began_with, ended_with: discounted return in the model of
    what the round started from and of its product; recorded: that of the episodes themselves, mean over them, with how many ended how;
    model_r2, model_endings: the model on episodes that it was not fitted to, the share of a decision's change that it explains, and how
    many endings it expects for one that there was; rewarded: whether the recording pays anything at all.
    """
    found = run.read(f"{stage}-candidates")
    if found is None:
        return None
    records = found[1]["judged"]["records"]
    passed = [record for record in records if record["accepted"]]  # the first is what the round began with
    quality: dict[str, Any] = next((line for line in reversed(read_metrics(run.dir)) if line["stage"] == stage and "model_r2" in line), {})
    returns = [float((e.reward * gamma ** np.arange(len(e))).sum()) for e in episodes]
    return {"trials": 0, "judged": len(records) - 1, "accepted": len(passed) - 1, "began_with": records[0]["ope_returns"],
            "ended_with": passed[-1]["ope_returns"], "recorded": float(np.mean(returns)), "episodes": len(episodes),
            "success": sum(e.succeeded for e in episodes), "failure": sum(e.failed for e in episodes),
            "unknown": sum(not e.judged for e in episodes), "rewarded": any(e.reward.any() for e in episodes),
            "model_r2": quality.get("model_r2"), "model_endings": quality.get("model_done_ratio")}
