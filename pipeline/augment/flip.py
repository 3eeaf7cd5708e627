"""Left and right exchanged."""

from typing import Any

import cv2
import numpy as np
from pydantic import Field

from configs.schema import ComponentConfig
from pipeline.augmentation import Clips, ImageAugmentation, Parameters
from pipeline.sampler import Draws


class Flip(ImageAugmentation):
    class Config(ComponentConfig):
        p: float = Field(0.5, ge=0, le=1, description="share of the clips")

    def draw(self, draws: Draws, clips: Clips) -> dict[str, np.ndarray]:
        return {"on": (draws.uniform("flip")[:, 0] < self.config.p).astype(np.int32)}

    def dali(self, images: Any, parameters: Parameters) -> Any:
        from nvidia.dali import fn

        return fn.flip(images, horizontal=parameters["on"], vertical=0)

    def reference(self, image: np.ndarray, parameters: Parameters) -> np.ndarray:
        return cv2.flip(image, 1) if parameters["on"] else image
