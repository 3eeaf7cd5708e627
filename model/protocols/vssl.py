"""The test with negative sounds: one threshold for all clips, which the sounds without a source set."""

from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.errors import UserError
from model.protocol import Maps, Protocol, ProtocolConfig, SetFacts


class Vssl(Protocol):
    """The third quartile of the largest map values of all clips whose sound is negative (silence, noise, off-screen).

    Maps are resized and not normalised (the released code resizes LVS and SSL-Align on VGG-SS as OpenCV does). A map
    under a negative sound counts above the threshold, one of a visible source at or above it.
    Source: Juanola et al., A Critical Assessment of Visual Sound Source Localization Models Including Negative Audio
    (ICASSP 2025), released code; there the quartile is a number a model, here it comes from the maps that are scored.
    """

    class Config(ProtocolConfig):
        pass

    resize_mode = "bilinear"
    align_corners = True
    normalisation = "none"
    strict = False
    rule = "the third quartile of the maps' maxima under negative sounds"
    calibrated = True
    usual_metrics = ("ciou", "negatives")

    def __init__(self, config: Any, facts: SetFacts | None = None) -> None:
        super().__init__(config, facts)
        self.cut: float | None = None

    def at(self, maxima: np.ndarray) -> "Vssl":
        if not len(maxima):
            raise UserError(
                "protocol vssl takes its threshold from clips whose sound has no source in the picture, and this set "
                "has none; score a split with negatives, or choose another protocol"
            )
        same = copy(self)
        same.cut = float(np.quantile(maxima, 0.75))
        same.rule = f"{same.cut:.4g}, {self.rule}"
        return same

    def threshold(self, maps: Maps) -> Tensor:
        assert self.cut is not None, "the threshold comes from the whole set"
        return torch.full((len(maps.scaled),), self.cut, device=maps.scaled.device)
