"""Object-guided localization: the map mixed with what an ImageNet network finds striking in the picture."""

from pydantic import Field

from configs.schema import named
from model.protocol import Protocol
from model.refine.object_prior import ObjectPrior
from model.refinement import PRIOR, Mixtures, Share, share_name


class Ogl(ObjectPrior):
    """`ogl`: share a of the map, 1 - a of the object prior; `object`: the prior alone, a floor that hears nothing.

    Source: Mo and Morgado, Localizing Visual Sounds the Easy Way (ECCV 2022). a is the protocol's `map_share` (0.4 in
    every paper); `alphas` adds others as `ogl_<100 a>`, from the same pass.
    """

    class Config(ObjectPrior.Config):
        alphas: tuple[Share, ...] = Field((), description="further shares of the method's own map to try")
        network: named("model.encoders") = {  # type: ignore[valid-type]
            "name": "resnet",
            "depth": 18,
            "weights": "imagenet",
            "frozen": True,
        }

    def mixtures(self, protocol: Protocol) -> Mixtures:
        shares = {"ogl": protocol.map_share} | {share_name("ogl", alpha): alpha for alpha in self.config.alphas}
        mixed = {name: {"map": share, PRIOR: 1 - share} for name, share in shares.items()}
        return {**mixed, **super().mixtures(protocol)}
