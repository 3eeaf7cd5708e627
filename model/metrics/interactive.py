"""Whether all sounds of one picture are found."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from pydantic import Field
from torch import Tensor

from configs.schema import ComponentConfig
from model.metric import Metric, group_least, success_scores
from model.protocol import Maps, Protocol
from model.truth_maps import TruthMaps


class Interactive(Metric):
    """`iiou`, the share of pictures all of whose sounds have a cIoU of at least 0.5; `iauc`, the area under that share.

    Clips of one picture share a group; a clip without a group is a picture of one sound, which counts as the released
    code has it unless `least_sounds` is 2. Source: Senocak et al., Sound Source Localization is All about Cross-Modal
    Alignment (ICCV 2023), released code.
    """

    class Config(ComponentConfig):
        least_sounds: int = Field(1, ge=1, description="pictures with fewer sounds do not count")

    columns = ()
    needs = ("ciou",)
    suffix: ClassVar[str] = ""

    def per_clip(self, maps: Maps, truth: TruthMaps, protocol: Protocol) -> dict[str, Tensor]:
        return {}

    def reduce(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        unit = np.unique(rows["unit"], return_inverse=True)[1]
        least = group_least(rows[f"ciou{self.suffix}"], unit)[np.bincount(unit) >= self.config.least_sounds]
        if not len(least):
            return {}
        scores = success_scores(least)
        return {f"iiou{self.suffix}": scores["at_50"], f"iauc{self.suffix}": scores["auc"]}
