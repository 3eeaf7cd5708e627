"""Question: how fast do the stored bytes of clips come, and is the store or the memory the limit?

Method: the records of a store, from a warm page cache, copied into one buffer as they lie there: whole, in the order of
their keys and in a random one, and only what a training batch takes of them (a picture and a third of a sound, at
random). The ceilings are copying memory to memory, into a buffer of the same size, and copying the pages of the shards.
The field's ways: a file for the picture and one for the sound of every clip, opened and read; and an LMDB transaction
and a copy of the whole value for every clip. On one thread.
A good answer: whole records above 0.7 of memory to memory in either order, for then only less data would help; the part
of a batch in half the time of files or less.
"""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from benchmarks.ceilings import memory_copy, page_cache, record_copies
from benchmarks.harness import measure, report
from pipeline.record import RecordView
from pipeline.store import DATA, Store, key_of

QUICK: dict[str, Any] = {"megabytes": 64}
_SOUND_SHARE = 0.3  # of a stored sound: 3 s of 10


def add_options(parser: Any) -> None:
    """The options of this benchmark."""
    parser.add_argument("--megabytes", type=int, default=256, help="of records in a round; default 256")


def run(store: Path, rounds: int, out: Path | None, megabytes: int = 256) -> None:
    """Measure on `store`, print, and append rows to `out`."""
    at_most = megabytes * 10**6
    with ExitStack() as stack:
        opened = stack.enter_context(Store(store))
        files = [opened.path / shard["name"] / DATA for shard in opened.manifest["shards"]]
        in_order = list(range(len(opened)))
        at_random = np.random.default_rng(0).permutation(len(opened)).tolist()
        facts = {
            "clips": len(opened),
            "kB a clip": round(sum(file.stat().st_size for file in files) / len(opened) / 1e3),
        }
        largest = max(opened.value(number).nbytes for number in in_order)
        whole = {
            "memory to memory": memory_copy(min(at_most, 128 * 2**20), largest),
            "pages of the shards": page_cache(files, at_most),
            "records, in order": record_copies(opened.value, in_order, at_most),
            "records, at random": record_copies(opened.value, at_random, at_most),
        }
        report(measure("read_rate", whole, rounds, unit="GB/s"), "memory to memory", out, facts)

        wanted = at_random[: max(1, at_most // 500_000)]
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="whence-read-")))
        names = _blob_names(opened.view(wanted[0]))
        pieces = [np.concatenate([_part(opened.view(number), name) for name in names]) for number in wanted]
        parts = {
            "memory to memory": _array_copies(pieces),
            "picture and window": _blob_copies(opened, wanted, names),
            "files": _file_reads(folder, opened, wanted, names),
            "a transaction a clip": _transactions(opened, wanted, stack),
        }
        notes = {
            "picture and window": f"{np.mean([len(piece) for piece in pieces]) / 1000:.0f} kB a clip, in place",
            "files": "a picture and a whole sound, opened, read, closed",
            "a transaction a clip": "the whole value as bytes",
        }
        report(measure("read_rate", parts, rounds, notes), "memory to memory", out, facts, field="files")


def _blob_names(view: RecordView) -> list[str]:
    """The first picture and the first sound."""
    names = view.names()
    picture = next(name for name in names if name in ("frames/0", "raw/0"))
    return [picture, *[name for name in names if name.startswith("spectrogram/") or name == "waveform"][:1]]


def _part(view: RecordView, name: str) -> np.ndarray:
    """The bytes of a blob, of a sound those of a window in its middle."""
    blob = view.blob(name)
    if not name.startswith(("frames/", "raw/")):
        length = max(1, round(len(blob) * _SOUND_SHARE))
        start = (len(blob) - length) // 2
        blob = blob[start : start + length]
    return blob.reshape(-1).view(np.uint8)


def _array_copies(arrays: Sequence[np.ndarray]) -> Callable[[], float]:
    target = np.empty(max(map(len, arrays)), np.uint8)

    def run() -> float:
        for array in arrays:
            target[: len(array)] = array
        return len(arrays)

    return run


def _blob_copies(store: Store, numbers: Sequence[int], names: Sequence[str]) -> Callable[[], float]:
    target = np.empty(10**7, np.uint8)

    def run() -> float:
        for number in numbers:
            view = store.view(number)
            for name in names:
                part = _part(view, name)
                target[: len(part)] = part
        return len(numbers)

    return run


def _file_reads(folder: Path, store: Store, numbers: Sequence[int], names: Sequence[str]) -> Callable[[], float]:
    paths = []
    for number in numbers:
        for place, name in enumerate(names):
            path = folder / f"{number}-{place}"
            path.write_bytes(store.view(number).blob(name).tobytes())
            paths.append(path)

    def run() -> float:
        for path in paths:
            path.read_bytes()
        return len(numbers)

    return run


def _transactions(store: Store, numbers: Sequence[int], stack: ExitStack) -> Callable[[], float]:
    """The values once more in one environment of their own, read as users of LMDB commonly do."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="whence-read-"))
    size = sum(store.value(number).nbytes for number in numbers)
    environment = lmdb.open(folder, map_size=2 * size + 2**20)
    stack.callback(environment.close)
    with environment.begin(write=True) as transaction:
        for number in numbers:
            transaction.put(key_of(number), bytes(store.value(number)))

    def run() -> float:
        for number in numbers:
            with environment.begin() as transaction:
                transaction.get(key_of(number))
        return len(numbers)

    return run
