"""Random brightness, contrast, saturation and hue, as one linear map of the RGB values.

Unlike torchvision's ColorJitter the order is fixed (hue and saturation, contrast, brightness), contrast pivots on the
middle grey 128 and not on the picture's mean, and values are rounded once; this is DALI's `color_twist`.
"""

from typing import Any

import cv2
import numpy as np
from pydantic import Field

from configs.schema import ComponentConfig
from pipeline.augmentation import Clips, ImageAugmentation, Parameters
from pipeline.sampler import Draws

# RGB to luma and two chroma axes, with DALI's rounded coefficients.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
_RGB = np.linalg.inv(_YIQ)
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
        return cv2.transform(image, color_matrix(**{name: float(value) for name, value in parameters.items()}))


def color_matrix(brightness: float, contrast: float, saturation: float, hue: float) -> np.ndarray:
    """`(3, 4)` float32: what to multiply (R, G, B, 1) with, for factors and a hue in degrees."""
    angle = np.deg2rad(-hue)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    linear = brightness * contrast * _RGB @ turn @ np.diag([1, saturation, saturation]) @ _YIQ
    return np.c_[linear, np.full(3, brightness * (_GREY - _GREY * contrast))].astype(np.float32)
