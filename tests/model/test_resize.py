"""Resized maps against torch's."""

import pytest
import torch
from torch.nn.functional import interpolate

from model.protocol import random_maps
from model.resize import Mode, resize

SHAPES = [(7, 7), (14, 14), (9, 16), (2, 16), (4, 30), (13, 5), (32, 31), (1, 3), (3, 1), (40, 40), (300, 200)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("corners", [True, False])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_values_are_those_of_torch_alone_and_in_any_batch(mode: Mode, corners: bool, shape: tuple[int, int]):
    native = random_maps(list("abcdefgh"), *shape) * 6 - 3
    wanted = interpolate(native[:, None], (224, 224), mode=mode, align_corners=corners)[:, 0]
    found = resize(native, 224, mode, corners)
    # Exactly the same where the processor multiplies and adds in one operation.
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)
    for part in (slice(0, 1), slice(5, 6), slice(1, 4)):
        assert torch.equal(resize(native[part], 224, mode, corners), found[part])


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_the_precision_of_a_model_does_not_reach_its_maps(mode: Mode):
    native = random_maps(["a"], 7, 7)
    with torch.autocast("cpu", torch.bfloat16):
        found = resize(native, 224, mode, True)
    assert torch.equal(found, resize(native, 224, mode, True))
