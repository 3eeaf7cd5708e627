"""The test of JSA: bicubic, a fixed threshold of 0.6."""

import torch
from torch import Tensor

from model.scoring import Maps, Protocol, ProtocolConfig


class Jsa(Protocol):
    """The foreground may have any size, so that scores cannot be compared with those of a median.

    Source: JSA, joint slot attention on image and audio (CVPR 2025, arXiv 2504.15118), released evaluator.
    """

    class Config(ProtocolConfig):
        pass

    resize_mode = "bicubic"
    align_corners = False
    strict = False
    rule = "0.6"
    half_area = False

    def threshold(self, maps: Maps) -> Tensor:
        return torch.full((len(maps.scaled),), 0.6, device=maps.scaled.device)
