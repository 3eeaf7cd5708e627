"""Question: with which options does DALI deliver the pictures of this store fastest on this machine?

Method: the DALI loader as in `loader_rate` (random resized crop, flip; uint8 out; warm page cache), once for every
combination of threads, batch size, decoding of the crop alone or of the whole picture and, on a GPU, the share of the
pictures that its JPEG engines take; one after the other, not interleaved, as each fills a GPU's memory. Several threads
are to be compared by the rate (wall), on a machine that does nothing else; the CPU time says what they cost.
A good answer: the fastest line, as `data.loader={name: dali, ...}`.
"""

from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import torch
from rich.console import Console

from benchmarks.harness import Figure, measure, report, time_left_s
from benchmarks.loader_rate import sound_of, split_of, training, windows
from benchmarks.options import chosen_device, device_option
from configs.errors import UserError
from pipeline.batch import InputSpec
from pipeline.loader import build_loader
from pipeline.store import Store

QUICK: dict[str, Any] = {"threads": [1, 2], "batch_size": [32]}
GPU: dict[str, Any] = {"device": "cuda", "threads": [8, 16], "batch_size": [256]}
NEEDS = ("nvidia.dali", "lmdb")
_LOADS = (0.65, 0.75, 0.85, 1.0)
_BATCHES = 8
"""In a window, which begins and ends with nothing made ahead."""


def add_options(parser: Any) -> None:
    """The options of this benchmark."""
    device_option(parser, "cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 4, 8, 16], help="default 2 4 8 16")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[256, 1024], help="clips; default 256 1024")


def run(
    store: Path,
    rounds: int,
    out: Path | None,
    device: str = "cpu",
    threads: tuple[int, ...] | list[int] = (2, 4, 8, 16),
    batch_size: tuple[int, ...] | list[int] = (256, 1024),
) -> None:
    """Measure on `store`, print, and append rows to `out`."""
    if min(*threads, *batch_size, 1) < 1:
        raise UserError("--threads and --batch-size must be above 0")
    device = chosen_device(device).type
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with Store(store) as opened:
        if opened.manifest["frames"].get("pixels", "jpeg") == "raw":
            raise UserError(f"{store} has no JPEGs to decode; pack with --pixels jpeg or --pixels both")
        frontend, split = sound_of(opened), split_of(opened)
        clips = len(opened.select(split))
    loads = _LOADS if device != "cpu" else (0.0,)
    facts = {"clips": clips, "size_px": 224, "frontend": frontend["name"], "device": device}
    found: list[Figure] = []
    for size in sorted({min(each, clips) for each in batch_size}):
        figures = []
        for count, decode, load in product(threads, ("roi", "full"), loads):
            options = {"threads": count, "decode": decode, "hw_decoder_load": load}
            name = f"batch {size}, {count} threads, {decode}" + (f", engines {load:g}" if device != "cpu" else "")
            if (found or figures) and time_left_s() < 0:
                Console().print(f"no time was left for {name}")
                continue
            with ExitStack() as stack:  # one at a time: each holds its queues in the GPU's memory
                data = training(store, frontend, batch_size=size, image={"pixels": "jpeg"},
                                loader={"name": "dali", **options})  # fmt: skip
                loader = build_loader(data, InputSpec(), split, train=True, device=device)
                stack.callback(loader.close)
                figures += measure("decode_rate", {name: windows(loader, size, _BATCHES * size)}, rounds)
        if figures:
            report(figures, None, out, facts)
        found += figures
    best = max(found, key=lambda figure: figure.value)
    Console().print(f"fastest: {best.variant}, {best.value:.0f} clips/s", soft_wrap=True)
