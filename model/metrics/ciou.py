"""Consensus IoU of the protocol's foreground."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from configs.schema import ComponentConfig
from model.metric import Metric, consensus_iou, half_area_ceiling, success_curve, success_scores
from model.protocol import Maps, Protocol
from model.truth_maps import TruthMaps


class Ciou(Metric):
    """`ciou_50`, what papers print as cIoU (share of clips with cIoU >= 0.5); `auc`; `mean_ciou`; `ciou_30`; `mciou`,
    the mean share over the thresholds 0.5, 0.55 .. 0.95 (SIRA-SSL).
    """

    class Config(ComponentConfig):
        pass

    columns = ("ciou",)

    def per_clip(self, maps: Maps, truth: TruthMaps, protocol: Protocol) -> dict[str, Tensor]:
        return {"ciou": consensus_iou(maps.foreground, truth)}

    def reduce(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        values = rows["ciou"]
        scores = success_scores(values)
        return {
            "ciou_50": scores["at_50"],
            "auc": scores["auc"],
            "mean_ciou": scores["mean"],
            "ciou_30": float(np.mean(values >= 0.3)),
            "mciou": float(success_curve(values)[10:20].mean()),
        }

    def ceiling(self, truth: TruthMaps, protocol: Protocol) -> dict[str, Tensor]:
        return {"ciou": half_area_ceiling(truth)} if protocol.half_area else {}
