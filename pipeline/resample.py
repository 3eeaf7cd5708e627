"""Crops of many pictures brought to one size at once, in torch: what OpenCV and DALI do picture by picture."""

import torch
from torch import Tensor

from configs.schema import ImageConfig

_PICTURES = 32
"""Pictures resized at a time: bounds the float copies of their crops to some tens of megabytes."""


def crop_and_resize(
    pixels: Tensor,
    first: Tensor,
    planes: Tensor,
    start: Tensor,
    shape: Tensor,
    channels: int,
    size_px: int,
    config: ImageConfig,
) -> Tensor:
    """`(B, C, S, S)` float32: crops of B pictures that lie behind each other in one long row of pixels.

    Args: pixels (n,) uint8, plane after plane of each picture. first (B,) int64: where a picture begins. planes (B, 2)
    int64: pixels of one of its planes and of one of its rows. start, shape (B, 2) int64: of its crop, y and x. All but
    `pixels` are on the CPU, so that their sizes are known without waiting for a GPU.
    """
    device = pixels.device
    done = []
    for begin in range(0, len(first), _PICTURES):
        rows = slice(begin, begin + _PICTURES)
        tallest, widest = shape[rows].amax(0).tolist()
        numbers = torch.cat([first[rows, None], planes[rows], start[rows], shape[rows]], 1)
        begin_, plane, width, top, left, height, breadth = numbers.to(device, non_blocking=True).T[..., None]
        # Beyond a crop its last row and column come again; their weights are zero.
        y = top + torch.minimum(torch.arange(tallest, device=device), height - 1)
        x = left + torch.minimum(torch.arange(widest, device=device), breadth - 1)
        plane_at = begin_ + plane * torch.arange(channels, device=device)
        place = plane_at[:, :, None, None] + (y * width)[:, None, :, None] + x[:, None, None, :]
        down = weights(height, size_px, tallest, config)
        across = weights(breadth, size_px, widest, config)
        done.append(down[:, None] @ pixels[place].float() @ across.mT[:, None])
    return torch.cat(done)


def weights(length: Tensor, size_px: int, longest: int, config: ImageConfig) -> Tensor:
    """`(B, S, longest)` float32: what each of `length` (B, 1) pixels in a row gives to each of S; 0 behind the length.

    Without antialias as OpenCV: the edge pixel is repeated, the cubic has a = -0.75. With: as Pillow and torch, the
    filter widened by the factor of reduction and cut at the edge, a = -0.5.
    """
    length = length[:, None].float()
    scale = length / size_px
    pixel = torch.arange(longest, device=length.device)
    centre = (torch.arange(size_px, device=length.device)[:, None] + 0.5) * scale - 0.5
    cubic = config.interpolation == "cubic"
    if config.antialias:
        stretch = scale.clamp_min(1)
        found = _cubic((pixel - centre) / stretch, -0.5) if cubic else _linear((pixel - centre) / stretch)
        found = found * (pixel < length)
        return found / found.sum(2, keepdim=True)
    if not cubic:
        centre = torch.minimum(centre.clamp_min(0), length - 1)
        return _linear(pixel - centre) * (pixel < length)
    found = _cubic(pixel - centre, -0.75) * (pixel < length)
    for beyond in (1, 2):
        found = found + _cubic(-beyond - centre, -0.75) * (pixel == 0)
        found = found + _cubic(length - 1 + beyond - centre, -0.75) * (pixel == length - 1)
    return found


def _linear(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp_min(0)


def _cubic(x: Tensor, a: float) -> Tensor:
    """Keys' cubic convolution kernel."""
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))
