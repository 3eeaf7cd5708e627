"""No question: follows a store of 144,000 clips through packing, checking, opening and an epoch, thousand by thousand.

Method: a store of made clips (see make_store) is packed by one process, every byte is verified, it is opened, and one
epoch of it is read by the reference and by the DALI loader, batch 64, with a random resized crop and a flip. Every
thousand clips are a round: CPU time of this process and its children, clips a second, and their memory, apart from
pages of files, which the system takes back when it needs them. The first thousand of a stage, which start things up,
are in the course (`large_store_course.jsonl`), not in the figures.
A good answer: the last thousand cost what the second did, memory does not grow, and the size is that of pictures and
sounds and a few percent more.

`python -m benchmarks large_store --store OUT --clips 144000 --out ROWS` needs 13 GB, and goes on with a store that is
there. It takes an hour, so that `all` leaves it out.
"""

import contextlib
import os
import resource
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import torch

from benchmarks.harness import Figure, append_lines, descendants, half_interval, measure, origin, report
from benchmarks.loader_rate import training
from benchmarks.make_store import make
from configs.allocator import keep_freed_memory
from configs.errors import UserError
from configs.load import load_frontend
from pipeline.batch import InputSpec
from pipeline.loader import build_loader
from pipeline.store import MANIFEST, Store, read_manifest
from preprocess.options import PackConfig
from preprocess.verify import verify

_EVERY = 1000
_LEAST = 5 * _EVERY
_BATCH = 64
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def add_options(parser: Any) -> None:
    """The options of this benchmark."""
    parser.add_argument("--clips", type=int, default=144_000, help="default 144000, at least 5000")
    parser.add_argument("--seconds", type=float, default=10.0, help="of sound a clip; default 10")
    parser.add_argument("--frontend", default="logmel64", help="default logmel64")


def run(
    store: Path | None,
    rounds: int,
    out: Path | None,
    clips: int = 144_000,
    seconds: float = 10.0,
    frontend: str = "logmel64",
) -> None:
    """Pack unless `store` is there, verify, open `rounds` times, read; print, and append rows to `out`.

    Raises: UserError.
    """
    if store is None:
        raise UserError("name the store with --store: a folder that large_store made, or a new one for it to make")
    if clips < _LEAST:
        raise UserError(f"--clips must be at least {_LEAST}, for every thousand is a round; found {clips}")
    keep_freed_memory()  # as train.py does on a CPU
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    facts = {"store_clips": clips, "frontend": frontend, "seconds": seconds, "batch": _BATCH}
    course: list[dict[str, Any]] = []
    note = ""
    if not (store / MANIFEST).is_file():
        watch = _Watch("pack", course)
        config = PackConfig(frontends=(load_frontend(frontend),), waveform=False)

        def packed(kind: str, what: str) -> None:
            if kind == "packed":
                watch.done(1)

        _, payload = make(store, clips, seconds, config, 1, packed)
        size = sum(shard["bytes"] for shard in read_manifest(store)["shards"])
        note = f"{size / 1e9:.2f} GB, {size / payload - 1:.1%} above pictures and sounds"
    manifest = read_manifest(store)
    if manifest["packed"] != clips or frontend not in manifest["frontends"]:
        raise UserError(
            f"{store} holds {manifest['packed']} clips with {', '.join(manifest['frontends'])}; asked for are {clips} "
            f"with {frontend}: name another folder with --store"
        )
    watch = _Watch("verify", course)
    sizes = {shard["name"]: shard["clips"] for shard in manifest["shards"]}
    problems = verify(store, lambda shard: watch.done(sizes[shard]), workers=1)
    if problems:
        raise UserError(f"{store} is damaged: {problems[0]}")

    def opened() -> int:
        with Store(store) as whole:
            return len(whole)

    opening = measure("large_store", {"open": opened}, rounds)
    for name, option in (("reference", "workers"), ("dali", "threads")):
        data = training(store, manifest["frontends"][frontend], batch_size=_BATCH, loader={"name": name, option: 1})
        watch = _Watch(f"epoch, {name}", course)
        with contextlib.closing(build_loader(data, InputSpec(), "train", train=True)) as loader:
            for batch in loader:
                watch.done(len(batch.clip_id))
    report([*figures(course, {"pack": note}), *opening], None, out, facts)
    if out is not None:
        append_lines(out / "large_store_course.jsonl", [row | origin() | facts for row in course])


def figures(course: Sequence[dict[str, Any]], notes: Mapping[str, str]) -> list[Figure]:
    """A figure for each stage of the course, without its first round."""
    found = []
    for stage in dict.fromkeys(row["variant"] for row in course):
        rows = [row for row in course if row["variant"] == stage][1:]
        cpu, rates, memory = ([row[name] for row in rows] for name in ("cpu_ms", "value", "memory_mb"))
        spread = f"CPU-ms {min(cpu):.3f} to {max(cpu):.3f}; memory {memory[0]:.0f} to {memory[-1]:.0f} MB"
        found.append(
            Figure(
                benchmark="large_store",
                variant=stage,
                unit="clips/s",
                value=statistics.median(rates),
                value_interval=half_interval(rates),
                cpu_ms=statistics.median(cpu),
                cpu_ms_interval=half_interval(cpu),
                by="cpu",
                peak_mb=max(memory),
                gpu_ms=None,
                gpu_peak_mb=None,
                rounds=len(rows),
                note="; ".join(part for part in (notes.get(stage, ""), spread) if part),
            )
        )
    return found


class _Watch:
    """Adds a row to the course of a stage after every thousand clips."""

    def __init__(self, stage: str, course: list[dict[str, Any]]) -> None:
        self._stage, self._course = stage, course
        self._clips = self._marked = 0
        self._mark = (time.perf_counter(), _cpu_s())

    def done(self, clips: int) -> None:
        self._clips += clips
        taken = self._clips - self._marked
        if taken < _EVERY:
            return
        now = (time.perf_counter(), _cpu_s())
        own_mb, of_files_mb = _memory_mb()
        self._course.append(
            {
                "benchmark": "large_store_course",
                "variant": self._stage,
                "clips_done": self._clips,
                "unit": "clips/s",
                "value": taken / (now[0] - self._mark[0]),
                "cpu_ms": 1000 * (now[1] - self._mark[1]) / taken,
                "memory_mb": own_mb,
                "file_pages_mb": of_files_mb,
                "rounds": 1,
            }
        )
        self._mark, self._marked = now, self._clips


def _children() -> list[tuple[Path, list[str]]]:
    """Folder and fields of `stat`, from the process state on, of every process that comes from this one."""
    found = []
    for folder in (Path(f"/proc/{pid}") for pid in descendants(os.getpid())):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            found.append((folder, fields))
    return found


def _cpu_s() -> float:
    """CPU time of this process, and of its children, running or done."""
    done = resource.getrusage(resource.RUSAGE_CHILDREN)
    running = sum(int(fields[11]) + int(fields[12]) for _, fields in _children())
    return time.process_time() + done.ru_utime + done.ru_stime + _TICK_S * running


def _memory_mb() -> tuple[float, float]:
    """Memory of this process and its children now: their own, and pages of files."""
    own = of_files = 0
    for folder in (Path("/proc/self"), *(folder for folder, _ in _children())):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            status = (folder / "status").read_text(encoding="utf-8")
            found = dict(line.split(":", 1) for line in status.splitlines())
            own += sum(int(found[key].split()[0]) for key in ("RssAnon", "RssShmem") if key in found)
            of_files += int(found.get("RssFile", "0").split()[0])
    return own * 1024 / 1e6, of_files * 1024 / 1e6
