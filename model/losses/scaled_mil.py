"""The localization loss of VCS: every image against all sounds, with a learned scale in place of a temperature."""

from typing import Any, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from model.base import Loss, LossConfig
from model.distributed import gathered, own_columns
from model.similarity import all_pairs_max, products, widen


class ScaledMIL(Loss):
    """Cross-entropy of each image over the sounds of the batch, over the similarity at its best cell.

    image_features (B, D, h, w) and audio_features (B, D), unit length over D; scale (1,), with gradient. Scalar, near
    ln(B) at random weights.
    Source: Zhou et al. (VCS), WACV 2023, in the form of the authors' code: one direction, and no temperature but the
    scale, which multiplies the cosines before the pooling.
    """

    class Config(LossConfig):
        pool: Literal["max", "mean"] = Field("max", description="over the cells; authors' code: max, mean possible")

    needs = ("image_features", "audio_features", "scale")

    def forward(self, *, image_features: Tensor, audio_features: Tensor, scale: Tensor) -> Tensor:  # type: ignore[override]
        config: Any = self.config
        sound = gathered(widen(audio_features)) * scale
        logits = (
            all_pairs_max(image_features, sound)
            if config.pool == "max"
            else products(widen(image_features).mean(dim=(2, 3)), sound)  # the mean of products, without the map
        )
        return functional.cross_entropy(logits, own_columns(len(logits), logits.device))
