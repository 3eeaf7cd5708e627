"""What the processes of one training run exchange, so that N ranks compute the loss of the whole batch.

Every rank holds its rows of the batch and computes a loss; the run's loss is the mean over the ranks, and gradients are
averaged over them. A loss over all pairs takes its columns from `gathered`, whose backward pass brings every rank's
gradient home: with that, loss and gradient equal those of one process on the whole batch (BatchNorm's statistics
apart). In one process everything here is the identity.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import _functional_collectives as collectives

_per_shard = False


def keep_negatives_apart(apart: bool) -> None:
    """Whether each rank contrasts its own clips only, as the published systems do on several GPUs."""
    global _per_shard  # a switch of the whole process, as torch.distributed's groups are
    _per_shard = apart


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() and not _per_shard else 1


def gathered(values: Tensor, dim: int = 0) -> Tensor:
    """The values of all ranks along `dim`, in the order of ranks, with gradient; all must be of one shape."""
    if _ranks() == 1:
        return values
    whole = collectives.all_gather_tensor_autograd(values.contiguous(), dim, dist.group.WORLD)  # type: ignore[arg-type]
    return _ContiguousGradient.apply(whole)  # type: ignore[return-value]


class _ContiguousGradient(torch.autograd.Function):
    """The identity; the collective behind it refuses a gradient that is not contiguous in memory."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:  # type: ignore[override]
        return values.view_as(values)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient.contiguous()


def own_columns(rows: int, device: torch.device) -> Tensor:
    """(rows,) int64: where this rank's rows stand among those of all ranks."""
    first = dist.get_rank() * rows if _ranks() > 1 else 0
    return torch.arange(first, first + rows, device=device)


def all_rows(rows: int) -> int:
    """How many rows all ranks have together, if each has `rows`."""
    return rows * _ranks()
