"""What a person sees and hears of a stored clip: its picture, its truth and its sound, without a loader."""

import io
from dataclasses import dataclass

import av
import cv2
import numpy as np

from configs.errors import UserError
from configs.schema import ImageConfig
from pipeline.batch import Truth
from pipeline.source import nearest_frame, truth_of
from pipeline.store import Store

SOUND_S = 10.0
"""Longer sounds are cut to so many seconds around their middle."""
_BITS_PER_S = 24_000


@dataclass(frozen=True, kw_only=True)
class Excerpt:
    """image: `(H, W, 3)` uint8 RGB. truth, sound (MP3): None where the store has none."""

    image: np.ndarray
    truth: Truth | None
    sound: bytes | None


class Excerpts:
    """Pictures, truth and sounds of the clips of an open store, by clip id. image: which frame the method saw."""

    def __init__(self, store: Store, image: ImageConfig) -> None:
        self.store = store
        self._image = image
        self._numbers = {clip_id: number for number, clip_id in enumerate(store.index["clip_id"])}

    def __contains__(self, clip_id: str) -> bool:
        return clip_id in self._numbers

    def of(self, clip_id: str) -> Excerpt:
        """All three of a clip. Raises: UserError if it is damaged, KeyError if the store lacks it."""
        return Excerpt(image=self.picture(clip_id), truth=self.truth(clip_id), sound=self.sound(clip_id))

    def picture(self, clip_id: str) -> np.ndarray:
        """`(H, W, 3)` uint8 RGB: the frame that a method scores, as stored. Raises: UserError if it is damaged."""
        number = self._numbers[clip_id]
        view, index = self.store.view(number), self._frame(number)
        if f"frames/{index}" not in view:
            return view.blob(f"raw/{index}").copy()
        picture = cv2.imdecode(view.blob(f"frames/{index}"), cv2.IMREAD_COLOR_RGB)
        if picture is None:
            raise UserError(
                f"the picture of {clip_id} in store {self.store.path} cannot be decoded; run "
                f"`python -m preprocess verify {self.store.path}`"
            )
        return picture

    def _frame(self, number: int) -> int:
        times = [time_s for time_s, _, _ in self.store.index["frames"][number]]
        instant = self.store.index["annotated_s"][number] if self._image.frame != "middle" else None
        return nearest_frame(times, self.store.index["duration_s"][number] / 2 if instant is None else instant)

    def truth(self, clip_id: str) -> Truth | None:
        """The annotation as the loaders give it."""
        return truth_of(self.store.view(self._numbers[clip_id]))

    def sound(self, clip_id: str) -> bytes | None:
        """The middle `SOUND_S` of the waveform as MP3, which every browser plays; None if the store has no waveform."""
        view = self.store.view(self._numbers[clip_id])
        if "waveform" not in view:
            return None
        rate_hz = view.fields()["sample_rate_hz"]
        waveform = view.blob("waveform")
        spare = max(0, len(waveform) - round(SOUND_S * rate_hz))
        return _mp3(waveform[spare // 2 : len(waveform) - (spare - spare // 2)], rate_hz)


def _mp3(waveform: np.ndarray, rate_hz: int) -> bytes:
    """`(n,)` int16 mono as MP3."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp3") as container:
        stream = container.add_stream("libmp3lame", rate=rate_hz, layout="mono")
        assert isinstance(stream, av.AudioStream)
        stream.bit_rate = _BITS_PER_S
        samples = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform)[None], format="s16p", layout="mono")
        samples.sample_rate, samples.pts = rate_hz, 0
        container.mux(stream.encode(samples))
        container.mux(stream.encode(None))
    return out.getvalue()
