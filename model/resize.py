"""Resizing of maps to the size at which they are scored: torch's own values, in a tenth of its time on a CPU."""

from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

Mode = Literal["bilinear", "bicubic"]

_FEW = range(2, 33)
"""Sides of native maps for which matrix products are faster, and do not depend on how many maps there are."""
_A = np.float32(-0.75)
"""The cubic's free parameter, as torch and OpenCV have it."""


def resize(native: Tensor, side: int, mode: Mode, align_corners: bool) -> Tensor:
    """`(B, h, w)` float32 to `(B, side, side)`, as `torch.nn.functional.interpolate` does it.

    Small maps on a CPU go through two matrix products, along the lines and then along the columns. These add up in
    torch's order, which gives the same bits where torch multiplies and adds in one operation.
    """
    height, width = native.shape[1:]
    if native.device.type != "cpu" or height not in _FEW or width not in _FEW:
        return interpolate(native[:, None], (side, side), mode=mode, align_corners=align_corners)[:, 0]
    lines, down = _steps(height, side, mode, align_corners)
    columns, across = _steps(width, side, mode, align_corners)
    with torch.autocast("cpu", enabled=False):
        return down @ (across @ native.mT[:, columns]).mT[:, lines]


@cache
def _steps(count: int, side: int, mode: Mode, corners: bool) -> tuple[Tensor, Tensor]:
    """`(k,)` which of `count` values to take, in the order in which they are added; `(side, k)` their weights."""
    if mode == "bilinear":
        unit = torch.eye(count)[:, None, :, None]
        weights = interpolate(unit, (side, 1), mode=mode, align_corners=corners)[:, 0, :, 0].T
        return torch.arange(count).flip(0), weights.flip(1).contiguous()
    floor, taps = _cubic_taps(count, side, corners)
    places: list[int] = []
    parts = []
    # torch adds a value's own tap first, then the one before and the two behind. No order of all values fits every
    # result, but one does for each third of them.
    for third in range(3):
        floors = range(third - 1, count, 3)
        taken = [place for own in floors for place in (own, own - 1, own + 1)] + [floors[-1] + 2]
        part = np.zeros((side, len(taken)), np.float32)
        for row in np.flatnonzero((floor + 1) % 3 == third).tolist():
            for tap in range(4):
                part[row, taken.index(floor[row] - 1 + tap)] = taps[row, tap]
        places += taken
        parts.append(part)
    return torch.tensor(places).clamp(0, count - 1), torch.from_numpy(np.concatenate(parts, 1))


def _cubic_taps(count: int, side: int, corners: bool) -> tuple[np.ndarray, np.ndarray]:
    """`(side,)` the value before each result, from -1; `(side, 4)` weights of that value's neighbour before, itself and
    the two behind, in the float32 operations of torch.
    """
    result = np.arange(side, dtype=np.float32)
    one, half = np.float32(1), np.float32(0.5)
    if corners:
        at = np.float32((count - 1) / (side - 1)) * result
    else:
        at = _fused(np.float32(count / side), result + half, -half)
    floor = np.minimum(np.floor(at).astype(np.int64), count - 1)
    behind = (at - floor.astype(np.float32)).clip(0, 1)
    taps = [_far(behind + one), _near(behind), _near(one - behind), _far((one - behind) + one)]
    return floor, np.stack(taps, axis=1)


def _near(distance: np.ndarray) -> np.ndarray:
    return _fused(_A + 2, distance, -(_A + 3)) * distance * distance + np.float32(1)


def _far(distance: np.ndarray) -> np.ndarray:
    return _fused(_fused(_A, distance, -5 * _A), distance, 8 * _A) * distance - 4 * _A


def _fused(a: Any, b: Any, c: Any) -> np.ndarray:
    """a * b + c in float32, rounded once."""
    return (np.float64(a) * b + c).astype(np.float32)
