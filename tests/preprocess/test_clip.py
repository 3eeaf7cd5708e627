import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from configs.errors import UserError
from configs.load import check, load_frontend
from preprocess.clip import annotated_instant, frame_times, make_record
from preprocess.layout import SourceClip
from preprocess.options import PackConfig
from preprocess.refusals import Refused
from tests.conftest import make_clip, numbered_picture, tone, write_wav


@pytest.mark.parametrize(
    ("given_s", "duration_s", "wanted_s"), [(None, 10.0, 5.0), (None, 5.0, 5.0), (None, 4.0, 2.0), (1.5, 4.0, 1.5)]
)
def test_the_annotated_instant(given_s: float | None, duration_s: float, wanted_s: float):
    assert annotated_instant(SourceClip(clip_id="a", annotated_s=given_s), duration_s, 5.0) == wanted_s


def test_frame_rules():
    assert frame_times(("annotated",), 5.0, 10.0) == [5.0]
    assert frame_times(("middle", "annotated"), 2.0, 10.0) == [2.0, 5.0]
    assert frame_times(("1fps",), 9.0, 3.0) == [0.0, 1.0, 2.0]
    assert frame_times(("0.5fps", "annotated"), 2.0, 4.1) == [0.0, 2.0, 4.0]
    with pytest.raises(Refused, match="too_large"):
        frame_times(("100fps",), 1.0, 10.1)
    with pytest.raises(UserError, match="frames: '1 fps' is none of annotated, middle"):
        check(PackConfig, {"frames": ["1 fps"]}, "x")


def test_a_window_of_a_video_with_several_frames(tmp_path: Path):
    make_clip(tmp_path / "a.mp4", seconds=4.0, rate_hz=16000)
    clip = SourceClip(clip_id="a", video="a.mp4", start_s=1.0, duration_s=2.0, boxes=[[0, 0, 1, 1, 0]])
    config = PackConfig(frames=("1fps", "annotated"), annotated_s=0.5, frontends=(load_frontend("ez_vsl"),))
    record, _ = make_record(clip, tmp_path, config)
    assert [round(frame.time_s, 6) for frame in record.frames] == [0.0, 0.5, 1.0]
    shown = [cv2.imdecode(np.frombuffer(frame.jpeg, np.uint8), cv2.IMREAD_GRAYSCALE) for frame in record.frames]
    greys = [picture[-1, -1] for picture in shown if picture is not None]
    assert greys == pytest.approx([120, 160, 40], abs=6)  # pictures 10, 15 and 20
    assert record.annotated_s == 0.5 and record.source.duration_s == 2.0 and record.source.start_s == 1.0
    assert record.waveform is not None and len(record.waveform) == 32000
    assert record.spectrograms["ez_vsl"].shape == (133, 257)


def test_an_image_with_its_sound_and_mask(tmp_path: Path):
    Image.fromarray(numbered_picture(0, 300, 200)).save(tmp_path / "a.png")
    Image.fromarray(np.eye(20, 30, dtype=np.uint8) * 255).save(tmp_path / "m.png")
    write_wav(tmp_path / "a.wav", tone(2.0, 8000, channels=2), 8000)
    clip = SourceClip(clip_id="a", image="a.png", audio="a.wav", mask="m.png", extra={"k": 1})
    record, _ = make_record(clip, tmp_path, PackConfig(short_side_px=100, frames=("1fps",), waveform_rate_hz=8000))
    (frame,) = record.frames
    assert (frame.width, frame.height, frame.time_s) == (150, 100, 1.0)
    assert (record.source.file, record.source.audio_file, record.source.width) == ("a.png", "a.wav", 300)
    assert (record.source.channels, record.source.sample_rate_hz, record.sample_rate_hz) == (2, 8000, 8000)
    assert record.mask is not None and record.mask.shape == (20, 30) and record.boxes is None
    assert record.extra == {"k": 1} and record.spectrograms == {}


def test_no_waveform_when_none_is_asked_for(tmp_path: Path):
    make_clip(tmp_path / "a.mp4", seconds=1.0)
    record, _ = make_record(SourceClip(clip_id="a", video="a.mp4"), tmp_path, PackConfig(waveform=False))
    assert record.waveform is None and record.sample_rate_hz is None


def reason(clip: SourceClip, root: Path) -> str:
    with pytest.raises(Refused) as caught:
        make_record(clip, root, PackConfig())
    return caught.value.reason


def test_clips_are_refused_with_the_right_reason(tmp_path: Path):
    make_clip(tmp_path / "good.mp4", seconds=2.0)
    make_clip(tmp_path / "silent.mp4", seconds=2.0, audio=False)
    assert reason(SourceClip(clip_id="a", video="good.mp4", boxes=[[10, 10, 90, 90, 0]]), tmp_path) == "bad_boxes"
    assert reason(SourceClip(clip_id="a", video="good.mp4", mask="none.png"), tmp_path) == "missing_file"
    assert reason(SourceClip(clip_id="a", video="good.mp4", annotated_s=5.0), tmp_path) == "no_frame"
    assert reason(SourceClip(clip_id="a", video="silent.mp4"), tmp_path) == "no_audio"
    assert reason(SourceClip(clip_id="a", video="good.mp4", start_s=2.0), tmp_path) == "too_short"


def test_a_broken_file_without_sound_is_called_broken(tmp_path: Path):
    clip = make_clip(tmp_path / "a.mp4", seconds=3.0, audio=False)
    data = bytearray(clip.read_bytes())
    data[len(data) // 3 : len(data) // 2] = bytes(range(256)) * (len(data) // 512)
    del data[clip.stat().st_size :]
    clip.write_bytes(data)
    assert reason(SourceClip(clip_id="a", video="a.mp4"), tmp_path) in ("decode_error", "unreadable")


def test_the_example_clips_are_described_as_they_are():
    folder = Path(__file__).parents[2] / "examples" / "clips"
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert {line["video"] for line in lines} == {path.name for path in folder.glob("*.mp4")}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2_000_000
    assert [line["split"] for line in lines].count("test") == 4 == sum("boxes" in line for line in lines)
    readme = (folder / "README.md").read_text()
    assert all(line["clip_id"] in readme for line in lines)
