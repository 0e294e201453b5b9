"""What a policy server does with one client's messages, network aside: check, remember, plan, answer.

A message is a map of observations, as openpi's clients send it, and may carry more of ours: `seq`, a number that grows with every
message; `obs_time`, a stamp that is sent back; `episode`, an id: another one begins with fresh memory; `seed`, of the plan's noise;
`greedy`; `boxed`, whether actions are wanted in [-1, 1] rather than in the robot's units; `sent`, what was really done of the last answer,
[A] in [-1, 1], where that was something else and the policy remembers what it did; openpi's `prompt`, what a policy that reads is
told (by default what it was told when it was saved).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from realrl import __version__, config
from realrl.cell.rollout import Mindful
from realrl.policies.exported import sense_type
from realrl.policies.folder import Choose, Saved, load_policy, read_policy_json, read_recall, read_robot
from realrl.robots.embodiment import Embodiment
from realrl.types import Array, Obs, RealrlError, State

EPISODES = 64  # a client's, whose memory is kept
TEXTS = 16  # that a client may say by turns without their being read again
OURS = ("seq", "obs_time", "episode", "seed", "greedy", "boxed", "sent", "prompt")


@dataclass
class Served:
    """A saved policy and what its clients are told of it. recall: how many of the last actions end the state it sees; sees: our name of an
    observation -> (shape of one frame, type)."""

    policy: Saved
    task: str
    robot: Embodiment | None
    sight: Mapping[str, Any]
    hash: str
    recall: int = 0
    sees: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = field(init=False)

    def __post_init__(self) -> None:
        self.sees = {key: (shape, sense_type(key)) for key, shape in {"state": (self.policy.obs_dim,), **self.policy.senses}.items()}

    @classmethod
    def read(cls, folder: Path, place: str | torch.device = "cpu", choose: Choose | None = None) -> Served:
        """The policy in a folder, and where it acts. choose: which of its tasks and heads. Raises RealrlError, see `load_policy`."""
        policy, task = load_policy(folder, place)
        policy, task = choose(policy, task) if choose else (policy, task)
        return cls(policy, task, read_robot(folder), read_policy_json(folder).get("sight") or {}, _hash(folder), read_recall(folder))

    @property
    def largest(self) -> int:
        """Bytes of the largest message that makes sense: all it sees, once more for good measure, and 64 kB."""
        frames = sum(int(np.prod(shape)) * max(kind.itemsize, 8) for shape, kind in self.sees.values())
        return 2 * self.policy.n_obs * frames + 2**16

    def metadata(self) -> dict[str, Any]:
        """What a client gets when it connects."""
        policy, robot = self.policy, self.robot
        said: dict[str, Any] = {
            "server": f"realrl {__version__}", "policy": policy.name, "hash": self.hash, "task": self.task, "head": policy.head,
            "n_obs": policy.n_obs, "chunk": policy.chunk, "action_dim": policy.action_dim, "sight": dict(self.sight), "recall": self.recall,
            "memory": bool(policy.start(1)), "max_bytes": self.largest,
            "observations": {key: {"shape": list(shape), "type": kind.name} for key, (shape, kind) in self.sees.items()}}
        return said | ({} if robot is None else {"robot": config.to_dict(robot)})


@dataclass
class _Memory:
    """What is remembered of an episode: the policy's own, and the last H frames."""

    state: State
    rng: np.random.Generator
    frames: list[Obs] = field(default_factory=list)


class Session:
    """One client's."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self._seq = -1
        self._told: OrderedDict[str, Saved] = OrderedDict()
        self._episodes: OrderedDict[int | str, _Memory] = OrderedDict()

    def answer(self, message: Any) -> dict[str, Any]:
        """The reply to a message, its timing aside. Raises RealrlError, in a line for the client, on what it should not have sent."""
        served = self.served
        if not isinstance(message, dict) or len(message) > 256:
            raise RealrlError("a message must be a map of observations")
        policy = self._policy(message.get("prompt"))
        stamps = self._stamps(message)
        seen = {key: self._observation(message, key) for key in served.sees}
        memory = self._memory(message.get("episode", 0))
        obs = _history(memory, seen, policy.n_obs)
        seed = message.get("seed")
        if "sent" in message and isinstance(policy, Mindful):
            policy.done(memory.state, 0, _sent(message["sent"], policy.action_dim))
        rng = memory.rng if seed is None else np.random.default_rng(_whole(seed, "seed"))
        plan, memory.state = policy.act(obs, memory.state, greedy=message.get("greedy") is not False, rng=[rng])
        actions = plan.action[0]
        if served.robot is not None and message.get("boxed") is not True:
            actions = served.robot.to_robot(actions).astype(np.float32)
        return {"actions": actions, **stamps}

    def _policy(self, prompt: Any) -> Saved:
        """The policy, told what the client says, if it reads. Raises RealrlError for a text that cannot be read."""
        policy = self.served.policy
        if prompt is None or policy.KIND != "flow":
            return policy
        if not isinstance(prompt, str) or len(prompt) > 1000:
            raise RealrlError("prompt must be a text of at most 1,000 characters")
        if prompt not in self._told:
            self._told[prompt] = policy.told(self.served.task, prompt)
            if len(self._told) > TEXTS:
                self._told.popitem(last=False)
        return self._told[prompt]

    def _stamps(self, message: Mapping[Any, Any]) -> dict[str, Any]:
        """What is sent back as it came; a number that does not grow is refused: its message was sent twice, or overtaken."""
        out = {key: message[key] for key in ("seq", "obs_time") if message.get(key) is not None}
        if not isinstance(out.get("obs_time", 0.0), int | float):
            raise RealrlError("obs_time must be a number of seconds")
        if "seq" in out:
            seq = _whole(out["seq"], "seq")
            if seq <= self._seq:
                raise RealrlError(f"seq {seq} after {self._seq}: a message must have a larger number than the one before")
            self._seq = seq
        return out

    def _memory(self, episode: Any) -> _Memory:
        episode = int(episode) if isinstance(episode, np.integer) else episode
        if not isinstance(episode, int | str) or len(str(episode)) > 100:
            raise RealrlError("episode must be a whole number or a short text")
        if episode not in self._episodes:
            self._episodes[episode] = _Memory(self.served.policy.start(1), np.random.default_rng())
            if len(self._episodes) > EPISODES:
                self._episodes.popitem(last=False)
        self._episodes.move_to_end(episode)
        return self._episodes[episode]

    def _observation(self, message: Mapping[Any, Any], key: str) -> Array:
        """One frame [1, ...], or the last H of them [H, ...], of what the policy sees. Raises RealrlError."""
        shape, kind = self.served.sees[key]
        found = next((message[name] for name in names(key) if name in message), None)
        if found is None:
            got = ", ".join(str(k)[:40] for k in list(message)[:20] if k not in OURS)
            also = ", ".join(names(key)[1:])
            raise RealrlError(f"observation {key} {list(shape)} is missing (also called {also}); got {got or 'nothing'}")
        x: Any = _array(found)
        if not isinstance(x, np.ndarray) or x.dtype.kind not in "biuf" or x.shape not in (shape, (self.served.policy.n_obs, *shape)):
            told = f"{x.dtype} {list(x.shape)}" if isinstance(x, np.ndarray) else f"a {type(found).__name__}"
            raise RealrlError(f"observation {key} is {told}, must be {kind} {list(shape)}, or {self.served.policy.n_obs} of them in a row")
        if kind.kind == "f":
            with np.errstate(over="ignore"):  # too large for float32 is infinite
                x = x.astype(kind)
            if not np.isfinite(x).all():
                raise RealrlError(f"observation {key} holds NaN or infinity: nobody may act on a dead sensor")
        elif x.dtype != kind:
            raise RealrlError(f"observation {key} is {x.dtype}, must be {kind}: send what the camera gave")
        seen: Array = x if x.ndim > len(shape) else x[None]
        return seen


def _sent(value: Any, size: int) -> Array:
    """What was done [A]. Raises RealrlError where it is none."""
    x = _array(value)
    if not isinstance(x, np.ndarray) or x.shape != (size,) or x.dtype.kind not in "iuf" or not np.isfinite(x).all():
        raise RealrlError(f"sent must be the {size} numbers that were really done, in [-1, 1]")
    return np.clip(x, -1.0, 1.0).astype(np.float32)


def _array(value: Any) -> Any:
    """Lists of numbers as an array; anything else as it is."""
    try:
        return np.asarray(value) if isinstance(value, list) else value
    except ValueError:  # of unequal lengths
        return value


def names(key: str) -> list[str]:
    """What an observation may be called: our name, LeRobot's, and openpi's with strokes."""
    return [key, f"observation.{key}", f"observation/{key.replace('.', '/')}", f"observation/{key.partition('.')[2] or key}"]


def _history(memory: _Memory, seen: Obs, length: int) -> Obs:
    """The last H frames, each [1, H, ...]: as they were sent together, or remembered from message to message, the first one repeated."""
    if len(counts := {len(x) for x in seen.values()}) > 1:
        raise RealrlError(f"some observations came as one frame and some as {length} in a row: send all alike")
    if counts == {length}:
        return {key: x[None] for key, x in seen.items()}
    memory.frames = [*(memory.frames or [seen] * (length - 1)), seen][-length:]
    return {key: np.concatenate([f[key] for f in memory.frames])[None] for key in seen}


def _whole(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < 2**64:
        raise RealrlError(f"{name} must be a whole number of at least 0")
    return int(value)


def _hash(folder: Path) -> str:
    """16 hexadecimal digits of all that makes the policy what it is: its newest weights (or graph) and its description."""
    newest = [sorted(folder.glob(pattern))[-1:] for pattern in ("tensors-*.safetensors", "*.onnx")]
    found = hashlib.sha256()
    for file in (folder / "policy.json", *(file for group in newest for file in group)):
        with file.open("rb") as data:
            for piece in iter(lambda: data.read(2**20), b""):
                found.update(piece)
    return found.hexdigest()[:16]
