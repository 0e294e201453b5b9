"""Prefix and expert: the cached prefix says what a full forward says, and nobody sees what the mask forbids."""

import torch

from realrl.nets.transformer import NEGATIVE, NONE, POSITIVE, Actor, Prefix


def make(sizes=(3, 2), states=(5, 4)):
    torch.manual_seed(0)
    prefix = Prefix(states, 6, ["images.a"], width=16, heads=2, layers=2, prompts=1)
    actor = Actor(sizes, 4, width=16, heads=2, layers=3)
    for p in actor.expert.tone.parameters():
        torch.nn.init.normal_(p, std=0.3)  # its gates begin at 0, where nothing would be tested
    return prefix.eval(), actor.eval()


def inputs(batch=3):
    torch.manual_seed(1)
    seen = torch.randn(batch, 5), torch.randn(batch, 6), {"images.a": torch.randn(batch, 16, 112)}
    return seen, torch.randn(batch, 4, 3), torch.rand(batch, 1)


def full(actor, cond, x, t, robot, mark):
    """The whole sequence, prefix and actions, under one mask of two blocks, nothing kept."""
    expert = actor.expert
    prefix = cond.unflatten(1, (-1, expert.width))
    p, k = prefix.shape[1], x.shape[1]
    mask = torch.zeros(p + k, p + k, dtype=torch.bool)
    mask[:p, :p] = True  # the prefix sees itself
    mask[p:, :] = True  # actions see everything
    h = torch.bmm(x, actor.action_in[robot]) + actor.place
    tones = expert.tones(t, mark).split([6 * expert.width] * len(expert.layers) + [2 * expert.width], -1)
    rms = lambda y: y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    heads = lambda y: y.unflatten(-1, (expert.heads, -1)).transpose(1, 2)
    for i, (layer, tone) in enumerate(zip(expert.layers, tones, strict=False)):
        a, b, c, d, e, f = tone.chunk(6, -1)
        q, keys, values = layer.qkv(rms(h) * (1 + b) + a).chunk(3, -1)
        known = expert.memory(rms(prefix)).chunk(2 * len(expert.layers), -1)
        keys, values = torch.cat([known[2 * i], keys], 1), torch.cat([known[2 * i + 1], values], 1)
        q = torch.cat([torch.zeros(len(x), p, expert.width), q], 1)
        score = heads(q) @ heads(keys).transpose(2, 3) / (expert.width / expert.heads) ** 0.5
        found = (score.masked_fill(~mask, -1e9).softmax(-1) @ heads(values)).transpose(1, 2).flatten(2)[:, p:]
        h = h + c * layer.out(found)
        h = h + f * layer.down(torch.nn.functional.silu(layer.up(rms(h) * (1 + e) + d)))
    shift, scale = tones[-1].chunk(2, -1)
    return torch.bmm(rms(h) * (1 + scale) + shift, actor.head[robot])


def test_the_cached_prefix_is_the_full_forward():
    prefix, actor = make()
    (state, text, pictures), x, t = inputs()
    robot, mark = torch.tensor([0, 1, 0]), torch.tensor([NONE, POSITIVE, NEGATIVE])
    cond = prefix(state, text, pictures, robot)
    memory = actor.remember(cond)
    for step in (t, t / 2):  # one memory, several steps
        assert torch.allclose(actor(x, step, memory, robot, mark), full(actor, cond, x, step, robot, mark), atol=1e-5)
    alone = actor(x[1:2], t[1:2], actor.remember(prefix(state[1:2], text[1:2], {"images.a": pictures["images.a"][1:2]}, robot[1:2])),
                  robot[1:2], mark[1:2])
    assert torch.allclose(alone, actor(x, t, memory, robot, mark)[1:2], atol=1e-5), "whoever else is in the batch"


def test_one_time_for_all_is_a_time_for_each():
    prefix, actor = make()
    (state, text, pictures), x, t = inputs()
    robot = mark = torch.zeros(3, dtype=torch.int64)
    memory = actor.remember(prefix(state, text, pictures, robot))
    assert torch.allclose(actor(x, t, memory, robot, mark), actor(x, t.expand(3, 4), memory, robot, mark), atol=1e-5)


def test_padded_actions_are_not_seen():
    prefix, actor = make()
    (state, text, pictures), x, t = inputs()
    robot = mark = torch.zeros(3, dtype=torch.int64)
    memory = actor.remember(prefix(state, text, pictures, robot))
    valid = torch.arange(4) < torch.tensor([[2], [4], [1]])
    other = torch.where(valid[..., None], x, 7.0)
    a, b = (actor(y, t, memory, robot, mark, valid) for y in (x, other))
    assert torch.allclose(a[valid], b[valid], atol=1e-6)
    assert not torch.allclose(actor(x, t, memory, robot, mark)[valid], actor(other, t, memory, robot, mark)[valid], atol=1e-3)


def test_the_indicator_and_the_text_are_heard():
    prefix, actor = make()
    (state, text, pictures), x, t = inputs()
    robot = torch.zeros(3, dtype=torch.int64)
    memory = actor.remember(prefix(state, text, pictures, robot))
    said = [actor(x, t, memory, robot, torch.full((3,), mark)) for mark in (NONE, NEGATIVE, POSITIVE)]
    assert all((said[i] - said[j]).abs().max() > 1e-3 for i, j in ((0, 1), (0, 2), (1, 2)))
    other = actor(x, t, actor.remember(prefix(state, -text, pictures, robot)), robot, torch.full((3,), NONE))
    assert (other - said[0]).abs().max() > 1e-3


def test_numbers_that_a_robot_has_not_are_inert():
    """The second robot has 2 of 3 action numbers and 4 of 5 of the state: whatever stands in the others changes nothing."""
    prefix, actor = make()
    (state, text, pictures), x, t = inputs()
    robot, mark = torch.ones(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    a = actor(x, t, actor.remember(prefix(state, text, pictures, robot)), robot, mark)
    state, x = state.clone(), x.clone()
    state[:, 4], x[..., 2] = 99, 99
    b = actor(x, t, actor.remember(prefix(state, text, pictures, robot)), robot, mark)
    assert torch.allclose(a, b, atol=1e-5) and (a[..., 2] == 0).all()
