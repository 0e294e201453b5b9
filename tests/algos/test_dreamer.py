"""DayDreamer's learner: dreams without a graph, a world with a known answer, what each loss reaches."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from realrl import envs
from realrl.algos.daydreamer import BINS, PRESETS, Dreamer
from realrl.cell.rollout import rollout
from realrl.learn.dreaming import DreamConfig, slim
from realrl.learn.replay import Replay
from realrl.nets.rssm import Latent, RSSMConfig
from realrl.nets.twohot import symlog
from realrl.policies.recurrent import RecurrentConfig, RecurrentPolicy
from realrl.robots.guard import box_guard
from realrl.types import Array, Episode, Policy, Segment

SIZE = RSSMConfig(deter=16, hidden=16, units=16, stoch=4, classes=4, depth=2)


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
    agent, replay = dreamer(LINE, through=True, centre=True, spread=0.3, lr=6e-3), line()
    for step in range(230):
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
    reward, discount = agent.foretold(dream.feature[1:])
    assert not reward.any() and not agent.heads["critic"](dream.feature).any(), "to the bit"
    assert torch.equal(discount, discount.clamp(0.0, 1.0)) and reward.shape == discount.shape == (5, 32)


def test_what_the_mean_reward_is_worth_for_ever_is_there_at_once() -> None:
    agent, replay = dreamer(centre=True, through=True), line(3)
    agent.update(drawn(replay, 0))
    s = drawn(replay, 0)
    assert float(agent.level) == pytest.approx(float(s.reward[s.valid].mean()), abs=1e-6)
    assert torch.allclose(agent.value(torch.zeros(2, BINS)), agent.level / (1 - 0.9)), "a head that says nothing"
    for step in range(1, 80):
        told = agent.update(drawn(replay, step))
    assert float(told["value"]) == pytest.approx(float(agent.level) * 10, rel=0.2), "and not on its way there"
    far = dreamer()
    assert not far.value(torch.zeros(2, BINS)).any()


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
    assert {"state", "dyn", "rep", "reward", "goes_on", "actor", "critic", "replayed", "surprise", "entropy"} <= {*told[0]}


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
