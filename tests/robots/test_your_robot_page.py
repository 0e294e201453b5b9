"""docs/howto/your-robot.md runs as it stands: its driver is served by its configuration, and followed."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from realrl import config, envs
from realrl.robots.client import Link, RobotClient
from realrl.robots.server import RobotServer
from realrl.robots.settings import ServerConfig

PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "your-robot.md"


def test_the_driver_of_the_page_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("websockets")
    text = PAGE.read_text(encoding="utf-8")
    (tmp_path / "arm.py").write_text(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0])
    (tmp_path / "arm.yaml").write_text(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "arm", raising=False)
    cfg = replace(config.load(ServerConfig, tmp_path / "arm.yaml"), port=0, fps=50.0, pace=1.0, watchdog=50.0)
    assert cfg.driver is not None
    server = RobotServer(envs.own(cfg.driver)(), cfg, say=lambda line: None)  # type: ignore[arg-type]
    server.start()
    try:
        with Link(server.url, "person") as person:
            assert person.ask({"type": "status"})["mode"] == "held"
            env = RobotClient(server.url)
            assert person.ask({"type": "arm"})["mode"] == "armed"
            env.link.send({"type": "reset", "epoch": 1, "seq": 0, "seed": 0})
            while person.ask({"type": "status"})["phase"] != "waiting":
                pass
            person.ask({"type": "ready"})
            env.link.receive(5)
            env._t = 0  # what `reset` does, whose answer the line above took
            before = env.measured.copy()
            for _ in range(10):
                env.step(np.array([1.0, 0.0]))
            assert env.measured[0] > before[0] and env.task.text == "put the cube into the box"
            env.close()
    finally:
        server.close()
    assert server.driver.place == pytest.approx([0.5, 0.0], abs=1e-3)  # type: ignore[attr-defined]
