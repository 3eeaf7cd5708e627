"""What EZ-VSL selects its checkpoints by while it trains."""

from model.protocol import MedianProtocol, ProtocolConfig


class EzVslTrain(MedianProtocol):
    """As `ez_vsl`, but bicubic without aligned corners: some five points lower on VGG-SS.

    Source: the released training script of Mo and Morgado, Localizing Visual Sounds the Easy Way (ECCV 2022).
    """

    class Config(ProtocolConfig):
        pass

    resize_mode = "bicubic"
    align_corners = False
    strict = False
