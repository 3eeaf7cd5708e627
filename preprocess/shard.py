"""One shard: its records made, written, read back, and given a name."""

import errno
import hashlib
import platform
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import cv2
import lmdb
import msgpack
import numpy
import PIL
import torch
import torchaudio

from configs.errors import UserError
from pipeline.record import RecordView, encode
from pipeline.store import DATA, INDEX, INDEX_COLUMNS, index_row, key_of
from preprocess.clip import make_record
from preprocess.features import storage
from preprocess.files import file_sha256, json_bytes, sync_folder, write_bytes
from preprocess.flow import description
from preprocess.layout import SourceClip
from preprocess.quality import QUALITY
from preprocess.refusals import Refused
from preprocess.task import SHARD, Report, ShardTask

_LIBRARIES = (av, cv2, lmdb, numpy, PIL, torch, torchaudio)

_RECORDS_PER_TRANSACTION = 256
_BYTES_PER_TRANSACTION = 16 * 2**20  # memory for more is mapped anew each time, which costs more than syncing oftener
_MAP_BYTES = 64 * 2**20  # first size of the map; it doubles when it is full
_RECORDS_READ_BACK = 64


def write_shard(task: ShardTask, report: Report) -> None:
    """Write, check and name one shard. Raises: UserError if the disk does not take it, or the input has gone."""
    temporary = task.store / f"{task.name}.tmp-{secrets.token_hex(4)}"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # processes are the parallelism here, and one thread always adds up in the same order
    try:
        temporary.mkdir()
        for clip in task.clips:
            if clip.clip_id in task.suspects:
                report("clip", clip.clip_id)
                _try_clip(clip, task)
        summary = _write_records(task, temporary, report)
        write_bytes(temporary / SHARD, json_bytes(summary))
        sync_folder(temporary)
        _publish(temporary, task)
    except (OSError, lmdb.Error) as error:
        if isinstance(error, ConnectionError):
            raise  # the process that asked for the shard is gone
        # LMDB calls a full disk an input/output error.
        free = shutil.disk_usage(task.store).free / 2**20
        raise UserError(
            f"cannot write {temporary}: {error} ({free:.0f} MiB are free there). What is packed stays; when there is "
            "room, run the same command to go on"
        ) from error
    finally:
        torch.set_num_threads(threads)
    report("shard", task.name)


def _publish(temporary: Path, task: ShardTask) -> None:
    """Give a written shard its final name, unless another process has written the same one meanwhile."""
    final = task.store / task.name
    try:
        temporary.rename(final)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        if task.summary() is not None:
            shutil.rmtree(temporary)
            return
        shutil.rmtree(final)  # left without a readable summary, else it would not be written again
        temporary.rename(final)
    sync_folder(task.store)


def _try_clip(clip: SourceClip, task: ShardTask) -> None:
    with suppress(Refused):
        make_record(clip, task.root, task.config)


def _write_records(task: ShardTask, folder: Path, report: Report) -> dict[str, Any]:
    """Records and index of a shard; what `shard.json` says about them."""
    columns: dict[str, list[Any]] = {name: [] for name in INDEX_COLUMNS}
    measures: dict[str, list[Any]] = {}
    refused: list[list[str]] = []
    crashed = dict(task.crashed)
    with ShardData(folder) as data:
        for clip in task.clips:
            report("clip", clip.clip_id)
            try:
                if clip.clip_id in crashed:
                    raise Refused("worker_crash", crashed[clip.clip_id])
                record, quality = make_record(clip, task.root, task.config)
            except Refused as error:
                _check_input(task, error)
                refused.append([clip.clip_id, clip.split, clip.file, error.reason, error.detail])
                report("refused", error.reason)
                continue
            data.append(encode(record))
            for name, value in index_row(record).items():
                columns[name].append(value)
            for name, value in vars(quality).items():
                measures.setdefault(name, []).append(value)
            report("packed", clip.clip_id)
    index = msgpack.Packer().pack(columns)
    write_bytes(folder / INDEX, index)
    quality = msgpack.Packer().pack(measures)
    write_bytes(folder / QUALITY, quality)
    count = len(columns["clip_id"])
    read_back(folder, count)
    return {
        "name": task.name,
        "plan": task.plan,
        "expected": len(task.clips),
        "clips": count,
        "bytes": (folder / DATA).stat().st_size,
        "sha256": file_sha256(folder / DATA),
        "index_sha256": hashlib.sha256(index).hexdigest(),
        "quality_sha256": hashlib.sha256(quality).hexdigest(),
        "refused": refused,
        "spectrogram_storage": {
            frontend.name: storage(
                frontend,
                task.config.spectrogram_dtype,
                [0.0, *(errors.get(frontend.name, 0.0) for errors in columns["spectrogram_error"])],
            )
            for frontend in task.config.frontends
        },
        "flow": None if task.config.flow == "none" else description(task.config.flow),
        "versions": {
            "python": platform.python_version(),
            **{item.__name__: str(item.__version__) for item in _LIBRARIES},
        },
    }


def _check_input(task: ShardTask, refused: Refused) -> None:
    """Raises: UserError if clips are refused because the whole input has gone, not only their files."""
    lost = refused.reason in ("missing_file", "unreadable") and task.landmarks
    if lost and not any((task.root / name).exists() for name in task.landmarks):
        raise UserError(
            f"the input has gone: {task.root / task.landmarks[0]} and others were there when packing began. Is "
            f"{task.root} still mounted? Run the same command again when it is back; what is packed stays"
        )


class ShardData:
    """An LMDB environment being filled with the keys 0, 1, ... at LMDB's default durability."""

    def __init__(self, folder: Path) -> None:
        # No lock file: the folder has a name that only this process knows.
        self._environment = lmdb.open(str(folder), map_size=_MAP_BYTES, lock=False)
        self._pending: list[bytes] = []
        self._written = 0

    def append(self, value: bytes) -> None:
        self._pending.append(value)
        if len(self._pending) >= _RECORDS_PER_TRANSACTION or sum(map(len, self._pending)) >= _BYTES_PER_TRANSACTION:
            self._flush()

    def _flush(self) -> None:
        while self._pending:
            try:
                with self._environment.begin(write=True) as transaction:
                    for number, value in enumerate(self._pending, self._written):
                        transaction.put(key_of(number), value, append=True)
            except lmdb.MapFullError:
                self._environment.set_mapsize(2 * self._environment.info()["map_size"])
                continue
            self._written += len(self._pending)
            self._pending = []

    def __enter__(self) -> "ShardData":
        return self

    def __exit__(self, kind: Any, *exc: object) -> None:
        try:
            if kind is None:
                self._flush()
                self._environment.sync(True)
        finally:
            self._environment.close()


def read_back(folder: Path, count: int) -> None:
    """Raises: UserError unless the shard holds `count` records and all of them are whole."""
    for first in range(0, count + 1, _RECORDS_READ_BACK):
        # Opened anew for every few records, because what was read of a memory map counts as memory of the process.
        environment = lmdb.open(str(folder), readonly=True, lock=False, create=False)
        with environment, environment.begin(buffers=True) as transaction:
            if transaction.stat()["entries"] != count:
                raise UserError(f"{folder / DATA}: {count} records were written, others read back; is the disk sound?")
            for number in range(first, min(first + _RECORDS_READ_BACK, count)):
                value = transaction.get(key_of(number))
                damaged = ["all of it"] if value is None else RecordView(value).damaged()
                if damaged:
                    raise UserError(
                        f"{folder / DATA}: record {number} reads back damaged ({damaged}); is the disk sound?"
                    )
