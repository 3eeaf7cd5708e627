"""Consensus IoU of a foreground as large as the truth."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from configs.schema import ComponentConfig
from model.metric import Metric, consensus_iou, success_scores
from model.protocol import Maps, Protocol
from model.truth_maps import TruthMaps


class CiouAdaptive(Metric):
    """`ciou_adaptive_50`, `auc_adaptive`, `mean_ciou_adaptive`: the map says where, the truth says how large.

    The map is cut above its n-th largest value, n the number of pixels where the truth is not 0 (half of all if there
    is none), whatever the protocol's own threshold. Scores lie some ten points above those of the median.
    Source: Senocak et al., Sound Source Localization is All about Cross-Modal Alignment (ICCV 2023), released code.
    """

    class Config(ComponentConfig):
        pass

    columns = ("ciou_adaptive",)

    def per_clip(self, maps: Maps, truth: TruthMaps, protocol: Protocol) -> dict[str, Tensor]:
        pixels = truth.covered.shape[1:].numel()
        wanted = torch.where(truth.covered_px > 0, truth.covered_px, pixels // 2)
        foreground = maps.beyond(pixels - wanted, strict=True)
        return {"ciou_adaptive": consensus_iou(foreground, truth)}

    def reduce(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        scores = success_scores(rows["ciou_adaptive"])
        return {
            "ciou_adaptive_50": scores["at_50"],
            "auc_adaptive": scores["auc"],
            "mean_ciou_adaptive": scores["mean"],
        }
