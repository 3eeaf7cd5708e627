"""The sound of a clip as it is stored: waveform and log-spectrograms of all asked front-ends."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from configs.schema import FrontendConfig
from pipeline.frontends import lengthen, log_spectrogram, resample
from preprocess.media import Sound


class Resampled:
    """A sound at any rate, each made once from the samples at the file's own rate."""

    def __init__(self, sound: Sound) -> None:
        self._native_hz = sound.rate_hz
        native = torch.from_numpy(sound.samples.astype(np.float32) / 32767).clamp(-1, 1)
        self._at = {sound.rate_hz: native}

    def at(self, rate_hz: int) -> Tensor:
        """`(n,)` float32 in about [-1, 1] at `rate_hz`."""
        if rate_hz not in self._at:
            self._at[rate_hz] = resample(self._at[self._native_hz], self._native_hz, rate_hz)
        return self._at[rate_hz]

    def waveform(self, rate_hz: int) -> np.ndarray:
        """`(n,)` int16 at `rate_hz`, 32767 is full scale."""
        return (self.at(rate_hz) * 32767).round().clamp(-32768, 32767).to(torch.int16).numpy()


def spectrograms(sound: Resampled, frontends: Sequence[FrontendConfig]) -> dict[str, np.ndarray]:
    """Front-end name -> `(T, F)` float16, `ln(power + floor)` of the whole clip.

    A clip shorter than one segment is first brought to that length by the front-end's `short` rule.
    """
    found = {}
    for frontend in frontends:
        waveform = lengthen(sound.at(frontend.sample_rate_hz), frontend.n_fft, frontend.short)
        found[frontend.name] = log_spectrogram(waveform, frontend).half().numpy()
    return found
