"""The picture without its colours: luma in all three channels."""

from typing import Any

import cv2
import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from configs.schema import ComponentConfig
from pipeline.augmentation import Clips, ImageAugmentation, Parameters
from pipeline.sampler import Draws

_LUMA = (0.299, 0.587, 0.114)


class Greyscale(ImageAugmentation):
    class Config(ComponentConfig):
        p: float = Field(0.2, ge=0, le=1, description="share of the clips")

    def draw(self, draws: Draws, clips: Clips) -> dict[str, np.ndarray]:
        return {"saturation": (draws.uniform("greyscale")[:, 0] >= self.config.p).astype(np.float32)}

    def dali(self, images: Any, parameters: Parameters) -> Any:
        from nvidia.dali import fn

        return fn.color_twist(images, saturation=parameters["saturation"])

    def reference(self, image: np.ndarray, parameters: Parameters) -> np.ndarray:
        if parameters["saturation"]:
            return image
        return cv2.transform(image, np.array([_LUMA] * 3, np.float32))

    def batched(self, images: Tensor, parameters: Parameters) -> Tensor:
        luma = images.float() @ torch.tensor(_LUMA, device=images.device)
        grey = luma.round_().to(torch.uint8).unsqueeze(3)
        return torch.where(parameters["saturation"].bool()[:, None, None, None], images, grey)
