"""Rows: what was found for each clip of a set, from which scores derive; saved, loaded and gathered over ranks."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

Rows = dict[str, np.ndarray]
"""Columns of equal length, one entry a clip: text, numbers `(n,)`, or curves `(n, k)`.

Always there: `clip_id`, `label`, `group` (text); `truth_area` (share of the picture), `negative` (1: nothing in the
picture makes the sound), `odd_boxes` (boxes with a coordinate far outside), `flat_boxes` (boxes without a pixel). Then
the metrics' columns; those of a blind map or of the ceiling start with its name and a dot: `centre.ciou`.
"""


def join_rows(parts: Sequence[Rows]) -> Rows:
    """Rows of several parts with the same columns, sorted by clip id."""
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    order = np.argsort(joined["clip_id"], kind="stable")
    return take_rows(joined, order)


def take_rows(rows: Rows, chosen: np.ndarray) -> Rows:
    """The rows with these numbers, or for which `chosen` is true."""
    return {key: column[chosen] for key, column in rows.items()}


def measured(rows: Rows) -> list[str]:
    """Names of the columns `(n,)` that metrics wrote for the map itself, in their order."""
    always = ("truth_area", "negative", "odd_boxes", "flat_boxes")
    return [
        name
        for name, column in rows.items()
        if column.dtype.kind == "f" and column.ndim == 1 and "." not in name and name not in always
    ]


def units(clip_ids: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """`(n,)` int: one number a group; a clip without a group has its own."""
    names = [f"group/{group}" if group else f"clip/{clip_id}" for clip_id, group in zip(clip_ids, groups, strict=True)]
    return np.unique(names, return_inverse=True)[1]


def resamples(unit: np.ndarray, times: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """As many groups as there are, drawn with replacement, `times` times: the numbers of their rows, and new units.

    unit: `(n,)` as `units` gives it; the rows of a group are drawn together.
    """
    draw = np.random.default_rng(seed)
    members = np.split(np.argsort(unit, kind="stable"), np.cumsum(np.bincount(unit))[:-1])
    order = np.concatenate(members)
    for _ in range(times):
        chosen = draw.integers(len(members), size=len(members))
        if len(members) == len(unit):
            yield order[chosen], np.arange(len(members))
        else:
            sizes = [len(members[number]) for number in chosen]
            yield np.concatenate([members[number] for number in chosen]), np.repeat(np.arange(len(members)), sizes)


def save_rows(path: Path, rows: Rows) -> None:
    """Write rows as npz: columns of numbers and fixed-width text, readable without pickle."""
    _write(path, rows)


def load_rows(path: Path) -> Rows:
    """The rows that `save_rows` wrote."""
    return _read(path)


def gather_rows(rows: Rows, device: torch.device | str = "cpu") -> list[Rows]:
    """The rows of all ranks, in the order of ranks, on every rank; rows without columns are left out.

    device: where the process group's backend wants its tensors. Without a process group: the rows themselves.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return [rows] if rows else []
    buffer = io.BytesIO()
    _write(buffer, rows)
    own = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8).to(device)
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([len(own)], device=device))
    longest = int(max(size.item() for size in sizes))
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: len(own)] = own
    parts = [torch.zeros_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    files = [part[: int(size.item())].cpu().numpy().tobytes() for part, size in zip(parts, sizes, strict=True)]
    return [part for part in (_read(io.BytesIO(file)) for file in files) if part]


def _write(file: Any, rows: Rows) -> None:
    assert all(column.dtype.kind in "fU" for column in rows.values()), "object columns would be pickled"
    np.savez_compressed(file, **rows)  # type: ignore[arg-type]


def _read(file: Any) -> Rows:
    with np.load(file, allow_pickle=False) as columns:
        return {key: columns[key] for key in columns.files}
