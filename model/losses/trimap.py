"""The tri-map contrastive loss of LVS: sounding cells, cells in doubt, and the picture's own background."""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from model.base import Loss, LossConfig
from model.distributed import own_columns
from model.similarity import own_map_and_all_pairs_soft_mean, own_pairs, soft_mean


class TriMap(Loss):
    """Cross-entropy of the own pair's sounding cells against all pairs' and against the own background.

    `needs` names the image features (B, D, h, w) and the audio features (B, D), in this order, unit length over D; a
    loss on other outputs of a method derives from this one and names them. Images against sounds only. Scalar.
    Source: Chen et al., "Localizing Visual Sounds the Hard Way", CVPR 2021, in the form of the authors' code, which
    Hear The Flow and SIRA-SSL share: it removes the own pair from the negatives by multiplying its value by 1 - 100.
    That holds for positive values only: a negative one becomes the largest logit of its row. `own_pair: masked` leaves
    the pair out whatever its value.
    """

    class Config(LossConfig):
        epsilon_p: float = Field(0.65, description="cosine at which a cell counts half as sounding; LVS")
        epsilon_n: float = Field(0.40, description="cosine at which a cell counts half as background; LVS")
        tau: float = Field(0.03, gt=0, description="softness of both borders; LVS")
        temperature: float = Field(0.07, gt=0, description="of the logits; LVS")
        own_pair: Literal["scaled", "masked"] = Field(
            "scaled", description="the own pair among the negatives: times -99 as published, or left out"
        )

    needs: tuple[str, ...] = ("image_features", "audio_features")

    def forward(self, **outputs: Tensor) -> Tensor:
        logits = self.logits(*(outputs[need] for need in self.needs))
        return functional.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))

    def logits(self, image_features: Tensor, audio_features: Tensor) -> Tensor:
        """(B, 1 + B + 1): own sounding cells, every pair's sounding cells, own background; column 0 is right."""
        config: Any = self.config
        own, pairs = own_map_and_all_pairs_soft_mean(image_features, audio_features, config.epsilon_p, config.tau)
        positive = own_pairs(pairs, 1)
        background = soft_mean(own, config.epsilon_n, -config.tau)
        columns = torch.arange(pairs.shape[1], device=pairs.device)
        is_own = columns == own_columns(len(pairs), pairs.device)[:, None]
        if config.own_pair == "masked":
            pairs = pairs.masked_fill(is_own, -torch.inf)
        else:
            pairs = torch.where(is_own, pairs * -99, pairs)
        return torch.cat([positive[:, None], pairs, background[:, None]], dim=1) / config.temperature
