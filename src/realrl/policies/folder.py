"""A policy in a folder: policy.json says what it is, the weights lie beside it in safetensors. Saved and loaded by kind.

A kind is a class with `KIND`, `describe() -> dict` (all that building it again needs, as JSON) and `rebuild(about, source)`; a new one
gets a line in `_kind`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from realrl import config
from realrl.files import write_json
from realrl.run import read_parts, save_parts
from realrl.types import RealrlError, Stateful, TaskSpec

if TYPE_CHECKING:
    from realrl.policies.diffusion import DiffusionPolicy

FORMAT = 1


class Storable(Stateful, Protocol):
    """A policy that a folder can hold."""

    KIND: str

    def describe(self) -> dict[str, Any]:
        """What `rebuild` needs, as plain JSON values."""
        ...



def save_policy(policy: Storable, path: Path, *, task: str, sight: Any = None) -> None:
    """Write a folder that `load_policy` reads. sight: the configuration of what it saw in training, so that an evaluation can show it
    the same."""
    path.mkdir(parents=True, exist_ok=True)
    save_parts(path, 0, {"weights": policy})
    about = policy.describe()
    seen = {"sight": config.to_dict(sight)} if about.get("senses") and sight else {}
    write_json(path / "policy.json", {"kind": policy.KIND, "format": FORMAT, "task": task, **about, **seen})


def load_policy(path: str | Path, device: str | torch.device = "cpu") -> tuple[DiffusionPolicy, str]:
    """The policy in a folder written by `save_policy`, ready to act, and the task it was trained on.

    Raises RealrlError when the folder is no policy, is damaged, or was written by a newer format.
    """
    path = Path(path)
    about = read_policy_json(path)
    policy = _kind(about["kind"]).rebuild(about, str(path / "policy.json"))
    _, parts = read_parts(path)
    try:
        policy.load_state_dict(parts["weights"])
    except (RuntimeError, KeyError) as error:
        raise RealrlError(f"{path}: the weights do not fit policy.json ({str(error).splitlines()[0]}): save the policy again") from None
    return policy.to(device).eval().requires_grad_(False), about["task"]


def _kind(name: str) -> type[DiffusionPolicy]:
    """The class of a kind, imported when it is needed."""
    from realrl.policies.diffusion import DiffusionPolicy
    return {DiffusionPolicy.KIND: DiffusionPolicy}[name]


def read_policy_json(path: Path) -> dict[str, Any]:
    """The description of a saved policy, checked. Raises RealrlError."""
    file = path / "policy.json"
    try:
        about = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise RealrlError(f"{path}: no policy here (policy.json is missing): give the folder a run wrote, e.g. runs/main/policy") from None
    except ValueError as error:
        raise RealrlError(f"{file}: not valid JSON ({error}): the file is damaged, export the policy again") from None
    if not isinstance(about, dict):
        raise RealrlError(f"{file}: holds no object but a {type(about).__name__}: the file is damaged, export the policy again")
    if about.get("format") != FORMAT or about.get("kind") != "diffusion":
        raise RealrlError(f"{file}: kind {about.get('kind')!r}, format {about.get('format')!r}; this version reads diffusion, format 1")
    missing = [key for key in ("task", "head", "name", "obs_dim", "action_dim", "config") if key not in about]
    if missing:
        raise RealrlError(f"{file}: {', '.join(missing)} is missing: the file is damaged, export the policy again")
    out: dict[str, Any] = about
    return out


def check_fit(policy: DiffusionPolicy, spec: TaskSpec, name: object, trained_on: str) -> None:
    """Raise RealrlError unless a policy fits a task. name: of the policy, for the message; trained_on: its own task."""
    mine, its = (policy.obs_dim, policy.action_dim), (spec.obs_dim, spec.action_dim)
    if policy.senses != dict(spec.senses):
        raise RealrlError(f"{name} was trained on {trained_on} and sees {_listed(policy.senses)}, but {spec.id} shows "
                          f"{_listed(spec.senses)}: give the --sight it was trained with")
    if mine != its:
        raise RealrlError(f"{name} was trained on {trained_on}, with {mine[0]} observation and {mine[1]} action numbers, but {spec.id} has "
                          f"{its[0]} and {its[1]}: give the task it was trained on")


def _listed(senses: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{key} {list(shape)}" for key, shape in senses.items()) or "the state alone"
