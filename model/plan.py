"""What a run will take, in memory and time, found out before it starts: here, or estimated for a GPU by its name."""

import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

from configs.errors import UserError
from configs.schema import RunConfig
from model.base import Progress
from model.build import build_objective, without_initial_weights
from model.objective import Objective, as_configured
from model.optim import build_optimizer
from model.work import GPU, MATRIX_SHARE, PASSES, TUNED, count_work, find_gpu
from pipeline.batch import Batch

_CPU_BATCH = 16
"""Clips of the timed batches on a CPU, where larger ones are not faster."""
LATE = Progress(step=0, epoch=1e9, total_steps=1)
"""When every loss has joined."""
_WARM_UP_STEPS, _STEPS, _TIME_S = 2, 10, 30.0
_GB = 1e9
_LISTED_CLIPS = 144_000
"""Clips of the field's usual training list: what an epoch is told for when no store is at hand."""


class TrainingStep:
    """A step of a run, as often as it is called, with the losses that join later; timed where no run is wanted."""

    def __init__(self, config: RunConfig, objective: Objective, device: torch.device) -> None:
        self.model, self.device = objective.model, device
        self.bf16 = config.train.precision == "bf16"
        self.forward = as_configured(objective, config, device, ranks=1)
        self.optimizer = build_optimizer(config.optim, objective.model.param_groups())
        self.weights = objective.weights_at(LATE, device)

    def __call__(self, batch: Batch) -> None:
        self.model.before_step(LATE)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            losses = self.forward(batch, self.weights)
        losses.total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.after_step(LATE)


def time_steps(config: RunConfig, objective: Objective, batch: Batch, device: torch.device) -> list[float]:
    """Seconds of ten training steps on one batch after two others; of fewer, but three, if half a minute has passed."""
    take = TrainingStep(config, objective, device)
    seconds: list[float] = []
    began = time.perf_counter()
    for step in range(_WARM_UP_STEPS + _STEPS):
        begin = time.perf_counter()
        take(batch)
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
    gpu: str | None = None,
) -> int:
    """Measure and print; the exit code. batch_of(data, inputs, clips, device): noise of the shapes of a training batch.
    sizes_of(data, inputs): clips and bytes of the store. free_bytes(device): memory that is free now.

    gpu: estimate for a GPU of this name instead, and measure nothing. Raises: UserError if it is not known.
    """
    named = None if gpu is None else find_gpu(gpu)
    objective = build_objective(without_initial_weights(config.model)).to(device).train()
    if config.train.channels_last:
        objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    spec, data = objective.model.inputs, config.data
    free = named.memory_bytes if named else free_bytes(device)
    parameters = list(objective.parameters())
    trained = sum(each.numel() for each in parameters if each.requires_grad)

    table = Table("what", "how much", "how it was found", title=f"{config.model.name} on {gpu or device}")
    table.add_row("parameters, all", f"{sum(each.numel() for each in parameters) / 1e6:.2f} M", "counted")
    table.add_row("parameters, trained", f"{trained / 1e6:.2f} M", "counted")
    clips = data.batch_size
    work = count_work(config, batch_of(data, spec, 1, torch.device("cpu")))
    counted = "matrix products and convolutions; a multiplication and an addition are two"
    table.add_row("forward pass", f"{work.forward_flops.total() / clips / 1e9:.2f} GFLOP a clip", counted)
    table.add_row("training step", f"{work.flops.total() / clips / 1e9:.2f} GFLOP a clip", counted)
    kept = f"kept for the backward pass of {clips} clips, not compiled; counted"
    table.add_row("activations", f"{work.kept_bytes / _GB:.2f} GB", kept)
    slots = {"adam": 2, "adamw": 2, "sgd": 1}[config.optim.name]
    state = sum(tensor.nbytes for tensor in objective.state_dict().values())
    fixed = state * (2 if config.train.ema else 1) + 4 * trained * (1 + slots)
    table.add_row("weights, gradients, optimizer", f"{fixed / _GB:.2f} GB", "counted")
    needed = work.kept_bytes + fixed
    sizes = _add_data(table, config, objective, sizes_of)
    if data.loader.name == "resident" and sizes and getattr(data.loader, "memory", "") == "device":
        needed += sizes["decoded"]
    if named:
        _add_estimate(table, config, work.seconds(named) / clips, named, sizes)
    else:
        needed = max(needed, _add_measurement(table, config, objective, batch_of, device, free, sizes))
    verdict = "yes" if needed < 0.9 * free else "tight" if needed < free else "no"
    where = f"of {gpu}" if named else f"that were free on {device}"
    table.add_row("fits", verdict, f"{needed / _GB:.2f} GB of {free / _GB:.2f} GB {where}")
    console.print(table)
    return 0


def _add_estimate(table: Table, config: RunConfig, clip_s: float, gpu: GPU, sizes: dict[str, int] | None) -> None:
    """Rows on the rate of a GPU that is not at hand. clip_s: what the model says; sizes: of the store, if any."""
    clips = sizes["clips"] if sizes else _LISTED_CLIPS
    low, high = (share / clip_s for share in TUNED)
    table.add_row(
        "training rate", f"{low:.0f} to {high:.0f} clips/s",
        f"estimated, not measured: {TUNED[0]} to {TUNED[1]} of a model, convolutions at {MATRIX_SHARE:.0%} of "
        f"{gpu.flops_per_s / 1e12:.0f} TFLOP/s in bf16, half of it in float32, then {PASSES[0]:g} passes forward "
        f"and {PASSES[1]:g} backward over their outputs at {gpu.bytes_per_s / 1e12:.1f} TB/s; "
        "many small kernels, as of slot attention, cost more",
    )  # fmt: skip
    how = "estimated, not measured, without scoring or waiting for data"
    of = f"{clips:,} clips" + ("" if sizes else ", taken for want of a store: this list may have fewer or more")
    epochs = config.train.epochs
    table.add_row("an epoch", f"{_short(clips / high)} to {_short(clips / low)} s", f"{of}; {how}")
    run_min = epochs * clips / 60
    table.add_row("the run", f"{_short(run_min / high)} to {_short(run_min / low)} min", f"{epochs} epochs; {how}")


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _add_measurement(
    table: Table,
    config: RunConfig,
    objective: Objective,
    batch_of: Callable[..., Batch],
    device: torch.device,
    free: float,
    sizes: dict[str, int] | None,
) -> float:
    """Rows on the rate of this device; returns the bytes that the steps took, 0 where that is not known."""
    data, spec, needed = config.data, objective.model.inputs, 0.0
    timed_clips = data.batch_size if device.type == "cuda" else min(_CPU_BATCH, data.batch_size)
    try:
        seconds = time_steps(config, objective, batch_of(data, spec, timed_clips, device), device)
    except torch.OutOfMemoryError:
        table.add_row("training rate", "not measured", f"a batch of {timed_clips} clips does not fit into {device}")
        needed = free + 1
    else:
        rates = sorted(timed_clips / each for each in seconds)
        rate = statistics.median(rates)
        how = f"{config.train.precision}, {'compiled' if config.train.compile else 'not compiled'}"
        table.add_row(
            "training rate", f"{rate:.1f} clips/s ({rates[0]:.1f} to {rates[-1]:.1f})",
            f"median and range of {len(rates)} steps on {timed_clips} clips of noise, {how}",
        )  # fmt: skip
        if sizes:
            epoch_s = sizes["clips"] / rate
            table.add_row("an epoch", f"{epoch_s / 60:.1f} min", "at this rate, if data is never waited for")
            table.add_row("the run", f"{config.train.epochs * epoch_s / 3600:.1f} h", "without scoring")
        if device.type == "cuda":
            measured = torch.cuda.max_memory_allocated(device)
            table.add_row("peak of these steps", f"{measured / _GB:.2f} GB", "measured")
            needed = measured
    return needed


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
