"""What a run's data takes, and batches of its shapes, before anything is trained."""

import torch

from configs.schema import DataConfig, component_config
from pipeline.batch import Batch, InputSpec
from pipeline.loader import build_loader
from pipeline.source import ClipSource, LoaderRequest


def synthetic_batch(data: DataConfig, spec: InputSpec, clips: int, device: torch.device) -> Batch:
    """So many clips of noise, of the shapes and types of training batches."""
    loader = component_config("pipeline.loaders", "synthetic", {"batches": 1, "steps": 1})
    made = build_loader(
        data.model_copy(update={"store": None, "loader": loader}), spec, data.train_split,
        train=True, device=device, batch_size=clips,
    )  # fmt: skip
    try:
        return next(iter(made))
    finally:
        made.close()


def store_sizes(data: DataConfig, spec: InputSpec) -> dict[str, int]:
    """clips: of the training split; store: bytes of the whole store on disk; decoded: of the split in memory.

    Raises: UserError if the store lacks what a method with this `spec` needs.
    """
    source = ClipSource(
        LoaderRequest(
            data=data, spec=spec, split=data.train_split, train=True, seed=0, rank=0, world_size=1,
            device=torch.device("cpu"), size_px=data.image.size_px, batch_size=data.batch_size,
        )
    )  # fmt: skip
    try:
        stored = sum(shard["bytes"] for shard in source.store.manifest["shards"])
        return {"clips": len(source.numbers), "store": stored, "decoded": sum(source.decoded_bytes().values())}
    finally:
        source.close()
