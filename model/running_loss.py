"""The loss of a run as it goes: fetched from the device now and then, so that no step waits for it."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from configs.errors import UserError


class RunningLoss:
    """The batch losses of an epoch. epoch: their sum and number so far, which a checkpoint carries."""

    def __init__(self, average: Callable[[Tensor], Tensor] = lambda values: values) -> None:
        """average: the mean over the ranks of a tensor on the CPU."""
        self._average = average
        self.epoch: list[float] = [0.0, 0]
        self._unchecked: list[tuple[list[str], Tensor]] = []

    def add(self, clip_ids: list[str], total: Tensor) -> None:
        """Take the loss of a batch, a scalar still on the device."""
        self._unchecked.append((clip_ids, total.detach()))

    def check(self, step: int, folder: Path) -> float:
        """The mean of what was added since the last check; NaN if nothing was.

        Raises: UserError if a loss is not finite; the clips of its batch are then in `folder`/not_finite.txt.
        """
        if not self._unchecked:
            return math.nan
        values = self._average(torch.stack([total for _, total in self._unchecked]).float().cpu()).tolist()
        for (clip_ids, _), value in zip(self._unchecked, values):
            if not math.isfinite(value):
                (folder / "not_finite.txt").write_text("\n".join(clip_ids) + "\n")
                raise UserError(
                    f"the loss became {value} shortly before step {step}. The clips of that batch are in "
                    f"{folder / 'not_finite.txt'}: {', '.join(clip_ids[:5])}, ... Lower optim.lr, set "
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
