"""What spoils imitation is told, one line a kind, and clean recordings are left in peace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from realrl.data.store import Store
from realrl.data.tools.check import check
from realrl.data.tools.habits import grouped
from realrl.types import Array, Episode, Source

FPS, STEPS, JOINTS = 20, 100, 6


def moved(seed: int) -> tuple[Array, Array]:
    """(state [T+1, 6], action [T, 6]) of a person who moves a leader: smooth, noisy by a thousandth, the follower lags three steps."""
    rng = np.random.default_rng(seed)
    t = np.arange(STEPS + 4)[:, None] / STEPS
    wish = sum(rng.uniform(-0.3, 0.3, JOINTS) * np.sin(2 * np.pi * (k * t + rng.uniform(0, 1, JOINTS))) for k in (1, 2, 3))
    wish[:, -1] = np.where(t[:, 0] > 0.5, 1.0, -1.0)  # a gripper
    noise = rng.normal(scale=1e-3, size=wish.shape)
    return (wish[:-3] + noise[:-3]).astype(np.float32), wish[3:-1].clip(-1, 1).astype(np.float32)


def recorded(folder: Path, episodes: int = 4, spoil: Any = None) -> Path:
    """A set of such episodes; spoil(number, state, action) -> what becomes of them."""
    store = Store.create(folder, task="put it there", fps=FPS)
    for number in range(episodes):
        state, action = moved(number)
        if spoil is not None:
            state, action = spoil(number, state, action)
        n = len(action)
        store.append([Episode(
            obs={"state": state}, action=action, proposed=action, source=np.full(n, Source.HUMAN, np.uint8), reward=np.zeros(n, np.float32),
            success=np.arange(n) == n - 1, time=np.arange(n) / FPS, starts_plan=np.ones(n, bool), terminated=True, truncated=False,
            task="put it there", policy="human")])
    return folder


def told(folder: Path) -> list[str]:
    return [str(p) for p in check(folder)]


def test_clean_recordings_are_left_in_peace(tmp_path: Path) -> None:
    assert told(recorded(tmp_path / "d")) == []


def waits(seconds: float, noise: float = 0.0) -> Any:
    def spoil(number: int, state: Array, action: Array) -> tuple[Array, Array]:
        if number not in (1, 2):
            return state, action
        n = round(seconds * FPS)
        rest = state[:1] + np.random.default_rng(0).normal(scale=noise, size=(n, JOINTS)).astype(np.float32)
        return np.concatenate([rest, state]), np.concatenate([np.repeat(action[:1], n, 0), action])
    return spoil


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_pauses_at_the_beginning(tmp_path: Path, noise: float) -> None:
    (line,) = (line for line in told(recorded(tmp_path / "d", spoil=waits(2.0, noise))) if "is frozen" not in line)
    assert "nothing moves at the beginning of episodes 1 to 2 (2 in all), for up to 2." in line and "realrl data trim" in line
    assert told(recorded(tmp_path / "e", spoil=waits(0.6, noise))) == []


def test_columns_of_noise_do_not_hide_a_pause(tmp_path: Path) -> None:
    def spoil(number: int, state: Array, action: Array) -> tuple[Array, Array]:
        state, action = waits(2.0)(number, state, action)
        noise = np.random.default_rng(number).normal(size=(len(state), 1)).astype(np.float32)
        return np.concatenate([state, noise], 1), action
    assert "nothing moves at the beginning of episodes 1 to 2" in " ".join(told(recorded(tmp_path / "d", spoil=spoil)))


def clipped(share: float) -> Any:
    def spoil(number: int, state: Array, action: Array) -> tuple[Array, Array]:
        action[:int(share * STEPS), 2] = 0.9
        return state, action
    return spoil


def dead(number: int, state: Array, action: Array) -> tuple[Array, Array]:
    action[:, 3] = 0.25
    return state, action


def deaf(number: int, state: Array, action: Array) -> tuple[Array, Array]:
    state[:, 1] = 0.1
    return state, action


def label_is_measurement(number: int, state: Array, action: Array) -> tuple[Array, Array]:
    return state, state[:-1].clip(-1, 1)


def label_is_what_follows(number: int, state: Array, action: Array) -> tuple[Array, Array]:
    return state, state[1:].clip(-1, 1)


@pytest.mark.parametrize(("spoil", "words"), [
    (clipped(0.7), "action 2 is at its limit in 70 %"), (clipped(0.5), ""), (dead, "action 3 never moves"),
    (deaf, "observation.state 1 never moves, while the action of this place does"), (label_is_what_follows, ""),
    (label_is_measurement, "action 0, 1, 2, 3, 4 is what observation.state says at the same step")])
def test_joints(tmp_path: Path, spoil: Any, words: str) -> None:
    lines = told(recorded(tmp_path / "d", spoil=spoil))
    assert [words in line for line in lines] == ([True] if words else [])


def test_joints_are_named_and_grippers_known_by_name(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "d", spoil=clipped(0.7))
    path = folder / "meta/info.json"
    info = json.loads(path.read_text())
    for third, words in (("elbow", "action 2 (elbow) is at its limit"), ("gripper", "")):
        info["features"]["action"]["names"] = {"motors": ["a", "b", third, "c", "d", "e"]}
        path.write_text(json.dumps(info))
        assert [words in line for line in told(folder) if "limit" in line] == ([True] if words else [])


def rewritten(folder: Path, name: str, change: Any) -> None:
    for path in sorted(folder.glob("data/*/*.parquet")):
        table = pq.read_table(path)
        at = table.column_names.index(name)
        pq.write_table(table.set_column(at, name, pa.array(change(table[name].to_numpy()), table[name].type)), path)


def test_clocks_and_texts(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "d")
    rewritten(folder, "timestamp", lambda x: x * 2)
    assert "the timestamps say 10 steps a second, meta/info.json 20; correct fps there" in " ".join(told(folder))
    folder = recorded(tmp_path / "e")
    rewritten(folder, "task_index", lambda x: np.where(np.arange(len(x)) % STEPS > 50, 1, 0))
    assert "the task's text changes inside episodes 0 to 3 (4 in all)" in " ".join(told(folder))


@pytest.mark.parametrize(("renamed", "words"), [
    ({"action": "actions"}, "error: {}: has no column 'action', but 'actions' looks like it; --rename action=actions"),
    ({"observation.state": "state"}, "error: {}/meta/info.json: there is no observation")])
def test_what_training_refuses_is_an_error(tmp_path: Path, renamed: dict[str, str], words: str) -> None:
    folder = recorded(tmp_path / "d")
    path = folder / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"] = {renamed.get(name, name): f for name, f in info["features"].items() if name != "action.proposed"}
    path.write_text(json.dumps(info))
    for file in folder.glob("data/*/*.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.rename_columns([renamed.get(name, name) for name in table.column_names]), file)
    assert any(words.format(folder) in line for line in told(folder)), told(folder)


def test_episodes_are_grouped() -> None:
    assert grouped([3]) == "episode 3" and grouped({5, 1, 2, 3}) == "episodes 1 to 3, 5 (4 in all)"
    assert grouped(range(0, 40, 2)) == "episodes 0, 2, 4, 6, 8, 10, ... (20 in all)"


def way(side: Any) -> Any:
    """Much the same path each time, round the left or the right of something: side(number, start) says which."""
    def spoil(number: int, state: Array, action: Array) -> tuple[Array, Array]:
        state = 0.3 * state + 0.7 * moved(99)[0]
        bend = (np.sin(np.pi * np.linspace(0, 1, len(state))) * side(number, state[0])).astype(np.float32)
        state[:, 0] += 1.5 * bend
        return state, action
    return spoil


def test_two_ways_of_one_task_are_told_where_the_start_does_not_say_which(tmp_path: Path) -> None:
    said = told(recorded(tmp_path / "two", 16, way(lambda number, start: 1 if number % 4 else -1)))
    assert len(said) == 1 and "one task is done in two ways" in said[0] and "episodes 0, 4, 8, 12 (4 in all)" in said[0]
    assert told(recorded(tmp_path / "one", 16, way(lambda number, start: 1))) == []
    assert told(recorded(tmp_path / "answers", 16, way(lambda number, start: np.sign(start[0])))) == []
    assert told(recorded(tmp_path / "spread", 16, way(lambda number, start: np.random.default_rng(number).uniform(-1, 1)))) == []
    assert told(recorded(tmp_path / "few", 6, way(lambda number, start: 1 if number % 2 else -1))) == []
