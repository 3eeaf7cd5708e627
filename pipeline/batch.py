"""The contract between the pipeline and the methods: what a method asks for, and what it gets."""

from dataclasses import dataclass, field, fields, replace

import numpy as np
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What a method asks of the pipeline; checked against the store before the first batch.

    image_views, audio_views: how often a training batch draws the picture and the sound of a clip, itself included.
    neighbours: further views of either kind that come from a clip's nearest neighbours (`neighbours/` of the store).
    Batches for scoring hold one view.
    """

    fields: frozenset[str] = frozenset({"image", "spectrogram"})  # also: "flow"
    image_views: int = 1
    audio_views: int = 1
    neighbours: int = 0


@dataclass(kw_only=True)
class Truth:
    """Human annotation of one clip.

    boxes: `(k, 5)` rows x0, y0, x1, y1 as fractions of the picture, and the annotator's index; None if there is a mask.
    mask: `(H, W)` uint8, 255 where the sound is; None if there are boxes.
    """

    boxes: np.ndarray | None = None
    mask: np.ndarray | None = None
    label: str | None = None
    group: str | None = None
    extra: dict = field(default_factory=dict)


@dataclass(kw_only=True)
class Batch:
    """B clips on the device. The tensors belong to the receiver: the loader never writes to them again.

    clip_id: B names. valid: `(B,)` bool, False for the padding of the last test batch.
    image: `(B, 3, H, W)` uint8 RGB, channels-last in memory; the float cast and the channel statistics belong to the
    model's first operation.
    spectrogram: `(B, 1, F, T)` float32, `(ln(power + floor) + offset) / divisor` of the configured front-end.
    flow: `(B, 2, H, W)` float32, motion to the right and down, cut and resized with the picture; pixels of the stored
    frame a video frame, or the published 8-bit code over 255 (see the store's manifest).
    more_images, more_spectrograms: the further views of training batches, each like `image` and `spectrogram`: first
    the clip's own other draws, then its neighbours'.
    truth: one a clip on splits with annotations, else None.
    """

    clip_id: list[str]
    valid: Tensor
    image: Tensor
    spectrogram: Tensor
    flow: Tensor | None = None
    more_images: tuple[Tensor, ...] = ()
    more_spectrograms: tuple[Tensor, ...] = ()
    truth: list[Truth | None] | None = None

    def to(self, device, non_blocking: bool = False) -> "Batch":
        """The same batch with its tensors on `device`."""

        def move(value):
            if isinstance(value, tuple):
                return tuple(move(each) for each in value)
            return value.to(device, non_blocking=non_blocking)

        names = [item.name for item in fields(self) if isinstance(getattr(self, item.name), Tensor | tuple)]
        moved = {name: move(getattr(self, name)) for name in names}
        return replace(self, **moved)
