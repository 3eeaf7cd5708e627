"""SLAVC's logits of every image against every sound, without its two maps of all pairs in memory.

With which (B, P, M) and where (B, P, M), the cosines of cells and sounds of two heads over tau, the logits (B, M) are
`logsumexp_p(log_softmax_m(which) + log_softmax_p(where))`: `shares - over_cells`, where
over_sounds (B, P) = logsumexp_m(which), shares = logsumexp_p(which + where - over_sounds) and
over_cells = logsumexp_p(where). These three are all that the backward pass needs beside the features; it makes the
products again.

The two forms are those of `model.kernels.pooled_pairs`, and are chosen as they are: chunked, plain torch over a few
images at a time on any device, and fused, Triton kernels (`model.kernels.triton_factorised`).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from model.kernels.pooled_pairs import accumulator


def factorised_pairs(
    cells_which: Tensor, cells_where: Tensor, sounds_which: Tensor, sounds_where: Tensor, tau: float, chunk: int
) -> Tensor:
    """(B, M), in float32; in float64 where the chunked form is given it.

    Args: cells (B, P, D) and sounds (M, D), all of one type; chunk: images at a time, 0 for the fused form, which takes
    float32, float16 and bfloat16, and needs a GPU, or an interpreted Triton.
    """
    shares, over_cells, _ = _factorise(cells_which, cells_where, sounds_which, sounds_where, tau, chunk)
    return shares - over_cells


@torch.library.custom_op("whence::factorise_pairs", mutates_args=())
def _factorise(
    cells_which: Tensor, cells_where: Tensor, sounds_which: Tensor, sounds_where: Tensor, tau: float, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """shares (B, M), over_cells (B, M) and over_sounds (B, P)."""
    features = (cells_which, cells_where, sounds_which, sounds_where)
    if not chunk:
        from model.kernels import triton_factorised  # only here: torch for CPUs comes without Triton

        return triton_factorised.factorise([each.contiguous() for each in features], tau)
    found = _empty(cells_which, sounds_which)
    for images, which, where in _chunks(features, tau, chunk):
        shares, over_cells, over_sounds = (each[images] for each in found)
        over_sounds[:] = which.logsumexp(dim=2)
        shares[:] = (which + where - over_sounds[:, :, None]).logsumexp(dim=1)
        over_cells[:] = where.logsumexp(dim=1)
    return found


@_factorise.register_fake
def _(
    cells_which: Tensor, cells_where: Tensor, sounds_which: Tensor, sounds_where: Tensor, tau: float, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(cells_which, sounds_which)


def _empty(cells: Tensor, sounds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    pairs = cells.new_empty(cells.shape[0], sounds.shape[0], dtype=accumulator(cells.dtype))
    return pairs, torch.empty_like(pairs), pairs.new_empty(cells.shape[:2])


@torch.library.custom_op("whence::factorise_pairs_backward", mutates_args=())
def _factorise_backward(
    at_shares: Tensor, at_over_cells: Tensor, kept: list[Tensor], features: list[Tensor], tau: float, chunk: int,
    to_cells: bool, to_sounds: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients (B, M) of shares and over_cells, brought to the features; empty where they are not asked for."""
    gradients = _gradients(features, to_cells, to_sounds)
    if not chunk:
        from model.kernels import triton_factorised

        above, given = ([each.contiguous() for each in group] for group in ((at_shares, at_over_cells), features))
        triton_factorised.factorise_backward(above, kept, given, tau, gradients, to_cells, to_sounds)
        return gradients
    shares, over_cells, over_sounds = kept
    sums = [torch.zeros_like(each, dtype=accumulator(each.dtype)) for each in features[2:]]
    for images, which, where in _chunks(features, tau, chunk):
        share = (which + where - over_sounds[images, :, None] - shares[images, None]).exp() * at_shares[images, None]
        # A cell's probability over the sounds takes back, in all, what its shares were given.
        taken = (which - over_sounds[images, :, None]).exp() * share.sum(dim=2, keepdim=True)
        of_where = (where - over_cells[images, None]).exp() * at_over_cells[images, None]
        for number, at_products in enumerate(((share - taken) / tau, (share + of_where) / tau)):
            at_products = at_products.flatten(0, 1)
            cells, sounds = features[number][images], features[2 + number]
            if to_cells:
                gradients[number][images] = (at_products @ sounds.to(at_products.dtype)).view_as(cells)
            if to_sounds:
                sums[number] += at_products.T @ cells.flatten(0, 1).to(at_products.dtype)
    if to_sounds:
        for gradient, total in zip(gradients[2:], sums):
            gradient.copy_(total)
    return gradients


@_factorise_backward.register_fake
def _(
    at_shares: Tensor, at_over_cells: Tensor, kept: list[Tensor], features: list[Tensor], tau: float, chunk: int,
    to_cells: bool, to_sounds: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _gradients(features, to_cells, to_sounds)


def _gradients(features: list[Tensor], to_cells: bool, to_sounds: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    asked = (to_cells, to_cells, to_sounds, to_sounds)
    first, second, third, fourth = (
        torch.empty_like(each, memory_format=torch.contiguous_format) if wanted else each.new_empty(0)
        for each, wanted in zip(features, asked)
    )
    return first, second, third, fourth


def _remember(ctx, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    *features, ctx.tau, ctx.chunk = inputs
    ctx.save_for_backward(*output, *features)
    ctx.mark_non_differentiable(output[2])


def _differentiate(ctx, at_shares: Tensor, at_over_cells: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = list(ctx.saved_tensors)
    asked = ctx.needs_input_grad
    to_cells, to_sounds = asked[0] or asked[1], asked[2] or asked[3]
    found = _factorise_backward(
        at_shares, at_over_cells, saved[:3], saved[3:], ctx.tau, ctx.chunk, to_cells, to_sounds
    )  # fmt: skip
    return (*(each if wanted else None for each, wanted in zip(found, asked)), None, None)


_factorise.register_autograd(_differentiate, setup_context=_remember)


def _chunks(features: Sequence[Tensor], tau: float, chunk: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Of some images at a time: which ones, and their maps (images, P, M) over tau, in at least float32."""
    cells_which, cells_where, sounds_which, sounds_where = features
    wide = accumulator(cells_which.dtype)
    with torch.autocast(cells_which.device.type, enabled=False):
        for start in range(0, len(cells_which), chunk):
            images = slice(start, start + chunk)
            which, where = (
                cells[images].to(wide) @ sounds.to(wide).T / tau
                for cells, sounds in ((cells_which, sounds_which), (cells_where, sounds_where))
            )
            yield images, which, where
