"""The consistency loss of VCS: the picture's own foreground map and the audio-visual map as distributions."""

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from model.base import Loss, LossConfig
from model.similarity import widen


class MapConsistency(Loss):
    """Divergence of the maps' softmax over the cells, mean over clips, in nats; both sides receive its gradient.

    foreground_map and localization_map (B, h, w). js: Jensen-Shannon, at most ln 2. kl: of the localization map from
    the foreground map.
    Source: Zhou et al. (VCS), WACV 2023, in the form of the authors' code.
    """

    class Config(LossConfig):
        weight: float = 0.1
        divergence: Literal["js", "kl"] = Field("js", description="authors' code: js, kl possible")

    needs = ("foreground_map", "localization_map")

    def forward(self, *, foreground_map: Tensor, localization_map: Tensor) -> Tensor:  # type: ignore[override]
        config: Any = self.config
        log_p = widen(foreground_map).flatten(1).log_softmax(dim=1)
        log_q = widen(localization_map).flatten(1).log_softmax(dim=1)
        if config.divergence == "kl":
            return _divergence(log_q, log_p)
        middle = torch.logaddexp(log_p, log_q) - math.log(2)
        return (_divergence(log_p, middle) + _divergence(log_q, middle)) / 2


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Kullback-Leibler divergence of p from q, over the last dimension, mean over the first."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()
