"""N processes against one on the whole batch, for every method: real gloo processes on this machine."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from small_methods import build, make_batch, take
from torch import Tensor, nn

from configs.resolve import names
from model.distributed import all_rows, gathered, keep_negatives_apart, own_columns
from model.objective import Objective

CLIPS = 8
SIZE = 64


def steady(name: str) -> Objective:
    """A method in training mode, but for what draws at random or looks at its own rank's statistics."""
    objective = build(name).train()
    for module in objective.modules():
        if isinstance(module, nn.Dropout | nn.modules.batchnorm._BatchNorm):
            module.eval()
    if hasattr(objective.model.config, "mask_share"):
        objective.model.config = objective.model.config.model_copy(update={"mask_share": 0.0})
    return objective


def loss_and_gradients(name: str, rows: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
    objective = steady(name)
    spec = objective.model.inputs
    batch = take(make_batch(CLIPS, size=SIZE, views=spec.image_views + spec.neighbours), rows)
    losses = objective(batch, torch.ones(len(objective.losses)))
    losses.total.backward()
    named = objective.named_parameters()
    return losses.total.detach(), {key: value.grad for key, value in named if value.grad is not None}


def compiled_gather(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    values = (torch.arange(6.0).view(2, 3) + 10 * rank).requires_grad_()

    def loss(values: Tensor) -> Tensor:
        return (gathered(values).T ** 2).sum() + own_columns(2, values.device).sum()

    total = torch.compile(loss, fullgraph=True)(values)
    total.backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, 2 * ranks * values.detach())
    torch.testing.assert_close(total, loss(values))
    dist.destroy_process_group()


def work(rank: int, ranks: int, folder: str, apart: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    keep_negatives_apart(apart)
    share = CLIPS // ranks
    found = {}
    for name in names("model.methods"):
        total, gradients = loss_and_gradients(name, list(range(rank * share, (rank + 1) * share)))
        for value in (total, *gradients.values()):
            dist.all_reduce(value)
            value /= ranks
        found[name] = (total, gradients)
    if rank == 0:
        torch.save(found, Path(folder) / "found.pt")
    dist.destroy_process_group()


def spawn(tmp_path: Path, ranks: int, apart: bool = False) -> dict[str, tuple[Tensor, dict[str, Tensor]]]:
    torch.multiprocessing.spawn(work, (ranks, str(tmp_path), apart), ranks)  # type: ignore[attr-defined]
    return torch.load(tmp_path / "found.pt", weights_only=True)


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_loss_and_gradients_of_n_ranks_equal_those_of_one(tmp_path: Path, ranks: int):
    found = spawn(tmp_path, ranks)
    for name, (total, gradients) in found.items():
        whole, expected = loss_and_gradients(name, list(range(CLIPS)))
        torch.testing.assert_close(total, whole, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
        assert set(gradients) == set(expected)
        largest = max(float(value.norm()) for value in expected.values())
        for key, value in expected.items():
            error = float((gradients[key] - value).norm())
            assert error <= 1e-4 * max(float(value.norm()), 1e-3 * largest), f"{name} {key}: {error} of {value.norm()}"


@pytest.mark.slow
def test_negatives_may_stay_on_their_rank(tmp_path: Path):
    """The published way on several GPUs: every rank contrasts its own clips, so that the loss is another one."""
    total, _ = spawn(tmp_path, 2, apart=True)["ez_vsl"]
    halves = [loss_and_gradients("ez_vsl", rows)[0] for rows in (list(range(4)), list(range(4, 8)))]
    torch.testing.assert_close(total, sum(halves) / 2)


@pytest.mark.slow
def test_gathering_compiles_without_a_break(tmp_path: Path):
    torch.multiprocessing.spawn(compiled_gather, (2, str(tmp_path)), 2)  # type: ignore[attr-defined]


def test_one_process_needs_no_group():
    values = torch.arange(6.0).view(2, 3)
    assert gathered(values) is values and all_rows(5) == 5 and own_columns(2, values.device).tolist() == [0, 1]
    assert "RANK" not in os.environ
