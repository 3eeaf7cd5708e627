"""The tri-map loss of SIRA-SSL on the second look."""

from model.losses.trimap import TriMap


class TriMapRecursive(TriMap):
    """`TriMap` with recursive_features (B, D, h, w) in place of the image features.

    Source: Um, Kim, Kim (SIRA-SSL), ACM MM 2023, authors' code.
    """

    class Config(TriMap.Config):
        pass

    needs = ("recursive_features", "audio_features")
