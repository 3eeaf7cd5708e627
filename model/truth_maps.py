"""Truth maps: where people say that a sound is, at the size at which maps are scored."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from model.pixel_sets import Pixels
from pipeline.batch import Truth

STEPS = 256
"""Truth is drawn in steps of 1/256, so that sums over pixels are exact in any order."""


@dataclass(frozen=True)
class TruthMaps:
    """The truth of B clips as a protocol draws it.

    covered: `(B, S, S)` bool: where anybody says that the sound is. agreed: `(B, S, S)` bool: where the weight is 1, if
    elsewhere in `covered` it is a half, as in a consensus of boxes. fractions: `(B, S, S)` int16, 0 to 256: the weight
    in steps of 1/256, if other fractions occur. Neither: it is 1 on every covered pixel. clips: as stored.
    odd_boxes, flat_boxes: `(B,)` how many boxes have a coordinate more than a picture away from it, or cover no pixel.
    """

    covered: Tensor
    agreed: Tensor | None
    fractions: Tensor | None
    clips: Sequence[Truth]
    odd_boxes: np.ndarray
    flat_boxes: np.ndarray

    @cached_property
    def levels(self) -> Tensor:
        """`(B, S, S)` int16: the weight, in steps of 1/256."""
        if self.fractions is not None:
            return self.fractions
        return _levels(self.covered, self.covered if self.agreed is None else self.agreed)

    @cached_property
    def weights(self) -> Tensor:
        """`(B, S, S)` float32 in [0, 1]."""
        return self.levels.float() / STEPS

    @property
    def covered_px(self) -> Tensor:
        """`(B,)` int64: covered pixels."""
        return self._covered.count

    @property
    def agreed_px(self) -> Tensor:
        """`(B,)` int64: pixels whose weight is 1. Only where no fractions occur."""
        assert self.fractions is None
        return self.covered_px if self._agreed is None else self._agreed.count

    @cached_property
    def area(self) -> Tensor:
        """`(B,)` float64: sum of the weights, in pixels."""
        if self.fractions is not None:
            return _total(self.fractions) / STEPS
        return self._weighed(self.covered_px, self.agreed_px)

    def hit(self, found: Pixels) -> Tensor:
        """`(B,)` float64: sum of the weights under a foreground, in pixels."""
        if self.fractions is not None:
            return _total(self.fractions, found.mask) / STEPS
        return self.inside_and_hit(found)[1]

    def inside(self, found: Pixels) -> Tensor:
        """`(B,)` int64: how many covered pixels are under a foreground."""
        return found.shared(self._covered)

    def inside_and_hit(self, found: Pixels) -> tuple[Tensor, Tensor]:
        """`(B,)` twice: `inside` and `hit`."""
        inside = self.inside(found)
        if self.fractions is not None:
            return inside, self.hit(found)
        return inside, self._weighed(inside, inside if self._agreed is None else found.shared(self._agreed))

    @cached_property
    def _covered(self) -> Pixels:
        return Pixels(self.covered)

    @cached_property
    def _agreed(self) -> Pixels | None:
        return None if self.agreed is None else Pixels(self.agreed)

    @staticmethod
    def _weighed(covered_px: Tensor, agreed_px: Tensor) -> Tensor:
        return (covered_px + agreed_px).double() / 2

    def part(self, chosen: slice) -> "TruthMaps":
        """The truth of some of the clips."""
        some = TruthMaps(
            self.covered[chosen],
            None if self.agreed is None else self.agreed[chosen],
            None if self.fractions is None else self.fractions[chosen],
            self.clips[chosen],
            self.odd_boxes[chosen],
            self.flat_boxes[chosen],
        )
        agreed = None if self._agreed is None else self._agreed.part(chosen)
        some.__dict__.update(area=self.area[chosen], _covered=self._covered.part(chosen), _agreed=agreed)
        return some


def draw(
    truths: Sequence[Truth],
    boxes: Sequence[np.ndarray],
    by_votes: Sequence[bool],
    size_px: int,
    device: torch.device | str = "cpu",
) -> TruthMaps:
    """The truth of B clips, drawn; a clip without any (a negative sound) has an empty one.

    A box is clipped to the picture and its corners times `size_px` truncated, as the released evaluators of the
    EZ-VSL family do. A mask is resized to the nearest pixel; 255 is weight 1.

    Args: boxes: of each clip those to draw, `(n, 4 or more)`. by_votes: whether a box counts half a point, two or more
    a whole one; else any counts a whole one.
    """
    owner = np.repeat(np.arange(len(truths)), [len(each) for each in boxes])
    given = np.concatenate([np.zeros((0, 4)), *(each[:, :4] for each in boxes)])
    # A corner that was given in pixels of 224 and stored as a fraction is that pixel again, and not the one before.
    corners = (np.clip(given, 0, 1) * size_px + 1e-9).astype(np.int64)
    masks = {
        place: _fitted(truth.mask, size_px)
        for place, truth in enumerate(truths)
        if truth.boxes is None and truth.mask is not None
    }
    if torch.device(device).type == "cpu" or masks:
        drawn = _with_masks(*draw_boxes(corners, owner, by_votes, size_px), masks)
        covered, agreed, fractions = (None if each is None else each.to(device) for each in drawn)
        assert covered is not None
    else:
        there = [torch.from_numpy(each).to(device) for each in (corners, owner, np.array(by_votes, bool))]
        covered, agreed = draw_boxes_at_once(there[0], there[1], there[2], size_px)
        agreed, fractions = agreed if any(by_votes) else None, None
    odd = ((given < -1) | (given > 2)).any(1)
    flat = (corners[:, 2:] <= corners[:, :2]).any(1)
    odd_boxes, flat_boxes = (np.bincount(owner, each, minlength=len(truths)).astype(np.float64) for each in (odd, flat))
    return TruthMaps(covered, agreed, fractions, truths, odd_boxes, flat_boxes)


def draw_boxes(
    corners: np.ndarray, owner: np.ndarray, by_votes: Sequence[bool], size_px: int
) -> tuple[Tensor, Tensor | None]:
    """`(B, size_px, size_px)` bool twice, `TruthMaps.covered` and `agreed`; no `agreed` if no clip has votes.

    Args: corners `(n, 4)` int64: x0, y0, x1, y1 in pixels, those of the second point outside. owner `(n,)` int64: each
    box's clip, rising. by_votes: as in `draw`.
    """
    shape = (len(by_votes), size_px, size_px)
    covered, agreed = np.zeros(shape, bool), np.zeros(shape, bool) if any(by_votes) else None
    before = -1
    for place, (x0, y0, x1, y1) in zip(owner.tolist(), corners.tolist(), strict=True):
        inside = covered[place, y0:y1, x0:x1]
        if agreed is not None:
            # Half a point a box, at most 1: whole where there was a box before, or where one alone is enough.
            if not by_votes[place]:
                agreed[place, y0:y1, x0:x1] = True
            elif place == before:
                agreed[place, y0:y1, x0:x1] |= inside
        inside[:] = True
        before = place
    return torch.from_numpy(covered), None if agreed is None else torch.from_numpy(agreed)


def draw_boxes_at_once(corners: Tensor, owner: Tensor, by_votes: Tensor, size_px: int) -> tuple[Tensor, Tensor]:
    """As `draw_boxes`, always with `agreed`, for a GPU: all boxes are drawn there, in a few operations.

    Args: as there, by_votes `(B,)` bool; on the device.
    """
    line = torch.arange(size_px, device=corners.device)
    across, down = ((corners[:, side, None] <= line) & (line < corners[:, side + 2, None]) for side in (0, 1))
    votes = torch.zeros(len(by_votes), size_px, size_px, dtype=torch.int16, device=corners.device)
    votes.index_add_(0, owner, (down[:, :, None] & across[:, None, :]).short())
    covered = votes > 0
    return covered, torch.where(by_votes[:, None, None], votes > 1, covered)


def _with_masks(
    covered: Tensor, agreed: Tensor | None, masks: dict[int, np.ndarray]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`TruthMaps.covered`, `agreed` and `fractions`, with the masks of some clips drawn into the first two."""
    soft: dict[int, np.ndarray] = {}
    for place, mask in masks.items():
        np.greater(mask, 0, out=covered[place].numpy())
        if np.count_nonzero(mask == 255) != np.count_nonzero(mask):
            soft[place] = mask
        elif agreed is not None:
            agreed[place] = covered[place]
    if not soft:
        return covered, agreed, None
    fractions = _levels(covered, covered if agreed is None else agreed)
    for place, mask in soft.items():
        # The nearest step of 1/256 to a share of 255.
        np.add(mask, mask > 127, out=fractions[place].numpy(), dtype=np.int16)
    return covered, None, fractions


def _fitted(mask: np.ndarray, size_px: int) -> np.ndarray:
    """A mask at the size of the maps: of the nearest pixels."""
    if mask.shape == (size_px, size_px):
        return mask
    lines, columns = (_nearest(length, size_px) for length in mask.shape)
    return mask[lines[:, None], columns]


@cache
def _nearest(length: int, size: int) -> np.ndarray:
    """`(size,)` int64: the pixel of a line of so many that lies nearest to each of `size` ones."""
    line = torch.arange(length, dtype=torch.float32)[None, None]
    return interpolate(line, size, mode="nearest-exact")[0, 0].long().numpy()


def _levels(covered: Tensor, agreed: Tensor) -> Tensor:
    """`(B, S, S)` int16: a half of `STEPS` where a pixel is covered, all of them where its weight is 1."""
    return covered.short().add_(agreed).mul_(STEPS // 2)


def _total(levels: Tensor, mask: Tensor | None = None) -> Tensor:
    """`(B,)` float64: the sum of levels `(B, S, S)` int16, of those in the mask `(B, S, S)` bool alone."""
    if levels.device.type != "cpu":
        return (levels if mask is None else levels * mask).sum((1, 2), dtype=torch.int64).double()
    each = levels.numpy() if mask is None else (line * own for line, own in zip(levels.numpy(), mask.numpy()))
    return torch.tensor([cv2.sumElems(line)[0] for line in each], dtype=torch.float64)
