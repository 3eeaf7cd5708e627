"""Averaged weights: an exponential moving average over the optimizer's steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """After step t every floating-point tensor of the state dict, BatchNorm's statistics included, is
    `average += (1 - d) * (weight - average)` with d = min(decay, (1 + t) / (10 + t)), so that the random weights of the
    start are soon forgotten (as TensorFlow's ExponentialMovingAverage does it); other tensors are copied.
    """

    def __init__(self, model: nn.Module, decay: float, state: dict[str, Tensor] | None = None) -> None:
        """state: the average of a checkpoint, of the names and shapes of the model; None: begins at the weights."""
        self.decay = decay
        self.state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        for name, tensor in (state or {}).items():
            self.state[name].copy_(tensor)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after step `step` (from 1). Nothing waits for the device."""
        decay = min(self.decay, (1 + step) / (10 + step))
        now = model.state_dict()
        averaged = [name for name, tensor in now.items() if tensor.is_floating_point()]
        means, weights = [self.state[name] for name in averaged], [now[name] for name in averaged]
        torch._foreach_lerp_(means, weights, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        for name in now.keys() - set(averaged):
            self.state[name].copy_(now[name])

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model has the averaged weights, in the same memory; afterwards its own, bit for bit."""
        own: dict[str, Any] = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        _fill(model, self.state)
        try:
            yield
        finally:
            _fill(model, own)


@torch.no_grad()
def _fill(model: nn.Module, state: dict[str, Tensor]) -> None:
    for name, tensor in model.state_dict().items():
        tensor.copy_(state[name])
