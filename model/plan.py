"""What a run will take, in memory and time, found out before it starts."""

import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from configs.errors import UserError
from configs.schema import RunConfig
from model.base import Progress
from model.build import build_objective, without_initial_weights
from model.objective import Objective, as_configured
from model.optim import build_optimizer
from pipeline.batch import Batch

_SMALL = 4
"""Clips of the batches that operations and saved tensors are counted on."""
_CPU_BATCH = 16
"""Clips of the timed batches on a CPU, where larger ones are not faster."""
_WARM_UP_STEPS, _STEPS, _TIME_S = 2, 10, 30.0
_GB = 1e9


class _SavedBytes:
    """Bytes that a forward pass keeps for the backward pass, each memory block once, parameters apart."""

    def __init__(self, objective: Objective) -> None:
        self._own = {tensor.untyped_storage().data_ptr() for tensor in objective.state_dict().values()}

    def of(self, objective: Objective, batch: Batch, weights: torch.Tensor) -> int:
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            block = tensor.untyped_storage()
            if block.data_ptr() not in self._own:
                kept[block.data_ptr()] = block.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            losses = objective(batch, weights)  # alive until the end, so that no address is used twice
        del losses
        return sum(kept.values())


def count_flops(objective: Objective, batch: Batch, weights: torch.Tensor) -> tuple[float, float]:
    """Floating-point operations a clip of the forward pass, and of forward and backward pass together.

    Matrix products and convolutions count, a multiplication and an addition as two; everything else does not.
    """
    clips = len(batch.clip_id)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        objective(batch, weights)
    with FlopCounterMode(display=False) as both:
        objective(batch, weights).total.backward()
    return forward.get_total_flops() / clips, both.get_total_flops() / clips


def time_steps(
    config: RunConfig, objective: Objective, batch: Batch, weights: torch.Tensor, device: torch.device
) -> list[float]:
    """Seconds of up to ten training steps on one batch after two others, or as many as half a minute allows."""
    optimizer = build_optimizer(config.optim, objective.model.param_groups())
    run = as_configured(objective, config, device, ranks=1)
    progress = Progress(step=0, epoch=0.0, total_steps=1)
    seconds: list[float] = []
    began = time.perf_counter()
    for step in range(_WARM_UP_STEPS + _STEPS):
        begin = time.perf_counter()
        objective.model.before_step(progress)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
            losses = run(batch, weights)
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        objective.model.after_step(progress)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if step >= _WARM_UP_STEPS:
            seconds.append(time.perf_counter() - begin)
        if len(seconds) > 2 and time.perf_counter() - began > _TIME_S:
            break
    return seconds


def print_plan(
    config: RunConfig,
    device: torch.device,
    console: Console,
    *,
    batch_of: Callable[..., Batch],
    sizes_of: Callable[..., dict[str, int]],
    free_bytes: Callable[[torch.device], int],
) -> None:
    """Measure and print. batch_of(data, inputs, clips, device): noise of the shapes of a training batch.
    sizes_of(data, inputs): clips and bytes of the store. free_bytes(device): memory that is free now.
    """
    objective = build_objective(without_initial_weights(config.model)).to(device).train()
    if config.train.channels_last:
        objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    spec, data = objective.model.inputs, config.data
    free = free_bytes(device)
    weights = objective.weights_at(Progress(step=0, epoch=float("inf"), total_steps=1), device)
    parameters = list(objective.parameters())
    trained = sum(each.numel() for each in parameters if each.requires_grad)

    table = Table("what", "how much", "how it was found", title=f"{config.model.name} on {device}")
    table.add_row("parameters, all", f"{sum(each.numel() for each in parameters) / 1e6:.2f} M", "counted")
    table.add_row("parameters, trained", f"{trained / 1e6:.2f} M", "counted")
    small, double = (batch_of(data, spec, clips, device) for clips in (_SMALL, 2 * _SMALL))
    forward, both = count_flops(objective, small, weights)
    counted = f"products and convolutions of {_SMALL} clips; a multiplication and an addition are two"
    table.add_row("forward pass", f"{forward / 1e9:.2f} GFLOP a clip", counted)
    table.add_row("training step", f"{both / 1e9:.2f} GFLOP a clip", counted)

    with torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
        saved = _SavedBytes(objective)
        one, two = saved.of(objective, small, weights), saved.of(objective, double, weights)
    activations = one + (two - one) / _SMALL * (data.batch_size - _SMALL)
    table.add_row(
        "activations", f"{activations / _GB:.2f} GB",
        f"kept for the backward pass of {_SMALL} and {2 * _SMALL} clips, not compiled; as a line to {data.batch_size}",
    )  # fmt: skip
    slots = {"adam": 2, "adamw": 2, "sgd": 1}[config.optim.name]
    state = sum(tensor.nbytes for tensor in objective.state_dict().values())
    fixed = state * (2 if config.train.ema else 1) + 4 * trained * (1 + slots)
    table.add_row("weights, gradients, optimizer", f"{fixed / _GB:.2f} GB", "counted")
    needed = activations + fixed
    clips = _add_data(table, config, objective, sizes_of)
    if data.loader.name == "resident" and clips and getattr(data.loader, "memory", "") == "device":
        needed += clips["decoded"]

    timed_clips = data.batch_size if device.type == "cuda" else min(_CPU_BATCH, data.batch_size)
    try:
        seconds = time_steps(config, objective, batch_of(data, spec, timed_clips, device), weights, device)
    except torch.OutOfMemoryError:
        table.add_row("training rate", "not measured", f"a batch of {timed_clips} clips does not fit into {device}")
        needed = max(needed, free + 1)
    else:
        rates = sorted(timed_clips / each for each in seconds)
        rate = statistics.median(rates)
        how = f"{config.train.precision}, {'compiled' if config.train.compile else 'not compiled'}"
        table.add_row(
            "training rate", f"{rate:.1f} clips/s ({rates[0]:.1f} to {rates[-1]:.1f})",
            f"median and range of {len(rates)} steps on {timed_clips} clips of noise, {how}",
        )  # fmt: skip
        if clips:
            epoch_s = clips["clips"] / rate
            table.add_row("an epoch", f"{epoch_s / 60:.1f} min", "at this rate, if data is never waited for")
            table.add_row("the run", f"{config.train.epochs * epoch_s / 3600:.1f} h", "without scoring")
        if device.type == "cuda":
            measured = torch.cuda.max_memory_allocated(device)
            table.add_row("peak of these steps", f"{measured / _GB:.2f} GB", "measured")
            needed = max(needed, measured)
    verdict = "yes" if needed < 0.9 * free else "tight" if needed < free else "no"
    table.add_row("fits", verdict, f"{needed / _GB:.2f} GB of {free / _GB:.2f} GB that were free on {device}")
    console.print(table)


def _add_data(
    table: Table, config: RunConfig, objective: Objective, sizes_of: Callable[..., dict[str, int]]
) -> dict[str, int] | None:
    """Rows on the store; None if there is none yet, which planning can do without."""
    if config.data.store is None:
        return None
    try:
        sizes = sizes_of(config.data, objective.model.inputs)
    except UserError as error:
        table.add_row("store", "none yet", str(error))
        return None
    table.add_row("store", f"{sizes['store'] / _GB:.2f} GB", f"{config.data.store}, all splits, on disk")
    what = f"{sizes['clips']} clips of split '{config.data.train_split}', for data.loader=resident"
    table.add_row("training clips, decoded", f"{sizes['decoded'] / _GB:.2f} GB", what)
    return sizes
