"""FNAC's third term: what differs in sound should differ where it is seen."""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from model.base import Loss, LossConfig
from model.distributed import gathered
from model.similarity import distribution, own_pair_map, products, widen


class TrueNegatives(Loss):
    """Mean difference between how sounds resemble each other and how the sounding regions do, as shares of a row.

    image_features (B, D, h, w) and audio_features (B, D), unit length over D. A region is the sum over the cells whose
    own-pair cosine, brought to 0 .. 1 over the map, is above `threshold`, divided by the number of all cells. Scalar in
    [0, 2 / B]; which cells belong to a region carries no gradient, all else does.
    Source: Sun et al. (FNAC), CVPR 2023, true negatives enhancement, as in the authors' code.
    """

    class Config(LossConfig):
        tau: float = Field(0.03, gt=0, description="temperature of both distributions")
        threshold: float = Field(0.6, ge=0, lt=1, description="share of the map's range; authors' code")

    needs = ("image_features", "audio_features")

    def forward(self, *, image_features: Tensor, audio_features: Tensor) -> Tensor:  # type: ignore[override]
        config: Any = self.config
        with torch.no_grad():
            cosines = own_pair_map(image_features, audio_features)
            low, high = cosines.amin(dim=(1, 2), keepdim=True), cosines.amax(dim=(1, 2), keepdim=True)
            inside = (cosines - low) / (high - low + 1e-5) > config.threshold
        region = (widen(image_features) * inside[:, None]).mean(dim=(2, 3))
        alike = distribution(products(audio_features, gathered(audio_features)), config.tau)
        return (alike - distribution(products(region, gathered(region)), config.tau)).abs().mean()
