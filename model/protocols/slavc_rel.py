"""The test of SLAVC with --relative_prediction: bicubic with aligned corners, top half of the pixels."""

from collections.abc import Mapping

from model.protocol import Maps, MedianProtocol, ProtocolConfig


class SlavcRel(MedianProtocol):
    """As `ez_vsl`, but bicubic; and mixtures with an object prior are made on the common scale of all clips.

    The method's map counts from the least to the largest value that it can take, the object prior from 0 to 2.5.
    Source: Mo and Morgado, A Closer Look at Weakly-Supervised Audio-Visual Source Localization (NeurIPS 2022),
    released test script; its scripts mix with a share of 0.9 (`evaluate.refine.ogl.alphas`), its default is 0.4.
    """

    class Config(ProtocolConfig):
        pass

    resize_mode = "bicubic"
    align_corners = True
    strict = False
    usual_metrics = ("ciou", "detection")

    def mix(self, shares: Mapping[str, float], maps: Mapping[str, Maps]) -> Maps:
        return self.mix_absolute(shares, maps)
