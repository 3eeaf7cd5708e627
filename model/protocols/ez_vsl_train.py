"""What EZ-VSL selects its checkpoints by while it trains, and the bicubic test of FNAC."""

from torch import Tensor

from model.scoring import Maps, Protocol, ProtocolConfig, median


class EzVslTrain(Protocol):
    """As `ez_vsl`, but bicubic without aligned corners: some five points lower on VGG-SS.

    Source: the released training scripts of Mo and Morgado, Localizing Visual Sounds the Easy Way (ECCV 2022), and the
    second test script of Sun et al., Learning Audio-Visual Source Localization via False Negative Aware Contrastive
    Learning (CVPR 2023).
    """

    class Config(ProtocolConfig):
        pass

    resize_mode = "bicubic"
    align_corners = False
    strict = False
    rule = "the map's median (value number 25088 of 50176, ascending from 0)"
    half_area = True

    def threshold(self, maps: Maps) -> Tensor:
        return median(maps)
