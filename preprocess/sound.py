"""Sound out of files that nobody vouches for; lengths are bounded before memory is spent."""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import av
import av.container
import av.error
import numpy as np

from preprocess.containers import KeptFile, one_thread, opened_file, zero_s
from preprocess.refusals import Refused, check_there

MAX_CLIP_S = 600.0  # the waveform of so long a clip takes 230 MB as float32 at 96 kHz
MIN_SOUND_S = 0.1
_SOUND_DTYPES = {"s16": "i2", "s16p": "i2", "s32": "i4", "s32p": "i4", "flt": "f4", "fltp": "f4", "dblp": "f8"}
_JOINED_SAMPLES = 16_384  # of a frame that is resampled: fits the second-level cache


@dataclass(frozen=True, kw_only=True)
class Sound:
    """samples: `(n,)` int16 mono at `rate_hz`, 32767 is full scale. source_rate_hz, channels: as in the file."""

    samples: np.ndarray
    rate_hz: int
    source_rate_hz: int
    channels: int


def _usable_rate(rate_hz: int) -> int:
    """The rate itself, or 48 kHz where a later sinc resampling would need a table of gigabytes (coprime rates)."""
    return rate_hz if 4000 <= rate_hz <= 192_000 and rate_hz % 25 == 0 else 48_000


def read_sound(
    path: Path,
    start_s: float = 0.0,
    duration_s: float | None = None,
    channel: str = "mean",
    kept: KeptFile | None = None,
) -> Sound:
    """The sound of a file from `start_s` on, mono, at the file's own rate.

    Decoding starts at the file's start, because seeking is not exact in formats without an index. Channels are mixed
    by libswresample (stereo: the mean), as the readers of the EZ-VSL family do, unless `channel` is "first".
    kept: keeps the file open for its pictures.

    Raises: Refused (missing_file, unreadable, no_audio, decode_error, too_short, too_long).
    """
    limit_s = MAX_CLIP_S if duration_s is None else min(duration_s, MAX_CLIP_S)
    sound = _plain_wav(path, start_s, limit_s, channel) or _decoded_sound(path, start_s, limit_s, channel, kept)
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
    check_there(path)
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


def _decoded_sound(path: Path, start_s: float, limit_s: float, channel: str, kept: KeptFile | None = None) -> Sound:
    """The sound by FFmpeg: a sample more than `limit_s`, or beyond, if there is so much."""
    with opened_file(path, kept) as container:
        stream = container.streams.best("audio")
        if stream is None:
            raise Refused("no_audio", f"{path.name} has no audio stream")
        assert isinstance(stream, av.AudioStream)
        one_thread(path, stream)
        resampler = None
        rate = source_rate = channels = skip = wanted = 0
        chunks: list[np.ndarray] = []
        taken = 0
        for frame in _sound_frames(container, stream):
            if resampler is None:
                source_rate, channels = frame.sample_rate, len(frame.layout.channels)
                rate = _usable_rate(source_rate)
                layout = "mono" if channel == "mean" else frame.layout.name
                resampler = av.AudioResampler(format="s16p", layout=layout, rate=rate)
                lead = 0.0 if frame.time is None else frame.time - zero_s(container)
                # Sound that starts after the first picture is late by so many samples: they are silent.
                skip = round((start_s - lead) * rate)
                wanted = round(limit_s * rate)
                if skip < 0:
                    chunks.append(np.zeros(min(-skip, wanted), np.int16))
                    taken, skip = len(chunks[0]), 0
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
                    taken += len(samples)
            if taken > wanted:
                break
        if resampler is None:
            raise Refused("no_audio", f"{path.name}: its audio stream holds no sound")
        if taken <= wanted:
            rest = [piece.to_ndarray()[0] for piece in resampler.resample(None)]
            chunks += [np.concatenate(rest)[skip:]] if rest else []
    samples = np.concatenate(chunks) if chunks else np.zeros(0, np.int16)
    return Sound(samples=samples, rate_hz=rate, source_rate_hz=source_rate, channels=channels)


def _sound_frames(container: av.container.InputContainer, stream: av.AudioStream) -> Iterator[av.AudioFrame]:
    """The decoded sound, short frames joined: resampling a frame costs much the same whatever its length."""
    joined: list[av.AudioFrame] = []
    held, kind = 0, None
    try:
        for frame in container.decode(stream):
            if not frame.samples:
                continue
            own = _sound_format(frame)
            if joined and own != kind:
                yield _join(joined)
                joined, held = [], 0
            joined.append(frame)
            held, kind = held + frame.samples, own
            if held >= _JOINED_SAMPLES or not _joinable(own):
                yield _join(joined)
                joined, held = [], 0
    except av.error.FFmpegError:
        if joined:
            yield _join(joined)  # it may be all that is wanted
        raise
    if joined:
        yield _join(joined)


def _sound_format(frame: av.AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _joinable(kind: tuple[str, str, int]) -> bool:
    name, layout, _ = kind
    return name in _SOUND_DTYPES and layout in ("mono", "stereo")


def _join(frames: list[av.AudioFrame]) -> av.AudioFrame:
    """Frames of one format as one frame, at the time of the first."""
    first = frames[0]
    if len(frames) == 1:
        return first
    values = 1 if first.format.is_planar else first.layout.nb_channels
    dtype = np.dtype(_SOUND_DTYPES[first.format.name])
    planes = [
        np.concatenate([np.frombuffer(frame.planes[number], dtype, values * frame.samples) for frame in frames])  # type: ignore[call-overload]
        for number in range(len(first.planes))
    ]
    joined = av.AudioFrame.from_ndarray(np.stack(planes), format=first.format.name, layout=first.layout.name)
    joined.sample_rate = first.sample_rate
    joined.pts, joined.time_base = first.pts, first.time_base
    return joined
