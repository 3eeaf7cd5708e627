"""The sound of a clip as it is stored: waveform and log-spectrograms of all asked front-ends."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.schema import FrontendConfig
from pipeline.frontends import code_range, from_codes, lengthen, log_spectrogram, resample, to_codes
from preprocess.refusals import Refused
from preprocess.sound import Sound

_MAX_FRAMES = 100_000


class Resampled:
    """A sound at any rate, each made once from the samples at the file's own rate."""

    def __init__(self, sound: Sound) -> None:
        self._sound = sound
        self._at = {sound.rate_hz: torch.from_numpy(sound.samples).float().div_(32767).clamp_(-1, 1)}

    def at(self, rate_hz: int) -> Tensor:
        """`(n,)` float32 in [-1, 1] at `rate_hz`."""
        if rate_hz not in self._at:
            own_hz = self._sound.rate_hz
            self._at[rate_hz] = resample(self._at[own_hz], own_hz, rate_hz)
        return self._at[rate_hz]

    def waveform(self, rate_hz: int) -> np.ndarray:
        """`(n,)` int16 at `rate_hz`, 32767 is full scale."""
        if rate_hz == self._sound.rate_hz:
            return self._sound.samples
        return (self.at(rate_hz) * 32767).round_().to(torch.int16).numpy()


def spectrogram(sound: Resampled, frontend: FrontendConfig, dtype: str) -> tuple[np.ndarray, float | None]:
    """`(T, F)`, `ln(power + floor)` of the whole clip as it is stored, and the largest error of its codes.

    dtype: "float16" (whose error is not measured: None), or "uint8" for the codes of `code_range`.
    A clip shorter than one segment is first brought to that length by the front-end's `short` rule.
    """
    waveform = lengthen(sound.at(frontend.sample_rate_hz), frontend.n_fft, frontend.short)
    return as_stored(log_spectrogram(waveform, frontend), frontend, dtype)


def as_stored(exact: Tensor, frontend: FrontendConfig, dtype: str) -> tuple[np.ndarray, float | None]:
    """`(T, F)` float32 `ln(power + floor)` as `spectrogram` gives it."""
    if dtype == "float16":
        return exact.half().numpy(), None
    low, high = code_range(frontend)
    codes = to_codes(exact, low, high)
    return codes.numpy(), (from_codes(codes, low, high) - exact).abs().max().item()


def read_log_power(path: Path, frontend: FrontendConfig) -> Tensor:
    """`(T, F)` float32 `ln(power + floor)` of a .npy file that holds the power `(F, T)` or `(1, F, T)` of a clip.

    Raises: Refused (missing_file, bad_spectrogram).
    """
    try:
        power = np.load(path, allow_pickle=False, mmap_mode="r")
    except FileNotFoundError as error:
        raise Refused("missing_file", f"{path.name} is not there") from error
    except (OSError, ValueError, EOFError) as error:
        raise Refused("bad_spectrogram", f"{path.name}: {error}") from error
    shape = power.shape[1:] if power.ndim == 3 and power.shape[0] == 1 else power.shape
    if power.dtype.kind != "f" or len(shape) != 2 or shape[0] != frontend.bins or not 0 < shape[1] <= _MAX_FRAMES:
        raise Refused(
            "bad_spectrogram",
            f"{path.name}: {power.dtype} {power.shape}, not float ({frontend.bins}, T) as front-end {frontend.name}",
        )
    values = np.array(power, np.float32).reshape(shape)
    if not np.isfinite(values).all() or values.min() < 0:
        raise Refused("bad_spectrogram", f"{path.name} holds values that are no powers; is it the logarithm?")
    exact = torch.from_numpy(values.T.copy())
    return (exact.clamp(min=frontend.floor) if frontend.floor_rule == "clamp" else exact + frontend.floor).log()


def lasting_s(frames: int, frontend: FrontendConfig) -> float:
    """Seconds of sound that so many time frames were made from, at least."""
    samples = (frames - 1) * frontend.hop + (0 if frontend.centered else frontend.n_fft)
    return samples / frontend.sample_rate_hz


def storage(frontend: FrontendConfig, dtype: str, errors: Iterable[float]) -> dict[str, Any]:
    """How the spectrograms of a front-end are stored, as a store's manifest says it.

    errors: of every clip, for codes.
    """
    if dtype == "float16":
        return {"dtype": dtype}
    low, high = code_range(frontend)
    return {"dtype": dtype, "low": low, "high": high, "max_error": max(errors)}
