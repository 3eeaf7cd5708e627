"""The other modality's query must look where the own one looks."""

from torch import Tensor
from torch.nn import functional

from model.base import Loss, LossConfig
from model.similarity import widen


class AttentionMatching(Loss):
    """Mean squared error of the target slots' cross-modal attention against the intra-modal one, image and audio added.

    `<query>_query_on_<keys>` (B, N, L), each row sums to 1 over the L tokens; slot 0 is the target. The intra-modal
    attentions are targets and get no gradient. Scalar, about 1e-5: hence its weight of 100.
    Source: JSA (CVPR 2025), released code.
    """

    class Config(LossConfig):
        pass

    needs = ("audio_query_on_image", "image_query_on_image", "image_query_on_audio", "audio_query_on_audio")

    def forward(self, **outputs: Tensor) -> Tensor:
        target = {name: widen(value[:, 0]) for name, value in outputs.items()}
        image = functional.mse_loss(target["audio_query_on_image"], target["image_query_on_image"].detach())
        return image + functional.mse_loss(target["image_query_on_audio"], target["audio_query_on_audio"].detach())
