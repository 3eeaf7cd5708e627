"""The test of SLAVC without --relative_prediction: one threshold for all clips."""

from model.protocol import FixedProtocol, ProtocolConfig


class SlavcAbs(FixedProtocol):
    """Bicubic with aligned corners; the middle of the method's range is the threshold: a cosine of 0.

    Source: as `slavc_rel`.
    """

    class Config(ProtocolConfig):
        pass

    resize_mode = "bicubic"
    align_corners = True
    normalisation = "bounds"
    strict = False
    cut = 0.5
    rule = "0.5"
    usual_metrics = ("ciou", "detection")
