"""A saved policy shows how it is done, in a script's place."""

import pytest
from test_cell import open_cell

from realrl import envs
from realrl.cell.demonstrator import demonstrator, source
from realrl.cell.judge import latency
from realrl.cli.main import main
from realrl.data.store import Store
from realrl.policies.folder import load_policy
from realrl.types import RealrlError, Source


def spec(task="toy/obstacle"):
    env = envs.make(task)
    env.close()
    return env.task


def test_a_script_or_a_policy(tiny_run):
    folder = str(tiny_run / "policy")
    assert demonstrator(spec(), None).name == envs.expert("toy/obstacle").name and source(None) is Source.SCRIPT
    assert demonstrator(spec(), folder).name == load_policy(folder)[0].name and source(folder) is Source.POLICY
    assert demonstrator(spec(), folder, 0.1).name.endswith("+noise0.1")
    assert latency(demonstrator(spec(), folder), spec())["p50"] > 0
    with pytest.raises(RealrlError, match=r"was trained on toy/obstacle, with 2 observation and 2 action numbers"):
        demonstrator(spec("toy/line"), folder)
    with pytest.raises(RealrlError):
        demonstrator(spec(), "nowhere")


def test_a_method_begins_with_what_a_policy_shows(tmp_path, tiny_run):
    with open_cell(tmp_path / "run", expert=str(tiny_run / "policy"), demos=3, demo_noise=0.5) as cell:
        shown = cell.demonstrations()
        cell.judge_demonstrator(4)
        assert len(shown) == 3 and all(e.succeeded and (e.source == Source.POLICY).all() for e in shown)
        assert {e.policy for e in shown} == {"demonstration"} and cell.summary["demonstrator"]["success"]["n"] == 4


def test_its_demonstrations_are_recorded_like_a_scripts(tmp_path, tiny_run, capsys):
    out = tmp_path / "shown"
    assert main(["data", "demos", "--task", "toy/obstacle", "--episodes", "2", "--out", str(out), "--expert", str(tiny_run / "policy"),
                 "--workers", "1"]) == 0
    assert sum(e.succeeded for e in Store.open(out).read()) == 2
