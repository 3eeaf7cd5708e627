"""How much of the picture lights up under a sound that nothing in it makes."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from configs.schema import ComponentConfig
from model.metric import THRESHOLDS, Metric, area_under
from model.pixel_sets import Pixels
from model.protocol import Maps, Protocol
from model.truth_maps import TruthMaps


class Negatives(Metric):
    """`pia`: the share of the picture above the protocol's threshold, mean over the clips with a negative sound;
    `auc_n`: area under the share of those clips with at most that much, over 0, 0.05 .. 1; `f_loc`: harmonic mean of
    mean cIoU (of the clips with a source) and 1 - `pia`. Meant for protocol `vssl`.

    Source: Juanola et al., A Critical Assessment of Visual Sound Source Localization Models Including Negative Audio
    (ICASSP 2025), released code; it averages over silence, noise and off-screen sounds, which are equally many there.
    """

    class Config(ComponentConfig):
        pass

    columns = ("active",)
    needs = ("ciou",)
    on_negatives = True

    def per_clip(self, maps: Maps, truth: TruthMaps, protocol: Protocol) -> dict[str, Tensor]:
        lit = Pixels(maps.above(protocol.threshold(maps), strict=True)).count
        return {"active": lit.double() / maps.scaled.shape[1:].numel()}

    def reduce(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        negative = rows["negative"] > 0
        if not negative.any():
            return {}
        active = np.sort(rows["active"][negative])
        at_most = np.searchsorted(active, THRESHOLDS, side="right") / len(active)
        scores = {"pia": float(active.mean()), "auc_n": area_under(at_most)}
        if not negative.all():
            ciou, quiet = float(rows["ciou"][~negative].mean()), 1 - scores["pia"]
            scores["f_loc"] = 2 * ciou * quiet / (ciou + quiet) if ciou + quiet > 0 else 0.0
        return scores
