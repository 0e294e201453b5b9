"""The grasp critic: its target against numbers by hand, what is learned from, imitation, resumed learning, and a grasp that it finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from realrl.learn.grasp import MARGIN, STAY, GraspCritic, commands
from realrl.learn.sac import SAC, SACConfig
from realrl.policies.gaussian import GaussianConfig, GaussianPolicy
from realrl.types import Batch

OPEN, SHUT = 0, 2


def critic(cost: float = 0.02, **changes: object) -> GraspCritic:
    torch.manual_seed(0)
    policy = GaussianPolicy(GaussianConfig(hidden=(16,), norm="layer"), 2, 3, gripper=True)
    return GraspCritic(policy, SACConfig(**{"batch": 4, "hidden": (16,), "critic_lr": 1e-2, **changes}), cost)  # type: ignore[arg-type]


def batch(numbers: list[float], reward: list[float], discount: list[float], seed: int = 0) -> Batch:
    """Transitions in which the gripper was told these numbers."""
    n, random = len(numbers), torch.Generator().manual_seed(seed)
    action = torch.cat([torch.rand(n, 1, 2, generator=random) * 2 - 1, torch.tensor(numbers)[:, None, None]], -1)
    obs, after = torch.randn(2, n, 1, 2, generator=random)
    return Batch({"state": obs}, action, torch.tensor(reward), torch.tensor(discount), {"state": after}, torch.ones(n, 1, dtype=torch.bool),
                 torch.zeros(n, 1, dtype=torch.uint8))


def test_what_a_number_tells_the_gripper() -> None:
    action = torch.tensor([-1.0, -0.5, -0.49, 0.0, 0.49, 0.5, 0.97])[:, None, None].repeat(1, 1, 3)
    action[..., :2] = 1.0
    assert commands(action).tolist() == [OPEN, OPEN, STAY, STAY, STAY, SHUT, SHUT]


def test_the_target_is_a_double_dqns_less_the_cost_of_a_command() -> None:
    """r - cost + discount Q'(s', argmax Q(s')): the online values choose, the target's are taken; nothing after the end."""
    made = critic(target_rate=0.5)
    rows = batch([1.0, 0.0, -1.0, 0.6], [0.0, 0.0, 0.0, 1.0], [0.9, 0.9, 0.9, 0.0])
    with torch.no_grad():  # a target that prefers another command than the critic does, everywhere
        bias = made.weights.views(made.target)[f"bias{1}"]
        made.policy.grasp.bias1[0, 0] = torch.tensor([0.0, 3.0, 0.0])  # type: ignore[operator]
        bias[0, 0] = torch.tensor([7.0, 2.0, 0.0])
        online = made.policy.grasp(rows.next_obs["state"][:, 0])[0]
        behind = made.policy.grasp(rows.next_obs["state"][:, 0], made.weights.views(made.target))[0]
        q = made.policy.grasp(rows.obs["state"][:, 0])[0]
    assert (online.argmax(-1) == STAY).all() and (behind.argmax(-1) == OPEN).all()
    wanted = [-0.02 + 0.9 * behind[0, STAY], 0.9 * behind[1, STAY], -0.02 + 0.9 * behind[2, STAY], 1.0 - 0.02]
    chosen = torch.stack([q[0, SHUT], q[1, STAY], q[2, OPEN], q[3, SHUT]])
    before = made.target.clone()
    told = made.update(rows)
    assert told["grasp_loss"] == pytest.approx(float((chosen - torch.tensor(wanted)).square().mean()), rel=1e-5)
    assert told["grasp_q"] == pytest.approx(float(chosen.mean()), rel=1e-5)
    assert torch.allclose(made.target, (before + made.weights.value) / 2), "and then the target follows"


def test_it_makes_a_step_for_every_one_of_the_other_critics() -> None:
    made = critic()
    rows = batch([1.0, 0.0, -1.0, 0.0] * 3, [0.0] * 12, [0.9] * 12)
    made.update(rows)
    assert made.weights.steps == 3
    again = critic()
    for i in range(3):
        again.update(rows[slice(4 * i, 4 * i + 4)])
    assert torch.equal(made.weights.value, again.weights.value)


def test_the_gaussian_and_its_critics_do_not_see_the_command() -> None:
    """Motions are learned as if there were no gripper; the policy's last number is the command of the highest value."""
    torch.manual_seed(0)
    policy = GaussianPolicy(GaussianConfig(hidden=(16,)), 2, 3, gripper=True)
    agent, found = SAC(policy, SACConfig(batch=4, hidden=(16,)), seed=0), []
    for number in (1.0, -1.0):
        rows = batch([number] * 4, [1.0] * 4, [0.9] * 4)
        found.append(agent.worth(rows))
        agent.update(rows)
        agent.imitate(rows)
    assert agent.size == 2 and policy.net.sizes[-1] == 4
    again = SAC(policy, SACConfig(batch=4, hidden=(16,)), seed=0)
    rows = [batch([number] * 4, [1.0] * 4, [0.9] * 4) for number in (1.0, -1.0)]
    assert torch.equal(again.worth(rows[0]), again.worth(rows[1]))


def test_imitation_makes_a_persons_command_worth_more() -> None:
    made = critic()
    rows = batch([1.0, 0.0, -1.0, 0.0], [0.0] * 4, [0.9] * 4)
    q = made.policy.grasp(rows.obs["state"][:, 0])[0]
    told = [SHUT, STAY, OPEN, STAY]
    by_hand = [max(float(row[c]) + MARGIN * (c != t) for c in range(3)) - float(row[t]) for row, t in zip(q, told, strict=True)]
    assert made.imitate(rows)["grasp_imitation_loss"] == pytest.approx(np.mean(by_hand), rel=1e-5)
    for _ in range(200):
        loss = made.imitate(rows)["grasp_imitation_loss"]
    assert loss < 0.01 and made.policy.grasp(rows.obs["state"][:, 0])[0].argmax(-1).tolist() == told
    assert torch.equal(made.target, made.weights.value)


def test_what_is_resumed_goes_on_to_the_same_weights() -> None:
    rows = [batch([1.0, 0.0, -1.0, 0.0], [0.0, 1.0, 0.0, 0.5], [0.9, 0.0, 0.9, 0.9], seed=i) for i in range(4)]
    whole, half = critic(), critic()
    for one in rows:
        whole.update(one)
    for one in rows[:2]:
        half.update(one)
    again = critic()
    again.policy.load_state_dict(half.policy.state_dict())
    again.load_state_dict(half.state_dict())
    for one in rows[2:]:
        again.update(one)
    assert torch.equal(again.weights.value, whole.weights.value) and torch.equal(again.target, whole.target)
    assert again.weights.steps == 4


def test_it_learns_when_to_shut() -> None:
    """A line to walk by itself, x from 0 to 1; shutting pays near 1 and ends it, elsewhere it is a cost."""
    made, random = critic(cost=0.1, batch=64, target_rate=0.05), torch.Generator().manual_seed(0)
    for _ in range(400):
        x = torch.rand(64, generator=random)
        command = torch.randint(3, (64,), generator=random)
        won = (command == SHUT) & (x > 0.8)
        seen = lambda x: {"state": torch.stack([x, 1 - x], -1)[:, None]}
        action = torch.stack([torch.zeros(64), torch.zeros(64), command.float() - 1], -1)[:, None]
        made.update(Batch(seen(x), action, won.float(), torch.where(won, 0.0, 0.9), seen((x + 0.1).clamp(max=1)),
                          torch.ones(64, 1, dtype=torch.bool), torch.zeros(64, 1, dtype=torch.uint8)))
    says: list[int] = [best(made, x) for x in (0.1, 0.4, 0.6, 0.9, 1.0)]
    assert says == [STAY, STAY, STAY, SHUT, SHUT]


def best(made: GraspCritic, x: float) -> int:
    cond: Tensor = torch.tensor([[x, 1 - x]])
    return int(made.policy.grasp(cond)[0].argmax())
