"""Metrics: one question about maps each, answered by a row a clip; and what several of them are made of."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import cv2
import numpy as np
import torch
from torch import Tensor

from configs.schema import ComponentConfig
from model.pixel_sets import Pixels
from model.protocol import Maps, Protocol
from model.rows import Rows
from model.truth_maps import STEPS, TruthMaps

THRESHOLDS = np.array([0.05 * step for step in range(21)])
"""0, 0.05 .. 1, the float products of the released evaluators (0.15000000000000002, ...)."""


class Metric(ABC):
    """One question about maps: columns of the rows, and scores from the rows."""

    Config: ClassVar[type[ComponentConfig]]
    columns: ClassVar[tuple[str, ...]]
    """Names that `per_clip` returns; no two metrics share one."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Metrics whose columns `reduce` reads beside its own; they are scored too."""
    on_negatives: ClassVar[bool] = False
    """Whether `reduce` wants the clips in which nothing makes the sound, too."""
    wants_embeddings: ClassVar[bool] = False
    """Whether `per_clip` reads the embeddings of the method."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def per_clip(self, maps: Maps, truth: TruthMaps, protocol: Protocol) -> dict[str, Tensor]:
        """The `columns`, each `(B,)` or `(B, k)`; no clip's value depends on another clip."""

    @abstractmethod
    def reduce(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Named scores from one clip or more.

        rows: the `columns`, those of `needs`, `truth_area`, `negative`, and `unit` (clips of one group share a number).
        """

    def ceiling(self, truth: TruthMaps, protocol: Protocol) -> dict[str, Tensor]:
        """The `columns` of the best map there could be, where the protocol sets a limit; else nothing."""
        return {}

    def finish(self, rows: Rows) -> Rows:
        """The rows of the whole set, with columns that only the whole set gives in place of those for making them."""
        return rows

    @property
    def final_columns(self) -> tuple[str, ...]:
        """The columns after `finish`."""
        return self.columns


def consensus_iou(foreground: Tensor, truth: TruthMaps) -> Tensor:
    """`(B,)` float64: sum(P g) / (sum(g) + sum(P where g = 0)); 0 where both are empty (the released codes: NaN).

    Args: foreground P (B, S, S) bool; g = truth.weights.
    Source: Senocak et al., Learning to Localize Sound Source in Visual Scenes (CVPR 2018), eq. 8.
    """
    found = Pixels(foreground)
    inside, hit = truth.inside_and_hit(found)
    whole = truth.area + (found.count - inside)
    return torch.where(whole > 0, hit / torch.where(whole > 0, whole, 1), 0.0)


def met_thresholds(scores: Tensor, thresholds: Tensor) -> Tensor:
    """`(B, P)` uint8 (int64 on a GPU): how many thresholds each pixel of scores `(B, S, S)` reaches.

    Args: thresholds `(k,)`, k at most 255, rising in equal steps but for rounding.
    """
    flat = scores.flatten(1).contiguous()
    if flat.device.type != "cpu":
        return torch.bucketize(flat, thresholds, right=True)
    lines, cuts = flat.numpy(), thresholds.numpy()
    width = float(cuts[-1] - cuts[0]) / (len(cuts) - 1)
    # Value -> how many thresholds lie below it, and the half that OpenCV's rounding takes for a whole.
    scale, offset = 1 / width, 0.5 - float(cuts[0]) / width
    lowest, highest = cuts[0] - 0.5 * width, cuts[-1] + width
    met = np.empty(lines.shape, np.uint8)
    for line, found in zip(lines[:, None], met[:, None]):
        if line.min() < lowest or line.max() > highest:
            line = line.clip(lowest, highest)  # OpenCV would drop the sign of what it rounds, and what no int32 holds
        low, high = (cv2.convertScaleAbs(line, alpha=scale, beta=offset + side) for side in (-2e-4, 2e-4))
        cv2.threshold(low, len(cuts), 0, cv2.THRESH_TRUNC, dst=found)
        # Nearly all pixels lie clearly between two thresholds: only the others, and those beside them, need a search.
        close = _different(low[0], high[0])
        found[0, close] = np.searchsorted(cuts, line[0, close], side="right")
    return torch.from_numpy(met)


def sum_met(met: Tensor, count: int, weights: Tensor | None = None) -> Tensor:
    """`(B, count)` int64: how many pixels reach each threshold, or the sum of their weights.

    Args: met: from `met_thresholds`. weights: `(B, P)`, bool or whole numbers below 2^15.
    """
    if met.device.type != "cpu":
        totals = torch.zeros(len(met), count + 1, dtype=torch.int64, device=met.device)
        totals.scatter_add_(1, met, torch.ones_like(met) if weights is None else weights.long())
        return totals.flip(1).cumsum(1).flip(1)[:, 1:]
    each = [None] * len(met) if weights is None else weights.numpy()
    levels = np.array([_histogram(line, weight) for line, weight in zip(met.numpy(), each)], np.int64).reshape(-1, 256)
    reached = levels[:, ::-1].cumsum(1)[:, ::-1]
    return torch.from_numpy(np.ascontiguousarray(reached[:, 1 : count + 1]))


def sums_met(met: Tensor, count: int, truth: TruthMaps) -> tuple[Tensor, Tensor, Tensor]:
    """`(B, count)` three times: how many pixels, and how many covered ones, reach each threshold, int64; the sum of the
    weights of those that do, float64. met: from `met_thresholds`.
    """
    if truth.fractions is None and met.device.type == "cpu":
        found, inside, whole = _sums_at_once(met, count, truth)
    else:
        found, inside = sum_met(met, count), sum_met(met, count, truth.covered.flatten(1))
        if truth.fractions is not None:
            return found, inside, sum_met(met, count, truth.fractions.flatten(1)).double() / STEPS
        whole = inside if truth.agreed is None else sum_met(met, count, truth.agreed.flatten(1))
    return found, inside, (inside + whole).double() / 2


_KINDS_APART = 64
"""With fewer thresholds, a byte holds both how many a pixel reaches and whether it is covered or agreed on."""


def _sums_at_once(met: Tensor, count: int, truth: TruthMaps) -> tuple[Tensor, Tensor, Tensor]:
    """`(B, count)` int64 three times: how many pixels reach each threshold, of all, the covered and the agreed.

    One histogram a clip counts all three, of bytes if they hold enough, which takes three quarters of the time.
    """
    covered = truth.covered.flatten(1).numpy().view(np.uint8)
    agreed = covered if truth.agreed is None else truth.agreed.flatten(1).numpy().view(np.uint8)
    levels = []
    for line, some, all_ in zip(met.numpy(), covered, agreed):
        kind = np.add(some, all_)
        if count < _KINDS_APART:
            kind *= _KINDS_APART
            kind += line
            levels.append(_histogram(kind, None).reshape(-1, _KINDS_APART)[:3])
        else:
            levels.append(cv2.calcHist([kind[None], line[None]], [0, 1], None, [3, 256], [0, 3, 0, 256]))
    kinds = np.array(levels, np.int64).reshape(-1, 3, _KINDS_APART if count < _KINDS_APART else 256)
    reached = torch.from_numpy(kinds).flip(2).cumsum(2).flip(2)[:, :, 1 : count + 1]
    whole = reached[:, 2]
    inside = whole + reached[:, 1]
    return inside + reached[:, 0], inside, whole


def _different(some: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The places of the words of eight bytes that differ in two lines, and of the rest that fills none."""
    words = len(some) // 8
    differ = np.flatnonzero(some[: words * 8].view(np.uint64) != other[: words * 8].view(np.uint64))
    near = (differ[:, None] * 8 + np.arange(8)).ravel()
    return np.concatenate([near, np.arange(words * 8, len(some))])


def _histogram(levels: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """`(256,)` int64: how many of levels `(P,)` uint8 have each value, or the sum of the weights of those that do."""
    if weights is not None and weights.dtype != bool:
        return np.bincount(levels, weights, minlength=256).astype(np.int64)
    # Several times as fast as numpy; counts below 2^24 are exact in its float32. Its mask costs more than the choice.
    chosen = levels if weights is None else levels[weights]
    counts = cv2.calcHist([chosen[None]], [0], None, [256], [0, 256]) if len(chosen) else np.zeros(256)
    return counts.ravel().astype(np.int64)


def half_area_ceiling(truth: TruthMaps) -> Tensor:
    """`(B,)` float64: the best consensus IoU of any foreground that fills half of the picture.

    It takes the pixels of most weight; for a binary truth of area share a this is min(a, .5) / max(a, .5).
    """
    pixels = truth.covered.shape[1:].numel()
    half = pixels - pixels // 2
    if truth.fractions is None:
        whole = truth.agreed_px
        whole_taken = whole.clamp_max(half)
        halved_taken = (truth.covered_px - whole).minimum(half - whole_taken)
        hit = whole_taken + halved_taken.double() / 2
        return hit / (truth.area + (half - whole_taken - halved_taken))
    chosen = truth.levels.flatten(1).sort(dim=1).values[:, pixels // 2 :]
    false = (chosen == 0).sum(1)
    return chosen.sum(1, dtype=torch.int64) / STEPS / (truth.area + false)


def success_curve(values: np.ndarray) -> np.ndarray:
    """`(21,)`: the share of values of at least each of `THRESHOLDS`; the first is always 1."""
    values = np.sort(values)
    return (len(values) - np.searchsorted(values, THRESHOLDS, side="left")) / len(values)


def area_under(curve: np.ndarray) -> float:
    """Area under a curve over `THRESHOLDS`, by trapezoids."""
    return float(np.sum((curve[1:] + curve[:-1]) / 2 * np.diff(THRESHOLDS)))


def success_scores(values: np.ndarray) -> dict[str, float]:
    """Share of clips with a value of at least 0.5, area under that share over `THRESHOLDS`, and the mean value."""
    area = area_under(success_curve(values))
    return {"at_50": float(np.mean(values >= 0.5)), "auc": area, "mean": float(np.mean(values))}


def group_least(values: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """`(groups,)`: the least value of each group; unit `(n,)` numbers the groups from 0."""
    least = np.full(int(unit.max()) + 1, np.inf)
    np.minimum.at(least, unit, values)
    return least[np.bincount(unit) > 0]


def group_mean(values: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """`(groups,)`: the mean value of each group."""
    sizes = np.bincount(unit)
    return (np.bincount(unit, weights=values) / np.maximum(sizes, 1))[sizes > 0]
