"""All pairs without their map, chunked and by Triton's interpreted kernels, against plain torch in float64."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.profiler import ProfilerActivity, profile

from model.kernels.pooled_pairs import chunk_images, pooled_pairs
from model.losses.max_mil import MaxMIL
from model.losses.trimap import TriMap
from model.similarity import (
    MAP_BYTES,
    all_pairs_max,
    all_pairs_soft_mean,
    choose_fused_pairs,
    images_at_a_time,
    soft_mean,
)

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
POOLINGS = {"max": [], "foreground": [0.65, 0.03], "background": [0.4, -0.03]}
FORMS = {"fused": 0, "chunked": 2}


@pytest.fixture(autouse=True)
def as_by_default():
    yield
    choose_fused_pairs("auto", CPU)


def features(b: int, m: int, cells: tuple[int, int], d: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Images (B, D, h, w) and sounds (M, D); some cosines on either side of the soft mean's borders."""
    draw = torch.Generator().manual_seed(b * m + d)
    sounds = torch.randn(m, d, generator=draw, dtype=torch.float64)
    images = torch.randn(b, d, *cells, generator=draw, dtype=torch.float64)
    images[:, :, 0, 0] += 2 * sounds[0]
    return [x.to(dtype).to(DEVICE).requires_grad_() for x in (normalize(images, dim=1), normalize(sounds, dim=1))]


def plain(images: Tensor, sounds: Tensor, soft: list[float]) -> Tensor:
    products = torch.einsum("bdhw,md->bhwm", images, sounds).flatten(1, 2)
    return soft_mean(products, *soft) if soft else products.max(dim=1).values


def rows(images: Tensor) -> Tensor:
    return images.flatten(2).mT


def away(found: Tensor | None, expected: Tensor) -> float:
    """The largest difference, as a share of the largest value expected."""
    assert found is not None and found.shape == expected.shape
    return float((found.detach().double() - expected).abs().max() / expected.abs().max())


def compare(pool: Callable[[Tensor, Tensor], Tensor], soft: list[float], inputs: list[Tensor], tolerance: float):
    pooled = pool(*inputs)
    weights = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    gradients = torch.autograd.grad((pooled * weights).sum(), inputs)
    exact = [each.detach().double().requires_grad_() for each in inputs]
    expected = plain(*exact, soft)
    assert pooled.dtype == torch.float32 and away(pooled, expected.detach()) < 1e-6
    for found, wanted in zip(gradients, torch.autograd.grad((expected * weights).sum(), exact)):
        assert away(found, wanted) < tolerance


@pytest.mark.parametrize("chunk", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("soft", POOLINGS.values(), ids=POOLINGS)
@pytest.mark.parametrize(
    ("b", "m", "cells", "d"),
    [(3, 5, (3, 2), 8), (1, 66, (5, 13), 33), (2, 3, (7, 7), 260)],
    ids=["small", "past a tile of cells and sounds", "past a tile of dimensions"],
)
def test_equals_float64(b: int, m: int, cells: tuple[int, int], d: int, soft: list[float], chunk: int):
    compare(lambda x, y: pooled_pairs(rows(x), y, soft, chunk), soft, features(b, m, cells, d), 1e-5)


@pytest.mark.parametrize("chunk", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("soft", POOLINGS.values(), ids=POOLINGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened(dtype: torch.dtype, soft: list[float], chunk: int):
    # The gradients are rounded once, to the type of the features; Triton's interpreter cuts bfloat16 off.
    tolerance = 2 * torch.finfo(dtype).eps
    compare(lambda x, y: pooled_pairs(rows(x), y, soft, chunk), soft, features(3, 5, (3, 3), 16, dtype), tolerance)


@pytest.mark.parametrize("soft", POOLINGS.values(), ids=POOLINGS)
def test_gradients(soft: list[float]):
    inputs = features(3, 4, (2, 2), 5, torch.float64)
    assert torch.autograd.gradcheck(lambda x, y: pooled_pairs(rows(x), y, soft, 2), inputs)


@pytest.mark.parametrize("chunk", FORMS.values(), ids=FORMS)
def test_the_first_of_equal_cells_takes_the_gradient(chunk: int):
    images, sounds = (each.detach() for each in features(3, 4, (1, 35), 16))
    # The same four cells again and again, over the edge of a tile.
    images = images[..., :4].repeat(1, 1, 1, 17).requires_grad_()
    pooled_pairs(rows(images), sounds, [], chunk).sum().backward()
    assert images.grad is not None
    touched = images.grad.abs().sum(dim=(1, 2))
    assert touched[:, :4].any() and not touched[:, 4:].any()


@pytest.mark.parametrize("chunk", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("soft", POOLINGS.values(), ids=POOLINGS)
def test_what_is_not_a_number_shows_in_its_pairs_alone(soft: list[float], chunk: int):
    images, sounds = (each.detach() for each in features(2, 3, (10, 7), 16))
    images[1, 0, 9, 6] = torch.nan
    sounds[2] = torch.nan
    assert pooled_pairs(rows(images), sounds, soft, chunk).isnan().tolist() == [[False, False, True], [True] * 3]


def largest_allocation(work: Callable[[], object]) -> int:
    """Bytes of the largest block that torch's allocator for the CPU handed out, whoever asked."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        work()
    assert seen.profiler is not None
    events = seen.profiler.kineto_results.events()
    return max(event.nbytes() for event in events if event.name() == "[memory]")


@pytest.mark.skipif(DEVICE.type == "cuda", reason="counts the CPU's allocations")
@pytest.mark.parametrize("soft", POOLINGS.values(), ids=POOLINGS)
def test_nothing_as_large_as_the_map_is_allocated(soft: list[float]):
    images, sounds = features(8, 64, (7, 7), 16)
    map_bytes = 4 * 8 * 49 * 64

    def largest(pool: Callable[[Tensor, Tensor], Tensor]) -> int:
        return largest_allocation(lambda: pool(images, sounds).sum().backward())

    assert largest(lambda x, y: plain(x, y, soft)) >= map_bytes
    assert largest(lambda x, y: pooled_pairs(rows(x), y, soft, 2)) <= map_bytes // 4
    # Features and (B, M) alone.
    assert largest(lambda x, y: pooled_pairs(rows(x), y, soft, 0)) <= max(4 * images.numel(), 4 * 8 * 64)


@pytest.mark.parametrize("chunk", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("soft", [POOLINGS["max"], POOLINGS["foreground"]], ids=["max", "foreground"])
def test_compiles_as_one_graph(soft: list[float], chunk: int):
    def loss(images: Tensor, sounds: Tensor) -> Tensor:
        return pooled_pairs(rows(normalize(images, dim=1)), sounds, soft, chunk).square().sum()

    inputs = features(3, 5, (3, 2), 8)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected, found = loss(*inputs), compiled(*inputs)
    torch.testing.assert_close(found, expected)
    for one, other in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs)):
        torch.testing.assert_close(one, other)


def test_autocast_changes_nothing():
    inputs = features(3, 5, (3, 2), 8)
    for soft in POOLINGS.values():
        with torch.autocast(DEVICE.type, torch.bfloat16):
            under = pooled_pairs(rows(inputs[0]), inputs[1], soft, 2)
        assert torch.equal(under, pooled_pairs(rows(inputs[0]), inputs[1], soft, 2))


@pytest.mark.parametrize("loss", [MaxMIL(MaxMIL.Config(name="max_mil")), TriMap(TriMap.Config(name="trimap"))])
def test_a_loss_is_the_same_either_way(loss: MaxMIL | TriMap):
    def result(fused: str) -> list[Tensor]:
        choose_fused_pairs(fused, DEVICE)  # type: ignore[arg-type]
        inputs = features(5, 5, (3, 3), 8)
        value = loss(image_features=inputs[0], audio_features=inputs[1])
        return [value.detach(), *torch.autograd.grad(value, inputs)]

    for one, other in zip(result("always"), result("never")):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_mixed_types_meet_in_float32():
    choose_fused_pairs("always", DEVICE)
    images, sounds = features(3, 4, (2, 2), 8)
    low = images.detach().bfloat16()
    torch.testing.assert_close(all_pairs_max(low, sounds), plain(low.float(), sounds, []))
    soft = POOLINGS["background"]
    torch.testing.assert_close(all_pairs_soft_mean(low, sounds, *soft), plain(low.float(), sounds, soft))


def test_float64_is_pooled_in_chunks():
    choose_fused_pairs("always", DEVICE)
    inputs = features(3, 4, (2, 2), 8, torch.float64)
    torch.testing.assert_close(all_pairs_max(*inputs), plain(*inputs, []), rtol=1e-14, atol=1e-14)


def test_the_whole_map_is_made_up_to_a_gibibyte():
    sounds = torch.empty(1024, 8)
    images = torch.empty(MAP_BYTES // (4 * 1024 * 16), 8, 4, 4)
    one_more = torch.empty(len(images) + 1, 8, 4, 4)
    assert images_at_a_time(images, sounds) is None
    chunk = images_at_a_time(one_more, sounds)
    assert chunk == chunk_images(rows(images), sounds) == 2048
    with torch.device("meta"):  # a type of device that is neither
        assert images_at_a_time(torch.empty(4096, 512, 14, 14), torch.empty(4096, 512)) == 41
    choose_fused_pairs("never", CPU)
    assert images_at_a_time(one_more, sounds) is None
    choose_fused_pairs("always", DEVICE)
    assert images_at_a_time(images[:2], sounds) == 0
    assert images_at_a_time(images[:2].double(), sounds.double()) == 2048 // 2, "the kernels add up in float32"


def test_always_needs_a_gpu_or_the_interpreter():
    code = "import torch, model.similarity as s; s.choose_fused_pairs('always', torch.device('cpu'))"
    given = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    root = Path(__file__).parents[2]
    said = subprocess.run([sys.executable, "-c", code], env=given, cwd=root, capture_output=True, text=True).stderr
    assert "UserError: train.fused_pairs=always needs a CUDA GPU, and this run is on cpu" in said
