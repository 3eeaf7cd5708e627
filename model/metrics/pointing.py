"""Whether the map's maximum lies on the source."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from configs.schema import ComponentConfig
from model.metric import Metric
from model.pixel_sets import Pixels
from model.protocol import Maps, Protocol
from model.truth_maps import TruthMaps


class Pointing(Metric):
    """`pointing`: share of clips whose largest pixel of the resized map lies where the truth is not 0.

    Where several pixels are largest, the share of them that hits counts, so that a flat map scores the truth's area
    and not what happens to lie in its first corner. Source: Zhang et al., Top-down Neural Attention by Excitation
    Backprop (ECCV 2016), the pointing game, here without its margin.
    """

    class Config(ComponentConfig):
        pass

    columns = ("pointing",)

    def per_clip(self, maps: Maps, truth: TruthMaps, protocol: Protocol) -> dict[str, Tensor]:
        best = Pixels(maps.best)
        return {"pointing": truth.inside(best).double() / best.count}

    def reduce(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {"pointing": float(rows["pointing"].mean())}
