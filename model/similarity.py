"""Audio against image features: the product under every loss and map of the field.

Everything here is computed in at least float32, under autocast too: at the small temperatures of the field, a cosine
that half precision has rounded moves a logit by a tenth.
"""

from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from configs.errors import UserError
from model.distributed import first_own_column, gathered
from model.kernels.pooled_pairs import chunk_images, pooled_pairs

MAP_BYTES = 1 << 30
"""Of a map of all pairs in float32, above which it is not made whole."""

_PLAIN_STEPS = 60.0
"""How far, in units of its softness, a cosine may be from the border so that its weight is far from float32's least."""

_fused: Literal["auto", "never", "always"] = "auto"


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
    chunk = images_at_a_time(image_features, audio_features)
    if chunk is None:
        # max keeps indices for its backward, amax the whole map: B x M x h x w values.
        return all_pairs(image_features, audio_features).max(dim=1).values
    return _without_map(image_features, audio_features, [], chunk)


def all_pairs_soft_mean(image_features: Tensor, audio_features: Tensor, border: float, softness: float) -> Tensor:
    """Every image against every sound, by `soft_mean` over the image's cells: (B, M), row = image.

    Args: image_features (B, D, h, w) and audio_features (M, D), unit length over D.
    """
    chunk = images_at_a_time(image_features, audio_features)
    if chunk is None:
        return soft_mean(all_pairs(image_features, audio_features), border, softness)
    return _without_map(image_features, audio_features, [border, softness], chunk)


def own_map_and_all_pairs_soft_mean(
    image_features: Tensor, audio_features: Tensor, border: float, softness: float
) -> tuple[Tensor, Tensor]:
    """Every image's cells against its own sound, (B, h * w), and `all_pairs_soft_mean` against the sounds of all ranks.

    Args: image_features (B, D, h, w) and audio_features (B, D) of this rank, unit length over D.
    """
    sounds = gathered(audio_features)
    if images_at_a_time(image_features, sounds) is None:
        # The own pairs stand in the map: a product of their own, with its backward pass, takes as long as the map.
        cosines = all_pairs(image_features, sounds)
        return own_pairs(cosines, 2).mT, soft_mean(cosines, border, softness)
    own = own_pair_map(image_features, audio_features).flatten(1)
    return own, all_pairs_soft_mean(image_features, sounds, border, softness)


def own_pairs(pairs: Tensor, dim: int) -> Tensor:
    """Of every image (dimension 0 of `pairs`) against the sounds of all ranks (`dim`) those of its own sound, last."""
    rows = len(pairs)
    return pairs.narrow(dim, first_own_column(rows), rows).diagonal(dim1=0, dim2=dim)


def soft_mean(cosines: Tensor, border: float, softness: float) -> Tensor:
    """Mean over the cells (dimension 1), weighted by sigmoid((x - border) / softness)."""
    steps = (cosines - border) / softness
    if (1 + abs(border)) / abs(softness) < _PLAIN_STEPS:
        weights = steps.sigmoid()
        return (weights * cosines).sum(dim=1) / weights.sum(dim=1)
    # As a softmax of logarithms: where no cell is near the border, the plain weights and their sum fall to 0 / 0.
    return (functional.logsigmoid(steps).softmax(dim=1) * cosines).sum(dim=1)


def choose_fused_pairs(fused: Literal["auto", "never", "always"], device: torch.device) -> None:
    """What `images_at_a_time` may choose, from now on in this process.

    Raises: UserError for "always" where the fused kernels cannot run.
    """
    global _fused  # a switch of the whole process, read where losses are computed
    if fused == "always" and find_spec("triton") is None:
        raise UserError("train.fused_pairs=always needs Triton, which is not installed; set it to auto")
    if fused == "always" and device.type != "cuda":
        from model.kernels.triton_pairs import INTERPRETED

        if not INTERPRETED:
            raise UserError(
                f"train.fused_pairs=always needs a CUDA GPU, and this run is on {device.type}; set it to auto, or, to "
                "test the kernels, set the environment variable TRITON_INTERPRET=1"
            )
    _fused = fused


def images_at_a_time(image_features: Tensor, audio_features: Tensor) -> int | None:
    """How to pool all pairs: None with the whole map, 0 by the fused kernels, else over so many images at a time.

    By memory, not by time, which nobody has measured: the whole map is a single matrix product and as exact, so it is
    made up to `MAP_BYTES`; above, a loss that keeps two or three of them would fill a GPU (B = M = 4096 and 14 x 14
    cells: 13 GB each). `benchmarks/kernel_rate.py` measures what each form costs.
    """
    wide = max(4, image_features.dtype.itemsize)
    large = wide * image_features[:, 0].numel() * len(audio_features) > MAP_BYTES
    if _fused == "never" or (_fused == "auto" and not large):
        return None
    runs = image_features.device.type == "cuda" and find_spec("triton") is not None
    if wide == 4 and (_fused == "always" or runs):
        return 0
    return chunk_images(image_features.flatten(2).mT, audio_features)


def _without_map(image_features: Tensor, audio_features: Tensor, soft: list[float], chunk: int) -> Tensor:
    cells = image_features.flatten(2).mT
    if cells.dtype != audio_features.dtype:
        cells, audio_features = widen(cells), widen(audio_features)
    return pooled_pairs(cells, audio_features, soft, chunk)


def distribution(similarities: Tensor, tau: float) -> Tensor:
    """Each row of (B, M) similarities as shares that sum to 1, sharper the smaller `tau` is."""
    return (widen(similarities) / tau).softmax(dim=1)
