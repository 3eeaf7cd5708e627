from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from configs.load import load_frontend
from pipeline.frontends import log_spectrogram
from preprocess.clip import make_record
from preprocess.features import Resampled, spectrogram, storage
from preprocess.layout import SourceClip
from preprocess.options import PackConfig
from preprocess.sound import Sound, read_sound
from tests.conftest import make_clip, tone, write_wav

GOLDEN = Path(__file__).parents[1] / "golden" / "preprocess" / "ez_vsl_stereo.npz"
"""What the authors' reader makes of the middle 3 s of a stereo file, every 4th bin and frame, before their / 12."""


def noise_samples(count: int) -> np.ndarray:
    return np.round(np.random.default_rng(5).normal(0, 8000, count)).clip(-32768, 32767).astype(np.int16)


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
    wide, _ = spectrogram(sound, config, "float16")
    narrow, _ = spectrogram(sound, load_frontend("logmel"), "float16")
    assert wide.dtype == np.float16 and wide.shape == (276, 128)
    assert narrow.shape == (101, 128)
    assert wide[100].max() > 3 and narrow[50].max() < -5


@pytest.mark.parametrize("name", ["logmel", "logmel64", "ez_vsl"])
def test_a_very_short_sound_gives_a_segment(name: str):
    config = load_frontend(name)
    samples = tone(0.015, 16000)[:, 0]
    stored, _ = spectrogram(Resampled(sound_of(samples, 16000)), config, "float16")
    assert stored.shape == (config.frames(config.n_fft), config.bins) and np.isfinite(stored).all()
    tiled = torch.from_numpy(np.tile(samples, 5)[: config.n_fft] / np.float32(32767))
    np.testing.assert_allclose(stored, log_spectrogram(tiled, config).numpy(), atol=8e-3)


def test_the_waveform_at_its_own_rate_is_the_sound_itself():
    samples = np.random.default_rng(0).integers(-32767, 32768, 5000).astype(np.int16)
    assert (Resampled(sound_of(samples, 16000)).waveform(16000) == samples).all()


@pytest.mark.parametrize("name", ["logmel", "ez_vsl", "jsa"])
def test_what_storage_costs(name: str):
    config = load_frontend(name)
    samples = np.concatenate([np.zeros(4000, np.int16), tone(1.0, 16000)[:, 0], noise_samples(16000)])
    sound = Resampled(sound_of(samples, 16000))
    exact = log_spectrogram(sound.at(16000), config).numpy()
    half, unmeasured = spectrogram(sound, config, "float16")
    # Half a step of float16 between 16 and 32: ln(1e-7) is -16.1.
    assert np.abs(half - exact).max() <= 2**-7 and unmeasured is None
    codes, error = spectrogram(sound, config, "uint8")
    assert error is not None
    said = storage(config, "uint8", [error, error / 2])
    decoded = said["low"] + codes.astype(np.float64) * (said["high"] - said["low"]) / 255
    assert np.abs(decoded - exact).max() == pytest.approx(error, abs=1e-5)
    assert error == said["max_error"] <= (said["high"] - said["low"]) / 510 + 1e-5
    assert storage(config, "float16", []) == {"dtype": "float16"}


@pytest.mark.parametrize("name", ["stereo.wav", "stereo.mkv"])
def test_a_front_end_of_the_first_channel_hears_no_other(tmp_path: Path, name: str):
    path = tmp_path / name
    samples = np.concatenate([tone(1.0, 16000, 440), tone(1.0, 16000, 3000)], axis=1)
    if name.endswith("wav"):
        write_wav(path, samples, 16000)
    else:
        make_clip(path, seconds=1.0, channels=2, sound=samples, audio_codec="flac")
    cv2.imwrite(str(tmp_path / "i.png"), np.zeros((64, 64, 3), np.uint8))
    first, mean = load_frontend("ssl_align"), load_frontend("ez_vsl")
    clip = SourceClip(clip_id="a", image="i.png", audio=name)
    record, _ = make_record(clip, tmp_path, PackConfig(frontends=(first, mean)))
    np.testing.assert_array_equal(
        record.spectrograms["ssl_align"],
        log_spectrogram(torch.from_numpy(samples[:, 0] / np.float32(32767)), first).half(),
    )
    assert record.waveform is not None and record.source.channels == 2
    np.testing.assert_allclose(record.waveform, samples.mean(1), atol=1)
    heard = record.spectrograms["ez_vsl"].astype(np.float32)
    assert heard[:, 3000 * 512 // 16000].min() > -10 > record.spectrograms["ssl_align"][:, 3000 * 512 // 16000].max()
