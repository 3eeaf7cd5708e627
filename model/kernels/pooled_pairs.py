"""Cells against sounds, pooled over each image's cells, without the map of all pairs in memory.

Two forms of the same numbers, forward and backward: chunked, plain torch over a few images at a time on any device; and
fused, Triton kernels (`model.kernels.triton_pairs`). They are operators of torch, opaque to its compiler: a compiled
objective takes them without a graph break. Where they are used is decided in `model.similarity`.

A pooling is described by `soft`: empty for the largest value, where of equals the first cell wins; [border, softness]
for the mean weighted by sigmoid((x - border) / softness).
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

CHUNK_BYTES = 1 << 27
"""Of one map of the chunked form, which holds up to five at a time."""


def chunk_images(cells: Tensor, sounds: Tensor) -> int:
    """How many images' maps fit into `CHUNK_BYTES`, at least one."""
    return max(1, CHUNK_BYTES // (max(4, cells.dtype.itemsize) * cells.shape[1] * len(sounds)))


def pooled_pairs(cells: Tensor, sounds: Tensor, soft: list[float], chunk: int) -> Tensor:
    """Every image against every sound: (B, M), in float32; in float64 where the chunked form is given it.

    Args: cells (B, P, D); sounds (M, D), of the same type; chunk: images at a time, 0 for the fused form. That takes
    float32, float16 and bfloat16, and needs a GPU, or an interpreted Triton.
    """
    return _pool(cells, sounds, soft, chunk)[0]


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type in which features of a type are multiplied and added up."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _kept_type(cells: Tensor, soft: list[float]) -> torch.dtype:
    """Of what the backward pass needs of a pair: the logarithm of the sum of its weights, or its best cell."""
    if soft:
        return accumulator(cells.dtype)
    return torch.int16 if cells.shape[1] <= torch.iinfo(torch.int16).max else torch.int32


@torch.library.custom_op("whence::pool_pairs", mutates_args=())
def _pool(cells: Tensor, sounds: Tensor, soft: list[float], chunk: int) -> tuple[Tensor, Tensor]:
    """Pooled (B, M) and what the backward pass needs of each pair (B, M)."""
    kept_type = _kept_type(cells, soft)
    if not chunk:
        from model.kernels import triton_pairs  # only here: torch for CPUs comes without Triton

        return triton_pairs.pool(cells.contiguous(), sounds.contiguous(), _numbers(soft), kept_type)
    pooled = cells.new_empty(len(cells), len(sounds), dtype=accumulator(cells.dtype))
    kept = torch.empty_like(pooled, dtype=kept_type)
    for images, x, _, _ in _chunks(cells, sounds, chunk):
        if soft:
            logs = functional.logsigmoid((x - soft[0]) / soft[1])
            kept[images] = logs.logsumexp(dim=1)
            pooled[images] = ((logs - kept[images, None]).exp() * x).sum(dim=1)
        else:
            pooled[images], kept[images] = x.max(dim=1)
    return pooled, kept


@_pool.register_fake
def _(cells: Tensor, sounds: Tensor, soft: list[float], chunk: int) -> tuple[Tensor, Tensor]:
    pooled = cells.new_empty(cells.shape[0], sounds.shape[0], dtype=accumulator(cells.dtype))
    return pooled, torch.empty_like(pooled, dtype=_kept_type(cells, soft))


@torch.library.custom_op("whence::pool_pairs_backward", mutates_args=())
def _pool_backward(
    gradient: Tensor, pooled: Tensor, kept: Tensor, cells: Tensor, sounds: Tensor, soft: list[float], chunk: int
) -> tuple[Tensor, Tensor]:
    """The gradient (B, M) of the pooled pairs, brought to cells and sounds."""
    gradient = gradient.contiguous()
    if not chunk:
        from model.kernels import triton_pairs

        numbers = _numbers(soft)
        return triton_pairs.pool_backward(gradient, pooled, kept, cells.contiguous(), sounds.contiguous(), numbers)
    to_cells = torch.empty_like(cells, memory_format=torch.contiguous_format)
    to_sounds = torch.zeros_like(sounds, dtype=accumulator(sounds.dtype))
    for images, x, rows, columns in _chunks(cells, sounds, chunk, products=bool(soft)):
        at_pooled = gradient[images, None]
        if soft:
            z = (x - soft[0]) / soft[1]
            share = (functional.logsigmoid(z) - kept[images, None]).exp()
            slope = torch.sigmoid(-z) / soft[1]  # of the logarithm of the weight
            at_products = at_pooled * share * (1 + slope * (x - pooled[images, None]))
        else:
            at_products = torch.zeros_like(x).scatter_(1, kept[images, None].long(), at_pooled)
        at_products = at_products.flatten(0, 1)
        to_cells[images] = (at_products @ columns).view_as(to_cells[images])
        to_sounds += at_products.T @ rows
    return to_cells, to_sounds.to(sounds.dtype)


@_pool_backward.register_fake
def _(
    gradient: Tensor, pooled: Tensor, kept: Tensor, cells: Tensor, sounds: Tensor, soft: list[float], chunk: int
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(cells, memory_format=torch.contiguous_format), torch.empty_like(sounds)


def _remember(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    cells, sounds, ctx.soft, ctx.chunk = inputs
    ctx.save_for_backward(*output, cells, sounds)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx, gradient: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor, None, None]:
    return (*_pool_backward(gradient, *ctx.saved_tensors, ctx.soft, ctx.chunk), None, None)


_pool.register_autograd(_differentiate, setup_context=_remember)


def _numbers(soft: list[float]) -> tuple[float, float] | None:
    return (soft[0], soft[1]) if soft else None


def _chunks(
    cells: Tensor, sounds: Tensor, chunk: int, products: bool = True
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Of some images at a time: which, their products with all sounds (images, P, M), their cells as rows, the sounds.

    Without `products`, room for them, of no meaning. All in at least float32, under autocast too.
    """
    wide = accumulator(cells.dtype)
    columns = sounds.to(wide)
    with torch.autocast(cells.device.type, enabled=False):
        for start in range(0, len(cells), chunk):
            images = slice(start, start + chunk)
            rows = cells[images].flatten(0, 1).to(wide)
            x = rows @ columns.T if products else rows.new_empty(len(rows), len(columns))
            yield images, x.unflatten(0, (-1, cells.shape[1])), rows, columns
