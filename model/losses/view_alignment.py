"""The alignment loss of SSL-Align: whole pictures and whole sounds, over all pairs of views."""

from typing import Any

from pydantic import Field
from torch import Tensor

from model.base import Loss, LossConfig
from model.contrast import view_contrast
from model.distributed import gathered
from model.similarity import products


class ViewAlignment(Loss):
    """Cross-entropy in both directions over the cosines of embeddings, added over the pairs of views.

    image_embeddings (V, B, P) and audio_embeddings (W, B, P), unit length over P; pair_weights (V, W). Scalar, near
    2 ln(B) times the sum of the weights at random weights.
    Source: Senocak et al. (SSL-Align), ICCV 2023; no training code was released, tau is our choice.
    """

    class Config(LossConfig):
        tau: float = Field(0.07, gt=0, description="temperature; ours, as MoCo and LVS")

    needs = ("image_embeddings", "audio_embeddings", "pair_weights")

    def forward(self, *, image_embeddings: Tensor, audio_embeddings: Tensor, pair_weights: Tensor) -> Tensor:  # type: ignore[override]
        config: Any = self.config
        images, sounds = gathered(image_embeddings, 1), gathered(audio_embeddings, 1)
        v, b, _ = images.shape
        cosines = products(images.flatten(0, 1), sounds.flatten(0, 1)).view(v, b, -1, b)
        return (view_contrast(cosines / config.tau) * pair_weights).sum()
