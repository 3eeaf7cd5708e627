"""The test of Hear the Flow, whose rule SIRA-SSL keeps: cubic as OpenCV resizes, above the median."""

from torch import Tensor

from model.scoring import Maps, Protocol, ProtocolConfig, median


class Htf(Protocol):
    """The pixel at the threshold does not count: a constant map has no foreground.

    Source: Fedorishin et al., Hear the Flow (WACV 2023), released test script. OpenCV's cubic resizing is torch's
    bicubic one without aligned corners (a = -0.75 in both).
    """

    class Config(ProtocolConfig):
        pass

    resize_mode = "bicubic"
    align_corners = False
    strict = True
    rule = "the map's median (value number 25088 of 50176, ascending from 0)"
    half_area = True

    def threshold(self, maps: Maps) -> Tensor:
        return median(maps)
