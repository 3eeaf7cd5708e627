import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from preprocess.clip import make_record
from preprocess.layout import SourceClip
from preprocess.options import PackConfig
from preprocess.quality import (
    CLIP_FLAGS,
    STORE_FLAGS,
    Quality,
    clip_flags,
    content_hash,
    earlier_alike,
    first_alike,
    sound_measures,
)
from preprocess.refusals import Refused
from preprocess.video import read_pictures
from tests.conftest import make_clip, numbered_picture, tone, write_wav


def photo(seed: int, width: int = 160, height: int = 120) -> np.ndarray:
    """`(height, width, 3)` uint8: smooth blots, different for every seed."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def noise(seed: int, seconds: float = 2.0, level: float = 0.1) -> np.ndarray:
    """`(n,)` int16 at 16 kHz that swells and fades in its own way."""
    rng = np.random.default_rng(seed)
    swell = np.interp(np.linspace(0, 40, round(16000 * seconds)), np.arange(41), rng.uniform(0.1, 1, 41))
    return (rng.normal(size=len(swell)) * swell * level * 32767).clip(-32767, 32767).astype(np.int16)


def flags(root: Path, config: PackConfig | None = None, **clip) -> list[str]:
    config = config or PackConfig()
    _, quality = make_record(SourceClip(clip_id="a", **clip), root, config)
    said = clip_flags(quality, config.short_side_px, config.waveform_rate_hz if config.waveform else 0)
    assert set(said) == set(CLIP_FLAGS)
    return [name for name, value in said.items() if value]


def test_each_flag_of_a_clip(tmp_path: Path):
    Image.fromarray(photo(0, 340, 256)).save(tmp_path / "a.png")
    Image.fromarray(photo(0, 200, 150)).save(tmp_path / "small.png")
    Image.fromarray(np.full((256, 340, 3), 90, np.uint8)).save(tmp_path / "blank.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(photo(0, 340, 256)).save(tmp_path / "turned.jpg", exif=turned)
    for name, samples, rate_hz in (
        ("a", noise(0), 16000),
        ("quiet", (noise(0) // 4000).astype(np.int16), 16000),
        ("loud", (noise(0).astype(int) * 30).clip(-32768, 32767).astype(np.int16), 16000),
        ("low", tone(2.0, 8000)[:, 0], 8000),
    ):
        write_wav(tmp_path / f"{name}.wav", samples, rate_hz)
    assert flags(tmp_path, image="a.png", audio="a.wav") == []
    assert flags(tmp_path, image="a.png", audio="quiet.wav") == ["silent"]
    assert flags(tmp_path, image="a.png", audio="loud.wav") == ["clipped"]
    assert flags(tmp_path, image="a.png", audio="low.wav") == ["low_rate"]
    assert flags(tmp_path, PackConfig(waveform=False), image="a.png", audio="low.wav") == []
    assert flags(tmp_path, image="a.png", audio="a.wav", duration_s=2.05) == []
    assert flags(tmp_path, image="a.png", audio="a.wav", duration_s=2.5) == ["short"]
    assert flags(tmp_path, image="small.png", audio="a.wav") == ["small"]
    assert flags(tmp_path, PackConfig(short_side_px=100), image="small.png", audio="a.wav") == []
    assert flags(tmp_path, image="blank.png", audio="a.wav") == ["blank"]
    assert flags(tmp_path, image="turned.jpg", audio="a.wav") == ["rotated"]


def test_a_video_of_one_still_picture_is_static(tmp_path: Path):
    def shown(number: int, width: int, height: int) -> np.ndarray:
        return photo(1, width, height)

    def talking(number: int, width: int, height: int) -> np.ndarray:
        picture = photo(1, width, height)
        picture[60:80, 60:90] = 255 * (number // 5 % 2)  # a mouth
        return picture

    for name, picture in (("still", shown), ("talking", talking), ("moving", numbered_picture)):
        make_clip(tmp_path / f"{name}.mp4", seconds=3.0, fps=25, codec="libx264", picture=picture)
        motion = read_pictures(tmp_path / f"{name}.mp4", [2.0], 64, 90)[0].motion
        assert (motion < 0.002) == (name == "still"), (name, motion)
    assert math.isnan(read_pictures(tmp_path / "still.mp4", [0.3], 64, 90)[0].motion)  # one picture was decoded
    assert "static" not in flags(tmp_path, PackConfig(annotated_s=0.3), video="still.mp4")


def test_a_flag_refuses_only_where_it_is_asked_for(tmp_path: Path):
    Image.fromarray(photo(0, 200, 150)).save(tmp_path / "a.png")
    write_wav(tmp_path / "a.wav", noise(0), 16000)
    clip = SourceClip(clip_id="a", image="a.png", audio="a.wav")
    record, _ = make_record(clip, tmp_path, PackConfig(drop=("silent", "blank")))
    assert record.clip_id == "a"
    with pytest.raises(Refused, match="small: --drop small: the picture's short side"):
        make_record(clip, tmp_path, PackConfig(drop=("small",)))


def test_the_run_of_a_sound_outlives_another_level_and_rate():
    first = sound_measures(noise(3))
    softer = sound_measures((noise(3) * 0.3).astype(np.int16))
    half = sound_measures(noise(3).reshape(-1, 2).mean(1).astype(np.int16))
    other = sound_measures(noise(4))
    assert first["sound"] != softer["sound"] != half["sound"]
    assert (first["sound_run"] ^ softer["sound_run"]).bit_count() <= 2
    assert (first["sound_run"] ^ half["sound_run"]).bit_count() <= 12
    assert (first["sound_run"] ^ other["sound_run"]).bit_count() > 12
    assert first["rms_dbfs"] - softer["rms_dbfs"] == pytest.approx(-20 * math.log10(0.3), abs=0.1)
    full = np.full(1000, 32767, np.int16)
    assert sound_measures(full)["rms_dbfs"] == pytest.approx(0, abs=1e-6) and sound_measures(full)["clipped_share"] == 1
    assert sound_measures(full * 0)["rms_dbfs"] == pytest.approx(-120)


@pytest.mark.parametrize("distance", [0, 1, 3, 5])
def test_alike_hashes_are_found_as_by_comparing_all(distance: int):
    rng = np.random.default_rng(distance)
    hashes = rng.integers(0, 2**64, 400, np.uint64)
    for number in range(1, 200):  # copies with up to six bits changed, in any band
        change = np.bitwise_or.reduce(np.uint64(1) << rng.integers(0, 64, rng.integers(1, 7), np.uint64))
        hashes[rng.integers(400)] = hashes[rng.integers(400)] ^ (change if number % 3 else np.uint64(0))
    near = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= distance
    wanted = [row.argmax() if row.argmax() < number else -1 for number, row in enumerate(near)]
    assert first_alike(hashes, distance).tolist() == wanted and max(wanted) >= 0


def quality(**columns) -> Quality:
    count = len(next(iter(columns.values())))
    rng = np.random.default_rng(0)
    given = {name: np.asarray(values) for name, values in columns.items()}
    hashes = {
        name: rng.integers(0, 2**64, count, np.uint64) for name in ("picture", "picture_look", "sound", "sound_run")
    }
    plain = {name: np.full(count, 1.0) for name in ("duration_s", "asked_s", "width", "height", "motion", "rotated")}
    levels = {"deviation": np.full(count, 50.0), "rms_dbfs": np.full(count, -20.0)}
    return Quality(**{**hashes, **plain, **levels, **given})


def test_doubles_name_the_first_of_them():
    look = np.uint64(0x0F0F_3355_AA0F_1234)
    found = earlier_alike(
        quality(
            picture=np.array([7, 8, 7, 9, 7], np.uint64),
            picture_look=np.array([look, 1 << 60, look, look ^ np.uint64(0b11), ~look], np.uint64),
            sound=np.array([1, 2, 3, 2, 2], np.uint64),
            rms_dbfs=[-20.0, -20.0, -20.0, -20.0, -90.0],
        )
    )
    assert set(found) == set(STORE_FLAGS)
    assert found["same_picture"].tolist() == [-1, -1, 0, -1, 0]
    assert found["like_picture"].tolist() == [-1, -1, -1, 0, -1]  # a double is not also alike
    assert found["same_sound"].tolist() == [-1, -1, -1, 1, -1]  # silence is nobody's double
    assert found["like_sound"].tolist() == [-1] * 5


def test_content_hash_reads_arrays_whatever_their_layout():
    array = np.arange(20, dtype=np.int16).reshape(10, 2)
    assert content_hash(array[:, 0]) == content_hash(np.ascontiguousarray(array[:, 0]))
    assert content_hash(b"ab", b"c") == content_hash(b"abc") != content_hash(b"abd")
