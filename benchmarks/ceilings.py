"""Question: what can this machine do at most, of that of which a run is made?

Method: each limit alone, on one thread, from warm caches: decoding the JPEGs of the store into pixels that nobody uses;
copying memory to memory; the pages of the store's shards, mapped as plain files; its records, in random order, through
LMDB; matrix products; and on a GPU those too, copies within its memory and from pinned host memory to it. Copies count
each byte once, within a GPU twice, as it is read and written there.
A good answer: the other benchmarks show their figures as shares of these. Records through LMDB should come nearly as
fast as the pages of the file, and those as memory to memory. Figures far below the usual of their kind (a core: 2,000
to 4,000 pictures of 256 px a second, 5 to 15 GB/s; an H200: 4,300 GB/s, 790 TFLOP/s in bf16) mean that something else
uses the machine, or that its clock is held down.
"""

import importlib.util
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console

from benchmarks.harness import measure, report
from benchmarks.options import chosen_device, device_option

QUICK: dict[str, Any] = {}
GPU: dict[str, Any] = {"device": "cuda"}
_WINDOW_CLIPS = 256
_COPY_BYTES = {"cpu": 128 * 2**20, "cuda": 2**30}  # far more than caches hold
_SIDE = {"cpu": 1024, "cuda": 8192}
_TIMES = {"cpu": 1, "cuda": 20}


def add_options(parser: Any) -> None:
    """The options of this benchmark."""
    device_option(parser)


def run(store: Path, rounds: int, out: Path | None, device: str = "auto") -> None:
    """Measure, print, and append rows to `out`. Without lmdb the store is not read, and what needs it is left out."""
    place = chosen_device(device)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    copies = {"memory to memory": memory_copy()}
    if importlib.util.find_spec("lmdb") is None:
        Console().print("left out, as lmdb is not installed: decoding, pages, records", soft_wrap=True)
        _report(measure("ceilings", copies, rounds, unit="GB/s"), "memory to memory", out, "cpu")
    else:
        _from_store(store, copies, rounds, out)
    for name in ("cpu", "cuda") if place.type == "cuda" else ("cpu",):
        kinds = ("fp32", "tf32", "bf16") if name == "cuda" else ("fp32", "bf16")
        rates = {f"products, {kind}": matrix_products(kind, name) for kind in kinds}
        _report(measure("ceilings", rates, rounds, unit="TFLOP/s", device=name), None, out, name)
    if place.type == "cuda":
        moves = {"within the GPU": device_copy(place), "pinned host memory to GPU": host_to_device(place)}
        _report(measure("ceilings", moves, rounds, unit="GB/s", device=place), None, out, "cuda")


def _from_store(store: Path, copies: dict[str, Callable[[], float]], rounds: int, out: Path | None) -> None:
    from pipeline.store import DATA, Store  # here: the rest runs without lmdb

    with Store(store) as opened:
        numbers = np.random.default_rng(0).permutation(len(opened))
        files = [opened.path / shard["name"] / DATA for shard in opened.manifest["shards"]]
        copies["pages of the shards"] = page_cache(files)
        copies["records through LMDB"] = record_copies(opened.value, numbers.tolist())
        _report(measure("ceilings", copies, rounds, unit="GB/s"), "memory to memory", out, "cpu")
        if opened.manifest["frames"].get("pixels", "jpeg") == "raw":
            Console().print("left out: decoding; the store has decoded pictures only")
            return
        jpegs = [opened.view(int(number)).blob("frames/0") for number in numbers[:_WINDOW_CLIPS]]
        decodes = {"JPEG decode": lambda: float(bare_decode(jpegs, _WINDOW_CLIPS))}
        _report(measure("ceilings", decodes, rounds), None, out, "cpu")


def _report(figures: Any, ceiling: str | None, out: Path | None, device: str) -> None:
    report(figures, ceiling, out, {"device": device}, about=device)


def bare_decode(jpegs: Sequence[np.ndarray], count: int) -> int:
    """Decode so many JPEGs, around and around; returns how many."""
    for index in range(count):
        cv2.imdecode(jpegs[index % len(jpegs)], cv2.IMREAD_COLOR)
    return count


def memory_copy(nbytes: int = _COPY_BYTES["cpu"], buffer_bytes: int | None = None) -> Callable[[], float]:
    """A variant of `measure` that copies host memory; GB. buffer_bytes: piece by piece into one buffer of this size."""
    source, target = np.ones(nbytes, np.uint8), np.zeros(min(nbytes, buffer_bytes or nbytes), np.uint8)
    pieces = [source[first : first + len(target)] for first in range(0, nbytes, len(target))]

    def run() -> float:
        for piece in pieces:
            target[: len(piece)] = piece
        return nbytes / 1e9

    return run


def page_cache(files: Sequence[Path], at_most: int = _COPY_BYTES["cpu"]) -> Callable[[], float]:
    """A variant that copies the beginning of files from their pages, as long as bytes are left of `at_most`; GB."""
    parts = []
    for file in files:
        left = at_most - sum(map(len, parts))
        parts.append(np.memmap(file, np.uint8, mode="r")[: max(0, left)])
    target = np.empty(max(map(len, parts)), np.uint8)

    def run() -> float:
        for part in parts:
            target[: len(part)] = part
        return sum(map(len, parts)) / 1e9

    return run


def record_copies(
    value: Callable[[int], memoryview], numbers: Sequence[int], at_most: int = _COPY_BYTES["cpu"]
) -> Callable[[], float]:
    """A variant that copies the values of clips, in this order, around and around if they are few; GB."""
    total, wanted = 0, []
    for number in itertools.cycle(numbers):
        wanted.append(number)
        total += value(number).nbytes
        if total >= at_most:
            break
    target = np.empty(max(value(number).nbytes for number in numbers), np.uint8)

    def run() -> float:
        for number in wanted:
            found = value(number)
            target[: found.nbytes] = np.frombuffer(found, np.uint8)
        return total / 1e9

    return run


def matrix_products(precision: str, device: torch.device | str) -> Callable[[], float]:
    """A variant that multiplies square matrices of noise; TFLOP. precision: fp32, tf32 (on a GPU) or bf16."""
    kind = torch.device(device).type
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    side, times = _SIDE[kind], _TIMES[kind]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)

    def run() -> float:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        for _ in range(times):
            torch.mm(left, right, out=product)
        torch.set_float32_matmul_precision(before)
        return times * 2 * side**3 / 1e12

    return run


def device_copy(device: torch.device | str) -> Callable[[], float]:
    """A variant that copies memory on the device; GB, those read and those written."""
    kind = torch.device(device).type
    source = torch.ones(_COPY_BYTES[kind], dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)

    def run() -> float:
        for _ in range(_TIMES[kind]):
            target.copy_(source)
        return _TIMES[kind] * 2 * source.nbytes / 1e9

    return run


def host_to_device(device: torch.device | str) -> Callable[[], float]:
    """A variant that copies from pinned memory of the host to the device; GB."""
    source = torch.ones(_COPY_BYTES["cuda"] // 4, dtype=torch.uint8).pin_memory()
    target = torch.empty_like(source, device=device)

    def run() -> float:
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize(device)
        return source.nbytes / 1e9

    return run
