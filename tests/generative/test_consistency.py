"""The one-step student: it learns where the teacher's chain ends, and continues from a checkpoint to the same numbers."""

import pytest
import torch

from realrl.checkpoint import read_parts, save_parts
from realrl.generative.diffusion import (
    Diffusion,
    DiffusionConfig,
    Distillation,
    DistillConfig,
    imitation_loss,
    start_from_teacher,
    teacher_chain,
)
from realrl.nets.mlp import SkipNet
from realrl.nets.unet1d import UNet1d


def skip_net(seed=0):
    torch.manual_seed(seed)
    return SkipNet(1, 2, 1, steps=100, hidden=64)


def distil(student, taught, **options):
    diffusion, teacher, *_ = taught
    return Distillation(student, teacher, diffusion, (1, 2), DistillConfig(**{"batch": 32, "lr": 1e-3, **options}))


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


def land(student, taught, level=0, seed=5):
    """Distances [1000] from the student's clean action to the chain's end, from fresh noise at the level of step `level`."""
    diffusion, teacher, *_ = taught
    random = torch.Generator().manual_seed(seed)
    cond = torch.rand(1000, 1, generator=random) * 2 - 1
    chain = teacher_chain(diffusion, teacher, cond, random, (1, 2))
    with torch.no_grad():
        return (student(chain[:, level], diffusion.t[level].expand(1000), cond) - chain[:, -1]).norm(dim=-1).squeeze()


def test_one_step_lands_where_the_chain_ends(taught):
    """The final stage, from the teacher's weights."""
    student, logged, steps = skip_net(1), [], []
    start_from_teacher(student, taught[1])
    distillation = distil(student, taught, batch=256, lr=2e-3, chains=200, steps=600)
    distillation.finish(taught[2], 3, lambda step, told: logged.append((step, told["student_gap"])), steps.append)
    gap = land(student, taught)
    assert gap.median() < 0.1 and (gap < 0.3).float().mean() > 0.9, gap
    assert land(student, taught, level=7).median() < 0.1, "it must know the chain's later levels too"
    assert [step for step, _ in logged] == [100, 200, 300, 400, 500, 600] and sum(steps) == 600
    assert logged[-1][1] < logged[0][1] / 2 and abs(logged[-1][1] - (gap.square().mean() / 2).sqrt()) < 0.03, "the gap that is told is true"


def test_beside_rl_the_student_keeps_up(taught):
    student = skip_net(2)
    start_from_teacher(student, taught[1])
    distillation, before = distil(student, taught, batch=256, lr=6e-3, chains=300, beside_rl=10), land(student, taught).median()
    random = torch.Generator().manual_seed(0)
    gaps = [distillation.follow(taught[2], random) for _ in range(20)]
    assert gaps[-1] < gaps[0] / 2 and land(student, taught).median() < before / 2


def test_teacher_is_left_alone_and_a_rate_of_zero_stands_still(taught):
    _, teacher, cond, chain = taught
    student = skip_net(2)
    distillation = distil(student, taught)
    before = {k: v.clone() for k, v in (*teacher.state_dict().items(), *((f"s.{k}", v) for k, v in student.state_dict().items()))}
    distillation.update(cond, chain, torch.Generator().manual_seed(0), 0.0)
    assert all(torch.equal(before[f"s.{k}"], v) for k, v in student.state_dict().items())
    distillation.update(cond, chain, torch.Generator().manual_seed(0), 1e-3)
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    assert not torch.equal(before["s.stem.weight"], student.stem.weight)


def test_dropout_is_for_imitation_only(taught):
    """A student that shook would not continue to the same numbers."""
    torch.manual_seed(0)
    shaky, gaps = SkipNet(1, 2, 1, steps=100, hidden=64, dropout=0.5), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        gaps.append(distil(shaky, taught).update(taught[2], taught[3], torch.Generator().manual_seed(0), 0.0))
    assert gaps[0] == gaps[1]


@pytest.mark.parametrize("make", [skip_net, lambda seed=0: UNet1d(2, 1, steps=100, sizes=(8, 16))], ids=["skip", "unet"])
def test_student_starts_from_all_but_the_head(make):
    student, teacher = make(), make(1)
    kept = {k: v.clone() for k, v in student.state_dict().items() if k.startswith(("head.", "last."))}
    start_from_teacher(student, teacher)
    assert kept
    for key, value in student.state_dict().items():
        assert torch.equal(value, kept.get(key, teacher.state_dict()[key])), key


def test_checkpoint_continues_to_the_same_numbers(taught, tmp_path):
    run = lambda d, steps: [d.follow(taught[2], torch.Generator().manual_seed(s)) for s in steps]
    small = {"chains": 40, "beside_rl": 3}
    whole, first = (distil(skip_net(3), taught, **small) for _ in range(2))
    expected = run(whole, range(4))
    assert run(first, range(2)) == expected[:2]
    save_parts(tmp_path, 2, {"distillation": first})
    second = distil(skip_net(4), taught, **small)
    second.load_state_dict(read_parts(tmp_path)[1]["distillation"])
    assert run(second, range(2, 4)) == expected[2:]
    assert all(torch.equal(a, b) for a, b in zip(whole.student.state_dict().values(), second.student.state_dict().values(), strict=True))
