"""The test of AVSBench: masks, a sigmoid above 0.5."""

from model.protocol import FixedProtocol, ProtocolConfig


class Avsbench(FixedProtocol):
    """The map between the bounds that the method can take (logits through a sigmoid), without normalisation a clip.

    Source: Zhou et al., Audio-Visual Segmentation (ECCV 2022), released code. F is taken over the whole set, not a
    batch, as ACL-SSL corrected it.
    """

    class Config(ProtocolConfig):
        pass

    resize_mode = "bilinear"
    align_corners = False
    normalisation = "bounds"
    strict = True
    cut = 0.5
    rule = "0.5"
    usual_metrics = ("miou",)
