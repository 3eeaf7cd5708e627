"""Whether the map also says that nothing makes the sound: average precision over clips with and without a source."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from configs.schema import ComponentConfig
from model.metric import Metric, area_under, success_curve
from model.protocol import Maps, Protocol
from model.truth_maps import TruthMaps

SIZES_PX = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 144**2), "huge": (144**2, np.inf)}
"""Sizes of the truth in pixels of the 224 x 224 picture, the upper bound not included."""


class Detection(Metric):
    """A clip is detected where the mean of the upper quarter of its map, on the scale of all clips, is large enough.

    `ap_50`, `ap_75`: average precision over all clips; a detected clip is right if something makes the sound and cIoU
    is at least 0.5 (0.75). `ap_50_visible` and `ap_50_<size>`: over the clips with a source (of that size). `max_f1`:
    the best F1 at ten confidences; `f1_default`: at a confidence of 0.5. `loc_acc`: share of the clips with a source
    whose cIoU is above 0.5; `precision`: of all clips, those that would be right were all detected.
    Source: Mo and Morgado, A Closer Look at Weakly-Supervised Audio-Visual Source Localization (NeurIPS 2022), released
    code, with what it does to the curves: about 200 confidences, without the largest; the first recall step does not
    count.
    """

    class Config(ComponentConfig):
        pass

    columns = ("confidence",)
    needs = ("ciou",)
    on_negatives = True

    def per_clip(self, maps: Maps, truth: TruthMaps, protocol: Protocol) -> dict[str, Tensor]:
        return {"confidence": maps.top_mean(0.25)}

    def reduce(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        confidence, ciou, visible = rows["confidence"], rows["ciou"], rows["negative"] == 0
        scores = {
            "ap_50": average_precision(confidence, visible & (ciou >= 0.5), visible),
            "ap_75": average_precision(confidence, visible & (ciou >= 0.75), visible),
        }
        right = visible & (ciou >= 0.5)
        ordered = np.sort(confidence)
        scores["max_f1"] = float(f1_scores(confidence, right, visible, ordered[:: max(1, len(ordered) // 10)]).max())
        scores["f1_default"] = float(f1_scores(confidence, right, visible, np.array([0.5]))[0])
        scores["precision"] = float(right.mean())
        if visible.any():
            own = confidence[visible], right[visible], np.ones(int(visible.sum()), bool)
            scores["ap_50_visible"] = average_precision(*own)
            scores["loc_acc"] = float((ciou[visible] > 0.5).mean())
            scores["auc_visible"] = area_under(success_curve(ciou[visible]))
        area_px = rows["truth_area"] * 224**2
        for name, (low, high) in SIZES_PX.items():
            # Areas are multiples of 1/256 pixel, and shares of the picture round them.
            chosen = visible & (np.round(area_px * 256) >= low * 256) & (np.round(area_px * 256) < high * 256)
            if chosen.any():
                own = confidence[chosen], right[chosen], np.ones(int(chosen.sum()), bool)
                scores[f"ap_50_{name}"] = average_precision(*own)
        return scores


def average_precision(confidence: np.ndarray, right: np.ndarray, visible: np.ndarray) -> float:
    """Area under precision over recall, as the released code has it.

    Args: `(n,)` each: the confidence; whether the clip, detected, is right; whether something makes its sound.
    """
    cuts = np.sort(confidence)[:-1][:: -max(1, len(confidence) // 200)]
    if not len(cuts):
        return 0.0
    precision, recall = _precision_recall(confidence, right, visible, cuts)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(best[:-1] * np.diff(recall)))


def f1_scores(confidence: np.ndarray, right: np.ndarray, visible: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """`(k,)`: F1 at each of the confidences `cuts` `(k,)`."""
    precision, recall = _precision_recall(confidence, right, visible, cuts)
    total = precision + recall
    return np.where(total > 0, 2 * precision * recall / np.where(total > 0, total, 1), 0.0)


def _precision_recall(
    confidence: np.ndarray, right: np.ndarray, visible: np.ndarray, cuts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """At each cut; 1 where nothing is detected (precision), or nothing could be found or missed (recall)."""
    order = np.argsort(confidence, kind="stable")
    first = np.searchsorted(confidence[order], cuts, side="left")

    def from_first(values: np.ndarray) -> np.ndarray:
        below = np.concatenate([[0], np.cumsum(values[order])])
        return below[-1] - below[first]

    true, detected = from_first(right), len(confidence) - first
    missed = visible.sum() - from_first(visible)
    precision = np.where(detected > 0, true / np.maximum(detected, 1), 1.0)
    recall = np.where(true + missed > 0, true / np.maximum(true + missed, 1), 1.0)
    return precision, recall
