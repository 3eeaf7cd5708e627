"""The localization loss of SSL-Align: every cell of a picture and whole sounds, over all pairs of views."""

from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from model.base import Loss, LossConfig
from model.contrast import view_contrast
from model.distributed import gathered
from model.similarity import all_pairs_max, products


class ViewLocalization(Loss):
    """Cross-entropy in both directions over the cosines pooled over the cells, added over the pairs of views.

    image_views (V, B, D, h, w) and audio_views (W, B, D), unit length over D; pair_weights (V, W). Scalar, near
    2 ln(B) times the sum of the weights at random weights.
    Source: Senocak et al. (SSL-Align), ICCV 2023; no training code was released, tau is our choice.
    """

    class Config(LossConfig):
        tau: float = Field(0.07, gt=0, description="temperature; ours, as MoCo and LVS")
        pool: Literal["mean", "max"] = Field(
            "mean", description="over the cells; paper: mean, as far as it is known to us"
        )

    needs = ("image_views", "audio_views", "pair_weights")

    def forward(self, *, image_views: Tensor, audio_views: Tensor, pair_weights: Tensor) -> Tensor:  # type: ignore[override]
        config: Any = self.config
        v, b = image_views.shape[:2]
        heard = gathered(audio_views, 1)
        images, sounds = image_views.flatten(0, 1), heard.flatten(0, 1)
        # The mean of cosines is the cosine with the mean cell: no cell needs to meet every sound.
        cosines = products(images.mean(dim=(2, 3)), sounds) if config.pool == "mean" else all_pairs_max(images, sounds)
        logits = gathered(cosines.view(v, b, *heard.shape[:2]), 1) / config.tau
        return (view_contrast(logits) * pair_weights).sum()
