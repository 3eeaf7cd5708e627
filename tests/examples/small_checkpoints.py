"""Checkpoints of methods made small and untrained: what the examples need of a run."""

from pathlib import Path
from typing import Any

import torch

from configs.load import check
from configs.schema import RunConfig
from model.build import build_model
from model.checkpoint import Checkpoint, capture_rng, save_checkpoint
from tests.model.small_methods import OPTIONS


def small_checkpoint(folder: Path, method: str, **changed: Any) -> Path:
    """A run folder with a checkpoint of a method; changed: parts of `data` of its config."""
    data = {
        "image": {"size_px": 64},
        "audio": {"frontend": "logmel64", "duration_s": 1.0},
        "loader": "reference",
        "batch_size": 4,
        **changed,
    }
    model = {"name": method, **OPTIONS[method]}
    config = check(RunConfig, {"model": model, "data": data, "train": {"device": "cpu"}}, "a small config")
    torch.manual_seed(0)
    checkpoint = Checkpoint(
        config=config, model=build_model(config.model).state_dict(), optimizer={}, step=1, loader={}, rng=capture_rng(),
        record={}, history=[],
    )  # fmt: skip
    save_checkpoint(folder / "checkpoints", checkpoint, keep=1)
    return folder
