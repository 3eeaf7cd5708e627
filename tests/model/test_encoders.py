"""Encoders: shapes that follow from the input, truly frozen weights, strict loading."""

import hashlib
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision

from configs.errors import UserError
from configs.resolve import resolve
from model.encoders.efficientnet_lite0 import EfficientNetLite0
from model.encoders.projected import Projected
from model.encoders.resnet import ResNet
from model.weights import load_weights, read_tensors


def resnet(**options) -> ResNet:
    return ResNet(ResNet.Config(name="resnet", **options))


@pytest.mark.parametrize(("depth", "channels"), [(18, 512), (34, 512), (50, 2048)])
@pytest.mark.parametrize(("last_stride", "cells"), [(2, (2, 3)), (1, (4, 6))])
def test_resnet_shapes(depth: int, channels: int, last_stride: int, cells: tuple[int, int]):
    net = resnet(depth=depth, last_stride=last_stride).eval()
    with torch.inference_mode():
        out = net(torch.zeros(1, 3, 64, 96, dtype=torch.uint8))
    assert out.shape == (1, channels, *cells) and net.channels == channels


def test_resnet_equals_torchvision(tmp_path: Path):
    torch.manual_seed(0)
    plain = torchvision.models.resnet18(weights=None).eval()
    torch.save(plain.state_dict(), tmp_path / "weights.pth")
    net = resnet(weights=str(tmp_path / "weights.pth")).eval()
    picture = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.inference_mode():
        pooled = net(picture).mean((2, 3))
        expected = plain((picture / 255 - mean) / std)
        torch.testing.assert_close(plain.fc(pooled), expected)


@pytest.mark.parametrize("in_channels", [1, 2])
def test_other_stems_take_the_input_as_it_comes(in_channels: int):
    net = resnet(in_channels=in_channels)
    assert net.net.conv1.weight.shape == (64, in_channels, 7, 7)
    assert net(torch.randn(2, in_channels, 65, 50)).shape == (2, 512, 3, 2)


def test_frozen_means_no_gradient_and_fixed_statistics():
    net = resnet(frozen=True).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    out = net(torch.rand(2, 3, 64, 64))
    assert not out.requires_grad and not net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_frozen_may_leave_the_statistics_moving():
    net = resnet(frozen=True, frozen_statistics=False).train()
    out = net(torch.rand(2, 3, 64, 64))
    assert not out.requires_grad and net.training and int(net.net.bn1.num_batches_tracked) == 1
    assert net.net.bn1.running_mean.any()
    mean = net.net.bn1.running_mean.clone()
    net.eval()(torch.rand(2, 3, 64, 64))
    assert torch.equal(net.net.bn1.running_mean, mean)


def test_imagenet_weights_fit_other_stems(monkeypatch: pytest.MonkeyPatch):
    plain = torchvision.models.resnet18(weights=None).state_dict()
    monkeypatch.setattr("model.encoders.resnet.read_weights", lambda source, imagenet: plain)
    net = resnet(in_channels=2, weights="imagenet")
    assert net.net.conv1.weight.shape == (64, 2, 7, 7)
    assert torch.equal(net.net.layer1[0].conv1.weight, plain["layer1.0.conv1.weight"])


def test_packaged_weights_see_pictures():
    """The packaged ImageNet weights fit the architecture: the class scores of a plain test picture, pinned."""
    net = EfficientNetLite0(EfficientNetLite0.Config(name="efficientnet_lite0")).eval()
    y, x = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    picture = torch.stack([x * 2, y * 2, (x + y) % 256]).to(torch.uint8)[None]
    with torch.inference_mode():
        out = net(picture)
    assert out.shape == (1, 1280, 4, 4)
    assert out.min() >= 0 and out.max() <= 6
    # Statistics that random weights, another padding or another input scale do not give.
    torch.testing.assert_close(out.mean(), torch.tensor(PINNED_MEAN), rtol=1e-3, atol=1e-4)
    assert int(out.mean((2, 3)).argmax()) == PINNED_CHANNEL


PINNED_MEAN = 0.0856
PINNED_CHANNEL = 897


def test_frozen_lite0_gives_the_same_features():
    plain = EfficientNetLite0(EfficientNetLite0.Config(name="efficientnet_lite0")).eval()
    frozen = EfficientNetLite0(EfficientNetLite0.Config(name="efficientnet_lite0", frozen=True)).train()
    picture = torch.randint(0, 256, (2, 3, 96, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(frozen(picture), plain(picture), rtol=1e-4, atol=1e-4)
    assert not frozen(picture).requires_grad
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in frozen.modules())


@pytest.mark.parametrize("size", [32, 45, 64, 100])
def test_lite0_rounds_sizes_up(size: int):
    net = EfficientNetLite0(EfficientNetLite0.Config(name="efficientnet_lite0", weights="none")).eval()
    with torch.inference_mode():
        assert net(torch.zeros(1, 3, size, size)).shape[-1] == -(-size // 32)


def test_a_projection_is_trained_behind_a_frozen_encoder():
    torch.manual_seed(0)
    config = {"name": "projected", "channels": 24, "encoder": {"name": "resnet", "frozen": True}}
    net = Projected(Projected.Config.model_validate(config)).train()
    picture = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    out = net(picture)
    assert out.shape == (2, 24, 2, 3) and net.channels == 24
    torch.testing.assert_close(out, net.projection(net.encoder(picture)))
    out.sum().backward()
    trained = {name for name, value in net.named_parameters() if value.grad is not None}
    assert trained == {"projection.weight", "projection.bias"}


def test_weights_that_do_not_fit_are_named(tmp_path: Path):
    state = torchvision.models.resnet18(weights=None).state_dict()
    state["extra.weight"] = torch.zeros(1)
    del state["layer1.0.conv1.weight"]
    with pytest.raises(UserError, match=r"1 missing \(layer1.0.conv1.weight\).*1 unexpected \(extra.weight\)"):
        load_weights(resnet().net, state, unused=("fc.weight", "fc.bias"), where="resnet-18")


def test_files_that_are_no_weights_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no file"):
        read_tensors(tmp_path / "gone.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(UserError, match=r"text\.pth"):
        read_tensors(tmp_path / "text.pth")
    torch.save({"code": hashlib.sha256}, tmp_path / "code.pth")
    with pytest.raises(UserError, match="could run code"):
        read_tensors(tmp_path / "code.pth")


def test_a_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    # The real loading code without a network: an address that cannot be reached, an empty cache.
    def unreachable(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"cannot download the ImageNet weights.*weights=none"):
        resnet(weights="imagenet")


def timm_encoder(**options):
    pytest.importorskip("timm")
    kind = resolve("model.encoders", "timm")
    return kind(kind.Config.model_validate({"name": "timm", **options}))


@pytest.mark.parametrize(
    ("model", "in_channels", "channels"), [("resnet18", 3, 512), ("mobilenetv3_small_050", 1, 288)]
)
def test_timm_backbones_by_name(model: str, in_channels: int, channels: int):
    net = timm_encoder(model=model, in_channels=in_channels).eval()
    picture = torch.zeros(1, in_channels, 64, 96)
    with torch.inference_mode():
        assert net(picture).shape == (1, net.channels, 2, 3) and net.channels == channels


def test_timm_weights_from_a_file_and_frozen(tmp_path: Path):
    torch.save(timm_encoder(model="resnet18").net.state_dict(), tmp_path / "net.pth")
    net = timm_encoder(model="resnet18", weights=str(tmp_path / "net.pth"), frozen=True).train()
    assert not net.training and not net(torch.rand(1, 3, 64, 64)).requires_grad
    with pytest.raises(UserError, match="1 missing"):
        state = net.net.state_dict()
        del state["conv1.weight"]
        torch.save(state, tmp_path / "net.pth")
        timm_encoder(model="resnet18", weights=str(tmp_path / "net.pth"))


def test_an_unknown_timm_backbone_is_named():
    with pytest.raises(UserError, match=r"no model 'resnet81'\. Did you mean 'resnet18'"):
        timm_encoder(model="resnet81")


def test_timm_is_asked_for_when_absent(monkeypatch: pytest.MonkeyPatch):
    kind = resolve("model.encoders", "timm")
    monkeypatch.setattr("model.encoders.timm.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install 'timm"):
        kind(kind.Config(name="timm", model="resnet18"))


def test_first_stages_stay_in_float32_under_autocast():
    torch.manual_seed(0)
    picture = torch.rand(1, 3, 64, 64)
    for stages, expected in ((0, torch.bfloat16), (5, torch.float32)):
        net = resnet(float32_stages=stages).eval()
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            assert net(picture).dtype == expected
    half = resnet(float32_stages=2).eval()
    seen: list[torch.dtype] = []
    for stage in (half.net.layer1, half.net.layer2):
        stage.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        half(picture)
    assert seen == [torch.float32, torch.bfloat16]
