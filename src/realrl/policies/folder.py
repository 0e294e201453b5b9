"""A policy in a folder: policy.json says what it is, the weights lie beside it in safetensors. Saved and loaded by kind.

A kind is a class with `KIND`, `describe() -> dict` (all that building it again needs, as JSON) and `rebuild(about, source)`; a new one
gets a word in `KINDS` and a line in `_kind` and `Saved`. One kind is not trained but made of another's: `policies.exported`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import torch
from torch import Tensor

from realrl import config
from realrl.checkpoint import finite, read_parts, save_parts
from realrl.files import read_json, write_json
from realrl.types import Policy, RealrlError, Stateful, TaskSpec

if TYPE_CHECKING:
    from realrl.policies.diffusion import DiffusionPolicy
    from realrl.policies.exported import ExportedPolicy
    from realrl.policies.flow import FlowPolicy
    from realrl.policies.gaussian import GaussianPolicy
    from realrl.policies.recurrent import RecurrentPolicy
    from realrl.policies.residual import ResidualPolicy
    from realrl.robots.embodiment import Embodiment

FORMAT: Final = 1
KINDS: Final = ("diffusion", "flow", "gaussian", "recurrent", "residual", "onnx")
Saved: TypeAlias = "DiffusionPolicy | FlowPolicy | GaussianPolicy | RecurrentPolicy | ResidualPolicy | ExportedPolicy"
Choose: TypeAlias = "Callable[[Saved, str], tuple[Saved, str]]"
"""(a policy, the task that it was trained on) -> (as it acts, what it does)"""


class Storable(Stateful, Protocol):
    """A policy that a folder can hold."""

    name: str

    @property
    def KIND(self) -> str:
        """What `_kind` knows it by."""
        ...

    def describe(self) -> dict[str, Any]:
        """What `rebuild` needs, as plain JSON values."""
        ...


def save_policy(policy: Storable, path: Path, *, task: str, sight: Any = None, recall: int = 0, robot: Embodiment | None = None) -> None:
    """Write a folder that `load_policy` reads. sight: the configuration of what it saw in training, so that an evaluation can show it
    the same; recall: how many of the last actions stood beside the state there; robot: whose numbers it speaks. Raises RealrlError for
    weights that are not finite, and where the disk is full."""
    finite(policy.state_dict(), f"{path}: the policy {policy.name!r}", "its training diverged: lower the learning rate")
    save_parts(path, 0, {"weights": policy.state_dict()})
    about = policy.describe()
    seen: dict[str, Any] = {"sight": config.to_dict(sight)} if about.get("senses") and sight else {}
    seen |= {"recall": recall} if recall else {}
    speaks = {"robot": config.to_dict(robot)} if robot else {}
    write_json(path / "policy.json", {"kind": policy.KIND, "format": FORMAT, "task": task, **about, **seen, **speaks})


def load_policy(path: str | Path, device: str | torch.device = "cpu") -> tuple[Saved, str]:
    """The policy in a folder, ready to act, and the task it was trained on; an export acts on the CPU, whatever `device` says.

    Raises RealrlError when the folder is no policy, is damaged, or was written by a newer format.
    """
    path = Path(path)
    about, file = read_policy_json(path), str(path / "policy.json")
    if about["kind"] == "onnx":
        from realrl.policies.exported import read_exported
        return read_exported(path, about), about["task"]
    kind = _kind(about["kind"])
    _, parts = read_parts(path)
    try:
        with torch.device("meta"):  # a sketch without memory, so that a description is believed as far as the weights bear it out
            sketch = kind.rebuild(about, file)
    except RealrlError as error:
        raise (error if file in str(error) else RealrlError(f"{file}: {error}")) from None
    _check_weights(sketch, parts.get("weights"), path)
    policy = kind.rebuild(about, file)
    policy.load_state_dict(parts["weights"])
    return policy.to(device).eval().requires_grad_(False), about["task"]


def load_diffusion(path: str | Path, device: str | torch.device = "cpu") -> tuple[DiffusionPolicy, str]:
    """`load_policy` for whoever works with denoising chains. Raises RealrlError for another kind, too."""
    from realrl.policies.diffusion import DiffusionPolicy
    policy, task = load_policy(path, device)
    if isinstance(policy, DiffusionPolicy):
        return policy, task
    raise RealrlError(f"{path}: a {policy.KIND} policy, a diffusion policy is needed here: give the folder of one")


def read_robot(path: str | Path) -> Embodiment | None:
    """The robot whose numbers a saved policy speaks; None where it speaks a simulator's. Raises RealrlError."""
    from realrl.robots.embodiment import Embodiment
    told = read_policy_json(Path(path)).get("robot")
    return None if told is None else config.from_dict(Embodiment, told, source=f"{path}/policy.json")


def acting(policy: Policy, path: str | Path, spec: TaskSpec) -> tuple[Policy, str]:
    """(a saved policy as it acts in an environment, whose actions are in [-1, 1], what to say of it): one of recordings acts in their
    numbers. Raises RealrlError where these cannot be the environment's."""
    from realrl.robots.embodiment import boxed
    robot = read_robot(path)
    return (policy, "") if robot is None else boxed(policy, robot, path, spec.id, 1 / spec.dt)


def refuse_recorded(path: str | Path, spec: TaskSpec) -> None:
    """Raise RealrlError for a policy of recordings whose limits are not [-1, 1], where what it says is not to be translated."""
    robot = read_robot(path)
    if robot is not None and (set(robot.low), set(robot.high)) != ({-1.0}, {1.0}):
        raise RealrlError(f"{path} was trained on recordings alone, its actions are shares of their limits, not {spec.id}'s: train it for "
                          "that task, with --data and the same --task, --env or --robot")


def read_recall(path: str | Path) -> int:
    """How many of the last actions a saved policy wants beside the state, see `realrl.envs.base.RobotEnv.lag`. Raises RealrlError."""
    told = read_policy_json(Path(path)).get("recall", 0)
    if not isinstance(told, int) or not 0 <= told <= 100:
        raise RealrlError(f"{path}/policy.json: 'recall' must be a whole number in [0, 100], got {config.shown(told)}: the file is "
                          "damaged, export the policy again")
    return told


def _check_weights(sketch: torch.nn.Module, weights: Any, path: Path) -> None:
    """Raise RealrlError unless the weights in a folder are those of the policy it describes, and all of them numbers."""
    if not isinstance(weights, Mapping) or not all(isinstance(name, str) and isinstance(w, Tensor) for name, w in weights.items()):
        raise RealrlError(f"{path}: what it holds as weights is no table of tensors: save the policy again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "copying into a meta tensor does nothing"
            sketch.load_state_dict(weights)
    except RuntimeError as error:
        why = " ".join(str(error).split("\n")[1].split()) if "\n" in str(error) else str(error)
        raise RealrlError(f"{path}: the weights do not fit policy.json ({why[:300]}): save the policy again") from None
    for name, wanted in sketch.state_dict().items():
        if name in weights and weights[name].dtype != wanted.dtype:
            raise RealrlError(f"{path}: the weights do not fit policy.json ({name} is {weights[name].dtype}, must be {wanted.dtype}): "
                              "save the policy again")
        if re.search(r"normaliser\.(\d+\.)?std$", name) and not bool((weights[name] > 0).all()):
            raise RealrlError(f"{path}: {name} is not positive everywhere: save the policy again")
        if name.endswith(".running") and not bool((weights[name][1] >= 0).all()):
            raise RealrlError(f"{path}: {name} holds a variance below 0: save the policy again")
    finite(weights, str(path), "its training diverged, or the file is damaged: take an earlier policy")


def _kind(name: str) -> type[DiffusionPolicy | FlowPolicy | GaussianPolicy | RecurrentPolicy | ResidualPolicy]:
    """The class of a kind, imported when it is needed."""
    if name == "flow":
        from realrl.policies.flow import FlowPolicy
        return FlowPolicy
    if name == "residual":
        from realrl.policies.residual import ResidualPolicy
        return ResidualPolicy
    from realrl.policies.diffusion import DiffusionPolicy
    from realrl.policies.gaussian import GaussianPolicy
    from realrl.policies.recurrent import RecurrentPolicy
    kinds: tuple[type[DiffusionPolicy | GaussianPolicy | RecurrentPolicy], ...] = (GaussianPolicy, RecurrentPolicy, DiffusionPolicy)
    return next(kind for kind in kinds if name == kind.KIND)


def _whereabouts(path: Path) -> str:
    """Where the policy is that was looked for in a folder without one."""
    for found in (path / "policy", path.parent / "policy"):
        if (found / "policy.json").is_file():
            return f"give {found}"
    run = next((folder for folder in (path, path.parent) if (folder / "config.yaml").is_file()), None)
    return (f"the run in {run} has not come so far; its last words say how it is continued, with --resume" if run else
            "give the folder a run wrote, e.g. runs/main/policy")


def read_policy_json(path: Path) -> dict[str, Any]:
    """The description of a saved policy, checked. Raises RealrlError."""
    file = path / "policy.json"
    try:
        about = read_json(file, most=2**20)
    except (FileNotFoundError, NotADirectoryError):
        raise RealrlError(f"{path}: no policy here (policy.json is missing): {_whereabouts(path)}") from None
    except OSError as error:
        raise RealrlError(f"{file} cannot be read ({error.strerror or error}): put a copy of the file there") from None
    if not isinstance(about, dict):
        raise RealrlError(f"{file}: holds no object but a {type(about).__name__}: the file is damaged, export the policy again")
    kind, layout = about.get("kind"), about.get("format")
    if kind not in KINDS or layout != FORMAT:
        raise RealrlError(f"{file}: kind {config.shown(kind)}, format {config.shown(layout)}; known: {', '.join(KINDS)}, format {FORMAT}")
    missing = [key for key in ("task", "head", "name", "obs_dim", "action_dim", "config") if key not in about]
    if missing:
        raise RealrlError(f"{file}: {', '.join(missing)} is missing: the file is damaged, export the policy again")
    if not isinstance(about["task"], str):
        raise RealrlError(f"{file}: 'task' must be a text, got {config.shown(about['task'])}: the file is damaged, export the policy again")
    return about


def for_task(policy: Saved, task: str, text: str | None = None) -> Saved:
    """The policy as it does a task: one that reads is told the task's text, where it knows the task, or another. Raises RealrlError where a
    text is given to one that does not read."""
    if policy.KIND == "flow":
        return policy.told(task, text) if text is not None or task in policy.tasks else policy
    if text is not None:
        where = "say it to `realrl serve`: what is served does as it was told there" if str(policy.KIND) == "remote" else "leave it out"
        raise RealrlError(f"--text: a {policy.KIND} policy is told nothing: {where}")
    return policy


def check_fit(policy: Saved, spec: TaskSpec, name: object, trained_on: str) -> None:
    """Raise RealrlError unless a policy fits a task. name: of the policy, for the message; trained_on: its own task. A robot may show more
    than the policy looks at, to who records it."""
    mine, its = (policy.obs_dim, policy.action_dim), (spec.obs_dim, spec.action_dim)
    shown = {key: shape for key, shape in spec.senses.items() if not spec.live or key in policy.senses}
    if policy.senses != shown:
        mend = "serve the robot with the cameras" if spec.live else "give the --sight"
        raise RealrlError(f"{name} was trained on {trained_on} and sees {_listed(policy.senses)}, but {spec.id} shows "
                          f"{_listed(spec.senses)}: {mend} it was trained with")
    if mine != its:
        raise RealrlError(f"{name} was trained on {trained_on}, with {mine[0]} observation and {mine[1]} action numbers, but {spec.id} has "
                          f"{its[0]} and {its[1]}: give the task it was trained on, and the --recall")


def _listed(senses: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{key} {list(shape)}" for key, shape in senses.items()) or "the state alone"
