"""FNAC's first term: clips that sound alike should be alike across the modalities too."""

from typing import Any

from pydantic import Field
from torch import Tensor

from model.base import Loss, LossConfig
from model.distributed import gathered
from model.similarity import all_pairs_max, distribution, products


class FalseNegativesAudio(Loss):
    """Mean difference between how sounds resemble each other and how images resemble sounds, both as shares of a row.

    image_features (B, D, h, w) and audio_features (B, D), unit length over D. Scalar in [0, 2 / B]; no side is held
    fixed.
    Source: Sun et al. (FNAC), CVPR 2023, false negatives suppression by sound, as in the authors' code.
    """

    class Config(LossConfig):
        tau: float = Field(0.03, gt=0, description="temperature of both distributions")

    needs = ("image_features", "audio_features")

    def forward(self, *, image_features: Tensor, audio_features: Tensor) -> Tensor:  # type: ignore[override]
        config: Any = self.config
        sounds = gathered(audio_features)
        alike = distribution(products(audio_features, sounds), config.tau)
        across = distribution(all_pairs_max(image_features, sounds), config.tau)
        return (alike - across).abs().mean()
