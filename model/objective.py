"""Method and losses in one module: all that the training loop calls, compiles and wraps."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from configs.errors import UserError
from model.base import LocalizationModel, Loss, Progress
from pipeline.batch import Batch


@dataclass(frozen=True)
class Losses:
    """total: the scalar to minimise. terms: each loss before its weight, detached."""

    total: Tensor
    terms: dict[str, Tensor]


class Objective(nn.Module):
    """`objective(batch, weights)` gives `Losses`; `weights` comes from `weights_at` and is data, not code: a loss that
    joins at a later epoch does not change the compiled graph."""

    def __init__(self, model: LocalizationModel, losses: dict[str, Loss]) -> None:
        """Raises: UserError if a loss needs an output that the method does not give."""
        super().__init__()
        self.model = model
        self.losses = nn.ModuleDict(losses)
        self._weights: Any = None  # the values, their device, and the tensor of `weights_at`
        for name, loss in losses.items():
            for need in loss.needs:
                if need not in model.outputs:
                    raise UserError(
                        f"model.losses.{name} needs output '{need}'; method '{model.config.name}' gives "
                        f"{', '.join(sorted(model.outputs))}. Remove the loss or choose another method"
                    )

    def weights_at(self, progress: Progress, device: torch.device) -> Tensor:
        """(number of losses,) float32: each loss's weight, 0 before its start_epoch. One tensor until they change."""
        values: list[Any] = [
            loss.config.weight if progress.epoch >= loss.config.start_epoch else 0.0  # type: ignore[union-attr]
            for loss in self.losses.values()
        ]
        if self._weights is None or self._weights[:2] != (values, device):
            self._weights = (values, device, torch.tensor(values, dtype=torch.float32).to(device, non_blocking=True))
        return self._weights[2]

    def forward(self, batch: Batch, weights: Tensor) -> Losses:
        outputs = self.model(batch)
        terms = {name: loss(**{need: outputs[need] for need in loss.needs}) for name, loss in self.losses.items()}  # type: ignore[union-attr]
        total = (torch.stack(list(terms.values())) * weights).sum()
        return Losses(total=total, terms={name: term.detach() for name, term in terms.items()})
