"""The test of SSL-Align: bilinear with aligned corners, above the median."""

from torch import Tensor

from model.scoring import Maps, Protocol, ProtocolConfig, median


class SslAlign(Protocol):
    """As `ez_vsl`, but the pixel at the threshold does not count: a constant map has no foreground.

    Source: Senocak et al., Sound Source Localization is All about Cross-Modal Alignment (ICCV 2023), released code.
    Its adaptive scores are the metric `ciou_adaptive`.
    """

    class Config(ProtocolConfig):
        pass

    resize_mode = "bilinear"
    align_corners = True
    strict = True
    rule = "the map's median (value number 25088 of 50176, ascending from 0)"
    half_area = True

    def threshold(self, maps: Maps) -> Tensor:
        return median(maps)
