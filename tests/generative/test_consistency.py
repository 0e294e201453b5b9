"""The one-step student: it learns where the teacher's chain ends, and continues from a checkpoint to the same numbers."""

import pytest
import torch

from realrl.generative.consistency import Distillation, start_from_teacher, teacher_chain
from realrl.generative.diffusion import Diffusion, DiffusionConfig, imitation_loss
from realrl.nets.mlp import SkipNet
from realrl.nets.unet1d import UNet1d
from realrl.run import read_parts, save_parts


def skip_net(seed=0):
    torch.manual_seed(seed)
    return SkipNet(1, 2, 1, steps=100, hidden=64)


@pytest.fixture(scope="module")
def taught():
    """(diffusion, teacher, cond [N, 1], chain [N, S+1, 1, 2]): two modes, whose places move with the condition."""
    diffusion, teacher, g = Diffusion(DiffusionConfig()), skip_net(), torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(teacher.parameters(), lr=3e-3)
    for _ in range(400):
        cond = torch.rand(256, 1, generator=g) * 2 - 1
        side = torch.randint(2, (256, 1), generator=g) * 1.2 - 0.6
        action = torch.cat([side, 0.7 * cond], -1)[:, None]
        loss = imitation_loss(diffusion, teacher, action, torch.ones(256, 1, dtype=torch.bool), cond, g)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    teacher.eval().requires_grad_(False)
    cond = torch.rand(2048, 1, generator=g) * 2 - 1
    return diffusion, teacher, cond, teacher_chain(diffusion, teacher, cond, g, (1, 2))


def test_chains_are_deterministic_and_start_from_noise(taught):
    diffusion, teacher, cond, chain = taught
    assert chain.shape == (2048, 11, 1, 2) and abs(chain[:, 0].std().item() - 1) < 0.05
    assert torch.equal(diffusion.sample(teacher, cond, chain[:, :1], stochastic=False), chain)


def test_one_step_lands_where_the_chain_ends(taught):
    diffusion, teacher, cond, chain = taught
    student, g = skip_net(1), torch.Generator().manual_seed(1)
    start_from_teacher(student, teacher)
    distillation = Distillation(student, diffusion, lr=2e-3, batch=256)
    first = distillation.update(cond, chain, g)
    for step in range(400):
        last = distillation.update(cond, chain, g, lr=2e-3 * (1 - step / 400))
    fresh = torch.rand(1000, 1, generator=g) * 2 - 1
    target = teacher_chain(diffusion, teacher, fresh, g, (1, 2))
    student.eval()
    with torch.no_grad():
        action = student(target[:, 0], diffusion.t[:1].expand(1000), fresh)
        late = student(target[:, 7], diffusion.t[7:8].expand(1000), fresh)
    gap = (action - target[:, -1]).norm(dim=-1).squeeze()
    assert gap.median() < 0.1 and (gap < 0.3).float().mean() > 0.9, gap
    assert last < first / 5
    assert (late - target[:, -1]).norm(dim=-1).median() < 0.1, "it must know the chain's later levels too"


def test_teacher_is_left_alone_and_a_rate_of_zero_stands_still(taught):
    diffusion, teacher, cond, chain = taught
    student = skip_net(2)
    distillation = Distillation(student, diffusion, lr=1e-3, batch=32)
    before = {k: v.clone() for k, v in (*teacher.state_dict().items(), *((f"s.{k}", v) for k, v in student.state_dict().items()))}
    distillation.update(cond, chain, torch.Generator().manual_seed(0), lr=0.0)
    assert all(torch.equal(before[f"s.{k}"], v) for k, v in student.state_dict().items())
    distillation.update(cond, chain, torch.Generator().manual_seed(0))
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    assert not torch.equal(before["s.stem.weight"], student.stem.weight)


@pytest.mark.parametrize("make", [skip_net, lambda seed=0: UNet1d(2, 1, steps=100, sizes=(8, 16))], ids=["skip", "unet"])
def test_student_starts_from_all_but_the_head(make):
    student, teacher = make(), make(1)
    kept = {k: v.clone() for k, v in student.state_dict().items() if k.startswith(("head.", "last."))}
    start_from_teacher(student, teacher)
    assert kept
    for key, value in student.state_dict().items():
        assert torch.equal(value, kept.get(key, teacher.state_dict()[key])), key


def test_checkpoint_continues_to_the_same_numbers(taught, tmp_path):
    diffusion, _, cond, chain = taught
    run = lambda d, steps: [d.update(cond, chain, torch.Generator().manual_seed(s)) for s in steps]
    whole = Distillation(skip_net(3), diffusion, lr=1e-3, batch=32)
    first = Distillation(skip_net(3), diffusion, lr=1e-3, batch=32)
    expected = run(whole, range(4))
    assert run(first, range(2)) == expected[:2]
    save_parts(tmp_path, 2, {"distillation": first})
    second = Distillation(skip_net(4), diffusion, lr=1e-3, batch=32)
    second.load_state_dict(read_parts(tmp_path)[1]["distillation"])
    assert run(second, range(2, 4)) == expected[2:]
    assert all(torch.equal(a, b) for a, b in zip(whole.student.state_dict().values(), second.student.state_dict().values(), strict=True))
