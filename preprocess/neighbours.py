"""The nearest clips of every clip of a store, by picture and by sound, as tables beside its shards.

`neighbours/image.npy` and `neighbours/audio.npy`: `(clips, k)` int32 in NumPy's format, to be memory-mapped; row i
holds the numbers of the clips nearest to clip i, the nearest first, all of its split; -1 behind the last one.
`neighbours/neighbours.json`, written last: whose clips they are, k, and the encoders. SSL-Align draws from them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.errors import UserError
from pipeline.store import Store, id_hash
from preprocess.files import NEIGHBOURS, NEIGHBOURS_FILE, file_sha256, sync_folder, write_bytes

_QUERIES, _CANDIDATES = 1024, 8192  # of a block: 32 MB of similarities


def nearest(vectors: Tensor, groups: Tensor, k: int) -> np.ndarray:
    """`(n, k)` int32: rows of the k vectors of greatest cosine with each vector, the greatest first; -1 where none.

    Of equal cosines the one with the smaller number comes first, but which of them are among the k is left open.

    Args: vectors (n, d) float32, finite; one of zeros has cosine 0 with all. groups (n,) int64: vectors of one group
    are not near each other; -1: of no group. No vector is near itself.
    Memory: beside the vectors, their normalised copy and the result, about 150 MB and 50 KB times k.
    """
    unit = torch.nn.functional.normalize(vectors, dim=1)
    numbers = torch.arange(len(unit), device=unit.device)
    found = np.full((len(unit), k), -1, np.int32)
    for first in range(0, len(unit), _QUERIES):
        query = slice(first, first + _QUERIES)
        rows = len(numbers[query])
        best = torch.full((rows, k), -torch.inf, device=unit.device)
        which = torch.full((rows, k), -1, device=unit.device)
        for start in range(0, len(unit), _CANDIDATES):
            part = slice(start, start + _CANDIDATES)
            cosine = unit[query] @ unit[part].T
            same = (groups[query, None] == groups[None, part]) & (groups[query, None] >= 0)
            cosine.masked_fill_(same | (numbers[query, None] == numbers[None, part]), -torch.inf)
            # The best of this part first, so that the whole part need not be joined to those before.
            score, place = cosine.topk(min(k, cosine.shape[1]), dim=1)
            best, order = torch.cat([best, score], 1).topk(k, dim=1)
            which = torch.cat([which, place + start], 1).gather(1, order)
        which.masked_fill_(best == -torch.inf, len(unit))  # behind all others
        which, order = which.sort(dim=1)
        order = best.gather(1, order).argsort(dim=1, descending=True, stable=True)
        which = which.gather(1, order)
        found[query] = which.masked_fill_(which == len(unit), -1).cpu().numpy()
    return found


def neighbours(vectors: np.ndarray, store: Store, k: int, device: torch.device) -> np.ndarray:
    """`(clips, k)` int32, the table of one kind: each split by itself, clips of one `group` never near each other."""
    if not np.isfinite(vectors).all():
        bad = int(np.flatnonzero(~np.isfinite(vectors).all(1))[0])
        raise UserError(f"the embedding of clip {store.index['clip_id'][bad]} is not finite")
    names = {
        name: code for code, name in enumerate(sorted({name for name in store.index["group"] if name is not None}))
    }
    groups = np.array([-1 if name is None else names[name] for name in store.index["group"]], np.int64)
    table = np.full((len(store), k), -1, np.int32)
    for split in store.splits:
        numbers = np.array([number for number, name in enumerate(store.index["split"]) if name == split], np.int64)
        mine = torch.from_numpy(vectors[numbers]).to(device)
        found = nearest(mine, torch.from_numpy(groups[numbers]).to(device), k)
        if len(numbers):
            table[numbers] = np.where(found >= 0, numbers[found], -1)
    return table


def write_neighbours(store: Store, tables: Mapping[str, np.ndarray], k: int, encoders: Mapping[str, Any]) -> Path:
    """Write the tables in place of earlier ones; their folder. Killed on the way, there is no `neighbours.json`."""
    folder = store.path / NEIGHBOURS
    try:
        folder.mkdir(exist_ok=True)
        (folder / NEIGHBOURS_FILE).unlink(missing_ok=True)
        hashes = {}
        for kind, table in tables.items():
            temporary = folder / f"{kind}.npy.tmp"
            with temporary.open("wb") as file:
                np.save(file, table)
            hashes[kind] = file_sha256(temporary)
            temporary.replace(folder / f"{kind}.npy")
        sync_folder(folder)
        said = {
            "id_hash": id_hash(store.index["clip_id"]),
            "k": k,
            "sha256": hashes,
            "encoders": dict(encoders),
            "versions": {"numpy": np.__version__, "torch": str(torch.__version__)},
        }
        write_bytes(folder / NEIGHBOURS_FILE, json.dumps(said, indent=1).encode() + b"\n")
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error}") from error
    return folder
