"""The counted work of a training step, against numbers known otherwise, and the time that is estimated from it."""

from typing import Any

import pytest
import torch
from small_methods import build, make_batch
from torch import Tensor, nn

from configs.errors import UserError
from configs.load import load_config
from configs.resolve import names
from model.build import build_model, without_initial_weights
from model.objective import Losses
from model.work import GPUS, Work, count_step, count_work, find_gpu, kept_for_backward
from pipeline.batch import Batch
from pipeline.sizes import synthetic_batch


class Toy(nn.Module):
    """One 1x1 convolution of a picture and an exponential of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 5, 1, bias=False)

    def forward(self, batch: Batch, weights: Tensor) -> Losses:
        return Losses(total=self.layer(batch.image.float()).exp().sum(), terms={})


def test_operations_are_those_of_the_layers():
    toy: Any = Toy()
    work = count_step(toy, make_batch(4, size=32), torch.ones(1))
    assert work.forward_flops == {4: 4 * 2 * 3 * 5 * 32 * 32}
    assert work.flops[4] == 2 * work.forward_flops[4], "the picture needs no gradient, the weights do"
    assert work.traffic_bytes == (3 + 5.5) * 4 * 4 * 5 * 32 * 32
    # The float picture for the convolution's weights, and the result of the exponential; not the weights.
    assert work.kept_bytes == 4 * 4 * 32 * 32 * (3 + 5)
    half = count_step(toy, make_batch(4, size=32), torch.ones(1), bf16=True)
    assert half.forward_flops == {2: 4 * 2 * 3 * 5 * 32 * 32} and half.traffic_bytes == work.traffic_bytes / 2


def test_a_whole_method_is_counted():
    work = count_step(build("ez_vsl"), make_batch(4, size=64), torch.ones(1))
    # torchvision: 1.814 GMAC for ResNet-18 at 224 px, of which 0.0005 are the last layer's; the sound is 64 x 50.
    picture, sound = 2 * 1.8140e9 * (64 / 224) ** 2, 2 * 1.735e9 * 64 * 50 / 224**2
    assert 0.9 < work.forward_flops.total() / 4 / (picture + sound) < 1.1
    assert 2.8 < work.flops.total() / work.forward_flops.total() < 3.0


def count(preset: str, *overrides: str) -> tuple[Work, int]:
    config = load_config([preset, *overrides])
    with torch.device("meta"):
        inputs = build_model(without_initial_weights(config.model)).inputs
    return count_work(config, synthetic_batch(config.data, inputs, 1, torch.device("cpu"))), config.data.batch_size


def test_an_estimate_agrees_with_the_one_made_by_hand():
    """EZ-VSL, 224 px and 257 x 200: counted layer by layer, with 8.5 passes in bf16: 22.2 GFLOP and 67 us a clip."""
    work, clips = count("ez_vsl_vggsound144k")
    assert work.flops.total() / clips == pytest.approx(22.2e9, rel=0.02)
    assert work.seconds(GPUS["h200"]) / clips == pytest.approx(67e-6, rel=0.03)
    assert work.kept_bytes / clips == pytest.approx(22.2e6, rel=0.15), "10.9 and 11.3 MB, and what the losses keep"


@pytest.mark.slow
@pytest.mark.parametrize("name", names("model.methods"))
def test_every_method_is_counted_at_its_batch_size(name: str):
    one, clips = count(f"{name}_vggsound144k")
    other, double = count(f"{name}_vggsound144k", f"data.batch_size={2 * clips}")
    encoders = pytest.approx(one.traffic_bytes / clips, rel=1e-6)
    assert other.traffic_bytes / double == encoders, "the encoders' work is in proportion to the clips"
    assert one.seconds(GPUS["h200"]) / clips < 400e-6 and one.kept_bytes > 0


def test_float32_takes_twice_as_long():
    work = Work()
    work.flops[2] = 474
    gpu = GPUS["h200"]
    half = work.seconds(gpu)
    work.flops = type(work.flops)({4: 474})
    assert half == pytest.approx(1e-12) and work.seconds(gpu) == pytest.approx(2 * half)
    with pytest.raises(UserError, match="no rates of a GPU 'h20' are known; there are: h200"):
        find_gpu("h20")


def test_kept_bytes_are_counted_once_and_without_weights():
    layer = nn.Linear(8, 8, bias=False)
    x = torch.ones(4, 8)
    with kept_for_backward(layer) as kept:
        (layer(x) * layer(x)).sum().backward()
    assert sum(kept.values()) == 3 * 4 * 8 * 4  # the input, once, and both products
