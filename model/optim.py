"""Optimizers and learning-rate schedules. The rate is a pure function of the step: nothing of it needs saving."""

import math
from typing import Any

import torch

from configs.schema import OptimConfig


def build_optimizer(config: OptimConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer over a method's `param_groups()`, in fused kernels: one pass over each tensor, on a CPU as well."""
    groups = [{"lr_scale": 1.0, **group} for group in groups]
    if config.name == "sgd":
        return torch.optim.SGD(
            groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
        )
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True)


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """The rate of optimizer step `step` (from 0) of `total_steps`.

    constant and cosine rise linearly over the warm-up; one_cycle rises along a cosine from lr / 25 and ends at
    lr / 250000 (Smith and Topin, 2018, with PyTorch's factors).
    """
    warmup = config.warmup_share * total_steps
    if config.schedule == "one_cycle":
        low, end = config.lr / 25, config.lr / 250_000
        if step < warmup:
            return config.lr + (low - config.lr) * (1 + math.cos(math.pi * step / warmup)) / 2
        share = (step - warmup) / max(1.0, total_steps - 1 - warmup)
        return end + (config.lr - end) * (1 + math.cos(math.pi * min(1.0, share))) / 2
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return config.lr
    return config.lr * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total_steps - warmup))) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
