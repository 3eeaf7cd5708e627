"""The multiple-instance contrastive loss of EZ-VSL."""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from model.base import Loss, LossConfig
from model.distributed import gathered
from model.similarity import all_pairs_max


class MaxMIL(Loss):
    """Cross-entropy in both directions over the similarity at each image's best cell.

    image_features (B, D, h, w) and audio_features (B, D), unit length over D. Scalar, near 2 ln(B) at random weights.
    Source: Mo and Morgado (EZ-VSL), ECCV 2022, eq. 4 to 6; the authors' code adds the two directions without halving.
    """

    class Config(LossConfig):
        tau: float = Field(0.03, gt=0, description="temperature")

    needs = ("image_features", "audio_features")

    def forward(self, *, image_features: Tensor, audio_features: Tensor) -> Tensor:  # type: ignore[override]
        config: Any = self.config
        logits = gathered(all_pairs_max(image_features, gathered(audio_features))) / config.tau
        target = torch.arange(len(logits), device=logits.device)
        return functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
