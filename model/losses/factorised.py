"""SLAVC's contrastive loss: which sound it is, and where it is, decided by separate features."""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from model.base import Loss, LossConfig
from model.distributed import gathered, own_columns
from model.kernels.factorised_pairs import factorised_pairs
from model.similarity import all_pairs, images_at_a_time


class Factorised(Loss):
    """Cross-entropy in both directions over which sound times where, each against the slow encoders' features.

    `*image_which` and `*image_where` are (B, D, h, w), `*audio_which` and `*audio_where` (B, D), of unit length over D;
    `slow_*` come without gradient. Scalar, unweighted sum of images against slow sounds and slow images against sounds.
    Source: Mo and Morgado, "A Closer Look at Weakly-Supervised Audio-Visual Source Localization" (SLAVC), NeurIPS 2022,
    in the form of the authors' code: both directions choose the sound for an image, and the logits are logarithms of
    probabilities, to which the cross-entropy applies another softmax.
    """

    class Config(LossConfig):
        tau: float = Field(0.03, gt=0, description="temperature of both factors")

    needs = (
        *("image_which", "image_where", "audio_which", "audio_where"),
        *("slow_image_which", "slow_image_where", "slow_audio_which", "slow_audio_where"),
    )

    def forward(self, **outputs: Tensor) -> Tensor:
        config: Any = self.config
        total = torch.zeros((), device=outputs["image_which"].device)
        for image, audio in (("image", "slow_audio"), ("slow_image", "audio")):
            which, where = outputs[f"{image}_which"], outputs[f"{image}_where"]
            sound_which, sound_where = gathered(outputs[f"{audio}_which"]), gathered(outputs[f"{audio}_where"])
            chunk = images_at_a_time(which, sound_which)
            if chunk is None:
                maps = all_pairs(which, sound_which), all_pairs(where, sound_where)
                logits = factorised_logits(maps[0], maps[1], config.tau)
            else:
                cells = which.flatten(2).mT, where.flatten(2).mT
                logits = factorised_pairs(cells[0], cells[1], sound_which, sound_where, config.tau, chunk)
            total = total + functional.cross_entropy(logits, own_columns(len(logits), logits.device))
        return total


def factorised_logits(which: Tensor, where: Tensor, tau: float) -> Tensor:
    """Logarithm of the share of an image's cells, weighted by `where`, that hold each sound: (B, M), at most 0.

    Args: which and where, cosines (B, h * w, M); the first competes over the sounds, the second over the cells.
    """
    return torch.logsumexp((which / tau).log_softmax(dim=2) + (where / tau).log_softmax(dim=1), dim=1)
