"""Question: what does it cost to save a run, and to go on with it?

Method: train.py's own parts, on a store. Writing a checkpoint (weights, optimizer, loader, generators; atomically, and
synced to disk), reading one and putting it into a run; the first batch from the beginning of an epoch and from the
middle of one, by a loader that is there already; and from the command with --resume to the first step, in a new
process each time, as `startup` does for a run that begins. The ceiling is writing so many bytes to a file and syncing
it.
A good answer: writing near the bare file; an epoch's middle as quick as its beginning; --resume as quick as a start.
"""

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.end_to_end import Loop, training_config
from benchmarks.first_step import figures_of, timed_run
from benchmarks.harness import measure, report
from benchmarks.options import chosen_device, device_option
from configs.load import as_yaml

QUICK: dict[str, Any] = {"batch": 4, "device": "cpu", "no_starts": True}
GPU: dict[str, Any] = {"device": "cuda"}
NEEDS = ("lmdb", "msgpack")


def add_options(parser: Any) -> None:
    """The options of this benchmark."""
    parser.add_argument("--method", default="ez_vsl", help="of the preset METHOD_vggsound144k; default ez_vsl")
    parser.add_argument("--batch", type=int, help="clips; default: 128 on a GPU, 16 on a CPU")
    device_option(parser)
    parser.add_argument("--no-starts", action="store_true", help="only what needs no new process")


def run(
    store: Path,
    rounds: int,
    out: Path | None,
    method: str = "ez_vsl",
    batch: int | None = None,
    device: str = "auto",
    no_starts: bool = False,
) -> None:
    """Measure on `store`, print, and append rows to `out`."""
    from model.checkpoint import restore_parts, resumable

    place = chosen_device(device)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="whence-resume-")))
        config = training_config(method, store.resolve(), folder / "run", place, batch, 1, [])
        loop = Loop(stack, config, place)
        training = loop.training
        loop.window(1)()  # so that the optimizer has a state
        half = training.steps_per_epoch // 2
        training.step = half
        training.loader.load_state_dict({"epoch": 0, "samples": half * training.step_clips})
        training.save()
        saved, where = _found(resumable(folder / "run", config))
        size = where.stat().st_size

        def write() -> int:
            training.save()
            return 1

        def read() -> int:
            restored, path = _found(resumable(folder / "run", config))
            restore_parts(restored, str(path), training.model, training.optimizer, training.loader, training.ranks)
            return 1

        variants = {"bare file": _bare_write(folder / "bare", size), "write": write, "read": read}
        figures = measure("resume", variants, rounds, unit="s", device=place)
        batches = {
            "first batch, beginning": _first_batch(training.loader, 0),
            "first batch, middle": _first_batch(training.loader, half * training.step_clips),
        }
        facts = {"method": method, "checkpoint_mb": round(size / 1e6, 1), "batch": config.data.batch_size}
        facts["device"] = place.type
        report(figures, "bare file", out, facts)
        report(measure("resume", batches, rounds, unit="s", device=place), None, out, facts)
        named = {figure.variant: figure.value for figure in figures}
        told = f"written in {named['write']:.2f} s and read in {named['read']:.2f} s"
        Console().print(f"a checkpoint of {size / 1e6:.0f} MB is {told}", soft_wrap=True)
        if no_starts:
            return
        (folder / "config.yaml").write_text(as_yaml(config), encoding="utf-8")
        runs = []
        for turn in range(rounds + 1):  # the first one brings the files into the page cache
            shutil.copytree(folder / "run", folder / f"run{turn}")
            taken = timed_run([str(folder / "config.yaml"), f"out={folder / f'run{turn}'}", "--resume"])
            shutil.rmtree(folder / f"run{turn}")
            runs += [taken] if turn else []
    resumed = figures_of("resume", "--resume", runs)
    report(resumed, None, out, facts)
    Console().print(
        f"--resume takes its first step, step {saved.step + 1}, {resumed[0].value:.1f} s after the command",
        soft_wrap=True,
    )


def _found(saved: Any) -> Any:
    assert saved is not None
    return saved


def _bare_write(path: Path, size: int) -> Callable[[], int]:
    data = os.urandom(size)

    def write() -> int:
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return 1

    return write


def _first_batch(loader: Any, samples: int) -> Callable[[], int]:
    """A variant that goes to a place of another epoch each time and takes one batch."""
    epochs = itertools.count(1)

    def take() -> int:
        loader.load_state_dict({"epoch": next(epochs), "samples": samples})
        next(iter(loader))
        return 1

    return take
