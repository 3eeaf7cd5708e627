"""What a plan counts, against numbers known otherwise."""

from typing import Any

import torch
from small_methods import build, make_batch
from torch import Tensor, nn

from model.objective import Losses
from model.plan import _SavedBytes, count_flops
from pipeline.batch import Batch


class Toy(nn.Module):
    """One 1x1 convolution of a picture and an exponential of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 5, 1, bias=False)

    def forward(self, batch: Batch, weights: Tensor) -> Losses:
        return Losses(total=self.layer(batch.image.float()).exp().sum(), terms={})


def test_operations_are_those_of_the_layers():
    toy: Any = Toy()
    forward, both = count_flops(toy, make_batch(4, size=32), torch.ones(1))
    assert forward == 2 * 3 * 5 * 32 * 32
    assert both == 2 * forward, "the picture needs no gradient, the weights do"


def test_saved_bytes_are_each_tensor_once():
    toy: Any = Toy()
    # The float picture for the convolution's weights, and the result of the exponential; not the weights.
    assert _SavedBytes(toy).of(toy, make_batch(4, size=32), torch.ones(1)) == 4 * 4 * 32 * 32 * (3 + 5)


def test_a_whole_method_is_counted():
    objective = build("ez_vsl")
    forward, both = count_flops(objective, make_batch(4, size=64), torch.ones(1))
    # torchvision: 1.814 GMAC for ResNet-18 at 224 px, of which 0.0005 are the last layer's; the sound is 64 x 50.
    picture, sound = 2 * 1.8140e9 * (64 / 224) ** 2, 2 * 1.735e9 * 64 * 50 / 224**2
    assert 0.9 < forward / (picture + sound) < 1.1
    assert 2.8 < both / forward < 3.0
