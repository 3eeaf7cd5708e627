"""Question: what does scoring cost a clip under each protocol, beside the forward pass that makes the map?

Method: maps of 7 x 7 noise with one or two boxes a clip (or three people's boxes, or masks: --truth) go through the
scorer of every protocol with its usual metrics, without blind maps, from the native map to the row of the clip. The
ceiling is resizing the maps to 224 x 224, with which all protocols begin. The field's way is EZ-VSL's evaluator, by
its description: OpenCV, sorting and cIoU, clip by clip on the CPU. The forward pass is EZ-VSL's `localize` on noise,
without its downloaded weights.
A good answer: below a hundredth of the forward pass on a CPU and a tenth on a GPU; no slower than the field's way, of
one metric only. Where it is more, score every few epochs (`train.evaluate_every_epochs`).
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import measure, report
from benchmarks.options import chosen_device, device_option
from configs.allocator import keep_freed_memory
from configs.errors import UserError
from configs.load import check, load_config
from configs.resolve import check_name, names, resolve
from configs.schema import EvaluateConfig
from model.base import Localization
from model.build import build_model, without_initial_weights
from model.scoring import build_scorer
from pipeline.batch import Truth
from pipeline.sizes import synthetic_batch

QUICK: dict[str, Any] = {"protocols": ["ez_vsl", "lvs", "slavc_abs"], "clips": 128, "device": "cpu"}
GPU: dict[str, Any] = {"clips": 4096, "device": "cuda"}
_SIDE, _SIZE_PX = 7, 224
_FORWARD_CLIPS = {"cpu": 4, "cuda": 256}


def add_options(parser: Any) -> None:
    """The options of this benchmark."""
    parser.add_argument("--protocols", nargs="+", help="default: all whose threshold does not come from a whole set")
    parser.add_argument("--clips", type=int, default=256, help="default 256")
    parser.add_argument("--truth", choices=sorted(_TRUTHS), default="boxes", help="default boxes")
    device_option(parser)


def run(
    store: Path,
    rounds: int,
    out: Path | None,
    protocols: list[str] | None = None,
    clips: int = 256,
    truth: str = "boxes",
    device: str = "auto",
) -> None:
    """Measure, print, and append rows to `out`. No store is read."""
    known = [name for name in names("model.protocols") if not resolve("model.protocols", name).calibrated]
    for name in protocols or []:
        check_name("protocol with a rule of its own", name, known)
    if clips <= 0:
        raise UserError(f"--clips must be above 0, found {clips}")
    place = chosen_device(device)
    keep_freed_memory()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    native = torch.from_numpy(rng.normal(0, 0.2, (clips, _SIDE, _SIDE)).clip(-1, 1).astype(np.float32)).to(place)
    truths = [_TRUTHS[truth](rng) for _ in range(clips)]
    variants = {
        "resizing alone": _resizing(native),
        **({"clip by clip": _clip_by_clip(native.cpu().numpy(), truths)} if truth == "boxes" else {}),
        "forward pass": _forward(place),
        **{name: _scoring(name, native, truths) for name in protocols or known},
    }
    notes = {"clip by clip": "EZ-VSL's rule and cIoU", "forward pass": "EZ-VSL at 224 px and 3 s of sound"}
    figures = measure("evaluate_rate", variants, rounds, notes, device=place)
    forward = next(figure for figure in figures if figure.variant == "forward pass")
    told = []
    for figure in figures:
        share = figure.cpu_ms / forward.cpu_ms if figure.by == "cpu" else forward.value / figure.value
        note = f"{share:.2%} of a forward pass" if figure.variant in (protocols or known) else figure.note
        told.append(replace(figure, note=note))
    facts = {"clips": clips, "truth": truth, "cells": _SIDE**2, "size_px": _SIZE_PX, "device": place.type}
    report(told, "resizing alone", out, facts, field="clip by clip")


def _boxes(rng: np.random.Generator) -> np.ndarray:
    """`(1 or 2, 5)`: boxes of a picture that one person annotated."""
    corners = rng.uniform(0, 0.6, (rng.integers(1, 3), 2))
    return np.concatenate([corners, corners + rng.uniform(0.2, 0.4, corners.shape), np.zeros((len(corners), 1))], 1)


def _consensus(rng: np.random.Generator) -> np.ndarray:
    """`(3, 5)`: a box of each of three people, who agree by and large."""
    corner, side = rng.uniform(0, 0.5, 2), rng.uniform(0.2, 0.4, 2)
    corners = (corner + rng.normal(0, 0.05, (3, 2))).clip(0, 0.6)
    return np.concatenate([corners, corners + side, np.arange(3)[:, None]], 1)


def _mask(rng: np.random.Generator) -> np.ndarray:
    """`(S, S)` uint8: an ellipse."""
    drawn = np.zeros((_SIZE_PX, _SIZE_PX), np.uint8)
    centre, axes = rng.integers(60, 160, 2), rng.integers(20, 60, 2)
    return cv2.ellipse(drawn, centre.tolist(), axes.tolist(), 0, 0, 360, 255, -1)  # pyright: ignore


_TRUTHS: dict[str, Callable[[np.random.Generator], Truth]] = {
    "boxes": lambda rng: Truth(boxes=_boxes(rng)),
    "consensus": lambda rng: Truth(boxes=_consensus(rng)),
    "masks": lambda rng: Truth(boxes=None, mask=_mask(rng)),
}


def _resizing(native: Tensor) -> Callable[[], float]:
    def run() -> float:
        size = (_SIZE_PX, _SIZE_PX)
        torch.nn.functional.interpolate(native[:, None], size, mode="bilinear", align_corners=True)
        return len(native)

    return run


def _scoring(protocol: str, native: Tensor, truths: list[Truth]) -> Callable[[], float]:
    names = [f"clip_{number}" for number in range(len(truths))]
    metrics = {name: {} for name in resolve("model.protocols", protocol).usual_metrics}
    config = check(EvaluateConfig, {"protocol": protocol, "metrics": metrics}, "benchmark")
    valid = torch.ones(len(truths), dtype=torch.bool)

    def run() -> float:
        scorer = build_scorer(config, blind=False)
        scorer.add(names, valid, Localization(map=native, bounds=(-1.0, 1.0)), truths)
        scorer.rows()
        return len(truths)

    return run


def _clip_by_clip(native: np.ndarray, truths: list[Truth]) -> Callable[[], float]:
    def run() -> float:
        scores = []
        for each, truth in zip(native, truths):
            drawn = np.zeros((_SIZE_PX, _SIZE_PX), np.float32)
            assert truth.boxes is not None
            for x0, y0, x1, y1 in (truth.boxes[:, :4].clip(0, 1) * _SIZE_PX).astype(int):
                drawn[y0:y1, x0:x1] = 1
            resized = cv2.resize(each, (_SIZE_PX, _SIZE_PX), interpolation=cv2.INTER_LINEAR)
            resized = (resized - resized.min()) / (resized.max() - resized.min())
            found = resized >= np.sort(resized.flatten())[resized.size // 2]
            scores.append(np.sum(found * drawn) / (np.sum(drawn) + np.sum(found * (drawn == 0))))
        return len(scores)

    return run


def _forward(device: torch.device) -> Callable[[], float]:
    config = load_config(["ez_vsl_vggsound144k"])
    model = build_model(without_initial_weights(config.model)).to(device).eval()
    batch = synthetic_batch(config.data, model.inputs, _FORWARD_CLIPS[device.type], device)

    @torch.inference_mode()
    def run() -> float:
        model.localize(batch)
        return len(batch.clip_id)

    return run
