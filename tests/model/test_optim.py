"""Schedules against PyTorch's own, and groups with their own rates."""

import itertools

import pytest
import torch

from configs.schema import OptimConfig
from model.optim import build_optimizer, learning_rate, set_learning_rate


def rates(steps: int = 40, **options) -> list[float]:
    config = OptimConfig(lr=1e-2, **options)
    return [learning_rate(config, step, steps) for step in range(steps)]


def test_one_cycle_equals_pytorch():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=1e-2)
    # PyTorch counts the peak at pct * total - 1, ours at pct * total.
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=41, pct_start=13 / 41)
    theirs = []
    for _ in range(40):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    config = OptimConfig(lr=1e-2, schedule="one_cycle", warmup_share=12 / 41)
    ours = [learning_rate(config, step, 41) for step in range(40)]
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_constant_and_cosine():
    assert rates(schedule="constant") == [1e-2] * 40
    warm = rates(schedule="constant", warmup_share=0.25)
    assert warm[0] < warm[5] < warm[9] < warm[10] == 1e-2 == warm[-1]
    cosine = rates(schedule="cosine")
    assert cosine[0] == 1e-2 and cosine[20] == pytest.approx(5e-3) and 0 < cosine[-1] < 1e-4
    assert all(a >= b for a, b in itertools.pairwise(cosine))


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_groups_keep_their_share(name: str):
    slow, fast = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = build_optimizer(
        OptimConfig.model_validate({"name": name, "lr": 0.1}),
        [{"params": [slow], "lr_scale": 0.5}, {"params": [fast]}],
    )
    set_learning_rate(optimizer, 0.2)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]
    (slow.sum() + fast.sum()).backward()
    optimizer.step()
    assert 1 - float(slow.detach()[0]) == pytest.approx(0.5 * (1 - float(fast.detach()[0])), rel=1e-4)
