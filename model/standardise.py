"""The first operation of every image encoder: bytes to standardised floats."""

import torch
from torch import Tensor, nn


class Standardise(nn.Module):
    """Channel statistics of the weights' own training, applied on the device.

    forward: (B, 3, H, W) uint8, or float in [0, 1], to float32 `(x - mean) / std`; the memory format stays.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        # Constants, not state: they belong to the architecture, so that published weights load without them.
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        x = image.float() / 255 if image.dtype == torch.uint8 else image
        return (x - self.mean) / self.std


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of RGB in [0, 1] with which torchvision's ImageNet weights were trained."""
