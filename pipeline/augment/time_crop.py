"""A window of the sound from anywhere in the clip, instead of its middle."""

import numpy as np

from configs.schema import ComponentConfig
from pipeline.augmentation import Clips, TimeCrop
from pipeline.sampler import Draws


class RandomTimeCrop(TimeCrop):
    class Config(ComponentConfig):
        pass

    def draw(self, draws: Draws, clips: Clips) -> dict[str, np.ndarray]:
        """Uniform over all whole frames at which a window fits."""
        room = np.maximum(clips.frames - clips.window, 0)
        return {"start": np.floor(draws.uniform("time_crop")[:, 0] * (room + 1)).astype(np.int32)}
