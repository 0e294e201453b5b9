"""The linear reference: what each joint chooses, what it leaves to the network, and how far the network is followed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from realrl.data.views import ChunkView
from realrl.learn.imitation import prepare
from realrl.learn.reference import GAINS, PENALTIES, Witness, _folds, _simplest, _two_valued, fit_reference, kept_back, resting, trust
from realrl.nets.reference import Reference
from realrl.policies.diffusion import DiffusionPolicy, PolicyConfig
from realrl.robots.embodiment import Embodiment
from realrl.types import Episode, Source


def episode(state: np.ndarray, action: np.ndarray) -> Episode:
    steps = len(action)
    return Episode(obs={"state": state.astype(np.float32)}, action=action.astype(np.float32), proposed=action.astype(np.float32),
                   source=np.full(steps, Source.HUMAN, np.uint8), reward=np.zeros(steps, np.float32), success=np.zeros(steps, bool),
                   time=np.arange(steps) / 10, starts_plan=np.ones(steps, bool), terminated=False, truncated=True, task="", policy="")


def moving(episodes: int, steps: int, seed: int, chunk: int = 4) -> ChunkView:
    """Joint 0 is told to go on as it moves, joint 1 a mix of both measured joints, joint 2 noise that nothing foretells."""
    random, made = np.random.default_rng(seed), []
    for _ in range(episodes):
        t = np.arange(steps + 1)[:, None]
        state = np.sin(t * random.uniform(0.05, 0.2, 2) + random.uniform(0, 6, 2)) * random.uniform(0.2, 0.5, 2)
        action = np.concatenate([state[1:, :1], (0.3 * state[:-1, :1] - 0.8 * state[:-1, 1:]), random.uniform(-1, 1, (steps, 1))], 1)
        made.append(episode(state, action))
    return ChunkView(made, chunk=chunk, n_obs=2, gamma=1.0)


def error(reference: Reference, view: ChunkView) -> torch.Tensor:
    batch = view.batch()
    mask = batch.valid[..., None].float()
    return ((reference(batch.obs["state"]) - batch.action).abs() * mask).sum((0, 1)) / mask.sum()


def test_it_foresees_what_is_linear_in_episodes_it_has_not_seen() -> None:
    seen, unseen = moving(6, 80, 0), moving(4, 80, 1)
    ours, ridge = Reference(4, 4, 3), Reference(4, 4, 3)
    fit_reference(ours, seen)
    fit_reference(ridge, seen, ridge=True)
    mean = (unseen.actions - seen.actions.mean(0)).abs().mean(0)
    assert (error(ours, unseen)[:2] < 0.05 * mean[:2]).all()
    assert error(ours, unseen)[2] < 1.1 * mean[2], "noise is left alone"
    assert (error(ours, unseen) < 1.2 * error(ridge, unseen) + 1e-3).all()


def test_beyond_what_was_demonstrated_a_regression_says_what_it_says_at_the_edge() -> None:
    view = moving(6, 80, 0)
    reference = Reference(4, 4, 3)
    fit_reference(reference, view)
    state = view.batch().obs["state"]
    far, edge = torch.full((1, 2, 2), 50.0), state.flatten(1).max(0).values.view(1, 2, 2) * 1.0
    assert (reference(far) - reference(edge)).abs().max() < 0.5, "joints 0 and 1 would be at 50 and -25"
    held = Embodiment("arm", ("a", "b", "c"), ("", "", ""), (-1.0,) * 3, (1.0,) * 3, ("x", "y"), 10.0, "absolute", {}, (0, -1, -1))
    fit_reference(reference, view, held)
    assert float(reference(far)[0, 0, 0]) > 10, "but what is held is held anywhere"


def test_of_what_foresees_equally_well_the_simplest_is_taken() -> None:
    """Two beginnings with every penalty, four groups, three joints."""
    error = np.ones((4, 2 * len(PENALTIES), 3))
    heavy, light = len(PENALTIES) - 1, 0
    error[:, light, 0] = (0.5, 0.6, 0.5, 0.6)  # better everywhere
    error[:, light, 1] = (0.4, 1.1, 1.1, 1.1)  # the best in the mean, by one lucky group
    error[:, heavy + len(PENALTIES), 2] = 0.9  # heavy, but of the second beginning
    error[:, light, 2] = (0.85, 0.95, 0.8, 0.95)
    assert _simplest(error).tolist() == [light, heavy, heavy + len(PENALTIES)]
    assert _simplest(error[:1]).tolist() == [light, light, light], "of one group the best"


def test_of_stretches_of_one_recording_a_plan_is_left_out_at_a_time() -> None:
    """Held out are stretches between them, so no whole one is: the ends of one are not foreseen from the others."""
    pieces = np.repeat(np.arange(5), 40)
    assert (_folds(pieces) == pieces).all()
    assert (_folds(pieces, 16)[:80] == np.repeat(np.arange(5), 16)).all() and (_folds(pieces, 1)[:40] == np.repeat(np.arange(5), 8)).all()


def test_two_episodes_are_enough_for_holding_what_is_measured() -> None:
    """Many idle numbers and hardly any data: a ridge over all of them loses to the joint's own measurement."""
    random = np.random.default_rng(0)

    def recorded(count: int) -> ChunkView:
        made = []
        for _ in range(count):
            joint = random.uniform(-50, 50) + np.cumsum(random.normal(0, 0.5, (61, 1)), 0)
            idle = random.uniform(-1, 1, (1, 12)) + 0.01 * random.normal(size=(61, 12))
            made.append(episode(np.concatenate([joint, idle], 1), joint[1:] / 90))
        return ChunkView(made, chunk=4, n_obs=2, gamma=1.0)

    robot = Embodiment("arm", ("joint",), ("deg",), (-90.0,), (90.0,), tuple("abcdefghijklm"), 10.0, "absolute", {}, (0,))
    seen, unseen = recorded(2), recorded(5)
    ours, ridge = Reference(26, 4, 1), Reference(26, 4, 1)
    fit_reference(ours, seen, robot)
    fit_reference(ridge, seen, ridge=True)
    still = (unseen.batch().obs["state"][:, -1:, :1] / 90 - unseen.batch().action).abs().mean()
    assert error(ours, unseen) < 1.5 * still < error(ridge, unseen)


def test_what_is_drawn_and_what_is_sent_are_inverse_inside_the_reach() -> None:
    view = moving(6, 80, 0)
    reference = Reference(4, 4, 3)
    fit_reference(reference, view)
    batch = view.batch(torch.arange(0, len(view), 7))
    x = reference.encode(batch.action, batch.obs["state"])
    inside = (x.abs() < 1) & batch.valid[..., None]
    assert inside.float().mean() > 0.9
    assert torch.allclose(reference.decode(x, batch.obs["state"])[inside], batch.action[inside], atol=1e-5)


@pytest.mark.parametrize(("drawn", "expected"), [("truth", 1.0), ("nonsense", 0.0), ("twice", 0.5)])
def test_the_network_is_followed_as_far_as_it_foresees(drawn: str, expected: float) -> None:
    view = moving(6, 80, 0)
    reference = Reference(4, 4, 3)
    fit_reference(reference, view)
    reference.scale.fill_(2.0)
    batch = view.batch()
    rest = (batch.action - reference(batch.obs["state"])) / reference.scale
    said = {"truth": rest, "nonsense": torch.rand(rest.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1, "twice": 2 * rest}[drawn]
    left = trust(reference, said, batch.obs["state"], batch.action, batch.valid, view.episode)
    assert set(reference.gain.tolist()) <= set(GAINS) and reference.gain.median() == expected
    assert left == pytest.approx(1 - float(reference.gain.gt(0).float().mean()), abs=1e-3)


def test_one_lucky_episode_does_not_decide() -> None:
    view = moving(6, 80, 0)
    reference = Reference(4, 4, 3)
    fit_reference(reference, view)
    batch = view.batch()
    rest = (batch.action - reference(batch.obs["state"])) / reference.scale
    said = torch.where((view.episode == 0)[:, None, None], rest, -0.05 * rest)  # better on average, because of one of six
    trust(reference, said, batch.obs["state"], batch.action, batch.valid, view.episode)
    assert (reference.gain == 0).all()


@pytest.mark.parametrize(("drawn", "followed"), [((1.0, 0.8, 0.9, -0.5), False), ((1.0, 0.8, 0.9, 0.5), True)])
def test_four_episodes_have_to_agree_beyond_chance(drawn: tuple[float, ...], followed: bool) -> None:
    """Each brings the action, 1, nearer or further by what is drawn: t is 1.6, which chance reaches one time in ten, or 7.4."""
    reference, episodes = Reference(1, 1, 1), torch.arange(4).repeat_interleave(5)
    said = torch.tensor(drawn)[episodes].view(20, 1, 1)
    left = trust(reference, said, torch.zeros(20, 1, 1), torch.ones(20, 1, 1), torch.ones(20, 1, dtype=torch.bool), episodes)
    assert (reference.gain > 0).item() is followed and (left < 1) is followed


def test_a_joint_that_never_moves_does_not_explode() -> None:
    state = np.random.default_rng(0).normal(size=(61, 3))
    state[:, 1] = 7.0
    action = np.concatenate([state[1:, :1] * 0.1, np.full((60, 1), 0.25)], 1)
    view = ChunkView([episode(state, action), episode(state[::-1].copy(), action)], chunk=4, n_obs=2, gamma=1.0)
    reference = Reference(6, 4, 2)
    fit_reference(reference, view)
    assert all(torch.isfinite(b).all() for b in reference.buffers()) and (reference.scale >= 1e-3).all()
    wild = reference.decode(torch.ones(1, 4, 2), torch.full((1, 2, 3), 50.0))
    assert wild.abs().max() <= 1 and abs(float(wild[0, 0, 1]) - 0.25) < 0.05


def motions(steps: int = 300) -> tuple[ChunkView, Embodiment]:
    """An arm that is told how to move: joint 0 seldom, and then as it moves already; joint 1 is a gripper, open or closed."""
    random, made = np.random.default_rng(0), []
    for _ in range(4):
        state, action = [np.zeros(2)], []
        for t in range(steps):
            pushed = 0.5 if t % 60 < 10 else 0.0
            action.append([pushed, 1.0 if t % 100 < 45 else -1.0])
            state.append(state[-1] + [0.1 * pushed, 0.0] + random.normal(0, 1e-3, 2))
        made.append(episode(np.array(state), np.array(action)))
    robot = Embodiment("arm", ("x", "gripper"), ("", ""), (-1.0,) * 2, (1.0,) * 2, ("x", "y"), 10.0, "relative")
    return ChunkView(made, chunk=1, n_obs=2, gamma=1.0), robot


def test_of_a_robot_that_is_told_motions_keeping_still_is_none_and_a_gripper_has_none() -> None:
    view, robot = motions()
    reference = Reference(4, 1, 2)
    fit_reference(reference, view, robot)
    moved = torch.tensor([[[0.0, 0.0], [0.05, 0.0]]])
    assert abs(float(reference(torch.zeros(1, 2, 2))[0, 0, 0])) < 0.05 and float(reference(moved)[0, 0, 0]) > 0.3
    actions = view.actions.numpy()
    assert resting(actions, robot).tolist() == [0, 0], "keep still, which policies are compared with, is no motion of either"
    assert _two_valued(actions, robot).tolist() == [False, True]


def test_the_best_and_the_simplest_meet_halfway(monkeypatch: pytest.MonkeyPatch) -> None:
    view = moving(6, 80, 0)
    maps = {}
    for name, choose in {"best": lambda error: error.mean(0).argmin(0), "mean": lambda error: np.full(3, len(PENALTIES) - 1)}.items():
        monkeypatch.setattr("realrl.learn.reference._simplest", choose)
        maps[name] = Reference(4, 4, 3)
        fit_reference(maps[name], view)
    assert (maps["mean"].weight - maps["best"].weight / 2).abs().max() < 1e-4 < maps["best"].weight.abs().max()


def test_of_many_joints_one_that_seems_better_is_not_followed() -> None:
    """Thirty joints; the network brings one nearer in every episode and the others further away, so nobody is followed."""
    episodes = torch.arange(4).repeat_interleave(5)
    said = torch.full((20, 1, 30), -0.1)
    said[..., 7] = torch.tensor((0.5, 0.55, 0.45, 0.5))[episodes][:, None]
    about = (torch.zeros(20, 1, 1), torch.ones(20, 1, 30), torch.ones(20, 1, dtype=torch.bool), episodes)
    reference = Reference(1, 1, 30)
    assert trust(reference, said, *about) == 1.0 and (reference.gain == 0).all()
    assert trust(reference, said.abs(), *about) < 1 and (reference.gain == 1).all()


@pytest.mark.parametrize(("steps", "held"), [(400, 64), (1000, 100), (40, 10)])
def test_of_a_single_episode_four_plans_are_kept_back_where_a_quarter_has_them(steps: int, held: int) -> None:
    fitted, unseen = kept_back(torch.zeros(steps, dtype=torch.long), 0.1, 4 * 16)
    assert len(unseen) == held and torch.equal(torch.cat([fitted, unseen]), torch.arange(steps))


@pytest.mark.parametrize(("episodes", "steps", "able"), [(1, 60, False), (1, 80, True), (20, 5, True)])
def test_stretches_shorter_than_a_plan_are_no_witness(episodes: int, steps: int, able: bool) -> None:
    """A quarter of an episode has to hold four plans of four steps; whole episodes may be as short as they are."""
    view = moving(episodes, steps, 0)
    policy = DiffusionPolicy(PolicyConfig(chunk=4, n_obs=2, hidden=16, blocks=0, reference="linear"), 2, 3)
    prepare(policy, view)
    _, unseen = kept_back(view.episode, 0.1, 16)
    witness = Witness(policy, view, unseen, 12, 0)
    witness.finish(12)
    assert witness.able is able and witness.looked == 12
    assert able or (witness.left == 1 and policy.reference is not None and (policy.reference.gain == 0).all())
