"""What an augmentation is to the pipeline: numbers drawn for a whole batch at once, and what they do.

An augmentation is one file in `pipeline/augment` with one class below one of the four bases here:

    Crop                which pixels of the stored frame become the picture        at most one
    TimeCrop            which part of the sound becomes the window                 at most one
    ImageAugmentation   the picture, uint8 and already at its final size           in the order of the config
                        (and the flow with it, where things move in the picture)
    SoundAugmentation   the log-spectrogram, on the device                         in the order of the config

Every number is drawn on the CPU from (seed, epoch, clip), before any loader sees the clip, so all loaders do the same.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from configs.errors import UserError
from configs.resolve import resolve
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
    """Changes a picture `(S, S, 3)` uint8 RGB, in three ways that give the same picture up to rounding."""

    @abstractmethod
    def dali(self, images: Any, parameters: Parameters) -> Any:
        """The DALI node of the changed pictures; `parameters` are nodes too."""

    @abstractmethod
    def reference(self, image: np.ndarray, parameters: Parameters) -> np.ndarray:
        """The changed picture of one clip, by OpenCV; may write to `image`. `parameters` are that clip's."""

    @abstractmethod
    def batched(self, images: Tensor, parameters: Parameters) -> Tensor:
        """The changed `(B, S, S, 3)` uint8 on their device; `parameters` are tensors on it. May write to `images`."""

    def move(self, flow: Tensor, parameters: Parameters, signed: bool) -> Tensor:
        """The flow `(B, 2, S, S)` of the changed pictures; signed: its values are displacements, not the published
        codes. The same flow, unless the augmentation moves things.
        """
        return flow


class SoundAugmentation(Augmentation):
    """Changes log-spectrograms, whether stored or just computed from the waveform; so on the device, in torch."""

    @abstractmethod
    def apply(self, log_power: Tensor, parameters: Parameters, clips: Clips) -> Tensor:
        """The changed `(B, T, F)`; may write to `log_power`. `parameters` are tensors on its device."""


class Recipe:
    """The augmentations of one view, sorted by kind; None or empty where there is none of a kind."""

    def __init__(self, parts: Mapping[str, ComponentConfig], where: str) -> None:
        """Raises: UserError naming `where` if two of `parts` crop the same thing."""
        chosen = [(name, resolve("pipeline.augment", name)(config)) for name, config in parts.items()]
        for kind in (Crop, TimeCrop):
            names = [name for name, part in chosen if isinstance(part, kind)]
            if len(names) > 1:
                raise UserError(f"{where} has {' and '.join(names)}, but only one can be; remove one with =null")
        self.crop = next((part for _, part in chosen if isinstance(part, Crop)), None)
        self.time_crop = next((part for _, part in chosen if isinstance(part, TimeCrop)), None)
        self.image = [part for _, part in chosen if isinstance(part, ImageAugmentation)]
        self.sound = [part for _, part in chosen if isinstance(part, SoundAugmentation)]
