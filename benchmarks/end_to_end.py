"""Question: how many clips a second does training get through, and what bounds it: disk, decode, copy or step?

Method: the loop of train.py itself, from a store, against the parts of it: the loader alone (reading, decoding,
augmenting), the loop with a few batches that stay in memory (the step alone), on a GPU copying batches to it from
pinned memory, and reading whole records from disk that are in no cache. A window is the end of an epoch, so nothing is
made ahead of it and nothing is left over; the first batch of a window is waited for in full. The wait for data is the
loop's own figure. The field's way beside it: its loader for the method (`benchmarks.field_ways`) in as many processes
as ours has threads, and its eager float32 step (`benchmarks.field_steps`). On a CPU loader and step share the cores:
CPU time is compared, and the field's loader works in the loop's process. Weights are drawn, and nothing is scored.
A good answer: training at 0.95 of its slowest part or more; several times the field's way.
"""

import json
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.field_steps import FieldStep, step_config
from benchmarks.harness import measure, report
from benchmarks.options import chosen_device, device_option
from benchmarks.suite import missing
from configs.allocator import keep_freed_memory
from configs.errors import UserError
from configs.schema import RunConfig
from pipeline.batch import Batch
from pipeline.sizes import synthetic_batch

QUICK: dict[str, Any] = {"batch": 4, "steps": 2, "device": "cpu"}
GPU: dict[str, Any] = {"device": "cuda"}
NEEDS = ("lmdb", "msgpack")
_STEPS = {"cpu": 4, "cuda": 50}
_DISK_BYTES = 256 * 2**20


def add_options(parser: Any) -> None:
    """The options of this benchmark."""
    parser.add_argument("--method", default="ez_vsl", help="of the preset METHOD_vggsound144k; default ez_vsl")
    parser.add_argument("--set", dest="changes", nargs="+", default=[], metavar="KEY=VALUE", help="changes")
    parser.add_argument("--batch", type=int, help="clips; default: the preset's on a GPU, 16 on a CPU")
    parser.add_argument("--steps", type=int, help="of a window; default: 50 on a GPU, 4 on a CPU")
    parser.add_argument("--workers", type=int, help="threads of our loader; on a GPU also processes of the field's")
    device_option(parser)


def run(
    store: Path,
    rounds: int,
    out: Path | None,
    method: str = "ez_vsl",
    changes: list[str] | None = None,
    batch: int | None = None,
    steps: int | None = None,
    workers: int | None = None,
    device: str = "auto",
) -> None:
    """Measure on `store`, print, and append rows to `out`."""
    from benchmarks.loader_rate import windows  # here, as all that needs lmdb
    from pipeline.loader import build_loader

    if min(1 if given is None else given for given in (batch, steps, workers)) < 1:
        raise UserError("--batch, --steps and --workers must be above 0")
    place = chosen_device(device)
    cores = len(os.sched_getaffinity(0))
    workers = workers or max(1, min(8, cores - 1))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="whence-end-")))
        config = training_config(method, store, folder / "ours", place, batch, workers, changes or [])
        if place.type == "cpu":
            keep_freed_memory()
        loop = Loop(stack, config, place)
        steps = min(steps or _STEPS[place.type], loop.training.steps_per_epoch)
        replayed = Loop(stack, _replayed(config, folder / "replayed"), place)
        alone = build_loader(config.data, config.model.inputs, config.data.train_split, train=True, device=place)
        stack.callback(alone.close)
        clips = config.data.batch_size
        variants: dict[str, Callable[[], float]] = {
            "training": loop.window(steps),
            "step": replayed.window(steps),
            "loader": windows(alone, clips, steps * clips),
        }
        notes = {"step": "the loop with batches in memory", "loader": "read, decode, augment", **loop.notes}
        if place.type == "cuda":
            variants["copy"] = _copies(config, place, steps)
            notes["copy"] = "from pinned memory"
        usual = _field(config, folder, place, steps, workers if place.type == "cuda" else 0)
        if usual is not None:
            variants["field's way"], notes["field's way"] = usual
        figures = measure("end_to_end", variants, rounds, notes, device=place)
        waits = loop.wait_shares()[-figures[0].rounds :]
        reads, note = {"disk": disk_reads(store)}, {"disk": "whole records, from no cache"}
        (disk,) = measure("end_to_end", reads, rounds, note, by="wall")
    facts = {
        "method": method, "batch": clips, "steps": steps, "workers": workers, "precision": config.train.precision,
        "compiled": config.train.compile, "wait_share": round(statistics.median(waits), 4), "device": place.type,
    }  # fmt: skip
    rates = {figure.variant: 1000 / figure.cpu_ms if figure.by == "cpu" else figure.value for figure in figures}
    if disk.value < figures[0].value:
        rates["disk"] = disk.value
    slowest = min(("step", "loader", "copy"), key=lambda name: rates.get(name, float("inf")))
    report(figures, slowest, out, facts, "field's way" if usual else None)
    report([disk], None, out, facts)
    Console().print(verdict(rates, statistics.median(waits), facts, cores), soft_wrap=True, highlight=False)


def training_config(
    method: str, store: Path, out: Path, device: torch.device, batch: int | None, workers: int, changes: list[str]
) -> RunConfig:
    """The preset of a method on a store, with the store's own front-end if it lacks the preset's, scoring nothing."""
    from benchmarks.loader_rate import sound_of, split_of
    from pipeline.store import Store

    with Store(store) as opened:
        first, split, packed = sound_of(opened), split_of(opened), opened.manifest["frontends"]
    size = batch or (128 if device.type == "cuda" else 16)
    given = [f"data.store={store}", f"data.train_split={split}", f"out={out}", f"train.device={device.type}"]
    given += ["train.boards=[]", "train.log_every_steps=1000000000"]
    wanted = step_config(method, device, size, []).data.audio.frontend.name
    if wanted not in packed:
        given.append(f"data.audio.frontend={json.dumps(first)}")
    option = {"dali": "threads", "reference": "workers"}
    name = "reference" if missing(["nvidia.dali"]) else "dali"
    given.append(f"data.loader={{name: {name}, {option[name]}: {workers}}}")
    config = step_config(method, device, size, [*given, *changes])
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"sets": {}})})


def _replayed(config: RunConfig, out: Path) -> RunConfig:
    """The same run with the synthetic loader, which hands out the store's first batches over and over."""
    from configs.schema import component_config

    data = config.data.model_copy(update={"loader": component_config("pipeline.loaders", "synthetic", {"batches": 2})})
    return config.model_copy(update={"data": data, "out": out})


class Loop:
    """A run of train.py, moved to where a window of steps is to be measured."""

    def __init__(self, stack: ExitStack, config: RunConfig, device: torch.device) -> None:
        import train
        from model.distributed import Ranks

        train.console.quiet = True
        self.training = stack.enter_context(train.Training(config, device, Ranks(device), resume=False))
        self.notes = {"training": ", ".join(f"{key} {value}" for key, value in self.training.loader.describe().items())}
        self.epoch = 0

    def window(self, steps: int) -> Callable[[], int]:
        """A variant of `measure`: the last steps of another epoch each time."""
        training = self.training

        def take() -> int:
            self.epoch += 1
            first = (training.steps_per_epoch - steps) * training.step_clips
            training.loader.load_state_dict({"epoch": self.epoch, "samples": first})
            training.step = (self.epoch + 1) * training.steps_per_epoch - steps
            training.last_step = training.step + steps
            training.train_epoch()
            return steps * training.step_clips

        return take

    def wait_shares(self) -> list[float]:
        """The share of each window in which the loop waited for data, from its log."""
        lines = (self.training.record.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["data_wait_share"] for line in lines]


def _copies(config: RunConfig, device: torch.device, steps: int) -> Callable[[], int]:
    noise = synthetic_batch(config.data, config.model.inputs, config.data.batch_size, torch.device("cpu"))
    pinned = Batch(**{name: _pinned(value) for name, value in vars(noise).items()})

    def take() -> int:
        for _ in range(steps):
            pinned.to(device, non_blocking=True)
        return steps * len(pinned.clip_id)

    return take


def _pinned(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_pinned(each) for each in value)
    return value.pin_memory() if isinstance(value, torch.Tensor) else value


def _field(
    config: RunConfig, folder: Path, device: torch.device, steps: int, workers: int
) -> tuple[Callable[[], int], str] | None:
    """The field's training on the clips of the store, and a note; None, and why, if it cannot be had here."""
    from benchmarks.field_ways import WAYS, field_batches, read_clips, write_clips
    from pipeline.store import Store

    ways = {way.preset: way for way in WAYS.values()}
    way = ways.get(f"{config.model.name}_vggsound144k")
    lacking = missing(["scipy", "av", "cv2"])
    if way is None or lacking or config.data.image.size_px != 224:
        why = f"needs {', '.join(lacking)}" if lacking else "is known for the methods of `field_ways`, at 224 px"
        Console().print(f"left out: the field's way, which {why}", soft_wrap=True)
        return None
    assert config.data.store is not None
    batch = config.data.batch_size
    with Store(config.data.store) as opened:
        numbers = opened.select(config.data.train_split)[: max(64, batch)]
        names = write_clips(folder / "field", read_clips(opened, numbers))
    batches = field_batches(way(folder / "field", names), batch, steps, workers)
    step = FieldStep(config, device, standardised=way is not WAYS["SIRA"])

    def take() -> int:
        for fields in batches:
            count = len(fields["image"])
            given = Batch(clip_id=[""] * count, valid=torch.ones(count, dtype=torch.bool), **_float32(fields))
            step(given.to(device))
        return steps * batch

    where = f"{workers} processes, whose CPU time is not counted" if workers else "read where it trains"
    return take, f"{way.about}; {step.about}; {where}"


def _float32(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(each.float() for each in value) if isinstance(value, (list, tuple)) else value.float()
        for name, value in fields.items()
    }


def disk_reads(store: Path, at_most: int = _DISK_BYTES) -> Callable[[], float]:
    """A variant that reads whole records, as they lie, after the system was asked to forget them; clips.

    What another process holds in memory, or a file system that lives there, is not forgotten.
    """
    from pipeline.store import DATA, Store

    with Store(store) as opened:
        files = [opened.path / shard["name"] / DATA for shard in opened.manifest["shards"]]
        clip_bytes = sum(file.stat().st_size for file in files) / len(opened)

    def take() -> float:
        done = 0
        for file in files:
            with open(file, "rb", buffering=0) as data:
                os.posix_fadvise(data.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                while done < at_most and (piece := data.read(2**22)):
                    done += len(piece)
            if done >= at_most:
                break
        return done / clip_bytes

    return take


_ADVICE = {
    "step": "make the step cheaper: {step}",
    "loader": "decode faster or less: {loader}",
    "copy": "keep the decoded set on the GPU: data.loader.name=resident",
    "disk": "keep the store in memory: data.warm_up=true, or pack smaller records (--uint8, --no-waveform)",
}


def verdict(rates: Mapping[str, float], wait_share: float, facts: Mapping[str, Any], cores: int) -> str:
    """One sentence: what bounds training here, by how much, and which option to change.

    rates: clips/s of "training" and of its parts alone, on a CPU of CPU time. "disk" is among them only where it could
    not feed training, which counts in the first epoch, and in all of them if memory does not hold the store.
    """
    parts = {name: rates[name] for name in ("step", "loader", "copy") if name in rates}
    slowest = min(parts, key=lambda name: parts[name])
    others = ", ".join(f"{name} {rate:.4g}" for name, rate in parts.items() if name != slowest)
    step = [
        *(["train.precision=bf16"] if facts["precision"] == "fp32" and facts["device"] == "cuda" else []),
        *(["train.compile=true"] if not facts["compiled"] and facts["device"] == "cuda" else []),
        "a GPU, a smaller data.image.size_px or a frozen image encoder" if facts["device"] == "cpu" else "another GPU",
    ]
    more = f"data.loader.threads={cores}, " if facts["workers"] < cores and facts["device"] == "cuda" else ""
    loader = f"{more}data.image.pixels=raw from a store packed with --pixels both"
    advice = _ADVICE[slowest].format(step=", ".join(step), loader=loader)
    of_cpu = " of CPU time" if facts["device"] == "cpu" else ""
    disk = ""
    if "disk" in rates:
        disk = f"; from disk alone only {rates['disk']:.4g} clips/s come, so {_ADVICE['disk']}"
    return (
        f"bound by the {slowest}: alone it does {parts[slowest]:.4g} clips/s{of_cpu} ({others}), and training "
        f"{rates['training']:.4g}, waiting for data {wait_share:.0%} of the time; {advice}{disk}."
    )
