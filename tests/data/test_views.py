"""Decisions from episodes: rewards, discounts, validity, history and flags, all by hand."""

import numpy as np
import pytest
import torch

from realrl.data.views import ChunkView, continue_chunks
from realrl.types import Episode, RealrlError, Source

GAMMA = 0.5


def episode(rewards, *, terminated, plans=(), base=0.0):
    """obs["state"][t] = [base + t], action[t] = [(base + t) / 100]; plans: the steps at which plans began, all by default."""
    n = len(rewards)
    starts = np.isin(np.arange(n), plans) if plans else np.ones(n, bool)
    action = ((base + np.arange(n)) / 100).astype(np.float32)[:, None]
    return Episode(obs={"state": (base + np.arange(n + 1)).astype(np.float32)[:, None]}, action=action, proposed=action,
                   source=np.arange(n).astype(np.uint8) % 3, reward=np.array(rewards, np.float32), success=np.zeros(n, bool),
                   time=np.arange(n, dtype=np.float64), starts_plan=starts, terminated=terminated, truncated=not terminated,
                   task="toy", policy="none")


def states(obs):
    """[B, H, 1] as nested lists of whole numbers."""
    return obs["state"][..., 0].int().tolist()


FIVE = (1.0, 2.0, 4.0, 8.0, 16.0)  # with gamma = 1/2 every term of a return is the first one


@pytest.mark.parametrize(("terminated", "end"), [(True, 0.0), (False, 0.5)], ids=["terminated", "truncated"])
def test_transitions(terminated, end):
    batch = ChunkView([episode(FIVE, terminated=terminated)], chunk=1, n_obs=1, gamma=GAMMA).batch()
    assert batch.reward.tolist() == list(FIVE) and batch.discount.tolist() == [0.5, 0.5, 0.5, 0.5, end]
    assert states(batch.obs) == [[0], [1], [2], [3], [4]] and states(batch.next_obs) == [[1], [2], [3], [4], [5]]
    assert batch.valid.all() and batch.action.shape == (5, 1, 1) and batch.source[:, 0].tolist() == [0, 1, 2, 0, 1]


@pytest.mark.parametrize(("terminated", "ends"), [(True, [0, 0, 0, 0]), (False, [0.0625, 0.125, 0.25, 0.5])],
                         ids=["terminated", "truncated"])
def test_chunks_at_every_step(terminated, ends):
    batch = ChunkView([episode(FIVE, terminated=terminated)], chunk=4, n_obs=1, gamma=GAMMA).batch()
    assert batch.reward.tolist() == [4.0, 8.0, 12.0, 16.0, 16.0]  # 1 + 2/2 + 4/4 + 8/8, ..., 4 + 8/2 + 16/4, 8 + 16/2, 16
    assert batch.discount.tolist() == [0.0625, *ends]
    assert states(batch.next_obs) == [[4], [5], [5], [5], [5]]
    assert batch.valid.int().tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]
    assert (batch.action[3, :, 0] * 100).round().int().tolist() == [3, 4, 4, 4], "padding repeats the last action"


def test_plans_that_were_cut():
    """A person took over after two steps; the next plan ran three and the task ended."""
    view = ChunkView([episode(FIVE, terminated=True, plans=(0, 2))], chunk=4, n_obs=1, gamma=GAMMA, every="plan")
    batch = view.batch()
    assert len(view) == 2 and view.start.tolist() == [0, 2]
    assert batch.reward.tolist() == [2.0, 12.0] and batch.discount.tolist() == [0.25, 0.0]
    assert states(batch.obs) == [[0], [2]] and states(batch.next_obs) == [[2], [5]]
    assert batch.valid.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]
    assert (batch.action[:, :, 0] * 100).round().int().tolist() == [[0, 1, 1, 1], [2, 3, 4, 4]]
    assert batch.source.tolist() == [[Source.POLICY, Source.HUMAN, Source.HUMAN, Source.HUMAN], [2, 0, 1, 1]]


def test_full_plans_truncated():
    batch = ChunkView([episode(FIVE, terminated=False, plans=(0, 4))], chunk=4, n_obs=1, gamma=GAMMA, every="plan").batch()
    assert batch.reward.tolist() == [4.0, 16.0] and batch.discount.tolist() == [0.0625, 0.5]


def test_a_plan_longer_than_the_view_is_refused():
    with pytest.raises(RealrlError, match="ran 4 steps but the view takes chunks of 2"):
        ChunkView([episode(FIVE, terminated=True, plans=(0, 4))], chunk=2, n_obs=1, gamma=GAMMA, every="plan")


def test_history_repeats_the_first_observation_and_stays_in_its_episode():
    view = ChunkView([episode(FIVE[:2], terminated=True), episode(FIVE[:3], terminated=False, base=10)], chunk=1, n_obs=3, gamma=GAMMA)
    batch = view.batch()
    assert states(batch.obs) == [[0, 0, 0], [0, 0, 1], [10, 10, 10], [10, 10, 11], [10, 11, 12]]
    assert states(batch.next_obs) == [[0, 0, 1], [0, 1, 2], [10, 10, 11], [10, 11, 12], [11, 12, 13]]
    assert view.frames["state"].shape[-1] == 1


def test_flags_and_episode_numbers():
    shown = [episode(FIVE[:2], terminated=True), episode(FIVE[:1], terminated=False), episode(FIVE[:3], terminated=True)]
    view = ChunkView(shown, chunk=2, n_obs=1, gamma=GAMMA)
    assert view.episode.tolist() == [0, 0, 1, 2, 2, 2] and view.start.tolist() == [0, 1, 0, 0, 1, 2]
    assert view.first.tolist() == [True, False, True, True, False, False]
    assert view.last.tolist() == [False, True, True, False, False, True]
    assert view.discount.tolist() == [0.0, 0.0, 0.5, 0.25, 0.0, 0.0]


def test_gamma_powers_match_a_slow_loop():
    rng = np.random.default_rng(0)
    shown = [episode(rng.normal(size=n), terminated=bool(n % 2)) for n in (1, 7, 12, 4)]
    batch, row = ChunkView(shown, chunk=5, n_obs=1, gamma=0.97).batch(), 0
    for e in shown:
        for t in range(len(e)):
            ran = e.reward[t:t + 5]
            assert batch.reward[row].item() == pytest.approx(sum(0.97**j * float(r) for j, r in enumerate(ran)), rel=1e-5, abs=1e-6)
            ended = e.terminated and t + 5 >= len(e)
            assert batch.discount[row].item() == pytest.approx(0.0 if ended else 0.97 ** len(ran))
            row += 1
    assert row == len(batch)


def test_batches_pick_rows_and_sampling_is_uniform_and_repeatable():
    view = ChunkView([episode(FIVE, terminated=True), episode(FIVE, terminated=False, base=10)], chunk=2, n_obs=2, gamma=GAMMA)
    index = torch.tensor([7, 0, 7])
    part, whole = view.batch(index), view.batch()[index]
    for a, b in ((part.reward, whole.reward), (part.action, whole.action), (part.obs["state"], whole.obs["state"]),
                 (part.next_obs["state"], whole.next_obs["state"]), (part.valid, whole.valid), (part.source, whole.source)):
        assert torch.equal(a, b)
    one, two = (view.sample(4000, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one.obs["state"], two.obs["state"])
    assert torch.unique(one.obs["state"][:, -1], return_counts=True)[1].min() > 300  # of 400 expected


def test_no_episodes():
    with pytest.raises(RealrlError, match="no episodes to learn from"):
        ChunkView([], chunk=1, n_obs=1, gamma=GAMMA)


def test_returns_to_the_end_of_the_recording():
    """1, 2, 4, 8, 16 with gamma 1/2: the return from step t is 2^t (5 - t); the same when a clock ended it, whatever the chunk."""
    for terminated in (True, False):
        for chunk in (1, 4):
            shown = [episode(FIVE, terminated=terminated), episode(FIVE[:1], terminated=terminated)]
            view = ChunkView(shown, chunk=chunk, n_obs=1, gamma=GAMMA)
            assert view.returns.tolist() == [5.0, 8.0, 12.0, 16.0, 16.0, 1.0]
    by_plan = ChunkView([episode(FIVE, terminated=True, plans=(0, 2))], chunk=4, n_obs=1, gamma=GAMMA, every="plan")
    assert by_plan.returns.tolist() == [5.0, 12.0]


def test_cut_chunks_go_on_like_another_chunk():
    """[1, 2, -, -] beside the whole chunk [0, .1, .3, .6]: it goes on by the donor's changes after its second action, +.2 and +.5."""
    action = torch.tensor([[0.0, 0.1, 0.3, 0.6], [0.2, 0.4, 0.4, 0.4], [0.9, 0.9, 0.9, 0.9]])[..., None]
    valid = torch.tensor([[True] * 4, [True, True, False, False], [True, False, False, False]])
    before = action.clone()
    out = continue_chunks(action, valid, torch.Generator().manual_seed(0))[..., 0]
    assert torch.allclose(out[0], before[0, :, 0]) and torch.equal(action, before), "whole chunks stay, and so does the input"
    assert torch.allclose(out[1], torch.tensor([0.2, 0.4, 0.6, 0.9]))
    assert torch.allclose(out[2], torch.tensor([0.9, 1.0, 1.0, 1.0])), "clipped to what an action can be"


def test_cut_chunks_draw_their_donors_at_random_and_repeatably():
    slopes = torch.tensor([0.01, 0.02, 0.03])
    whole = torch.arange(3) * slopes[:, None]
    action, valid = torch.cat([whole, torch.zeros(300, 3)])[..., None], torch.ones(303, 3, dtype=torch.bool)
    valid[3:, 1:] = False
    out, again, other = (continue_chunks(action, valid, torch.Generator().manual_seed(s))[3:, :, 0] for s in (1, 1, 2))
    assert torch.equal(out, again) and not torch.equal(out, other)
    assert torch.unique((out[:, 1] * 100).round(), return_counts=True)[1].min() > 60  # of 100 expected from each donor
    assert torch.allclose(out[:, 2], 2 * out[:, 1]), "one donor for the whole tail"


def test_without_a_whole_chunk_tails_stay_as_they_are():
    action, valid = torch.rand(4, 3, 2), torch.tensor([[True, False, False]] * 4)
    assert torch.equal(continue_chunks(action, valid, torch.Generator()), action)


@pytest.mark.parametrize("field", ["state", "action", "reward"])
def test_numbers_that_are_not_finite_are_refused(field):
    broken = episode(FIVE, terminated=True, base=10)
    (broken.obs["state"] if field == "state" else getattr(broken, field))[3] = np.nan if field != "reward" else np.inf
    with pytest.raises(RealrlError, match=f"episode 1 of 'none' .*in '{field}' at step 3: leave it out"):
        ChunkView([episode(FIVE, terminated=True), broken], chunk=2, n_obs=1, gamma=GAMMA)
