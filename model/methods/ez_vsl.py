"""EZ-VSL: localization as multiple-instance contrastive learning."""

from configs.schema import named_parts
from model.two_stream import TwoStream, TwoStreamConfig


class EZVSL(TwoStream):
    """Two encoders, a 1x1 convolution and a linear layer into one unit sphere; the map is their cosine.

    Source: Mo and Morgado, "Localizing Visual Sounds the Easy Way", ECCV 2022. The authors' code divides the test map
    by tau, which changes no rank; ours is the cosine itself.
    """

    class Config(TwoStreamConfig):
        losses: named_parts("model.losses") = {"max_mil": {"tau": 0.03}}  # type: ignore[valid-type]
