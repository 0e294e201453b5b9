"""Recordings as somebody with an arm would have them: three joints in degrees, teleoperated, in LeRobot's layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from realrl.data.store import Store
from realrl.types import Episode, Source

JOINTS = ["shoulder.pos", "elbow.pos", "gripper.pos"]


def teleoperated(count: int, *, cameras: bool = False, relative: bool = False, seed: int = 0) -> list[Episode]:
    """A person drives three joints in degrees towards a place of the episode's own; the arm follows half a step behind."""
    random, made = np.random.default_rng(seed), []
    for _ in range(count):
        steps, goal = int(random.integers(30, 45)), random.uniform(-80, 80, 3)
        state, action = [random.uniform(-5, 5, 3)], []
        for _ in range(steps):
            action.append(state[-1] + 0.15 * (goal - state[-1]) + random.normal(0, 0.2, 3))
            state.append(state[-1] + 0.5 * (action[-1] - state[-1]))
        moved = np.array(action) - np.array(state[:-1]) if relative else np.array(action)
        obs = {"state": np.array(state, np.float32)}
        if cameras:
            obs["images.top"] = random.integers(0, 255, (steps + 1, 24, 32, 3), np.uint8)
        made.append(Episode(obs=obs, action=moved.astype(np.float32), proposed=moved.astype(np.float32), reward=np.zeros(steps, np.float32),
                            source=np.full(steps, Source.HUMAN, np.uint8), success=np.zeros(steps, bool), time=np.arange(steps) / 10,
                            starts_plan=np.ones(steps, bool), terminated=False, truncated=True, task="reach", policy="", judged=False))
    return made


def written(folder: Path, episodes: list[Episode]) -> Path:
    """A LeRobot v3 set as somebody else would have it: names, none of our columns."""
    Store.create(folder, task="reach", fps=10).append(episodes)
    file = folder / "meta/info.json"
    info = json.loads(file.read_text())
    for key in ("action", "observation.state"):
        info["features"][key]["names"] = {"motors": JOINTS}
    info["features"].pop("action.proposed")
    file.write_text(json.dumps(info))
    return folder
