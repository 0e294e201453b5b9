"""A server of one policy: openpi's websocket protocol, so that its clients work unchanged, with what they lack: a token, time-outs, sizes.

One thread plans, for one client after the other; the loop beside it answers `GET /healthz` meanwhile. A client that sends what makes no
sense, or asks for more than there is time for, gets one line of text (where openpi sends a traceback) and is let go.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from realrl.config import check
from realrl.robots.wire import loopback
from realrl.serve import wire
from realrl.serve.session import Served, Session
from realrl.types import RealrlError

CLIENTS = 16  # at a time


@dataclass(frozen=True)
class ServeConfig:
    """Where a policy is served, and how long is waited."""

    host: str = "127.0.0.1"
    """Address to listen at; any but this machine's own wants a token."""
    port: int = 8000
    """Port; 0 takes a free one and says which."""
    timeout: float = 5.0
    """Seconds that a plan, or a client who does not read his answer, may take."""
    idle: float = 600.0
    """Seconds without a message after which a client is let go."""

    def __post_init__(self) -> None:
        check(self, port="[0, 65535]", timeout="(0, 3600]", idle="(0, 1e6]")


class Server:
    """Serves a policy. tell: gets a line when a client comes and goes."""

    def __init__(self, served: Served, cfg: ServeConfig, token: str | None = None, tell: Callable[[str], object] = lambda line: None
                 ) -> None:
        """Raises RealrlError for an address that others can reach without a token."""
        if not token and not loopback(cfg.host):
            raise RealrlError(f"--host {cfg.host}: others can reach it, so a token is needed: put one into a file and name it with "
                              "--token-file, or into the environment as REALRL_TOKEN")
        wire.load()
        self.served, self.cfg, self._tell, self._token = served, cfg, tell, token
        self._pool = ThreadPoolExecutor(1, "plans")
        self._clients = 0
        self._planning: float | None = None  # since when a plan is under way

    def tell(self, line: str) -> None:
        """A line to who started it, if they are still there."""
        with contextlib.suppress(OSError, ValueError):  # their terminal or pipe is closed
            self._tell(line)

    async def run(self, ready: Callable[[int], object], stop: asyncio.Event) -> None:
        """Serve until `stop`. ready: called with the port when clients may come. Raises RealrlError where the port cannot be had."""
        from websockets.asyncio.server import serve
        try:
            async with serve(self._client, self.cfg.host, self.cfg.port, process_request=self._admit, compression=None, origins=[None],
                             max_size=self.served.largest, max_queue=4, open_timeout=self.cfg.timeout, close_timeout=self.cfg.timeout,
                             server_header=None) as server:
                ready(next(iter(server.sockets)).getsockname()[1])
                await stop.wait()
        except OSError as error:
            raise RealrlError(f"{self.cfg.host}:{self.cfg.port} cannot be listened at ({error.strerror or error}): name another --port, or "
                              "end what is there") from None
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _admit(self, connection: Any, request: Any) -> Any:
        """Answer to what is no client, or not welcome; None lets the handshake go on."""
        if request.path == "/healthz":
            since = self._planning
            if since is not None and time.monotonic() - since > self.cfg.timeout:
                return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "a plan takes too long\n")
            return connection.respond(HTTPStatus.OK, "OK\n")
        if self._token and not _allowed(request.headers.get_all("Authorization"), self._token):
            return connection.respond(HTTPStatus.UNAUTHORIZED, "wrong or no token: send the header Authorization: Api-Key TOKEN\n")
        if self._clients >= CLIENTS:
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, f"{CLIENTS} clients are connected, no more are taken\n")
        return None

    async def _client(self, socket: Any) -> None:
        """One client from its greeting to its end."""
        from websockets.exceptions import ConnectionClosed
        who, asked = ":".join(map(str, socket.remote_address[:2])), 0
        self._clients += 1
        self.tell(f"{who} connected")
        why, session, before = "left", Session(self.served), None
        try:
            await self._send(socket, wire.pack(self.served.metadata()))
            while True:
                message = await asyncio.wait_for(socket.recv(), self.cfg.idle)
                began = time.monotonic()
                reply = await self._plan(session, message)
                if before is not None:
                    reply["server_timing"]["prev_total_ms"] = before
                await self._send(socket, wire.pack(reply))
                before, asked = (time.monotonic() - began) * 1e3, asked + 1
        except ConnectionClosed:
            pass
        except (TimeoutError, asyncio.TimeoutError):
            why = f"let go: nothing heard for {self.cfg.idle:g} s, or its answer was not read within {self.cfg.timeout:g} s"
            await socket.close(1001, "idle")
        except RealrlError as error:
            why = f"let go: {error}"
            with contextlib.suppress(ConnectionClosed, TimeoutError, asyncio.TimeoutError):
                await self._send(socket, str(error))
                await socket.close(1011, "see the text before")
        finally:
            self._clients -= 1
            self.tell(f"{who} {why} after {asked} plans")

    async def _plan(self, session: Session, message: Any) -> dict[str, Any]:
        """The reply to a message, made in the one thread that plans. Raises RealrlError, also after the time-out."""
        if isinstance(message, str):
            raise RealrlError("a text message, observations are sent as binary msgpack")

        def plan() -> dict[str, Any]:
            self._planning = began = time.monotonic()
            try:
                return {**session.answer(wire.unpack(message)), "server_timing": {"infer_ms": (time.monotonic() - began) * 1e3}}
            finally:
                self._planning = None

        making = asyncio.get_running_loop().run_in_executor(self._pool, plan)
        try:
            return await asyncio.wait_for(making, self.cfg.timeout)
        except (TimeoutError, asyncio.TimeoutError):
            raise RealrlError(f"no plan within {self.cfg.timeout:g} s: the machine is busy, or the policy too slow for it") from None
        except RealrlError:
            raise
        except Exception as error:  # a bug in a policy must not take the other clients' server with it
            raise RealrlError(f"the policy failed ({type(error).__name__}: {' '.join(str(error).split())[:300]})") from error

    async def _send(self, socket: Any, data: bytes | str) -> None:
        await asyncio.wait_for(socket.send(data), self.cfg.timeout)


def serve(served: Served, cfg: ServeConfig, token: str | None = None, *, tell: Callable[[str], object] = lambda line: None,
          ready: Callable[[int], object] = lambda port: None) -> None:
    """Serve a policy until Ctrl-C or a request to end (SIGTERM). Raises RealrlError, see `Server`."""
    server = Server(served, cfg, token, tell)

    async def run() -> None:
        stop = asyncio.Event()
        for name in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(name, stop.set)
        await server.run(ready, stop)

    asyncio.run(run())


def _allowed(headers: list[str], token: str) -> bool:
    """Whether the one Authorization header names the token, as openpi's clients (Api-Key) or others (Bearer) write it."""
    kind, _, given = headers[0].partition(" ") if len(headers) == 1 else ("", "", "")
    return kind.lower() in ("api-key", "bearer") and hmac.compare_digest(given.strip().encode(), token.encode())
