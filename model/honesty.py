"""What a reader must know before believing a score: which clips were trained on, and how the weights were chosen."""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from configs.errors import UserError
from configs.ids import normalise_id, source_of

TRAIN_IDS = "train_ids"
"""Key of `Checkpoint.record` under which `pack_ids` of the training list travels with the weights."""


def pack_ids(clip_ids: Iterable[str]) -> Tensor:
    """`(n,)` uint8: the ids, sorted and compressed, as a checkpoint carries them; 144,000 take some 1.3 MB."""
    text = "\n".join(sorted(clip_ids)).encode()
    return torch.frombuffer(bytearray(zlib.compress(text, 9)), dtype=torch.uint8)


def unpack_ids(packed: Tensor) -> list[str]:
    """The ids that `pack_ids` was given, sorted. Raises: UserError if the tensor does not hold ids."""
    try:
        text = zlib.decompress(packed.numpy().tobytes()).decode()
    except (zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"the training list inside the checkpoint is damaged: {error}") from error
    return text.split("\n") if text else []


@dataclass(frozen=True)
class TrainingList:
    """The clips that weights were trained on. where: how we know, for people."""

    clip_ids: Sequence[str]
    where: str

    @cached_property
    def _known(self) -> tuple[set[str], set[str]]:
        return {normalise_id(name) for name in self.clip_ids}, {source_of(name) for name in self.clip_ids}

    def leak(self, clip_ids: Sequence[str]) -> "Leak":
        """Which of some clips were trained on, themselves or by another excerpt of the same recording."""
        listed, sources = self._known
        return Leak(
            same=np.array([normalise_id(name) in listed for name in clip_ids], bool),
            related=np.array([source_of(name) in sources for name in clip_ids], bool),
            where=self.where,
        )


@dataclass(frozen=True)
class Leak:
    """same, related: `(n,)` bool of the clips asked for; `related` includes `same`."""

    same: np.ndarray
    related: np.ndarray
    where: str

    @property
    def counts(self) -> dict[str, int]:
        """The numbers of both kinds, for files."""
        return {"same": int(self.same.sum()), "related": int(self.related.sum())}

    @property
    def sentence(self) -> str:
        """For people: how many of the clips were seen in training."""
        return (
            f"{self.same.sum()} of {len(self.same)} clips are in the training list; {self.related.sum()} come from a "
            f"video of that list ({self.where})."
        )
