"""Question: what does a training step of each method cost, and how much of it is the encoders and how much the losses?

Method: forward pass, losses and backward pass of the network of the preset METHOD_vggsound144k, without its downloads,
on one batch of noise of the preset's shapes, as often as there are rounds, in turn with three parts of it. Encoders:
the same calls of the encoders alone, with their gradients. Network: all but the losses. Published: the step with its
losses as the authors' code writes them (`benchmarks.published_losses`), for methods where that differs. Optimizer and
data are not in it. Memory is what the forward pass keeps for the backward pass, weights apart, and on a GPU the peak of
a step.
A good answer: encoders above nine tenths of the step, losses below a hundredth at batch 128 on a GPU, and no step
slower or larger than with the published losses.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import Figure, measure, report
from benchmarks.published_losses import PUBLISHED
from configs.errors import UserError
from configs.load import load_config
from configs.resolve import names, nearest
from model.allocator import keep_freed_memory
from model.base import Loss
from model.build import build_objective, without_initial_weights
from model.objective import Objective
from pipeline.batch import Batch
from pipeline.sizes import synthetic_batch


def add_options(parser: Any) -> None:
    """The options of this benchmark."""
    parser.add_argument("--methods", nargs="+", help="default: all")
    parser.add_argument("--size", type=int, default=224, help="of the pictures, px; default 224")
    parser.add_argument("--batch", type=int, help="clips; default: 128 on a GPU, 8 on a CPU")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="auto: a GPU if there is one")
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
    """Measure, print, and append rows to `out`; `store` is not read."""
    known = names("model.methods")
    for method in methods or []:
        if method not in known:
            raise UserError(f"no method '{method}'; there are: {', '.join(known)}.{nearest(method, known)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA GPU; use --device cpu")
    place = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    clips = batch or (128 if place.type == "cuda" else 8)
    if min(clips, size) <= 0:
        raise UserError("--batch and --size must be above 0")
    keep_freed_memory()
    figures = [each for method in methods or known for each in _measure(method, size, clips, place, precision, rounds)]
    facts = {"batch": clips, "size_px": size, "precision": precision, "threads": torch.get_num_threads()}
    report(figures, None, out, facts | {"device": place.type})


def _measure(method: str, size: int, clips: int, device: torch.device, precision: str, rounds: int) -> list[Figure]:
    config = load_config([f"{method}_vggsound144k", f"data.image.size_px={size}"])
    torch.manual_seed(0)
    ours = build_objective(without_initial_weights(with_few_neighbours(config.model, clips)))
    ours.train().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    published = Objective(ours.model, {name: published_loss(loss) for name, loss in ours.losses.items()})
    given = synthetic_batch(config.data, ours.model.inputs, clips, device)
    weights = torch.ones(len(ours.losses), device=device)

    def autocast() -> Any:
        return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")

    def stepped(total: Callable[[Batch], Tensor]) -> Callable[[], int]:
        def step() -> int:
            with autocast():
                value = total(given)
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
    if set(ours.losses) & set(PUBLISHED):
        variants["published"] = stepped(lambda batch: published(batch, weights).total)
    memory = {name: _memory(ours, step, device) for name, step in variants.items()}
    figures = measure("step_rate", variants, rounds, memory)
    whole = figures[0].cpu_ms if device.type == "cpu" else 1000 / figures[0].value
    named = []
    for figure in figures:
        own = figure.cpu_ms if device.type == "cpu" else 1000 / figure.value
        note = f"{own / whole:.1%} of the step, {figure.note}"
        named.append(replace(figure, variant=f"{method}: {figure.variant}", note=note))
    return named


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


@contextmanager
def kept_for_backward(objective: nn.Module) -> Iterator[dict[int, int]]:
    """Storage -> bytes of what forward passes inside keep, parameters and buffers apart."""
    own = {value.untyped_storage().data_ptr() for value in (*objective.parameters(), *objective.buffers())}
    kept: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        yield kept
