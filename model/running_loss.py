"""The loss of a run as it goes: fetched from the device now and then, so that no step waits for it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs.errors import UserError
from model.checkpoint import write_atomically
from pipeline.batch import Batch


class RunningLoss:
    """The batch losses of an epoch. epoch: their sum and number so far, which a checkpoint carries."""

    def __init__(
        self, remake: Callable[[Any], Batch], average: Callable[[Tensor], Tensor] = lambda values: values, rank: int = 0
    ) -> None:
        """remake: the batch of a place in the data once more, so that none has to be kept. average: the mean over the
        ranks of a tensor on the CPU.
        """
        self._remake, self._average, self._rank = remake, average, rank
        self.epoch: list[float] = [0.0, 0]
        self._unchecked: list[tuple[Any, list[str], Tensor]] = []

    def add(self, place: Any, clip_ids: list[str], total: Tensor) -> None:
        """Take the loss of the batch of a place, a scalar still on the device."""
        # A copy: CUDA graphs write the next batch's loss to the same place.
        self._unchecked.append((place, clip_ids, total.detach().clone()))

    def check(self, step: int, folder: Path) -> float:
        """The mean of what was added since the last check; NaN if nothing was.

        Raises: UserError if a loss is not finite; `folder` then has the names of the clips of that batch of this rank,
        and its tensors as a file for `torch.load(..., weights_only=True)`.
        """
        if not self._unchecked:
            return math.nan
        values = self._average(torch.stack([total for *_, total in self._unchecked]).float().cpu()).tolist()
        for (place, clip_ids, _), value in zip(self._unchecked, values):
            if not math.isfinite(value):
                names, tensors = self._dump(place, clip_ids, value, folder)
                raise UserError(
                    f"the loss became {value} shortly before step {step}. The clips of that batch are in {names}: "
                    f"{', '.join(clip_ids[:5])}, ...; what the method was given is in {tensors}. Lower optim.lr, set "
                    "optim.clip_norm, or go on from the last checkpoint with --resume"
                )
        self._unchecked.clear()
        # One by one, so that the sum does not depend on where the run was interrupted.
        for value in values:
            self.epoch[0] += value
            self.epoch[1] += 1
        return sum(values) / len(values)

    @property
    def epoch_mean(self) -> float:
        """The mean over the epoch so far."""
        return self.epoch[0] / max(1, self.epoch[1])

    def _dump(self, place: Any, clip_ids: list[str], value: float, folder: Path) -> tuple[Path, Path]:
        stem = f"not_finite-rank{self._rank}" if self._rank else "not_finite"
        names, tensors = folder / f"{stem}.txt", folder / f"{stem}.pt"
        names.write_text("\n".join(clip_ids) + "\n")
        batch = self._remake(place)
        assert batch.clip_id == clip_ids
        found = {key: part for key, part in vars(batch.to("cpu")).items() if part is not None}
        write_atomically(tensors, lambda file: torch.save({**found, "loss": value}, file))
        return names, tensors
