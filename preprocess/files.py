"""Small files, written so that a power cut does not halve them; and names that many commands use."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

NEIGHBOURS = "neighbours"
"""Folder of a store's neighbour tables, and what says whose they are, see `preprocess.neighbours`."""
NEIGHBOURS_FILE = "neighbours.json"
ADDING = "adding"
"""Folder of a store in which `preprocess.extend` writes shards anew."""


def json_bytes(value: Any) -> bytes:
    """JSON that equal values give the same bytes of."""
    return json.dumps(value, sort_keys=True, indent=1).encode() + b"\n"


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
