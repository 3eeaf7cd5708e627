"""Pictures and sound out of files that nobody vouches for: PyAV for video and sound, Pillow for still pictures.

Times count from the start of the file, that is, from the earlier of its first picture and its first sound. Whatever is
wrong with a file becomes a `Refused` with a reason code; sizes and durations are bounded before memory is spent.
"""

import io
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import av.container
import av.error
import av.logging
import av.stream
import cv2
import numpy as np
from PIL import Image, ImageOps

REASONS = {
    "missing_file": "the file is not there",
    "unreadable": "no video, sound or picture format that is read",
    "no_video": "no video stream, or no picture in it",
    "no_audio": "no audio stream, or no sound in it",
    "decode_error": "the file breaks off or is damaged inside",
    "too_short": "less than 0.1 s of sound in the clip",
    "too_long": "more than 10 minutes; give duration_s",
    "too_large": "a picture beyond 16384 pixels a side or 100 megapixels, or more than 1000 pictures a clip",
    "no_frame": "no picture within 1 s of the annotated instant",
    "bad_boxes": "boxes that are not x0 < x1, y0 < y1 within 0 to 1",
    "bad_mask": "a mask that cannot be read",
    "worker_crash": "the packing process died on the clip, twice",
}

MAX_SIDE_PX = 16384
MAX_PIXELS = 100_000_000  # 300 MB as 8-bit BGR; a larger picture is a mistake or an attack
MAX_CLIP_S = 600.0  # the waveform of so long a clip takes 230 MB as float32 at 96 kHz
MAX_DECODED_FRAMES = 1_000_000  # ends the decoding of a file whose time stamps do not advance
MIN_SOUND_S = 0.1

# Containers of media only: playlists and scripts (hls, concat, dash, ...) can name other files and addresses.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,wav,w64,mp3,flac,aac,aiff,au,caf,amr,nut,mxf"
)
_SEEK_BEYOND_S = 30.0
_SEEK_MARGIN_S = 10.0

# The libraries write about every damaged packet; what matters of it comes back as an exception.
av.logging.set_level(None)


class Refused(Exception):
    """A clip that cannot be packed: a reason code of `REASONS`, and what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        assert reason in REASONS, reason
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class Sound:
    """samples: `(n,)` int16 mono at `rate_hz`, 32767 is full scale. source_rate_hz, channels: as in the file."""

    samples: np.ndarray
    rate_hz: int
    source_rate_hz: int
    channels: int


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture as it is stored. size: `(width, height)` as stored, original: of the upright picture before reduction.

    time_s: from the start of the file; 0 for a still picture.
    """

    jpeg: bytes
    size: tuple[int, int]
    original: tuple[int, int]
    time_s: float = 0.0


@contextmanager
def _opened(path: Path) -> Iterator[av.container.InputContainer]:
    """The container of a media file; whatever FFmpeg raises inside becomes `Refused`."""
    _check_there(path)
    opened = False
    try:
        # An absolute path, so that no file name is taken for an address.
        with av.open(
            str(path.absolute()),
            metadata_errors="ignore",
            options={"protocol_whitelist": "file", "format_whitelist": _FORMATS},
        ) as container:
            opened = True
            yield container
    except av.error.FFmpegError as error:
        text = getattr(error, "strerror", None) or str(error)
        raise Refused("decode_error" if opened else "unreadable", f"{path.name}: {text}") from error


def _check_there(path: Path) -> None:
    try:
        there = path.is_file()
    except OSError as error:
        raise Refused("unreadable", f"{path.name}: {error.strerror}") from error
    if not there:
        raise Refused("missing_file", f"{path.name} is not there")


def _zero_s(container: av.container.InputContainer) -> float:
    return (container.start_time or 0) / av.time_base


def _usable_rate(rate_hz: int) -> int:
    """The rate itself, or 48 kHz where a later sinc resampling would need a table of gigabytes (coprime rates)."""
    return rate_hz if 4000 <= rate_hz <= 192_000 and rate_hz % 25 == 0 else 48_000


def read_sound(path: Path, start_s: float = 0.0, duration_s: float | None = None) -> Sound:
    """The sound of a file from `start_s` on, mono, at the file's own rate.

    Decoding starts at the file's start, because seeking is not exact in formats without an index. Channels are mixed
    by libswresample (stereo: the mean), as the readers of the EZ-VSL family do.

    Raises: Refused (missing_file, unreadable, no_audio, decode_error, too_short, too_long).
    """
    with _opened(path) as container:
        stream = container.streams.best("audio")
        if stream is None:
            raise Refused("no_audio", f"{path.name} has no audio stream")
        stream.codec_context.thread_count = 1  # type: ignore[attr-defined]
        resampler = None
        rate = source_rate = channels = skip = wanted = 0
        chunks: list[np.ndarray] = []
        kept = 0
        for frame in _decoded_sound(container, stream):
            if resampler is None:
                source_rate, channels = frame.sample_rate, len(frame.layout.channels)
                rate = _usable_rate(source_rate)
                resampler = av.AudioResampler(format="s16", layout="mono", rate=rate)
                lead = 0.0 if frame.time is None else frame.time - _zero_s(container)
                # Sound that starts after the first picture is late by so many samples: they are silent.
                skip = round((start_s - lead) * rate)
                wanted = round((MAX_CLIP_S if duration_s is None else min(duration_s, MAX_CLIP_S)) * rate)
                if skip < 0:
                    chunks.append(np.zeros(min(-skip, wanted), np.int16))
                    kept, skip = len(chunks[0]), 0
            try:
                pieces = resampler.resample(frame)
            except ValueError as error:
                raise Refused("decode_error", f"{path.name}: the sound changes its format midway") from error
            for piece in pieces:
                samples = piece.to_ndarray().reshape(-1)
                if skip:
                    dropped = min(skip, len(samples))
                    samples, skip = samples[dropped:], skip - dropped
                chunks.append(samples)
                kept += len(samples)
            if kept > wanted:
                break
        if resampler is None:
            raise Refused("no_audio", f"{path.name}: its audio stream holds no sound")
        if kept <= wanted:
            rest = [piece.to_ndarray().reshape(-1) for piece in resampler.resample(None)]
            chunks += [np.concatenate(rest)[skip:]] if rest else []
    samples = np.concatenate(chunks) if chunks else np.zeros(0, np.int16)
    if len(samples) > wanted and (duration_s is None or duration_s > MAX_CLIP_S):
        raise Refused(
            "too_long", f"{path.name} lasts more than {MAX_CLIP_S:g} s from {start_s:g} s on; give duration_s"
        )
    samples = samples[:wanted]
    if len(samples) < MIN_SOUND_S * rate:
        raise Refused("too_short", f"{path.name}: {len(samples) / rate:.3f} s of sound from {start_s:g} s on")
    return Sound(samples=samples, rate_hz=rate, source_rate_hz=source_rate, channels=channels)


def _decoded_sound(container, stream) -> Iterator[av.AudioFrame]:
    for frame in container.decode(stream):
        if frame.samples:
            yield frame


def read_pictures(path: Path, times_s: Sequence[float], short_side_px: int, quality: int) -> list[Picture]:
    """The pictures of a video nearest to the given times (ascending), upright; one that is nearest to two comes once.

    One decoding pass on one thread, which ends behind the last time. Sample aspect ratios are ignored, as the field's
    frame extraction does; boxes are fractions, so they stay right.

    Raises: Refused (missing_file, unreadable, no_video, decode_error, too_large).
    """
    assert list(times_s) == sorted(times_s) and times_s
    found = None
    if times_s[0] > _SEEK_BEYOND_S:
        found = _nearest(path, times_s, short_side_px, quality, seek_s=times_s[0] - _SEEK_MARGIN_S)
    return found if found is not None else _nearest(path, times_s, short_side_px, quality, seek_s=None) or []


def _nearest(
    path: Path, times_s: Sequence[float], short_side_px: int, quality: int, seek_s: float | None
) -> list[Picture] | None:
    """The pictures, or None if seeking led behind the first time, so that the file must be read from its start."""
    with _opened(path) as container:
        # An attached cover is no video; best() knows that, but takes it where there is nothing else.
        stream = container.streams.best("video")
        if stream is None or av.stream.Disposition.attached_pic in stream.disposition:
            raise Refused("no_video", f"{path.name} has no video stream")
        context = stream.codec_context
        context.thread_count = 1  # type: ignore[attr-defined]
        _check_size(path, context.width, context.height)  # type: ignore[attr-defined]
        # AVI stores no display times: with B-frames, what FFmpeg makes of them runs back and forth.
        counted = container.format.name == "avi"
        zero = 0.0 if counted else _zero_s(container)
        if seek_s is not None and counted:
            return None
        if seek_s is not None:
            container.seek(round((seek_s + zero) * av.time_base))
        pending = list(times_s)
        pictures: list[Picture] = []
        last: av.VideoFrame | None = None

        def keep(frame: av.VideoFrame, time_s: float) -> None:
            nonlocal last
            if frame is not last:
                pictures.append(_stored(_upright(path, frame), short_side_px, quality, time_s))
                last = frame

        previous: tuple[av.VideoFrame, float] | None = None
        for count, frame in enumerate(container.decode(stream)):
            assert isinstance(frame, av.VideoFrame)
            time_s = _time_s(frame, count, stream, counted) - zero
            if seek_s is not None and previous is None and time_s > times_s[0]:
                return None
            while pending and time_s >= pending[0]:
                target = pending.pop(0)
                if previous is not None and target - previous[1] < time_s - target:
                    keep(*previous)
                else:
                    keep(frame, time_s)
            previous = (frame, time_s)
            if not pending or count >= MAX_DECODED_FRAMES:
                break
        if previous is None:
            if seek_s is not None:
                return None
            raise Refused("no_video", f"{path.name}: its video stream holds no picture")
        if pending:
            keep(*previous)
        return pictures


def _time_s(frame: av.VideoFrame, count: int, stream, counted: bool) -> float:
    if frame.time is not None and not counted:
        return frame.time
    return count / float(stream.average_rate or 25)


def _check_size(path: Path, width: int, height: int) -> None:
    if max(width, height) > MAX_SIDE_PX or width * height > MAX_PIXELS:
        raise Refused("too_large", f"{path.name}: {width} x {height} pixels")


def _stored(pixels: np.ndarray, short_side_px: int, quality: int, time_s: float = 0.0) -> Picture:
    """An upright `(H, W, 3)` uint8 BGR picture, reduced and coded."""
    reduced = _reduced(pixels, short_side_px)
    return Picture(
        jpeg=encode_jpeg(reduced, quality),
        size=(reduced.shape[1], reduced.shape[0]),
        original=(pixels.shape[1], pixels.shape[0]),
        time_s=time_s,
    )


def _upright(path: Path, frame: av.VideoFrame) -> np.ndarray:
    _check_size(path, frame.width, frame.height)  # it may change within the stream
    pixels = frame.to_ndarray(format="bgr24")
    # frame.rotation: degrees counterclockwise from the display matrix, as np.rot90 counts.
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90) % 4))


def _reduced(pixels: np.ndarray, short_side_px: int) -> np.ndarray:
    """`pixels` with the given short side, by area averaging; a smaller picture is never enlarged."""
    height, width = pixels.shape[:2]
    scale = short_side_px / min(height, width)
    if scale >= 1:
        return pixels
    size = (max(short_side_px, round(width * scale)), max(short_side_px, round(height * scale)))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def encode_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """`(H, W, 3)` uint8 BGR as baseline 4:2:0 JPEG without EXIF."""
    options = [
        *(cv2.IMWRITE_JPEG_QUALITY, quality),
        *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420),
    ]
    written, data = cv2.imencode(".jpg", pixels, options)
    assert written
    return data.tobytes()


@contextmanager
def _still(path: Path, data: bytes) -> Iterator[Image.Image]:
    """A still picture with its size checked; what Pillow raises inside becomes `Refused`."""
    opened = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sizes below our own limit, odd metadata, ...
            image = Image.open(io.BytesIO(data))
        with image:
            _check_size(path, *image.size)
            opened = True
            yield image
    except Image.DecompressionBombError as error:
        raise Refused("too_large", f"{path.name}: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise Refused("decode_error" if opened else "unreadable", f"{path.name}: {error}") from error


def _file_bytes(path: Path) -> bytes:
    _check_there(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise Refused("unreadable", f"{path.name}: {error.strerror}") from error


def read_still(path: Path, short_side_px: int, quality: int) -> Picture:
    """A still picture, upright.

    A file that already is what the store holds (baseline 4:2:0 JPEG of three components, upright, not too large) keeps
    its coded pixels byte for byte; only EXIF and other application segments are dropped.

    Raises: Refused (missing_file, unreadable, decode_error, too_large).
    """
    data = _file_bytes(path)
    with _still(path, data) as image:
        image.load()  # all of it, so that a truncated file is known here and not in training
        plain = None if min(image.size) > short_side_px else plain_jpeg(data)
        if plain is not None:
            return Picture(jpeg=plain, size=image.size, original=image.size)
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        pixels = np.asarray(upright.convert("RGB"))[:, :, ::-1]
    return _stored(np.ascontiguousarray(pixels), short_side_px, quality)


def read_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A truth map `(H, W)` uint8, 255 where the sound is, reduced to at most `size` (width, height) by area averaging.

    A picture whose brightest value is 1 counts as 0 and 1. Raises: Refused (missing_file, bad_mask, too_large).
    """
    try:
        with _still(path, _file_bytes(path)) as image:
            mask = np.asarray(image if image.mode == "P" else image.convert("L"))
    except Refused as error:
        if error.reason in ("unreadable", "decode_error"):
            raise Refused("bad_mask", error.detail) from error
        raise
    mask = mask * np.uint8(255) if mask.max(initial=0) == 1 else mask
    if mask.shape[1] > size[0] or mask.shape[0] > size[1]:
        mask = cv2.resize(mask, size, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(mask)


def plain_jpeg(data: bytes) -> bytes | None:
    """`data` without its application and comment segments, if it is a baseline 4:2:0 JPEG that all decoders show alike.

    None if it must be coded anew: progressive or arithmetic, other than 8 bit and three components with 2x2 luma,
    turned by EXIF, in Adobe's RGB, or not a JPEG.
    """
    if data[:2] != b"\xff\xd8":
        return None
    out = bytearray(b"\xff\xd8")
    at = 2
    baseline = False
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # a filling byte
            at += 1
            continue
        length = struct.unpack_from(">H", data, at + 2)[0]
        segment = data[at : at + 2 + length]
        body = segment[4:]
        if marker == 0xC0:
            # precision, height, width, components, then (id, sampling, table) of each
            if len(body) < 15 or body[0] != 8 or body[5] != 3 or (body[7], body[10], body[13]) != (0x22, 0x11, 0x11):
                return None
            baseline = True
        other_coding = 0xC1 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)
        turned = marker == 0xE1 and body[:4] == b"Exif" and _turned(data)
        other_colours = marker == 0xEE and body[:5] == b"Adobe" and body[11:12] != b"\x01"
        if other_coding or turned or other_colours:
            return None
        if marker == 0xDA:
            return bytes(out + data[at:]) if baseline else None
        if marker == 0xE0 or not (0xE1 <= marker <= 0xEF or marker == 0xFE):
            out += segment
        at += 2 + length
    return None


def _turned(data: bytes) -> bool:
    orientation_tag = 0x0112
    with Image.open(io.BytesIO(data)) as image:
        return image.getexif().get(orientation_tag, 1) != 1
