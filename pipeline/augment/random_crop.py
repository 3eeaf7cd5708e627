"""A square crop of nearly the whole short side, as EZ-VSL and its followers train."""

import numpy as np
from pydantic import Field

from configs.schema import ComponentConfig
from pipeline.augmentation import Clips, Crop
from pipeline.sampler import Draws


class RandomCrop(Crop):
    class Config(ComponentConfig):
        margin: float = Field(1.1, ge=1, description="the short side is brought to int(margin * size_px), then cropped")

    def draw(self, draws: Draws, clips: Clips) -> dict[str, np.ndarray]:
        """The authors' "short side to 246, then crop 224 anywhere" as one square of the stored frame: side
        short * 224 / 246, position uniform over all that fit.
        """
        short = np.minimum(clips.width, clips.height)
        side = np.rint(short * clips.size_px / int(clips.size_px * self.config.margin)).astype(np.int64).clip(1, short)
        position = draws.uniform("random_crop/position", 2)
        room = np.stack([clips.height - side + 1, clips.width - side + 1], 1)
        start = np.floor(position * room).astype(np.int32)
        return {"start": start, "shape": np.stack([side, side], 1).astype(np.int32)}
