"""Several sounds a picture, each with its own map."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from configs.schema import ComponentConfig
from model.metric import Metric, area_under, group_mean, success_curve
from model.protocol import Maps, Protocol
from model.truth_maps import TruthMaps


class MultiSource(Metric):
    """A row is one sound of a picture, and a picture's value is the mean over its sounds (clips of one group):
    `ciou_multi_30`, the share of pictures with a mean cIoU of at least 0.3, and `auc_multi` under that share; `cap`,
    the mean over pictures of the average precision of the map's pixels as a classifier of the truth's.

    The foreground is the protocol's. These are the class-aware CIoU@0.3, AUC and CAP that Hu et al., Mix and Localize
    (CVPR 2022), report on MUSIC-Duet and VGGSound-Duet; no evaluator is released, so this is our reading of them.
    """

    class Config(ComponentConfig):
        pass

    columns = ("pixel_ap",)
    needs = ("ciou",)

    def per_clip(self, maps: Maps, truth: TruthMaps, protocol: Protocol) -> dict[str, Tensor]:
        scores, order = maps.resized.flatten(1).sort(dim=1, descending=True)
        hits = truth.covered.flatten(1).gather(1, order)
        found = hits.cumsum(1)
        precision = found / torch.arange(1, hits.shape[1] + 1, dtype=torch.float64, device=hits.device)
        # Equal values are taken at once: each counts with the precision at the last of them.
        last = torch.ones_like(hits)
        last[:, :-1] = scores[:, :-1] != scores[:, 1:]
        at = torch.arange(hits.shape[1], device=hits.device).expand_as(order).clone()
        at[~last] = hits.shape[1]
        at = at.flip(1).cummin(1).values.flip(1)
        total = (precision.gather(1, at) * hits).sum(1)
        return {"pixel_ap": total / truth.covered_px.clamp_min(1)}

    def reduce(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        mean_ciou = group_mean(rows["ciou"], rows["unit"])
        return {
            "ciou_multi_30": float(np.mean(mean_ciou >= 0.3)),
            "auc_multi": area_under(success_curve(mean_ciou)),
            "cap": float(group_mean(rows["pixel_ap"], rows["unit"]).mean()),
        }
