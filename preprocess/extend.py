"""Further front-ends for a finished store, made from its waveforms; no media file is opened.

Every shard is written anew in the folder `adding` of the store. When all are there, they move beside the old ones under
new names (`shard-00003-1`), the manifest is replaced by one that names them, and the old ones are deleted. Whenever
this is stopped, the manifest names whole shards: the old ones or the new ones. The same command goes on.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import msgpack

from configs.errors import UserError
from configs.load import as_mapping
from configs.schema import FrontendConfig
from pipeline.record import Record, RecordView, decode, encode
from pipeline.store import DATA, INDEX, INDEX_COLUMNS, Store, index_row, key_of, read_manifest
from preprocess.files import ADDING, file_sha256, json_bytes, sync_folder, write_bytes
from preprocess.manifest_file import write_manifest
from preprocess.task import PLAN, SHARD, Engine, Report

_RECORDS_AT_ONCE = 256
Found = Callable[[int, int, int], None]
_SHARD = re.compile(r"(shard-\d+)(?:-(\d+))?")


@dataclass(frozen=True, kw_only=True)
class AddTask:
    """One shard to write anew with more front-ends: from `store/name` to `store/adding/new_name`."""

    store: Path
    name: str
    new_name: str
    clips: int
    frontends: tuple[FrontendConfig, ...]
    dtype: str

    @property
    def written(self) -> Path:
        return self.store / ADDING / self.new_name

    def write(self, report: Report) -> None:
        """Reports ("packed", clip_id) for every clip.

        Raises: UserError if the disk does not take it, or the old shard is damaged.
        """
        # Here, because only what computes needs torch and its memory.
        import torch

        from preprocess.shard import ShardData, read_back

        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as when packing: one thread always adds up in the same order
        temporary = self.store / ADDING / f"{self.new_name}.tmp"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            columns: dict[str, list[Any]] = {name: [] for name in INDEX_COLUMNS}
            with ShardData(temporary) as data:
                for record in self._extended():
                    data.append(encode(record))
                    for name, value in index_row(record).items():
                        columns[name].append(value)
                    report("packed", record.clip_id)
            index = msgpack.Packer().pack(columns)
            write_bytes(temporary / INDEX, index)
            read_back(temporary, self.clips)
            self._finish(temporary, columns, index)
        except (OSError, lmdb.Error) as error:
            if isinstance(error, ConnectionError):
                raise  # the process that asked for the shard is gone
            raise UserError(f"cannot write {temporary}: {error}. The store is as it was") from error
        finally:
            torch.set_num_threads(threads)
        report("shard", self.new_name)

    def _extended(self) -> Iterator[Record]:
        """The records with their new spectrograms, views of the old shard until the next one is asked for."""
        from preprocess.features import Resampled, spectrogram
        from preprocess.sound import Sound

        for number, value in self._values():
            if value is None or RecordView(value).damaged():
                raise UserError(
                    f"record {number} of {self.store / self.name} is damaged; run `python -m preprocess verify "
                    f"{self.store}`"
                )
            record = decode(value)
            assert record.waveform is not None and record.sample_rate_hz is not None, "checked before"
            rate_hz = record.sample_rate_hz
            sound = Resampled(
                Sound(samples=record.waveform.copy(), rate_hz=rate_hz, source_rate_hz=rate_hz, channels=1)
            )
            for frontend in self.frontends:
                array, error = spectrogram(sound, frontend, self.dtype)
                record.spectrograms[frontend.name] = array
                if error is not None:
                    record.spectrogram_error[frontend.name] = error
            yield record

    def _values(self) -> Iterator[tuple[int, memoryview | None]]:
        for first in range(0, self.clips, _RECORDS_AT_ONCE):
            # Opened anew for every few records, because what was read of a memory map counts as memory of the process.
            with (
                lmdb.open(str(self.store / self.name), readonly=True, lock=False, create=False) as environment,
                environment.begin(buffers=True) as transaction,
            ):
                for number in range(first, min(first + _RECORDS_AT_ONCE, self.clips)):
                    yield number, transaction.get(key_of(number))  # type: ignore[misc]  # a view, as buffers says

    def _finish(self, temporary: Path, columns: dict[str, list[Any]], index: bytes) -> None:
        from preprocess.features import storage

        old = self.store / self.name
        for file in old.iterdir():
            if file.name not in (DATA, INDEX, SHARD):
                shutil.copy2(file, temporary / file.name)
        errors = columns["spectrogram_error"]
        summary = json.loads((old / SHARD).read_bytes()) if (old / SHARD).is_file() else {}
        summary |= {
            "name": self.new_name,
            "clips": self.clips,
            "bytes": (temporary / DATA).stat().st_size,
            "sha256": file_sha256(temporary / DATA),
            "index_sha256": hashlib.sha256(index).hexdigest(),
            "spectrogram_storage": summary.get("spectrogram_storage", {})
            | {
                item.name: storage(item, self.dtype, [0.0, *(each.get(item.name, 0.0) for each in errors)])
                for item in self.frontends
            },
        }
        write_bytes(temporary / SHARD, json_bytes(summary))
        sync_folder(temporary)
        temporary.rename(self.written)
        sync_folder(self.written.parent)


@dataclass(frozen=True, kw_only=True)
class Extended:
    """added, there: names of the front-ends that this call added, and of those that the store had. notes: what a person
    should know.
    """

    added: tuple[str, ...]
    there: tuple[str, ...]
    notes: tuple[str, ...] = ()


def extend(
    path: Path,
    frontends: Sequence[FrontendConfig],
    dtype: str,
    engine: Engine,
    *,
    report: Report = lambda kind, what: None,
    found: Found = lambda expected, packed, refused: None,
) -> Extended:
    """Add the front-ends that a store lacks, or go on where an earlier call stopped.

    dtype: "float16" or "uint8". report, found: as for `preprocess.writer.pack`.
    Raises: UserError if the store is not whole, has no waveforms, or has a front-end of that name with other
    parameters; if another process is at it; if the disk does not take it.
    """
    read_manifest(path)  # says what is wrong if there is no store
    with _claimed(path):
        return _extend(path, frontends, dtype, engine, report, found)


def _extend(
    path: Path, frontends: Sequence[FrontendConfig], dtype: str, engine: Engine, report: Report, found: Found
) -> Extended:
    with Store(path) as store:
        manifest, index = store.manifest, store.index
        new = tuple(item for item in frontends if not _has(path, manifest, item, dtype))
        there = tuple(item.name for item in frontends if item not in new)
        tasks = _tasks(path, manifest["shards"], new, dtype)
        _take_back(path, tasks)
        if not new:
            shutil.rmtree(path / ADDING, ignore_errors=True)
            return Extended(added=(), there=there)
        _refuse_sound(path, index, new)
    _begin(path, manifest, new, dtype, _bytes_needed(manifest, index, new, dtype))
    missing = [task for task in tasks if not task.written.is_dir()]
    found(manifest["packed"], manifest["packed"] - sum(task.clips for task in missing), 0)
    engine.run(missing, report, lambda task, clip_id, detail: task)
    _switch(path, manifest, tasks)
    notes = _notes(new, min(index["sample_rate_hz"]))
    return Extended(added=tuple(item.name for item in new), there=there, notes=notes)


@contextmanager
def _claimed(path: Path) -> Iterator[None]:
    """The store closed to other processes that change it. Raises: UserError if one is at it."""
    folder = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is changing {path}; wait for it, or stop it first") from error
        yield
    finally:
        os.close(folder)


def _has(path: Path, manifest: dict[str, Any], frontend: FrontendConfig, dtype: str) -> bool:
    """Whether a store has a front-end already. Raises: UserError if it has another one of that name."""
    if frontend.name not in manifest["frontends"]:
        return False
    was, wanted = manifest["frontends"][frontend.name], as_mapping(frontend)
    differing = [
        f"{key} is {was.get(key)!r} there, {wanted[key]!r} now" for key in wanted if was.get(key) != wanted[key]
    ]
    stored = manifest["spectrogram_storage"][frontend.name]["dtype"]
    if stored != dtype:
        differing.append(f"it is stored as {stored}, asked is {dtype}")
    if differing:
        raise UserError(
            f"{path} has a front-end '{frontend.name}' of other parameters ({'; '.join(differing)}). Copy the file of "
            "yours to another name, and add that"
        )
    return True


def _refuse_sound(path: Path, index: dict[str, list], frontends: Sequence[FrontendConfig]) -> None:
    """Raises: UserError if some clip's waveform is not there, or is not what a front-end hears."""
    names = " ".join(item.name for item in frontends)
    silent = sum(not count for count in index["waveform_samples"])
    if silent:
        raise UserError(
            f"{silent} of {len(index['clip_id'])} clips of {path} have no waveform to make a spectrogram from (it was "
            f"packed with --no-waveform, or from spectrograms); pack the data again with --frontend {names}"
        )
    first = [item.name for item in frontends if item.channel == "first"]
    several = sum(count > 1 for count in index["channels"])
    if first and several:
        raise UserError(
            f"front-end {first[0]} hears the first channel, but {path} holds the mean of all, and {several} of "
            f"{len(index['clip_id'])} clips had several. Pack the data again with --frontend {names}, or copy the file "
            f"configs/frontends/{first[0]}.yaml to another name with channel: mean, and add that"
        )


def _tasks(
    path: Path, shards: list[dict[str, Any]], frontends: tuple[FrontendConfig, ...], dtype: str
) -> list[AddTask]:
    tasks = []
    for shard in shards:
        match = _SHARD.fullmatch(shard["name"])
        assert match is not None, f"{shard['name']} is no name of a shard"
        new_name = f"{match[1]}-{int(match[2] or 0) + 1}"
        tasks.append(
            AddTask(
                store=path,
                name=shard["name"],
                new_name=new_name,
                clips=shard["clips"],
                frontends=frontends,
                dtype=dtype,
            )
        )
    return tasks


def _take_back(path: Path, tasks: Sequence[AddTask]) -> None:
    """Tidy up after a call that was stopped while it renamed or deleted shards."""
    for task in tasks:
        moved = path / task.new_name
        if moved.is_dir():  # it has its name, but no manifest names it yet
            task.written.parent.mkdir(exist_ok=True)
            moved.rename(task.written)
        _remove_replaced(path, task.name)


def _remove_replaced(path: Path, name: str) -> None:
    """Delete the shards whose place the shard `name` has taken."""
    match = _SHARD.fullmatch(name)
    assert match is not None
    for number in range(int(match[2] or 0)):
        shutil.rmtree(path / (f"{match[1]}-{number}" if number else match[1]), ignore_errors=True)


def _bytes_needed(
    manifest: dict[str, Any], index: dict[str, list], frontends: Sequence[FrontendConfig], dtype: str
) -> int:
    """Bytes of the store with the new front-ends, about."""
    seconds = sum(count / rate_hz for count, rate_hz in zip(index["waveform_samples"], index["sample_rate_hz"]))
    value_bytes = 1 if dtype == "uint8" else 2
    new = sum(seconds * item.sample_rate_hz / item.hop * item.bins * value_bytes for item in frontends)
    return round(1.02 * (sum(shard["bytes"] for shard in manifest["shards"]) + new))


def _begin(
    path: Path, manifest: dict[str, Any], frontends: Sequence[FrontendConfig], dtype: str, needed_bytes: int
) -> None:
    """The folder of the new shards, with those in it that an earlier call of the same kind finished."""
    folder = path / ADDING
    plan = json_bytes(
        {
            "frontends": [as_mapping(item) for item in frontends],
            "dtype": dtype,
            "shards": [shard["sha256"] for shard in manifest["shards"]],
        }
    )
    try:
        if not (folder / PLAN).is_file() or (folder / PLAN).read_bytes() != plan:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            write_bytes(folder / PLAN, plan)
        there = sum(file.stat().st_size for file in folder.glob(f"*/{DATA}"))
        free = shutil.disk_usage(path).free
    except OSError as error:
        raise UserError(f"cannot write into {path}: {error}") from error
    if needed_bytes - there > free:
        raise UserError(
            f"{path} is written anew beside itself: about {(needed_bytes - there) / 2**30:.2f} GiB are needed there, "
            f"{free / 2**30:.2f} GiB are free"
        )


def _switch(path: Path, manifest: dict[str, Any], tasks: Sequence[AddTask]) -> None:
    """Let the manifest name the new shards, and delete the old ones."""
    summaries = [json.loads((task.written / SHARD).read_bytes()) for task in tasks]
    stored = dict(manifest["spectrogram_storage"])
    for item in tasks[0].frontends:
        said = [summary["spectrogram_storage"][item.name] for summary in summaries]
        stored[item.name] = max(said, key=lambda each: each.get("max_error", 0.0))
    for task in tasks:
        task.written.rename(path / task.new_name)
    sync_folder(path)
    write_manifest(
        path,
        {
            **manifest,
            "frontends": manifest["frontends"] | {item.name: as_mapping(item) for item in tasks[0].frontends},
            "spectrogram_storage": stored,
            "shards": [
                {key: new.get(key, value) for key, value in old.items()}
                for old, new in zip(manifest["shards"], summaries)
            ],
        },
    )
    for task in tasks:
        _remove_replaced(path, task.new_name)
    shutil.rmtree(path / ADDING, ignore_errors=True)


def _notes(frontends: Sequence[FrontendConfig], rate_hz: int) -> tuple[str, ...]:
    return tuple(
        f"{item.name} hears up to {item.sample_rate_hz / 2:g} Hz, but the store's waveforms hold nothing above "
        f"{rate_hz / 2:g} Hz"
        for item in frontends
        if item.sample_rate_hz > rate_hz
    )
