"""A saved policy as one ONNX graph: normaliser, encoder, one-step head and reference in it; refused unless it says the same.

What it says is compared on observations that were recorded: a graph that agrees on invented numbers may still differ where the data lie.
"""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from realrl import config
from realrl.files import write_bytes, write_json
from realrl.policies.diffusion import DiffusionPolicy
from realrl.policies.exported import GRAPH, ExportedAbout, ExportedPolicy, digest
from realrl.policies.flow import FlowPolicy
from realrl.policies.folder import FORMAT, Choose, load_policy, read_policy_json, read_robot
from realrl.policies.gaussian import GaussianPolicy
from realrl.policies.recurrent import RecurrentPolicy
from realrl.policies.residual import ResidualPolicy
from realrl.serve.observations import Recorded, recorded
from realrl.types import Obs, Policy, RealrlError

Trained: TypeAlias = DiffusionPolicy | FlowPolicy | GaussianPolicy
TOLERANCE = 1e-5  # of actions in [-1, 1]
COMPARED = 256  # recorded observations, evenly spread


@dataclass(frozen=True)
class Export:
    """What came out. difference: the largest of an action in [-1, 1] on so many recorded observations; ms: p50 and p99 of a plan at batch 1
    on one thread, before and after."""

    folder: Path
    megabytes: float
    observations: int
    data: Path
    difference: float
    ms: dict[str, tuple[float, float]]


def export(source: Path, out: Path, data: Path | None = None, choose: Choose | None = None) -> Export:
    """Write `out`/policy.onnx and the policy.json that describes it, which `load_policy` reads like any other.

    source: folder of a saved policy; data: a data set to compare on, by default what its run recorded or learned from; choose: which of its
    tasks, for the instruction is built in. Raises RealrlError
    without a one-step head, without recorded observations, for a network that ONNX cannot express, and where the graph does not agree.
    """
    policy, task = load_policy(source)
    policy, task = choose(policy, task) if choose else (policy, task)
    if isinstance(policy, ExportedPolicy):
        raise RealrlError(f"{source}: it is an ONNX graph already: give the policy it was exported from")
    if isinstance(policy, RecurrentPolicy | ResidualPolicy):
        raise RealrlError(f"{source}: it remembers from step to step, which no graph of a single step does: serve the folder as it is")
    _check_room(source, out)
    policy = deployed(policy, source)
    told = read_policy_json(source)
    found = recorded(source, told, policy, data, COMPARED)
    about, graph = to_onnx(policy)
    exported = ExportedPolicy(about, graph, str(out / GRAPH))
    difference = compare(policy, exported, found.observations)
    if not difference <= TOLERANCE:  # also where it is NaN
        raise RealrlError(f"{source}: the graph differs by {difference:.2g} from the policy on {len(found.observations)} recorded "
                          f"observations of {found.data}, at most {TOLERANCE:g} is let through: nothing was written{_hint(policy)}")
    parity = {"observations": len(found.observations), "data": found.data.name, "largest_difference": difference, "tolerance": TOLERANCE}
    write_bytes(out / GRAPH, graph)
    kept = {key: told[key] for key in ("sight", "recall", "robot", "config") if key in told}
    write_json(out / "policy.json", {"kind": ExportedPolicy.KIND, "format": FORMAT, "task": task, **asdict(about), **kept,
                                     "interface": _interface(source, about, found), "parity": parity})
    ms = {name: _latency(who, found.observations) for name, who in (("torch", policy), ("onnx", exported))}
    return Export(out, len(graph) / 1e6, len(found.observations), found.data, difference, ms)


def deployed(policy: Trained, source: Path) -> Trained:
    """The policy with the head that is exported. Raises RealrlError where it was never trained."""
    if isinstance(policy, GaussianPolicy):
        return policy
    if not policy.distilled and isinstance(policy, FlowPolicy) and policy.goals is not None:
        raise RealrlError(f"{source}: a policy that is shown goals has no one-step head, and so no graph: serve it as it is (realrl serve "
                          "--policy DIR), or deploy it")
    if not policy.distilled:
        raise RealrlError(f"{source}: its one-step head was never trained, and a chain of denoising steps is not exported: train with "
                          "--one-step (bc, flow, recap), or run the stage one-step (rl100)")
    return policy.with_head("one-step")


def _check_room(source: Path, out: Path) -> None:
    if out.resolve() == source.resolve():
        raise RealrlError(f"--out {out}: the policy itself lies there: name another folder")
    if (out / "policy.json").exists() and read_policy_json(out)["kind"] != ExportedPolicy.KIND:
        raise RealrlError(f"--out {out}: another policy lies there: name another folder")
    if out.exists() and not out.is_dir():
        raise RealrlError(f"--out {out}: a file: name a folder, {GRAPH} and policy.json go into it")


def _hint(policy: Trained) -> str:
    half = isinstance(policy, DiffusionPolicy) and policy.senses and policy.cfg.encoder.bf16
    return "; its encoder computes in half the precision, train it with --policy.encoder.no-bf16" if half else ""


# -- the graph


class _Graph(nn.Module):
    """A policy as a function of tensors."""

    def __init__(self, policy: Trained, inputs: Sequence[str]) -> None:
        super().__init__()
        self.policy, self.inputs = policy, inputs

    def forward(self, values: tuple[Tensor, ...]) -> Tensor:
        """The chunk [1, K, A] from what `ExportedAbout.inputs` lists."""
        policy, seen = self.policy, dict(zip(self.inputs, values, strict=True))
        if isinstance(policy, GaussianPolicy):
            cond = policy.encode(seen)
            return policy.whole(cond, policy.distribution(cond)[0].tanh())
        x = policy.one_step(seen["noise"], policy.encode(seen))
        return x if policy.reference is None else policy.reference.decode(x, seen["state"])


def to_onnx(policy: Trained) -> tuple[ExportedAbout, bytes]:
    """(description, graph) of a policy as it is deployed. Raises RealrlError without the packages, and for what ONNX cannot express."""
    head, noise = ("mean", False) if isinstance(policy, GaussianPolicy) else ("one-step", True)
    about = ExportedAbout(head, policy.name, policy.obs_dim, policy.action_dim, policy.chunk, policy.n_obs, noise,  # type: ignore[arg-type]
                          "", policy.senses, policy.cfg.plan if isinstance(policy, FlowPolicy) else 0)
    inputs = {key: torch.zeros(shape, dtype=getattr(torch, kind)) for key, (shape, kind) in about.inputs().items()}
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise RealrlError(f"exporting needs onnx and onnxscript ({error}): pip install 'realrl[serve]'") from error
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(_Graph(policy, list(inputs)).eval(), (tuple(inputs.values()),), dynamo=True, verbose=False,
                                        input_names=list(inputs), output_names=["action"])
    except Exception as error:  # whatever the exporter trips over in somebody's network
        why = " ".join(str(error.__cause__ or error).split())[:300]
        raise RealrlError(f"{policy.name}: torch cannot express it in ONNX ({why}): run it with PyTorch") from error
    assert program is not None
    graph = program.model_proto.SerializeToString()
    return ExportedAbout(**{**asdict(about), "sha256": digest(graph)}), graph


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of packages that nobody here asked for."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# -- does it say the same


def compare(policy: Policy, other: Policy, observations: Sequence[Obs]) -> float:
    """The largest difference between two policies' actions on observations (each entry [1, H, ...]), with the same noise; NaN where one
    says so."""
    worst = 0.0
    for i, obs in enumerate(observations):
        said = [who.act(obs, who.start(1), greedy=True, rng=[np.random.default_rng(i)])[0].action for who in (policy, other)]
        worst = float(np.fmax(worst, np.abs(said[0] - said[1]).max())) if np.isfinite(said).all() else float("nan")
        if worst != worst:
            break
    return worst


def _latency(policy: Policy, observations: Sequence[Obs], calls: int = 100) -> tuple[float, float]:
    """(p50, p99) in milliseconds of a plan at batch 1 on one thread."""
    threads, times, rng = torch.get_num_threads(), [], [np.random.default_rng(0)]
    torch.set_num_threads(1)
    for i in range(calls + 10):
        obs = observations[i % len(observations)]
        before = time.perf_counter()
        policy.act(obs, policy.start(1), greedy=True, rng=rng)
        times.append((time.perf_counter() - before) * 1e3)
    torch.set_num_threads(threads)
    p50, p99 = np.percentile(times[10:], [50, 99])
    return float(p50), float(p99)


# -- what others need to run it


def _interface(source: Path, about: ExportedAbout, found: Recorded) -> dict[str, Any]:
    """What goes in, what comes out, and what its numbers mean: enough for whoever runs the graph without realrl."""
    robot, count = read_robot(source), about.action_dim
    inputs: dict[str, Mapping[str, Any]] = {key: {"shape": list(shape), "type": kind} for key, (shape, kind) in about.inputs().items()}
    if about.noise:
        inputs["noise"] = {**inputs["noise"], "values": "standard normal, drawn anew for every plan"}
    inputs["state"] = {**inputs["state"], "names": list(robot.state) if robot else found.state, "values": "as the robot reports them"}
    meaning: Mapping[str, Any] = config.to_dict(robot) if robot else {
        "actions": found.actions, "units": [""] * count, "low": [-1.0] * count, "high": [1.0] * count, "fps": found.fps}
    return {"inputs": inputs, "outputs": {"action": {
        "shape": [1, about.chunk, about.action_dim], "type": "float32",
        "values": "in [-1, 1]; in the robot's units low + (high - low) * (action + 1) / 2",
        **{key: meaning[key] for key in ("actions", "units", "low", "high")}}}, "actions_per_second": meaning["fps"]}
