"""FNAC's second term: clips that look alike should be alike across the modalities too."""

from typing import Any

from pydantic import Field
from torch import Tensor

from model.base import Loss, LossConfig
from model.distributed import gathered
from model.similarity import all_pairs_max, distribution, products, widen


class FalseNegativesImage(Loss):
    """Mean difference between how pictures resemble each other and how images resemble sounds, as shares of a row.

    image_features (B, D, h, w) and audio_features (B, D), unit length over D. A picture is the mean over its cells, not
    brought to unit length again. Scalar in [0, 2 / B]; no side is held fixed.
    Source: Sun et al. (FNAC), CVPR 2023, false negatives suppression by image, as in the authors' code.
    """

    class Config(LossConfig):
        tau: float = Field(0.03, gt=0, description="temperature of both distributions")

    needs = ("image_features", "audio_features")

    def forward(self, *, image_features: Tensor, audio_features: Tensor) -> Tensor:  # type: ignore[override]
        config: Any = self.config
        picture = widen(image_features).mean(dim=(2, 3))
        alike = distribution(products(picture, gathered(picture)), config.tau)
        across = distribution(all_pairs_max(image_features, gathered(audio_features)), config.tau)
        return (alike - across).abs().mean()
