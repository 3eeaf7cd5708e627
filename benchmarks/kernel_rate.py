"""Question: what do the losses over all pairs cost, in time and memory, with the map of all pairs and without it?

Method: forward and backward pass of the largest cosine and of the soft mean over B images against B sounds, on noise of
unit length, in each form: plain, plain compiled, chunked, fused. The ceiling is the matrix products alone, one for the
forward pass and two for the backward pass, of the same sizes and types, in the same run. Memory is what a form adds at
its peak to features and gradients; a CPU gives none, and runs small sizes without the fused form, which needs a GPU.
A good answer: where the map passes a gibibyte (`model.similarity.MAP_BYTES`), fused no slower than plain, and in little
more memory than the gradients of the features take. If fused wins below, or chunked wins above, the choice in
`model.similarity.images_at_a_time` should move.
"""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.harness import measure, report, time_left_s
from benchmarks.options import chosen_device, device_option
from configs.errors import UserError
from model.kernels.pooled_pairs import chunk_images, pooled_pairs
from model.similarity import all_pairs_max, all_pairs_soft_mean, choose_fused_pairs

_POOLINGS: dict[str, list[float]] = {"max": [], "soft mean": [0.65, 0.03]}
QUICK: dict[str, Any] = {"device": "cpu", "batch_sizes": [32]}
GPU: dict[str, Any] = {"device": "cuda", "batch_sizes": [256, 1024, 4096]}
_SIZES = {"cpu": ((32, 64), (49,)), "cuda": ((256, 512, 1024, 2048, 4096), (49, 196))}


def add_options(parser: Any) -> None:
    """The options of this benchmark."""
    device_option(parser)
    parser.add_argument("--batch-sizes", type=int, nargs="+", help="default: 256 to 4096; on a CPU 32 and 64")
    parser.add_argument("--cells", type=int, nargs="+", help="default: 49 and 196; on a CPU 49")
    parser.add_argument("--dim", type=int, default=512, help="of the features; default 512")


def run(
    store: Path,
    rounds: int,
    out: Path | None,
    device: str = "auto",
    batch_sizes: list[int] | None = None,
    cells: list[int] | None = None,
    dim: int = 512,
) -> None:
    """Measure, print, and append rows to `out`. No store is read."""
    place = chosen_device(device).type
    if min(dim, *(batch_sizes or [1]), *(cells or [1])) <= 0:
        raise UserError("--batch-sizes, --cells and --dim must be above 0")
    if place == "cpu":
        Console().print("no GPU: the fused form and peak memory are not measured", soft_wrap=True)
        torch.set_num_threads(1)
    defaults = _SIZES[place]
    sizes = product(cells or defaults[1], batch_sizes or defaults[0], _POOLINGS.items())
    for number, (p, b, (pooling, soft)) in enumerate(sizes):
        if number and time_left_s() < 0:
            Console().print(f"no time was left for {pooling}, B {b}, {p} cells")
            continue
        _measure(pooling, soft, b, p, dim, torch.device(place), rounds, out)
    choose_fused_pairs("auto", torch.device(place))


def _measure(
    pooling: str, soft: list[float], b: int, p: int, dim: int, device: torch.device, rounds: int, out: Path | None
) -> None:
    # As encoders leave them: a cell's features side by side.
    images = normalize(torch.randn(b, p, dim, device=device), dim=2).mT.unflatten(2, (p, 1)).requires_grad_()
    sounds = normalize(torch.randn(b, dim, device=device), dim=1).requires_grad_()
    rows = images.detach().flatten(2).mT.flatten(0, 1)
    chunk = chunk_images(images.flatten(2).mT, sounds)

    def plain(x: Tensor, y: Tensor) -> Tensor:
        return all_pairs_soft_mean(x, y, *soft) if soft else all_pairs_max(x, y)

    def step(form: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], int]:
        def both() -> int:
            torch.autograd.grad(form(images, sounds).sum(), (images, sounds))
            return _finished(b, device)

        return both

    def products() -> int:
        y = sounds.detach()
        at_products = rows @ y.T
        _ = at_products @ y, at_products.T @ rows
        return _finished(b, device)

    def in_chunks(x: Tensor, y: Tensor) -> Tensor:
        return pooled_pairs(x.flatten(2).mT, y, soft, chunk)

    def fused(x: Tensor, y: Tensor) -> Tensor:
        return pooled_pairs(x.flatten(2).mT, y, soft, 0)

    choose_fused_pairs("never", device)
    torch.compiler.reset()  # every size is a new graph, and there is a limit to them
    forms = {
        "products": products,
        "plain": step(plain),
        "plain compiled": step(torch.compile(plain, fullgraph=True, dynamic=False)),
        "chunked": step(in_chunks),
    }
    if device.type == "cuda":
        forms["fused"] = step(fused)
    notes = {"products": "the ceiling", "chunked": f"{min(chunk, b)} images at a time"}
    variants: dict[str, Callable[[], int]] = {}
    for name, form in forms.items():
        added = _peak_gb(form, device)
        if added is None:
            Console().print(f"{name}, {pooling}, B {b}, {p} cells: does not fit into the memory of {device}")
            continue
        variants[name] = form
        if device.type == "cuda":
            notes[name] = f"{notes.get(name, '')} {added:.3f} GB".strip()
    figures = measure("kernel_rate", variants, rounds, notes, device=device)
    flop = 3 * 2 * b * b * p * dim
    facts = {"pooling": pooling, "batch": b, "cells": p, "dim": dim, "GFLOP": round(flop / 1e9, 1)}
    about = f"{pooling}, B {b}, {p} cells"
    report(
        figures, "products" if "products" in variants else None, out, facts | {"device": device.type}, "plain", about
    )
    ceiling = next((figure.value for figure in figures if figure.variant == "products"), None)
    for figure in figures:
        ms, rate = 1000 * b / figure.value, flop * figure.value / b / 1e12
        share = f", {figure.value / ceiling:.0%} of the products' rate" if ceiling else ""
        Console().print(f"{figure.variant}: {ms:.2f} ms, {rate:.2f} TFLOP/s{share}", highlight=False)


def _finished(clips: int, device: torch.device) -> int:
    """The clips, once the device has worked off what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clips


def _peak_gb(form: Callable[[], int], device: torch.device) -> float | None:
    """GB that a form adds at its peak, gradients of the features included; None if they are not there. 0 on a CPU."""
    if device.type != "cuda":
        return 0.0
    try:
        form()  # compiles, too
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        form()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None
    return (torch.cuda.max_memory_allocated(device) - before) / 1e9
