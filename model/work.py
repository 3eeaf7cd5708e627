"""The work of a training step, counted, and the time that a GPU should take for it, estimated.

Counted on tensors without values, of the true batch size: it takes seconds and no memory.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from configs.errors import UserError
from configs.resolve import nearest
from configs.schema import RunConfig
from model.build import build_objective, without_initial_weights
from pipeline.batch import Batch


@dataclass(frozen=True)
class GPU:
    """flops_per_s: sustained by bf16 matrix products, a multiplication and an addition as two; float32 convolutions,
    in TF32, get half. bytes_per_s: sustained by copies, both ways counted. memory_bytes: what a process can have.
    """

    flops_per_s: float
    bytes_per_s: float
    memory_bytes: float


GPUS = {"h200": GPU(flops_per_s=790e12, bytes_per_s=4.3e12, memory_bytes=139 * 2**30)}
MATRIX_SHARE = 0.6
"""Of the matrix rate, that convolutions reach."""
PASSES = (3.0, 5.5)
"""Forward and backward, over each convolution's output, that the fused code between convolutions makes: BatchNorm reads
it for its statistics, reads it again and writes; backward it reads output and gradient twice and writes, and ReLU and
the sums of residuals read some more."""
TUNED = (0.75, 0.8)
"""Of this model, that well-tuned published trainings of ResNets on this kind of GPU reach."""


@dataclass
class Work:
    """Of a training step. flops and forward_flops: bytes of a number -> operations of matrix products and convolutions,
    a multiplication and an addition as two; everything else does not count. traffic_bytes: of the passes between
    convolutions. kept_bytes: kept by the forward for the backward pass, each block once, weights apart.
    """

    forward_flops: Counter[int] = field(default_factory=Counter)
    flops: Counter[int] = field(default_factory=Counter)
    traffic_bytes: float = 0.0
    kept_bytes: int = 0

    def seconds(self, gpu: GPU) -> float:
        """What the model says; a well-tuned step reaches `TUNED` of its rate."""
        arithmetic = sum(count * (1 if size < 4 else 2) for size, count in self.flops.items())
        return arithmetic / (MATRIX_SHARE * gpu.flops_per_s) + self.traffic_bytes / gpu.bytes_per_s


class _CountWork(TorchDispatchMode):
    """Adds the operations and passes of what runs below it to `work`."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work, self.backward = work, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula:
            done = formula(*args, **(kwargs or {}), out_val=result)
            self.work.flops[args[0].dtype.itemsize] += done
            if not self.backward:
                self.work.forward_flops[args[0].dtype.itemsize] += done
        if func._overloadpacket is torch.ops.aten.convolution:
            self.work.traffic_bytes += PASSES[0] * result.nbytes
        elif func._overloadpacket is torch.ops.aten.convolution_backward:
            self.work.traffic_bytes += PASSES[1] * args[0].nbytes
        return result


@contextmanager
def kept_for_backward(objective: nn.Module) -> Iterator[dict[int, int]]:
    """Block of memory -> its bytes, of what forward passes inside keep, parameters and buffers apart."""
    own = {tensor.untyped_storage()._cdata for tensor in (*objective.parameters(), *objective.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        block = tensor.untyped_storage()
        if block._cdata not in own:
            kept[block._cdata] = block.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


def count_step(objective: nn.Module, batch: Batch, weights: torch.Tensor, *, bf16: bool = False) -> Work:
    """The work of forward pass, losses and backward pass, run on the batch as it is, with or without values."""
    work = Work()
    with _CountWork(work) as counting:
        with (
            kept_for_backward(objective) as kept,
            torch.autocast(weights.device.type, torch.bfloat16, enabled=bf16),
        ):
            losses = objective(batch, weights)
        counting.backward = True
        losses.total.backward()
    work.kept_bytes = sum(kept.values())
    return work


def count_work(config: RunConfig, sample: Batch) -> Work:
    """The work of a training step of `config`. sample: a few clips of its shapes, on the CPU."""
    with torch.device("meta"):
        objective = build_objective(without_initial_weights(config.model)).train()
    with FakeTensorMode() as without_values:
        for module in objective.modules():
            for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                empty = torch.empty(value.shape, dtype=value.dtype)
                trained = isinstance(value, nn.Parameter)
                setattr(module, name, nn.Parameter(empty, value.requires_grad) if trained else empty)
        weights = torch.ones(len(objective.losses))

        def enlarged(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(enlarged(each) for each in value)
            if not isinstance(value, torch.Tensor):
                return value
            value = without_values.from_tensor(value)
            return torch.empty_strided((config.data.batch_size, *value.shape[1:]), value.stride(), dtype=value.dtype)

        batch = replace(sample, **{item.name: enlarged(getattr(sample, item.name)) for item in fields(sample)})
        return count_step(objective, batch, weights, bf16=config.train.precision == "bf16")


def find_gpu(name: str) -> GPU:
    """A GPU whose sustained rates are known. Raises: UserError."""
    if name not in GPUS:
        raise UserError(
            f"no rates of a GPU '{name}' are known; there are: {', '.join(GPUS)}.{nearest(name, list(GPUS))}"
        )
    return GPUS[name]
