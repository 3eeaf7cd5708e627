"""The context loss of VCS: nodes of the foreground against nodes of the background of the same picture."""

from torch import Tensor
from torch.nn import functional

from model.base import Loss, LossConfig
from model.similarity import widen


class NodeContrast(Loss):
    """Two-way cross-entropy of the mean similarities: mean over clips of ln(1 + exp(background - foreground)).

    foreground_similarity (B, P) and background_similarity (B, Q): cosines of nodes and sound. Scalar, at most ln 2
    where the foreground is the better half.
    Source: Zhou et al. (VCS), WACV 2023, in the form of the authors' code, without temperature.
    """

    class Config(LossConfig):
        weight: float = 0.1

    needs = ("foreground_similarity", "background_similarity")

    def forward(self, *, foreground_similarity: Tensor, background_similarity: Tensor) -> Tensor:  # type: ignore[override]
        foreground, background = widen(foreground_similarity).mean(dim=1), widen(background_similarity).mean(dim=1)
        return functional.softplus(background - foreground).mean()
