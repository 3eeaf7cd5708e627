"""The test of SSL-Align: bilinear, above the median."""

from typing import Any

from model.protocol import MedianProtocol, ProtocolConfig, SetFacts


class SslAlign(MedianProtocol):
    """VGG-SS is resized as OpenCV does (corners not aligned), every other set with aligned corners.

    The pixel at the threshold does not count: a constant map has no foreground.
    Source: Senocak et al., Sound Source Localization is All about Cross-Modal Alignment (ICCV 2023), released code.
    Its adaptive and interactive scores are the metrics `ciou_adaptive`, `interactive` and `interactive_adaptive`; the
    latter two mean something for sets with several sounds a picture only (IS3, VPO-MS).
    """

    class Config(ProtocolConfig):
        pass

    resize_mode = "bilinear"
    negated = True
    strict = True
    usual_metrics = ("ciou", "ciou_adaptive", "interactive", "interactive_adaptive")

    def __init__(self, config: Any, facts: SetFacts | None = None) -> None:
        super().__init__(config, facts)
        self.align_corners = self.facts.family != "vggss"
