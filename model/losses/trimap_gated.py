"""The tri-map loss of SIRA-SSL on the picture weighted by the sound."""

from model.losses.trimap import TriMap


class TriMapGated(TriMap):
    """`TriMap` with gated_features (B, D, h, w) in place of the image features.

    Source: Um, Kim, Kim (SIRA-SSL), ACM MM 2023, authors' code.
    """

    class Config(TriMap.Config):
        pass

    needs = ("gated_features", "audio_features")
