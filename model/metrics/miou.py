"""Mean IoU and F of segmentation masks."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from configs.schema import ComponentConfig
from model.metric import Metric, met_thresholds, sums_met
from model.pixel_sets import Pixels
from model.protocol import Maps, Protocol
from model.truth_maps import STEPS, TruthMaps

_BETA_SQUARE = 0.3
_CUTS = 255


class Miou(Metric):
    """`miou`: IoU of foreground and mask, mean over frames; a frame without source has the share of pixels left empty.
    `f_beta`: F with beta^2 = 0.3 at 255 thresholds from 0 to 1, mean over the frames with a source, at the best
    threshold of the whole set.

    Where a mask has fractions, IoU takes the sum over pixels of the lesser of mask and foreground over that of the
    greater. Source: Zhou et al., Audio-Visual Segmentation (ECCV 2022), released code; it takes the best threshold of
    each batch, the corrected code of ACL-SSL that of the set.
    """

    class Config(ComponentConfig):
        pass

    columns = ("miou", "f_curve")

    def per_clip(self, maps: Maps, truth: TruthMaps, protocol: Protocol) -> dict[str, Tensor]:
        found = Pixels(maps.foreground)
        pixels = found.mask.shape[1:].numel()
        hit, filled = truth.hit(found), found.count
        union = truth.area + filled - hit
        left_empty = (pixels - filled).double() / pixels
        iou = torch.where(truth.covered_px > 0, hit / union.clamp_min(1 / STEPS), left_empty)
        return {"miou": iou, "f_curve": self._f_curve(maps.absolute, truth)}

    @staticmethod
    def _f_curve(scores: Tensor, truth: TruthMaps) -> Tensor:
        """`(B, 255)` float64: F where the foreground is what lies at or above each threshold; 0 without a source."""
        # The released code's float32 thresholds, the last of which is 1.
        cuts = torch.linspace(0, 1 - 1e-10, _CUTS, device=scores.device)
        met = met_thresholds(scores, cuts)
        found, _, hit = sums_met(met, _CUTS, truth)
        # beta^2 precision recall / (beta^2 precision + recall), multiplied out: nothing found is 0, not 0 / 0.
        return (1 + _BETA_SQUARE) * hit / (_BETA_SQUARE * truth.area[:, None] + found).clamp_min(1 / STEPS)

    def reduce(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        scores = {"miou": float(rows["miou"].mean())}
        sounding = rows["truth_area"] > 0
        if sounding.any():
            scores["f_beta"] = float(rows["f_curve"][sounding].mean(0).max())
        return scores
