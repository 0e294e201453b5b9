"""The replay against the views of whole episodes and against plain loops: nothing is ever drawn across an episode's end."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from realrl.data.store import Store
from realrl.data.views import ChunkView
from realrl.learn.replay import Mixture, Replay, Subset
from realrl.types import Episode, RealrlError, Source

GAMMA = 0.9


def episode(length, number=0, *, terminated=False, senses=False):
    """Every frame says which episode it is of and which frame of it: no two are alike."""
    frame = np.arange(length + 1, dtype=np.float32)
    obs = {"state": np.stack([np.full(length + 1, number, np.float32), frame], -1)}
    if senses:
        obs["images.top"] = np.broadcast_to(np.uint8(frame)[:, None, None, None], (length + 1, 4, 5, 3)).copy()
    action = np.stack([np.full(length, number), np.arange(length)], -1).astype(np.float32) / 100
    source = np.where(np.arange(length) % 3, Source.POLICY, Source.HUMAN).astype(np.uint8)
    return Episode(obs=obs, action=action, proposed=action, source=source, reward=frame[1:] + number / 8, success=np.zeros(length, bool),
                   time=np.arange(length) / 10, starts_plan=np.ones(length, bool), terminated=terminated, truncated=not terminated,
                   task="toy/line", policy="practice", seed=number)


def filled(episodes, running=0, **options):
    """A replay of whole episodes and, step by step, `running` steps of one more."""
    replay = Replay(gamma=GAMMA, **options)
    replay.extend(episodes)
    if running:
        stepwise(replay, episode(running + 1, len(episodes)), running)
    return replay


def stepwise(replay, made, steps=None):
    """The first steps of an episode (all, by default) as they come from a robot."""
    replay.begin({k: v[0] for k, v in made.obs.items()})
    for t in range(len(made) if steps is None else steps):
        last = t == len(made) - 1
        replay.add(made.action[t], float(made.reward[t]), {k: v[t + 1] for k, v in made.obs.items()}, source=int(made.source[t]),
                   terminated=last and made.terminated, truncated=last and made.truncated)


def everything(replay):
    return replay.batch(torch.arange(len(replay)))


def same(one, two):
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
               for a, b in zip(vars(one).values(), vars(two).values(), strict=True))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 7), min_size=0, max_size=5), running=st.integers(0, 6), chunk=st.integers(1, 3),
       n_step=st.integers(1, 3), history=st.integers(1, 3), seed=st.integers(0, 99))
def test_nothing_is_drawn_across_an_episode(lengths, running, chunk, n_step, history, seed):
    ends = np.random.default_rng(seed).random(len(lengths)) < 0.5
    made = [episode(n, i, terminated=bool(e)) for i, (n, e) in enumerate(zip(lengths, ends, strict=True))]
    replay = filled(made, running, chunk=chunk, n_step=n_step, n_obs=history)
    reach = chunk * n_step
    assert len(replay) == sum(lengths) + max(running - reach + 1, 0) and replay.steps == sum(lengths) + running
    if not len(replay):
        with pytest.raises(ValueError, match="nothing to draw from"):
            replay.sample(4, rng())
        return
    for index in (torch.arange(len(replay)), torch.randint(len(replay), (50,), generator=rng(seed))):
        batch, places = replay.batch(index), [(e, t) for e, n in enumerate(lengths) for t in range(n)] + [
            (len(lengths), t) for t in range(running)]
        for row, i in enumerate(index.tolist()):
            e, t = places[i]
            whole = made[e] if e < len(made) else episode(running + 1, e)
            count = min(reach, len(whole) - t)
            seen = [[e, max(t - h, 0)] for h in reversed(range(history))]
            after = [[e, max(t + count - h, 0)] for h in reversed(range(history))]
            assert batch.obs["state"][row].tolist() == seen and batch.next_obs["state"][row].tolist() == after
            assert batch.valid[row].tolist() == [k < count for k in range(chunk)]
            acted = [whole.action[min(t + k, len(whole) - 1)].tolist() for k in range(chunk)]
            assert batch.action[row].tolist() == acted
            reward = sum(GAMMA ** k * float(whole.reward[t + k]) for k in range(count))
            over = e < len(made) and whole.terminated and t + count == len(whole)
            assert float(batch.reward[row]) == pytest.approx(reward, rel=1e-5)
            assert float(batch.discount[row]) == pytest.approx(0.0 if over else GAMMA ** count, rel=1e-5)


def test_a_decision_is_what_the_view_of_whole_episodes_says():
    made = [episode(5, 0), episode(1, 1, terminated=True), episode(8, 2, terminated=True), episode(3, 3)]
    for chunk, history in ((1, 1), (3, 2)):
        view = ChunkView(made, chunk=chunk, n_obs=history, gamma=GAMMA).batch()
        mine = everything(filled(made, chunk=chunk, n_obs=history))
        assert torch.allclose(mine.reward, view.reward) and torch.allclose(mine.discount, view.discount)
        assert same(replace(mine, reward=view.reward, discount=view.discount), view)


def test_step_by_step_is_episode_by_episode_and_what_runs_is_drawn_at_once():
    made = [episode(4, 0, terminated=True), episode(3, 1), episode(6, 2)]
    replay = Replay(gamma=GAMMA)
    for number, one in enumerate(made):
        stepwise(replay, one)
        assert not replay.running and same(everything(replay), everything(filled(made[: number + 1])))
    stepwise(replay, made[0], 2)
    assert replay.running and len(replay) == 15 and everything(replay).obs["state"][-1].tolist() == [[0, 1]]
    replay.begin({"state": np.zeros(2)})  # what was cut off is kept, and bootstraps
    replay.begin({"state": np.zeros(2)})
    assert len(replay) == 15 and float(everything(replay).discount[-1]) == pytest.approx(GAMMA) and replay.episodes == 6
    replay.add(np.zeros(2), 1.0, {"state": np.ones(2)}, terminated=True)
    last = everything(replay)[slice(-1, None)]
    assert last.next_obs["state"].tolist() == [[[1, 1]]] and last.discount.tolist() == [0.0]
    with pytest.raises(ValueError, match="begin one first"):
        replay.add(np.zeros(2), 1.0, {"state": np.ones(2)})


def test_pictures_lie_there_once_as_bytes():
    replay = filled([episode(9, i, senses=True) for i in range(3)], n_obs=2)
    column = replay._frames["images.top"].rows
    assert column.dtype == torch.uint8 and len(column) == 30
    batch = everything(replay)
    assert batch.obs["images.top"].shape == (27, 2, 4, 5, 3) and torch.equal(batch.obs["images.top"][:, :, 0, 0, 0].float(),
                                                                             batch.obs["state"][..., 1])


def test_rebuilt_from_the_recording_it_gives_the_same_batches(tmp_path):
    made = [episode(30 + i, i, terminated=i % 2 == 0) for i in range(4)]
    store = Store.open_or_create(tmp_path, task="toy/line", fps=10)
    replay = Replay(gamma=GAMMA, n_step=2)
    for one in made:
        stepwise(replay, one)
        store.append([one])
    again = Replay(gamma=GAMMA, n_step=2)
    again.extend(Store.open(tmp_path).read())
    assert same(replay.sample(64, rng(5), 3), again.sample(64, rng(5), 3))
    assert not same(replay.sample(64, rng(5), 3), again.sample(64, rng(6), 3))


def test_stretches_stay_within_their_episode():
    made = [episode(3, 0, terminated=True), episode(20, 1), episode(9, 2, terminated=True)]
    replay = filled(made, running=7)
    drawn = replay.segments(300, 6, rng())
    number, frame = drawn.obs["state"].unbind(-1)
    assert drawn.action.shape == (6, 300, 2) and frame.shape == drawn.frame.shape == (7, 300) and (number == number[0]).all()
    length = torch.tensor([3, 20, 9, 7])[number[0].long()]
    assert torch.equal(drawn.valid.sum(0), length.clamp(max=6)) and (frame[0] + drawn.valid.sum(0) <= length).all()
    assert (frame[1:] - frame[:-1])[drawn.valid].eq(1).all() and set(number[0].tolist()) == {0, 1, 2, 3}
    assert torch.equal(drawn.first, frame[0] == 0)
    last = (frame[1:] == length) & drawn.valid & ((number[0] == 0) | (number[0] == 2))
    assert torch.equal(drawn.terminated, last) and last.any(), "and what was seen then is there"
    assert torch.allclose(drawn.reward[drawn.valid], (frame[1:] + number[1:] / 8)[drawn.valid]) and not drawn.reward[~drawn.valid].any()
    begins = torch.tensor([0, 4, 25, 35])[number[0].long()]
    assert torch.equal(drawn.frame, (begins + frame).long()) and replay.frames == 43, "every observation has a number of its own"
    early = replay.segments(40, 6, rng(), early=(30, 23)).obs["state"][0, :, 0]
    assert set(early[:30].tolist()) == {0, 1} and {2, 3} & set(early[30:].tolist()), "so many from the first steps, the rest from all"


# ---- mixtures -------------------------------------------------------------------------------------------------------------------


def sides(batch):
    return batch.obs["state"][:, 0, 0].long()


def test_shares_are_exact_in_every_batch_however_small_a_side():
    demos, online = filled([episode(2, 7)]), filled([episode(500, 1)])
    mixed = Mixture((demos, 1.0), (online, 1.0)).sample(64, rng(), updates=5)
    assert len(mixed) == 320 and all(int((sides(rows) == 7).sum()) == 32 for rows in (mixed[i * 64:(i + 1) * 64] for i in range(5)))
    assert torch.equal((mixed.action[:, 0, 0] * 100).round().long(), sides(mixed)), "rows stay together"
    assert Mixture((demos, 1), (online, 2)).counts(64) == [21, 43] and Mixture((demos, 1), (demos, 1), (online, 1)).counts(2) == [1, 1, 0]
    nested = Mixture((Mixture((demos, 1), (online, 1)), 0.5), (online, 0.5)).sample(8, rng())
    assert int((sides(nested) == 7).sum()) == 2


def test_a_mixture_keeps_what_all_sides_show():
    seeing, blind = filled([episode(4, 0, senses=True)]), filled([episode(4, 1)])
    assert Mixture((seeing, 1), (blind, 1)).sample(4, rng()).obs.keys() == {"state"}


def test_shares_that_make_no_sense():
    for shares in ((), (0.0, 1.0), (-1.0, 1.0), (float("nan"),)):
        with pytest.raises(RealrlError, match="must be above 0"):
            Mixture(*((filled([episode(2)]), share) for share in shares))


# ---- what is no episode of this robot -------------------------------------------------------------------------------------------


def test_what_does_not_belong_here_is_one_line_and_changes_nothing():
    replay = filled([episode(4, 0)])
    before = everything(replay)
    wide = episode(3, 1)
    wide.obs["state"] = np.zeros((4, 3), np.float32)
    broken, other, more = episode(3, 2), episode(3, 3), episode(3, 4, senses=True)
    broken.reward[1] = np.nan
    other.action = np.zeros((3, 5), np.float32)
    blind = episode(3, 5)
    blind.obs = {"else": blind.obs["state"]}
    for bad, said in ((wide, r"'state' of shape \[3\], those before \[2\]"), (broken, "NaN or infinity in 'reward'"),
                      (other, r"'action' of shape \[5\], those before \[2\]"), (more, "'images.top' of shape"), (blind, "nothing")):
        with pytest.raises(RealrlError, match=said) as caught:
            replay.extend([bad])
        assert "\n" not in str(caught.value) and same(everything(replay), before)
    replay.begin({"state": np.zeros(2)})
    with pytest.raises(RealrlError, match="NaN or infinity in 'state'"):
        replay.add(np.zeros(2), 0.0, {"state": np.array([0, np.nan])})
    with pytest.raises(RealrlError, match="NaN or infinity in 'action'"):
        replay.add(np.array([np.inf, 0]), 0.0, {"state": np.zeros(2)})
    assert same(everything(replay), before)
    replay.extend([episode(2, 6)])
    assert everything(replay).next_obs["state"][-1].tolist() == [[6, 2]]


def test_a_subset_draws_its_own_steps_as_part_of_their_episodes():
    replay = Replay(gamma=0.5, n_obs=2, n_step=2)
    for e in range(2):
        replay.begin({"state": np.array([e, 0], np.float32)})
        for i in range(5):
            replay.add(np.array([i], np.float32), float(i), {"state": np.array([e, i + 1], np.float32)}, truncated=e == 0 and i == 4)
    some = Subset(replay)
    with pytest.raises(ValueError, match="nothing to draw from"):
        some.sample(1, torch.Generator())
    some.add(1, 3)
    some.add(5)
    some.add(9)
    assert some.steps == 4
    rows = some.batch(torch.arange(3))
    assert rows.obs["state"].tolist() == [[[0, 0], [0, 1]], [[0, 1], [0, 2]], [[1, 0], [1, 0]]]
    assert rows.reward.tolist() == [1 + 0.5 * 2, 2 + 0.5 * 3, 0 + 0.5 * 1] and rows.discount.tolist() == [0.25] * 3
    drawn = some.sample(200, torch.Generator().manual_seed(0)).action[:, 0, 0]
    assert set(drawn.tolist()) == {0.0, 1.0, 2.0}, "the last one's return is not known yet"
