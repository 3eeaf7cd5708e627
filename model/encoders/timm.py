"""Any backbone of the package timm, by its name there, as image, audio or flow encoder."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from configs.errors import UserError
from configs.resolve import nearest
from configs.schema import ComponentConfig
from model.standardise import IMAGENET, Standardise
from model.weights import load_weights, read_tensors


class Timm(nn.Module):
    """(B, in_channels, H, W) to features (B, channels, h, w): the last feature map of the backbone.

    With three channels the input is a picture (uint8, or float in [0, 1]) and is standardised here with the backbone's
    own statistics; other inputs are taken as they come.
    """

    class Config(ComponentConfig):
        model: str = Field(description="timm's name of the backbone; it must give feature maps")
        in_channels: int = Field(3, ge=1)
        weights: str = Field("none", description="none, a file of weights, or pretrained (timm's download)")
        frozen: bool = Field(False, description="no gradient, and BatchNorm with its stored statistics")

    def __init__(self, config: Any) -> None:
        """Raises: UserError if timm is not installed, or has no such backbone, or the backbone gives no maps."""
        super().__init__()
        self.config = config
        if find_spec("timm") is None:
            raise UserError(f"encoder timm ({config.model}) needs the package timm: pip install 'timm>=1.0'")
        timm: Any = import_module("timm")

        if not timm.is_model(config.model):
            raise UserError(f"timm has no model '{config.model}'.{nearest(config.model, timm.list_models())}")
        try:
            net: Any = timm.create_model(
                config.model,
                pretrained=config.weights == "pretrained",
                in_chans=config.in_channels,
                features_only=True,
                out_indices=(-1,),
            )
        except (RuntimeError, AttributeError, OSError) as error:
            raise UserError(f"timm cannot build '{config.model}' as a backbone of feature maps: {error}") from error
        self.net = net
        self.channels: int = net.feature_info.channels()[-1]
        facts: Any = timm.get_pretrained_cfg(config.model)
        mean, std = (facts.mean, facts.std) if facts else IMAGENET
        self.standardise = Standardise(mean, std) if config.in_channels == 3 else nn.Identity()
        if config.weights not in ("none", "pretrained"):
            load_weights(self.net, read_tensors(Path(config.weights)), unused=(), where=f"timm model {config.model}")
        if config.frozen:
            self.requires_grad_(False)

    def train(self, mode: bool = True) -> "Timm":
        return super().train(mode and not self.config.frozen)

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen):
            return self.net(self.standardise(x))[0]
