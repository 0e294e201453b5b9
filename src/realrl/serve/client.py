"""A policy on another machine as a `Policy`: what drives a robot does not see the difference, but for the time it takes."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from realrl import config
from realrl.robots.embodiment import Embodiment
from realrl.serve import wire
from realrl.types import Array, Obs, Plan, RealrlError, State


class RemotePolicy:
    """Asks a server of `realrl serve`; see `types.Policy`. The noise of a plan is the server's, from a seed that `rng` draws here, so that
    an episode repeats. timing: milliseconds of the last plan there and back ("total_ms") and of the server's part ("infer_ms")."""

    KIND: Literal["remote"] = "remote"

    def __init__(self, url: str, token: str | None = None, timeout: float = 2.0) -> None:
        """url: ws://host:port; token: as the server wants it; timeout: seconds that connecting or a plan may take. Raises RealrlError."""
        self.url, self.token, self.timeout = url, token, timeout
        self.timing: dict[str, float] = {}
        self._seq, self._episode = itertools.count(), itertools.count()
        self._open = contextlib.ExitStack()
        self._socket: Any = None
        self.about = self._connect()
        try:
            self.name, self.head, self.hash, self.task = (str(self.about[key]) for key in ("policy", "head", "hash", "task"))
            self.chunk, self.n_obs, self.action_dim = (int(self.about[key]) for key in ("chunk", "n_obs", "action_dim"))
            self.senses = {key: tuple(map(int, told["shape"])) for key, told in self.about["observations"].items()}
            self.obs_dim, self._remembers = self.senses.pop("state")[0], bool(self.about["memory"])
            self.recall = int(self.about.get("recall", 0))
            told = self.about.get("robot")
            self.robot = None if told is None else config.from_dict(Embodiment, told, source=url)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            self.close()
            raise RealrlError(f"{url}: somebody else's server, it does not say what its policy is: start 'realrl serve' there") from None

    def start(self, batch: int) -> State:
        """The server remembers; here are the numbers [B] of the episodes by which it does."""
        import torch
        return {"episode": torch.tensor([next(self._episode) for _ in range(batch)]), "sent": torch.full((batch, self.action_dim), np.nan)}

    def done(self, state: State, row: int, action: Array) -> None:
        """What a robot was really told to do [A] is told to a server that remembers, with the next question."""
        state["sent"][row] = state["sent"].new_tensor(action)

    def act(self, obs: Obs, state: State, *, greedy: bool, rng: Sequence[np.random.Generator]) -> tuple[Plan, State]:
        """Plans from observations, each [B, H, ...], one message a row. Raises RealrlError where the server refuses or does not answer."""
        seen = {key: obs[key] for key in ("state", *self.senses) if key in obs}
        sent = [{"sent": row.numpy()} if self._remembers and bool(row.isfinite().all()) else {} for row in state["sent"]]
        asked = ({**{key: x[i] for key, x in seen.items()}, **sent[i], "episode": int(state["episode"][i]), "greedy": greedy, "boxed": True,
                  "seed": int(noise.integers(2**63))} for i, noise in enumerate(rng))
        return Plan(np.stack([self._ask(message) for message in asked])), {**state, "sent": state["sent"] * np.nan}

    def close(self) -> None:
        """Leave the server."""
        self._open.close()
        self._socket = None

    def _ask(self, message: dict[str, Any]) -> Any:
        """The actions [K, A] that are answered; where the connection broke, and the server has nothing to remember, a second time."""
        from websockets.exceptions import ConnectionClosed
        mend = "see whether it still runs, and how far away it is"
        for last in (self._remembers, True):
            began, seq = time.monotonic(), next(self._seq)
            try:
                if self._socket is None and self._connect().get("hash") != self.hash:
                    self.close()
                    raise RealrlError(f"{self.url}: another policy is served there now: begin anew with it")
                self._socket.send(wire.pack({**message, "seq": seq, "obs_time": began}))
                while (reply := self._receive(began)).get("seq") != seq:
                    pass  # the answer to a question that was given up
                self.timing = {**reply.get("server_timing", {}), "total_ms": (time.monotonic() - began) * 1e3}
                return self._checked(reply)
            except TimeoutError:  # the connection stays: with it the server's memory of this episode
                raise RealrlError(f"{self.url}: no answer from the policy's server within {self.timeout:g} s: {mend}") from None
            except (ConnectionClosed, OSError) as error:
                self.close()
                if last:
                    raise RealrlError(f"{self.url}: no answer from the policy's server ({' '.join(str(error).split())}): {mend}") from None
        raise AssertionError("the second time is the last")

    def _checked(self, reply: dict[Any, Any]) -> Any:
        actions = reply.get("actions")
        if not isinstance(actions, np.ndarray) or actions.shape != (self.chunk, self.action_dim) or actions.dtype.kind != "f":
            raise RealrlError(f"{self.url}: an answer without {self.chunk} actions of {self.action_dim} numbers: start 'realrl serve' anew")
        return actions

    def _receive(self, began: float) -> dict[Any, Any]:
        """The next message of the server, until `timeout` after `began`. Raises RealrlError with what it says of a mistake."""
        reply = self._socket.recv(timeout=max(began + self.timeout - time.monotonic(), 0.0))
        value = reply if isinstance(reply, str) else wire.unpack(reply)
        if not isinstance(value, dict):
            self.close()
            raise RealrlError(f"{self.url}: {' '.join(str(value).split())[:500]}")
        return value

    def _connect(self) -> dict[Any, Any]:
        """What the server says of its policy when a connection begins. Raises RealrlError."""
        wire.load()
        from websockets.exceptions import InvalidStatus, WebSocketException
        from websockets.sync.client import connect
        headers = {"Authorization": f"Api-Key {self.token}"} if self.token else None
        try:
            self._socket = self._open.enter_context(connect(
                self.url, compression=None, max_size=2**24, additional_headers=headers, open_timeout=self.timeout,
                close_timeout=self.timeout, proxy=None))
            return self._receive(time.monotonic())
        except InvalidStatus as error:
            why = error.response.body.decode(errors="replace").strip() or str(error)
            raise RealrlError(f"{self.url}: the policy's server refuses ({' '.join(why.split())[:300]})") from None
        except (WebSocketException, OSError, EOFError) as error:
            self.close()
            raise RealrlError(f"{self.url}: no policy's server answers there ({' '.join(str(error).split()) or 'time is up'}): give "
                              "ws://host:port as 'realrl serve' prints it") from None

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "token": self.token, "timeout": self.timeout}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
