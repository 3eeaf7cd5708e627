"""Waveform to log-spectrogram, as any `FrontendConfig` says: batched, float32, on CPU and GPU. The one implementation
for packing, for computing on the device what a store lacks, and for `localize` on a single file.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torchaudio
from torch import Tensor

from configs.schema import FrontendConfig

_PHASES = 32  # of a resampling kernel that are computed together
_LONG, _PIECE = 2**19, 2**18  # values of all segments of a clip; of those transformed at once


@lru_cache(maxsize=32)
def _window(config: FrontendConfig, device: torch.device) -> Tensor:
    n = config.n_fft
    if config.window == "hann":
        return torch.hann_window(n, periodic=True).to(device)
    # Tukey: a cosine taper over alpha / 2 at either end. Periodic means one point more, the last one dropped.
    position = torch.arange(n, dtype=torch.float64)
    width = config.tukey_alpha * n / 2.0
    edge = torch.minimum(position, n - position)
    window = torch.where(
        edge < width, 0.5 * (1 - torch.cos(torch.pi * edge / width)), torch.ones(n, dtype=torch.float64)
    )
    return window.float().to(device)


@lru_cache(maxsize=32)
def _scaled_window(config: FrontendConfig, device: torch.device) -> Tensor:
    window = _window(config, device)  # pyright: ignore[reportArgumentType]
    if config.scaling == "power":
        return window
    # One-sided: every bin gets the energy of its negative frequency as well.
    return window * (2 / (config.sample_rate_hz * window.square().sum())).sqrt()


@lru_cache(maxsize=32)
def _mel_blocks(config: FrontendConfig, device: torch.device) -> list[tuple[int, int, Tensor]]:
    """The mel bank as `(first bin, last bin + 1, (bins, bands) weights)` of 16 bands each: most of it is zero."""
    blocks = []
    for bands in _mel_bank(config, device).split(16, dim=1):  # pyright: ignore[reportArgumentType]
        used = bands.any(1).nonzero()
        first, end = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
        blocks.append((first, end, bands[first:end].contiguous()))
    return blocks


@lru_cache(maxsize=32)
def _mel_bank(config: FrontendConfig, device: torch.device) -> Tensor:
    """`(n_fft / 2 + 1, mel_bins)` float32."""
    assert config.mel_bins is not None
    bank = torchaudio.functional.melscale_fbanks(
        n_freqs=config.n_fft // 2 + 1,
        f_min=config.mel_min_hz,
        f_max=config.mel_max_hz or config.sample_rate_hz / 2,
        n_mels=config.mel_bins,
        sample_rate=config.sample_rate_hz,
        norm=None if config.mel_norm == "none" else config.mel_norm,
        mel_scale=config.mel_scale,
    )
    return bank.to(device)


def log_spectrogram(waveform: Tensor, config: FrontendConfig) -> Tensor:
    """`(..., T, F)` float32, `ln(power + floor)`, time-major; T = `config.frames(n)`.

    Args: waveform (..., n) float in [-1, 1] at `config.sample_rate_hz`.
    Raises: ValueError if the waveform is shorter than one segment.
    Source: for `remove_mean` with `density`, scipy.signal.spectrogram with its defaults (Welch's one-sided density),
    which the EZ-VSL family calls.
    """
    if config.frames(waveform.shape[-1]) < 1 or (config.centered and waveform.shape[-1] <= config.n_fft // 2):
        raise ValueError(f"{waveform.shape[-1]} samples are fewer than one segment of {config.n_fft}")
    x = waveform.float()
    if config.centered:
        half = config.n_fft // 2
        lead = x.shape[:-1]
        x = torch.nn.functional.pad(x.reshape(1, -1, x.shape[-1]), (half, half), mode="reflect").reshape(*lead, -1)
    segments = x.unfold(-1, config.n_fft, config.hop)
    if segments.ndim == 2 and segments.numel() > _LONG and x.device.type == "cpu":
        # Piece by piece: blocks of megabytes come from the kernel, which takes twice as long as the arithmetic.
        pieces = segments.split(max(1, _PIECE // config.n_fft))
        return torch.cat([_log_power(piece, config) for piece in pieces])
    return _log_power(segments, config)


def _log_power(segments: Tensor, config: FrontendConfig) -> Tensor:
    """`(..., T, F)` of the segments `(..., T, n_fft)`."""
    if config.remove_mean:
        segments = segments - segments.mean(-1, keepdim=True)
    window = _scaled_window(config, segments.device)  # pyright: ignore[reportArgumentType]
    spectrum = torch.fft.rfft(segments * window)
    squares = torch.view_as_real(spectrum).square()  # side by side, in one pass
    power = squares[..., 0] + squares[..., 1]
    if config.scaling == "density":
        power[..., 0] *= 0.5  # zero and half the rate have no negative frequency
        if config.n_fft % 2 == 0:
            power[..., -1] *= 0.5
    if config.mel_bins:
        blocks = _mel_blocks(config, segments.device)  # pyright: ignore[reportArgumentType]
        power = torch.cat([power[..., first:end] @ weights for first, end, weights in blocks], dim=-1)
    power = power.add_(config.floor) if config.floor_rule == "add" else power.clamp_min_(config.floor)
    return power.log_()


def code_range(config: FrontendConfig) -> tuple[float, float]:
    """`(low, high)`, what the 8-bit codes 0 and 255 of a stored spectrogram stand for: the floor, and a level that no
    sound within [-1, 1] exceeds.
    """
    window = _window(config, torch.device("cpu")).double()  # pyright: ignore[reportArgumentType]
    # Cauchy-Schwarz; taking the mean away only lowers the energy. By Parseval it bounds the sum over all bins too.
    energy = config.n_fft * window.square().sum().item()
    highest = energy if config.remove_mean else min(energy, window.sum().item() ** 2)
    if config.mel_bins:
        bank = _mel_bank(config, torch.device("cpu")).double()  # pyright: ignore[reportArgumentType]
        highest = min(bank.sum(0).max().item() * highest, bank.max().item() * energy)
    if config.scaling == "density":
        highest *= 2 / (config.sample_rate_hz * window.square().sum().item())
    return math.log(config.floor), math.log(highest + config.floor)


def to_codes(log_power: Tensor, low: float, high: float) -> Tensor:
    """uint8 codes of a log-spectrogram, evenly spaced from `low` to `high`; half a step off at most between them."""
    return ((log_power - low) * (255 / (high - low))).round_().clamp_(0, 255).to(torch.uint8)


def from_codes(codes: Tensor, low: float, high: float) -> Tensor:
    """The float32 log-spectrogram of such codes."""
    return _decode(codes.float(), low, high)


def _decode(codes: Tensor, low: float, high: float) -> Tensor:
    return codes.mul_((high - low) / 255).add_(low)


def normalise(log_power: Tensor, config: FrontendConfig) -> Tensor:
    """A time-major window `(B, T, F)` of any float type as a method's input: `(B, 1, F, T)` float32, a view in time."""
    scaled = _scale(log_power.to(torch.float32, copy=True), config)
    return scaled.transpose(1, 2).unsqueeze(1)


def normalise_apart(windows: Sequence[np.ndarray], codes: tuple[float, float] | None, config: FrontendConfig) -> Tensor:
    """`normalise` of B windows `(T, F)` on the CPU that were not gathered: float16, or uint8 codes of that range.

    The same values in less time, because a clip stays in the processor's cache from the first pass to the last.
    """
    buffer = np.empty_like(windows[0])  # torch takes no read-only arrays
    stored, log_power = torch.from_numpy(buffer), torch.empty(buffer.shape)
    scaled = np.empty((len(windows), *buffer.shape), np.float32)
    for row, window in enumerate(windows):
        buffer[...] = window
        log_power.copy_(stored)
        if codes:
            _decode(log_power, *codes)
        # Not in place: what torch writes to far memory is read from there first, what numpy copies is not.
        scaled[row] = _scale(log_power, config).numpy()
    return torch.from_numpy(scaled).transpose(1, 2).unsqueeze(1)


def _scale(log_power: Tensor, config: FrontendConfig) -> Tensor:
    # In place and only what is needed: on a CPU these passes cost as much as resizing the picture.
    if config.offset:
        log_power += config.offset
    if config.divisor != 1:
        log_power *= 1 / config.divisor  # a third of a division's time
    return log_power


@lru_cache(maxsize=32)
def _resampler(rate_hz: int, new_rate_hz: int, device: torch.device) -> torchaudio.transforms.Resample:
    return torchaudio.transforms.Resample(rate_hz, new_rate_hz).to(device)


@lru_cache(maxsize=32)
def _resampling_bands(
    rate_hz: int, new_rate_hz: int, device: torch.device
) -> tuple[int, list[tuple[int, int, Tensor]]]:
    """Half width of the kernel, and for each band of output phases which of its taps are not zero, and them."""
    made: Any = _resampler(rate_hz, new_rate_hz, device)
    bands = []
    for phases in made.kernel[:, 0].split(_PHASES):
        used = phases.abs().sum(0).nonzero()
        first, end = int(used[0]), int(used[-1]) + 1
        bands.append((first, end, phases[:, first:end].T.contiguous()))
    return made.width, bands


def resample(waveform: Tensor, rate_hz: int, new_rate_hz: int) -> Tensor:
    """`(..., n)` float at another rate, by windowed sinc (torchaudio's defaults: width 6, roll-off 0.99, Hann).

    The result is held within [-1, 1], as a file of it would be.
    """
    if rate_hz == new_rate_hz:
        return waveform
    common = math.gcd(rate_hz, new_rate_hz)
    step, phases = rate_hz // common, new_rate_hz // common
    if phases < _PHASES:
        return _resampler(rate_hz, new_rate_hz, waveform.device)(waveform).clamp_(-1, 1)
    # torchaudio's convolution multiplies mostly by zeros here: 44.1 kHz to 16 kHz takes a quarter of its time this way.
    width, bands = _resampling_bands(rate_hz, new_rate_hz, waveform.device)  # pyright: ignore[reportArgumentType]
    blocks = torch.nn.functional.pad(waveform, (width, width + step)).unfold(-1, 2 * width + step, step)
    resampled = torch.cat([blocks[..., first:end] @ taps for first, end, taps in bands], dim=-1).flatten(-2)
    return resampled[..., : -(-waveform.shape[-1] * phases // step)].clamp_(-1, 1)


def lengthen(waveform: Tensor, samples: int, rule: str) -> Tensor:
    """`(..., n)` with n at least `samples`: repeated from its start and cut (rule "tile"), or silence added ("pad")."""
    missing = samples - waveform.shape[-1]
    if missing <= 0:
        return waveform
    if rule == "pad":
        return torch.nn.functional.pad(waveform, (0, missing))
    return torch.cat([waveform] * -(-samples // waveform.shape[-1]), dim=-1)[..., :samples]
