"""The pair loss of SIRA-SSL: which sound belongs to the picture, at the second look."""

from typing import Any

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from model.base import Loss, LossConfig
from model.distributed import gathered, own_columns
from model.similarity import products, widen


class PairMatching(Loss):
    """Cross-entropy of each picture over the sounds of the batch, by the cosine of one vector each.

    second_look (B, D, h, w), brought to its largest values over the cells and unit length here; audio_features (B, D),
    unit length over D. Scalar; 0 for a single clip.
    Source: Um, Kim, Kim (SIRA-SSL), ACM MM 2023, in the form of the authors' code, which lacks a second term that
    the paper's figure shows: of the picture without the mask.
    """

    class Config(LossConfig):
        tau: float = Field(0.07, gt=0, description="temperature; authors' code")

    needs = ("second_look", "audio_features")

    def forward(self, *, second_look: Tensor, audio_features: Tensor) -> Tensor:  # type: ignore[override]
        config: Any = self.config
        seen = functional.normalize(widen(second_look).amax(dim=(2, 3)), dim=1)
        logits = products(seen, gathered(audio_features)) / config.tau
        return functional.cross_entropy(logits, own_columns(len(logits), logits.device))
