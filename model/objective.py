"""Method and losses in one module: all that the training loop calls, compiles and wraps."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from configs.errors import UserError
from configs.schema import RunConfig
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


def as_configured(objective: Objective, config: RunConfig, device: torch.device, ranks: int) -> Any:
    """The objective to call in training: as it is, compiled as one graph, or that replayed as CUDA graphs.

    With CUDA graphs the next call overwrites what a call returned, and the gradients that its backward pass made.
    Raises: UserError where CUDA graphs cannot be had, or would add up wrong gradients.
    """
    train = config.train
    if not train.cuda_graphs:
        return torch.compile(objective, fullgraph=True) if train.compile else objective
    reasons = {
        f"needs a CUDA GPU, and this run is on {device.type}": device.type != "cuda",
        "needs train.compile=true": not train.compile,
        f"is for one GPU, and this run has {ranks} processes": ranks > 1,
        # They stay where the next batch's graph writes its own (PyTorch issue 169545).
        "needs optim.accumulate=1, as it cannot add up the gradients of several batches": config.optim.accumulate > 1,
    }
    for reason, holds in reasons.items():
        if holds:
            raise UserError(f"train.cuda_graphs=true {reason}; set it to false, or change that")
    return torch.compile(objective, fullgraph=True, mode="reduce-overhead")
