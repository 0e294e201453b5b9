"""A policy as one ONNX graph, from observations and noise to a chunk, run by ONNX Runtime on one thread of the CPU (`serve.export`).

Two to three times as fast as the same policy in PyTorch at batch 1, and anything that reads ONNX can run it: policy.json says what goes in
and what comes out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from realrl import config
from realrl.files import read_plain
from realrl.types import Array, Obs, Plan, RealrlError, State

GRAPH = "policy.onnx"
MOST = 2**31  # bytes of a graph: what its format can hold


@dataclass(frozen=True)
class ExportedAbout:
    """What the policy.json of an export says of its graph. noise: whether it wants standard normal noise [1, K, A] beside what is seen;
    sha256: of the graph's file, so that the two belong together; plan: actions of a plan, K, where fewer are carried out (chunk)."""

    head: Literal["one-step", "mean"]
    name: str
    obs_dim: int
    action_dim: int
    chunk: int
    n_obs: int
    noise: bool
    sha256: str
    senses: dict[str, tuple[int, ...]] = field(default_factory=dict)
    plan: int = 0

    def __post_init__(self) -> None:
        config.check(self, obs_dim="[1, 1e6]", action_dim="[1, 1e4]", chunk="[1, 1000]", n_obs="[1, 1000]", plan="[0, 1000]")

    def inputs(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Name -> (shape, type) of what the graph takes, in its order; its one output is `action` [1, K, A]."""
        seen: dict[str, tuple[tuple[int, ...], str]] = {"state": ((1, self.n_obs, self.obs_dim), "float32")}
        seen |= {"noise": ((1, self.plan or self.chunk, self.action_dim), "float32")} if self.noise else {}
        return seen | {key: ((1, self.n_obs, *shape), sense_type(key).name) for key, shape in self.senses.items()}


def sense_type(key: str) -> np.dtype[Any]:
    """The type of an observation's numbers, by its name: colours are bytes, depths are millimetres, all others float32."""
    return np.dtype({"images": np.uint8, "depth": np.uint16}.get(key.partition(".")[0], np.float32))


class ExportedPolicy:
    """Plans [B, K, A] of an exported graph; see `types.Policy`. It acts as it is deployed, whatever `greedy` says of a one-step head."""

    KIND: Literal["onnx"] = "onnx"

    def __init__(self, about: ExportedAbout, graph: bytes, source: str) -> None:
        """source: where the graph lies, for errors. Raises RealrlError without ONNX Runtime, and for a graph that is not as described."""
        self.about, self.graph, self.source = about, graph, source
        self.name, self.head, self.chunk, self.n_obs = about.name, about.head, about.chunk, about.n_obs
        self.obs_dim, self.action_dim, self.senses = about.obs_dim, about.action_dim, about.senses
        self._looks = [(key, (self.n_obs, *shape), sense_type(key)) for key, shape in
                       {"state": (self.obs_dim,), **self.senses}.items()]
        self._session = _session(graph, source)
        told = {key: (tuple(shape), kind) for key, (shape, kind) in about.inputs().items()}
        found = {i.name: (tuple(i.shape), _type(i.type)) for i in self._session.get_inputs()}
        if told != found or [(o.name, tuple(o.shape)) for o in self._session.get_outputs()] != [
                ("action", (1, self.chunk, self.action_dim))]:
            raise RealrlError(f"{source}: the graph is not what policy.json beside it describes: export the policy again")

    def start(self, batch: int) -> State:
        """It remembers nothing."""
        return {}

    def act(self, obs: Obs, state: State, *, greedy: bool, rng: Sequence[np.random.Generator]) -> tuple[Plan, State]:
        """Plans from observations (state: [B, H, D]), row by row. Raises RealrlError on other shapes, and for who explores with a mean."""
        if not (greedy or self.about.noise):
            raise RealrlError(f"{self.name}: an exported policy acts as it is deployed: explore with the one it was exported from")
        seen = {}
        for key, shape, kind in self._looks:
            if key not in obs:
                raise RealrlError(f"observation {key!r} is missing, the policy looks at {', '.join(k for k, *_ in self._looks)}")
            x = obs[key]
            if x.shape[1:] != shape:
                raise RealrlError(f"observation {key!r} has shape {list(x.shape[1:])} but the policy was trained on {list(shape)} "
                                  "(history, ...): use the task, n_obs and sight it was trained with")
            if x.dtype != kind:
                if kind.kind != "f":
                    raise RealrlError(f"observation {key!r} is {x.dtype} but the policy was trained on {kind}: give what the camera gave")
                x = x.astype(kind)
            seen[key] = x
        rows = [self._row({key: x[i:i + 1] for key, x in seen.items()}, noise) for i, noise in enumerate(rng)]
        return Plan(rows[0] if len(rows) == 1 else np.concatenate(rows)), state

    def _row(self, seen: dict[str, Array], rng: np.random.Generator) -> Array:
        if self.about.noise:
            seen["noise"] = rng.standard_normal((1, self.about.plan or self.chunk, self.action_dim), dtype=np.float32)
        action: Array = self._session.run(None, seen)[0]
        return action

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes: a session cannot be sent."""
        return {"about": self.about, "graph": self.graph, "source": self.source}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def read_exported(path: Path, told: Mapping[str, Any]) -> ExportedPolicy:
    """The policy in a folder whose policy.json holds `told`. Raises RealrlError where the graph is missing, damaged or another one."""
    names = ExportedAbout.__dataclass_fields__
    about = config.from_dict(ExportedAbout, {k: v for k, v in told.items() if k in names}, source=str(path / "policy.json"))
    file = path / GRAPH
    try:
        graph = read_plain(file, MOST)
    except OSError as error:
        raise RealrlError(f"{file} cannot be read ({error.strerror or error}): export the policy again") from None
    if digest(graph) != about.sha256:
        raise RealrlError(f"{file} is damaged, or not the graph that policy.json beside it describes: export the policy again")
    return ExportedPolicy(about, graph, str(file))


def digest(graph: bytes) -> str:
    """The SHA-256 of a graph, in hexadecimal."""
    return hashlib.sha256(graph).hexdigest()


def _session(graph: bytes, source: str) -> Any:
    """ONNX Runtime on one thread that does not spin while it waits: a robot's other threads need the cores."""
    try:
        import onnxruntime
    except ImportError as error:
        raise RealrlError(f"{source}: an exported policy needs ONNX Runtime ({error}): pip install 'realrl[serve]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it has exceptions of its own, which share no base below this
        why = " ".join(str(error).split())[:300]
        raise RealrlError(f"{source}: ONNX Runtime does not take it ({why}): export the policy again") from None


def _type(name: str) -> str:
    """ONNX Runtime's name of a tensor's type as numpy's."""
    inner = name.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32"}.get(inner, inner)
