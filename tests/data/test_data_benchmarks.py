"""The benchmarks of loading and of scale run from end to end, and their tables can be written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import loading, scale
from benchmarks.lib import common, tables
from realrl.data.cache import FrameCache


def rows_of(module: Any, monkeypatch: pytest.MonkeyPatch, folder: Path, words: list[str]) -> list[dict[str, Any]]:
    """What a benchmark writes, away from the results."""
    monkeypatch.setattr(module, "RESULTS", folder)
    assert module.main(words) == 0
    return common.read_rows(next(folder.glob("*.jsonl")))


def test_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LEROBOT_PYTHON", raising=False)
    monkeypatch.setattr(loading, "numbers", lambda frames, calls, table: None)
    found = rows_of(loading, monkeypatch, tmp_path, ["--episodes", "2", "--frames", "30", "--seconds", "0.05"])
    assert len(found) == 5 and all(r["samples_per_s"] > 0 for r in found)
    page = tables.loading_table([*found, {**found[-1], "method": "LeRobot 1, torchcodec, no workers", "samples_per_s": 1.0}])
    assert "| LeRobot 1, torchcodec, no workers | 1 | 1.0 |" in page and "Building the cache once" in page


def test_every_way_of_loading_gives_the_same_images(tmp_path: Path) -> None:
    store = loading.record(tmp_path / "data", 2, 20)
    cache = FrameCache.build(store, progress=False)
    view = loading.ImageWindows(store, cache, chunk=loading.CHUNK, n_obs=loading.N_OBS, gamma=0.99)
    index = torch.from_numpy(np.random.default_rng(0).integers(0, len(view), loading.BATCH))
    mine, plain = view.batch(index), next(loading.per_frame(store))
    for key in (*loading.CAMERAS, "state"):
        assert torch.equal(mine.obs[key], plain[key])
    assert torch.equal(mine.action, plain["action"])
    (floats,) = loading.as_floats(iter([view.batch(index)]))
    assert torch.allclose(floats.obs[loading.CAMERAS[0]].movedim(2, -1) * 255, mine.obs[loading.CAMERAS[0]].float())


def test_loading_says_why_lerobot_does_not_run(tmp_path: Path) -> None:
    with pytest.raises(loading.RealrlError, match="cannot run LeRobot's loader"):
        loading.lerobot(Path(sys.executable), tmp_path, 0, "pyav", 0.1)


def test_low_dimensional_loading(tmp_path: Path) -> None:
    table = loading.Table(tmp_path / "loading.jsonl", ("kind", "method"))
    loading.numbers(12_000, 3, table)
    assert [r["method"] for r in table.rows] == ["10,000 frames", "12,000 frames"]
    assert "| 10,000 frames |" in tables.loading_table(table.rows)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--episodes", "120", "--frames", "20", "--singles", "5", "--timed", "5", "--opens", "1", "--folder", str(tmp_path)]
    found = {r["measure"]: r for r in rows_of(scale, monkeypatch, tmp_path, words)}
    assert found["append at 120 episodes"]["n"] == 5 and found["open"]["frames"] == 2400 and found["size on disk"]["value"] > 0
    assert found["peak memory of the process that opens"]["value"] > found["peak memory of the process that opens"]["imports_mb"]
    assert "< 500 MB" in tables.scale_table(list(found.values()))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scale.jsonl"], "the dataset is gone"
