"""Gaussian blur of random strength."""

from typing import Any

import cv2
import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from configs.schema import ComponentConfig
from pipeline.augmentation import Clips, ImageAugmentation, Parameters
from pipeline.sampler import Draws

_NONE = 0.05
"""A sigma that changes nothing: its second weight is exp(-200)."""


class Blur(ImageAugmentation):
    class Config(ComponentConfig):
        """The defaults are JSA's."""

        p: float = Field(0.8, ge=0, le=1, description="share of the clips")
        kernel_px: int = Field(5, ge=3, le=63, description="weights a side, odd")
        sigma_px: tuple[float, float] = Field((0.1, 2.0), description="of the weights, uniform from and to")

        @model_validator(mode="after")
        def _check(self):
            if self.kernel_px % 2 == 0:
                raise ValueError(f"kernel_px {self.kernel_px} must be odd")
            if not _NONE < self.sigma_px[0] <= self.sigma_px[1]:
                raise ValueError(f"sigma_px {self.sigma_px} must rise and be above {_NONE}")
            return self

    def draw(self, draws: Draws, clips: Clips) -> dict[str, np.ndarray]:
        uniform = draws.uniform("blur", 2)
        low, high = self.config.sigma_px
        sigma = np.where(uniform[:, 0] < self.config.p, low + (high - low) * uniform[:, 1], _NONE)
        return {"sigma": sigma.astype(np.float32)}

    def dali(self, images: Any, parameters: Parameters) -> Any:
        from nvidia.dali import fn

        return fn.gaussian_blur(images, window_size=self.config.kernel_px, sigma=parameters["sigma"])

    def reference(self, image: np.ndarray, parameters: Parameters) -> np.ndarray:
        sigma = float(parameters["sigma"])
        if sigma <= np.float32(_NONE):
            return image
        # Not cv2.GaussianBlur: for 8 bits it rounds the weights.
        weights = np.exp(-np.square(self._places() / sigma) / 2)
        weights /= weights.sum()
        return cv2.sepFilter2D(image, -1, weights, weights, borderType=cv2.BORDER_REFLECT_101)

    def batched(self, images: Tensor, parameters: Parameters) -> Tensor:
        places = torch.from_numpy(self._places()).float().to(images.device)
        weights = torch.exp(-(places / parameters["sigma"][:, None]).square() / 2)
        weights = weights / weights.sum(1, keepdim=True)
        size, steps, reach = images.shape[1], range(self.config.kernel_px), self.config.kernel_px // 2
        values = torch.nn.functional.pad(images.permute(0, 3, 1, 2).float(), (reach,) * 4, mode="reflect")
        for axis in (2, 3):
            shifted = [weights[:, step, None, None, None] * values.narrow(axis, step, size) for step in steps]
            values = torch.stack(shifted).sum(0)
        return values.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

    def _places(self) -> np.ndarray:
        reach = self.config.kernel_px // 2
        return np.arange(-reach, reach + 1, dtype=np.float64)
