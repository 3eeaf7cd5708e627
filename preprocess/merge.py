"""Several stores into one, without coding anything anew."""

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack

from configs.errors import UserError
from pipeline.store import DATA, INDEX, STORE_FORMAT, read_manifest
from preprocess.files import NEIGHBOURS, json_bytes, sync_folder, write_bytes
from preprocess.manifest_file import contents, read_refused, write_manifest, write_refused
from preprocess.quality import QUALITY
from preprocess.selection import joined, read_left_out, write_left_out
from preprocess.task import PLAN

_SAME = ("version", "record_version", "options", "frames", "frontends", "waveform", "flow")
_SHOWN = 10


@dataclass
class Merged:
    """What came of a merge. linked, copied: files. notes: what a person should know."""

    packed: int
    refused: int
    linked: int = 0
    copied: int = 0
    notes: list[str] = field(default_factory=list)


def merge(out: Path, stores: Sequence[Path], *, dataset: str | None = None, copy: bool = False) -> Merged:
    """Join stores that were packed with the same options into the new store `out`, all of it or nothing.

    Shards are hard links to those of the stores where the file system allows that, else copies. A clip that one store
    refused and another one holds counts as packed. copy: make copies in any case.
    Raises: UserError if a store is not whole, the options differ, a clip id is in two stores, or `out` is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already; name a new or an empty folder")
    manifests = [read_manifest(store) for store in stores]
    _check_same(stores, manifests)
    splits = _check_ids(stores, manifests)
    ids = {clip_id for names in splits.values() for clip_id in names}
    refused: dict[str, list[str]] = {}
    for store in stores:
        for row in read_refused(store):
            refused.setdefault(row[0], row)
    twice = [clip_id for clip_id in refused if clip_id in ids]
    for clip_id in twice:
        del refused[clip_id]
    merged = Merged(packed=len(ids), refused=len(refused))
    if twice:
        merged.notes.append(f"{len(twice)} clips that one store refused are in another one")
    if any((store / NEIGHBOURS).exists() for store in stores):
        merged.notes.append(
            "neighbour tables are left out, for the clips have other numbers now: run `python -m preprocess neighbours "
            f"{out}`"
        )
    temporary = out.with_name(f"{out.name}.merging")
    try:
        if temporary.exists():
            shutil.rmtree(temporary)  # of a merge that was killed
        temporary.mkdir(parents=True)
        about, left_out = joined(manifests, splits, [read_left_out(store) for store in stores])
        _write(temporary, stores, manifests, sorted(refused.values()), dataset, copy, merged, about)
        if left_out:
            write_left_out(temporary, left_out)
        temporary.rename(out)
        sync_folder(out.parent)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return merged


def _check_same(stores: Sequence[Path], manifests: list[dict[str, Any]]) -> None:
    first = manifests[0]
    for store, manifest in zip(stores[1:], manifests[1:]):
        differing = []
        for key in _SAME:
            ours, theirs = first.get(key), manifest.get(key)
            if isinstance(ours, dict) and isinstance(theirs, dict):
                differing += [f"{key}.{part}" for part in {**ours, **theirs} if ours.get(part) != theirs.get(part)]
            elif ours != theirs:
                differing.append(key)
        differing += [
            f"spectrogram_storage.{name}"
            for name in first["spectrogram_storage"].keys() & manifest["spectrogram_storage"].keys()
            if _coding(first, name) != _coding(manifest, name)
        ]
        if differing:
            raise UserError(
                f"{stores[0]} and {store} were packed differently ({', '.join(differing)}). Only stores with the same "
                "options, front-ends and flow can be merged; `python -m preprocess info` shows theirs"
            )


def _coding(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    """How the values of a front-end are stored; how far they are off differs between stores of the same options."""
    return {key: value for key, value in manifest["spectrogram_storage"][name].items() if key != "max_error"}


def _check_ids(stores: Sequence[Path], manifests: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The clip ids of each split. Raises: UserError if one is in two stores, or a shard is not whole."""
    of_store: dict[str, int] = {}
    twice: dict[str, tuple[int, int]] = {}
    splits: dict[str, list[str]] = {}
    for number, (store, manifest) in enumerate(zip(stores, manifests)):
        for shard in manifest["shards"]:
            try:
                index = (store / shard["name"] / INDEX).read_bytes()
                size = (store / shard["name"] / DATA).stat().st_size
            except OSError as error:
                raise UserError(f"{store} is not whole: {error}; copy it again") from error
            if size != shard["bytes"] or hashlib.sha256(index).hexdigest() != shard["index_sha256"]:
                raise UserError(f"{store / shard['name']} is damaged; run `python -m preprocess verify {store}`")
            columns = msgpack.unpackb(index)
            for clip_id, split in zip(columns["clip_id"], columns["split"]):
                splits.setdefault(split, []).append(clip_id)
                if of_store.setdefault(clip_id, number) != number:
                    twice[clip_id] = (of_store[clip_id], number)
    if twice:
        named = [f"{clip_id} ({stores[a]}, {stores[b]})" for clip_id, (a, b) in list(twice.items())[:_SHOWN]]
        more = ", ..." if len(twice) > _SHOWN else ""
        raise UserError(
            f"{len(twice)} clips are in more than one store: {', '.join(named)}{more}. Pack one of them without these"
        )
    return splits


def _write(
    out: Path,
    stores: Sequence[Path],
    manifests: list[dict[str, Any]],
    refused: list[list[str]],
    dataset: str | None,
    copy: bool,
    merged: Merged,
    about: dict[str, Any],
) -> None:
    shards: list[dict[str, Any]] = []
    for store, manifest in zip(stores, manifests):
        for shard in manifest["shards"]:
            name = f"shard-{len(shards):05d}"
            (out / name).mkdir()
            for file in (DATA, INDEX, QUALITY):
                if _place(store / shard["name"] / file, out / name / file, copy):
                    merged.linked += 1
                else:
                    merged.copied += 1
            sync_folder(out / name)
            said = {key: manifest[key] for key in ("spectrogram_storage", "versions")}
            shards.append({**shard, **said, "name": name, "refused": [] if shards else refused})
    names = list(dict.fromkeys(manifest["dataset"] for manifest in manifests))
    parts = [
        {key: manifest[key] for key in ("dataset", "layout", "plan", "packed", "id_hash")} for manifest in manifests
    ]
    plan = {"format": STORE_FORMAT, "version": manifests[0]["version"], "merged": parts}
    write_bytes(out / PLAN, json_bytes(plan))
    write_refused(out, refused)
    write_manifest(
        out,
        {
            **{key: manifests[0][key] for key in ("format", *_SAME) if key in manifests[0]},
            "dataset": dataset or "+".join(names),
            "layout": {"name": "merged", "stores": parts},
            **contents(out, shards),
            **about,
            "plan": hashlib.sha256(json_bytes(plan)).hexdigest()[:16],
        },
    )


def _place(source: Path, target: Path, copy: bool) -> bool:
    """A file under another name. True: by a hard link, which needs no space; False: by a copy."""
    if not copy:
        try:
            os.link(source, target)
            return True
        except OSError:
            pass  # another file system, or one without links
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    return False
