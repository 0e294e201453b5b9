"""The policy server: openpi's clients and ours get what the policy says, everybody else one line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_wire import openpi_pack, openpi_unpack

from children import Child
from realrl.cell.rollout import rollout
from realrl.cli.main import main
from realrl.envs import make
from realrl.generative.diffusion import DiffusionConfig
from realrl.nets.rssm import RSSMConfig
from realrl.policies.diffusion import DiffusionPolicy, PolicyConfig
from realrl.policies.folder import load_policy
from realrl.policies.recurrent import RecurrentConfig, RecurrentPolicy
from realrl.robots.embodiment import Embodiment
from realrl.robots.guard import box_guard
from realrl.scene import GuardConfig
from realrl.serve.client import RemotePolicy
from realrl.serve.server import CLIENTS, ServeConfig, Server
from realrl.serve.session import Served
from realrl.types import Obs, Plan, Policy, RealrlError, State

websockets = pytest.importorskip("websockets.exceptions", reason="needs the group serve (pip install 'realrl[serve]')")
ROBOT = Embodiment("arm", ("a", "b", "c"), ("", "m", "m"), (-1, 0, 0), (1, 10, 4), ("x", "y"), 20.0)


class Counter:
    """Remembers how often it was asked, and says what it saw: (plans of this episode, newest x, oldest x)."""

    KIND = "counter"
    name, head, chunk, n_obs, obs_dim, action_dim = "counter", "mean", 2, 3, 2, 3
    senses: dict[str, tuple[int, ...]] = {}  # noqa: RUF012

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def start(self, batch: int) -> State:
        return {"count": torch.zeros(batch)}

    def act(self, obs: Obs, state: State, *, greedy: bool, rng: Sequence[np.random.Generator]) -> tuple[Plan, State]:
        assert obs["state"].shape == (1, 3, 2) and obs["state"].dtype == np.float32
        if obs["state"][0, -1, 0] == 666:
            raise ZeroDivisionError("a bug\nin a policy")
        time.sleep(self.seconds)
        said = [float(state["count"][0]), obs["state"][0, -1, 0], obs["state"][0, 0, 0]]
        return Plan(np.tile(np.array(said, np.float32), (1, 2, 1))), {"count": state["count"] + 1}


@contextmanager
def served(policy: Any, *, token: str | None = None, robot: Embodiment | None = None, port: int = 0, **options: Any) -> Iterator[str]:
    """The address of a server in a thread."""
    started, stop, found = threading.Event(), asyncio.Event(), []
    loop = asyncio.new_event_loop()
    server = Server(Served(policy, "toy/obstacle", robot, {}, f"hash of {policy.name}"), replace(ServeConfig(port=port), **options), token)

    def ready(at: int) -> None:
        found.append(at)
        started.set()

    thread = threading.Thread(target=lambda: loop.run_until_complete(server.run(ready, stop)), daemon=True)
    thread.start()
    assert started.wait(20)
    try:
        yield f"ws://127.0.0.1:{found[0]}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        loop.close()
    assert not thread.is_alive()


class Client:
    """As much of openpi's client as there is."""

    def __init__(self, url: str, **headers: str) -> None:
        from websockets.sync.client import connect
        self.socket = connect(url, compression=None, max_size=None, additional_headers=headers).__enter__()
        self.metadata = openpi_unpack(self.socket.recv(timeout=20))

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        self.socket.send(openpi_pack(obs))
        return self.read()

    def read(self) -> Any:
        reply = self.socket.recv(timeout=20)
        if isinstance(reply, str):
            raise RuntimeError(reply)
        return openpi_unpack(reply)


def health(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url.replace("ws:", "http:") + "/healthz", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(RuntimeError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_client_of_openpi_is_answered() -> None:
    with served(Counter(), robot=ROBOT) as url:
        client = Client(url)
        assert client.metadata["policy"] == "counter" and client.metadata["robot"]["units"] == ["", "m", "m"]
        assert client.metadata["observations"] == {"state": {"shape": [2], "type": "float32"}} and client.metadata["chunk"] == 2
        for i in range(4):
            reply = client.infer({"observation/state": np.array([0.1 * i, 0]), "prompt": "do something"})
            assert reply["actions"].shape == (2, 3) and reply["actions"].dtype == np.float32
            assert reply["server_timing"]["infer_ms"] >= 0 and ("prev_total_ms" in reply["server_timing"]) == (i > 0)
        assert health(url) == (200, "OK\n")


def test_actions_come_in_the_robots_units_or_in_the_policys() -> None:
    with served(Counter(), robot=ROBOT) as url:
        client = Client(url)
        assert client.infer({"state": [0.5, 0]})["actions"][0].tolist() == [0, 7.5, 3]
        assert client.infer({"state": [0.5, 0], "boxed": True})["actions"][0].tolist() == [1, 0.5, 0.5]


def test_memory_is_a_connections_and_an_episodes() -> None:
    """What was seen and what the policy remembers begin anew with a connection and with another episode, and come back with a known one."""
    with served(Counter()) as url:
        one, other = Client(url), Client(url)
        said = lambda client, x, **more: client.infer({"observation.state": np.array([x, 0.0]), **more})["actions"][0].tolist()
        assert [said(one, x) for x in (1, 2, 3, 4)] == [[0, 1, 1], [1, 2, 1], [2, 3, 1], [3, 4, 2]]
        assert said(other, 9) == [0, 9, 9] and said(one, 5, episode="second") == [0, 5, 5] and said(one, 6) == [4, 6, 3]
        whole = {"state": np.array([[1, 0], [2, 0], [3, 0]], np.float32)}
        assert one.infer(whole)["actions"][0].tolist() == [5, 3, 1], "a history that was sent as one is taken as it is"


def test_a_policy_that_remembers_what_it_did_is_told_what_was_done() -> None:
    """A robot whose guard limits changes: a served world model's policy does what the same one beside the robot does."""
    torch.manual_seed(0)
    policy = RecurrentPolicy(RecurrentConfig(RSSMConfig(deter=16, stoch=3, classes=4, hidden=12, units=12)), 2, 2, name="dreamer")
    torch.nn.init.normal_(policy.actor[-1].weight)  # type: ignore[arg-type]
    remembered, acted = list[Any](), policy.act

    def spy(obs: Obs, state: State, **how: Any) -> tuple[Plan, State]:
        remembered.append(state["action"][0].numpy().copy())
        return acted(obs, state, **how)
    policy.act = spy  # type: ignore[method-assign]
    env, limits = make("toy/obstacle", horizon=8), GuardConfig(max_delta=0.01)
    with served(policy) as url, contextlib.closing(RemotePolicy(url)) as remote:
        episode = next(rollout([env], remote, [box_guard(env, limits)], [1], greedy=True))
        assert not np.allclose(episode.action, episode.proposed) and np.allclose(remembered[1:], episode.action[:-1], atol=1e-6)
        client = Client(url)
        client.infer({"state": [0, 0]})
        assert "sent must be the 2 numbers" in refused(lambda: client.infer({"state": [0, 0], "sent": [1, np.nan]}))
    env.close()


def test_numbers_and_stamps_come_back_and_must_grow() -> None:
    with served(Counter()) as url:
        client = Client(url)
        for seq in (3, 4, 9):
            reply = client.infer({"state": [0, 0], "seq": seq, "obs_time": seq / 8})
            assert (reply["seq"], reply["obs_time"]) == (seq, seq / 8)
        assert "seq 9 after 9: a message must have a larger number" in refused(lambda: client.infer({"state": [0, 0], "seq": 9}))


@pytest.mark.parametrize(("message", "line"), [
    ({"observation/stat": np.zeros(2)}, r"observation state \[2\] is missing .*got observation/stat"), ({}, "got nothing"),
    ({"state": np.zeros(3)}, r"observation state is float64 \[3\], must be float32 \[2\], or 3 of them in a row"),
    ({"state": np.zeros((4, 2))}, "must be"), ({"state": "text"}, "is a str, must be"), ({"state": {"a": 1}}, "is a dict, must be"),
    ({"state": [[1, 2], [3]]}, "must be"), ({"state": [np.nan, 0]}, "NaN or infinity"),
    ({"state": np.array([1e300, 0])}, "NaN or infinity"),
    ({"state": [0, 0], "seq": -1}, "seq must be"), ({"state": [0, 0], "seq": 1.5}, "seq must be"),
    ({"state": [0, 0], "seed": "x"}, "seed must be"), ({"state": [0, 0], "episode": [1]}, "episode must be"),
    ({"state": [0, 0], "episode": "x" * 200}, "episode must be"), ({"state": [0, 0], "obs_time": "now"}, "obs_time must be"),
    ({"state": [666, 0]}, "the policy failed .ZeroDivisionError: a bug in a policy"), ([1, 2], "a message must be a map")])
def test_a_message_that_makes_no_sense_gets_one_line(message: Any, line: str) -> None:
    with served(Counter()) as url:
        client, other = Client(url), Client(url)
        assert re.search(line, refused(lambda: client.infer(message)))
        with pytest.raises(websockets.ConnectionClosed):
            client.read()
        assert client.socket.close_code == 1011 and other.infer({"state": [0, 0]})["actions"].shape == (2, 3), "others are served on"


def test_neither_text_nor_noise_nor_what_is_too_large_is_read() -> None:
    with served(Counter()) as url:
        for data, line in (("text", "observations are sent as binary"), (b"\xc1\xc1", "not a message of msgpack")):
            client = Client(url)
            client.socket.send(data)
            assert line in refused(client.read)
        client = Client(url)
        with pytest.raises(websockets.ConnectionClosed):
            client.infer({"state": [0, 0], "more": bytes(10**6)})
        assert client.socket.close_code == 1009 and health(url)[0] == 200


def test_who_has_no_token_and_who_comes_from_a_web_page_is_not_let_in() -> None:
    with served(Counter(), token="sesame") as url:
        assert health(url) == (200, "OK\n"), "health is no secret"
        for value in ("Api-Key sesame", "Bearer sesame", "api-key sesame"):
            assert Client(url, Authorization=value).metadata["policy"] == "counter"
        for headers in ({}, {"Authorization": "Api-Key Sesame"}, {"Authorization": "sesame"}, {"Authorization": "Api-Key "},
                        {"Authorization": "Api-Key sesame", "Origin": "http://evil.example"}):
            with pytest.raises(websockets.InvalidStatus, match=r"401|403"):
                Client(url, **headers)
        with pytest.raises(RealrlError, match="wrong or no token"):
            RemotePolicy(url, "wrong")
        assert RemotePolicy(url, "sesame").name == "counter"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "robot.local"])
def test_others_are_let_in_only_with_a_token(host: str) -> None:
    told = Served(Counter(), "", None, {}, "")  # type: ignore[arg-type]
    with pytest.raises(RealrlError, match="a token is needed"):
        Server(told, ServeConfig(host=host))
    Server(told, ServeConfig(host=host), "sesame")


def test_a_plan_that_takes_too_long_is_said_and_shows_in_the_health() -> None:
    with served(Counter(seconds=1.0), timeout=0.3) as url:
        client = Client(url)
        assert "no plan within 0.3 s" in refused(lambda: client.infer({"state": [0, 0]}))
        assert health(url) == (503, "a plan takes too long\n")
        deadline = time.monotonic() + 20
        while health(url)[0] != 200 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert health(url)[0] == 200


def test_a_client_that_says_nothing_is_let_go() -> None:
    with served(Counter(), idle=0.2) as url:
        client = Client(url)
        with pytest.raises(websockets.ConnectionClosed):
            client.read()
        assert client.socket.close_code == 1001


def test_no_more_clients_than_there_is_room_for() -> None:
    with served(Counter()) as url:
        kept = [Client(url) for _ in range(CLIENTS)]
        with pytest.raises(websockets.InvalidStatus, match="503"):
            Client(url)
        kept[0].socket.close()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                Client(url)
                return
            except websockets.InvalidStatus:
                time.sleep(0.05)
        raise AssertionError("the place of one who left is never given away")


def test_a_port_that_is_taken_is_said() -> None:
    with served(Counter()) as url:
        server = Server(Served(Counter(), "", None, {}, ""), ServeConfig(port=int(url.rpartition(":")[2])))  # type: ignore[arg-type]
        with pytest.raises(RealrlError, match=r"cannot be listened at .*--port"):
            asyncio.run(server.run(lambda port: None, asyncio.Event()))


# -- our own client


def test_the_control_loop_does_not_see_that_a_policy_is_elsewhere(tiny_run: Path) -> None:
    """The same episodes as beside the policy, where its noise is drawn from the same seeds."""
    policy, _ = load_policy(tiny_run / "policy")

    class Seeded:
        name, chunk, n_obs, start = policy.name, policy.chunk, policy.n_obs, policy.start

        def act(self, obs: Obs, state: State, *, greedy: bool, rng: Sequence[np.random.Generator]) -> tuple[Plan, State]:
            return policy.act(obs, state, greedy=greedy, rng=[np.random.default_rng(int(r.integers(2**63))) for r in rng])

    with served(policy) as url:
        remote = RemotePolicy(url)
        assert isinstance(remote, Policy) and (remote.obs_dim, remote.action_dim, remote.senses) == (2, 2, {})
        for greedy in (True, False):
            envs = [make("toy/obstacle") for _ in range(3)]
            theirs, ours = ([*rollout(envs, who, [box_guard(e) for e in envs], range(5), greedy=greedy)] for who in (remote, Seeded()))
            assert len(ours) == 5
            for a, b in zip(theirs, ours, strict=True):
                assert a.seed == b.seed and np.allclose(a.action, b.action, atol=1e-6)
        assert remote.timing["total_ms"] >= remote.timing["infer_ms"] > 0


def test_a_remote_policy_forgets_with_its_episode() -> None:
    with served(Counter(), robot=None) as url:
        remote, rng = RemotePolicy(url), [np.random.default_rng(i) for i in range(2)]
        obs = {"state": np.zeros((2, 3, 2), np.float32)}
        state = remote.start(2)
        for count in range(3):
            plan, state = remote.act(obs, state, greedy=True, rng=rng)
            assert plan.action.shape == (2, 2, 3) and plan.action[:, 0, 0].tolist() == [count, count]
        state["episode"][1] = remote.start(1)["episode"][0]  # as the control loop forgets
        assert remote.act(obs, state, greedy=True, rng=rng)[0].action[:, 0, 0].tolist() == [3, 0]


def test_a_server_that_comes_back_is_found_again_if_nothing_is_lost(tiny_run: Path) -> None:
    policy, _ = load_policy(tiny_run / "policy")
    obs, rng = {"state": np.zeros((1, 1, 2), np.float32)}, [np.random.default_rng(0)]
    with served(policy) as url:
        remote = RemotePolicy(url, timeout=5)
        state = remote.start(1)
        remote.act(obs, state, greedy=True, rng=rng)
    port = int(url.rpartition(":")[2])
    with pytest.raises(RealrlError, match="no policy's server answers"):
        remote.act(obs, state, greedy=True, rng=rng)
    with served(policy, port=port):
        assert remote.act(obs, state, greedy=True, rng=rng)[0].action.shape == (1, policy.chunk, 2)
    with served(Counter(), port=port), pytest.raises(RealrlError, match="another policy is served there now"):
        remote.act(obs, state, greedy=True, rng=rng)
    with served(Counter(), port=port):
        forgetful = RemotePolicy(url, timeout=5)
        obs = {"state": np.zeros((1, 3, 2), np.float32)}
        forgetful.act(obs, forgetful.start(1), greedy=True, rng=rng)
    with served(Counter(), port=port), pytest.raises(RealrlError, match="no answer from the policy's server"):
        forgetful.act(obs, forgetful.start(1), greedy=True, rng=rng)


def test_a_server_that_does_not_answer_is_not_waited_for() -> None:
    with served(Counter(seconds=1.5)) as url:
        remote = RemotePolicy(url, timeout=0.3)
        obs, state, rng = {"state": np.zeros((1, 3, 2), np.float32)}, remote.start(1), [np.random.default_rng(0)]
        with pytest.raises(RealrlError, match=r"no answer from the policy's server within 0\.3 s"):
            remote.act(obs, state, greedy=True, rng=rng)
        remote.timeout = 20
        obs["state"][:] = 1
        assert remote.act(obs, state, greedy=True, rng=rng)[0].action[0, 0].tolist() == [1, 1, 1], "the answer to this question"


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "ws://127.0.0.1:1", "nonsense"])
def test_an_address_where_nobody_is_gets_one_line(url: str) -> None:
    with pytest.raises(RealrlError, match="no policy's server answers there") as caught:
        RemotePolicy(url, timeout=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("greeting", [
    {}, {"policy": "pi0"}, {"policy": "x", "head": "", "hash": "", "task": "", "chunk": "many"}, [1], "no"])
def test_somebody_else_s_server_is_named_as_such(greeting: Any) -> None:
    from websockets.sync.server import serve

    def greet(socket: Any) -> None:
        socket.send(greeting if isinstance(greeting, str) else openpi_pack(greeting))
        for _ in socket:
            pass

    with serve(greet, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(RealrlError, match=r"somebody else's|: \[1\]|: no") as caught:
            RemotePolicy(f"ws://127.0.0.1:{server.socket.getsockname()[1]}", timeout=20)
        assert "\n" not in str(caught.value)
        server.shutdown()


def test_the_command_serves_until_it_is_asked_to_end(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("sesame\n")
    words = ["serve", "--policy", str(tiny_run / "policy"), "--port", "0", "--token-file", str(tmp_path / "token")]
    server = Child("-m", "realrl", *words)
    while "\n" not in (line := server.out):
        assert server.poll() is None, server.wait()
        time.sleep(0.02)
    found = re.search(r"is served at (ws://127\.0\.0\.1:\d+), its health at (http://127\.0\.0\.1:\d+/healthz)", line)
    try:
        assert found and health(found[1]) == (200, "OK\n") and found[2] == found[1].replace("ws:", "http:") + "/healthz"
        remote = RemotePolicy(found[1], "sesame", timeout=20)
        assert remote.task == "toy/obstacle" and remote.hash in line
        plan, _ = remote.act({"state": np.zeros((1, 1, 2), np.float32)}, remote.start(1), greedy=True, rng=[np.random.default_rng(0)])
        assert plan.action.shape == (1, remote.chunk, 2)
    finally:
        server.signal(signal.SIGTERM)
        code, _, said = server.wait(60)
    assert code == 0 and "connected" in said and "after 1 plans" in said and "Traceback" not in said


@pytest.mark.parametrize(("words", "line"), [
    (["--host", "0.0.0.0"], "a token is needed"), (["--token-file", "empty"], "holds no token"), (["--token-file", "nowhere"], "nowhere"),
    (["--port", "70000"], "port must be"), (["--timeout", "0"], "timeout must be"), (["--policy", "nowhere"], "no policy here")])
def test_a_mistake_on_the_command_line_gets_its_line(words: list[str], line: str, tiny_run: Path, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REALRL_TOKEN", raising=False)
    Path("empty").write_text("\n")
    assert main(["serve", "--policy", str(tiny_run / "policy"), *words]) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1


# -- openpi's own client, where there is one


def test_openpi_s_own_client_works_unchanged(tiny_run: Path) -> None:
    """OPENPI_PYTHON: a Python that has the package openpi-client, which needs an older numpy than we do."""
    python = os.environ.get("OPENPI_PYTHON")
    if not python:
        pytest.skip("OPENPI_PYTHON names no Python with openpi-client")
    code = ("import sys, numpy as np\nfrom openpi_client.websocket_client_policy import WebsocketClientPolicy\n"
            "from openpi_client.action_chunk_broker import ActionChunkBroker\n"
            "client = WebsocketClientPolicy('127.0.0.1', int(sys.argv[1]), api_key='sesame')\n"
            "broker = ActionChunkBroker(client, client.get_server_metadata()['chunk'])\n"
            "print([broker.infer({'observation/state': np.zeros(2), 'prompt': 'go'})['actions'].shape for _ in range(5)])\n"
            "try:\n    client.infer({'observation/image': np.zeros(2)})\nexcept RuntimeError as error:\n    print(error)\n")
    policy, _ = load_policy(tiny_run / "policy")
    with served(policy, token="sesame") as url:
        found = subprocess.run([python, "-c", code, url.rpartition(":")[2]], capture_output=True, text=True, timeout=100,
                               env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"})
    assert found.returncode == 0, found.stderr
    assert "[(2,), (2,), (2,), (2,), (2,)]" in found.stdout and "observation state [2] is missing" in found.stdout


def test_evaluate_tries_a_policy_that_is_served_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    policy = DiffusionPolicy(PolicyConfig(chunk=4, hidden=16, blocks=1, diffusion=DiffusionConfig(steps=3)), 2, 2)
    arguments = ["evaluate", "--episodes", "3", "--json", "--workers", "1", "--policy"]
    with served(policy, token="sesame") as url:
        assert main([*arguments, url]) == 2 and "refuses" in capsys.readouterr().err
        monkeypatch.setenv("REALRL_TOKEN", "sesame")
        assert main([*arguments, url]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["task"] == "toy/obstacle" and found["policy"] == url and found["success"]["n"] == 3 and found["latency_ms"]["p50"] > 0
    assert main([*arguments, "ws://127.0.0.1:9"]) == 2 and "no policy's server answers" in capsys.readouterr().err
