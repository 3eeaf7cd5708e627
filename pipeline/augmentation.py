"""What an augmentation is to the pipeline: numbers drawn for a whole batch at once, and what they do.

An augmentation is one file in `pipeline/augment` with one class below one of the four bases here:

    Crop                which pixels of the stored frame become the picture        at most one
    TimeCrop            which part of the sound becomes the window                 at most one
    ImageAugmentation   the picture, uint8 and already at its final size           in the order of the config
    SoundAugmentation   the log-spectrogram, on the device                         in the order of the config

Every number is drawn on the CPU from (seed, epoch, clip), before any loader sees the clip, so all loaders do the same.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from configs.schema import ComponentConfig
from pipeline.sampler import Draws

Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class Clips:
    """What is known of B clips when numbers are drawn for them.

    width, height: `(B,)` int64, the stored frame in pixels. frames: `(B,)` int64, time frames T of the whole clip.
    window: time frames that the method hears. bins: frequency bins F. size_px: side of the picture that it sees.
    log_floor: the value of silence in the log-spectrogram.
    """

    width: np.ndarray
    height: np.ndarray
    frames: np.ndarray
    window: int
    bins: int
    size_px: int
    log_floor: float


class Augmentation(ABC):
    """Base of the four kinds; a file derives from one of those, never from this."""

    Config: ClassVar[type[ComponentConfig]]

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def draw(self, draws: Draws, clips: Clips) -> dict[str, np.ndarray]:
        """Named parameters, each `(B, ...)` int32 or float32; row b depends on clip b alone."""


class Crop(Augmentation):
    """Draws `start` and `shape`, each `(B, 2)` int32 (y, x) in pixels of the stored frame, inside it."""


class TimeCrop(Augmentation):
    """Draws `start`, `(B,)` int32: the first time frame of the window; 0 where the clip is not longer than it."""


class ImageAugmentation(Augmentation):
    """Changes a picture `(S, S, 3)` uint8 RGB. A parameter `(B, n)` reaches the functions as n numbers, one clip's."""

    @abstractmethod
    def dali(self, images: Any, parameters: Parameters) -> Any:
        """The DALI node of the changed pictures; `parameters` are nodes too."""

    @abstractmethod
    def reference(self, image: np.ndarray, parameters: Parameters) -> np.ndarray:
        """The changed picture of one clip; may write to `image`."""


class SoundAugmentation(Augmentation):
    """Changes log-spectrograms, whether stored or just computed from the waveform; so on the device, in torch."""

    @abstractmethod
    def apply(self, log_power: Tensor, parameters: Parameters, clips: Clips) -> Tensor:
        """The changed `(B, T, F)`; may write to `log_power`. `parameters` are tensors on its device."""
