"""The region loss of SIRA-SSL: picture and sound should be strong in the same cells."""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from model.base import Loss, LossConfig
from model.distributed import all_rows
from model.similarity import widen

_EPS = 1e-10  # added to both shares before their ratio


class RegionAlignment(Loss):
    """Divergence of the sound's profile over the cells from the picture's, in nats, mean over clips and cells.

    second_look and audio_grid (B, D, h, w): a profile is the softmax over the cells of the mean over D. Scalar; 0 for
    a single clip, as published.
    Source: Um, Kim, Kim (SIRA-SSL), ACM MM 2023, in the form of the authors' code, which takes the mean over the cells
    where a divergence takes their sum: at its weight of 10 and 49 cells that is 10 / 49 of the divergence.
    """

    class Config(LossConfig):
        weight: float = 10.0
        tau: float = Field(0.5, gt=0, description="temperature of the profiles; authors' code")
        over_cells: Literal["mean", "sum"] = Field(
            "mean", description="sum: the divergence itself; authors' code: mean"
        )

    needs = ("second_look", "audio_grid")

    def forward(self, *, second_look: Tensor, audio_grid: Tensor) -> Tensor:  # type: ignore[override]
        config: Any = self.config
        seen, heard = (
            (widen(features).mean(dim=1).flatten(1) / config.tau).softmax(dim=1)
            for features in (second_look, audio_grid)
        )
        if all_rows(len(seen)) == 1:
            return heard.sum() * 0
        terms = seen * torch.log((seen + _EPS) / (heard + _EPS))
        return terms.mean() if config.over_cells == "mean" else terms.sum(dim=1).mean()
