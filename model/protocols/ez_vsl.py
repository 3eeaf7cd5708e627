"""The test of EZ-VSL, which FNAC and SLAVC (relative) share: bilinear with aligned corners, top half of the pixels."""

from torch import Tensor

from model.scoring import Maps, Protocol, ProtocolConfig, median


class EzVsl(Protocol):
    """Median of the 0 .. 1 map, inclusive: a constant map is all foreground.

    Source: Mo and Morgado, Localizing Visual Sounds the Easy Way (ECCV 2022), released test script. While training,
    that code selects checkpoints with bicubic resizing, which scores some five points less on VGG-SS.
    """

    class Config(ProtocolConfig):
        pass

    resize_mode = "bilinear"
    align_corners = True
    strict = False
    rule = "the map's median (value number 25088 of 50176, ascending from 0)"
    half_area = True

    def threshold(self, maps: Maps) -> Tensor:
        return median(maps)
