"""Bands of frequency and stretches of time blanked out (SpecAugment without the warp)."""

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from configs.schema import ComponentConfig
from pipeline.augmentation import Clips, Parameters, SoundAugmentation
from pipeline.sampler import Draws


class SpectrogramMask(SoundAugmentation):
    class Config(ComponentConfig):
        """The defaults are FNAC's: one of each, narrower than 10, set to 0 before offset and divisor."""

        frequency_masks: int = Field(1, ge=0)
        frequency_width: int = Field(9, ge=0, description="bins at most; the width is uniform from 0 to it")
        time_masks: int = Field(1, ge=0)
        time_width: int = Field(9, ge=0, description="frames at most; the width is uniform from 0 to it")
        fill: float | Literal["floor"] = Field(0.0, description="value of ln(power + floor); floor: silence")

    def draw(self, draws: Draws, clips: Clips) -> dict[str, np.ndarray]:
        """First and behind-last bin `(B, n)`, and first and behind-last frame `(B, m)` of the masks."""
        parameters = {}
        for axis, count, widest, size in (
            ("frequency", self.config.frequency_masks, self.config.frequency_width, clips.bins),
            ("time", self.config.time_masks, self.config.time_width, clips.window),
        ):
            if count:
                uniform = draws.uniform(f"spectrogram_mask/{axis}", 2 * count).reshape(-1, count, 2)
                width = np.floor(uniform[..., 0] * (min(widest, size) + 1))
                start = np.floor(uniform[..., 1] * (size - width + 1))
                parameters[f"{axis}_start"] = start.astype(np.int32)
                parameters[f"{axis}_stop"] = (start + width).astype(np.int32)
        return parameters

    def apply(self, log_power: Tensor, parameters: Parameters, clips: Clips) -> Tensor:
        fill = clips.log_floor if self.config.fill == "floor" else self.config.fill
        for axis, dim in (("time", 1), ("frequency", 2)):
            if f"{axis}_start" in parameters:
                start, stop = parameters[f"{axis}_start"], parameters[f"{axis}_stop"]
                place = torch.arange(log_power.shape[dim], device=log_power.device)
                covered = ((place >= start[..., None]) & (place < stop[..., None])).any(1)
                log_power = log_power.masked_fill_(covered.unsqueeze(3 - dim), fill)
        return log_power
