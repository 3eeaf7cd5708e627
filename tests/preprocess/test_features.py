from pathlib import Path

import numpy as np
import pytest
import torch

from configs.load import load_frontend
from pipeline.frontends import log_spectrogram
from preprocess.features import Resampled, spectrograms
from preprocess.media import Sound, read_sound
from tests.conftest import tone, write_wav

GOLDEN = Path(__file__).parents[1] / "golden" / "preprocess" / "ez_vsl_stereo.npz"
"""What the authors' reader makes of the middle 3 s of a stereo file, every 4th bin and frame, before their / 12."""


def sound_of(samples: np.ndarray, rate_hz: int) -> Sound:
    return Sound(samples=samples, rate_hz=rate_hz, source_rate_hz=rate_hz, channels=1)


def test_a_stereo_file_equals_what_the_authors_read_from_it(tmp_path: Path):
    rate_hz, seconds = 22050, 6
    time_s = np.arange(rate_hz * seconds) / rate_hz
    chirp = 0.5 * np.sin(2 * np.pi * (100 * time_s + 0.5 * (0.45 * rate_hz - 100) / seconds * time_s**2))
    noise = np.clip(0.1 * np.random.default_rng(9).standard_normal(len(time_s)), -1, 1)
    samples = np.round(np.stack([chirp, noise], 1) * 32767).astype(np.int16)
    sound = Resampled(read_sound(write_wav(tmp_path / "stereo.wav", samples, rate_hz)))
    start = (len(time_s) - 3 * rate_hz) // 2
    config = load_frontend("ez_vsl").model_copy(update={"sample_rate_hz": rate_hz})
    found = log_spectrogram(sound.at(rate_hz)[start : start + 3 * rate_hz], config).T.numpy()
    with np.load(GOLDEN) as golden:
        assert np.abs(found[::4, ::4] - golden["stereo_22k_6s"]).max() < 1e-4


def test_a_spectrogram_is_made_from_the_sounds_own_rate():
    # The stored 16 kHz waveform has no 10 kHz tone any more; a front-end at 44.1 kHz must still see it.
    config = load_frontend("logmel").model_copy(update={"name": "wide", "sample_rate_hz": 44100})
    sound = Resampled(sound_of(tone(1.0, 44100, 10_000)[:, 0], 44100))
    assert len(sound.waveform(16000)) == 16000 and np.abs(sound.waveform(16000)[1000:-1000]).max() < 150
    stored = spectrograms(sound, [config, load_frontend("logmel")])
    assert stored["wide"].dtype == np.float16 and stored["wide"].shape == (276, 128)
    assert stored["logmel"].shape == (101, 128)
    assert stored["wide"][100].max() > 3 and stored["logmel"][50].max() < -5


@pytest.mark.parametrize("name", ["logmel", "logmel64", "ez_vsl"])
def test_a_very_short_sound_gives_a_segment(name: str):
    config = load_frontend(name)
    samples = tone(0.015, 16000)[:, 0]
    stored = spectrograms(Resampled(sound_of(samples, 16000)), [config])[name]
    assert stored.shape == (config.frames(config.n_fft), config.bins) and np.isfinite(stored).all()
    tiled = torch.from_numpy(np.tile(samples, 5)[: config.n_fft] / np.float32(32767))
    np.testing.assert_allclose(stored, log_spectrogram(tiled, config).numpy(), atol=8e-3)


def test_the_waveform_at_its_own_rate_is_the_sound_itself():
    samples = np.random.default_rng(0).integers(-32767, 32768, 5000).astype(np.int16)
    assert (Resampled(sound_of(samples, 16000)).waveform(16000) == samples).all()
