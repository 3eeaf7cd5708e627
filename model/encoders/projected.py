"""Any encoder with a learned 1x1 convolution behind it: for methods that want picture and sound of one size."""

from typing import Any

from pydantic import Field
from torch import Tensor, nn

from configs.resolve import resolve
from configs.schema import ComponentConfig, named


class Projected(nn.Module):
    """(B, C, H, W) to (B, `channels`, h, w); the encoder may be frozen, the convolution is trained.

    Ours: the published methods whose features meet without projections use encoders of one family.
    """

    class Config(ComponentConfig):
        encoder: named("model.encoders")  # type: ignore[valid-type]
        channels: int = Field(512, ge=1)

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.encoder = resolve("model.encoders", config.encoder.name)(config.encoder)
        self.projection = nn.Conv2d(self.encoder.channels, config.channels, 1)
        self.channels = config.channels

    def forward(self, values: Tensor) -> Tensor:
        return self.projection(self.encoder(values))
