"""All three maps of JSA's released evaluator in one."""

from model.base import Localization
from model.protocol import Protocol, Source
from model.refine.object_prior import ObjectPrior
from model.refine.ogl import Ogl
from model.refinement import PRIOR, Mixtures, extra_source
from pipeline.batch import Batch


class JsaAll(Ogl):
    """`jsa_all`: 0.4 of the sound's map, 0.3 of the picture's query, 0.3 of the object prior.

    Source: JSA (CVPR 2025, arXiv 2504.15118), released code (ALL_COMBINED); not in the paper's main table.
    """

    class Config(Ogl.Config):
        pass

    provides = (PRIOR, "image_query")

    def sources(self, batch: Batch, localization: Localization) -> dict[str, Source]:
        image_query = extra_source(localization, "image_query", self.config.name)
        return {**super().sources(batch, localization), "image_query": image_query}

    def mixtures(self, protocol: Protocol) -> Mixtures:
        return {"jsa_all": {"map": 0.4, "image_query": 0.3, PRIOR: 0.3}, **ObjectPrior.mixtures(self, protocol)}
