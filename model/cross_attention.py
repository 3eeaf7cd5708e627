"""Attention of picture features whose keys come from another map of the same size, as optical flow."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from configs.errors import UserError
from configs.resolve import resolve
from model.similarity import widen


class CrossAttention(nn.Module):
    """Every cell as a mixture of all cells' values; queries and values from the picture, keys from elsewhere.

    The bias of the keys is added to all logits of a query alike and cancels in the softmax: it has no effect and no
    gradient but rounding. It stays, because the authors' weights have it.
    Source: Fedorishin et al., "Hear The Flow", WACV 2023, in the form of the authors' code.
    """

    def __init__(self, channels: int, key_channels: int, key_dim: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, key_dim, 1)
        self.key = nn.Conv2d(key_channels, key_dim, 1)
        self.value = nn.Conv2d(channels, channels, 1)

    def weights(self, x: Tensor, keys: Tensor) -> Tensor:
        """(B, hw, hw): how the cell of a row attends to the cells of the columns; rows sum to 1.

        Args: x (B, channels, h, w) and keys (B, key_channels, h, w).
        """
        query, key = self.query(x).flatten(2), self.key(keys).flatten(2)
        return (query.transpose(1, 2) @ key / math.sqrt(query.shape[1])).softmax(dim=2)

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        """(B, channels, h, w): the mixtures, without `x` itself."""
        value = self.value(x).flatten(2)
        return (value @ self.weights(x, keys).transpose(1, 2)).view_as(x)

    def attend(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """(B, channels, h, w), unit length over the channels: `x` plus its mixtures; without keys, `x` gives its own.

        Raises: UserError if `x` and the keys differ in height or width.
        In at least float32, under autocast too: little work, whose softmax over cells feels every rounding.
        """
        if keys is not None and keys.shape[2:] != x.shape[2:]:
            raise UserError(
                f"the flow encoder gives maps of {keys.shape[2]} x {keys.shape[3]} cells, the image encoder of "
                f"{x.shape[2]} x {x.shape[3]}: choose encoders of one stride (model.flow_encoder, model.image_encoder)"
            )
        with torch.autocast(x.device.type, enabled=False):
            x = widen(x)
            return functional.normalize(x + self(x, x if keys is None else widen(keys)), dim=1)


def build_flow_encoder(config: Any) -> Any:
    """The encoder of optical flow. The authors exchange the stem of the ImageNet network for one of two channels: it
    is the one layer that starts as torch's default.
    """
    encoder = resolve("model.encoders", config.name)(config)
    if config.name == "resnet" and config.weights == "imagenet" and config.in_channels != 3:
        encoder.net.conv1.reset_parameters()
    return encoder
