"""The test of VCS: linear as OpenCV resizes, at or above the mean of the two middle values."""

from torch import Tensor

from model.protocol import Maps, Protocol, ProtocolConfig


class Vcs(Protocol):
    """The map is not normalised, and its median is that of numpy: half of the pixels, unless values tie.

    Source: Zhou et al., Exploiting Visual Context Semantics for Sound Source Localization (WACV 2023), released code.
    """

    class Config(ProtocolConfig):
        pass

    resize_mode = "bilinear"
    align_corners = False
    normalisation = "none"
    strict = False
    rule = "the map's median (mean of the two middle values)"
    half_area = True

    # No `MedianProtocol`, whose foreground begins at a place in the order: the mean of neighbouring numbers rounds to
    # one of them, maybe the lower.
    def threshold(self, maps: Maps) -> Tensor:
        half = self.size_px**2 // 2
        return (maps.ranked(half - 1) + maps.ranked(half)) / 2
