"""Question: what does a whole training step of each method cost as the field takes it, and as this project does?

Method: both train the network of the preset METHOD_vggsound144k, without its downloads, on the same batch of noise of
the preset's shapes: forward pass, losses, backward pass, optimizer. The field's step is eager, in float32 (JSA's on a
GPU in float16 with a loss scaler), NCHW, with the losses as its code writes them, torch's default optimizer, and every
loss read back to the host. Ours is channels-last with fused optimizers and, on a GPU, what the preset says: bf16,
compiled. The network is ours in both, as theirs gives the same maps. Where the field contrasts fewer clips, because it
splits a batch over GPUs, it is given the whole batch.
A good answer: at least twice the field's rate on a GPU; on a CPU, where convolutions are all, not below it.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.harness import measure, report, time_left_s
from benchmarks.options import chosen_device, chosen_methods, device_option, methods_option
from benchmarks.step_rate import published_loss, with_few_neighbours
from configs.allocator import keep_freed_memory
from configs.errors import UserError
from configs.load import load_config
from configs.schema import RunConfig
from model.build import build_objective, without_initial_weights
from model.objective import Objective
from model.plan import LATE, TrainingStep
from model.standardise import Standardise
from pipeline.batch import Batch
from pipeline.sizes import synthetic_batch

QUICK: dict[str, Any] = {"methods": ["ez_vsl"], "size": 112, "batch": 4, "device": "cpu"}
GPU: dict[str, Any] = {"device": "cuda"}
_STEPS = {"cpu": 1, "cuda": 10}
_PART_S = 30.0
"""A method is not begun with less time left."""


def add_options(parser: Any) -> None:
    """The options of this benchmark."""
    methods_option(parser)
    parser.add_argument("--size", type=int, default=224, help="of the pictures, px; default 224")
    parser.add_argument("--batch", type=int, help="clips; default: 128 on a GPU, 8 on a CPU")
    device_option(parser)
    parser.add_argument("--compile", action="store_true", help="ours compiled on a CPU too, which takes a minute each")


def run(
    store: Path,
    rounds: int,
    out: Path | None,
    methods: list[str] | None = None,
    size: int = 224,
    batch: int | None = None,
    device: str = "auto",
    compile: bool = False,
) -> None:
    """Measure, print, and append rows to `out`; `store` is not read."""
    chosen = chosen_methods(methods)
    place = chosen_device(device)
    clips = batch or (128 if place.type == "cuda" else 8)
    if min(clips, size) <= 0:
        raise UserError("--batch and --size must be above 0")
    keep_freed_memory()
    for number, method in enumerate(chosen):
        if number and time_left_s() < _PART_S:
            Console().print(f"left out: {method}, no time was left")
            continue
        config = step_config(method, place, clips, [f"data.image.size_px={size}"], compile=compile)
        ours, field = OurStep(config, place), FieldStep(config, place)
        given = synthetic_batch(config.data, config.model.inputs, clips, place)
        theirs = f"{method} as the field"
        variants = {"ours": _repeated(ours, given, place), theirs: _repeated(field, nchw(given), place)}
        notes = {"ours": ours.about, theirs: field.about}
        figures = measure("field_steps", variants, rounds, notes, device=place)
        facts = {"method": method, "batch": clips, "size_px": size, "torch_threads": torch.get_num_threads()}
        report(figures, None, out, facts | {"device": place.type}, theirs)


def step_config(
    method: str, device: torch.device, clips: int, overrides: list[str], *, compile: bool = False
) -> RunConfig:
    """The preset of a method as it trains on this device, for batches of so many clips, without downloads."""
    on_cpu = ["train.precision=fp32", f"train.compile={compile}"] if device.type == "cpu" else []
    config = load_config([f"{method}_vggsound144k", f"data.batch_size={clips}", *on_cpu, *overrides])
    return config.model_copy(update={"model": without_initial_weights(with_few_neighbours(config.model, clips))})


class OurStep(TrainingStep):
    """A step as train.py takes it."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        torch.manual_seed(0)
        self.objective = build_objective(config.model).train().to(device)
        if config.train.channels_last:
            self.objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        super().__init__(config, self.objective, device)
        self.about = f"{config.train.precision}, {'compiled' if config.train.compile else 'eager'}, channels-last"


class FieldStep:
    """A step as the released systems take it. Pictures may come standardised, as their loaders hand them out."""

    def __init__(self, config: RunConfig, device: torch.device, *, standardised: bool = False) -> None:
        torch.manual_seed(0)
        self.device = device
        ours = build_objective(config.model)
        if standardised:
            for module in ours.modules():
                for name, part in module.named_children():
                    if isinstance(part, Standardise):
                        setattr(module, name, torch.nn.Identity())
        self.objective = Objective(ours.model, {name: published_loss(loss) for name, loss in ours.losses.items()})
        self.objective.train().to(device)
        optim = config.optim
        groups = []
        for group in ours.model.param_groups():
            rate = optim.lr * group.get("lr_scale", 1.0)
            groups.append({key: value for key, value in group.items() if key != "lr_scale"} | {"lr": rate})
        kind = torch.optim.AdamW if optim.name == "adamw" else torch.optim.Adam
        self.optimizer = kind(groups, lr=optim.lr, weight_decay=optim.weight_decay)
        self.weights = self.objective.weights_at(LATE, device)
        self.half = config.model.name == "jsa" and device.type == "cuda"
        self.scaler = torch.GradScaler(device.type, enabled=self.half)
        self.about = f"{'fp16' if self.half else 'fp32'}, eager, NCHW"

    def __call__(self, batch: Batch) -> None:
        model = self.objective.model
        model.before_step(LATE)
        with torch.autocast(self.device.type, torch.float16, enabled=self.half):
            losses = self.objective(batch, self.weights)
        self.optimizer.zero_grad()
        self.scaler.scale(losses.total).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for term in losses.terms.values():
            float(term)
        model.after_step(LATE)


def nchw(batch: Batch) -> Batch:
    """The batch with its pictures plane after plane in memory, as the field's loaders stack them."""
    more = tuple(image.contiguous() for image in batch.more_images)
    return replace(batch, image=batch.image.contiguous(), more_images=more)


def _repeated(step: Callable[[Batch], None], batch: Batch, device: torch.device) -> Callable[[], int]:
    def run() -> int:
        for _ in range(_STEPS[device.type]):
            step(batch)
        return _STEPS[device.type] * len(batch.clip_id)

    return run
