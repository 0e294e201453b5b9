"""The other side of the adapters, as faithful as what a driver can notice of it; and a keeper that ticks in real time."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np

from realrl.robots.keeper import Keeper
from realrl.robots.log import ServerLog
from realrl.robots.settings import ServerConfig


class Live:
    """A keeper of a driver, ticked by the clock on the wall; patient, for a busy computer is none of its faults."""

    def __init__(self, driver, **cfg):
        settings = {"fps": 20, "ticks": 25, "log": None, "watchdog": 400.0, "stale": 2.0, **cfg}
        self.keeper = Keeper(driver, ServerConfig(**settings), ServerLog(None))
        self.seq = 0

    def run(self, seconds: float) -> Live:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.keeper.tick()
            time.sleep(0.01)
        return self

    def until(self, told: Callable[[], bool], patience: float = 10.0) -> bool:
        end = time.monotonic() + patience
        while not told() and time.monotonic() < end:
            self.run(0.02)
        return told()

    def armed(self) -> Live:
        self.until(lambda: not self.keeper.watch.blind)
        self.keeper.arm()
        return self.run(0.05)

    def act(self, action) -> None:
        self.seq += 1
        self.keeper.act(self.seq, np.array(action, np.float64))
        self.run(0.05)

    @property
    def at(self):
        return self.keeper.watch.newest().measured


class Follows:
    """A place [N] that goes to where it is told, 20 rad/s (m/s) at most. Time passes when it is looked at; no two looks say the same."""

    def __init__(self, at, speed: float = 20.0):
        self.place, self.goal, self._speed, self._seen = np.array(at, np.float64), np.array(at, np.float64), speed, time.monotonic()

    def now(self):
        most = self._speed * (time.monotonic() - self._seen)
        self._seen = time.monotonic()
        self.place = self.place + np.clip(self.goal - self.place, -most, most)
        return self.place + 1e-9 * np.sin(1e6 * self._seen)


class FrankaServer:
    """HIL-SERL's: everything is a POST, nothing is checked, a reflex stops the arm in silence until somebody says clearerr."""

    def __init__(self):
        self.pose, self.gripper, self.reflex, self.said, self.imp = Follows([0.5, 0.0, 0.3, -1.0, 0.0, 0.0, 0.0]), 1.0, False, [], True
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                given = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "{}")
                code, answer = server.answer(self.path, given)
                body = answer.encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, path, given):
        if path not in ("/pose", "/getstate"):
            self.said.append(path)
        if path == "/pose":
            if not self.reflex and self.imp:
                self.pose.goal = np.array(given["arr"])
            return 200, "Moved"
        if path == "/getstate":
            return 200, json.dumps({"pose": self.pose.now().tolist(), "vel": [0.0] * 6, "force": [1.0, 2.0, 3.0], "torque": [0.0] * 3,
                                    "q": [0.0] * 7, "dq": [0.0] * 7, "jacobian": [[0.0] * 7] * 6, "gripper_pos": self.gripper})
        if path == "/clearerr":
            self.reflex = False
            return 200, "Clear"
        if path in ("/open_gripper", "/close_gripper"):
            self.gripper = float(path == "/open_gripper")
            return 200, "Done"
        if path in ("/startimp", "/stopimp"):
            self.imp = path == "/startimp"
            return 200, "Done"
        return 404, "<html>Not Found</html>"

    def close(self):
        self.http.shutdown()
        self.http.server_close()


class Mode(Enum):
    Other, Idle, Move, Guiding, Reflex, UserStopped, AutomaticErrorRecovery = range(7)


class Franky:
    """The module: one robot, whose motions take over from each other, and which moves no more once it has errors."""

    RobotMode = Mode
    RealtimeConfig = SimpleNamespace(Ignore="ignore", Enforce="enforce")

    class ControlException(Exception):
        pass

    class JointState:
        def __init__(self, position, velocity=None):
            assert len(position) == 7
            self.position = np.array(position)

    class JointMotion:
        def __init__(self, target, reference_type=None, relative_dynamics_factor=1.0, return_when_finished=True):
            self.target, self.returns = target, return_when_finished

    def __init__(self):
        module = self

        class Robot:
            def __init__(self, fci_hostname, *, realtime_config="enforce"):
                if fci_hostname != "172.16.0.2":
                    raise module.ControlException("libfranka: Connection error")
                module.robot, self.calls = self, []
                self.q, self.mode = Follows([0.0, -0.8, 0.0, -2.4, 0.0, 1.6, 0.8]), Mode.Idle

            @property
            def has_errors(self):
                return self.mode == Mode.Reflex

            @property
            def state(self):
                return SimpleNamespace(q=self.q.now().tolist(), dq=[0.0] * 7, O_F_ext_hat_K=[0.0, 0.0, 5.0, 0.0, 0.0, 0.0],
                                       robot_mode=self.mode)

            def poll_motion(self):
                if self.mode == Mode.Reflex:
                    raise module.ControlException("libfranka: Move command aborted: motion aborted by reflex!")
                return self.mode == Mode.Move

            def move(self, motion, asynchronous=False, limit_rate=False, cutoff_frequency=100.0):
                assert asynchronous and not motion.returns, "the control loop would wait"
                if self.mode in (Mode.Reflex, Mode.UserStopped):
                    raise module.ControlException("libfranka: command rejected")
                self.q.goal, self.mode = motion.target.position, Mode.Move

            def recover_from_errors(self):
                self.calls.append("recovered")
                self.mode, self.q.goal = Mode.Idle, self.q.place
                return True

            def stop(self):
                self.calls.append("stopped")
                self.mode = Mode.Idle

        self.Robot = Robot


class Rtde:
    """Both of ur_rtde's interfaces of one arm: its clock, its safety, a watchdog that ends the program when it is not kicked."""

    def __init__(self):
        self.q, self.program, self.mode, self.connected = Follows([0.0, -1.57, 1.57, -1.57, -1.57, 0.0]), True, 7, True
        self.protective = self.estop = False
        self.kicked, self.watchdog, self.calls, self.stands = time.monotonic(), 0.0, [], False
        arm = self

        class RTDEControlInterface:
            def __init__(self, hostname, frequency=-1.0, flags=1, ur_cap_port=50002, rt_priority=0):
                arm.program = True

            def setWatchdog(self, min_frequency=10.0):
                arm.watchdog, arm.kicked = min_frequency, time.monotonic()
                return True

            def kickWatchdog(self):
                arm.kicked = time.monotonic()
                return True

            def isProgramRunning(self):
                arm.program = arm.program and not arm.protective and not arm.estop
                arm.program = arm.program and time.monotonic() - arm.kicked < 1 / arm.watchdog
                return arm.program

            def reuploadScript(self):
                if arm.protective or arm.estop:
                    return False
                arm.program, arm.kicked = True, time.monotonic()
                arm.calls.append("uploaded")
                return True

            def servoJ(self, q, speed, acceleration, time, lookahead_time, gain):
                assert len(q) == 6 and 0.03 <= lookahead_time <= 0.2 and 100 <= gain <= 2000
                if not self.isProgramRunning():
                    return False
                arm.q.goal = np.array(q)
                return True

            def servoStop(self, a=10.0):
                arm.calls.append("servoStop")
                return True

            def stopScript(self):
                arm.program = False
                arm.calls.append("stopScript")

            def disconnect(self):
                arm.calls.append("disconnected")

        class RTDEReceiveInterface:
            def __init__(self, hostname, frequency=-1.0, variables=(), verbose=False, use_upper_range_registers=False, rt_priority=0):
                if hostname != "192.168.1.2":
                    raise RuntimeError("Timeout connecting to UR dashboard server.")
                self.stamp = 0.0

            def isConnected(self):
                return arm.connected

            def reconnect(self):
                arm.connected = True
                return True

            def getTimestamp(self):
                self.stamp = self.stamp if arm.stands else time.monotonic()
                return self.stamp

            def getActualQ(self):
                return arm.q.now().tolist()

            def getActualQd(self):
                return [0.0] * 6

            def getActualTCPPose(self):
                return [0.1, 0.2, 0.3, 0.0, 3.14, 0.0]

            def getActualTCPForce(self):
                return [0.0, 0.0, -4.0, 0.0, 0.0, 0.0]

            def isProtectiveStopped(self):
                return arm.protective

            def isEmergencyStopped(self):
                return arm.estop

            def getRobotMode(self):
                return arm.mode

            def disconnect(self):
                pass

        self.RTDEControlInterface, self.RTDEReceiveInterface = RTDEControlInterface, RTDEReceiveInterface
