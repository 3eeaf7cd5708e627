"""Single clips for people: the frame that is scored, its truth, and a sound that plays."""

import io
from pathlib import Path

import av
import numpy as np

from configs.schema import ImageConfig
from pipeline.excerpts import SOUND_S, Excerpts, _mp3
from pipeline.store import Store


def test_a_clip_is_seen_and_heard(packed_store: Path):
    with Store(packed_store) as store:
        excerpts = Excerpts(store, ImageConfig())
        assert "clip_03" in excerpts and "clip_99" not in excerpts
        for clip_id, number in zip(store.index["clip_id"], range(len(store))):
            found = excerpts.of(clip_id)
            (_, width, height), *_ = store.index["frames"][number]
            assert found.image.shape == (height, width, 3) and found.image.dtype == np.uint8
            red, _, _ = found.image[height // 4, width // 5].astype(int)
            assert red > 150  # the coloured square that the box is around
            assert found.truth is not None and found.truth.boxes is not None
            np.testing.assert_allclose(found.truth.boxes[0, :4], [1 / 8, 1 / 8, 1 / 3, 1 / 2], atol=1e-6)
            assert found.sound is not None
            with av.open(io.BytesIO(found.sound)) as sound:
                assert sound.duration is not None
                seconds = sound.duration / av.time_base
            assert abs(seconds - store.index["waveform_samples"][number] / 16000) < 0.15


def test_sounds_keep_their_pitch_and_are_small():
    time_s = np.arange(round(SOUND_S * 16000)) / 16000
    data = _mp3(np.round(np.sin(2 * np.pi * 440 * time_s) * 16000).astype(np.int16), 16000)
    assert len(data) < 40_000
    with av.open(io.BytesIO(data)) as sound:
        heard = np.concatenate([frame.to_ndarray()[0] for frame in sound.decode(audio=0)])
    spectrum = np.abs(np.fft.rfft(heard))
    assert abs(np.argmax(spectrum) * 16000 / len(heard) - 440) < 2
