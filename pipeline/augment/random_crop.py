"""A crop of nearly the whole short side, as EZ-VSL and its followers train."""

import numpy as np
from pydantic import Field

from configs.schema import ComponentConfig
from pipeline.augmentation import Clips, Crop
from pipeline.sampler import Draws


class RandomCrop(Crop):
    class Config(ComponentConfig):
        margin: float = Field(1.1, ge=1, description="the short side is brought to int(margin * size_px), then cropped")
        keep_aspect: bool = Field(True, description="false: as if the picture were squashed to a square first (VCS)")

    def draw(self, draws: Draws, clips: Clips) -> dict[str, np.ndarray]:
        """The authors' "short side to 246, then crop 224 anywhere" as one square of the stored frame: side
        short * 224 / 246, position uniform over all that fit.
        """
        if self.config.keep_aspect:
            sides = np.minimum(clips.width, clips.height)[:, None].repeat(2, 1)
        else:
            sides = np.stack([clips.height, clips.width], 1)
        shape = np.rint(sides * clips.size_px / int(clips.size_px * self.config.margin)).astype(np.int64)
        shape = shape.clip(1, sides)
        room = np.stack([clips.height, clips.width], 1) - shape + 1
        start = np.floor(draws.uniform("random_crop/position", 2) * room)
        return {"start": start.astype(np.int32), "shape": shape.astype(np.int32)}
