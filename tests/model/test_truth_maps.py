"""Boxes drawn all at once, as on a GPU, against those drawn one by one."""

import numpy as np
import pytest
import torch

from model.truth_maps import draw_boxes, draw_boxes_at_once


@pytest.mark.parametrize("size_px", [1, 14, 224])
@pytest.mark.parametrize("votes", ["none", "some", "all"])
def test_boxes_drawn_at_once_are_those_drawn_one_by_one(size_px: int, votes: str):
    random = np.random.default_rng(size_px)
    counts = np.array([1, 0, 2, 3, 5, 0, 300])
    owner = np.repeat(np.arange(len(counts)), counts)
    corners = np.sort(random.integers(0, size_px + 1, (len(owner), 2, 2)), axis=1).reshape(-1, 4)
    corners[::7] = corners[::7, [2, 1, 0, 3]]  # some cover nothing
    by_votes = random.random(len(counts)) < {"none": 0, "some": 0.5, "all": 1}[votes]
    covered, agreed = draw_boxes(corners, owner, by_votes.tolist(), size_px)
    at_once = draw_boxes_at_once(*(torch.from_numpy(each) for each in (corners, owner, by_votes)), size_px)
    assert torch.equal(at_once[0], covered)
    assert torch.equal(at_once[1], covered if agreed is None else agreed)
    assert (agreed is None) == (votes == "none") and (size_px == 1 or 0 < covered.float().mean() < 1)


def test_no_box_draws_nothing():
    for drawn in (
        draw_boxes(np.zeros((0, 4), np.int64), np.zeros(0, np.int64), [True, False], 8),
        draw_boxes_at_once(
            torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.tensor([True, False]), 8
        ),
    ):
        assert all(each is not None and each.shape == (2, 8, 8) and not each.any() for each in drawn)
