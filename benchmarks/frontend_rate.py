"""Question: what does a spectrogram cost when it is computed from the waveform, and would storing it pay?

Method: one batch of noise of 3 s at each front-end's own rate: `pipeline.frontends`, as packing and loaders call it, on
the device; as the ceiling torch.stft alone with the same segments, without power, mel bank and logarithm; torchaudio's
transform with the logarithm; and as the field's way scipy, clip by clip on the CPU, with the same mel bank. On one
thread of a CPU. scipy is in the extra `bench`; without it that line is left out.
A good answer: no slower than torchaudio, and a third of the rate of torch.stft alone or more. Where a clip costs more
than its picture's decoding (see `ceilings`), store the spectrogram; on a GPU, where a batch of 256 should take a few
milliseconds, store the waveform, and try front-ends freely.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchaudio
from rich.console import Console
from torch import Tensor

from benchmarks.harness import measure, report
from benchmarks.options import chosen_device, device_option
from benchmarks.suite import missing
from configs.allocator import keep_freed_memory
from configs.errors import UserError
from configs.load import frontend_names, load_frontend
from configs.resolve import check_name
from configs.schema import FrontendConfig
from pipeline.frontends import log_spectrogram, normalise

QUICK: dict[str, Any] = {"frontends": ["ez_vsl", "logmel"], "batch": 16, "device": "cpu"}
GPU: dict[str, Any] = {"batch": 256, "device": "cuda"}


def add_options(parser: Any) -> None:
    """The options of this benchmark."""
    parser.add_argument("--frontends", nargs="+", help="default: all of configs/frontends")
    parser.add_argument("--batch", type=int, default=32, help="clips; default 32")
    parser.add_argument("--seconds", type=float, default=3.0, help="of sound; default 3")
    device_option(parser)


def run(
    store: Path,
    rounds: int,
    out: Path | None,
    frontends: list[str] | None = None,
    batch: int = 32,
    seconds: float = 3.0,
    device: str = "auto",
) -> None:
    """Measure, print, and append rows to `out`. No store is read."""
    for name in frontends or []:
        check_name("front-end", name, frontend_names())
    if min(batch, seconds) <= 0:
        raise UserError("--batch and --seconds must be above 0")
    place = chosen_device(device)
    keep_freed_memory()
    torch.set_num_threads(1)
    if missing(("scipy",)):
        Console().print("left out, as scipy is not installed: the field's way", soft_wrap=True)
    for name in frontends or frontend_names():
        config = load_frontend(name)
        samples = round(seconds * config.sample_rate_hz)
        waveforms = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (batch, samples)).astype(np.float32))
        figures = measure("frontend_rate", _variants(config, waveforms, place), rounds, device=place)
        facts = {"frontend": name, "batch": batch, "seconds": seconds, "device": place.type}
        report(figures, "torch.stft alone", out, facts, field="scipy", about=name)


def _variants(config: FrontendConfig, waveforms: Tensor, device: torch.device) -> dict[str, Callable[[], float]]:
    batch = len(waveforms)
    moved = waveforms.to(device)
    window = torch.hann_window(config.n_fft, device=device)
    spectrum: dict[str, Any] = {"n_fft": config.n_fft, "hop_length": config.hop, "center": config.centered}
    kind = torchaudio.transforms.MelSpectrogram if config.mel_bins else torchaudio.transforms.Spectrogram
    mel: dict[str, Any] = (
        {"sample_rate": config.sample_rate_hz, "n_mels": config.mel_bins, "f_min": config.mel_min_hz}
        if config.mel_bins
        else {}
    )
    transform: Any = kind(**spectrum, **mel).to(device)

    def ours() -> float:
        normalise(log_spectrogram(moved, config), config)
        return batch

    def stft() -> float:
        torch.stft(moved, **spectrum, window=window, return_complex=True)
        return batch

    def by_torchaudio() -> float:
        transform(moved).add_(config.floor).log_()
        return batch

    variants = {"torch.stft alone": stft, "ours": ours, "torchaudio": by_torchaudio}
    if not missing(("scipy",)):
        variants["scipy"] = _by_scipy(config, waveforms)
    return variants


def _by_scipy(config: FrontendConfig, waveforms: Tensor) -> Callable[[], float]:
    from scipy import signal

    clips = list(waveforms.numpy())
    bank = None
    if config.mel_bins:
        bank = torchaudio.functional.melscale_fbanks(
            config.n_fft // 2 + 1, config.mel_min_hz, config.sample_rate_hz / 2, config.mel_bins, config.sample_rate_hz
        ).T.contiguous()

    def run() -> float:
        for clip in clips:
            _, _, power = signal.spectrogram(
                clip, config.sample_rate_hz, nperseg=config.n_fft, noverlap=config.n_fft - config.hop
            )
            # The product by torch, which keeps to one thread.
            np.log((power if bank is None else (bank @ torch.from_numpy(power.copy())).numpy()) + config.floor)
        return len(clips)

    return run
