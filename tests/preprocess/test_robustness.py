"""Packing when disks are full, inputs vanish, processes are killed, and files are hostile."""

import json
import os
import random
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from configs.errors import UserError
from configs.load import load_frontend
from pipeline.store import Store
from preprocess.engines.local import Local
from preprocess.layouts.manifest import Manifest
from preprocess.options import PackConfig
from preprocess.verify import verify
from preprocess.writer import Packed, pack
from tests.conftest import make_clip, numbered_picture, tone, write_wav
from tests.preprocess.kills import content, finished, make_source, run_round, start

ROOT = Path(__file__).parents[2]
CONFIG = PackConfig(frontends=(load_frontend("logmel64"),))


def run(source: Path, store: Path, *, workers: int = 0, shard_clips: int = 6, **options) -> Packed:
    layout = Manifest(Manifest.Config(name="manifest"), source)
    engine = Local(Local.Config(name="local", workers=workers))
    return pack(layout, store, CONFIG, engine, dataset="made", shard_clips=shard_clips, **options)


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(tmp_path: Path):
    source = make_source(tmp_path / "source")
    start(source, tmp_path / "whole").communicate()
    for number in range(3):
        store = tmp_path / f"store_{number}"
        run_round(source, store, random.Random(number), kills=3)
        assert content(store) == content(tmp_path / "whole")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Thirty clips, each with a sound of its own."""
    folder = tmp_path / "source"
    folder.mkdir()
    Image.fromarray(numbered_picture(0, 200, 150)).save(folder / "p.jpg")
    lines = []
    for number in range(30):
        write_wav(folder / f"{number}.wav", tone(0.5, 16000, 200 + 10 * number), 16000)
        lines.append({"clip_id": f"c{number:02d}", "image": "p.jpg", "audio": f"{number}.wav"})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_a_file_that_vanishes_is_refused_alone(source: Path, tmp_path: Path):
    packed = []

    def vanish(kind: str, what: str) -> None:
        if kind == "packed":
            packed.append(what)
        if len(packed) == 9:
            (source / "7.wav").unlink(missing_ok=True)
            (source / "21.wav").unlink(missing_ok=True)

    result = run(source, tmp_path / "store", report=vanish)
    refused = [(row[0], row[3]) for row in result.refused]
    assert set(refused) <= {("c07", "missing_file"), ("c21", "missing_file")} and refused
    assert result.packed + len(refused) == 30 and verify(tmp_path / "store") == []


def test_an_input_that_vanishes_stops_packing_and_nothing_is_lost(source: Path, tmp_path: Path):
    run(source, tmp_path / "whole")
    away = tmp_path / "away"
    seen = []

    def vanish(kind: str, what: str) -> None:
        seen.append(kind)
        if seen.count("packed") == 15 and not away.exists():
            source.rename(away)
            source.mkdir()  # as a mount point stays when its file system goes

    with pytest.raises(UserError, match=r"the input has gone: .*Is .*source still mounted\?"):
        run(source, tmp_path / "store", report=vanish)
    kept = finished(tmp_path / "store")
    assert len(kept) == 2 and not list((tmp_path / "store").glob("*.tmp-*"))
    source.rmdir()
    away.rename(source)
    assert run(source, tmp_path / "store").refused == []
    assert content(tmp_path / "store") == content(tmp_path / "whole")
    assert all(finished(tmp_path / "store")[name] == file for name, file in kept.items())


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_stops_packing_and_nothing_is_lost(source: Path, tmp_path: Path, workers: int):
    def packer(limit: int) -> subprocess.CompletedProcess[str]:
        command = [
            "pack",
            "manifest",
            str(source),
            str(tmp_path / "store"),
            "--frontend",
            "logmel64",
            "--dataset",
            "made",
        ]
        return subprocess.run(
            [sys.executable, "-m", "preprocess", *command, "--shard-clips", "6", "--workers", str(workers)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY)),
        )

    stopped = packer(100_000)  # bytes a file: less than a shard has
    assert stopped.returncode == 2 and stopped.stderr.startswith("error: cannot write "), stopped.stderr
    assert "Traceback" not in stopped.stderr and not list((tmp_path / "store").glob("*.tmp-*"))
    assert packer(resource.RLIM_INFINITY).returncode == 0
    assert verify(tmp_path / "store") == []
    whole = tmp_path / "whole"
    run(source, whole)
    shards = {name: data for name, data in content(tmp_path / "store").items() if name.startswith("shard-")}
    assert shards == {name: data for name, data in content(whole).items() if name.startswith("shard-")}


def test_an_output_that_cannot_be_written(source: Path):
    with pytest.raises(UserError, match="cannot make a store at /proc/self/store"):
        run(source, Path("/proc/self/store"))


def encoded(path: Path, codec: str, pix_fmt: str, *, steps: list[int] | None = None, rate_hz: int = 16000) -> Path:
    """A short video of a pixel format, with sound; steps: the times of its pictures in tenths of a second."""
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=10)
        assert isinstance(video, av.VideoStream)
        video.width, video.height, video.pix_fmt = 96, 64, pix_fmt
        heard = container.add_stream("pcm_s16le", rate=rate_hz, layout="mono")
        assert isinstance(heard, av.AudioStream)
        for number, time in enumerate(steps or range(20)):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number, 96, 64), format="rgb24")
            if pix_fmt == "pal8":
                grey = np.array(frame.to_image().convert("L"))
                palette = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 4, 1)
                palette[:, 0] = 255
                frame = av.VideoFrame.from_ndarray((grey, palette), format="pal8")
            frame.pts = time
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        piece = av.AudioFrame.from_ndarray(tone(2.0, rate_hz).reshape(1, -1), format="s16", layout="mono")
        piece.sample_rate = rate_hz
        container.mux(heard.encode(piece))
        container.mux(heard.encode(None))
    return path


def png_header(path: Path, width: int, height: int, rows: bytes = b"") -> Path:
    """A PNG that says it is so large; rows: its data before compression."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0), b"IDAT" + zlib.compress(rows), b"IEND"]
    data = b"".join(struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


def long_wav(path: Path, hours: float) -> Path:
    """A WAV of silence that takes no room on the disk."""
    size = round(hours * 3600) * 8000 * 2
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", size + 36, b"WAVE", b"fmt ", 16, 1, 1, 8000, 16000, 2, 16, b"data", size
    )
    path.write_bytes(header)
    os.truncate(path, size + len(header))
    return path


def with_metadata(path: Path, comment: str) -> Path:
    with av.open(str(path), "w") as container:
        container.metadata["comment"] = comment
        stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        assert isinstance(stream, av.AudioStream)
        piece = av.AudioFrame.from_ndarray(tone(1.0, 16000).reshape(1, -1), format="s16", layout="mono")
        piece.sample_rate = 16000
        container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return path


def patched(path: Path, change: Callable[[bytearray], None]) -> Path:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    return path


def lie_about_duration(data: bytearray) -> None:
    """Let the movie header of an MP4 say 40 hours."""
    at = data.index(b"mvhd") + 4 + 16
    data[at : at + 4] = struct.pack(">I", 144_000 * struct.unpack(">I", data[at - 4 : at])[0] % 2**32)


def rename_coding(data: bytearray, name: bytes) -> None:
    at = data.index(name)
    data[at + 2 : at + len(name)] = b"X" * (len(name) - 2)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder of awkward clips, and the reason for which each is refused; "" where it is packed."""
    folder = tmp_path_factory.mktemp("hostile")
    lines: list[dict] = []
    wanted: dict[str, str] = {}

    def add(clip_id: str, reason: str, **files) -> None:
        lines.append({"clip_id": clip_id, **files})
        wanted[clip_id] = reason

    good = make_clip(folder / "good.mp4", seconds=2.0)
    samples = tone(1.0, 16000)
    write_wav(folder / "good.wav", samples, 16000)
    Image.fromarray(numbered_picture(0, 96, 64)).save(folder / "good.jpg")
    sound, picture = {"audio": "good.wav"}, {"image": "good.jpg"}
    add("good", "", video="good.mp4")
    for name in ("empty.mp4", "empty.jpg", "empty.wav"):
        (folder / name).touch()
    add("empty_video", "unreadable", video="empty.mp4")
    add("empty_picture", "unreadable", image="empty.jpg", **sound)
    add("empty_sound", "unreadable", audio="empty.wav", **picture)
    (folder / "cut.mp4").write_bytes(good.read_bytes()[:3000])
    add("cut_video", "unreadable", video="cut.mp4")
    (folder / "cut.wav").write_bytes((folder / "good.wav").read_bytes()[:20_000])
    add("cut_sound", "", audio="cut.wav", **picture)
    Image.effect_noise((320, 240), 50).save(folder / "cut.jpg")
    os.truncate(folder / "cut.jpg", 5000)
    add("cut_picture", "decode_error", image="cut.jpg", **sound)
    patched(make_clip(folder / "lying.mp4", seconds=1.0), lie_about_duration)
    add("lying_video", "", video="lying.mp4")
    patched(make_clip(folder / "coding.mkv", seconds=1.0), lambda data: rename_coding(data, b"V_MPEG4/ISO/ASP"))
    add("unknown_coding", "unreadable", video="coding.mkv")
    patched(make_clip(folder / "sounds.mkv", seconds=1.0), lambda data: rename_coding(data, b"A_AAC"))
    add("unknown_sound", "unreadable", video="sounds.mkv")
    patched(write_wav(folder / "lying.wav", samples, 16000), lambda data: data.__setitem__(slice(40, 44), b"\xff" * 4))
    add("lying_sound", "", audio="lying.wav", **picture)
    long_wav(folder / "long.wav", 10)
    add("ten_hours", "too_long", audio="long.wav", **picture)
    add("of_ten_hours", "", audio="long.wav", start_s=35_900, duration_s=10, **picture)
    png_header(folder / "bomb.png", 20_000, 20_000, bytes(2501 * 20_000))
    png_header(folder / "tall.png", 1, 60_000)
    add("bomb", "too_large", image="bomb.png", **sound)
    add("tall", "too_large", image="tall.png", **sound)
    make_clip(folder / "mute.mp4", seconds=0.5, audio=False)
    make_clip(folder / "blind.mp4", seconds=0.5, video=False)
    add("mute", "no_audio", video="mute.mp4")
    add("blind", "no_video", video="blind.mp4")
    encoded(folder / "variable.mkv", "ffv1", "yuv420p", steps=[0, 1, 2, 9, 10, 19, 20, 33])
    add("variable_rate", "", video="variable.mkv", annotated_s=0.9)
    for codec, pix_fmt, name in (
        *(("libx264", "yuv422p10le", "mp4"), ("ffv1", "gray", "mkv"), ("ffv1", "gray16le", "mkv")),
        *(("png", "rgba", "mov"), ("png", "pal8", "mov"), ("ffv1", "yuv444p16le", "mkv"), ("mjpeg", "yuvj422p", "avi")),
    ):
        encoded(folder / f"{pix_fmt}.{name}", codec, pix_fmt)
        add(f"pixels_{pix_fmt}", "", video=f"{pix_fmt}.{name}")
    for subtype in ("PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"):
        soundfile.write(folder / f"{subtype}.wav", samples, 16000, subtype=subtype)
        add(f"wav_{subtype}", "", audio=f"{subtype}.wav", **picture)
    soundfile.write(folder / "surround.wav", np.repeat(samples, 6, 1), 48000, subtype="PCM_16")
    add("surround", "", audio="surround.wav", **picture)
    soundfile.write(folder / "fast.wav", samples, 384_000)
    add("384_khz", "too_short", audio="fast.wav", **picture)
    with_metadata(folder / "talkative.mkv", "x" * 8_000_000)
    add("talkative", "", audio="talkative.mkv", **picture)
    garbled = with_metadata(folder / "garbled.mkv", "garbled!").read_bytes()
    assert garbled.count(b"garbled!") == 1
    (folder / "garbled.mkv").write_bytes(garbled.replace(b"garbled!", b"\xff\xfe\x80\x81\xc3(\xa0\xa1"))
    add("garbled", "", audio="garbled.mkv", **picture)
    (folder / "video.jpg").write_bytes(good.read_bytes())
    (folder / "picture.mp4").write_bytes((folder / "good.jpg").read_bytes())
    Image.fromarray(numbered_picture(0, 96, 64)).save(folder / "png.jpg", format="PNG")
    (folder / "mp4.wav").write_bytes(good.read_bytes())
    add("video_named_jpg", "unreadable", image="video.jpg", **sound)
    add("jpg_named_mp4", "unreadable", video="picture.mp4")
    add("png_named_jpg", "", image="png.jpg", **sound)
    add("mp4_named_wav", "", audio="mp4.wav", **picture)
    for name in ("folder.mp4", "folder.jpg"):
        (folder / name).mkdir()
    os.mkfifo(folder / "pipe.wav")
    add("folder_video", "unreadable", video="folder.mp4")
    add("folder_picture", "unreadable", image="folder.jpg", **sound)
    add("pipe_sound", "unreadable", audio="pipe.wav", **picture)
    add("far_away", "too_short", video="good.mp4", start_s=1e300)
    add("annotated_never", "no_frame", video="good.mp4", annotated_s=1e300)
    add("missing", "missing_file", video="missing.mp4")
    add("good_again", "", **sound, **picture)
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder, wanted


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_hostile_files_are_refused_by_name_and_the_rest_is_packed(
    hostile: tuple[Path, dict[str, str]], tmp_path: Path, workers: int
):
    folder, wanted = hostile
    result = run(folder, tmp_path / "store", workers=workers, shard_clips=16)
    found = {row[0]: row[3] for row in result.refused}
    assert {clip_id: found.get(clip_id, "") for clip_id in wanted} == wanted
    assert verify(tmp_path / "store") == []
    with Store(tmp_path / "store") as store:
        assert sorted(store.index["clip_id"]) == sorted(clip_id for clip_id, reason in wanted.items() if not reason)
        assert all(store.index["waveform_samples"])
