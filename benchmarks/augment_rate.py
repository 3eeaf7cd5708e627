"""Question: what does each augmentation cost, and where should it run?

Method: one batch of decoded pictures of noise (340 x 256) or log-spectrograms (257 x 300), each augmentation alone with
its defaults and p = 1, in the three forms that give the same pictures: by OpenCV, clip by clip on one thread
(`reference`), by DALI (one thread, or the GPU; the pictures must be handed over, so "DALI, nothing" stands beside), and
by torch for the whole batch on the device. The ceiling is copying the results; the field's way is Pillow through
torchvision, clip by clip. Crops are resized to 224 x 224 in the same pass; for DALI they are cut before, as its loader
does with decoded pictures.
A good answer: on a CPU crop, resize and flip below a third of the JPEG's decoding (see `ceilings`). What costs more
than the decoding belongs on the GPU, where a batch of 256 should take a few milliseconds.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor
from torchvision.transforms import v2

from benchmarks.harness import measure, report
from benchmarks.options import chosen_device, device_option
from benchmarks.suite import missing
from configs.allocator import keep_freed_memory
from configs.errors import UserError
from configs.resolve import resolve
from configs.schema import ImageConfig, component_config
from pipeline.augment.random_resized_crop import RandomResizedCrop
from pipeline.augment.spectrogram_mask import SpectrogramMask
from pipeline.augmentation import Clips, ImageAugmentation
from pipeline.resample import crop_and_resize
from pipeline.sampler import Draws, clip_keys

QUICK: dict[str, Any] = {"batch": 32, "device": "cpu"}
GPU: dict[str, Any] = {"batch": 256, "device": "cuda"}
_SIZE_PX, _WIDTH, _HEIGHT = 224, 340, 256
_FRAMES, _BINS = 300, 257
_CHANGES: dict[str, dict[str, Any]] = {"flip": {"p": 1.0}, "color_jitter": {"p": 1.0}, "greyscale": {"p": 1.0},
                                       "blur": {"p": 1.0}}  # fmt: skip


def add_options(parser: Any) -> None:
    """The options of this benchmark."""
    parser.add_argument("--batch", type=int, default=64, help="clips; default 64")
    device_option(parser)


def run(store: Path, rounds: int, out: Path | None, batch: int = 64, device: str = "auto") -> None:
    """Measure, print, and append rows to `out`. No store is read. Without DALI its form is left out."""
    if batch <= 0:
        raise UserError(f"--batch must be above 0, found {batch}")
    place = chosen_device(device)
    keep_freed_memory()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    if missing(("nvidia.dali",)):
        Console().print("left out, as DALI is not installed: its form of each augmentation", soft_wrap=True)
    draws = Draws(seed=0, epoch=0, keys=clip_keys([f"clip_{number}" for number in range(batch)]))
    clips = Clips(
        width=np.full(batch, _WIDTH), height=np.full(batch, _HEIGHT), frames=np.full(batch, _FRAMES), window=_FRAMES,
        bins=_BINS, size_px=_SIZE_PX, log_floor=-16.0,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 256, (batch, _HEIGHT, _WIDTH, 3), np.uint8)
    images = rng.integers(0, 256, (batch, _SIZE_PX, _SIZE_PX, 3), np.uint8)
    facts = {"batch": batch, "size_px": _SIZE_PX, "device": place.type}

    def told(name: str, variants: dict[str, Callable[[], float]], field: str | None = None) -> None:
        figures = measure("augment_rate", variants, rounds, device=place)
        report(figures, "copy", out, {"augmentation": name, **facts}, field=field, about=name)

    told("random_resized_crop", _crops(stored, draws, clips, place), "Pillow")
    for name, options in _CHANGES.items():
        told(name, _changes(name, options, images, draws, clips, place), "Pillow")
    told("spectrogram_mask", _masks(draws, clips, batch, place))


def _copy(array: np.ndarray, device: torch.device) -> Callable[[], float]:
    source = torch.from_numpy(array).to(device)
    target = torch.zeros_like(source)

    def run() -> float:
        target.copy_(source)
        return len(array)

    return run


def _clip_by_clip(array: np.ndarray, change: Callable[[int], Any]) -> Callable[[], float]:
    def run() -> float:
        for row in range(len(array)):
            change(row)
        return len(array)

    return run


def _crops(stored: np.ndarray, draws: Draws, clips: Clips, device: torch.device) -> dict[str, Callable[[], float]]:
    config = ImageConfig(size_px=_SIZE_PX)
    assert config.interpolation == "linear" and not config.antialias
    drawn = RandomResizedCrop(component_config("pipeline.augment", "random_resized_crop", {})).draw(draws, clips)
    corners = np.concatenate([drawn["start"], drawn["start"] + drawn["shape"]], 1).tolist()
    target = np.empty((len(stored), _SIZE_PX, _SIZE_PX, 3), np.uint8)
    size = (_SIZE_PX, _SIZE_PX)

    def by_opencv(row: int) -> None:
        y0, x0, y1, x1 = corners[row]
        cv2.resize(stored[row, y0:y1, x0:x1], size, dst=target[row], interpolation=cv2.INTER_LINEAR)

    pictures = [Image.fromarray(each) for each in stored]

    def by_pillow(row: int) -> Image.Image:
        y0, x0, y1, x1 = corners[row]
        return pictures[row].resize(size, Image.Resampling.BICUBIC, (x0, y0, x1, y1))

    flat = torch.from_numpy(stored).to(device).permute(0, 3, 1, 2).reshape(-1)
    first = torch.arange(len(stored)) * 3 * _HEIGHT * _WIDTH
    planes = torch.tensor([[_HEIGHT * _WIDTH, _WIDTH]]).repeat(len(stored), 1)
    start, shape = (torch.from_numpy(drawn[name]) for name in ("start", "shape"))

    def by_torch() -> float:
        cropped = crop_and_resize(flat, first, planes, start, shape, 3, _SIZE_PX, config)
        cropped.round_().clamp_(0, 255).to(torch.uint8)
        return len(stored)

    def cut() -> list[np.ndarray]:
        return [np.ascontiguousarray(each[y0:y1, x0:x1]) for each, (y0, x0, y1, x1) in zip(stored, corners)]

    def by_dali(fn: Any, types: Any, pictures: Any) -> Any:
        return fn.resize(pictures, size=size, interp_type=types.INTERP_LINEAR, antialias=False)

    return {
        "copy": _copy(target, device),
        "reference": _clip_by_clip(stored, by_opencv),
        "torch": by_torch,
        **_dali(cut, len(stored), device, by_dali),
        "Pillow": _clip_by_clip(stored, by_pillow),
    }


def _changes(
    name: str, options: dict[str, Any], images: np.ndarray, draws: Draws, clips: Clips, device: torch.device
) -> dict[str, Callable[[], float]]:
    part = resolve("pipeline.augment", name)(component_config("pipeline.augment", name, options))
    assert isinstance(part, ImageAugmentation)
    drawn = part.draw(draws, clips)
    rows = [{key: value[row] for key, value in drawn.items()} for row in range(len(images))]
    on_device = torch.from_numpy(images).to(device)
    tensors = {key: torch.from_numpy(value).to(device) for key, value in drawn.items()}
    scratch = images.copy()
    pictures = [Image.fromarray(each) for each in images]
    usual: Any = {
        "flip": v2.RandomHorizontalFlip(1.0),
        "color_jitter": v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
        "greyscale": v2.RandomGrayscale(1.0),
        "blur": v2.GaussianBlur(5),
    }[name]

    def by_torch() -> float:
        part.batched(on_device, tensors)
        return len(images)

    def by_dali(fn: Any, types: Any, pictures: Any) -> Any:
        def node(value: np.ndarray) -> Any:
            return fn.external_source(source=lambda: list(value), batch=True)

        fed = {key: node(value) for key, value in drawn.items()}
        return part.dali(pictures, fed)

    return {
        "copy": _copy(images, device),
        "reference": _clip_by_clip(images, lambda row: part.reference(scratch[row], rows[row])),
        "torch": by_torch,
        **_dali(lambda: list(images), len(images), device, by_dali),
        "Pillow": _clip_by_clip(images, lambda row: usual(pictures[row])),
    }


def _dali(
    fed: Callable[[], list[np.ndarray]], batch: int, device: torch.device, change: Callable[..., Any]
) -> dict[str, Callable[[], float]]:
    """The variants "DALI, nothing" and "DALI", or none without it."""
    if missing(("nvidia.dali",)):
        return {}
    from pipeline.loaders.dali import import_dali  # here: it needs what reads stores

    dali = import_dali()

    def made(change: Callable[..., Any]) -> Callable[[], float]:
        @dali.pipeline_def(
            batch_size=batch,
            num_threads=1,
            device_id=(device.index or 0) if device.type == "cuda" else None,
            prefetch_queue_depth=1,
        )
        def graph() -> Any:
            pictures = dali.fn.external_source(source=fed, batch=True, no_copy=True, layout="HWC")
            return change(dali.fn, dali.types, pictures.gpu() if device.type == "cuda" else pictures)

        pipeline = graph()

        def run() -> float:
            pipeline.run()
            return batch

        return run

    return {"DALI, nothing": made(lambda fn, types, pictures: fn.copy(pictures)), "DALI": made(change)}


def _masks(draws: Draws, clips: Clips, batch: int, device: torch.device) -> dict[str, Callable[[], float]]:
    part = SpectrogramMask(component_config("pipeline.augment", "spectrogram_mask", {}))
    tensors = {key: torch.from_numpy(value).to(device) for key, value in part.draw(draws, clips).items()}
    sounds: Tensor = torch.randn(batch, _FRAMES, _BINS, device=device)

    def by_torch() -> float:
        part.apply(sounds, tensors, clips)
        return batch

    return {"copy": _copy(sounds.cpu().numpy(), device), "torch": by_torch}
