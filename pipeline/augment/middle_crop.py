"""The largest square in the middle of the picture."""

import numpy as np

from configs.schema import ComponentConfig
from pipeline.augmentation import Clips, Crop
from pipeline.sampler import Draws


class MiddleCrop(Crop):
    class Config(ComponentConfig):
        pass

    def draw(self, draws: Draws, clips: Clips) -> dict[str, np.ndarray]:
        """The authors' "short side to 224, then the middle 224" as one square of the stored frame; nothing is drawn."""
        sides = np.stack([clips.height, clips.width], 1)
        shape = sides.min(1, keepdims=True).repeat(2, 1)
        return {"start": np.rint((sides - shape) / 2).astype(np.int32), "shape": shape.astype(np.int32)}
