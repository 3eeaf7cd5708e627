"""Attention of picture features whose keys come from another map of the same size, as optical flow."""

import math

from torch import Tensor, nn


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
