"""Which of a policy's tasks, words and heads act: evaluate, deploy, serve and export ask alike."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from realrl.cli import deploy, export, serve
from realrl.cli import main as cli
from realrl.cli.acting import chooser
from realrl.cli.parser import Parser
from realrl.nets.text import words
from realrl.policies.flow import Body, FlowPolicy, FlowPolicyConfig, Told
from realrl.policies.folder import for_task, save_policy
from realrl.serve.session import Served
from realrl.types import RealrlError, TaskSpec

TASKS = {"lab/open": Told(("open the drawer",)), "lab/close": Told(("close the drawer",)), "lab/wave": Told(("wave",), 1)}


def make(tasks: dict[str, Told] | None = None) -> FlowPolicy:
    torch.manual_seed(0)
    cfg = FlowPolicyConfig(plan=4, chunk=3, width=16, heads=2, expert=1, reader="words")
    policy = FlowPolicy(cfg, (Body("arm", 5, 3), Body("hand", 4, 2)), TASKS if tasks is None else tasks, name="mine").eval()
    policy.fit_senses({0: {"state": torch.randn(20, 5)}, 1: {"state": torch.randn(20, 4)}})
    return policy


def asked(**flags: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"task": None, "text": None, "policy": "p", **flags})


def test_every_robot_and_task_of_a_policy_can_be_asked_for(tmp_path: Path) -> None:
    save_policy(make().told("lab/open"), tmp_path, task="lab/open")
    assert (Served.read(tmp_path).task, Served.read(tmp_path).policy.obs_dim) == ("lab/open", 5)
    served = Served.read(tmp_path, "cpu", chooser(asked(task="lab/wave", head=None)))
    assert (served.task, served.policy.obs_dim, served.policy.action_dim, served.sees["state"][0]) == ("lab/wave", 4, 2, (4,))
    policy, task = chooser(asked(task="lab/close", text="Close the drawer."))(make(), "lab/open")
    assert task == "lab/close" and policy.KIND == "flow" and words(policy.text) == words("close the drawer")
    distilled = make()
    distilled.distilled = True
    assert chooser(asked(head="one-step"))(distilled, "lab/open")[0].head == "one-step"


@pytest.mark.parametrize(("flags", "told"), [
    ({"task": "lab/opne"}, "was never told to do 'lab/opne', did you mean 'lab/open'"),
    ({"head": "one-step"}, "its one-step head was never trained"), ({"head": "ddim"}, "a flow policy acts with head flow or one-step")])
def test_what_a_policy_has_not_is_a_line(flags: dict[str, Any], told: str) -> None:
    with pytest.raises(RealrlError, match=told):
        chooser(asked(**flags))(make(), "lab/open")


def test_one_that_is_told_nothing_does_its_own_task() -> None:
    other: Any = SimpleNamespace(KIND="gaussian")
    assert chooser(asked(task="lab/open"))(other, "lab/open") == (other, "lab/open")
    with pytest.raises(RealrlError, match="--text: a gaussian policy is told nothing: leave it out"):
        for_task(other, "lab/open", "go")
    with pytest.raises(RealrlError, match="--text: a remote policy is told nothing: say it to `realrl serve`"):
        for_task(cast("Any", SimpleNamespace(KIND="remote")), "lab/open", "go")
    with pytest.raises(RealrlError, match="--task lab/close: a gaussian policy does one task, lab/open"):
        chooser(asked(task="lab/close"))(other, "lab/open")


@pytest.mark.parametrize("command", [deploy, serve, export])
def test_the_commands_have_the_flags(command: Any) -> None:
    top = argparse.ArgumentParser()
    command.add(top.add_subparsers(parser_class=Parser))
    name = command.__name__.rpartition(".")[2]
    args = top.parse_args([name, "--policy", "p", *(["--robot", "ws://x"] if name == "deploy" else []), "--task", "a/b", "--text", "go"])
    assert (args.task, args.text) == ("a/b", "go") and hasattr(args, "head") == (name != "export"), "a graph is of the one-step head"


def test_recordings_say_what_was_to_be_done() -> None:
    """What a person judges is what was asked for; a robot that judges itself judges its own task, whatever it was told."""
    def said(text: str, judged: bool, its: str = "open the drawer") -> str:
        env: Any = SimpleNamespace(task=TaskSpec("lab", "open", 5, 3, 10, 0.1, its, paraphrases=("pull it",)), about={"judged": judged})
        policy: Any = SimpleNamespace(KIND="flow", text=text)
        return deploy._said(policy, env)
    assert said("close the drawer", False) == "close the drawer"
    assert said("close the drawer", True) == "" and said("Open the drawer.", False) == "" and said("pull it", False) == ""


def test_a_text_never_seen_is_warned_of_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
                                                    ) -> None:
    """Also one that is near to what it knows: opposites are."""
    with pytest.warns(UserWarning, match=r"'shut the drawer' was never seen in training; the nearest is 'close the drawer' \(lab/close"):
        make().told("lab/open", "shut the drawer")
    with pytest.warns(UserWarning, match="it knows one task and does it whatever it is told"):
        make({"lab/open": TASKS["lab/open"]}).told("lab/open", "close the drawer")
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    ours = str(Path(cli.__file__).parents[1] / "policies" / "flow.py")
    assert warnings.formatwarning("the text", UserWarning, ours, 1, None) == "warning: the text\n"
    assert "UserWarning" in warnings.formatwarning("old", UserWarning, "/elsewhere/x.py", 1, None)
