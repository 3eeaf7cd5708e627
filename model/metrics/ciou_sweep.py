"""Consensus IoU at the best of several thresholds, chosen on the test set itself."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from configs.schema import ComponentConfig
from model.metric import Metric, met_thresholds, success_scores, sums_met
from model.protocol import Maps, Protocol
from model.truth_maps import STEPS, TruthMaps


class CiouSweep(Metric):
    """`ciou_sweep_50`, `auc_sweep` and `threshold_sweep`: of the thresholds 0.05, 0.1 .. 0.95 the one of best AUC.

    The same threshold for all clips, the pixel at it included; where AUC ties, the least. A score of a protocol whose
    maps keep a common scale. Source: Park et al., Can CLIP Help Sound Source Localization? (WACV 2024), released code.
    """

    class Config(ComponentConfig):
        pass

    columns = ("ciou_sweep",)
    thresholds = tuple(round(0.05 * step, 2) for step in range(1, 20))

    def per_clip(self, maps: Maps, truth: TruthMaps, protocol: Protocol) -> dict[str, Tensor]:
        cuts = torch.tensor(self.thresholds, device=maps.scaled.device)
        met = met_thresholds(maps.scaled, cuts)
        found, inside, hit = sums_met(met, len(cuts), truth)
        whole = truth.area[:, None] + (found - inside)
        return {"ciou_sweep": torch.where(whole > 0, hit / whole.clamp_min(1 / STEPS), 0.0)}

    def reduce(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        scores = [success_scores(values) for values in rows["ciou_sweep"].T]
        best = int(np.argmax([each["auc"] for each in scores]))
        return {
            "ciou_sweep_50": scores[best]["at_50"],
            "auc_sweep": scores[best]["auc"],
            "threshold_sweep": self.thresholds[best],
        }
