"""Question: what does a training step of each method cost, how much of it is the losses, and what is possible?

Method: forward pass, losses and backward pass of the network of the preset METHOD_vggsound144k, without its downloads,
on one batch of noise of the preset's shapes, as often as there are rounds, in turn with three parts of it. Encoders:
the same calls of the encoders alone, with their gradients. Network: all but the losses. Published: the step with its
losses as the authors' code writes them (`benchmarks.published_losses`), for methods where that differs. Compiled: the
step as `train.compile` runs it, on a GPU. Real: the step on clips of the store, read once and replayed; a store without
what the method needs is named. Optimizer and loading are not in it. Memory is what the forward pass keeps for the
backward pass, weights apart, and on a GPU the peak of a step.
The roofline is the time that the convolutions and matrix products of the step take at the rates of `ceilings`, measured
in the same run: each the longer of its operations at the rate of matrix products in the same precision, and of its
inputs and results at the rate of copies, each byte moved once. All between them counts as free.
A good answer: encoders above nine tenths of the step, losses below a hundredth at batch 128 on a GPU, no step slower or
larger than with the published losses, real clips as fast as noise; on a GPU, compiled in bf16, a third of the roofline.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.ceilings import device_copy, matrix_products
from benchmarks.harness import Figure, measure, report, time_left_s, times
from benchmarks.loader_rate import split_of
from benchmarks.options import chosen_device, chosen_methods, device_option, methods_option
from benchmarks.published_losses import PUBLISHED
from configs.allocator import keep_freed_memory
from configs.errors import UserError
from configs.load import load_config
from configs.schema import component_config
from model.base import Loss
from model.build import build_objective, without_initial_weights
from model.objective import Objective
from model.work import kept_for_backward
from pipeline.batch import Batch, InputSpec
from pipeline.loader import build_loader
from pipeline.sizes import synthetic_batch
from pipeline.store import Store

QUICK: dict[str, Any] = {"methods": ["ez_vsl"], "size": 112, "batch": 4, "device": "cpu"}
GPU: dict[str, Any] = {"batch": 256, "precision": "bf16", "device": "cuda"}


def add_options(parser: Any) -> None:
    """The options of this benchmark."""
    methods_option(parser)
    parser.add_argument("--size", type=int, default=224, help="of the pictures, px; default 224")
    parser.add_argument("--batch", type=int, help="clips; default: 128 on a GPU, 8 on a CPU")
    device_option(parser)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"], help="default fp32")


def run(
    store: Path,
    rounds: int,
    out: Path | None,
    methods: list[str] | None = None,
    size: int = 224,
    batch: int | None = None,
    device: str = "auto",
    precision: str = "fp32",
) -> None:
    """Measure, print, and append rows to `out`."""
    chosen = chosen_methods(methods)
    place = chosen_device(device)
    clips = batch or (128 if place.type == "cuda" else 8)
    if min(clips, size) <= 0:
        raise UserError("--batch and --size must be above 0")
    keep_freed_memory()
    limits = _measure_limits(precision, place, rounds)
    facts = {"batch": clips, "size_px": size, "precision": precision, "threads": torch.get_num_threads()}
    for number, method in enumerate(chosen):
        if number and time_left_s() < 0:
            Console().print(f"no time was left for {method}")
            continue
        figures = _measure(method, size, clips, place, precision, rounds, store, limits)
        told = {"method": method, **facts, "device": place.type}
        report(figures, "roofline", out, told, field="published", about=method)


def _measure_limits(precision: str, device: torch.device, rounds: int) -> tuple[Figure, Figure]:
    """The rates of matrix products (on a GPU in TF32 for fp32, as its convolutions compute) and of copies."""
    kind = "tf32" if precision == "fp32" and device.type == "cuda" else precision
    products = {f"products, {kind}": matrix_products(kind, device)}
    copies = {"copy": device_copy(device)}
    (product,) = measure("step_rate", products, rounds, unit="TFLOP/s", device=device)
    (copy,) = measure("step_rate", copies, rounds, unit="GB/s", device=device)
    return product, copy


def _measure(
    method: str,
    size: int,
    clips: int,
    device: torch.device,
    precision: str,
    rounds: int,
    store: Path,
    limits: tuple[Figure, Figure],
) -> list[Figure]:
    config = load_config([f"{method}_vggsound144k", f"data.image.size_px={size}"])
    torch.manual_seed(0)
    ours = build_objective(without_initial_weights(with_few_neighbours(config.model, clips)))
    ours.train().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    published = Objective(ours.model, {name: published_loss(loss) for name, loss in ours.losses.items()})
    given = synthetic_batch(config.data, ours.model.inputs, clips, device)
    weights = torch.ones(len(ours.losses), device=device)

    def autocast() -> Any:
        return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")

    def stepped(total: Callable[[Batch], Tensor], batch: Batch = given) -> Callable[[], int]:
        def step() -> int:
            with autocast():
                value = total(batch)
            value.backward()
            ours.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return clips

        return step

    with autocast():
        calls = encoder_calls(ours.model, given)
    variants = {
        "step": stepped(lambda batch: ours(batch, weights).total),
        "network": stepped(lambda batch: _sum(ours.model(batch).values())),
        "encoders": stepped(lambda batch: _sum(_again(calls))),
    }
    if device.type == "cuda":
        compiled: Any = torch.compile(ours, fullgraph=True)
        variants["compiled"] = stepped(lambda batch: compiled(batch, weights).total)
    if set(ours.losses) & set(PUBLISHED):
        variants["published"] = stepped(lambda batch: published(batch, weights).total)
    real = _real_batch(config, ours.model.inputs, clips, device, store)
    if real is not None:
        variants["real"] = stepped(lambda batch: ours(batch, weights).total, real)
    memory = {name: _memory(ours, step, device) for name, step in variants.items()}
    with Work() as work:
        variants["step"]()
    figures = measure("step_rate", variants, rounds, memory, device=device)
    whole = next(figure for figure in figures if figure.variant == "step")
    roofline = _roofline(whole, work, clips, limits)
    return [roofline, *(replace(each, note=f"{times(whole, each):.1%} of the step, {each.note}") for each in figures)]


def _real_batch(config: Any, inputs: InputSpec, clips: int, device: torch.device, store: Path) -> Batch | None:
    """The first training batch of the store; None, and why, where it cannot serve the method."""
    try:
        with Store(store) as opened:
            split = split_of(opened)
            found = len(opened.select(split))
        if found < clips:
            raise UserError(f"split '{split}' of {store} has {found} clips, fewer than a batch of {clips}")
        options = {
            "store": store,
            "exclude": None,
            "loader": component_config("pipeline.loaders", "synthetic", {"batches": 1}),
        }
        data = config.data.model_copy(update=options)
        loader = build_loader(data, inputs, split, train=True, device=device, batch_size=clips)
    except UserError as error:
        Console().print(f"{config.model.name}: not on real clips: {error}", soft_wrap=True)
        return None
    try:
        return next(iter(loader))
    finally:
        loader.close()


class Work(TorchDispatchMode):
    """Counts what happens inside: `calls` holds (floating-point operations, bytes of inputs and results) of every
    convolution and matrix product, backward passes included.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            moved = [each for each in tree_leaves((args, kwargs, found)) if isinstance(each, Tensor)]
            self.calls.append((formula(*args, **(kwargs or {}), out_val=found), sum(each.nbytes for each in moved)))
        return found


def _roofline(whole: Figure, work: Work, clips: int, limits: tuple[Figure, Figure]) -> Figure:
    """The figure of a step that consists of its convolutions and matrix products at the machine's rates."""
    product, copy = limits

    def seconds(tera_a_second: float, giga_a_second: float) -> float:
        return sum(max(flop / tera_a_second / 1e12, moved / giga_a_second / 1e9) for flop, moved in work.calls)

    flop, moved = (sum(column) for column in zip(*work.calls))
    value = clips / seconds(product.value, copy.value)
    # The same rates in CPU time: what is done in a second of it.
    cpu_ms = 1000 * seconds(1000 / max(product.cpu_ms, 1e-9), 1000 / max(copy.cpu_ms, 1e-9)) / clips
    return replace(
        whole,
        variant="roofline",
        value=value,
        value_interval=value * product.value_interval / product.value,
        cpu_ms=cpu_ms,
        cpu_ms_interval=cpu_ms * product.cpu_ms_interval / max(product.cpu_ms, 1e-9),
        gpu_ms=None,
        gpu_peak_mb=None,
        note=f"{flop / clips / 1e9:.2f} GFLOP and {moved / clips / 1e6:.1f} MB a clip",
    )


def with_few_neighbours(config: Any, clips: int) -> Any:
    """The config, fit for batches smaller than the published ones: JSA's neighbours must leave a negative."""
    losses = {
        name: loss.model_copy(update={"neighbours": min(loss.neighbours, max(1, clips - 1))})
        if hasattr(loss, "neighbours")
        else loss
        for name, loss in config.losses.items()
    }
    return config.model_copy(update={"losses": losses})


class _Published(Loss):
    """A published form in the place of our loss."""

    def __init__(self, loss: Any, form: Callable[..., Tensor]) -> None:
        super().__init__(loss.config)
        self.needs, self.form = loss.needs, form

    def forward(self, **outputs: Tensor) -> Tensor:
        return self.form(self.config, **outputs)


def published_loss(loss: Any) -> Loss:
    form = PUBLISHED.get(loss.config.name)
    return _Published(loss, form) if form else loss


def encoder_calls(model: nn.Module, batch: Batch) -> list[tuple[Any, Tensor, bool]]:
    """What a forward pass asks of its encoders, in its order: module, input, whether gradients are kept."""
    calls: list[tuple[Any, Tensor, bool]] = []
    handles = [
        module.register_forward_pre_hook(
            lambda called, values: calls.append((called, values[0].detach(), torch.is_grad_enabled()))
        )
        for name, module in model.named_modules()
        if name.endswith("_encoder")
    ]
    model(batch)
    for handle in handles:
        handle.remove()
    return calls


def _again(calls: list[tuple[Any, Tensor, bool]]) -> Iterator[Tensor]:
    for module, values, graded in calls:
        with torch.set_grad_enabled(graded):
            yield module(values)


def _sum(values: Any) -> Tensor:
    return torch.stack([value.float().sum() for value in values]).sum()


def _memory(objective: nn.Module, step: Callable[[], int], device: torch.device) -> str:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with kept_for_backward(objective) as kept:
        step()
    said = f"keeps {sum(kept.values()) / 1e6:.0f} MB"
    return said + (f", peak {torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB" if device.type == "cuda" else "")
