"""Consensus IoU of the protocol's foreground."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from configs.schema import ComponentConfig
from model.scoring import Maps, Metric, Protocol, TruthMaps, consensus_iou, half_area_ceiling, success_scores


class Ciou(Metric):
    """`ciou_50`, what papers print as cIoU (share of clips with cIoU >= 0.5); `auc`; `mean_ciou`."""

    class Config(ComponentConfig):
        pass

    columns = ("ciou",)

    def per_clip(self, maps: Maps, truth: TruthMaps, protocol: Protocol) -> dict[str, Tensor]:
        return {"ciou": consensus_iou(maps.foreground, truth)}

    def reduce(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        scores = success_scores(rows["ciou"])
        return {"ciou_50": scores["at_50"], "auc": scores["auc"], "mean_ciou": scores["mean"]}

    def ceiling(self, truth: TruthMaps, protocol: Protocol) -> dict[str, Tensor]:
        return {"ciou": half_area_ceiling(truth)} if protocol.half_area else {}
