"""What many tests need: clips made in code, and a store packed from them."""

import json
import os
import wave
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from configs.load import load_frontend
from preprocess.engines.local import Local
from preprocess.layouts.manifest import Manifest
from preprocess.options import PackConfig
from preprocess.writer import pack

if not torch.cuda.is_available():
    # Before anything imports Triton, whose own functions are made for the interpreter or for a GPU.
    os.environ["TRITON_INTERPRET"] = "1"
# What a table says is not to hang on how wide the terminal is; pytest-xdist says 80 to its workers.
os.environ["COLUMNS"] = "200"

PACKED_CLIPS = 24


def tone(seconds: float, rate_hz: int, pitch_hz: float = 440.0, channels: int = 1) -> np.ndarray:
    """`(n, channels)` int16: a sine, at half of full scale in the first channel and a fifth of it in the others."""
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    level = np.where(np.arange(channels) == 0, 0.5, 0.2)
    return np.round(np.sin(2 * np.pi * pitch_hz * time_s)[:, None] * level * 32767).astype(np.int16)


def write_wav(path: Path, samples: np.ndarray, rate_hz: int) -> Path:
    """A 16-bit WAV file of `(n,)` or `(n, channels)` int16."""
    samples = samples.reshape(len(samples), -1)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def numbered_picture(number: int, width: int, height: int, colour: tuple[int, int, int] = (200, 60, 40)) -> np.ndarray:
    """`(height, width, 3)` uint8 RGB: a square in the upper left on a grey that tells the pictures of a clip apart."""
    picture = np.full((height, width, 3), 40 + 8 * (number % 20), np.uint8)
    picture[height // 8 : height // 2, width // 8 : width // 3] = colour
    return picture


def make_clip(
    path: Path,
    *,
    seconds: float = 2.0,
    width: int = 160,
    height: int = 120,
    fps: int = 10,
    rate_hz: int = 16000,
    channels: int = 1,
    pitch_hz: float = 440.0,
    audio: bool = True,
    video: bool = True,
    sound: np.ndarray | None = None,
    picture: Callable[[int, int, int], np.ndarray] = numbered_picture,
    codec: str = "mpeg4",
    b_frames: int = 0,
    audio_codec: str = "aac",
    sound_delay_s: float = 0.0,
) -> Path:
    """A file with video and sound; the container follows from the name (mp4, mkv, mov, avi).

    picture(number, width, height): `(height, width, 3)` uint8 RGB. sound: `(n, channels)` int16, or a tone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        pictures = container.add_stream(codec, rate=fps) if video else None
        layout = "mono" if channels == 1 else "stereo"
        heard = container.add_stream(audio_codec, rate=rate_hz, layout=layout) if audio else None
        if pictures is not None:
            assert isinstance(pictures, av.VideoStream)
            pictures.width, pictures.height, pictures.pix_fmt = width, height, "yuv420p"
            pictures.codec_context.thread_count = 1
            pictures.bit_rate = 400_000
            if b_frames:
                pictures.codec_context.max_b_frames = b_frames
            for number in range(round(seconds * fps)):
                frame = av.VideoFrame.from_ndarray(picture(number, width, height), format="rgb24")
                frame.pts = number
                container.mux(pictures.encode(frame))
            container.mux(pictures.encode(None))
        if heard is not None:
            assert isinstance(heard, av.AudioStream)
            samples = tone(seconds, rate_hz, pitch_hz, channels) if sound is None else sound
            piece = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout=layout)
            piece.sample_rate = rate_hz
            piece.pts = round(sound_delay_s * rate_hz)
            container.mux(heard.encode(piece))
            container.mux(heard.encode(None))
    return path


@pytest.fixture(scope="session")
def packed_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 24 made clips of 1.4 to 3.2 s and their `manifest.jsonl`: 16 of split train, 8 of split test.

    Every clip has one box around its coloured square; labels are "low" and "high", as its tone.
    """
    folder = tmp_path_factory.mktemp("clips")
    lines = []
    for number in range(PACKED_CLIPS):
        clip_id = f"clip_{number:02d}"
        colour = (200, 60 + 6 * number, 250 - 9 * number)
        width, height = ((160, 120), (128, 128), (96, 160))[number % 3]
        make_clip(
            folder / f"{clip_id}.mp4",
            seconds=1.4 + 0.6 * (number % 4),
            width=width,
            height=height,
            channels=1 + number % 2,
            rate_hz=(16000, 22050)[number % 2],
            pitch_hz=(300, 2500)[number % 2] + 20 * number,
            picture=lambda n, w, h, colour=colour: numbered_picture(n, w, h, colour),
        )
        lines.append(
            {
                "clip_id": clip_id,
                "video": f"{clip_id}.mp4",
                "split": "train" if number < 16 else "test",
                "label": ("low", "high")[number % 2],
                "boxes": [[1 / 8, 1 / 8, 1 / 3, 1 / 2]],
            }
        )
    (folder / "manifest.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


@pytest.fixture(scope="session")
def packed_store(packed_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of `packed_clips`: annotated frames, front-ends logmel64 and ez_vsl, waveform at 16 kHz, three shards.

    For reading only: it serves the whole test session. A test that changes a store must copy it first.
    """
    store = tmp_path_factory.mktemp("stores") / "made"
    config = PackConfig(frontends=(load_frontend("logmel64"), load_frontend("ez_vsl")))
    layout = Manifest(Manifest.Config(name="manifest"), packed_clips)
    result = pack(layout, store, config, Local(Local.Config(name="local", workers=0)), dataset="made")
    assert result.packed == PACKED_CLIPS and not result.refused
    return store
