"""Left and right exchanged."""

from typing import Any

import cv2
import numpy as np
import torch
from pydantic import Field
from torch import Tensor

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
        return cv2.flip(image, 1, dst=image) if parameters["on"] else image

    def batched(self, images: Tensor, parameters: Parameters) -> Tensor:
        return torch.where(parameters["on"].bool()[:, None, None, None], images.flip(2), images)

    def move(self, flow: Tensor, parameters: Parameters, signed: bool) -> Tensor:
        """What moved to the right moves to the left; the published codes know no direction and keep their values."""
        mirrored = flow.flip(3)
        if signed:
            mirrored[:, 0].neg_()
        return torch.where(parameters["on"].bool()[:, None, None, None], mirrored, flow)
