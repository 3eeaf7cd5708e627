"""Question: what does a training batch cost on this machine, from this store, and will a run wait for it?

Method: every loader delivers the same clips with the same draws (random resized crop, flip; uint8 out) from a warm page
cache. A window is the end of an epoch, which a loader begins with nothing made ahead and ends with nothing left over,
so all work for its batches falls into it, and none for others. The floor is the bare JPEG decode of the same pictures
in the same run. Then the loaders feed steps that only wait: of the length given with --step-ms or --clips-per-s, else
one and a half times as long as the loader takes for a batch.
A good answer: the reference loader within 1.5 times the bare decode, and so DALI on the CPU, where OpenCV helps it;
stored pixels at a third of it; a step that is handed its batch within 5 ms.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import cv2
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.ceilings import bare_decode
from benchmarks.harness import measure, report
from benchmarks.options import chosen_device, device_option
from configs.allocator import keep_freed_memory
from configs.errors import UserError
from configs.load import check
from configs.schema import DataConfig
from pipeline.batch import InputSpec
from pipeline.loader import Loader, build_loader
from pipeline.loaders.dali import import_dali
from pipeline.source import ClipSource, LoaderRequest
from pipeline.store import Store

QUICK: dict[str, Any] = {"batch_size": 16}
GPU: dict[str, Any] = {"device": "cuda", "threads": 8, "batch_size": 256}
NEEDS = ("lmdb", "nvidia.dali")
_WINDOW_CLIPS = 512
_STEPS = 12


def add_options(parser: Any) -> None:
    """The options of this benchmark."""
    parser.add_argument("--batch-size", type=int, default=64, help="clips; default 64")
    parser.add_argument("--threads", type=int, default=1, help="of each loader; default 1")
    device_option(parser, "cpu")
    parser.add_argument("--step-ms", type=float, help="length of a training step")
    parser.add_argument("--clips-per-s", type=float, help="or what a training step gets through")


def run(
    store: Path,
    rounds: int,
    out: Path | None,
    batch_size: int = 64,
    threads: int = 1,
    device: str = "cpu",
    step_ms: float | None = None,
    clips_per_s: float | None = None,
) -> None:
    """Measure on `store`, print, and append rows to `out`."""
    if min(batch_size, threads, *(each for each in (step_ms, clips_per_s) if each is not None)) <= 0:
        raise UserError("--batch-size, --threads, --step-ms and --clips-per-s must be above 0")
    device = chosen_device(device).type
    keep_freed_memory()  # as train.py does on a CPU
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with Store(store) as opened:
        frontend, split = sound_of(opened), split_of(opened)
        numbers = opened.select(split)
        batch_size = min(batch_size, len(numbers))
        packed = opened.manifest["frames"].get("pixels", "jpeg")
        jpegs = [] if packed == "raw" else [opened.view(int(number)).blob("frames/0") for number in numbers]

        def config(name: str, pixels: str, **options: Any) -> DataConfig:
            given = {"batch_size": batch_size, "image": {"pixels": pixels}, "loader": {"name": name, **options}}
            return training(store, frontend, **given)

        kinds = [kind for kind in ("jpeg", "raw") if packed in (kind, "both")]
        configs = {
            f"{name}, {kind}": config(name, kind, **{option: threads})
            for kind in kinds
            for name, option in (("dali", "threads"), ("reference", "workers"))
        }
        if device == "cpu":
            configs[f"dali alone, {kinds[0]}"] = config("dali", kinds[0], threads=threads, change="dali")
        if device != "cpu":
            configs["resident"] = config("resident", "any", threads=threads)
        configs["synthetic"] = config("synthetic", "any")
        with ExitStack() as stack:
            variants: dict[str, Callable[[], int]] = {}
            if jpegs:
                variants["bare decode"] = lambda: bare_decode(jpegs, _WINDOW_CLIPS)
            loaders = {}
            for name, each in configs.items():
                loaders[name] = build_loader(each, InputSpec(), split, train=True, device=device)
                stack.callback(loaders[name].close)
                variants[name] = windows(loaders[name], batch_size)
            notes = {"bare decode": "the floor", f"dali alone, {kinds[0]}": "nothing by OpenCV: the graph of a GPU"}
            for name, with_sounds, note in (
                ("read only", False, "pictures through DALI, not decoded; sounds as views of the store"),
                ("read, sounds scaled", True, "the same, and sounds as a batch of input"),
            ):
                read = read_only(config("dali", kinds[0]), split, batch_size, with_sounds=with_sounds)
                variants[name], notes[name] = stack.enter_context(read), note
            figures = measure("loader_rate", variants, rounds, notes)
            facts = {
                "clips": len(numbers),
                "kB a picture": round(sum(map(len, jpegs)) / max(1, len(jpegs)) / 1000, 1),
                "batch": batch_size,
                "size_px": 224,
                "frontend": frontend["name"],
                "threads": threads,
                "device": device,
            }
            report(figures, "bare decode" if jpegs else None, out, facts)
            given_ms = step_ms or (1000 * batch_size / clips_per_s if clips_per_s else None)
            rates = {figure.variant: figure.value for figure in figures}
            _report_waits(loaders, rates, batch_size, given_ms)


def sound_of(store: Store) -> dict[str, Any]:
    """The first front-end of a store. Raises: UserError if it has none."""
    packed = store.manifest["frontends"]
    if not packed:
        raise UserError(f"{store.path} holds no spectrogram; add one: `python -m preprocess features {store.path}`")
    return packed[sorted(packed)[0]]


def split_of(store: Store) -> str:
    """The split to measure: train if there is one."""
    return "train" if "train" in store.splits else store.splits[0]


def training(store: Path, frontend: dict[str, Any], **changes: Any) -> DataConfig:
    """Data as training takes them: a random resized crop and a flip."""
    given = {
        "store": str(store),
        "audio": {"frontend": frontend},
        "augment": {"random_resized_crop": {}, "flip": {}},
    }
    return check(DataConfig, given | changes, "benchmark")


def windows(loader: Loader, batch_size: int, clips: int = _WINDOW_CLIPS) -> Callable[[], int]:
    """A variant of `measure`: the last batches of an epoch, of small stores those of several; another epoch each."""
    wanted = max(1, clips // batch_size)
    batches = min(wanted, len(loader))
    epoch = 0

    def take() -> int:
        nonlocal epoch
        clips = 0
        for _ in range(-(-wanted // batches)):
            epoch += 1
            loader.load_state_dict({"epoch": epoch, "samples": (len(loader) - batches) * batch_size})
            clips += sum(len(batch.clip_id) for batch in loader)
        return clips

    return take


@contextmanager
def read_only(data: DataConfig, split: str, batch_size: int, *, with_sounds: bool) -> Iterator[Callable[[], int]]:
    """A variant that plans and reads batches, hands the pictures to DALI, which does nothing with them, and, if asked,
    makes the sounds what a method takes, as every loader does on the CPU.
    """
    dali = import_dali()
    source = ClipSource(
        LoaderRequest(
            data=data,
            spec=InputSpec(),
            split=split,
            train=True,
            seed=0,
            rank=0,
            world_size=1,
            device=torch.device("cpu"),
            size_px=224,
            batch_size=batch_size,
        )
    )
    order = source.order(0)
    kept: list[Any] = []
    sheets: Iterator[int] = iter(())

    def feed() -> Any:
        sheet = source.sheet(0, order, 0, next(sheets) % source.plan.steps())
        blobs = source.read(sheet)
        kept.append((sheet, blobs))
        return blobs.pictures[0]

    example = source.read(source.sheet(0, order, 0, 0)).pictures[0][0]

    @dali.pipeline_def(batch_size=batch_size, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def graph() -> Any:
        return dali.fn.external_source(source=feed, batch=True, no_copy=True, dtype=dali.types.UINT8, ndim=example.ndim)

    pipeline = graph()
    wanted = max(1, _WINDOW_CLIPS // batch_size)

    def take() -> int:
        nonlocal sheets
        sheets = iter(range(wanted))
        pipeline.reset()
        for _ in range(wanted):
            pipeline.schedule_run()
            if with_sounds:
                source.heard(*kept[0])
            pipeline.share_outputs()
            pipeline.release_outputs()
            kept.clear()
        return wanted * batch_size

    try:
        yield take
    finally:
        pipeline._shutdown()
        source.close()


def _report_waits(
    loaders: dict[str, Loader], clips_per_s: dict[str, float], batch_size: int, given_ms: float | None
) -> None:
    """Print how long steps that only wait were kept from their batches."""
    table = Table(title=f"waiting for batches of {batch_size}")
    for heading in (
        "loader",
        "step ms",
        "kept waiting, ms a batch",
        "share of the time",
        "ready batches",
        "kB a clip",
        "",
    ):
        table.add_column(heading, justify="left" if heading in ("loader", "") else "right")
    for name, loader in loaders.items():
        step_s = (given_ms or 1.5 * 1000 * batch_size / clips_per_s[name]) / 1000
        waits = []
        epoch = 10_000
        while len(waits) < _STEPS + 1:
            epoch += 1
            loader.set_epoch(epoch)
            for _ in loader:
                waits.append(loader.stats())
                time.sleep(step_s)
                if len(waits) > _STEPS:
                    break
        waits = waits[1:]  # the first batch of all is not made ahead
        wait_s = sum(each.wait_s for each in waits) / len(waits)
        share = wait_s / (wait_s + step_s)
        table.add_row(
            name,
            f"{1000 * step_s:.1f}",
            f"{1000 * wait_s:.2f}",
            f"{share:.1%}",
            f"{sum(each.ready for each in waits) / len(waits):.1f}",
            f"{max(each.bytes_per_clip for each in waits) / 1000:.0f}",
            "data-bound" if share > 0.05 else "",
        )
    Console().print(table)
