"""The slots together must hold what the encoders saw."""

from torch import Tensor
from torch.nn import functional

from model.base import Loss, LossConfig
from model.similarity import widen


class SlotReconstruction(Loss):
    """Mean squared error of the tokens decoded from the slots against the encoders' tokens, image and audio added.

    `*_tokens` and `*_reconstruction` (B, L, D); the tokens are targets and get no gradient. Scalar.
    Source: JSA (CVPR 2025), released code.
    """

    class Config(LossConfig):
        pass

    needs = ("image_tokens", "image_reconstruction", "audio_tokens", "audio_reconstruction")

    def forward(self, **outputs: Tensor) -> Tensor:
        values = {name: widen(value) for name, value in outputs.items()}
        image = functional.mse_loss(values["image_reconstruction"], values["image_tokens"].detach())
        return image + functional.mse_loss(values["audio_reconstruction"], values["audio_tokens"].detach())
