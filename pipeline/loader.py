"""What every loader does alike: which clips, which draws, which bytes; and `build_loader`, which picks one by name."""

from collections.abc import Iterator
from typing import Any, Protocol

import torch

from configs.schema import DataConfig
from pipeline.batch import Batch, InputSpec


class Loader(Protocol):
    """Batches of one split. After an exception or `close` nothing of it stays behind."""

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the current epoch, from the place that `load_state_dict` or the last batch left."""
        ...

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """`{"epoch": e, "samples": n}`: n samples of epoch e, over all ranks, were handed out."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from such a place; another batch size, rank count or loader kind is fine."""
        ...

    def close(self) -> None: ...


def build_loader(
    data: DataConfig,
    spec: InputSpec,
    split: str,
    *,
    train: bool,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    size_px: int | None = None,
    batch_size: int | None = None,
) -> Loader:
    """The loader that `data.loader` names, over one split of `data.store`.

    train: shuffled, augmented, incomplete last batch dropped. Otherwise in the order of ids, whole picture, middle
    window, truth attached, last batch filled up and marked in `Batch.valid`.
    Raises: UserError if the store lacks what `spec` asks for; the message names the command that adds it.
    """
    raise NotImplementedError
