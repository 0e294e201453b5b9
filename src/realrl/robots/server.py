"""The process that owns a robot: `realrl robot serve`. Policies, recorders and consoles talk to it and may die; the robot stays safe.

Three threads: this one listens (`realrl.robots.wire`), the control thread ticks (`realrl.robots.keeper`), the log's writes. What is slow
in one never makes the control thread wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hmac
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from realrl.files import printable, read_plain
from realrl.robots import wire
from realrl.robots.clock import CONTROL, LISTENING, Ticker, realtime, urgent
from realrl.robots.driver import Driver, Held, reach
from realrl.robots.keeper import Keeper
from realrl.robots.log import ServerLog
from realrl.robots.orders import Answer
from realrl.robots.settings import ServerConfig
from realrl.types import Array, RealrlError

PATIENCE = 5.0  # s that who connects has for saying hello
PARKING = 20.0  # s that parking may take when the server is stopped
SETTLING = 3.0  # s in which a robot at work has come to a stand, from where it parks
CONNECTIONS, PERSONS, WRONG = 16, 8, 20  # at once; of people beside them; messages that make no sense until the connection is closed
AWAKE = 0.2  # s after which whoever listens looks whether it was asked to end
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last: the terminal was closed


@dataclass
class _Peer:
    """A connection. left, since: what its budget of messages is, and when it was counted."""

    socket: Any
    role: str
    who: str
    left: float
    since: float
    wrong: int = 0


class RobotServer:
    """Serves one robot until it is stopped. Use `run`, or `start` and `close` where other things go on beside it."""

    def __init__(self, driver: Driver, cfg: ServerConfig, *, arm: bool = False, log: ServerLog | None = None,
                 say: Callable[[str], None] = print) -> None:
        """arm: armed from the start, by whoever starts it. Raises RealrlError for a robot that must not be served."""
        wire.need()
        self.cfg, self.driver, self._tell, self._arm = cfg, driver, say, arm
        self.token = token_of(cfg)
        self.log = log or ServerLog(None)
        self.keeper = Keeper(driver, cfg, self.log, deliver=self._deliver)
        if log is None and cfg.log is not None:
            self.log = self.keeper.log = ServerLog.begun(cfg.log)
        self.port, self.epoch = cfg.port, 0
        self._commander: _Peer | None = None
        self._peers = {"person": 0, "other": 0}
        self._ending = False  # whether somebody has asked for its end
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event | None = None
        self._stopped, self._listening = threading.Event(), threading.Event()
        self._sending: set[asyncio.Task[None]] = set()
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"ws://{self.cfg.host}:{self.port}"

    # ---- living

    def run(self) -> None:
        """Serve until SIGTERM, Ctrl-C or the end of its terminal, then park, let go and disconnect. Raises what stopped the control
        thread."""
        control = threading.Thread(target=self._control, name="control", daemon=True)
        with self._signals():
            control.start()
            try:
                asyncio.run(self._serve())
            finally:
                self._end(control)
        if self._error is not None:
            raise RealrlError(f"{self.cfg.name}: the control loop failed ({self._error!r}); the robot holds with torque on, see to it "
                              "before you start again") from self._error

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Whoever asks for the end has asked for it once: pressed again, Ctrl-C does not leave an arm on its way to park."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: object) -> None:
            self._ending = True
            self._hang_up()

        before = {number: signal.getsignal(number) for number in ENDINGS}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN or number == signal.SIGINT:  # as under nohup; a shell's background job ignores Ctrl-C alone
                signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def start(self) -> None:
        """Serve in a thread; returns when it listens."""
        self._thread = threading.Thread(target=self.run, name="server", daemon=True)
        self._thread.start()
        if not self._listening.wait(20):
            raise RealrlError(f"{self.cfg.name}: the server does not listen on port {self.cfg.port}: is it taken?")

    def close(self) -> None:
        """End what `start` began."""
        self._hang_up()
        if self._thread is not None:
            self._thread.join(PARKING + 5)

    def _end(self, control: threading.Thread) -> None:
        """Park before letting go; whatever failed, never drop the arm. What was never armed is left as it is."""
        keeper, armed = self.keeper, self.keeper.guard.now is not None
        if self._error is None and armed:
            begun, until = time.monotonic(), time.monotonic() + PARKING
            while not (goes := keeper.park("the server's end")) and keeper.alone and time.monotonic() < begun + SETTLING:
                time.sleep(0.1)  # it may brake still, or be beyond its limits for a moment
            if goes:
                self._say(f"{self.cfg.name} goes to park, up to {PARKING:g} s; another Ctrl-C changes nothing")
            elif keeper.mode != "parked":
                self._say(f"{self.cfg.name} is not moved and holds, for it was stopped: {'; '.join(keeper.faults.values())}")
            while keeper.mode == "parking" and time.monotonic() < until and control.is_alive():
                time.sleep(0.02)
        self._stopped.set()
        control.join(2)
        parked = keeper.mode == "parked" and self._error is None
        if armed:
            with contextlib.suppress(Exception):  # what vendors raise is in no contract
                (self.driver.release if parked else self.driver.hold)()
        self.log.event("released" if parked else "left holding" if armed else "left as it was")
        self.log.close()
        self.driver.close()

    def _say(self, line: str) -> None:
        """Tell who started it, if they are still there."""
        with contextlib.suppress(OSError, ValueError):  # its terminal or pipe is closed
            self._tell(line)

    def _control(self) -> None:
        """The control thread."""
        try:
            for line in realtime(CONTROL, whole=self._thread is None):
                self._say(f"note: {line}")
            ticker, late, tidied = Ticker(1 / self.cfg.ticks), 0.0, time.monotonic()
            while not self._stopped.is_set():
                self.keeper.tick(late)
                if self._thread is None and not self.keeper.running and time.monotonic() - tidied > 10:
                    gc.collect()
                    tidied = time.monotonic()
                late = ticker.wait()
        except BaseException as error:  # a driver's own mistakes, too: nobody is left who could brake by commands
            self._error = error
            self.log.event("crash", error=repr(error))
            with contextlib.suppress(Exception):
                self.driver.brake()
            self._hang_up()

    def _hang_up(self) -> None:
        if self._loop is not None and self._over is not None:
            with contextlib.suppress(RuntimeError):  # it is closed already
                self._loop.call_soon_threadsafe(self._over.set)

    async def _serve(self) -> None:
        from websockets.asyncio.server import serve
        urgent(LISTENING)
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        if self._ending:
            self._over.set()
        try:
            server = await serve(self._talk, self.cfg.host, self.cfg.port, max_size=wire.LARGEST_IN, max_queue=16, compression=None,
                                 origins=[None], ping_interval=5, ping_timeout=10, close_timeout=1)
        except OSError as error:
            raise _taken(self.cfg, error) from error
        async with server:
            self.port = server.sockets[0].getsockname()[1]
            await self._armed()
            self._say(f"{self.cfg.name} is served at {self.url} ({self.keeper.mode})")
            self._listening.set()
            while not self._over.is_set():  # a signal that comes on the way into a wait does not end it
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._over.wait(), AWAKE)

    async def _armed(self) -> None:
        """Arm at the start, once the robot has been read."""
        for attempt in range(100 if self._arm else 0):
            await asyncio.sleep(0.02)
            try:
                self.keeper.arm()
                return
            except Held as error:
                if attempt == 99:
                    self._say(f"note: {error}")

    # ---- talking

    async def _talk(self, socket: Any) -> None:
        from websockets.exceptions import ConnectionClosed
        peer = None
        try:
            peer = await self._welcome(socket)
            if peer is None:
                return
            await socket.send(wire.pack({"type": "welcome", "v": wire.VERSION, "epoch": self.epoch, "robot": self.about(),
                                         "status": self.keeper.status()}))
            while True:
                data = await socket.recv()
                if not self._afford(peer):
                    await asyncio.sleep(0.05)  # what comes meanwhile waits in its own line
                await self._hear(peer, data)
                if peer.wrong > WRONG or (peer.role == "commander" and self._commander is not peer):
                    break
        except (ConnectionClosed, asyncio.TimeoutError):
            pass
        finally:
            if peer is not None:
                self._peers[_kind(peer.role)] -= 1
            if peer is not None and self._commander is peer:
                self._commander = None
                self.log.event("commander gone", who=peer.who)
                self.keeper.leave("its commander is gone")

    async def _welcome(self, socket: Any) -> _Peer | None:
        """Who is there; None for whom it is told that they are not welcome. Whoever is given the lease gives it back in `_talk`."""
        refusal = ""
        try:
            hello = wire.unpack(await asyncio.wait_for(socket.recv(), PATIENCE))
        except ValueError as error:
            hello, refusal = {"type": ""}, f"hello was {error}"
        role, who = hello.get("role"), printable(":".join(map(str, (socket.remote_address or ("nobody",))[:2])))
        if not refusal:
            refusal = self._refusal(hello)
        most = PERSONS if role == "person" else CONNECTIONS  # so that nobody can keep a person from stopping it
        if not refusal and self._peers[_kind(role)] >= most:
            refusal = f"{most} others are connected already"
        if not refusal and role == "commander" and self._commander is not None:
            refusal = f"{self.cfg.name} is commanded from {self._commander.who} already: end that first"
        if refusal:
            self.log.event("refused", who=who, why=refusal)
            await socket.send(wire.pack({"type": "error", "error": refusal}))
            return None
        self._peers[_kind(role)] += 1
        peer = _Peer(socket, str(role), who, 50.0, time.monotonic())
        if role == "commander":
            self._commander, self.epoch = peer, self.epoch + 1
            self.keeper.enter()
            self.log.event("commander", who=who, epoch=self.epoch)
        return peer

    def _refusal(self, hello: dict[str, Any]) -> str:
        """Why who says this is not welcome, "" where they are."""
        if hello["type"] != "hello" or hello.get("v") != wire.VERSION:
            return (f"this server speaks version {wire.VERSION} of the protocol and begins with hello, got version "
                    f"{str(hello.get('v'))[:20]}")
        if self.token and not hmac.compare_digest(self.token.encode(), str(hello.get("token", ""))[:1000].encode()):
            return "the token is wrong: give the one that stands in the server's file (REALRL_ROBOT_TOKEN)"
        return "" if hello.get("role") in ("commander", "watcher", "person") else "role must be commander, watcher or person"

    def _afford(self, peer: _Peer) -> bool:
        """Whether a connection may say one more thing now: 10 a period, with 50 in hand."""
        now = time.monotonic()
        peer.left = min(50.0, peer.left + (now - peer.since) * 10 * self.cfg.fps) - 1
        peer.since = now
        return peer.left >= 0

    async def _hear(self, peer: _Peer, data: object) -> None:
        """Do what a message says."""
        of: dict[str, Any] = {}
        try:
            message = wire.unpack(data)
            of = {"of": message["seq"]} if isinstance(message.get("seq"), int) else {}
            answer = self._do(peer, message)
        except ValueError as error:
            peer.wrong += 1
            answer = {"type": "error", "error": str(error), **of}
        except RealrlError as error:
            answer = {"type": "error", "error": str(error), "held": isinstance(error, Held), **of}
        if answer is not None:  # who does not read is cut off
            await asyncio.wait_for(peer.socket.send(wire.pack(answer)), PATIENCE)

    def _do(self, peer: _Peer, message: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to a message that has one. Raises ValueError, or RealrlError where the robot does not do it."""
        kind, keeper = message["type"], self.keeper
        if kind == "stop":
            keeper.stop(peer.who, printable(str(message.get("why", ""))[:300]))
        elif kind == "park":
            keeper.park(peer.who, person=peer.role == "person")
        elif kind in ("arm", "ready", "fault"):
            if peer.role != "person":
                raise ValueError(f"{kind} is for a person to say: realrl robot {kind}")
            self._by_hand(kind, message)
        elif kind == "look":
            if keeper.watch.reading is None:
                raise Held(f"{self.cfg.name} has not been read yet: {keeper.watch.wrong_now(time.monotonic())}")
            return self._seen(keeper.watch.reading, still=keeper.still())
        elif kind != "status":
            self._command(peer, message)
            return None
        return {"type": "status", **keeper.status(), "epoch": self.epoch, "commander": self._commander.who if self._commander else None}

    def _by_hand(self, kind: str, message: dict[str, Any]) -> None:
        if kind == "arm":
            self.keeper.arm()
        elif kind == "ready":
            self.keeper.ready()
        else:
            inject = getattr(self.driver, "inject", None)
            if inject is None:
                raise ValueError("only a simulated robot has faults to order")
            inject(str(message.get("name")), message.get("value", 1.0))
            self.log.event("injected", name=str(message.get("name")), value=message.get("value", 1.0))

    def _command(self, peer: _Peer, message: dict[str, Any]) -> None:
        """What only the commander may say, with its epoch."""
        kind = message["type"]
        if peer.role != "commander" or message.get("epoch") != self.epoch or peer is not self._commander:
            raise ValueError(f"{kind[:20]!r} is for the commander of epoch {self.epoch} to say")
        if kind == "act":
            action = message.get("action")
            if not isinstance(action, np.ndarray) or action.dtype.kind != "f":
                raise ValueError("act needs an action, an array of floats")
            self.keeper.act(int(wire.number(message, "seq", 0, 2**53)), action, source=int(wire.number(message, "source", 0, 2, 0)),
                            age=wire.number(message, "age", 0, 1e9, 0.0))
        elif kind == "reset":
            self.keeper.reset(int(wire.number(message, "seed", 0, 2**63)), int(wire.number(message, "seq", 0, 2**53, 0)))
        elif kind == "end":
            self.keeper.finish()
        elif kind == "bye":
            self._commander = None
            self.log.event("bye", who=peer.who)
            self.keeper.leave()
        else:
            raise ValueError(f"no message is called {kind[:20]!r}")

    def _deliver(self, answer: Answer) -> None:
        """From the control thread: the listening one sends it."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it is closing
                self._loop.call_soon_threadsafe(self._send, answer)

    def _send(self, answer: Answer) -> None:
        peer = self._commander
        if peer is None:
            return
        if answer.failed:
            why = f"the robot is {self.keeper.mode} ({answer.failed}): see to it, then arm it with `realrl robot arm`"
            message: dict[str, Any] = {"type": "error", "error": why, "held": True, "of": answer.seq}
        else:
            message = {**self._seen(answer.reading, still=self.keeper.still()), "seq": answer.seq, "sent": answer.sent,
                       "limited": answer.limited, "reward": answer.reward, "terminated": answer.terminated, "success": answer.success,
                       "late": answer.late}
        task = asyncio.ensure_future(_quietly(peer.socket, message))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    def _seen(self, reading: Any, *, still: Array) -> dict[str, Any]:
        images = {name: {"stamp": stamp, "image": image} for name, (stamp, image) in reading.images.items()}
        truth = {} if reading.truth is None else {"truth": np.asarray(reading.truth, np.float64)}
        return {"type": "obs", **truth, "stamp": reading.stamp, "now": time.monotonic(), "state": np.asarray(reading.state, np.float64),
                "measured": np.asarray(reading.measured, np.float64), "images": images, "still": still,
                "commanded": np.zeros(0) if self.keeper.guard.now is None else self.keeper.guard.place}

    def about(self) -> dict[str, Any]:
        """What a robot says of itself to who connects."""
        reading = self.keeper.watch.reading
        cameras = {} if reading is None else {name: list(image.shape) for name, (_, image) in reading.images.items()}
        low, high = zip(*map(reach, self.driver.channels), strict=True)
        return {"name": self.cfg.name, "text": self.cfg.text, "fps": self.cfg.fps, "horizon": self.cfg.horizon,
                "channels": [asdict(c) for c in self.driver.channels], "state": list(self.driver.state), "cameras": cameras,
                "low": list(low), "high": list(high), "judged": hasattr(self.driver, "outcome"),
                "reward": getattr(self.driver, "reward", "sparse"), "reset": self.cfg.reset, "ticks": self.cfg.ticks,
                "twin": getattr(self.driver, "twin", ""), "watched": self._watched(),
                "privileged": 0 if reading is None or reading.truth is None else len(reading.truth)}

    def _watched(self) -> list[str]:
        cfg, reading = self.cfg, self.keeper.watch.reading
        felt = cfg.force is not None and reading is not None and reading.force is not None
        return [*["force"] * felt, *["stall"] * bool(cfg.stall), *["camera"] * bool(reading is not None and reading.images)]


async def _quietly(socket: Any, message: dict[str, Any]) -> None:
    from websockets.exceptions import ConnectionClosed
    with contextlib.suppress(ConnectionClosed):
        await socket.send(wire.pack(message))


def _kind(role: object) -> str:
    return "person" if role == "person" else "other"


def check(cfg: ServerConfig) -> None:
    """Look, before anything touches a robot, at what needs none: raises RealrlError where it could not be served so, or is already."""
    wire.need()
    token_of(cfg)
    try:
        socket.create_server((cfg.host, cfg.port), family=socket.AF_INET6 if ":" in cfg.host else socket.AF_INET).close()
    except OSError as error:
        raise _taken(cfg, error) from error


def _taken(cfg: ServerConfig, error: OSError) -> RealrlError:
    why = (error.strerror or str(error)).partition(" (")[0]
    return RealrlError(f"{cfg.host}:{cfg.port} cannot be listened on ({why}): choose another --port or --host, or end what is served there")


def token_of(cfg: ServerConfig) -> str:
    """The token that is asked for, "" for none. Raises RealrlError for a server that anybody could reach."""
    if cfg.token is None:
        if wire.loopback(cfg.host):
            return ""
        raise RealrlError(f"{cfg.host} can be reached from other computers: write at least 16 secret characters into a file and give it as "
                          "token in the configuration, or serve on 127.0.0.1")
    token = read_plain(cfg.token, 4096).decode("utf-8", "replace").strip()
    if len(token) < 16:
        raise RealrlError(f"{cfg.token}: the token has {len(token)} characters, at least 16 are needed: python -c 'import secrets; "
                          "print(secrets.token_urlsafe())'")
    return token
