"""The second of the two tests of FNAC: the map bicubic, the object prior not."""

from model.protocols.ez_vsl_train import EzVslTrain


class FnacBicubic(EzVslTrain):
    """As `ez_vsl_train`, with an object prior that is resized as `ez_vsl` does.

    Source: Sun et al., Learning Audio-Visual Source Localization via False Negative Aware Contrastive Learning
    (CVPR 2023), `validate2` of the released code.
    """

    class Config(EzVslTrain.Config):
        pass

    prior_resize = ("bilinear", True)
