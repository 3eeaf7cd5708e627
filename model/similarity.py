"""Audio against image features: the product under every loss and map of the field.

Everything here is computed in at least float32, under autocast too: at the small temperatures of the field, a cosine
that half precision has rounded moves a logit by a tenth.
"""

import torch
from torch import Tensor


def widen(features: Tensor) -> Tensor:
    """The features in at least float32."""
    return features.float() if features.dtype.itemsize < 4 else features


def products(x: Tensor, y: Tensor) -> Tensor:
    """The dot product of every row of `x` (N, D) with every row of `y` (M, D): (N, M)."""
    with torch.autocast(x.device.type, enabled=False):
        return widen(x) @ widen(y).T


def own_pair_map(image_features: Tensor, audio_features: Tensor) -> Tensor:
    """Every image against its own sound: (B, h, w). Args: (B, D, h, w) and (B, D), unit length over D."""
    with torch.autocast(image_features.device.type, enabled=False):
        return torch.einsum("bdhw,bd->bhw", widen(image_features), widen(audio_features))


def all_pairs(image_features: Tensor, audio_features: Tensor) -> Tensor:
    """Every cell of every image against every sound: (B, h * w, M), last axis = sound.

    Args: image_features (B, D, h, w) and audio_features (M, D), unit length over D.
    """
    b, d, h, w = image_features.shape
    cells = image_features.permute(0, 2, 3, 1).reshape(b * h * w, d)
    return products(cells, audio_features).view(b, h * w, -1)


def all_pairs_max(image_features: Tensor, audio_features: Tensor) -> Tensor:
    """Every image against every sound, at the image's best cell: (B, M), row = image.

    Args: image_features (B, D, h, w) and audio_features (M, D), unit length over D.
    """
    # max keeps indices for its backward, amax the whole map: B x M x h x w values.
    return all_pairs(image_features, audio_features).max(dim=1).values


def distribution(similarities: Tensor, tau: float) -> Tensor:
    """Each row of (B, M) similarities as shares that sum to 1, sharper the smaller `tau` is."""
    return (widen(similarities) / tau).softmax(dim=1)
