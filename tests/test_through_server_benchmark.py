"""benchmarks/through_server.py: its flags are those of the commands, its table says what its rows hold."""

from __future__ import annotations

import shlex

import pytest

from benchmarks.lib import served, tables
from benchmarks.through_server import SMOKE, WAYS
from realrl import config
from realrl.cli.train import _method
from realrl.robots.bodies import tasks

GOOD = {"rate": 0.5, "low": 0.4, "high": 0.6, "n": 100}


@pytest.mark.parametrize("name", WAYS)
def test_every_flag_is_one_of_the_method(name: str) -> None:
    way = WAYS[name]
    assert way.task in tasks()
    for method, flags in ((way.method, way.simulated), (way.learner, way.online), (way.method, SMOKE[way.method]),
                          (way.learner, SMOKE[way.learner]), ("rl100", way.further)):
        cls, _, default = _method(method, [])
        cfg = config.parse(cls, shlex.split(flags), prog="x", description="", default=default)
        assert not flags or cfg != cls()


def test_every_way_has_its_place_in_the_table() -> None:
    assert set(served.WAYS) == set(WAYS)


def test_a_row_is_a_line_and_what_was_typed_stands_below() -> None:
    same = {"method": "rl100", "task": "arm/panda-reach", "seed": 0, "success": GOOD, "command": "python", "commit": "c",
            "machine": {"cpu": "c", "cores": 1, "gpu": None, "python": "3", "torch": "2"}}
    rows = [{**same, "where": "after", "latency_ms": 200, "cycle_steps": 20.4, "env_steps": 12345, "wall_s": 90.0, "stops": 2,
             "typed": "b"},
            {**same, "where": "lock-step", "latency_ms": 0, "cycle_steps": None, "typed": "a"}]
    further = {**rows[0], "where": "further"}
    first, second, third = served.lines([further, *rows])
    assert third == [second[0], "**after RL-100's online stage on top**", *second[2:]]
    assert first[1:] == ["from lock-step simulation, judged there", "0 ms", "50 % [40, 60]", "100", "-", "-", "-", "-"]
    assert second[2:] == ["200 ms", "50 % [40, 60]", "100", "20", "12,345", "1.5", "2"]
    assert "```\na\nb\n```" in tables.TABLES["through_server"](rows)
