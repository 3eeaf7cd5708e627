"""Audio against image features: the product under every loss and map of the field."""

import torch
from torch import Tensor


def own_pair_map(image_features: Tensor, audio_features: Tensor) -> Tensor:
    """Every image against its own sound: (B, h, w). Args: (B, D, h, w) and (B, D), unit length over D."""
    return torch.einsum("bdhw,bd->bhw", image_features, audio_features)


def all_pairs(image_features: Tensor, audio_features: Tensor) -> Tensor:
    """Every cell of every image against every sound: (B, h * w, M), last axis = sound.

    Args: image_features (B, D, h, w) and audio_features (M, D), unit length over D.
    """
    b, d, h, w = image_features.shape
    cells = image_features.permute(0, 2, 3, 1).reshape(b * h * w, d)
    return (cells @ audio_features.T).view(b, h * w, -1)


def all_pairs_max(image_features: Tensor, audio_features: Tensor) -> Tensor:
    """Every image against every sound, at the image's best cell: (B, M), row = image.

    Args: image_features (B, D, h, w) and audio_features (M, D), unit length over D.
    """
    # max keeps indices for its backward, amax the whole map: B x M x h x w values.
    return all_pairs(image_features, audio_features).max(dim=1).values


def widen(features: Tensor) -> Tensor:
    """The features in at least float32: a loss divides their products by a small temperature."""
    return features.float() if features.dtype.itemsize < 4 else features


def distribution(similarities: Tensor, tau: float) -> Tensor:
    """Each row of (B, M) similarities as shares that sum to 1, sharper the smaller `tau` is."""
    return (similarities / tau).softmax(dim=1)
