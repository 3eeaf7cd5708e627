"""Triton kernels of `model.kernels.factorised_pairs`: no value per image, sound and cell ever reaches memory.

They make the products of cells and sounds as those of `model.kernels.triton_pairs` do, with the same tiles, for both
heads at once, and make them again in every pass: one for over_sounds, one for shares and over_cells, one for what a
cell's probabilities take back, and one for every gradient. Names and shapes are those of `factorised_pairs`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.kernels.triton_pairs import CELLS, DEPTH, INTERPRETED, OUT, SOUNDS, STEP, SUMMED, cosines, launch, tiles_of

LOWEST: tl.constexpr = tl.constexpr(-3e38)
"""Where a running maximum begins: finite, so that what is not a number shows, and nothing else becomes it."""


@triton.jit
def _over_sounds(
    cells_which, sounds_which, over_sounds, tau,
    P: tl.constexpr, M: tl.constexpr, D: tl.constexpr,
    CELLS: tl.constexpr, SOUNDS: tl.constexpr, DEPTH: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """CELLS cells of an image."""
    blocks: tl.constexpr = (P + CELLS - 1) // CELLS
    image, first = tl.program_id(0) // blocks, tl.program_id(0) % blocks * CELLS
    top = tl.full((CELLS,), LOWEST, tl.float32)
    total = tl.zeros((CELLS,), tl.float32)  # in units of exp(top)
    for start in range(0, M, SOUNDS):
        which = cosines(cells_which, sounds_which, image, first, start, P, M, D, CELLS, SOUNDS, DEPTH, WIDEN) / tau
        which = tl.where((start + tl.arange(0, SOUNDS) < M)[None, :], which, -float("inf"))
        new = tl.maximum(top, tl.max(which, 1))
        total = total * tl.exp(top - new) + tl.sum(tl.exp(which - new[:, None]), 1)
        top = new
    p = first + tl.arange(0, CELLS)
    tl.store(over_sounds + image * P + p, top + tl.log(total), p < P)


@triton.jit
def _shares(
    cells_which, cells_where, sounds_which, sounds_where, shares, over_cells, over_sounds, tau,
    P: tl.constexpr, M: tl.constexpr, D: tl.constexpr,
    CELLS: tl.constexpr, SOUNDS: tl.constexpr, DEPTH: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One image against SOUNDS sounds."""
    blocks: tl.constexpr = (M + SOUNDS - 1) // SOUNDS
    image, first = tl.program_id(0) // blocks, tl.program_id(0) % blocks * SOUNDS
    top = tl.full((SOUNDS,), LOWEST, tl.float32)
    total = tl.zeros((SOUNDS,), tl.float32)
    cell_top = tl.full((SOUNDS,), LOWEST, tl.float32)
    cell_total = tl.zeros((SOUNDS,), tl.float32)
    for start in range(0, P, CELLS):
        p = start + tl.arange(0, CELLS)
        which = cosines(cells_which, sounds_which, image, start, first, P, M, D, CELLS, SOUNDS, DEPTH, WIDEN) / tau
        where = cosines(cells_where, sounds_where, image, start, first, P, M, D, CELLS, SOUNDS, DEPTH, WIDEN) / tau
        where = tl.where((p < P)[:, None], where, -float("inf"))
        both = which + where - tl.load(over_sounds + image * P + p, p < P, 0.0)[:, None]
        new = tl.maximum(top, tl.max(both, 0))
        total = total * tl.exp(top - new) + tl.sum(tl.exp(both - new[None, :]), 0)
        top = new
        new = tl.maximum(cell_top, tl.max(where, 0))
        cell_total = cell_total * tl.exp(cell_top - new) + tl.sum(tl.exp(where - new[None, :]), 0)
        cell_top = new
    m = first + tl.arange(0, SOUNDS)
    tl.store(shares + image * M + m, top + tl.log(total), m < M)
    tl.store(over_cells + image * M + m, cell_top + tl.log(cell_total), m < M)


@triton.jit
def _at_products(
    at_shares, at_over_cells, shares, over_cells, over_sounds, taken,
    cells_which, cells_where, sounds_which, sounds_where, tau, image, first_cell, first_sound,
    P: tl.constexpr, M: tl.constexpr, D: tl.constexpr, GIVES: tl.constexpr,
    CELLS: tl.constexpr, SOUNDS: tl.constexpr, DEPTH: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """(CELLS, SOUNDS) float32, 0 outside: the gradient at the cosines over tau of a head; GIVES: 0 which, 1 where,
    2 what is the same in both."""
    p = first_cell + tl.arange(0, CELLS)
    m = first_sound + tl.arange(0, SOUNDS)
    cells, pairs = image * P + p, image * M + m
    which = cosines(
        cells_which, sounds_which, image, first_cell, first_sound, P, M, D, CELLS, SOUNDS, DEPTH, WIDEN
    ) / tau  # fmt: skip
    where = cosines(
        cells_where, sounds_where, image, first_cell, first_sound, P, M, D, CELLS, SOUNDS, DEPTH, WIDEN
    ) / tau  # fmt: skip
    # Outside, infinity: an exponential of minus that is 0.
    of_sounds = which - tl.load(over_sounds + cells, p < P, float("inf"))[:, None]
    found = tl.exp(of_sounds + where - tl.load(shares + pairs, m < M, float("inf"))[None, :])
    found = found * tl.load(at_shares + pairs, m < M, 0.0)[None, :]
    if GIVES == 0:
        found = found - tl.exp(of_sounds) * tl.load(taken + cells, p < P, 0.0)[:, None]
    if GIVES == 1:
        of_cells = tl.exp(where - tl.load(over_cells + pairs, m < M, float("inf"))[None, :])
        found = found + of_cells * tl.load(at_over_cells + pairs, m < M, 0.0)[None, :]
    return tl.where((p < P)[:, None] & (m < M)[None, :], found, 0.0)


@triton.jit
def _taken(
    at_shares, at_over_cells, shares, over_cells, over_sounds, taken,
    cells_which, cells_where, sounds_which, sounds_where, tau,
    P: tl.constexpr, M: tl.constexpr, D: tl.constexpr,
    CELLS: tl.constexpr, SOUNDS: tl.constexpr, DEPTH: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """CELLS cells of an image: what all their shares were given."""
    blocks: tl.constexpr = (P + CELLS - 1) // CELLS
    image, first = tl.program_id(0) // blocks, tl.program_id(0) % blocks * CELLS
    total = tl.zeros((CELLS,), tl.float32)
    for start in range(0, M, SOUNDS):
        total += tl.sum(
            _at_products(
                at_shares, at_over_cells, shares, over_cells, over_sounds, taken,
                cells_which, cells_where, sounds_which, sounds_where, tau, image, first, start,
                P, M, D, 2, CELLS, SOUNDS, DEPTH, WIDEN,
            ), 1
        )  # fmt: skip
    p = first + tl.arange(0, CELLS)
    tl.store(taken + image * P + p, total, p < P)


@triton.jit
def _to_cells(
    at_shares, at_over_cells, shares, over_cells, over_sounds, taken,
    cells_which, cells_where, sounds_which, sounds_where, tau, sounds, gradient,
    P: tl.constexpr, M: tl.constexpr, D: tl.constexpr, HEAD: tl.constexpr,
    CELLS: tl.constexpr, SOUNDS: tl.constexpr, DEPTH: tl.constexpr, OUT: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """OUT dimensions of the gradient at CELLS cells of an image, of one head, whose sounds are `sounds`."""
    blocks: tl.constexpr = (P + CELLS - 1) // CELLS
    image, first = tl.program_id(0) // blocks, tl.program_id(0) % blocks * CELLS
    d = tl.program_id(1) * OUT + tl.arange(0, OUT)
    total = tl.zeros((CELLS, OUT), tl.float32)
    for start in range(0, M, SOUNDS):
        at_products = _at_products(
            at_shares, at_over_cells, shares, over_cells, over_sounds, taken,
            cells_which, cells_where, sounds_which, sounds_where, tau, image, first, start,
            P, M, D, HEAD, CELLS, SOUNDS, DEPTH, WIDEN,
        )  # fmt: skip
        m = start + tl.arange(0, SOUNDS)
        y = tl.load(sounds + m.to(tl.int64)[:, None] * D + d[None, :], (m[:, None] < M) & (d[None, :] < D), 0.0)
        total = tl.dot(at_products, y.to(tl.float32), total, input_precision="ieee")
    p = first + tl.arange(0, CELLS)
    rows = (image * P + p).to(tl.int64)[:, None] * D
    out = (total / tau).to(gradient.dtype.element_ty)
    tl.store(gradient + rows + d[None, :], out, (p[:, None] < P) & (d[None, :] < D))


@triton.jit
def _to_sounds(
    at_shares, at_over_cells, shares, over_cells, over_sounds, taken,
    cells_which, cells_where, sounds_which, sounds_where, tau, cells, gradient,
    B: tl.constexpr, P: tl.constexpr, M: tl.constexpr, D: tl.constexpr, HEAD: tl.constexpr,
    CELLS: tl.constexpr, SOUNDS: tl.constexpr, DEPTH: tl.constexpr, OUT: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """OUT dimensions of the gradient at SOUNDS sounds, of one head, whose cells are `cells`."""
    first = tl.program_id(0) * SOUNDS
    d = tl.program_id(1) * OUT + tl.arange(0, OUT)
    total = tl.zeros((SOUNDS, OUT), tl.float32)
    for image in range(0, B):
        for start in range(0, P, CELLS):
            at_products = _at_products(
                at_shares, at_over_cells, shares, over_cells, over_sounds, taken,
                cells_which, cells_where, sounds_which, sounds_where, tau, image, start, first,
                P, M, D, HEAD, CELLS, SOUNDS, DEPTH, WIDEN,
            )  # fmt: skip
            p = start + tl.arange(0, CELLS)
            rows = (image * P + p).to(tl.int64)[:, None] * D
            x = tl.load(cells + rows + d[None, :], (p[:, None] < P) & (d[None, :] < D), 0.0)
            total = tl.dot(tl.trans(at_products), x.to(tl.float32), total, input_precision="ieee")
    m = first + tl.arange(0, SOUNDS)
    out = (total / tau).to(gradient.dtype.element_ty)
    tl.store(gradient + m.to(tl.int64)[:, None] * D + d[None, :], out, (m[:, None] < M) & (d[None, :] < D))


def factorise(features: list[Tensor], tau: float) -> tuple[Tensor, Tensor, Tensor]:
    """shares (B, M), over_cells (B, M) and over_sounds (B, P), float32."""
    cells_which, _, sounds_which, _ = features
    b, p, d = cells_which.shape
    m = len(sounds_which)
    shares = torch.empty(b, m, device=cells_which.device)
    over_cells, over_sounds = torch.empty_like(shares), shares.new_empty(b, p)
    sizes = {"P": p, "M": m, "D": d, "CELLS": CELLS, "SOUNDS": SOUNDS, "DEPTH": DEPTH, "WIDEN": INTERPRETED}
    launch(_over_sounds, (b * tiles_of(p, CELLS),), cells_which, sounds_which, over_sounds, tau, **sizes)
    launch(_shares, (b * tiles_of(m, SOUNDS),), *features, shares, over_cells, over_sounds, tau, **sizes)
    return shares, over_cells, over_sounds


def factorise_backward(
    above: list[Tensor], kept: list[Tensor], features: list[Tensor], tau: float,
    gradients: tuple[Tensor, ...], to_cells: bool, to_sounds: bool,
) -> None:  # fmt: skip
    """Fill those of the features' gradients that are asked for.

    above: the gradients at shares and over_cells. kept: what `factorise` gave.
    """
    b, p, d = features[0].shape
    m = len(features[2])
    taken = kept[2].new_empty(b, p)
    given = (*above, *kept, taken, *features, tau)
    sizes = {"P": p, "M": m, "D": d, "DEPTH": DEPTH, "WIDEN": INTERPRETED}
    launch(_taken, (b * tiles_of(p, CELLS),), *given, **sizes, CELLS=CELLS, SOUNDS=SOUNDS)
    for head in (0, 1):
        if to_cells:
            launch(
                _to_cells, (b * tiles_of(p, SUMMED), tiles_of(d, OUT)), *given, features[2 + head], gradients[head],
                **sizes, HEAD=head, CELLS=SUMMED, SOUNDS=STEP, OUT=OUT, num_warps=8,
            )  # fmt: skip
        if to_sounds:
            launch(
                _to_sounds, (tiles_of(m, SUMMED), tiles_of(d, OUT)), *given, features[head], gradients[2 + head],
                **sizes, B=b, HEAD=head, CELLS=STEP, SOUNDS=SUMMED, OUT=OUT, num_warps=8,
            )  # fmt: skip
