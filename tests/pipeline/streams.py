"""Loaders over the textured store, and their batches in forms that compare."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from configs.load import check, load_frontend
from configs.schema import DataConfig
from pipeline.batch import Batch, InputSpec
from pipeline.loader import Loader, build_loader

CLIPS = 48
EZ, MEL = load_frontend("ez_vsl"), load_frontend("logmel64")
ALL: dict[str, Any] = {
    "random_resized_crop": {},
    "flip": {},
    "color_jitter": {"p": 1.0},
    "time_crop": {},
    "spectrogram_mask": {"frequency_masks": 2, "time_masks": 2},
}


def data_config(store: Path | None, loader: Any = "dali", **changes: Any) -> DataConfig:
    given = {
        "store": None if store is None else str(store),
        "batch_size": 6,
        "image": {"size_px": 64},
        "audio": {"frontend": "ez_vsl", "duration_s": 2.0},
        "augment": ALL,
        "loader": loader,
    }
    return check(DataConfig, given | changes, "test")


def train_loader(config: DataConfig, spec: InputSpec | None = None, **options: Any) -> Loader:
    return build_loader(config, spec or InputSpec(), "train", **{"train": True, **options})


def take(loader: Loader, count: int | None = None) -> list[Batch]:
    """The next `count` batches of the loader's epoch, or the rest."""
    batches: Iterator[Batch] = iter(loader)
    return list(batches) if count is None else [next(batches) for _ in range(count)]


def stream(config: DataConfig, epochs: int = 2, spec: InputSpec | None = None, **options: Any) -> list[Batch]:
    """All batches of the first epochs, from a loader of its own."""
    loader, found = train_loader(config, spec, **options), []
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        found += take(loader)
    loader.close()
    return found


def clips_of(batches: list[Batch]) -> list[tuple[str, bytes]]:
    """Each valid clip as its id and the bytes of all that it has, in order."""
    return [
        (batch.clip_id[row], b"".join(tensor[row].numpy().tobytes() for tensor in tensors_of(batch)))
        for batch in batches
        for row in range(len(batch.clip_id))
        if batch.valid[row]
    ]


def tensors_of(batch: Batch) -> list[torch.Tensor]:
    """All pictures, spectrograms and flow of a batch."""
    flow = [] if batch.flow is None else [batch.flow]
    return [batch.image, batch.spectrogram, *flow, *batch.more_images, *batch.more_spectrograms]
