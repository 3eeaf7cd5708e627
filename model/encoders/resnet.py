"""torchvision's ResNet-18, -34 and -50 as image, audio or flow encoder: without pooling and classifier."""

from typing import Annotated, Any

import torch
import torchvision
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from configs.schema import ComponentConfig
from model.standardise import IMAGENET, Standardise
from model.weights import load_weights, read_weights

_BUILDERS = {18: torchvision.models.resnet18, 34: torchvision.models.resnet34, 50: torchvision.models.resnet50}
_IMAGENET_WEIGHTS: dict[int, Any] = {
    18: torchvision.models.ResNet18_Weights.IMAGENET1K_V1,
    34: torchvision.models.ResNet34_Weights.IMAGENET1K_V1,
    50: torchvision.models.ResNet50_Weights.IMAGENET1K_V1,
}


def _known_depth(depth: int) -> int:
    if depth not in _BUILDERS:
        raise ValueError(f"depth must be one of {', '.join(map(str, _BUILDERS))}")
    return depth


class ResNet(nn.Module):
    """(B, in_channels, H, W) to features (B, channels, H / 32, W / 32), or / 16 with `last_stride` 1.

    With three channels the input is a picture (uint8, or float in [0, 1]) and is standardised here; other inputs are
    taken as they come.
    Source: He et al., CVPR 2016; the last stage at stride 1 as in Chen et al. (LVS), CVPR 2021.
    """

    class Config(ComponentConfig):
        depth: Annotated[int, AfterValidator(_known_depth)] = 18
        in_channels: int = Field(3, ge=1)
        last_stride: int = Field(2, ge=1, le=2)
        weights: str = Field(
            "none",
            description="none, a file, or imagenet (torchvision's download, but for a stem of other than 3 channels)",
        )
        frozen: bool = Field(False, description="no gradient, and BatchNorm as `frozen_statistics` says")
        frozen_statistics: bool = Field(
            True,
            description="frozen BatchNorm uses its stored statistics; false: in training the batch's, and goes on "
            "collecting them, as Hear the Flow and SIRA-SSL do",
        )
        float32_stages: int = Field(
            0, ge=0, le=5, description="so many of stem, layer1, ... layer4 stay in float32 under autocast"
        )

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        net = _BUILDERS[config.depth](weights=None)
        if config.in_channels != 3:
            net.conv1 = nn.Conv2d(config.in_channels, 64, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        if config.last_stride == 1:
            for module in net.layer4.modules():
                if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
                    module.stride = (1, 1)
        self.channels: int = net.fc.in_features
        del net.avgpool, net.fc
        self.net = net
        self.standardise = Standardise(*IMAGENET) if config.in_channels == 3 else nn.Identity()
        if config.weights != "none":
            state = read_weights(config.weights, _IMAGENET_WEIGHTS[config.depth].get_state_dict)
            if config.weights == "imagenet" and config.in_channels != 3:
                state = {**state, "conv1.weight": net.conv1.weight.detach()}
            load_weights(self.net, state, unused=("fc.weight", "fc.bias"), where=f"resnet-{config.depth}")
        if config.frozen:
            self.requires_grad_(False)

    def train(self, mode: bool = True) -> "ResNet":
        return super().train(mode and not (self.config.frozen and self.config.frozen_statistics))

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen):
            net, full = self.net, self.config.float32_stages
            stages = [self._stem, net.layer1, net.layer2, net.layer3, net.layer4]
            with torch.autocast(x.device.type, enabled=False):
                x = self.standardise(x)
                for stage in stages[:full]:
                    x = stage(x)
            for stage in stages[full:]:
                x = stage(x)
            return x

    def _stem(self, x: Tensor) -> Tensor:
        net = self.net
        return net.maxpool(net.relu(net.bn1(net.conv1(x))))
