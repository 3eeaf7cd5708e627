"""Records into shards, shards into a store.

The folder of a store while it is packed: `plan.json` (what is being packed; written first), `shard-00003.tmp-<pid>`
(being written), `shard-00003` (finished: renamed after it was synced and read back), `crashed.json` (clips on which a
packing process died), and at the end `refused.csv` and `manifest.json`. To go on after a stop means to redo what has no
final name. A finished shard keeps its refusals: to try refused clips again, delete the store and pack anew.

The same clips, options and library versions give the same bytes in every file of the shards, whatever the number of
processes: nothing in them tells when, where or by whom they were written. `manifest.json` names the versions.
"""

import csv
import fcntl
import hashlib
import json
import math
import os
import platform
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import av
import cv2
import lmdb
import msgpack
import numpy
import PIL
import torch
import torchaudio

from configs.errors import UserError
from configs.load import as_mapping
from pipeline.record import RECORD_VERSION, RecordView, encode
from pipeline.store import (
    DATA,
    INDEX,
    INDEX_COLUMNS,
    MANIFEST,
    STORE_FORMAT,
    STORE_VERSION,
    id_hash,
    index_row,
    key_of,
)
from preprocess.clip import PackConfig, make_record
from preprocess.layout import Layout, SourceClip
from preprocess.media import Refused

PLAN = "plan.json"
SHARD = "shard.json"
REFUSED = "refused.csv"
CRASHED = "crashed.json"
REFUSED_COLUMNS = ("clip_id", "split", "file", "reason", "detail")

_RECORDS_PER_TRANSACTION = 256
_BYTES_PER_TRANSACTION = 64 * 2**20  # bounds what a transaction that must be repeated holds in memory
_MAP_BYTES = 64 * 2**20  # first size of the map; it doubles when it is full
_STRIKES = 2
_LIBRARIES = (av, cv2, lmdb, numpy, PIL, torch, torchaudio)

Report = Callable[[str, str], None]
"""Called with what happened and to what: ("clip", clip_id) before a clip, then ("packed", clip_id) or
("refused", reason); ("shard", name) when a shard is finished."""


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """All that a process needs to write one shard.

    suspects: clips on which a process died once; they are tried before anything is written. crashed: clip id -> detail
    of those on which one died again; they are refused.
    """

    number: int
    store: Path
    root: Path
    plan: str
    config: PackConfig
    clips: tuple[SourceClip, ...]
    suspects: tuple[str, ...] = ()
    crashed: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        return f"shard-{self.number:05d}"


class Engine(Protocol):
    """What runs shard tasks: processes of this machine, or of many."""

    def run(
        self, tasks: Sequence[ShardTask], report: Report, crashed: Callable[[ShardTask, str, str], ShardTask]
    ) -> None:
        """Run all tasks.

        report: called in this process, as `Report` says. crashed(task, clip_id, detail): called when a process died on
        a clip; gives the task to run in its place.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What came of packing. refused: rows of REFUSED_COLUMNS. new: false if the store was there already."""

    expected: int
    packed: int
    refused: list[list[str]]
    new: bool = True


class Stopped(Exception):
    """Packing was interrupted with `done` of `total` shards finished."""

    def __init__(self, done: int, total: int) -> None:
        super().__init__(f"stopped; {done} of {total} shards done; run the same command to go on")


def write_shard(task: ShardTask, report: Report) -> None:
    """Write, check and name one shard. Raises: UserError if the disk does not take it."""
    final = task.store / task.name
    temporary = task.store / f"{task.name}.tmp-{os.getpid()}"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # processes are the parallelism here, and one thread always adds up in the same order
    try:
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir()
        for clip in task.clips:
            if clip.clip_id in task.suspects:
                report("clip", clip.clip_id)
                _try_clip(clip, task)
        summary = _write_records(task, temporary, report)
        _write_bytes(temporary / SHARD, _json_bytes(summary))
        _sync_folder(temporary)
        if final.exists():
            shutil.rmtree(final)  # left without a readable summary, else it would not be written again
        temporary.rename(final)
        _sync_folder(task.store)
    except (OSError, lmdb.Error) as error:
        if isinstance(error, ConnectionError):
            raise  # the process that asked for the shard is gone
        raise UserError(f"cannot write {temporary}: {error}") from error
    finally:
        torch.set_num_threads(threads)
    report("shard", task.name)


def _try_clip(clip: SourceClip, task: ShardTask) -> None:
    with suppress(Refused):
        make_record(clip, task.root, task.config)


def _write_records(task: ShardTask, folder: Path, report: Report) -> dict[str, Any]:
    """Records and index of a shard; what `shard.json` says about them."""
    columns: dict[str, list[Any]] = {name: [] for name in INDEX_COLUMNS}
    refused: list[list[str]] = []
    crashed = dict(task.crashed)
    with _ShardData(folder) as data:
        for clip in task.clips:
            report("clip", clip.clip_id)
            try:
                if clip.clip_id in crashed:
                    raise Refused("worker_crash", crashed[clip.clip_id])
                record = make_record(clip, task.root, task.config)
            except Refused as error:
                refused.append([clip.clip_id, clip.split, clip.file, error.reason, error.detail])
                report("refused", error.reason)
                continue
            data.append(encode(record))
            for name, value in index_row(record).items():
                columns[name].append(value)
            report("packed", clip.clip_id)
    _write_bytes(folder / INDEX, msgpack.Packer().pack(columns))
    count = len(columns["clip_id"])
    _read_back(folder, count)
    return {
        "name": task.name,
        "plan": task.plan,
        "expected": len(task.clips),
        "clips": count,
        "bytes": (folder / DATA).stat().st_size,
        "sha256": file_sha256(folder / DATA),
        "refused": refused,
    }


class _ShardData:
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

    def __enter__(self) -> "_ShardData":
        return self

    def __exit__(self, kind: Any, *exc: object) -> None:
        try:
            if kind is None:
                self._flush()
                self._environment.sync(True)
        finally:
            self._environment.close()


def _read_back(folder: Path, count: int) -> None:
    environment = lmdb.open(str(folder), readonly=True, lock=False, create=False)
    found = 0
    with environment, environment.begin(buffers=True) as transaction:
        for number, (key, value) in enumerate(transaction.cursor()):
            damaged = RecordView(value).damaged()
            if bytes(key) != key_of(number) or damaged:
                raise UserError(f"{folder / DATA}: record {number} reads back damaged ({damaged}); is the disk sound?")
            found += 1
    if found != count:
        raise UserError(f"{folder / DATA}: {count} records were written, {found} read back; is the disk sound?")


def ordered(clips: Sequence[SourceClip]) -> list[SourceClip]:
    """The clips in an order that looks random but depends on nothing but their ids."""
    return sorted(
        clips, key=lambda clip: (hashlib.blake2b(clip.clip_id.encode(), digest_size=8).digest(), clip.clip_id)
    )


def default_shard_clips(count: int) -> int:
    """Clips a shard: 16 shards, but no fewer than 8 and no more than 4096 clips in each."""
    return min(max(math.ceil(count / 16), 8), 4096)


def make_plan(
    layout_name: str, layout_options: Any, clips: Sequence[SourceClip], config: PackConfig, shard_clips: int
) -> dict:
    """What decides the content of a store; two equal plans give the same store."""
    listing = hashlib.sha256()
    for clip in sorted(clips, key=lambda clip: clip.clip_id):
        listing.update(json.dumps(asdict(clip), sort_keys=True).encode())
    return {
        "format": STORE_FORMAT,
        "version": STORE_VERSION,
        "record_version": RECORD_VERSION,
        "layout": layout_name,
        "layout_options": layout_options,
        "options": as_mapping(config),
        "shard_clips": shard_clips,
        "clips": len(clips),
        "id_hash": id_hash(clip.clip_id for clip in clips),
        "clips_sha256": listing.hexdigest(),
    }


def pack(
    layout: Layout,
    store: Path,
    config: PackConfig,
    engine: Engine,
    *,
    dataset: str,
    shard_clips: int | None = None,
    clips: list[SourceClip] | None = None,
    report: Report = lambda kind, what: None,
    found: Callable[[int, int, int], None] = lambda expected, packed, refused: None,
) -> Packed:
    """Pack the clips of a layout into a store; go on where an earlier call with the same plan stopped.

    found: called once with the clips to pack in all and those that finished shards hold and refused already.
    Raises: UserError if `store` holds anything else, or nothing could be packed; Stopped after Ctrl-C.
    """
    if clips is None:
        clips = layout.clips()
    twice = [clip_id for clip_id, count in Counter(clip.clip_id for clip in clips).items() if count > 1]
    if twice:
        raise UserError(f"{layout.source}: {len(twice)} clip ids stand for several clips, '{twice[0]}' among them")
    shard_clips = shard_clips or default_shard_clips(len(clips))
    plan = make_plan(layout.config.name, as_mapping(layout.config), clips, config, shard_clips)
    plan_hash = hashlib.sha256(_json_bytes(plan)).hexdigest()[:16]
    with _claimed(store, plan):
        if (store / MANIFEST).is_file():
            manifest = json.loads((store / MANIFEST).read_text(encoding="utf-8"))
            return Packed(
                expected=manifest["expected"], packed=manifest["packed"], refused=_read_refused(store), new=False
            )
        order = ordered(clips)
        cuts = range(0, len(order), shard_clips)
        strikes = _Strikes(store)
        tasks = [
            strikes.marked(
                ShardTask(
                    number=number,
                    store=store,
                    root=layout.root,
                    plan=plan_hash,
                    config=config,
                    clips=tuple(order[cut : cut + shard_clips]),
                )
            )
            for number, cut in enumerate(cuts)
        ]
        _remove_temporary(store)
        finished = [summary for task in tasks if (summary := _finished(task)) is not None]
        names = {summary["name"] for summary in finished}
        found(len(clips), sum(item["clips"] for item in finished), sum(len(item["refused"]) for item in finished))
        try:
            engine.run([task for task in tasks if task.name not in names], report, strikes.strike)
        except KeyboardInterrupt:
            raise Stopped(sum(_finished(task) is not None for task in tasks), len(tasks)) from None
        finally:
            _remove_temporary(store)
        return _finish(store, tasks, plan, plan_hash, config, dataset)


@contextmanager
def _claimed(store: Path, plan: dict[str, Any]) -> Iterator[None]:
    """The folder of the store, made if need be, with this plan in it and closed to other packing processes.

    Raises: UserError if it holds something else, is packed by another plan, or another process is packing into it.
    """
    try:
        store.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in store.iterdir()}
        ours = PLAN in names
        if names - {REFUSED, PLAN} and not ours:
            raise UserError(
                f"{store} holds files that are not of an unfinished store ({', '.join(sorted(names)[:3])}); "
                "name a new or an empty folder"
            )
        lock = (store / PLAN).open("a+b")
    except OSError as error:
        raise UserError(f"cannot make a store at {store}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is packing into {store}; wait for it, or stop it first") from error
        lock.seek(0)
        old = lock.read()
        if old and old != _json_bytes(plan):
            raise UserError(_other_plan(store, old, plan))
        if not old:
            lock.write(_json_bytes(plan))
            lock.flush()
            os.fsync(lock.fileno())
            _sync_folder(store)
        yield


def _other_plan(store: Path, old: bytes, plan: dict[str, Any]) -> str:
    try:
        was = json.loads(old)
    except ValueError:
        return f"{store / PLAN} is damaged; delete {store} and pack again"
    pairs = {**{key: (was.get(key), plan[key]) for key in plan if key != "options"}}
    options = was.get("options", {})
    pairs |= {key: (options.get(key), value) for key, value in plan["options"].items()}
    pairs.pop("clips_sha256")
    differing = [f"{key}: {_shown(a)} there, {_shown(b)} now" for key, (a, b) in pairs.items() if a != b]
    state = "a finished store" if (store / MANIFEST).is_file() else "an unfinished store"
    return "\n  ".join(
        [
            f"{store} is {state} of another plan; name another folder, or delete this one to pack it anew:",
            *(differing or ["what the layout says about the clips (files, times, labels or boxes) has changed"]),
        ]
    )


def _shown(value: Any) -> str:
    text = (
        json.dumps([item.get("name", item) if isinstance(item, dict) else item for item in value])
        if isinstance(value, list)
        else json.dumps(value)
    )
    return text if len(text) <= 80 else f"{text[:77]}..."


class _Strikes:
    """Which clips a packing process died on, kept on disk until the store is finished."""

    def __init__(self, store: Path) -> None:
        self._file = store / CRASHED
        self._found: dict[str, list[str]] = json.loads(self._file.read_bytes()) if self._file.is_file() else {}

    def strike(self, task: ShardTask, clip_id: str, detail: str) -> ShardTask:
        """The task to run in place of one that died on a clip."""
        self._found.setdefault(clip_id, []).append(detail)
        _write_bytes(self._file, _json_bytes(self._found))
        return self.marked(task)

    def marked(self, task: ShardTask) -> ShardTask:
        of_task = {clip.clip_id: self._found[clip.clip_id] for clip in task.clips if clip.clip_id in self._found}
        return replace(
            task,
            suspects=tuple(clip_id for clip_id, deaths in of_task.items() if len(deaths) < _STRIKES),
            crashed=tuple((clip_id, deaths[-1]) for clip_id, deaths in of_task.items() if len(deaths) >= _STRIKES),
        )


def _finished(task: ShardTask) -> dict[str, Any] | None:
    """The summary of a finished shard of this very plan, or None."""
    folder = task.store / task.name
    try:
        summary = json.loads((folder / SHARD).read_bytes())
        whole = (folder / DATA).stat().st_size == summary["bytes"] and (folder / INDEX).is_file()
    except (OSError, ValueError, KeyError):
        return None
    return summary if whole and summary.get("plan") == task.plan else None


def _remove_temporary(store: Path) -> None:
    for path in store.glob("shard-*.tmp-*"):
        # A process that outlived its parent by a moment may still write there; it leaves at its next clip.
        shutil.rmtree(path, ignore_errors=True)


def _finish(
    store: Path, tasks: list[ShardTask], plan: dict[str, Any], plan_hash: str, config: PackConfig, dataset: str
) -> Packed:
    """Write refused.csv and, last, the manifest."""
    summaries = [_finished(task) for task in tasks]
    assert all(summary is not None for summary in summaries), "the engine left a shard out"
    shards = [summary for summary in summaries if summary is not None]
    refused = sorted(row for shard in shards for row in shard["refused"])
    _write_refused(store, refused)
    ids: dict[str, list[str]] = {}
    for shard in shards:
        columns = msgpack.unpackb((store / shard["name"] / INDEX).read_bytes())
        for clip_id, split in zip(columns["clip_id"], columns["split"]):
            ids.setdefault(split, []).append(clip_id)
    packed = sum(shard["clips"] for shard in shards)
    expected = Counter(clip.split for task in tasks for clip in task.clips)
    reasons = Counter(row[3] for row in refused)
    if not packed:
        for path in store.iterdir():
            if path.name != REFUSED:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        counts = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        clip_id, _, _, reason, detail = refused[0]
        raise UserError(
            f"none of {len(refused)} clips could be packed ({counts}); for example {clip_id}: {reason}, {detail}. "
            f"All are listed in {store / REFUSED}"
        )
    options = as_mapping(config)
    frontends = {item["name"]: item for item in options.pop("frontends")}
    manifest = {
        "format": STORE_FORMAT,
        "version": STORE_VERSION,
        "record_version": RECORD_VERSION,
        "dataset": dataset,
        "layout": {**plan["layout_options"], "name": plan["layout"]},
        "options": options,
        "frames": {key: options[key] for key in ("frames", "annotated_s", "short_side_px", "quality")},
        "frontends": frontends,
        "waveform": {"sample_rate_hz": config.waveform_rate_hz} if config.waveform else None,
        "splits": {
            split: {
                "clips": len(ids.get(split, [])),
                "expected": expected[split],
                "id_hash": id_hash(ids.get(split, [])),
            }
            for split in sorted(expected)
        },
        "id_hash": id_hash(clip_id for names in ids.values() for clip_id in names),
        "expected": len(refused) + packed,
        "packed": packed,
        "refused": dict(sorted(reasons.items())),
        "shards": [{key: shard[key] for key in ("name", "clips", "bytes", "sha256")} for shard in shards],
        "plan": plan_hash,
        "versions": {
            "python": platform.python_version(),
            **{item.__name__: str(item.__version__) for item in _LIBRARIES},
        },
        "repeatable": "the same clips, options and versions give the same bytes, but for 'dataset' in this file",
    }
    _write_bytes(store / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False).encode() + b"\n")
    (store / CRASHED).unlink(missing_ok=True)
    return Packed(expected=len(refused) + packed, packed=packed, refused=refused)


def _write_refused(store: Path, rows: list[list[str]]) -> None:
    temporary = store / f"{REFUSED}.tmp"
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(REFUSED_COLUMNS)
        writer.writerows(rows)
    temporary.replace(store / REFUSED)


def _read_refused(store: Path) -> list[list[str]]:
    if not (store / REFUSED).is_file():
        return []
    with (store / REFUSED).open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


def _json_bytes(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, indent=1).encode() + b"\n"


def _write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
