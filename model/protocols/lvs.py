"""The test of LVS: linear as OpenCV resizes, above the median."""

from torch import Tensor

from model.scoring import Maps, Protocol, ProtocolConfig, median


class Lvs(Protocol):
    """The pixel at the threshold does not count: a constant map has no foreground.

    Source: Chen et al., Localizing Visual Sounds the Hard Way (CVPR 2021), released test script. It brings the negated
    map to 0 .. 1 and subtracts that from 1, which keeps the order of the pixels. OpenCV's linear resizing is torch's
    without aligned corners.
    """

    class Config(ProtocolConfig):
        pass

    resize_mode = "bilinear"
    align_corners = False
    strict = True
    rule = "the map's median (value number 25088 of 50176, ascending from 0)"
    half_area = True

    def threshold(self, maps: Maps) -> Tensor:
        return median(maps)
