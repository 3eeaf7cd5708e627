"""Hear The Flow: what the flow does, what stays fixed, and the attention against the plainest possible twin."""

import math

import pytest
import torch
import torchvision
from torch.nn.functional import normalize

from model.build import build_objective
from model.cross_attention import CrossAttention
from model.methods.htf import HTF
from pipeline.batch import Batch


def build() -> HTF:
    torch.manual_seed(0)
    encoders = {
        "image_encoder": {"name": "resnet", "frozen": True, "frozen_statistics": False},
        "flow_encoder": {"name": "resnet", "in_channels": 2},
    }
    return build_objective(HTF.Config.model_validate({"name": "htf", **encoders})).model  # type: ignore[return-value]


def clips(count: int = 3) -> Batch:
    draw = torch.Generator().manual_seed(0)
    return Batch(
        clip_id=[str(number) for number in range(count)],
        valid=torch.ones(count, dtype=torch.bool),
        image=torch.randint(0, 256, (count, 3, 96, 96), dtype=torch.uint8, generator=draw),
        spectrogram=torch.randn(count, 1, 64, 50, generator=draw),
        flow=torch.randn(count, 2, 96, 96, generator=draw),
    )


def test_the_pipeline_is_asked_for_flow():
    assert build().inputs.fields == {"image", "spectrogram", "flow"}


@torch.no_grad()
def test_flow_moves_the_attention_and_only_that():
    model, batch = build().eval(), clips()
    image, flow = model.image_encoder(batch.image), model.flow_encoder(batch.flow)
    found = model(batch)["image_features"]
    torch.testing.assert_close(found, normalize(image + model.attention(image, flow), dim=1))
    assert batch.flow is not None
    batch.flow = -batch.flow
    assert not torch.allclose(model(batch)["image_features"], found)
    model.attention.value.weight.zero_()
    model.attention.value.bias.zero_()  # type: ignore[union-attr]
    torch.testing.assert_close(model(batch)["image_features"], normalize(image, dim=1))


def test_the_picture_encoder_collects_statistics_without_gradient():
    model = build().train()
    model(clips())["image_features"].sum().backward()
    assert int(model.image_encoder.net.bn1.num_batches_tracked) == 1
    assert not any(parameter.requires_grad for parameter in model.image_encoder.parameters())
    assert model.flow_encoder.net.conv1.weight.grad is not None


def test_attention_equals_loops():
    torch.manual_seed(0)
    attention = CrossAttention(4, 3, 2).double()
    x, keys = torch.randn(2, 4, 2, 3, dtype=torch.float64), torch.randn(2, 3, 2, 3, dtype=torch.float64)
    found = attention.attend(x, keys)
    for b in range(2):
        cells = [(x[b, :, row, column], keys[b, :, row, column]) for row in range(2) for column in range(3)]

        def linear(layer: torch.nn.Conv2d, value: torch.Tensor) -> torch.Tensor:
            assert layer.bias is not None
            return layer.weight[:, :, 0, 0] @ value + layer.bias

        for number, (own, _) in enumerate(cells):
            powers = [
                math.exp((linear(attention.query, own) @ linear(attention.key, key)).item() / math.sqrt(2))
                for _, key in cells
            ]
            mixture = sum(
                power / sum(powers) * linear(attention.value, other) for power, (other, _) in zip(powers, cells)
            )
            expected = normalize(own + mixture, dim=0)
            torch.testing.assert_close(found[b, :, number // 3, number % 3], expected)


def test_attention_gradients():
    torch.manual_seed(0)
    attention = CrossAttention(3, 2, 2).double()
    inputs = [torch.randn(1, channels, 2, 2, dtype=torch.float64, requires_grad=True) for channels in (3, 2)]
    assert torch.autograd.gradcheck(attention.attend, inputs)


@pytest.mark.parametrize("weights", ["none", "imagenet"])
def test_the_stem_of_the_flow_encoder_is_new(weights: str, monkeypatch: pytest.MonkeyPatch):
    """With ImageNet weights all but the stem comes from them, and the stem starts as torch's default."""
    torch.manual_seed(1)
    plain = torchvision.models.resnet18(weights=None).state_dict()
    monkeypatch.setattr("model.encoders.resnet.read_weights", lambda source, imagenet: plain)
    config = {"name": "htf", "image_encoder": "resnet", "flow_encoder": {"name": "resnet", "in_channels": 2}}
    config["flow_encoder"] |= {"weights": weights}  # type: ignore[operator]
    net = HTF(HTF.Config.model_validate(config)).flow_encoder.net
    assert net.conv1.weight.shape == (64, 2, 7, 7)
    bound = 1 / math.sqrt(2 * 49)  # of torch's default, uniform; the other start is normal and passes it
    assert (float(net.conv1.weight.detach().abs().max()) <= bound) == (weights == "imagenet")
    assert torch.equal(net.layer1[0].conv1.weight, plain["layer1.0.conv1.weight"]) == (weights == "imagenet")
