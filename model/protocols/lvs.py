"""The test of LVS: linear as OpenCV resizes, above the median."""

from model.protocol import MedianProtocol, ProtocolConfig


class Lvs(MedianProtocol):
    """The pixel at the threshold does not count: a constant map has no foreground.

    Source: Chen et al., Localizing Visual Sounds the Hard Way (CVPR 2021), released test script. OpenCV's linear
    resizing is torch's without aligned corners.
    """

    class Config(ProtocolConfig):
        pass

    resize_mode = "bilinear"
    align_corners = False
    negated = True
    strict = True
