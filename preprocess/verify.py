"""Is a store what its manifest says? Every byte is read."""

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import lmdb
import msgpack

from configs.errors import UserError
from pipeline.record import RecordView, decode
from pipeline.store import DATA, INDEX, INDEX_COLUMNS, id_hash, index_row, key_of, read_manifest
from preprocess.files import ADDING, NEIGHBOURS, NEIGHBOURS_FILE, file_sha256
from preprocess.quality import QUALITY


def verify(path: Path, report: Callable[[str], None] = lambda shard: None, workers: int | None = None) -> list[str]:
    """What is wrong with a store, one line a finding that names shard and clip; empty if it is whole.

    Files with the checksum that they were written with are not looked into: their records were read back then.

    report: called with the name of each shard when it has been read. workers: shards read at a time; None: one a core.
    Raises: UserError if there is no finished store of this version.
    """
    manifest = read_manifest(path)
    problems: list[str] = []
    ids: dict[str, list[str]] = {}
    shards = manifest["shards"]
    # Threads are enough: hashing and reading leave other threads alone.
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        for shard, (found, columns) in zip(
            shards, pool.map(lambda shard: _check_shard(path / shard["name"], shard), shards)
        ):
            problems += [f"{shard['name']}: {text}" for text in found]
            for clip_id, split in zip(columns["clip_id"], columns["split"]):
                ids.setdefault(split, []).append(clip_id)
            report(shard["name"])
    if not (path / ADDING).is_dir():  # else they are those of a stopped `features`, which takes them away
        listed = {shard["name"] for shard in shards}
        strays = sorted(folder.name for folder in path.glob("shard-*") if folder.name not in listed)
        problems += [f"{name}: not in the manifest; no part of the store, it may be deleted" for name in strays]
    problems += _check_neighbours(path / NEIGHBOURS, manifest)
    if not problems:
        problems += _check_totals(manifest, ids)
    return problems


def _check_neighbours(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    remedy = "run `python -m preprocess neighbours` again, or delete the folder"
    if not folder.is_dir():
        return
    try:
        said = json.loads((folder / NEIGHBOURS_FILE).read_bytes())
        if said["id_hash"] != manifest["id_hash"]:
            yield f"{NEIGHBOURS}: of other clips than the store's; {remedy}"
        for kind, sha256 in said.get("sha256", {}).items():
            if file_sha256(folder / f"{kind}.npy") != sha256:
                yield f"{NEIGHBOURS}/{kind}.npy has other content than when it was written (sha256); {remedy}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"{NEIGHBOURS}: unfinished or damaged ({error!r}); {remedy}"


def _check_shard(folder: Path, shard: dict[str, Any]) -> tuple[list[str], dict[str, list]]:
    """What is wrong with a shard, and the columns of its index; those of an unreadable one are empty."""
    nothing: dict[str, list] = {name: [] for name in INDEX_COLUMNS}
    file = folder / DATA
    size = file.stat().st_size if file.is_file() else None
    if size != shard["bytes"]:
        # Not opened: pages beyond the end of a memory map end the process.
        found = "is missing" if size is None else f"has {size} bytes, the manifest says {shard['bytes']}"
        return [f"{DATA} {found}"], nothing
    problems = []
    columns = None
    try:
        index = (folder / INDEX).read_bytes()
        if hashlib.sha256(index).hexdigest() != shard["index_sha256"]:
            problems.append(f"{INDEX} has other content than when it was written (sha256)")
        columns = msgpack.unpackb(index)
        if {len(columns[name]) for name in INDEX_COLUMNS} != {shard["clips"]}:
            problems.append(f"{INDEX} does not list {shard['clips']} clips in every column")
            columns = None
    except (OSError, ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
        problems.append(f"{INDEX} is missing or damaged ({error!r})")
    if file_sha256(file) != shard["sha256"]:
        problems.append(f"{DATA} has other content than when it was written (sha256)")
        problems += _check_records_apart(folder, shard["clips"], columns)
    elif problems:
        problems += check_records(folder, shard["clips"], columns)
    problems += _check_quality(folder / QUALITY, shard)
    return problems, columns or nothing


def _check_quality(file: Path, shard: dict[str, Any]) -> list[str]:
    wanted = shard.get("quality_sha256")  # stores of the first days do not say it
    try:
        if wanted is None or file_sha256(file) == wanted:
            return []
    except OSError as error:
        return [f"{QUALITY} cannot be read ({error.strerror})"]
    return [f"{QUALITY} has other content than when it was written (sha256)"]


def check_records(folder: Path, count: int, columns: dict[str, list] | None) -> Iterator[str]:
    """What is wrong with the records of a shard whose file has its full length."""
    try:
        environment = lmdb.open(str(folder), readonly=True, lock=False, create=False)
    except lmdb.Error as error:
        yield f"{DATA} is no LMDB file ({error})"
        return
    with environment, environment.begin(buffers=True) as transaction:
        entries = transaction.stat()["entries"]
        if entries != count:
            yield f"{DATA} holds {entries} records, the manifest says {count}"
        for number in range(count):
            named = f"record {number}" if columns is None else f"record {number} ({columns['clip_id'][number]})"
            try:
                value = transaction.get(key_of(number))
                if value is None:
                    yield f"{named} is missing"
                    continue
                view = RecordView(value)
                damaged = view.damaged()
                if damaged:
                    yield f"{named} is damaged: {', '.join(damaged)}"
                    continue
                row = index_row(decode(value))
            except (lmdb.Error, UserError, ValueError, KeyError, TypeError) as error:
                yield f"{named} is damaged: {error}"
                continue
            differing = [name for name in INDEX_COLUMNS if columns is not None and columns[name][number] != row[name]]
            if differing:
                yield f"{named}: {INDEX} says something else about {', '.join(differing)}"


def _check_records_apart(folder: Path, count: int, columns: dict[str, list] | None) -> Iterator[str]:
    """The same in another process: LMDB trusts its pages, and a damaged one may end the process that reads it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send_findings, args=(theirs, folder, count, columns), daemon=True)
    process.start()
    theirs.close()
    try:
        while (text := ours.recv()) is not None:
            yield text
    except EOFError:
        yield f"{DATA} has damaged pages, the rest of its records cannot be read"
    process.join()


def _send_findings(connection: Connection, folder: Path, count: int, columns: dict[str, list] | None) -> None:
    for text in check_records(folder, count, columns):
        connection.send(text)
    connection.send(None)


def _check_totals(manifest: dict[str, Any], ids: dict[str, list[str]]) -> Iterator[str]:
    for split, said in manifest["splits"].items():
        found = ids.get(split, [])
        if (len(found), id_hash(found)) != (said["clips"], said["id_hash"]):
            yield f"manifest: split '{split}' has {said['clips']} clips by it, the shards hold {len(found)} or others"
    everything = [clip_id for names in ids.values() for clip_id in names]
    if len(set(everything)) < len(everything):
        yield "manifest: some clip ids stand for several records"
    if (len(everything), id_hash(everything)) != (manifest["packed"], manifest["id_hash"]):
        yield f"manifest: {manifest['packed']} clips are said to be packed, the shards hold {len(everything)} or others"
