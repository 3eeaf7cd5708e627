"""Packed sets of pixels against their masks."""

import pytest
import torch

from model.pixel_sets import Pixels


@pytest.mark.parametrize("side", [1, 7, 8, 56, 224])
def test_packed_sets_count_as_their_masks(side: int):
    generator = torch.Generator().manual_seed(side)
    mask, other = (torch.rand(5, side, side, generator=generator) < share for share in (0.7, 0.2))
    mask[3], other[4] = True, False
    some, more = Pixels(mask), Pixels(other)
    assert torch.equal(some.count, mask.sum((1, 2)))
    assert torch.equal(some.shared(more), (mask & other).sum((1, 2)))
    assert torch.equal(some.part(slice(1, 4)).shared(more.part(slice(1, 4))), (mask & other).sum((1, 2))[1:4])
    assert torch.equal(some.part(slice(2, 5)).mask, mask[2:5]) and some.part(slice(2, 5)).count.tolist()[1] == side**2


def test_one_mask_for_many_clips_is_packed_as_many():
    mask = torch.rand(1, 224, 224, generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(Pixels(mask.expand(3, -1, -1)).count, mask.sum((1, 2)).expand(3))


def test_no_clip_has_no_count():
    assert Pixels(torch.zeros(0, 224, 224, dtype=torch.bool)).count.shape == (0,)
