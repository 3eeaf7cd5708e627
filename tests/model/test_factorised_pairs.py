"""SLAVC's logits without their maps, chunked and by Triton's interpreted kernels, against plain torch in float64."""

from collections.abc import Callable

import pytest
import torch
from test_kernels import DEVICE, FORMS, away, largest_allocation
from torch import Tensor
from torch.nn.functional import normalize

from model.kernels.factorised_pairs import factorised_pairs
from model.losses.factorised import Factorised, factorised_logits
from model.similarity import choose_fused_pairs


@pytest.fixture(autouse=True)
def as_by_default():
    yield
    choose_fused_pairs("auto", DEVICE)


def features(b: int, m: int, cells: int, d: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Cells (B, P, D) of two heads, then sounds (M, D) of both, of unit length."""
    draw = torch.Generator().manual_seed(b * m + d)
    shapes = ((b, cells, d), (b, cells, d), (m, d), (m, d))
    drawn = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes)
    return [normalize(each, dim=-1).to(dtype).to(DEVICE).requires_grad_() for each in drawn]


def plain(which: Tensor, where: Tensor, sounds_which: Tensor, sounds_where: Tensor, tau: float) -> Tensor:
    return factorised_logits(which @ sounds_which.T, where @ sounds_where.T, tau)


def compare(inputs: list[Tensor], chunk: int, tolerance: float, tau: float = 0.03) -> None:
    logits = factorised_pairs(*inputs, tau, chunk)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    gradients = torch.autograd.grad((logits * weights).sum(), inputs)
    exact = [each.detach().double().requires_grad_() for each in inputs]
    expected = plain(*exact, tau)
    assert logits.dtype == torch.float32 and away(logits, expected.detach()) < 1e-6
    for found, wanted in zip(gradients, torch.autograd.grad((expected * weights).sum(), exact)):
        assert away(found, wanted) < tolerance


@pytest.mark.parametrize("chunk", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    ("b", "m", "cells", "d"),
    [(3, 5, 6, 8), (1, 66, 65, 33), (2, 3, 7, 260)],
    ids=["small", "past a tile of cells and sounds", "past a tile of dimensions"],
)
def test_equals_float64(b: int, m: int, cells: int, d: int, chunk: int):
    compare(features(b, m, cells, d), chunk, 1e-5)


@pytest.mark.parametrize("chunk", FORMS.values(), ids=FORMS)
def test_half_precision_is_widened(chunk: int):
    compare(features(3, 5, 9, 16, torch.bfloat16), chunk, 2 * torch.finfo(torch.bfloat16).eps)


def test_gradients():
    inputs = features(3, 4, 4, 5, torch.float64)
    assert torch.autograd.gradcheck(lambda *given: factorised_pairs(*given, 0.3, 2), inputs)


@pytest.mark.parametrize("chunk", FORMS.values(), ids=FORMS)
def test_what_is_not_a_number_shows(chunk: int):
    inputs = [each.detach() for each in features(2, 3, 70, 16)]
    inputs[0][1, 69] = torch.nan
    assert factorised_pairs(*inputs, 0.03, chunk).isnan().tolist() == [[False] * 3, [True] * 3]


@pytest.mark.skipif(DEVICE.type == "cuda", reason="counts the CPU's allocations")
def test_nothing_as_large_as_a_map_is_allocated():
    inputs = features(8, 64, 49, 16)
    map_bytes = 4 * 8 * 49 * 64

    def largest(pool: Callable[..., Tensor]) -> int:
        return largest_allocation(lambda: pool(*inputs).sum().backward())

    assert largest(lambda *given: plain(*given, 0.03)) >= map_bytes
    assert largest(lambda *given: factorised_pairs(*given, 0.03, 2)) <= map_bytes // 4
    assert largest(lambda *given: factorised_pairs(*given, 0.03, 0)) <= 4 * inputs[0].numel()


@pytest.mark.parametrize("chunk", FORMS.values(), ids=FORMS)
def test_compiles_as_one_graph_with_one_side_fixed(chunk: int):
    *cells, which, where = features(3, 5, 6, 8)
    sounds = which.detach(), where.detach()

    def loss(*cells: Tensor) -> Tensor:
        return factorised_pairs(*(normalize(each, dim=2) for each in cells), *sounds, 0.03, chunk).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected, found = loss(*cells), compiled(*cells)
    torch.testing.assert_close(found, expected)
    for one, other in zip(torch.autograd.grad(found, cells), torch.autograd.grad(expected, cells)):
        torch.testing.assert_close(one, other)


def test_the_loss_is_the_same_either_way():
    loss = Factorised(Factorised.Config(name="factorised"))

    def result(fused: str) -> list[Tensor]:
        choose_fused_pairs(fused, DEVICE)  # type: ignore[arg-type]
        cells, _, sounds, _ = features(5, 5, 9, 8)
        given = {
            name: (cells.mT.unflatten(2, (3, 3)) if "image" in name else sounds).detach().roll(number, 1)
            for number, name in enumerate(Factorised.needs)
        }
        moving = [value.requires_grad_() for name, value in given.items() if not name.startswith("slow")]
        value = loss(**given)
        return [value.detach(), *torch.autograd.grad(value, moving)]

    for one, other in zip(result("always"), result("never")):
        assert away(one, other.double()) < 3e-5
