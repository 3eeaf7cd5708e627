"""Random brightness, contrast, saturation and hue, as one linear map of the RGB values.

Unlike torchvision's ColorJitter the order is fixed (hue and saturation, contrast, brightness), contrast pivots on the
middle grey 128 and not on the picture's mean, and values are rounded once; this is DALI's `color_twist`.
"""

from typing import Any

import cv2
import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from configs.schema import ComponentConfig
from pipeline.augmentation import Clips, ImageAugmentation, Parameters
from pipeline.sampler import Draws

# RGB to luma and two chroma axes, with DALI's rounded coefficients.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
_RGB = np.linalg.inv(_YIQ)
# What of a colour stays, what saturation times the cosine of the hue keeps of it, and what times the sine turns it.
_LUMA = np.outer(_RGB[:, 0], _YIQ[0])
_KEPT = _RGB[:, 1:] @ _YIQ[1:]
_TURNED = np.outer(_RGB[:, 1], _YIQ[2]) - np.outer(_RGB[:, 2], _YIQ[1])
_GREY = 128.0


class ColorJitter(ImageAugmentation):
    class Config(ComponentConfig):
        p: float = Field(0.8, ge=0, le=1, description="share of the clips")
        brightness: float = Field(0.4, ge=0, description="factor within 1 +- this, at least 0")
        contrast: float = Field(0.4, ge=0, description="factor within 1 +- this, at least 0")
        saturation: float = Field(0.4, ge=0, description="factor within 1 +- this, at least 0")
        hue: float = Field(0.1, ge=0, le=0.5, description="turns within +- this; 0.5 is half the circle")

    def draw(self, draws: Draws, clips: Clips) -> dict[str, np.ndarray]:
        """Factors, and `hue` in degrees; 1, 1, 1 and 0 for clips that are left alone."""
        on = draws.uniform("color_jitter/on")[:, 0] < self.config.p
        uniform = 2 * draws.uniform("color_jitter/amount", 4) - 1
        parameters = {
            name: np.where(on, np.maximum(0, 1 + uniform[:, index] * getattr(self.config, name)), 1)
            for index, name in enumerate(("brightness", "contrast", "saturation"))
        }
        parameters["hue"] = np.where(on, 360 * uniform[:, 3] * self.config.hue, 0)
        return {name: value.astype(np.float32) for name, value in parameters.items()}

    def dali(self, images: Any, parameters: Parameters) -> Any:
        from nvidia.dali import fn

        return fn.color_twist(images, **parameters)

    def reference(self, image: np.ndarray, parameters: Parameters) -> np.ndarray:
        values = {name: float(value) for name, value in parameters.items()}
        if all(values[name] == 1 for name in ("brightness", "contrast", "saturation")) and values["hue"] == 0:
            return image
        return cv2.transform(image, color_matrix(**values))

    def batched(self, images: Tensor, parameters: Parameters) -> Tensor:
        return twist(images, **parameters)


def color_matrix(brightness: float, contrast: float, saturation: float, hue: float) -> np.ndarray:
    """`(3, 4)` float32: what to multiply (R, G, B, 1) with, for factors and a hue in degrees."""
    angle = np.deg2rad(hue)
    linear = _LUMA + saturation * np.cos(angle) * _KEPT + saturation * np.sin(angle) * _TURNED
    offset = np.full(3, brightness * (_GREY - _GREY * contrast))
    return np.c_[brightness * contrast * linear, offset].astype(np.float32)


def twist(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """`(B, S, S, 3)` uint8 by the matrices of B clips; every parameter is `(B,)` float32."""
    luma, kept, turned = (torch.from_numpy(part).float().to(images.device) for part in (_LUMA, _KEPT, _TURNED))
    cos, sin = torch.cos(torch.deg2rad(hue)), torch.sin(torch.deg2rad(hue))
    linear = luma + (saturation * cos)[:, None, None] * kept + (saturation * sin)[:, None, None] * turned
    linear = (brightness * contrast)[:, None, None] * linear
    offset = brightness * (_GREY - _GREY * contrast)
    colours = images.flatten(1, 2).float() @ linear.mT + offset[:, None, None]
    return colours.round_().clamp_(0, 255).to(torch.uint8).view_as(images)
