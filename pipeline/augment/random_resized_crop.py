"""A crop of random area and shape, as torchvision's RandomResizedCrop draws it."""

import numpy as np
from pydantic import Field, model_validator

from configs.schema import ComponentConfig
from pipeline.augmentation import Clips, Crop
from pipeline.sampler import Draws

_TRIES = 10


class RandomResizedCrop(Crop):
    class Config(ComponentConfig):
        scale: tuple[float, float] = Field((0.08, 1.0), description="share of the picture's area, from and to")
        ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="width over height, from and to")

        @model_validator(mode="after")
        def _check(self):
            if not 0 < self.scale[0] <= self.scale[1] <= 1:
                raise ValueError(f"scale {self.scale} must rise within 0 to 1")
            if not 0 < self.ratio[0] <= self.ratio[1]:
                raise ValueError(f"ratio {self.ratio} must rise and be above 0")
            return self

    def draw(self, draws: Draws, clips: Clips) -> dict[str, np.ndarray]:
        """Ten tries of area (uniform) and ratio (uniform in its logarithm), the first that fits; else the largest
        middle crop of an allowed ratio. The position is uniform over all that fit.
        """
        width, height = clips.width, clips.height
        uniform = draws.uniform("random_resized_crop/size", 2 * _TRIES).reshape(-1, _TRIES, 2)
        (area_low, area_high), (low, high) = self.config.scale, self.config.ratio
        area = (width * height)[:, None] * (area_low + (area_high - area_low) * uniform[..., 0])
        ratio = np.exp(np.log(low) + (np.log(high) - np.log(low)) * uniform[..., 1])
        w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
        h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        fits = (w > 0) & (w <= width[:, None]) & (h > 0) & (h <= height[:, None])
        found = fits.any(1)
        row, first = np.arange(len(width)), fits.argmax(1)

        picture = width / height
        fallback_w = np.where(picture > high, np.rint(height * high), width).astype(np.int64)
        fallback_h = np.where(picture < low, np.rint(width / low), height).astype(np.int64)
        w = np.where(found, w[row, first], fallback_w).clip(1, width)
        h = np.where(found, h[row, first], fallback_h).clip(1, height)
        position = np.where(found[:, None], draws.uniform("random_resized_crop/position", 2), 0.5)
        y = np.floor(position[:, 0] * (height - h + found))
        x = np.floor(position[:, 1] * (width - w + found))
        return {"start": np.stack([y, x], 1).astype(np.int32), "shape": np.stack([h, w], 1).astype(np.int32)}
