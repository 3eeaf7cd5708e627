"""The test of ACL-SSL and SouPLe: thresholds from 0.05 to 0.95 on the method's own scale, the best one kept."""

from model.protocol import FixedProtocol, ProtocolConfig


class AclSweep(FixedProtocol):
    """The map between the bounds that the method can take (logits through a sigmoid), without normalisation a clip.

    `ciou_sweep` tries all thresholds and keeps the best by AUC, on the test set itself; every other metric cuts at 0.5.
    Scores lie far above those of a median and cannot be compared with them.
    Source: Park et al., Can CLIP Help Sound Source Localization? (WACV 2024), released code. Its models give maps of
    224 pixels; those of other methods are resized bicubically, which is ours.
    """

    class Config(ProtocolConfig):
        pass

    resize_mode = "bicubic"
    align_corners = False
    normalisation = "bounds"
    strict = False
    cut = 0.5
    rule = "0.5"
    usual_metrics = ("ciou_sweep",)
