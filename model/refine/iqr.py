"""Image-query refinement of JSA: the map mixed with the one that the picture's own query gives."""

from pydantic import Field

from configs.schema import ComponentConfig
from model.base import Localization
from model.protocol import Protocol, Source
from model.refinement import Mixtures, Refinement, Share, extra_source, share_name
from pipeline.batch import Batch


class Iqr(Refinement):
    """`iqr`: share a of the sound's map, 1 - a of the picture's; `image_query`: the picture's alone.

    Source: JSA (CVPR 2025, arXiv 2504.15118), released code: a = 0.4 (its logs call the result OGL). The paper's 0.6
    agrees with it if it is the picture's share; `alphas` adds others as `iqr_<100 a>`.
    """

    class Config(ComponentConfig):
        alphas: tuple[Share, ...] = Field((), description="further shares of the sound's map to try")

    provides = ("image_query",)

    def sources(self, batch: Batch, localization: Localization) -> dict[str, Source]:
        return {"image_query": extra_source(localization, "image_query", self.config.name)}

    def mixtures(self, protocol: Protocol) -> Mixtures:
        shares = {"iqr": 0.4} | {share_name("iqr", alpha): alpha for alpha in self.config.alphas}
        mixed = {name: {"map": share, "image_query": 1 - share} for name, share in shares.items()}
        return {**mixed, "image_query": {"image_query": 1.0}}

    def settings(self) -> str:
        return "image query: the method's map of the picture's own target query"
