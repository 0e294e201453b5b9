"""The command line: what it prints where, what it answers to mistakes, and that its commands fit together."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from children import Child
from realrl import config, envs
from realrl.cell.collect import Collector
from realrl.cell.evaluate import HELD_OUT, evaluate
from realrl.cli import main as cli
from realrl.cli import parser
from realrl.cli.data import episodes as recording
from realrl.data.store import Store
from realrl.generative.diffusion import DiffusionConfig
from realrl.policies.diffusion import DiffusionPolicy, PolicyConfig
from realrl.policies.folder import load_policy, save_policy
from realrl.policies.gaussian import GaussianConfig, GaussianPolicy
from realrl.scene import CollectConfig

SOURCE = Path(cli.__file__).resolve().parents[2]
TINY = ["--policy.hidden", "16", "--policy.blocks", "1", "--policy.chunk", "2", "--imitation.steps", "30", "--imitation.batch", "32",
        "--demos", "4", "--demo-noise", "0", "--collect.workers", "1"]


def python(*args: str, **more: Any) -> subprocess.Popen[str]:
    """A fresh interpreter that finds this checkout's realrl."""
    return subprocess.Popen([sys.executable, *args], env={**os.environ, "PYTHONPATH": str(SOURCE)}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """An untrained policy for toy/obstacle."""
    cfg = PolicyConfig(chunk=4, hidden=16, blocks=1, diffusion=DiffusionConfig(steps=3))
    save_policy(DiffusionPolicy(cfg, 2, 2), tmp_path / "policy", task="toy/obstacle")
    return tmp_path / "policy"


def fails(capsys: pytest.CaptureFixture[str], *args: str, code: int = 2, said: str = "") -> str:
    """The one line that a wrong command prints, after checking that it is one and alone; said: on standard output, before."""
    capsys.readouterr()
    assert cli.main(args) == code
    out, err = capsys.readouterr()
    assert out == said and err.startswith("error: ") and err.count("\n") == 1, (out, err)
    return err


# -- help, lists and mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["", "train", "train bc", "train rl100", "train walk", "evaluate", "view", "data", "data demos",
                                     "data info", "data check", "report", "tasks", "doctor"])
def test_help_teaches_at_every_level(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([*command.split(), "--help"])
    out = capsys.readouterr().out
    assert left.value.code == 0
    assert "example:" in out and f"realrl {command}".strip() in out.partition("example:")[2]
    if command.startswith("train "):
        assert "--run DIR" in out and "--resume" in out and ("--sac.utd" if command == "train walk" else "--imitation.lr") in out


SLOW = {"torch", "mujoco", "metaworld", "matplotlib"}  # seconds to import


@pytest.mark.parametrize(("args", "slow"), [
    ("--help", SLOW), ("data demos --help", SLOW), ("tasks", SLOW)])
def test_lists_and_help_come_at_once(args: str, slow: set[str]) -> None:
    code = ("import sys; from realrl.cli.main import main\n"
            "try: main(sys.argv[1:])\n"
            "except SystemExit: pass\n"
            "print(*sys.modules, file=sys.stderr)")
    out, err = python("-c", code, *args.split()).communicate(timeout=60)
    assert out and not slow & set(err.split())


@pytest.mark.parametrize(("command", "answer"), [
    ("evalute", "unknown command 'evalute', did you mean 'evaluate'?"),
    ("data chekc x", "unknown action 'chekc', did you mean 'check'?"),
    ("train rl10", "unknown method 'rl10', did you mean 'rl100'?"),
    ("evaluate --polcy x", "unknown option '--polcy', did you mean '--policy'?"),
    ("data demos --task toy/obstacle --epsiodes 3", "unknown option '--epsiodes', did you mean '--episodes'?"),
    ("evaluate --policy x --head one_step", "did you mean 'one-step'?"),
    ("evaluate", "required: --policy (see `realrl evaluate --help`)"),
    ("evaluate --policy x --episodes 0", "argument --episodes: must be a whole number of at least 1, got '0'"),
    ("tasks toy more", "unexpected argument 'more'"),
    ("tasks peg-insrt-side", "did you mean 'metaworld/peg-insert-side-v3'?"),
    ("data demos --task toy/obstcle --episodes 3 --out x", "no task 'toy/obstcle': did you mean 'toy/obstacle'?"),
    ("data demos --task gym/HalfCheetah-v5 --episodes 3 --out x", "gym/HalfCheetah-v5 has no scripted expert"),
    ("data demos --task toy/line --episodes 3 --out x --expert y", "its expert is a script and takes no file"),
    ("data info nowhere", "nowhere is not a LeRobot dataset"),
    ("evaluate --policy nowhere", "nowhere: no policy here"),
    ("report nowhere", "nowhere: no such run directory"),
    ("view toy/reahc", "no task 'toy/reahc': did you mean 'toy/reach'?"),
    ("view nowhere", "no task 'nowhere': see `realrl tasks` for the list; nor is there a folder of this name"),
    ("view toy/reach --worst 2", "--worst is for recorded episodes"),
    ("view toy/reach --sight rgb,sonar", "no sight 'sonar'"),
    ("view toy/reach --policy nowhere", "nowhere: no policy here"),
    ("view toy/reach --episodes 1-3", "'1-3' is no number and no range"),
    ("train rl100 --resume", "add --run DIR"),
    ("train bc --task toy/lin --run x", "no task 'toy/lin': did you mean 'toy/line'?"),
    *((f"train {method} --data x", f"--data x: {method.split()[0]} practises too, in a simulator or on a robot: say where with --task")
      for method in ("hil-serl", "dida", "daydreamer --demo-share 0.5")),
    ("train bc --config nowhere.yaml", "cannot read the configuration nowhere.yaml"),
])
def test_a_mistake_gets_one_line(command: str, answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                 capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert answer in fails(capsys, *command.split())
    assert not list(tmp_path.iterdir())  # and leaves nothing behind


def test_an_unknown_field_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["train", "bc", "--imitation.step", "3"])
    assert left.value.code == 2
    assert "--imitation.steps" in capsys.readouterr().err


def test_a_full_gpu_is_a_mistake_that_names_its_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB. Of it")
    monkeypatch.setattr("realrl.algos.bc.train", full)
    run = str(tmp_path / "run")
    assert fails(capsys, "train", "bc", "--task", "toy/line", "--run", run) == (
        "error: CUDA out of memory. Tried to allocate 2.00 GiB: make batches smaller, end what else is on the GPU, or give --device cpu, "
        f"then continue with: realrl train bc --run {run} --resume --task toy/line\n")
    monkeypatch.setattr("realrl.algos.bc.train", lambda *_: [][0])
    with pytest.raises(IndexError):
        cli.main(["train", "bc", "--task", "toy/line", "--run", str(tmp_path / "bug")])


@pytest.mark.parametrize("command", ["evaluate", "serve", "deploy --robot ws://127.0.0.1:1"])
def test_a_device_that_is_not_here_is_named(command: str, policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = f"loading {policy}, then connecting to ws://127.0.0.1:1\n" if "deploy" in command else ""
    told = fails(capsys, *command.split(), "--policy", str(policy), "--device", "xpu", said=said)
    assert "--device xpu: torch finds no such device here; give cpu" in told


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("REALRL_DEBUG", "1")
    assert cli.main(["tasks", "no-such-task"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_tasks_version_and_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tasks"]) == 0
    assert capsys.readouterr().out.split() == envs.tasks()
    assert cli.main(["tasks", "toy"]) == 0
    assert capsys.readouterr().out.split() == ["toy/identity", "toy/obstacle", "toy/line", "toy/red", "toy/blue", "toy/reach"]
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.startswith("realrl ")
    assert cli.main(["doctor"]) in (0, 1)
    assert "torch" in capsys.readouterr().out
    assert cli.main([]) == 2
    assert "evaluate" in capsys.readouterr().err


def test_python_m_realrl_into_a_pipe_that_closes() -> None:
    process = python("-m", "realrl", "tasks")
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.wait(60) in (0, 141)  # 141 where Python is told to write at once (PYTHONUNBUFFERED): amid the command, then
    assert process.stderr.read() == ""
    process.stderr.close()


# -- data -------------------------------------------------------------------------------------------------------------------------


def demos(out: Path, count: int, *more: str) -> int:
    return cli.main(["data", "demos", "--task", "toy/obstacle", "--episodes", str(count), "--out", str(out), "--workers", "1", *more])


def test_demonstrations_are_recorded_described_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demos"
    assert demos(out, 25, "--noise", "0.4") == 0
    episodes = Store.open(out).read()
    good, bad = sum(e.succeeded for e in episodes), sum(not e.succeeded for e in episodes)
    assert good == 25 and bad > 0
    assert f"25 demonstrations of toy/obstacle and {bad} failed attempts" in capsys.readouterr().out
    assert all(e.seed is not None and e.seed < HELD_OUT for e in episodes)
    assert demos(out, 25, "--noise", "0.4") == 0 and len(Store.open(out)) == len(episodes)  # already there
    assert demos(out, 30, "--noise", "0.4") == 0
    assert sum(e.succeeded for e in Store.open(out).read()) == 30
    capsys.readouterr()
    assert cli.main(["data", "info", str(out)]) == 0
    text = capsys.readouterr().out
    for word in ("toy/obstacle", "script-obstacle+noise0.4", "10 steps/s", "observation.state", str(len(Store.open(out)))):
        assert word in text, word
    assert cli.main(["data", "check", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: nothing wrong\n"


def test_an_interrupted_recording_continues_to_the_same_episodes(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert demos(whole, 6, "--noise", "0.5", "--seed", "3") == 0
    episodes = Store.open(whole).read()
    store = Store.create(parts, task="toy/obstacle", fps=10)

    def interrupted() -> Any:
        yield from episodes[:4]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recording.append(store, interrupted())
    assert len(store) == 4  # what was finished is safe
    assert demos(parts, 6, "--noise", "0.5", "--seed", "3") == 0

    def content(folder: Path) -> dict[int | None, tuple[bytes, bool]]:
        return {e.seed: (e.action.tobytes(), e.succeeded) for e in Store.open(folder).read()}
    assert content(parts) == content(whole)


def test_an_expert_that_never_succeeds_is_given_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demos(tmp_path / "demos", 5, "--noise", "50", "--task", "toy/identity") == 2
    assert "the expert succeeded 0 times in 100 attempts" in capsys.readouterr().err
    assert len(Store.open(tmp_path / "demos")) == 100  # failures are kept


def test_a_truncated_dataset_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demos"
    assert demos(out, 2) == 0
    capsys.readouterr()
    data, = out.glob("data/*/*.parquet")
    whole = data.read_bytes()
    data.write_bytes(whole[:len(whole) // 2])
    assert cli.main(["data", "check", str(out)]) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("error: ") and str(data) in first and last == f"{out}: 1 errors, 0 warnings"
    data.write_bytes(whole)
    rows, = out.glob("meta/episodes/*/*.parquet")
    rows.write_bytes(rows.read_bytes()[:100])
    assert str(rows) in fails(capsys, "data", "info", str(out))
    assert cli.main(["data", "check", str(out)]) == 1
    assert str(rows) in fails(capsys, "train", "bc", "--task", "toy/obstacle", "--data", str(out), "--run", str(tmp_path / "run"))


# -- evaluate ---------------------------------------------------------------------------------------------------------------------


def measured(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    """What `evaluate --json` printed, after checking that nothing else is on standard output."""
    assert cli.main(["evaluate", "--json", "--workers", "1", *args]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_evaluate_prints_json_alone(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = measured(capsys, "--policy", str(policy), "--episodes", "6", "--seed", "2")
    assert set(result) == {"success", "cycle_steps", "cycle_s", "successes_per_hour", "episode_return", "latency_ms", "task", "policy",
                           "head", "seed", "episodes", "failures"}
    assert set(result["success"]) == {"rate", "n", "low", "high"} and set(result["latency_ms"]) == {"p50", "p99"}
    assert (result["task"], result["policy"], result["head"]) == ("toy/obstacle", str(policy), "ddim")
    assert (result["seed"], result["episodes"], result["success"]["n"]) == (2, 6, 6)
    assert len(result["failures"]) == 6 - round(6 * result["success"]["rate"])
    with Collector("toy/obstacle", CollectConfig(workers=1)) as collector:
        same = evaluate(collector, load_policy(policy)[0], 6, seed=2, dt=0.1).to_dict()
    assert all(same[name] == result[name] for name in ("success", "failures", "episode_return", "cycle_steps"))


def test_evaluate_keeps_stdout_clean_from_everybody(policy: Path) -> None:
    """Also from what workers and C libraries write to the file behind it."""
    code = ("import os, sys; from realrl import envs; from realrl.cli import main as cli; make = envs.make\n"
            "def loud(*args, **more): os.write(1, b'noise'); print('more noise'); return make(*args, **more)\n"
            "envs.make = loud; sys.exit(cli.main(sys.argv[1:]))")
    command = ["evaluate", "--json", "--policy", str(policy), "--episodes", "2", "--workers", "1"]
    _, out, err = Child("-c", code, *command).wait()
    assert json.loads(out)["episodes"] == 2 and "more noise" in err


def test_failures_are_kept_shown_and_reported(policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"stage": "imitation", "step": 0, "loss": 1.0}\n')
    page = tmp_path / "failures-ddim/failures.html"
    result = measured(capsys, "--policy", str(policy), "--episodes", "6", "--save-failures", "2")
    assert result["failures_page"] == str(page) and "seed " + str(result["failures"][0]) in page.read_text()
    kept = Store.open(tmp_path / "failures-ddim/failures").read()
    assert [e.seed for e in kept] == result["failures"][:2] and not any(e.succeeded for e in kept)
    assert "earlier evaluation: choose another folder" in fails(capsys, "evaluate", "--policy", str(policy), "--save-failures", "2")
    assert cli.main(["evaluate", "--policy", str(policy), "--episodes", "2", "--workers", "1", "--save-failures", "1", "--out",
                     str(tmp_path / "again")]) == 0
    out = capsys.readouterr().out
    assert f"failures: {tmp_path / 'again/failures.html'}\nreport: {tmp_path / 'report.html'}\n" in out
    html = (tmp_path / "report.html").read_text()
    assert f"Seed {kept[0].seed}" in html and 'href="again/failures.html"' in html
    capsys.readouterr()
    assert cli.main(["view", str(tmp_path)]) == 0
    assert f"\n{tmp_path / 'view/failures-ddim.html'}  (" in capsys.readouterr().out


def test_view_of_a_task_and_of_what_was_recorded(policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["view", "toy/reach", "--sight", "rgb,pointcloud", "--episodes", "0:2", "--mp4"]) == 0
    names = ["episodes.html", "episodes-0.mp4", "episodes-1.mp4"]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [f"view-toy-reach/{name}" for name in names]
    assert cli.main(["view", "toy/obstacle", "--policy", str(policy), "--seed", "7", "--out", "seen"]) == 0
    assert "seed 7" in Path("seen/episodes.html").read_text()
    assert demos(tmp_path / "demos", 3) == 0
    assert cli.main(["view", "demos", "--worst", "1"]) == 0
    assert Path("demos-view/demos.html").read_text().count('class="episode"') == 1


def test_another_sampler_on_the_same_weights(policy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    acted, collect = [], Collector.collect
    monkeypatch.setattr(Collector, "collect", lambda self, actor, *a, **k: acted.append(actor) or collect(self, actor, *a, **k))
    for more in ((), ("--sampler", "sampled")):
        assert cli.main(["evaluate", "--policy", str(policy), "--episodes", "2", "--workers", "1", "--json", *more]) == 0
    assert [a.cfg.diffusion.greedy for a in acted] == ["mean", "sampled"] and acted[1].diffusion.cfg.greedy == "sampled"
    taught, _ = load_policy(policy)
    taught.distilled = True
    save_policy(taught.with_head("one-step"), policy, task="toy/obstacle")
    assert "add --head ddim" in fails(capsys, "evaluate", "--policy", str(policy), "--sampler", "mean")


def test_an_untrained_head_is_refused(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "its one-step head was never trained" in fails(capsys, "evaluate", "--policy", str(policy), "--head", "one-step")


def test_a_gaussian_policy_is_evaluated_and_viewed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_policy(GaussianPolicy(GaussianConfig(hidden=(8,)), 2, 2), tmp_path / "policy", task="toy/obstacle")
    result = measured(capsys, "--policy", str(tmp_path / "policy"), "--episodes", "3")
    assert (result["head"], result["success"]["n"]) == ("mean", 3)
    assert "but one way to act" in fails(capsys, "evaluate", "--policy", str(tmp_path / "policy"), "--head", "ddim")
    assert "but one way to act" in fails(capsys, "evaluate", "--policy", str(tmp_path / "policy"), "--sampler", "mean")
    assert "a diffusion policy is needed here" in fails(capsys, "train", "rl100", "--task", "toy/obstacle", "--run", str(tmp_path / "run"),
                                                        "--init", str(tmp_path / "policy"), "--stages", "online")
    assert "with 2 observation and 2 action numbers" in fails(capsys, "view", "toy/line", "--policy", str(tmp_path / "policy"))
    shown = cli.main(["view", "toy/obstacle", "--policy", str(tmp_path / "policy"), "--sight", "state", "--out", str(tmp_path / "page")])
    assert shown == 0 and list((tmp_path / "page").glob("*.html"))


def test_evaluate_for_people_and_with_the_other_head(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = json.loads((policy / "policy.json").read_text())
    (policy / "policy.json").write_text(json.dumps({**about, "distilled": True}))
    assert cli.main(["evaluate", "--policy", str(policy), "--episodes", "3", "--workers", "1", "--head", "one-step", "--horizon", "5"]) == 0
    out = capsys.readouterr().out
    assert "one-step" in out and "0.0 %" in out and f"failed starts: {HELD_OUT}, {HELD_OUT + 1}, {HELD_OUT + 2}" in out


def test_a_policy_of_another_shape_is_refused(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = fails(capsys, "evaluate", "--policy", str(policy), "--task", "toy/line")
    assert "trained on toy/obstacle, with 2 observation and 2 action numbers, but toy/line has 1 and 1" in told


# -- train and report -------------------------------------------------------------------------------------------------------------


def test_a_device_that_fails_is_no_file() -> None:
    assert str(parser.told(TimeoutError("camera front: no frame within 2 s"))) == "TimeoutError: camera front: no frame within 2 s"
    assert "demos: No such file" in str(parser.told(FileNotFoundError(2, "No such file or directory", "demos")))


def test_a_run_of_which_nothing_came_may_begin_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its expert was named wrongly, say: neither is there anything to continue nor a configuration to keep."""
    flags, run = ["train", "bc", "--task", "adroit/door", "--run", str(tmp_path / "door")], tmp_path / "door"
    assert "--expert FILE" in fails(capsys, *flags)
    (tmp_path / "door.pickle").write_bytes(pickle.dumps({"a": 1}))
    for file, answer in (("nosuch.npz", "no such file"), ("door.pickle", "it is a pickle")):
        assert answer in fails(capsys, *flags, "--expert", str(tmp_path / file))
    assert cli.main(["train", "bc", "--task", "toy/line", "--run", str(run), "--eval-episodes", "5", *TINY]) == 0
    assert config.read(run / "config.yaml")["task"] == "toy/line" and len(Store.open(run / "dataset"))
    (run / "metrics.jsonl").write_bytes(b"")
    assert "not empty; continue it with --resume" in fails(capsys, *flags)
    assert len(Store.open(run / "dataset"))


def test_train_bc_then_resume_evaluate_and_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["train", "bc", "--task", "toy/line", "--eval-episodes", "5", *TINY]
    assert cli.main(flags) == 0
    out = capsys.readouterr().out
    folder, = Path("runs").iterdir()
    assert folder.name.startswith("bc-toy-line-")
    assert "imitation" in out and f"report: {folder}/report.html" in out and f"policy: {folder}/policy" in out
    assert "not empty; continue it with --resume" in fails(capsys, *flags, "--run", str(folder))
    assert cli.main(["train", "bc", "--run", str(folder), "--resume", "--collect.workers", "2"]) == 0  # its own configuration
    assert "cannot resume" in fails(capsys, "train", "bc", "--run", str(folder), "--resume", "--seed", "9")
    (folder / "report.html").unlink()
    assert f"give {folder}/policy\n" in fails(capsys, "evaluate", "--policy", str(folder))
    assert f"give {folder}/policy\n" in fails(capsys, "evaluate", "--policy", str(folder / "checkpoints"))
    (folder / "policy").rename("elsewhere")
    assert f"the run in {folder} has not come so far" in fails(capsys, "evaluate", "--policy", str(folder / "policy"))
    Path("elsewhere").rename(folder / "policy")
    capsys.readouterr()
    assert cli.main(["report", str(folder)]) == 0
    assert Path(capsys.readouterr().out.strip()).is_file()
    assert measured(capsys, "--policy", str(folder / "policy"), "--episodes", "5")["task"] == "toy/line"
    assert cli.main(["train", "bc", "--config", f"{folder}/config.yaml", "--seed", "1", "--run", "again"]) == 0


def test_ctrl_c_says_how_to_resume(tmp_path: Path) -> None:
    run = tmp_path / "a run"
    process = Child("-m", "realrl", "train", "bc", "--task", "toy/line", "--run", run, *TINY, "--imitation.steps", "1000000")
    deadline = time.monotonic() + 60
    while not list(run.glob("tb/*/events*")):  # imports are over, the fit is under way
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.signal(signal.SIGINT)
    code, _, err = process.wait()
    assert code in (130, -signal.SIGINT)  # the same to a shell; Python chooses
    last = err.splitlines()[-1]
    assert last.startswith(f"interrupted; continue with: realrl train bc --run '{run}' --resume --task toy/line")
    assert "Traceback" not in err
    assert sum(e.succeeded for e in Store.open(run / "dataset").read()) == 4


def test_train_rl100_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All stages on a toy with budgets that only prove that the parts fit; tests/algos has the ones that learn."""
    run = tmp_path / "run"
    small = {"policy.diffusion.steps": 4, "offline.rollouts": 8, "offline.iterations": 2, "offline.reimitation": 20,
             "offline.gate-every": 1, "offline.states": 64, "critic.steps": 20, "critic.hidden": 16, "ope.members": 3, "ope.elites": 2,
             "ope.steps": 20, "ope.starts": 8, "online.iterations": 2, "online.episodes": 6, "online.warmup": 1, "distill.steps": 20,
             "distill.chains": 32, "distill.batch": 32, "eval-episodes": 4, "final-episodes": 5, "audit-episodes": 3}
    flags = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    assert cli.main(["train", "rl100", "--task", "toy/line", "--run", str(run), *TINY, *flags]) == 0
    out = capsys.readouterr().out
    for stage in ("imitation", "offline-1", "online", "one-step"):
        assert stage in out
    page = (run / "report.html").read_text()
    for part in ("Success per stage", "Learning curves", "Offline estimate against truth", "Action latency"):
        assert f"<h2>{part}</h2>" in page, part
    result = measured(capsys, "--policy", str(run / "policy"), "--episodes", "5")
    assert (result["head"], result["task"]) == ("one-step", "toy/line")
    stages = json.loads((run / "summary.json").read_text())["stages"]
    assert stages[-1]["success"] == result["success"]  # the same starts, the same policy: the same numbers
