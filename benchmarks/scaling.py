"""Question: how do rates change with the batch, the threads, the processes and the size of the store?

Method: one axis after the other, all else fixed. batch: steps of train.py's kind on a batch of noise. threads: our
loader, DALI or without it OpenCV, alone. ranks: the loop of train.py on so many processes (gloo; NCCL on GPUs, one
each), the same batch a process. clips: the loader on so many clips of the store, or on stores made for it (`--made`;
`large_store` goes to 144,000). Windows are the ends of epochs. Beside each value its rate over that of the axis's first
one; for clips the spread between the fastest and the slowest.
A good answer: the rate grows with the batch and then stays; threads and ranks near linear up to the cores, or the GPUs;
clips the same rate, within the spread that repeats have.
"""

import json
import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.end_to_end import Loop, training_config
from benchmarks.field_steps import OurStep, step_config
from benchmarks.harness import Figure, measure, report, time_left_s, times
from benchmarks.options import chosen_device, device_option
from configs.allocator import keep_freed_memory
from configs.errors import UserError
from configs.schema import RunConfig
from pipeline.sizes import synthetic_batch

AXES = ("batch", "threads", "ranks", "clips")
QUICK: dict[str, Any] = {"axes": ["batch", "threads", "clips"], "batches": [2, 4], "device": "cpu"}
GPU: dict[str, Any] = {"axes": ["batch", "threads"], "device": "cuda"}
NEEDS = ("lmdb", "msgpack")
_WINDOW_CLIPS = 256
_STEPS = {"cpu": 2, "cuda": 20}


def add_options(parser: Any) -> None:
    """The options of this benchmark."""
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=AXES, help="default: all")
    parser.add_argument("--batches", type=int, nargs="+", help="default: 32 to 1024 on a GPU, 2 to 16 on a CPU")
    parser.add_argument("--threads", type=int, nargs="+", help="default: 1, 2, 4, ... up to the cores")
    parser.add_argument("--ranks", type=int, nargs="+", help="default: 1, 2, 4, ... up to the GPUs, or the cores")
    parser.add_argument("--sizes", type=int, nargs="+", help="clips of the store; default: an eighth, a half, all")
    parser.add_argument("--made", type=int, nargs="+", help="clips of stores that are made for it, in place of --sizes")
    parser.add_argument("--method", default="ez_vsl", help="of the preset METHOD_vggsound144k; default ez_vsl")
    device_option(parser)


def run(
    store: Path,
    rounds: int,
    out: Path | None,
    axes: Sequence[str] = AXES,
    batches: list[int] | None = None,
    threads: list[int] | None = None,
    ranks: list[int] | None = None,
    sizes: list[int] | None = None,
    made: list[int] | None = None,
    method: str = "ez_vsl",
    device: str = "auto",
) -> None:
    """Measure on `store`, print, and append rows to `out`."""
    place = chosen_device(device)
    if any(value < 1 for values in (batches, threads, ranks, sizes, made) for value in values or ()):
        raise UserError("--batches, --threads, --ranks, --sizes and --made must be above 0")
    keep_freed_memory()
    cores = len(os.sched_getaffinity(0))
    on_gpu = place.type == "cuda"
    for number, axis in enumerate(axes):
        if number and time_left_s() < 0:
            Console().print(f"left out: {axis}, no time was left")
            continue
        if axis == "batch":
            values = batches or ([32, 128, 512, 1024] if on_gpu else [2, 4, 8, 16])
            figures = _batches(method, place, values, rounds)
        elif axis == "threads":
            figures = _threads(store, method, place, threads or doubled(cores), rounds)
        elif axis == "ranks":
            values = ranks or doubled(torch.cuda.device_count() if on_gpu else cores)
            figures = _ranks(store, method, place, values, rounds)
        else:
            figures = _clips(store, method, place, sizes, made, rounds)
        report(figures, None, out, {"axis": axis, "method": method, "device": place.type})
        Console().print(said(axis, figures), soft_wrap=True, highlight=False)


def doubled(most: int) -> list[int]:
    """1, 2, 4, ... and `most`."""
    return sorted({1 << power for power in range(most.bit_length()) if 1 << power <= most} | {max(1, most)})


def said(axis: str, figures: Sequence[Figure]) -> str:
    """One line: every value's rate over that of the first, and for clips the spread."""
    first = figures[0]
    shown = ", ".join(f"{figure.variant} x{times(figure, first):.2f}" for figure in figures)
    if axis != "clips":
        return shown
    rates = [times(figure, first) for figure in figures]
    noise = max(figure.value_interval / figure.value for figure in figures)
    return (
        f"{shown}: the slowest is {1 - min(rates) / max(rates):.0%} below the fastest; the 95% intervals of the wall "
        f"rates reach ±{noise:.0%}"
    )


def _batches(method: str, device: torch.device, batches: Sequence[int], rounds: int) -> list[Figure]:
    found = []
    for clips in batches:  # one after the other, as the memory of the largest may be all there is
        config = step_config(method, device, clips, [])
        step, noise = OurStep(config, device), synthetic_batch(config.data, config.model.inputs, clips, device)

        def take(step: OurStep = step, noise: Any = noise, clips: int = clips) -> int:
            for _ in range(_STEPS[device.type]):
                step(noise)
            return _STEPS[device.type] * clips

        found += measure("scaling", {f"batch {clips}": take}, rounds, {f"batch {clips}": step.about}, device=device)
    return found


def _threads(store: Path, method: str, device: torch.device, threads: Sequence[int], rounds: int) -> list[Figure]:
    with ExitStack() as stack:
        variants = {
            f"{count} threads": _loader(stack, training_config(method, store, Path(), device, 64, count, []), device)
            for count in threads
        }
        return measure("scaling", variants, rounds, by="wall", device=device)


def _loader(stack: ExitStack, config: RunConfig, device: torch.device) -> Callable[[], int]:
    """A variant: the loader alone, its batch no larger than the split."""
    from benchmarks.loader_rate import windows
    from pipeline.loader import build_loader
    from pipeline.store import Store, training_numbers

    data = config.data
    assert data.store is not None
    with Store(data.store) as opened:
        batch = min(data.batch_size, len(training_numbers(opened, data.train_split, data.exclude)))
    loader = build_loader(data, config.model.inputs, data.train_split, train=True, device=device, batch_size=batch)
    stack.callback(loader.close)
    return windows(loader, batch, _WINDOW_CLIPS)


def _clips(
    store: Path, method: str, device: torch.device, sizes: Sequence[int] | None, made: Sequence[int] | None, rounds: int
) -> list[Figure]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="whence-scaling-")))
        stores = dict(_made(folder, made) if made else _parts(folder, store, sizes))
        variants = {}
        for clips, (path, exclude) in stores.items():
            changes = [f"data.exclude={exclude}"] if exclude else []
            config = training_config(method, path, Path(), device, 64, 1, changes)
            variants[f"{clips} clips"] = _loader(stack, config, device)
        return measure("scaling", variants, rounds, device=device)


def _made(folder: Path, sizes: Sequence[int]) -> list[tuple[int, tuple[Path, Path | None]]]:
    from benchmarks import make_store

    for clips in sizes:
        make_store.run(folder / f"{clips}", 0, None, clips=clips, frontend=["ez_vsl"], no_waveform=True)
    return [(clips, (folder / f"{clips}", None)) for clips in sizes]


def _parts(folder: Path, store: Path, sizes: Sequence[int] | None) -> list[tuple[int, tuple[Path, Path | None]]]:
    """The store with all but so many clips of its training split excluded."""
    from benchmarks.loader_rate import split_of
    from pipeline.store import Store

    with Store(store) as opened:
        ids = [opened.index["clip_id"][number] for number in opened.select(split_of(opened)).tolist()]
    every = sorted({min(size, len(ids)) for size in sizes or (max(1, len(ids) // 8), max(1, len(ids) // 2), len(ids))})
    found: list[tuple[int, tuple[Path, Path | None]]] = []
    for size in every:
        exclude = folder / f"without-{size}.txt"
        exclude.write_text("".join(f"{each}\n" for each in ids[size:]), encoding="utf-8")
        found.append((size, (store, exclude if size < len(ids) else None)))
    return found


def _ranks(store: Path, method: str, device: torch.device, ranks: Sequence[int], rounds: int) -> list[Figure]:
    """Measured by the first process; the others keep step with it."""
    found = []
    for count in ranks:
        with tempfile.TemporaryDirectory(prefix="whence-ranks-") as folder, socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
            free.close()
            arguments = (count, port, str(store.resolve()), method, device.type, rounds, folder)
            torch.multiprocessing.spawn(_rank, arguments, nprocs=count)  # type: ignore[attr-defined]
            figure = json.loads((Path(folder) / "figure.json").read_text(encoding="utf-8"))
        found.append(Figure(**figure))
    return found


def _rank(rank: int, count: int, port: int, store: str, method: str, kind: str, rounds: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    device = torch.device(kind)
    batch = 128 if kind == "cuda" else 4
    if kind == "cpu":
        torch.set_num_threads(1)
    with ExitStack() as stack:
        config = training_config(method, Path(store), Path(folder) / "run", device, batch, 1, [])
        loop = Loop(stack, config, device)
        window = loop.window(min(_STEPS[kind], loop.training.steps_per_epoch))
        if rank == 0:
            (figure,) = measure("scaling", {f"{count} ranks": window}, rounds, by="wall", device=device)
            (Path(folder) / "figure.json").write_text(json.dumps(vars(figure)), encoding="utf-8")
        else:
            for _ in range(rounds + 1):
                window()
        loop.training.ranks.leave()
