import io
import os
import struct
import zlib
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from preprocess.containers import KeptFile
from preprocess.pictures import Picture, plain_jpeg, read_mask, read_still
from preprocess.refusals import Refused
from preprocess.sound import _decoded_sound, _plain_wav, read_sound
from preprocess.video import _nearest, read_pictures
from tests.conftest import make_clip, numbered_picture, tone, write_wav


def pixels(picture: Picture) -> np.ndarray:
    """The stored picture, RGB, as a browser shows it."""
    return np.asarray(Image.open(io.BytesIO(picture.jpeg)).convert("RGB")).astype(int)


def refusal(call, *args) -> str:
    with pytest.raises(Refused) as caught:
        call(*args)
    return caught.value.reason


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "avi"])
def test_the_nearest_pictures_come_in_one_pass(tmp_path: Path, suffix: str):
    clip = make_clip(tmp_path / f"clip.{suffix}", seconds=2.0, fps=10)
    found = read_pictures(clip, [0.0, 0.52, 0.54, 1.0, 9.0], 256, 90)
    assert [round(picture.time_s, 6) for picture in found] == [0.0, 0.5, 1.0, 1.9]
    for picture in found:
        grey = pixels(picture)[-20:, -20:].mean()
        assert grey == pytest.approx(40 + 8 * round(picture.time_s * 10), abs=5)
    assert found[0].size == found[0].original == (160, 120)


def test_display_times_that_avi_does_not_store(tmp_path: Path):
    clip = make_clip(tmp_path / "clip.avi", seconds=2.0, fps=10, codec="libx264")
    found = read_pictures(clip, [0.3, 1.0, 1.5], 256, 90)
    assert [round((pixels(picture)[-20:, -20:].mean() - 40) / 8) for picture in found] == [3, 10, 15]


def test_colours_are_the_right_way_round(tmp_path: Path):
    clip = make_clip(tmp_path / "clip.mp4", picture=lambda n, w, h: np.full((h, w, 3), (220, 40, 20), np.uint8))
    red, green, blue = pixels(read_pictures(clip, [1.0], 256, 90)[0]).mean((0, 1))
    assert red > 190 and green < 70 and blue < 50


@pytest.mark.parametrize(("width", "height", "size"), [(640, 360, (114, 64)), (96, 160, (64, 107)), (60, 40, (60, 40))])
def test_the_short_side_is_reduced_but_never_enlarged(tmp_path: Path, width: int, height: int, size: tuple[int, int]):
    clip = make_clip(tmp_path / "clip.mp4", seconds=0.5, width=width, height=height)
    picture = read_pictures(clip, [0.0], 64, 90)[0]
    assert picture.size == size and picture.original == (width, height)
    assert pixels(picture).shape == (size[1], size[0], 3)


@pytest.mark.parametrize(
    ("matrix", "corner"),
    [
        ((0, 1, -1, 0), "upper right"),  # shown turned clockwise by 90 degrees
        ((-1, 0, 0, -1), "lower right"),
        ((0, -1, 1, 0), "lower left"),
    ],
)
def test_turned_video_comes_upright(tmp_path: Path, matrix: tuple[int, ...], corner: str):
    clip = make_clip(tmp_path / "clip.mp4", width=160, height=96, audio=False)
    data = bytearray(clip.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    clip.write_bytes(data)
    picture = read_pictures(clip, [0.0], 256, 95)[0]
    assert picture.size == ((160, 96) if matrix[0] else (96, 160))
    red = pixels(picture)[:, :, 0] - pixels(picture)[:, :, 2]
    rows, columns = np.nonzero(red > 100)
    vertical = "upper" if rows.mean() < red.shape[0] / 2 else "lower"
    horizontal = "left" if columns.mean() < red.shape[1] / 2 else "right"
    assert f"{vertical} {horizontal}" == corner


def test_seeking_gives_what_reading_from_the_start_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clip = make_clip(tmp_path / "clip.mp4", seconds=45, fps=4, width=64, height=48)
    sought = read_pictures(clip, [33.3, 41.1], 256, 90)
    monkeypatch.setattr("preprocess.video._SEEK_BEYOND_S", 1e9)
    assert sought == read_pictures(clip, [33.3, 41.1], 256, 90)
    assert [round(picture.time_s, 3) for picture in sought] == [33.25, 41.0]


def textured(number: int, width: int, height: int) -> np.ndarray:
    """A pattern that moves by two points a picture: something to predict."""
    x, y = np.meshgrid(np.arange(width) + 2 * number, np.arange(height))
    return np.stack([(x * 3 + y) % 256, (x * y // 16) % 256, (x + 2 * y) % 256], 2).astype(np.uint8)


@pytest.mark.parametrize("times_s", [[3.97], [2.2, 5.6], [30.0]])
def test_leaving_pictures_out_gives_what_decoding_all_gives(tmp_path: Path, times_s: list[float]):
    clip = make_clip(tmp_path / "clip.mp4", seconds=6.0, fps=25, codec="libx264", picture=textured)
    quick = _nearest(clip, times_s, 256, 90, "none", all_pictures=False)
    whole = _nearest(clip, times_s, 256, 90, "none", all_pictures=True)
    assert whole is not None and [picture.time_s for picture in whole] == pytest.approx(
        [min(time_s, 5.96) for time_s in times_s], abs=0.02
    )
    assert quick is None or [(p.jpeg, p.time_s) for p in quick] == [(p.jpeg, p.time_s) for p in whole]
    assert read_pictures(clip, times_s, 256, 90)[0].jpeg == whole[0].jpeg


def test_pictures_are_left_out_and_sought_where_that_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    decoded = []
    monkeypatch.setattr("preprocess.video._time_s", lambda frame, *_: decoded.append(frame.time) or frame.time)
    clip = make_clip(tmp_path / "long.mp4", seconds=6.0, fps=25, codec="libx264", picture=textured)
    read_pictures(clip, [5.0], 256, 90)
    assert len(decoded) < 100 and [time_s for time_s in decoded if time_s > 4.1] == pytest.approx(
        [number / 25 for number in range(103, 126)]
    )
    decoded.clear()
    keys = make_clip(tmp_path / "keys.mp4", seconds=6.0, fps=10)
    read_pictures(keys, [5.0], 256, 90)
    assert decoded == pytest.approx([4.0 + number / 10 for number in range(11)])


@pytest.mark.parametrize(
    ("suffix", "codec", "delay_s", "opened"),
    [("mp4", "libx264", 0.0, 1), ("mp4", "mpeg4", 0.4, 1), ("mov", "libx264", 0.4, 1), ("mkv", "libx264", 0.0, 2)],
)
def test_a_kept_file_gives_what_one_opened_anew_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, codec: str, delay_s: float, opened: int
):
    clip = make_clip(
        tmp_path / f"clip.{suffix}", seconds=6.0, fps=25, codec=codec, sound_delay_s=delay_s, picture=textured
    )
    calls, real = [], av.open
    monkeypatch.setattr(av, "open", lambda *given, **named: calls.append(given) or real(*given, **named))
    for start_s in (0.0, 3.2):
        times_s = [start_s, start_s + 0.5, start_s + 2.0]
        sound, pictures = read_sound(clip, start_s, 2.0), read_pictures(clip, times_s, 96, 90, flow="signed")
        calls.clear()
        with KeptFile() as kept:
            again = read_sound(clip, start_s, 2.0, kept=kept)
            assert read_pictures(clip, times_s, 96, 90, flow="signed", kept=kept) == pictures
        assert len(calls) == opened
        assert np.array_equal(again.samples, sound.samples) and again.rate_hz == sound.rate_hz


def cut(clip: Path, path: Path, start_s: float) -> Path:
    """A part of a file without coding anew: its first pictures hang on a key picture from before the start."""
    with av.open(str(clip)) as source, av.open(str(path), "w") as part:
        streams = {each.index: part.add_stream_from_template(each) for each in source.streams}
        for packet in source.demux():
            if packet.pts is None or packet.dts is None or packet.time_base is None:
                continue
            first = round(start_s / packet.time_base)
            # Sound begins at the start, pictures with the last key picture before it: every 12th is one.
            if packet.stream.type == "video":
                first -= round(start_s * 25) % 12 * round(1 / packet.time_base) // 25
            if packet.pts >= first:
                packet.pts -= round(start_s / packet.time_base)
                packet.dts -= round(start_s / packet.time_base)
                packet.stream = streams[packet.stream.index]
                part.mux(packet)
    return path


@pytest.mark.parametrize("start_s", [0.24, 0.4, 0.92])
def test_a_kept_file_that_was_cut_out_of_another_is_whole(tmp_path: Path, start_s: float):
    whole = make_clip(tmp_path / "whole.mp4", seconds=4.0, fps=25, b_frames=2, picture=textured)
    part = cut(whole, tmp_path / "part.mp4", start_s)
    times_s = [0.0, 0.5]
    with KeptFile() as kept:
        read_sound(part, kept=kept)
        found = read_pictures(part, times_s, 96, 90, flow="signed", kept=kept)
    # As texts, because their motion is NaN, which equals nothing.
    assert repr(found) == repr(read_pictures(part, times_s, 96, 90, flow="signed"))


def test_a_kept_file_is_not_taken_for_another(tmp_path: Path):
    first, second = (
        make_clip(tmp_path / f"{name}.mp4", picture=lambda n, w, h, colour=colour: numbered_picture(n, w, h, colour))
        for name, colour in (("first", (200, 60, 40)), ("second", (40, 60, 200)))
    )
    with KeptFile() as kept:
        read_sound(first, kept=kept)
        assert read_pictures(second, [1.0], 96, 90, kept=kept) == read_pictures(second, [1.0], 96, 90)
        assert read_pictures(first, [1.0], 96, 90, kept=kept) == read_pictures(first, [1.0], 96, 90)


def test_stored_jpeg_is_what_hardware_decoders_take(tmp_path: Path):
    clip = make_clip(tmp_path / "clip.mp4", seconds=0.3)
    jpeg = read_pictures(clip, [0.0], 256, 90)[0].jpeg
    assert plain_jpeg(jpeg) == jpeg and b"Exif" not in jpeg


def test_sound_is_mono_at_its_own_rate(tmp_path: Path):
    samples = tone(2.0, 22050, channels=2)
    sound = read_sound(write_wav(tmp_path / "stereo.wav", samples, 22050))
    assert (sound.rate_hz, sound.source_rate_hz, sound.channels) == (22050, 22050, 2)
    assert sound.samples.dtype == np.int16 and len(sound.samples) == 44100
    assert np.abs(sound.samples - samples.mean(1)).max() <= 1
    mono = tone(1.0, 16000)[:, 0]
    assert (read_sound(write_wav(tmp_path / "mono.wav", mono, 16000)).samples == mono).all()


@pytest.mark.parametrize(("channels", "rate_hz"), [(1, 16000), (2, 44100)])
@pytest.mark.parametrize("window", [(0.0, None), (0.31, 0.7), (1.5, 9.0)])
def test_a_plain_wav_is_read_as_ffmpeg_reads_it(
    tmp_path: Path, channels: int, rate_hz: int, window: tuple[float, float | None]
):
    noise = np.random.default_rng(0).integers(-32768, 32768, (2 * rate_hz + 7, channels)).astype(np.int16)
    file = write_wav(tmp_path / "a.wav", noise, rate_hz)
    limit_s = 600.0 if window[1] is None else window[1]
    for channel in ("mean", "first"):
        plain = _plain_wav(file, window[0], limit_s, channel)
        assert plain is not None
        by_ffmpeg = _decoded_sound(file, window[0], limit_s, channel)
        assert (plain.samples == by_ffmpeg.samples[: len(plain.samples)]).all()
        assert len(plain.samples) == min(len(by_ffmpeg.samples), round(limit_s * rate_hz) + 1)
        assert (plain.rate_hz, plain.channels) == (by_ffmpeg.rate_hz, by_ffmpeg.channels) == (rate_hz, channels)


def test_other_wav_files_are_left_to_ffmpeg(tmp_path: Path):
    file = write_wav(tmp_path / "a.wav", tone(1.0, 16000), 16000)
    data = file.read_bytes()
    assert _plain_wav(file, 0.0, 600.0, "mean") is not None
    changes = {
        "24 bit": data[:34] + b"\x18\0" + data[36:],
        "float": data[:20] + b"\x03\0" + data[22:],
        "cut": data[:-1000],
        "length unknown": data[:40] + b"\xff\xff\xff\xff" + data[44:],
        "odd rate": data[:24] + struct.pack("<I", 44099) + data[28:],
        "no sound": data[:30],
        "empty": b"",
    }
    for name, changed in changes.items():
        file.write_bytes(changed)
        assert _plain_wav(file, 0.0, 600.0, "mean") is None, name
    file.write_bytes(data[:36] + b"LIST" + struct.pack("<I", 3) + b"abc\0" + data[36:])
    assert (read_sound(file).samples == tone(1.0, 16000)[:, 0]).all()


def test_a_window_of_the_sound_is_exact(tmp_path: Path):
    samples = np.arange(30000, dtype=np.int16)
    file = write_wav(tmp_path / "ramp.wav", samples, 10000)
    assert (read_sound(file, 0.5, 1.0).samples == samples[5000:15000]).all()
    assert (read_sound(file, 2.5, 9.0).samples == samples[25000:]).all()
    assert refusal(read_sound, file, 2.95, 1.0) == "too_short"
    assert refusal(read_sound, file, 7.0, 1.0) == "too_short"


def test_an_odd_rate_is_brought_to_48_khz(tmp_path: Path):
    sound = read_sound(write_wav(tmp_path / "odd.wav", tone(1.0, 44099), 44099))
    assert (sound.rate_hz, sound.source_rate_hz) == (48000, 44099)
    assert len(sound.samples) == pytest.approx(48000, abs=50)


def test_sound_that_starts_late_is_late(tmp_path: Path):
    clip = make_clip(tmp_path / "clip.mkv", seconds=2.0, sound_delay_s=0.5, audio_codec="pcm_s16le")
    samples = read_sound(clip).samples
    assert len(samples) == 40000 and not samples[:7900].any() and samples[8010:8100].any()


def test_a_clip_of_more_than_ten_minutes_must_say_its_part(tmp_path: Path):
    file = write_wav(tmp_path / "long.wav", np.ones(4000 * 601, np.int16), 4000)
    assert refusal(read_sound, file) == "too_long"
    assert refusal(read_sound, file, 0.0, 1000.0) == "too_long"
    assert len(read_sound(file, 590.0, 5.0).samples) == 20000


def test_what_is_missing_is_named(tmp_path: Path):
    silent = make_clip(tmp_path / "silent.mp4", seconds=0.5, audio=False)
    blind = make_clip(tmp_path / "blind.mp4", seconds=0.5, video=False)
    assert refusal(read_sound, silent) == "no_audio"
    assert refusal(read_pictures, blind, [0.0], 256, 90) == "no_video"
    assert refusal(read_sound, tmp_path / "none.mp4") == "missing_file"
    assert refusal(read_still, tmp_path / "none.jpg", 256, 90) == "missing_file"
    assert refusal(read_sound, tmp_path / ("x" * 300)) == "unreadable"
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    assert refusal(read_sound, tmp_path / "pipe.mp4") == refusal(read_sound, tmp_path) == "unreadable"
    for path in (tmp_path / "device.jpg", tmp_path):
        assert refusal(read_still, path, 256, 90) == "unreadable"


def test_files_that_break_inside(tmp_path: Path):
    clip = make_clip(tmp_path / "clip.mp4", seconds=3.0)
    data = bytearray(clip.read_bytes())
    (tmp_path / "text.mp4").write_text("no video at all\n" * 50)
    assert refusal(read_sound, tmp_path / "text.mp4") == "unreadable"
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])  # without its table at the end
    assert refusal(read_pictures, tmp_path / "cut.mp4", [0.0], 256, 90) == "unreadable"
    middle = len(data) // 3
    data[middle : middle + 4000] = bytes(range(256)) * 15 + bytes(160)
    (tmp_path / "damaged.mp4").write_bytes(data)
    assert refusal(read_sound, tmp_path / "damaged.mp4") == "decode_error"


def test_playlists_are_not_followed(tmp_path: Path):
    make_clip(tmp_path / "secret.mp4", seconds=0.5)
    lists = {
        "hls.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/secret.mp4\n#EXT-X-ENDLIST\n",
        "concat.mp4": "ffconcat version 1.0\nfile secret.mp4\n",
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        assert refusal(read_sound, tmp_path / name) == "unreadable"


def saved(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def test_a_plain_jpeg_keeps_its_bytes(tmp_path: Path):
    image = Image.fromarray(numbered_picture(3, 80, 64))
    file = saved(tmp_path / "plain.jpg", image, quality=77, subsampling="4:2:0")
    found = read_still(file, 64, 90)
    assert found.jpeg == file.read_bytes() and found.size == found.original == (80, 64)
    upright = Image.Exif()
    upright[0x0112], upright[0x010E] = 1, "a description"
    tagged = saved(tmp_path / "tagged.jpg", image, quality=77, subsampling="4:2:0", exif=upright, comment=b"hello")
    assert b"Exif" in tagged.read_bytes() and read_still(tagged, 64, 90).jpeg == file.read_bytes()


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("a.jpg", "RGB", {"subsampling": "4:4:4"}),
        ("a.jpg", "RGB", {"subsampling": "4:2:0", "progressive": True}),
        ("a.jpg", "L", {}),
        ("a.jpg", "CMYK", {}),
        ("a.png", "RGBA", {}),
        ("a.png", "P", {}),
        ("a.png", "I;16", {}),
        ("a.webp", "RGB", {"lossless": True}),
        ("a.bmp", "RGB", {}),
    ],
)
def test_other_pictures_are_coded_anew(tmp_path: Path, name: str, mode: str, options: dict):
    grey = np.tile(np.linspace(20, 220, 80).astype(np.uint8), (64, 1))
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    found = read_still(saved(tmp_path / name, image, **options), 256, 95)
    assert plain_jpeg(found.jpeg) == found.jpeg and found.size == (80, 64)
    assert np.abs(pixels(found).mean(2) - grey).mean() < 4


def test_a_picture_turned_by_exif_comes_upright(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by 90 degrees
    image = Image.fromarray(numbered_picture(0, 160, 96))
    found = read_still(saved(tmp_path / "turned.jpg", image, exif=exif, subsampling="4:2:0"), 256, 95)
    assert found.size == found.original == (96, 160)
    red = pixels(found)[:, :, 0] - pixels(found)[:, :, 2]
    assert red[:60, 60:].max() > 100 and red[:, :40].max() < 60


def test_a_large_still_is_reduced(tmp_path: Path):
    found = read_still(saved(tmp_path / "a.png", Image.fromarray(numbered_picture(0, 400, 300))), 100, 90)
    assert (found.size, found.original) == ((133, 100), (400, 300))


def test_damaged_and_oversized_stills(tmp_path: Path):
    data = saved(tmp_path / "a.jpg", Image.fromarray(numbered_picture(0, 160, 96))).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) * 2 // 3])
    assert refusal(read_still, tmp_path / "cut.jpg", 256, 90) == "decode_error"
    (tmp_path / "text.jpg").write_text("no picture")
    assert refusal(read_still, tmp_path / "text.jpg", 256, 90) == "unreadable"
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    idat = b"IDAT" + zlib.compress(b"")
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (chunk, idat)
    )
    (tmp_path / "bomb.png").write_bytes(bomb)
    assert refusal(read_still, tmp_path / "bomb.png", 256, 90) == "too_large"


@pytest.mark.parametrize("on", [1, 255])
def test_a_mask_is_0_to_255_and_no_larger_than_the_frame(tmp_path: Path, on: int):
    mask = np.zeros((80, 100), np.uint8)
    mask[20:40, 50:75] = on
    file = tmp_path / "mask.png"
    cv2.imwrite(str(file), mask)
    full = read_mask(file, (200, 160))
    assert full.dtype == np.uint8 and (full == np.where(mask > 0, 255, 0)).all()
    half = read_mask(file, (50, 40))
    assert half.shape == (40, 50) and half[15, 30] == 255 and half[0, 0] == 0
    (tmp_path / "bad.png").write_text("x")
    assert refusal(read_mask, tmp_path / "bad.png", (50, 40)) == "bad_mask"
