from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.pack_rate import make_video
from preprocess.sound import read_sound
from preprocess.video import read_pictures


@pytest.mark.slow
def test_every_stage_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "videos").mkdir()
    make_video(tmp_path / "videos" / "a.mp4", seconds=6.0, width=128, height=96)
    assert read_pictures(tmp_path / "videos" / "a.mp4", [5.0], 96, 90)[0].original == (128, 96)
    sound = read_sound(tmp_path / "videos" / "a.mp4")
    assert (sound.rate_hz, sound.channels) == (44100, 2) and sound.samples.any()
    options = ["--clips", "4", "--rounds", "3", "--scale", "40", "--videos", str(tmp_path / "videos")]
    assert main(["pack_rate", *options, "--work", str(tmp_path), "--out", str(tmp_path / "rows")]) == 0
    lines = (tmp_path / "rows" / "pack_rate.csv").read_text().splitlines()
    assert len(lines) == 1 + 3 * 8
    shown = " ".join(capsys.readouterr().out.split())
    assert "40 clips by 1 processes" in shown and "144,000 clips at" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows", "videos"]
