"""The test of SIRA-SSL, which is that of Hear the Flow."""

from model.protocols.htf import Htf


class Sira(Htf):
    """Source: Um et al., Audio-Visual Spatial Integration and Recursive Attention for Robust Sound Source Localization
    (ACM MM 2023), released code; it also prints `mciou`.
    """

    class Config(Htf.Config):
        pass
