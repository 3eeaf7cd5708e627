"""A packed data set on disk, read in place.

A store is a folder: `manifest.json` (written last: its presence means that packing finished) and shards, each an LMDB
environment `shard-00000/data.mdb` with an `index.msgpack` beside it. A shard's keys are 8-byte big-endian numbers 0,
1, ... and its values are records (`pipeline.record`). The index holds, in columns, what a loader must know of every
clip before it reads it, so that opening a store of 144k clips touches no record.
"""

import hashlib
import json
import os
import re
import struct
import threading
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgpack
import numpy as np

from configs.errors import UserError
from configs.id_lists import load_list
from configs.ids import normalise_id, source_of
from pipeline.record import RECORD_VERSION, Record, RecordView

if TYPE_CHECKING:
    import lmdb

STORE_FORMAT = "whence-store"
STORE_VERSION = 2
MANIFEST = "manifest.json"
INDEX = "index.msgpack"
DATA = "data.mdb"

INDEX_COLUMNS = (
    "clip_id",
    "split",
    "label",
    "group",
    "duration_s",
    "annotated_s",
    "frames",
    "flow",
    "channels",
    "spectrogram_frames",
    "spectrogram_error",
    "waveform_samples",
    "sample_rate_hz",
    "truth",
)
"""Columns of a shard's index, one entry a clip: duration_s of its sound; annotated_s as in `Record`; frames is a list
of [time_s, width, height]; flow is true if every frame has it; channels counts those of the source's sound;
spectrogram_frames maps a front-end's name to its T; spectrogram_error and sample_rate_hz as in `Record`;
waveform_samples is 0 without a waveform; truth is "boxes", "mask" or None."""


def index_row(record: Record) -> dict[str, Any]:
    """The entries of a record in the columns of the index."""
    return {
        "clip_id": record.clip_id,
        "split": record.split,
        "label": record.label,
        "group": record.group,
        "duration_s": record.source.duration_s,
        "annotated_s": record.annotated_s,
        "frames": [[frame.time_s, frame.width, frame.height] for frame in record.frames],
        "flow": bool(record.frames) and all(frame.flow is not None for frame in record.frames),
        "channels": record.source.channels,
        "spectrogram_frames": {name: len(array) for name, array in record.spectrograms.items()},
        "spectrogram_error": record.spectrogram_error,
        "waveform_samples": 0 if record.waveform is None else len(record.waveform),
        "sample_rate_hz": record.sample_rate_hz,
        "truth": "boxes" if record.boxes is not None else "mask" if record.mask is not None else None,
    }


def id_hash(clip_ids: Iterable[str]) -> str:
    """16 hex digits that name a set of clip ids, whatever their order."""
    return hashlib.sha256("\n".join(sorted(clip_ids)).encode()).hexdigest()[:16]


def key_of(number: int) -> bytes:
    """The LMDB key of the record with this number in its shard."""
    return struct.pack(">Q", number)


_PART = re.compile(r"(?P<split>.+)\[(?P<side>kept|held_out):(?P<share>0?\.\d+)\]")


def part_of(split: str, side: Literal["kept", "held_out"], share: float) -> str:
    """The name, for `Store.select`, of a split without a share of its clips, or of that share."""
    return f"{split}[{side}:{share:.4f}]"


def is_held_out(clip_id: str, share: float) -> bool:
    """Whether a clip is in the held-out share of its split: a pure function of the recording that it was cut from, so
    that no recording is on both sides, whatever else the split holds."""
    digest = hashlib.blake2b(source_of(clip_id).encode(), digest_size=8, person=b"held_out").digest()
    return int.from_bytes(digest, "little") < share * 2**64


class _Environments:
    """All environments that this process has open for reading: LMDB allows one a path and process.

    A forked child inherits the table but may use neither its environments nor its transactions: the first access in
    the child closes what was inherited and opens its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inherited = False
        self._open: dict[str, tuple[lmdb.Environment, lmdb.Transaction, int]] = {}
        self._names: dict[tuple[int, int], str] = {}
        os.register_at_fork(after_in_child=self._mark_inherited)

    def _mark_inherited(self) -> None:
        self._lock = threading.Lock()  # a thread that is not here any more may hold the other
        self._inherited = True

    def _leave_parent(self) -> None:
        if self._inherited:
            for path, (environment, _, users) in self._open.items():
                environment.close()
                self._open[path] = (*self._start(path), users)
            self._inherited = False

    @staticmethod
    def _start(path: str) -> "tuple[lmdb.Environment, lmdb.Transaction]":
        try:
            import lmdb  # here: batches of noise, and benchmarks with them, need none
        except ImportError as error:
            raise UserError("reading a store needs lmdb, which is not installed: pip install lmdb") from error
        try:
            # readahead stays on: records span dozens of pages, and without it every page of a cold one is a fault.
            environment = lmdb.open(path, readonly=True, lock=False, readahead=True, create=False)
        except lmdb.Error as error:
            raise UserError(
                f"cannot open shard {path}: {error}. Run `python -m preprocess verify` on its store"
            ) from error
        return environment, environment.begin(buffers=True)

    def acquire(self, folder: Path) -> str:
        """Open a shard; returns its name for the other methods. Hard links of one file (`merge`) have one name."""
        status = (folder / DATA).stat()
        with self._lock:
            self._leave_parent()
            path = self._names.setdefault((status.st_dev, status.st_ino), str(folder.resolve()))
            if path in self._open:
                environment, transaction, users = self._open[path]
                self._open[path] = (environment, transaction, users + 1)
            else:
                self._open[path] = (*self._start(path), 1)
        return path

    def release(self, path: str) -> None:
        with self._lock:
            self._leave_parent()
            environment, transaction, users = self._open.pop(path)
            if users > 1:
                self._open[path] = (environment, transaction, users - 1)
            else:
                transaction.abort()
                environment.close()
                self._names = {file: name for file, name in self._names.items() if name != path}

    def get(self, path: str, key: bytes) -> memoryview | None:
        """The value of a key, in place. A transaction serves one thread at a time, and loaders have several."""
        with self._lock:
            self._leave_parent()
            return self._open[path][1].get(key)  # type: ignore[return-value]  # begun with buffers


_environments = _Environments()


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a finished store. Raises: UserError if there is none, or it is of another version."""
    file = path / MANIFEST
    if not path.is_dir():
        raise UserError(f"no store at {path}: not a folder. Make one with `python -m preprocess pack`")
    if not file.is_file():
        raise UserError(
            f"{path} is no finished store: it has no {MANIFEST}. If packing was interrupted, run the same pack command "
            "again, it goes on where it stopped"
        )
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != STORE_FORMAT:
        raise UserError(f"{file} is not the manifest of a Whence store (format: {STORE_FORMAT!r})")
    if (manifest.get("version"), manifest.get("record_version")) != (STORE_VERSION, RECORD_VERSION):
        raise UserError(
            f"{path} is a store of version {manifest.get('version')} with records of version "
            f"{manifest.get('record_version')}; this code reads {STORE_VERSION} and {RECORD_VERSION}. Pack it again"
        )
    return manifest


class Store:
    """Read-only view of a store; cheap to open twice, safe to use after a fork and to pickle by path.

    index: the columns of all shards, joined. Clip number i of the store is row i of every column.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises: UserError if the store is missing, unfinished, of another version, or a shard is cut short."""
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self.index: dict[str, list] = {name: [] for name in INDEX_COLUMNS}
        self._place: list[tuple[str, bytes]] = []
        self._shards: list[str] = []
        try:
            for shard in self.manifest["shards"]:
                self._add(shard)
        except BaseException:
            self.close()
            raise

    def _add(self, shard: dict[str, Any]) -> None:
        folder = self.path / shard["name"]
        file = folder / DATA
        size = file.stat().st_size if file.is_file() else None
        if size != shard["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes"
            raise UserError(
                f"{file} {found}, the manifest says {shard['bytes']} bytes: the store is incomplete; copy it again"
            )
        try:
            columns = msgpack.unpackb((folder / INDEX).read_bytes())
            lengths = {len(columns[name]) for name in INDEX_COLUMNS}
        except (OSError, ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
            raise UserError(f"{folder / INDEX} is missing or damaged ({error!r}); copy the store again") from error
        if lengths != {shard["clips"]}:
            raise UserError(f"{folder / INDEX} lists {lengths} clips, the manifest says {shard['clips']}")
        for name in INDEX_COLUMNS:
            self.index[name] += columns[name]
        key = _environments.acquire(folder)
        self._shards.append(key)
        self._place += [(key, key_of(number)) for number in range(shard["clips"])]

    def __len__(self) -> int:
        return len(self._place)

    def __reduce__(self):
        return Store, (self.path,)

    @property
    def splits(self) -> list[str]:
        """Names of the splits, sorted."""
        return sorted(self.manifest["splits"])

    @property
    def flow_encoding(self) -> str | None:
        """How the codes of its flow are made (`preprocess.flow`); None where it holds none."""
        return (self.manifest.get("flow") or {}).get("encoding")

    def warm_up(self) -> int:
        """Read every shard once from end to end, so that random reads find it in memory; the bytes read."""
        total = 0
        for shard in self.manifest["shards"]:
            with open(self.path / shard["name"] / DATA, "rb", buffering=0) as file:
                while count := len(file.read(1 << 24)):
                    total += count
        return total

    def select(self, split: str) -> np.ndarray:
        """Numbers of the clips of a split, or of what `part_of` names, in the order of their ids.

        Raises: UserError naming the splits there are, or if no clip of the split is in the part.
        """
        part = _PART.fullmatch(split)
        whole = part["split"] if part else split
        found = [number for number, name in enumerate(self.index["split"]) if name == whole]
        if not found and whole in self.splits:
            raise UserError(f"split '{whole}' of store {self.path} is empty: see refused.csv and left_out.csv there")
        if not found:
            raise UserError(
                f"store {self.path} has no split '{whole}'; it has: {', '.join(self.splits)}. Splits come from the "
                "layout that a store is packed from: see `python -m preprocess pack --help`"
            )
        if part:
            share, wanted, clips = float(part["share"]), part["side"] == "held_out", len(found)
            found = [number for number in found if is_held_out(self.index["clip_id"][number], share) == wanted]
            if not found:
                raise UserError(f"none of the {clips} clips of {self.path} is in '{split}'; choose another share")
        return np.array(sorted(found, key=self.index["clip_id"].__getitem__))

    def value(self, number: int) -> memoryview:
        """The stored bytes of a clip, in place; valid until `close`."""
        path, key = self._place[number]
        value = _environments.get(path, key)
        if value is None:
            raise UserError(f"{path} has no record {int.from_bytes(key, 'big')}: the shard is damaged; run verify")
        return value

    def view(self, number: int) -> RecordView:
        """The record of a clip, in place; valid until `close`."""
        return RecordView(self.value(number))

    def close(self) -> None:
        """Release the shards; views handed out before must not be used any more."""
        for path in self._shards:
            _environments.release(path)
        self._shards = []

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def training_numbers(store: Store, split: str, exclude: str | None) -> np.ndarray:
    """Numbers of the clips to learn from, as `Store.select` gives them, without those of the list `exclude`.

    Raises: UserError if the split or the list is missing, no clip of the split is on the list, or none is left.
    """
    numbers = store.select(split)
    if exclude is None:
        return numbers
    part = _PART.fullmatch(split)
    clip_ids, listed = store.index["clip_id"], set(load_list(exclude))
    excluded = {number for number in store.select(part["split"] if part else split) if _named(clip_ids[number], listed)}
    if not excluded:
        raise UserError(
            f"none of the {len(listed)} ids of data.exclude={exclude} is in split '{split}' of {store.path}, which has "
            f"ids like {clip_ids[numbers[0]]}; name another list, or leave data.exclude out"
        )
    kept = np.array([number for number in numbers if number not in excluded], numbers.dtype)
    if not len(kept):
        raise UserError(f"data.exclude={exclude} leaves none of the {len(numbers)} clips of split '{split}'")
    return kept


def _named(clip_id: str, listed: Collection[str]) -> bool:
    return clip_id in listed or normalise_id(clip_id) in listed


def training_list(path: Path | None, split: str, exclude: str | None = None) -> tuple[dict[str, Any], list[str]]:
    """What the record of a run says of the clips it learns from, and their ids; nothing without a store.

    Raises: UserError as `training_numbers`, or if the store is missing.
    """
    if path is None:
        return {}, []
    with Store(path) as store:
        clip_ids = [store.index["clip_id"][number] for number in training_numbers(store, split, exclude)]
        facts: dict[str, Any] = {"store": str(path), "store_id_hash": store.manifest["id_hash"]}
        facts["flow"] = store.flow_encoding
        if exclude is not None:
            facts |= {"exclude": exclude, "excluded_clips": len(store.select(split)) - len(clip_ids)}
    return facts | {"train_clips": len(clip_ids), "train_id_hash": id_hash(clip_ids)}, clip_ids
