"""The files that make a store of a folder of shards: `manifest.json`, written last, and `refused.csv`."""

import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgpack

from pipeline.store import INDEX, MANIFEST, id_hash
from preprocess.files import write_bytes

REFUSED = "refused.csv"
REFUSED_COLUMNS = ("clip_id", "split", "file", "reason", "detail")
_OF_A_SHARD = ("name", "clips", "bytes", "sha256", "index_sha256", "quality_sha256")


def contents(store: Path, shards: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a manifest says of what the shards of a store hold; shards: their summaries, as in `shard.json`."""
    ids: dict[str, list[str]] = {}
    for shard in shards:
        columns = msgpack.unpackb((store / shard["name"] / INDEX).read_bytes())
        for clip_id, split in zip(columns["clip_id"], columns["split"]):
            ids.setdefault(split, []).append(clip_id)
    refused = [row for shard in shards for row in shard["refused"]]
    refused_splits = Counter(row[1] for row in refused)
    packed = sum(shard["clips"] for shard in shards)
    storage: dict[str, dict[str, Any]] = {}
    for name, said in (item for shard in shards for item in shard["spectrogram_storage"].items()):
        largest = max(said.get("max_error", 0.0), storage.get(name, {}).get("max_error", 0.0))
        storage[name] = {**said, "max_error": largest} if "max_error" in said else said
    libraries = {name: None for shard in shards for name in shard["versions"]}
    return {
        "spectrogram_storage": storage,
        "splits": {
            split: {
                "clips": len(ids.get(split, [])),
                "expected": len(ids.get(split, [])) + refused_splits[split],
                "id_hash": id_hash(ids.get(split, [])),
            }
            for split in sorted({*ids, *refused_splits})
        },
        "id_hash": id_hash(clip_id for names in ids.values() for clip_id in names),
        "expected": len(refused) + packed,
        "packed": packed,
        "refused": dict(sorted(Counter(row[3] for row in refused).items())),
        "shards": [{key: shard[key] for key in _OF_A_SHARD if key in shard} for shard in shards],
        "versions": {
            name: ", ".join(
                sorted({text for shard in shards for text in shard["versions"].get(name, "").split(", ")} - {""})
            )
            for name in libraries
        },
    }


def write_manifest(store: Path, manifest: dict[str, Any]) -> None:
    """Write `manifest.json`, which makes a store of a folder."""
    write_bytes(store / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False).encode() + b"\n")


def write_refused(store: Path, rows: list[list[str]]) -> None:
    """Write `refused.csv`."""
    temporary = store / f"{REFUSED}.tmp"
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(REFUSED_COLUMNS)
        writer.writerows(rows)
    temporary.replace(store / REFUSED)


def read_refused(store: Path) -> list[list[str]]:
    """The rows of `refused.csv`; none if there is no such file."""
    if not (store / REFUSED).is_file():
        return []
    with (store / REFUSED).open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]
