"""Pictures that are stored decoded."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from configs.load import load_frontend
from pipeline.record import decode, encode
from preprocess.clip import make_record
from preprocess.layout import SourceClip
from preprocess.options import PackConfig
from tests.conftest import make_clip


@pytest.mark.parametrize("pixels", ["jpeg", "raw", "both"])
def test_pixels_are_those_of_the_jpeg(tmp_path: Path, pixels: str):
    make_clip(tmp_path / "a.mp4", seconds=1.0, width=90, height=70)
    clip = SourceClip(clip_id="a", split="train", video="a.mp4")
    options = {"frames": ("2fps",), "frontends": (load_frontend("logmel64"),), "short_side_px": 48}
    reference, _ = make_record(clip, tmp_path, PackConfig(**options))
    record, _ = make_record(clip, tmp_path, PackConfig(**options, pixels=pixels))
    record = decode(encode(record))
    assert len(record.frames) == len(reference.frames) > 1
    for frame, other in zip(record.frames, reference.frames):
        assert other.jpeg is not None and other.pixels is None
        wanted = cv2.imdecode(np.frombuffer(other.jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
        assert (frame.jpeg is None) == (pixels == "raw") and (frame.pixels is None) == (pixels == "jpeg")
        assert frame.jpeg is None or bytes(frame.jpeg) == other.jpeg
        assert frame.pixels is None or np.array_equal(frame.pixels, wanted)
        assert (frame.width, frame.height) == wanted.shape[1::-1] == (62, 48)
