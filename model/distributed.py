"""What the processes of one training run exchange, so that N ranks compute the loss of the whole batch.

Every rank holds its rows of the batch and computes a loss; the run's loss is the mean over the ranks, and gradients are
averaged over them. A loss over all pairs takes its columns from `gathered`, whose backward pass brings every rank's
gradient home: with that, loss and gradient equal those of one process on the whole batch (BatchNorm's statistics
apart). In one process everything here is the identity.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import _functional_collectives as collectives

from configs.errors import UserError

_per_shard = False


def keep_negatives_apart(apart: bool) -> None:
    """Whether each rank contrasts its own clips only, as the published systems do on several GPUs."""
    global _per_shard  # a switch of the whole process, as torch.distributed's groups are
    _per_shard = apart


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() and not _per_shard else 1


def with_synced_batchnorm(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with BatchNorm over the clips of all ranks. Raises: UserError without a GPU, where torch has none."""
    if device.type != "cuda":
        raise UserError("train.sync_batchnorm=true needs GPUs; on the CPU every rank keeps statistics of its own clips")
    return nn.SyncBatchNorm.convert_sync_batchnorm(module)


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
    first = first_own_column(rows)
    return torch.arange(first, first + rows, device=device)


def first_own_column(rows: int) -> int:
    """The first of `own_columns`."""
    return dist.get_rank() * rows if _ranks() > 1 else 0


def all_rows(rows: int) -> int:
    """How many rows all ranks have together, if each has `rows`."""
    return rows * _ranks()


class Ranks:
    """The processes that `torchrun` started, or this one alone.

    rank, size: of all processes. local: of those on this machine, which is also the number of its GPU.
    """

    def __init__(self, device: torch.device) -> None:
        """Meet the others. Raises: UserError if `torchrun`'s environment is incomplete or the others do not come."""
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank, self.local = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
        self._control: Any = None
        if self.size == 1:
            return
        try:
            if device.type == "cuda":
                torch.cuda.set_device(self.local)
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
            self._control = dist.new_group(backend="gloo")  # words between the hosts must not wait for the GPUs
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"rank {self.rank} of {self.size} cannot join the others ({str(error).splitlines()[0]}); start all of "
                "them with torchrun, one process a GPU"
            ) from error

    @property
    def main(self) -> bool:
        """Whether this process writes the run's files and speaks."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether any rank says so; every rank must ask."""
        if self.size == 1:
            return flag
        said = torch.tensor(int(flag))
        dist.all_reduce(said, dist.ReduceOp.MAX, self._control)
        return bool(said)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the ranks of a tensor on the CPU; every rank must ask."""
        if self.size > 1:
            dist.all_reduce(values, dist.ReduceOp.SUM, self._control)
            values = values / self.size
        return values

    def each(self, values: Tensor) -> list[Tensor]:
        """The tensors of all ranks, on the CPU and of one shape, in their order; every rank must ask."""
        if self.size == 1:
            return [values]
        found = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(found, values, self._control)
        return found

    def wrap(self, objective: nn.Module) -> nn.Module:
        """The objective, its gradients averaged over the ranks as they come.

        They are averaged bucket by bucket (25 MB each) while the backward pass goes on. That holds for a compiled
        objective too: inside this wrapper torch splits its graph where the buckets end (`torch._dynamo.config`,
        `optimize_ddp`), else one compiled backward pass would hand out all gradients at its end.
        """
        return nn.parallel.DistributedDataParallel(objective) if self.size > 1 else objective

    def share_buffers(self, module: nn.Module) -> None:
        """Give every rank the first one's buffers (BatchNorm's statistics), as every forward pass in training does."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    @staticmethod
    def averaging(wrapped: nn.Module, now: bool) -> AbstractContextManager[Any]:
        """Inside, backward passes average the gradients over the ranks, or only add them up on each."""
        spread = isinstance(wrapped, nn.parallel.DistributedDataParallel)
        return wrapped.no_sync() if spread and not now else nullcontext()

    def leave(self) -> None:
        """Say goodbye; nothing may be asked afterwards."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()
