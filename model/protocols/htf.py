"""The test of Hear the Flow: cubic as OpenCV resizes, above the median."""

from model.protocol import MedianProtocol, ProtocolConfig


class Htf(MedianProtocol):
    """The pixel at the threshold does not count: a constant map has no foreground.

    Source: Fedorishin et al., Hear the Flow (WACV 2023), released test script. OpenCV's cubic resizing is torch's
    bicubic one without aligned corners (a = -0.75 in both).
    """

    class Config(ProtocolConfig):
        pass

    resize_mode = "bicubic"
    align_corners = False
    strict = True
