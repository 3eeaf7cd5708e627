"""Contrastive loss between target slots that leaves out likely false negatives: pairs of near neighbours."""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from configs.errors import UserError
from model.base import Loss, LossConfig
from model.distributed import all_rows, gathered
from model.similarity import products


class MutualNeighbourContrast(Loss):
    """Cross-entropy in both directions over the cosines of the target slots, slot 0 of each clip.

    Clips n and m are no negatives of each other if each is among the other's nearest in the picture and in the sound.
    image_slots and audio_slots (B, N, D), unit length over D. Scalar, near 2 ln(B) at random weights.
    Raises: UserError if the batch has no more clips than `neighbours`: then no negative would be left.
    Source: JSA (CVPR 2025), released code; it adds the two directions without halving.
    """

    class Config(LossConfig):
        tau: float = Field(0.03, gt=0, description="temperature")
        neighbours: int = Field(20, ge=1, description="how many clips are near, the clip itself included; 1: keep all")

    needs = ("image_slots", "audio_slots")

    def forward(self, *, image_slots: Tensor, audio_slots: Tensor) -> Tensor:  # type: ignore[override]
        config: Any = self.config
        count = all_rows(len(image_slots))
        if 1 < config.neighbours >= count:
            raise UserError(
                f"model.losses.{config.name}.neighbours={config.neighbours} needs a batch of more clips than that, "
                f"found {count}: no negative would be left. Lower it, or raise data.batch_size"
            )
        image, audio = gathered(image_slots[:, 0]), gathered(audio_slots[:, 0])
        return contrast(image, audio, config.tau, config.neighbours)


def contrast(image: Tensor, audio: Tensor, tau: float, neighbours: int) -> Tensor:
    """The loss itself, a scalar. Args: image and audio (B, D), unit length over D."""
    kept = kept_pairs(image.detach(), audio.detach(), neighbours)
    logits = (products(image, audio) / tau).masked_fill(~kept, -torch.inf)
    target = torch.arange(len(logits), device=logits.device)
    return functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)


def kept_pairs(image: Tensor, audio: Tensor, neighbours: int) -> Tensor:
    """(B, B) bool, symmetric: True on the diagonal and where two clips are not mutual neighbours in both modalities.

    Args: image and audio (B, D), unit length over D.
    """
    near = _nearest(image, neighbours) & _nearest(audio, neighbours)
    own = torch.eye(len(image), dtype=torch.bool, device=image.device)
    return own | ~(near & near.T)


def _nearest(features: Tensor, neighbours: int) -> Tensor:
    """(B, B) bool: whether the clip of the column is among the nearest of the clip of the row."""
    cosine = products(features, features)
    return torch.zeros_like(cosine, dtype=torch.bool).scatter(1, cosine.topk(neighbours, dim=1).indices, True)
