"""Pictures and sound out of files that nobody vouches for: PyAV for video and sound, Pillow for still pictures.

Times count from the start of the file, that is, from the earlier of its first picture and its first sound. Whatever is
wrong with a file becomes a `Refused` with a reason code; sizes and durations are bounded before memory is spent.
"""

import io
import math
import os
import stat
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import av.container
import av.error
import av.logging
import av.stream
import cv2
import numpy as np
from PIL import Image, ImageOps

from preprocess.flow import coded, flow_between, grey_jpeg
from preprocess.quality import CLIP_FLAGS, TINY_COLUMNS, TINY_ROWS, Motion

REASONS = {
    "missing_file": "the file is not there",
    "unreadable": "no video, sound or picture format that is read, or no regular file",
    "no_video": "no video stream, or no picture in it",
    "no_audio": "no audio stream, or no sound in it",
    "decode_error": "the file breaks off or is damaged inside",
    "too_short": "less than 0.1 s of sound in the clip",
    "too_long": "more than 10 minutes; give duration_s",
    "too_large": "a picture beyond 16384 pixels a side or 64 megapixels, a picture file beyond 256 MiB, or more than "
    "1000 pictures a clip",
    "no_frame": "no picture within 1 s of the annotated instant",
    "bad_boxes": "boxes that are not x0 < x1, y0 < y1 within 0 to 1",
    "bad_mask": "a mask that cannot be read",
    "bad_flow": "a flow picture that cannot be read",
    "bad_spectrogram": "a .npy file that holds no power spectrogram of the front-end",
    "worker_crash": "packing processes died on the clip again and again, or it took them more than 10 minutes",
    **CLIP_FLAGS,  # only where `--drop` asks for it
}

MAX_SIDE_PX = 16384
MAX_PIXELS = 64_000_000  # 256 MB as Pillow holds it; a larger picture is a mistake or an attack
MAX_STILL_BYTES = 256 * 2**20
MAX_CLIP_S = 600.0  # the waveform of so long a clip takes 230 MB as float32 at 96 kHz
MAX_DECODED_FRAMES = 1_000_000  # ends the decoding of a file whose time stamps do not advance
MIN_SOUND_S = 0.1
_ORIENTATION = 0x0112  # the EXIF tag

# Containers of media only: playlists and scripts (hls, concat, dash, ...) can name other files and addresses.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,wav,w64,mp3,flac,aac,aiff,au,caf,amr,nut,mxf"
)
# Pillow reads far more, some of it by other programs (EPS by Ghostscript) and much of it untested against attacks.
_STILL_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_SOUND_DTYPES = {"s16": "i2", "s16p": "i2", "s32": "i4", "s32p": "i4", "flt": "f4", "fltp": "f4", "dblp": "f8"}
_JOINED_SAMPLES = 16_384  # of a frame that is resampled: fits the second-level cache
_LUMA_FORMATS = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "nv12", "gray")
_NEAR_S = 1.0  # so long before a wanted picture all are decoded, whatever delay their order needs
_SEEK_GAIN_S = 0.5
_LAST_S = 1e9  # no file has later pictures, and FFmpeg counts in 64 bits
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

    time_s: from the start of the file; 0 for a still picture. flow: the codes of the motion to the next picture, to the
    right and down (`preprocess.flow`). rotated: it had to be turned to come upright. tiny:
    as 8 rows of 9 grey levels. motion: of the whole video as far as it was decoded, see `preprocess.quality`.
    """

    jpeg: bytes
    size: tuple[int, int]
    original: tuple[int, int]
    tiny: bytes
    time_s: float = 0.0
    flow: tuple[bytes, bytes] | None = None
    rotated: bool = False
    motion: float = math.nan


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
    except (OverflowError, ValueError) as error:  # PyAV's own, for times and formats that it cannot say
        raise Refused("decode_error" if opened else "unreadable", f"{path.name}: {error}") from error


def _check_there(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise Refused("missing_file", f"{path.name} is not there") from error
    except OSError as error:
        raise Refused("unreadable", f"{path.name}: {error.strerror}") from error
    # Opening a pipe waits for somebody to write into it, and a device may never end.
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe, a device or a socket"
        raise Refused("unreadable", f"{path.name} is {what}, no regular file")


def _one_thread(path: Path, stream: av.VideoStream | av.AudioStream) -> Any:
    """The decoder of a stream, on one thread and for pictures of a bounded size, whatever the container says of it."""
    context = stream.codec_context
    if context is None:
        raise Refused("unreadable", f"{path.name}: its {stream.type} has a coding that is not read")
    context.thread_count = 1
    context.options = {"max_pixels": str(MAX_PIXELS)} if stream.type == "video" else {}
    return context


def _zero_s(container: av.container.InputContainer) -> float:
    return (container.start_time or 0) / av.time_base


def _usable_rate(rate_hz: int) -> int:
    """The rate itself, or 48 kHz where a later sinc resampling would need a table of gigabytes (coprime rates)."""
    return rate_hz if 4000 <= rate_hz <= 192_000 and rate_hz % 25 == 0 else 48_000


def read_sound(path: Path, start_s: float = 0.0, duration_s: float | None = None, channel: str = "mean") -> Sound:
    """The sound of a file from `start_s` on, mono, at the file's own rate.

    Decoding starts at the file's start, because seeking is not exact in formats without an index. Channels are mixed
    by libswresample (stereo: the mean), as the readers of the EZ-VSL family do, unless `channel` is "first".

    Raises: Refused (missing_file, unreadable, no_audio, decode_error, too_short, too_long).
    """
    limit_s = MAX_CLIP_S if duration_s is None else min(duration_s, MAX_CLIP_S)
    sound = _plain_wav(path, start_s, limit_s, channel) or _decoded_sound(path, start_s, limit_s, channel)
    wanted = round(limit_s * sound.rate_hz)
    if len(sound.samples) > wanted and (duration_s is None or duration_s > MAX_CLIP_S):
        raise Refused(
            "too_long", f"{path.name} lasts more than {MAX_CLIP_S:g} s from {start_s:g} s on; give duration_s"
        )
    samples = sound.samples[:wanted]
    if len(samples) < MIN_SOUND_S * sound.rate_hz:
        raise Refused("too_short", f"{path.name}: {len(samples) / sound.rate_hz:.3f} s of sound from {start_s:g} s on")
    return replace(sound, samples=samples)


def _plain_wav(path: Path, start_s: float, limit_s: float, channel: str) -> Sound | None:
    """The sound of a RIFF file of 16-bit PCM in one or two channels, as `_decoded_sound` gives it, but read at once: a
    demuxer hands it out in a hundred pieces. None for every other file, damaged ones among them.
    """
    _check_there(path)
    try:
        with path.open("rb") as file:
            riff, _, kind = struct.unpack("<4sI4s", file.read(12))
            name, size = struct.unpack("<4sI", file.read(8))
            if (riff, kind, name) != (b"RIFF", b"WAVE", b"fmt ") or not 16 <= size <= 40:
                return None
            coding, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", file.read(size))
            name, size = struct.unpack("<4sI", file.read(8))
            while name in (b"LIST", b"fact"):
                file.seek(size + size % 2, os.SEEK_CUR)
                name, size = struct.unpack("<4sI", file.read(8))
            start = file.tell()
            whole = 0 < size <= os.fstat(file.fileno()).st_size - start
            if name != b"data" or not whole or (coding, bits) != (1, 16) or channels not in (1, 2):
                return None
            if block != 2 * channels or size % block or rate != _usable_rate(rate):
                return None
            first = min(round(start_s * rate), size // block)
            file.seek(start + first * block)
            samples = np.empty((min(round(limit_s * rate) + 1, size // block - first), channels), "<i2")
            if file.readinto(samples.reshape(-1).view(np.uint8).data) < samples.nbytes:
                return None
    except (OSError, struct.error):
        return None
    if channels == 1 or channel == "first":
        mono = samples[:, 0]
    else:
        # libswresample's mean, which rounds halves up.
        mono = ((samples[:, 0].astype(np.int32) + samples[:, 1] + 1) >> 1).astype(np.int16)
    return Sound(samples=mono, rate_hz=rate, source_rate_hz=rate, channels=channels)


def _decoded_sound(path: Path, start_s: float, limit_s: float, channel: str) -> Sound:
    """The sound by FFmpeg: a sample more than `limit_s`, or beyond, if there is so much."""
    with _opened(path) as container:
        stream = container.streams.best("audio")
        if stream is None:
            raise Refused("no_audio", f"{path.name} has no audio stream")
        _one_thread(path, stream)
        resampler = None
        rate = source_rate = channels = skip = wanted = 0
        chunks: list[np.ndarray] = []
        kept = 0
        for frame in _sound_frames(container, stream):
            if resampler is None:
                source_rate, channels = frame.sample_rate, len(frame.layout.channels)
                rate = _usable_rate(source_rate)
                layout = "mono" if channel == "mean" else frame.layout.name
                resampler = av.AudioResampler(format="s16p", layout=layout, rate=rate)
                lead = 0.0 if frame.time is None else frame.time - _zero_s(container)
                # Sound that starts after the first picture is late by so many samples: they are silent.
                skip = round((start_s - lead) * rate)
                wanted = round(limit_s * rate)
                if skip < 0:
                    chunks.append(np.zeros(min(-skip, wanted), np.int16))
                    kept, skip = len(chunks[0]), 0
            try:
                pieces = resampler.resample(frame)
            except ValueError as error:
                raise Refused("decode_error", f"{path.name}: the sound changes its format midway") from error
            for piece in pieces:
                samples = piece.to_ndarray()[0]
                if skip:
                    dropped = min(skip, len(samples))
                    samples, skip = samples[dropped:], skip - dropped
                if len(samples):
                    chunks.append(samples)
                    kept += len(samples)
            if kept > wanted:
                break
        if resampler is None:
            raise Refused("no_audio", f"{path.name}: its audio stream holds no sound")
        if kept <= wanted:
            rest = [piece.to_ndarray()[0] for piece in resampler.resample(None)]
            chunks += [np.concatenate(rest)[skip:]] if rest else []
    samples = np.concatenate(chunks) if chunks else np.zeros(0, np.int16)
    return Sound(samples=samples, rate_hz=rate, source_rate_hz=source_rate, channels=channels)


def _sound_frames(container: av.container.InputContainer, stream: av.AudioStream) -> Iterator[av.AudioFrame]:
    """The decoded sound, short frames joined: resampling a frame costs much the same whatever its length."""
    joined: list[av.AudioFrame] = []
    try:
        for frame in container.decode(stream):
            if not frame.samples:
                continue
            if joined and _sound_format(frame) != _sound_format(joined[0]):
                yield _join(joined)
                joined = []
            joined.append(frame)
            if not _joinable(frame) or sum(item.samples for item in joined) >= _JOINED_SAMPLES:
                yield _join(joined)
                joined = []
    except av.error.FFmpegError:
        if joined:
            yield _join(joined)  # it may be all that is wanted
        raise
    if joined:
        yield _join(joined)


def _sound_format(frame: av.AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _joinable(frame: av.AudioFrame) -> bool:
    return frame.format.name in _SOUND_DTYPES and frame.layout.name in ("mono", "stereo")


def _join(frames: list[av.AudioFrame]) -> av.AudioFrame:
    """Frames of one format as one frame, at the time of the first."""
    first = frames[0]
    if len(frames) == 1:
        return first
    values = 1 if first.format.is_planar else first.layout.nb_channels
    dtype = np.dtype(_SOUND_DTYPES[first.format.name])
    planes = [
        np.concatenate([np.frombuffer(frame.planes[number], dtype, values * frame.samples) for frame in frames])
        for number in range(len(first.planes))
    ]
    joined = av.AudioFrame.from_ndarray(np.stack(planes), format=first.format.name, layout=first.layout.name)
    joined.sample_rate = first.sample_rate
    joined.pts, joined.time_base = first.pts, first.time_base
    return joined


def read_pictures(
    path: Path, times_s: Sequence[float], short_side_px: int, quality: int, flow: str = "none"
) -> list[Picture]:
    """The pictures of a video nearest to the given times (ascending), upright; one that is nearest to two comes once.

    One decoding pass on one thread, from the last key picture a second before the first time (where the file lists
    them) to behind the last time. Sample aspect ratios are ignored, as the field's frame extraction does; boxes are
    fractions, so they stay right. flow: "none", or how its codes are to be made; a video of one picture has none.

    Raises: Refused (missing_file, unreadable, no_video, decode_error, too_large).
    """
    assert list(times_s) == sorted(times_s) and times_s
    found = _nearest(path, times_s, short_side_px, quality, flow, all_pictures=False)
    if found is None:
        found = _nearest(path, times_s, short_side_px, quality, flow, all_pictures=True)
    return found or []


def _nearest(
    path: Path, times_s: Sequence[float], short_side_px: int, quality: int, flow: str, all_pictures: bool
) -> list[Picture] | None:
    """The pictures, or None if one of those left out may be nearer, so that all must be decoded from the start."""
    with _opened(path) as container:
        # An attached cover is no video; best() knows that, but takes it where there is nothing else.
        stream = container.streams.best("video")
        if stream is None or av.stream.Disposition.attached_pic in stream.disposition:
            raise Refused("no_video", f"{path.name} has no video stream")
        context = _one_thread(path, stream)
        _check_size(path, context.width, context.height)
        # AVI stores no display times: with B-frames, what FFmpeg makes of them runs back and forth.
        counted = container.format.name == "avi"
        zero = 0.0 if counted else _zero_s(container)
        pending = list(times_s)
        pictures: list[Picture] = []
        motion = Motion()
        last: av.VideoFrame | None = None
        still: np.ndarray | None = None  # the last picture kept, while its flow is not known
        left_out_s = -math.inf

        def leave_out(time_s: float) -> bool:
            nonlocal left_out_s
            far = time_s - zero < pending[0] - _NEAR_S
            if far:
                left_out_s = max(left_out_s, time_s - zero)
            return far

        def keep(frame: av.VideoFrame, time_s: float) -> None:
            nonlocal last, still
            if frame is not last:
                upright = _upright(path, frame)
                pictures.append(stored_picture(upright, short_side_px, quality, time_s, frame.rotation != 0))
                last = frame
                still = None if flow == "none" else _reduced(upright, short_side_px)

        def move(other: av.VideoFrame, backwards: bool = False) -> None:
            nonlocal still
            assert still is not None
            # Farneback's pictures must have one size: the other one takes that of the picture that is kept.
            pair = still, cv2.resize(_upright(path, other), still.shape[1::-1], interpolation=cv2.INTER_AREA)
            pictures[-1] = replace(pictures[-1], flow=coded(flow_between(*pair[:: -1 if backwards else 1]), flow))
            still = None

        whole = all_pictures or counted
        sought = not whole and _seek(container, stream, zero, min(times_s[0], _LAST_S))
        previous: tuple[av.VideoFrame, float] | None = None
        before: av.VideoFrame | None = None  # the one before `previous`
        # The flow needs every picture that follows one that is kept.
        leaving = leave_out if not whole and flow == "none" else None
        for count, frame in enumerate(_video_frames(container, stream, leaving)):
            if frame.time is None and not whole:
                return None
            time_s = _time_s(frame, count, stream, counted) - zero
            if sought and previous is None and time_s > times_s[0]:
                return None
            if motion.wants(time_s) and frame.format.name in _LUMA_FORMATS:
                motion.see(_luma(frame), time_s)
            if still is not None:
                move(frame)
            while pending and time_s >= pending[0]:
                if left_out_s > (-math.inf if previous is None else previous[1]):
                    return None
                target = pending.pop(0)
                if previous is not None and target - previous[1] < time_s - target:
                    keep(*previous)
                    if still is not None:
                        move(frame)
                else:
                    keep(frame, time_s)
            before, previous = previous and previous[0], (frame, time_s)
            if not pending and still is None:
                break
        if previous is None:
            if sought:
                return None
            raise Refused("no_video", f"{path.name}: its video stream holds no picture")
        if pending:
            if left_out_s > previous[1]:
                return None
            keep(*previous)
        if still is not None and before is not None:
            move(before, backwards=True)  # the last picture of the video: the motion that led to it
        return [replace(picture, motion=motion.share) for picture in pictures]


def _seek(container: av.container.InputContainer, stream: av.VideoStream, zero: float, first_s: float) -> bool:
    """Go to the last key picture well before `first_s`, if the file lists it and that saves something; whether so."""
    time_base = float(stream.time_base or 1)
    entries = stream.index_entries
    number = entries.search_timestamp(round((first_s - _NEAR_S + zero) / time_base)) if len(entries) else -1
    key = entries[number] if number >= 0 else None
    if key is not None and key.timestamp * time_base - zero >= _SEEK_GAIN_S:
        container.seek(key.timestamp, stream=stream)
        return True
    if first_s > _SEEK_BEYOND_S:
        # Matroska reads its list only when it is asked to seek.
        container.seek(round((first_s - _SEEK_MARGIN_S + zero) * av.time_base))
        return True
    return False


def _video_frames(
    container: av.container.InputContainer, stream: av.VideoStream, leave_out: Callable[[float], bool] | None
) -> Iterator[av.VideoFrame]:
    """The decoded pictures. H.264 pictures that no other is predicted from are not decoded where `leave_out` says so of
    their time: what remains is the same to the bit.
    """
    context = stream.codec_context
    leaving = False
    for count, packet in enumerate(container.demux(stream)):
        if leave_out is not None and context.name == "h264":
            far = packet.pts is not None and leave_out(float(packet.pts * packet.time_base))
            if far != leaving:
                context.skip_frame = "NONREF" if far else "DEFAULT"
                leaving = far
        yield from packet.decode()  # type: ignore[misc]
        if count >= MAX_DECODED_FRAMES:
            break


def _luma(frame: av.VideoFrame) -> np.ndarray:
    """`(H, W)` uint8, a view of the decoded picture."""
    plane = frame.planes[0]
    rows = np.frombuffer(plane, np.uint8)[: frame.height * plane.line_size].reshape(frame.height, plane.line_size)
    return rows[:, : frame.width]


def _time_s(frame: av.VideoFrame, count: int, stream, counted: bool) -> float:
    if frame.time is not None and not counted:
        return frame.time
    return count / float(stream.average_rate or 25)


def _check_size(path: Path, width: int, height: int) -> None:
    if max(width, height) > MAX_SIDE_PX or width * height > MAX_PIXELS:
        raise Refused("too_large", f"{path.name}: {width} x {height} pixels")


def stored_picture(
    pixels: np.ndarray, short_side_px: int, quality: int, time_s: float = 0.0, rotated: bool = False
) -> Picture:
    """An upright `(H, W, 3)` uint8 BGR picture, reduced and coded."""
    reduced = _reduced(pixels, short_side_px)
    return Picture(
        jpeg=encode_jpeg(reduced, quality),
        size=(reduced.shape[1], reduced.shape[0]),
        original=(pixels.shape[1], pixels.shape[0]),
        time_s=time_s,
        rotated=rotated,
        tiny=_tiny(reduced),
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


def _tiny(pixels: np.ndarray) -> bytes:
    small = cv2.resize(pixels, (TINY_COLUMNS, TINY_ROWS), interpolation=cv2.INTER_AREA)
    return (small if small.ndim == 2 else cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)).tobytes()


def decoded(jpeg: bytes) -> np.ndarray:
    """`(height, width, 3)` uint8 RGB of a picture as it is stored, by OpenCV, as the reference loader decodes it."""
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)


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
            image = Image.open(io.BytesIO(data), formats=_STILL_FORMATS)
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
        with path.open("rb") as file:
            data = file.read(MAX_STILL_BYTES + 1)
        if len(data) > MAX_STILL_BYTES:
            raise Refused("too_large", f"{path.name} has more than {MAX_STILL_BYTES // 2**20} MiB")
        return data
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
        size = image.size
        plain = None if min(size) > short_side_px else plain_jpeg(data)
        if plain is not None:
            image.draft("L", (1, 1))  # its brightness at an eighth of the size; every coded bit is read all the same
        image.load()  # all of it, so that a truncated file is known here and not in training
        if plain is not None:
            return Picture(jpeg=plain, size=size, original=size, tiny=_tiny(np.asarray(image)))
        rotated = image.getexif().get(_ORIENTATION, 1) != 1
        upright = ImageOps.exif_transpose(image) if rotated else image
        if upright.mode.startswith("I;16"):
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        pixels = np.asarray(upright if upright.mode == "RGB" else upright.convert("RGB"))
    return stored_picture(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), short_side_px, quality, rotated=rotated)


def read_mask(path: Path, size: tuple[int, int], above: int | None = None) -> np.ndarray:
    """A truth map `(H, W)` uint8, 255 where the sound is, reduced to at most `size` (width, height) by area averaging.

    above: values above this are 255, all others 0. None: grey levels are kept, and a picture whose brightest value is 1
    counts as 0 and 1. Raises: Refused (missing_file, bad_mask, too_large).
    """
    try:
        with _still(path, _file_bytes(path)) as image:
            mask = np.asarray(image if image.mode == "P" else image.convert("L"))
    except Refused as error:
        if error.reason in ("unreadable", "decode_error"):
            raise Refused("bad_mask", error.detail) from error
        raise
    if above is not None:
        mask = np.where(mask > above, np.uint8(255), np.uint8(0))
    elif mask.max(initial=0) == 1:
        mask = mask * np.uint8(255)
    if mask.shape[1] > size[0] or mask.shape[0] > size[1]:
        mask = cv2.resize(mask, size, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(mask)


def read_flow(path: Path, size: tuple[int, int]) -> bytes:
    """A grey picture of ready flow codes as a baseline JPEG of `size` (width, height); one that already is that keeps
    its bytes but for application segments. Codes stay as they are where the size does not.

    Raises: Refused (missing_file, bad_flow, too_large).
    """
    data = _file_bytes(path)
    try:
        with _still(path, data) as image:
            plain = plain_jpeg(data, grey=True) if image.size == size else None
            codes = np.asarray(image.convert("L"))  # all of it, so that a truncated file is known here
    except Refused as error:
        if error.reason in ("unreadable", "decode_error"):
            raise Refused("bad_flow", error.detail) from error
        raise
    return plain or grey_jpeg(codes if image.size == size else cv2.resize(codes, size, interpolation=cv2.INTER_AREA))


def plain_jpeg(data: bytes, grey: bool = False) -> bytes | None:
    """`data` without its application and comment segments, if it is a baseline 4:2:0 JPEG that all decoders show alike.

    None if it must be coded anew: progressive or arithmetic, other than 8 bit and three components with 2x2 luma
    (`grey`: one component), turned by EXIF, in Adobe's RGB, or not a JPEG.
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
            if len(body) < 9 or body[0] != 8 or body[5] != (1 if grey else 3):
                return None
            if not grey and (len(body) < 15 or (body[7], body[10], body[13]) != (0x22, 0x11, 0x11)):
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
    with Image.open(io.BytesIO(data)) as image:
        return image.getexif().get(_ORIENTATION, 1) != 1
