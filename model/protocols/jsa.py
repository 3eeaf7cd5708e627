"""The test of JSA: bicubic, a fixed threshold of 0.6."""

from model.protocol import FixedProtocol, ProtocolConfig


class Jsa(FixedProtocol):
    """Scores cannot be compared with those of a median.

    Source: JSA, joint slot attention on image and audio (CVPR 2025, arXiv 2504.15118), released evaluator. It turns
    coloured masks into fractions of 1; here a mask counts as it is stored.
    """

    class Config(ProtocolConfig):
        pass

    resize_mode = "bicubic"
    align_corners = False
    strict = False
    cut = 0.6
    rule = "0.6"
