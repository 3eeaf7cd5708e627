"""Question: what does each loss of each method cost, and is it the matrix products or what surrounds them?

Method: forward and backward pass of every loss by itself, on outputs of the shapes that the method of the preset
METHOD_vggsound144k gives it, blown up to the batch size asked for and to 7 x 7 or 14 x 14 cells. The ceiling is one
matrix product of as many operations as torch counts in the pass; a loss without any has none. The field's way is the
loss as the authors' code writes it (`benchmarks.published_losses`), where that differs.
A good answer: not slower than the published form. On a GPU at batch 128 the losses together below a hundredth of the
step (see `step_rate`); their share of the ceiling says how much a fused kernel could still give (see `kernel_rate`).
"""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import measure, report, time_left_s
from benchmarks.options import chosen_device, chosen_methods, device_option, methods_option
from benchmarks.published_losses import PUBLISHED
from configs.allocator import keep_freed_memory
from configs.errors import UserError
from configs.load import load_config
from model.base import Loss
from model.build import build_objective, without_initial_weights
from pipeline.sizes import synthetic_batch

QUICK: dict[str, Any] = {"methods": ["ez_vsl", "lvs", "slavc"], "batch": 32, "sides": [7], "device": "cpu"}
GPU: dict[str, Any] = {"batch": 256, "device": "cuda"}
_CLIPS = (2, 3)
"""Batches that pass through the networks: two, so that the axis of the batch shows."""
_PROBE_PX = 112


def add_options(parser: Any) -> None:
    """The options of this benchmark."""
    methods_option(parser)
    parser.add_argument("--batch", type=int, default=128, help="clips; default 128")
    parser.add_argument("--sides", type=int, nargs="+", default=[7, 14], help="cells a side of the map; default 7 14")
    device_option(parser)


def run(
    store: Path,
    rounds: int,
    out: Path | None,
    methods: list[str] | None = None,
    batch: int = 128,
    sides: list[int] | tuple[int, ...] = (7, 14),
    device: str = "auto",
) -> None:
    """Measure, print, and append rows to `out`. No store is read."""
    chosen = chosen_methods(methods)
    if batch < max(_CLIPS):
        raise UserError(f"--batch must be at least {max(_CLIPS)}, found {batch}")
    place = chosen_device(device)
    keep_freed_memory()
    torch.set_num_threads(1)
    for number, (method, side) in enumerate(product(chosen, sides)):
        if number and time_left_s() < 0:
            Console().print(f"no time was left for {method} at {side} x {side} cells")
            continue
        _measure(method, side, batch, place, rounds, out)


def _measure(method: str, side: int, batch: int, device: torch.device, rounds: int, out: Path | None) -> None:
    losses, outputs = outputs_of(method, side, batch, device)
    for name, loss in losses.items():
        given = {need: outputs[need] for need in loss.needs}
        graded = [value for value in given.values() if value.requires_grad]

        def ours(loss: Loss = loss, given: dict[str, Tensor] = given, graded: list[Tensor] = graded) -> float:
            torch.autograd.grad(loss(**given), graded, allow_unused=True)
            return batch

        with FlopCounterMode(display=False) as counter:
            ours()
        flop = counter.get_total_flops()
        variants: dict[str, Callable[[], float]] = {}
        if flop:
            variants["one product"] = _one_product(flop, batch, device)
        variants["ours"] = ours
        form = PUBLISHED.get(loss.config.name)  # type: ignore[union-attr]
        if form is not None:

            def published(
                form: Any = form, loss: Loss = loss, given: dict[str, Tensor] = given, graded: list[Tensor] = graded
            ) -> float:
                torch.autograd.grad(form(loss.config, **given), graded, allow_unused=True)
                return batch

            variants["published"] = published
        figures = measure("loss_rate", variants, rounds, device=device)
        facts = {"method": method, "loss": name, "batch": batch, "cells": side * side, "GFLOP": round(flop / 1e9, 2)}
        report(
            figures,
            "one product" if flop else None,
            out,
            facts | {"device": device.type},
            field="published",
            about=f"{method} {name}, {side} x {side}",
        )


def outputs_of(method: str, side: int, batch: int, device: torch.device) -> tuple[dict[str, Loss], dict[str, Tensor]]:
    """The losses of a preset, and outputs for them of `batch` clips with maps of `side` x `side`."""
    config = load_config([f"{method}_vggsound144k"])
    torch.manual_seed(0)
    objective = build_objective(without_initial_weights(config.model)).to(device)
    objective.eval()  # no batch statistics: outputs of few clips must look like those of many

    @torch.no_grad()
    def outputs(clips: int, size_px: int) -> dict[str, Tensor]:
        data = config.data.model_copy(update={"image": config.data.image.model_copy(update={"size_px": size_px})})
        return objective.model(synthetic_batch(data, objective.model.inputs, clips, device))

    maps = [value for value in outputs(_CLIPS[0], _PROBE_PX).values() if value.ndim >= 4]
    # A method that gives no map (JSA gives slots) has a cell every 32 px.
    size_px = _PROBE_PX * side // maps[0].shape[-1] if maps else 32 * side
    few, more = (outputs(clips, size_px) for clips in _CLIPS)
    losses: Any = dict(objective.losses.items())
    return losses, {name: _grown(few[name], more[name], batch) for name in few}


def _grown(few: Tensor, more: Tensor, batch: int) -> Tensor:
    """`few` repeated along the axis of the batch, which is where `more` is longer, with noise on it."""
    axes = [axis for axis, (a, b) in enumerate(zip(few.shape, more.shape)) if a != b]
    grown = few
    for axis in axes:
        grown = torch.cat([grown] * -(-batch // few.shape[axis]), axis).narrow(axis, 0, batch)
    if not few.is_floating_point():
        return grown.contiguous()
    noise = 0.1 * few.float().std(correction=0) if axes else torch.zeros((), device=few.device)
    return (grown + noise * torch.randn_like(grown)).contiguous().requires_grad_()


def _one_product(flop: int, batch: int, device: torch.device) -> Callable[[], float]:
    """A matrix product of so many operations, with the batch as its rows and 512 summands, as all pairs have."""
    left = torch.randn(batch, 512, device=device)
    right = torch.randn(512, max(1, round(flop / (2 * batch * 512))), device=device)

    def run() -> float:
        _ = left @ right
        return batch

    return run
