"""Triton kernels of `model.kernels.pooled_pairs`: no value per image, sound and cell ever reaches memory.

Every kernel makes tiles of the product of cells and sounds, pools them at once and forgets them. With cells (B, P, D)
and sounds (M, D), contiguous, pooled is (B, M) float32, and `kept` is what the backward pass needs of each pair: of the
largest cosine its cell, of the soft mean the logarithm of the sum of its weights. Sums are kept in float32; bfloat16
features are multiplied as they are, which is exact, all else in IEEE float32, not in TF32.

Sizes are constants of a kernel: a run has one shape, and the interpreter (TRITON_INTERPRET=1), in which the tests run
these kernels on a CPU, cannot count to a run-time integer under numpy 2.4 (Triton issue 9171).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

INTERPRETED: bool = bool(knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter, on any device, instead of being compiled for a GPU."""

CELLS, SOUNDS, DEPTH = 64, 64, 32
"""Rows, columns and shared dimension of the tiles of the forward pass."""
SUMMED, STEP, OUT = 64, 32, 256
"""Rows of a gradient that a program makes, rows that it adds up at a time, and dimensions of both. The soft mean's
products are made again for every `OUT` dimensions. Compiled for compute capability 7.5 to 9.0, float32 features need
at most 74 kB of shared memory and no register is spilled."""
GATHERED, GATHERED_DEPTH = 32, 128
"""Sounds and dimensions of a program that gathers best cells."""


@triton.jit
def cosines(
    cells, sounds, image, first_cell, first_sound,
    P: tl.constexpr, M: tl.constexpr, D: tl.constexpr,
    CELLS: tl.constexpr, SOUNDS: tl.constexpr, DEPTH: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """(CELLS, SOUNDS) float32 products of an image's cells from `first_cell` on and the sounds from `first_sound` on;
    0 outside."""
    p = first_cell + tl.arange(0, CELLS)
    m = first_sound + tl.arange(0, SOUNDS)
    cell_rows = (image * P + p).to(tl.int64) * D
    sound_rows = m.to(tl.int64) * D
    found = tl.zeros((CELLS, SOUNDS), tl.float32)
    for start in range(0, D, DEPTH):
        d = start + tl.arange(0, DEPTH)
        x = tl.load(cells + cell_rows[:, None] + d[None, :], (p[:, None] < P) & (d[None, :] < D), 0.0)
        y = tl.load(sounds + sound_rows[None, :] + d[:, None], (m[None, :] < M) & (d[:, None] < D), 0.0)
        if WIDEN:
            x, y = x.to(tl.float32), y.to(tl.float32)
        found = tl.dot(x, y, found, input_precision="ieee")
    return found


@triton.jit
def _log_sigmoid(z):
    return tl.minimum(z, 0.0) - tl.log(1 + tl.exp(-tl.abs(z)))


@triton.jit
def _pool(
    cells, sounds, pooled, kept, border, softness,
    P: tl.constexpr, M: tl.constexpr, D: tl.constexpr, SOFT: tl.constexpr,
    CELLS: tl.constexpr, SOUNDS: tl.constexpr, DEPTH: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One image against SOUNDS sounds."""
    blocks: tl.constexpr = (M + SOUNDS - 1) // SOUNDS
    image, first = tl.program_id(0) // blocks, tl.program_id(0) % blocks * SOUNDS
    top = tl.full((SOUNDS,), -float("inf"), tl.float32)  # largest cosine, or largest logarithm of a weight, so far
    where = tl.zeros((SOUNDS,), tl.int32)
    weights = tl.zeros((SOUNDS,), tl.float32)  # in units of exp(top), as is the next
    weighted = tl.zeros((SOUNDS,), tl.float32)
    broken = tl.zeros((SOUNDS,), tl.int32)  # a reduction may pass over what is not a number
    for start in range(0, P, CELLS):
        inside = (start + tl.arange(0, CELLS) < P)[:, None]
        x = cosines(cells, sounds, image, start, first, P, M, D, CELLS, SOUNDS, DEPTH, WIDEN)
        broken = tl.maximum(broken, tl.max((x != x).to(tl.int32), 0))
        x = tl.where(x == x, x, 0.0)
        if SOFT:
            logs = tl.where(inside, _log_sigmoid((x - border) / softness), -float("inf"))
            new = tl.maximum(top, tl.max(logs, 0))
            shares = tl.exp(logs - new[None, :])
            weights = weights * tl.exp(top - new) + tl.sum(shares, 0)
            weighted = weighted * tl.exp(top - new) + tl.sum(shares * x, 0)
            top = new
        else:
            best, at = tl.max(tl.where(inside, x, -float("inf")), 0, return_indices=True)
            better = best > top
            top, where = tl.where(better, best, top), tl.where(better, start + at, where)
    m = first + tl.arange(0, SOUNDS)
    out = image * M + m
    if SOFT:
        tl.store(pooled + out, tl.where(broken > 0, float("nan"), weighted / weights), m < M)
        tl.store(kept + out, top + tl.log(weights), m < M)
    else:
        tl.store(pooled + out, tl.where(broken > 0, float("nan"), top), m < M)
        tl.store(kept + out, where.to(kept.dtype.element_ty), m < M)


@triton.jit
def _cell_gradient(
    gradient, pooled, kept, cells, sounds, border, softness, image, first_cell, first_sound,
    P: tl.constexpr, M: tl.constexpr, D: tl.constexpr, SOFT: tl.constexpr,
    CELLS: tl.constexpr, SOUNDS: tl.constexpr, DEPTH: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """(CELLS, SOUNDS) float32: the gradient at the products that `cosines` gives."""
    p = first_cell + tl.arange(0, CELLS)
    m = first_sound + tl.arange(0, SOUNDS)
    pairs = image * M + m
    at_pooled = tl.load(gradient + pairs, m < M, 0.0)[None, :]
    if SOFT:
        x = cosines(cells, sounds, image, first_cell, first_sound, P, M, D, CELLS, SOUNDS, DEPTH, WIDEN)
        z = (x - border) / softness
        share = tl.exp(_log_sigmoid(z) - tl.load(kept + pairs, m < M, 0.0)[None, :])
        slope = 1 / (1 + tl.exp(z)) / softness  # of the logarithm of the weight
        found = at_pooled * share * (1 + slope * (x - tl.load(pooled + pairs, m < M, 0.0)[None, :]))
        return tl.where((p < P)[:, None] & (m < M)[None, :], found, 0.0)
    else:
        return tl.where(p[:, None] == tl.load(kept + pairs, m < M, -1).to(tl.int32)[None, :], at_pooled, 0.0)


@triton.jit
def _to_cells(
    gradient, pooled, kept, cells, sounds, cells_gradient, border, softness,
    P: tl.constexpr, M: tl.constexpr, D: tl.constexpr, SOFT: tl.constexpr,
    CELLS: tl.constexpr, SOUNDS: tl.constexpr, DEPTH: tl.constexpr, OUT: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """OUT dimensions of the gradient at CELLS cells of an image: a sum over all sounds."""
    blocks: tl.constexpr = (P + CELLS - 1) // CELLS
    image, first = tl.program_id(0) // blocks, tl.program_id(0) % blocks * CELLS
    d = tl.program_id(1) * OUT + tl.arange(0, OUT)
    total = tl.zeros((CELLS, OUT), tl.float32)
    for start in range(0, M, SOUNDS):
        at_products = _cell_gradient(
            gradient, pooled, kept, cells, sounds, border, softness, image, first, start,
            P, M, D, SOFT, CELLS, SOUNDS, DEPTH, WIDEN,
        )  # fmt: skip
        m = start + tl.arange(0, SOUNDS)
        y = tl.load(sounds + m.to(tl.int64)[:, None] * D + d[None, :], (m[:, None] < M) & (d[None, :] < D), 0.0)
        total = tl.dot(at_products, y.to(tl.float32), total, input_precision="ieee")
    p = first + tl.arange(0, CELLS)
    rows = (image * P + p).to(tl.int64)[:, None] * D
    out = total.to(cells_gradient.dtype.element_ty)
    tl.store(cells_gradient + rows + d[None, :], out, (p[:, None] < P) & (d[None, :] < D))


@triton.jit
def _to_sounds(
    gradient, pooled, kept, cells, sounds, sounds_gradient, border, softness,
    B: tl.constexpr, P: tl.constexpr, M: tl.constexpr, D: tl.constexpr,
    CELLS: tl.constexpr, SOUNDS: tl.constexpr, DEPTH: tl.constexpr, OUT: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """OUT dimensions of the soft mean's gradient at SOUNDS sounds: a sum over all cells of all images."""
    first = tl.program_id(0) * SOUNDS
    d = tl.program_id(1) * OUT + tl.arange(0, OUT)
    total = tl.zeros((SOUNDS, OUT), tl.float32)
    for image in range(0, B):
        for start in range(0, P, CELLS):
            at_products = _cell_gradient(
                gradient, pooled, kept, cells, sounds, border, softness, image, start, first,
                P, M, D, True, CELLS, SOUNDS, DEPTH, WIDEN,
            )  # fmt: skip
            p = start + tl.arange(0, CELLS)
            rows = (image * P + p).to(tl.int64)[:, None] * D
            x = tl.load(cells + rows + d[None, :], (p[:, None] < P) & (d[None, :] < D), 0.0)
            total = tl.dot(tl.trans(at_products), x.to(tl.float32), total, input_precision="ieee")
    m = first + tl.arange(0, SOUNDS)
    out = total.to(sounds_gradient.dtype.element_ty)
    tl.store(sounds_gradient + m.to(tl.int64)[:, None] * D + d[None, :], out, (m[:, None] < M) & (d[None, :] < D))


@triton.jit
def _best_to_sounds(
    gradient, kept, cells, sounds_gradient,
    B: tl.constexpr, P: tl.constexpr, M: tl.constexpr, D: tl.constexpr, SOUNDS: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    """OUT dimensions of the largest cosine's gradient at SOUNDS sounds: a sum over each image's best cell alone."""
    m = tl.program_id(0) * SOUNDS + tl.arange(0, SOUNDS)
    d = tl.program_id(1) * OUT + tl.arange(0, OUT)
    inside = (m[:, None] < M) & (d[None, :] < D)
    total = tl.zeros((SOUNDS, OUT), tl.float32)
    for image in range(0, B):
        rows = (image * P + tl.load(kept + image * M + m, m < M, 0).to(tl.int32)).to(tl.int64) * D
        x = tl.load(cells + rows[:, None] + d[None, :], inside, 0.0).to(tl.float32)
        total += tl.load(gradient + image * M + m, m < M, 0.0)[:, None] * x
    out = total.to(sounds_gradient.dtype.element_ty)
    tl.store(sounds_gradient + m.to(tl.int64)[:, None] * D + d[None, :], out, inside)


def tiles_of(length: int, tile: int) -> int:
    return -(-length // tile)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Tensor | float, **constants: int) -> None:
    """Run a program of the kernel at every point of the grid."""
    kernel[grid](*arguments, **constants)  # Triton's types take no numbers for constants


def pool(cells: Tensor, sounds: Tensor, soft: tuple[float, float] | None, kept: torch.dtype) -> tuple[Tensor, Tensor]:
    """Pooled pairs and what `pool_backward` needs of them, of type `kept`: both (B, M)."""
    b, p, d = cells.shape
    m = len(sounds)
    pooled = torch.empty(b, m, device=cells.device)
    needed = torch.empty(b, m, dtype=kept, device=cells.device)
    launch(
        _pool, (b * tiles_of(m, SOUNDS),), cells, sounds, pooled, needed, *(soft or (0.0, 1.0)),
        P=p, M=m, D=d, SOFT=soft is not None, CELLS=CELLS, SOUNDS=SOUNDS, DEPTH=DEPTH, WIDEN=INTERPRETED,
    )  # fmt: skip
    return pooled, needed


def pool_backward(
    gradient: Tensor, pooled: Tensor, kept: Tensor, cells: Tensor, sounds: Tensor, soft: tuple[float, float] | None
) -> tuple[Tensor, Tensor]:
    """The gradient (B, M) of the pooled pairs, brought to cells and sounds."""
    b, p, d = cells.shape
    m = len(sounds)
    cells_gradient, sounds_gradient = torch.empty_like(cells), torch.empty_like(sounds)
    tiles = {"DEPTH": DEPTH, "OUT": OUT, "WIDEN": INTERPRETED}
    sizes = {"P": p, "M": m, "D": d}
    numbers = soft or (0.0, 1.0)
    launch(
        _to_cells, (b * tiles_of(p, SUMMED), tiles_of(d, OUT)),
        gradient, pooled, kept, cells, sounds, cells_gradient, *numbers,
        **sizes, **tiles, CELLS=SUMMED, SOUNDS=STEP, SOFT=soft is not None, num_warps=8,
    )  # fmt: skip
    if soft:
        launch(
            _to_sounds, (tiles_of(m, SUMMED), tiles_of(d, OUT)),
            gradient, pooled, kept, cells, sounds, sounds_gradient, *numbers,
            **sizes, **tiles, B=b, CELLS=STEP, SOUNDS=SUMMED, num_warps=8,
        )  # fmt: skip
    else:
        launch(
            _best_to_sounds, (tiles_of(m, GATHERED), tiles_of(d, GATHERED_DEPTH)),
            gradient, kept, cells, sounds_gradient, **sizes, B=b, SOUNDS=GATHERED, OUT=GATHERED_DEPTH,
        )  # fmt: skip
    return cells_gradient, sounds_gradient
