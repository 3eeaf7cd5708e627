"""Keeps the slots of a clip apart."""

import torch
from torch import Tensor

from model.base import Loss, LossConfig
from model.similarity import widen


class SlotDivergence(Loss):
    """Mean positive cosine between different slots of a clip, image and audio added.

    image_slots and audio_slots (B, N, D), unit length over D, N at least 2. Scalar in 0 .. 2.
    Source: JSA (CVPR 2025), released code.
    """

    class Config(LossConfig):
        pass

    needs = ("image_slots", "audio_slots")

    def forward(self, *, image_slots: Tensor, audio_slots: Tensor) -> Tensor:  # type: ignore[override]
        with torch.autocast(image_slots.device.type, enabled=False):
            return divergence(widen(image_slots)) + divergence(widen(audio_slots))


def divergence(slots: Tensor) -> Tensor:
    """Mean over clips and ordered pairs of different slots of the cosine, 0 where it is negative. Args: (B, N, D)."""
    b, n, _ = slots.shape
    own = torch.eye(n, dtype=torch.bool, device=slots.device)
    return torch.relu(slots @ slots.mT).masked_fill(own, 0).sum() / (b * n * (n - 1))
