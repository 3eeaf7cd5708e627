"""The first of the two tests of FNAC, which is that of EZ-VSL."""

from model.protocols.ez_vsl import EzVsl


class Fnac(EzVsl):
    """Source: Sun et al., Learning Audio-Visual Source Localization via False Negative Aware Contrastive Learning
    (CVPR 2023), `validate` of the released code.
    """

    class Config(EzVsl.Config):
        pass
