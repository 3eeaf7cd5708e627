"""Pictures out of videos that nobody vouches for."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import av.container
import av.stream
import cv2
import numpy as np

from preprocess.containers import KeptFile, one_thread, opened_file, zero_s
from preprocess.flow import coded, flow_between
from preprocess.pictures import Picture, check_size, reduced, stored_picture
from preprocess.quality import Motion
from preprocess.refusals import Refused

MAX_DECODED_FRAMES = 1_000_000  # ends the decoding of a file whose time stamps do not advance
_LUMA_FORMATS = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "nv12", "gray")
_NEAR_S = 1.0  # so long before a wanted picture all are decoded, whatever delay their order needs
_SEEK_GAIN_S = 0.5
_LAST_S = 1e9  # no file has later pictures, and FFmpeg counts in 64 bits
_SEEK_BEYOND_S = 30.0
_SEEK_MARGIN_S = 10.0


def read_pictures(
    path: Path,
    times_s: Sequence[float],
    short_side_px: int,
    quality: int,
    flow: str = "none",
    kept: KeptFile | None = None,
) -> list[Picture]:
    """The pictures of a video nearest to the given times (ascending), upright; one that is nearest to two comes once.

    One decoding pass on one thread, from the last key picture a second before the first time (where the file lists
    them) to behind the last time. Sample aspect ratios are ignored, as the field's frame extraction does; boxes are
    fractions, so they stay right. flow: "none", or how its codes are to be made; a video of one picture has none.
    kept: may have the file open.

    Raises: Refused (missing_file, unreadable, no_video, decode_error, too_large).
    """
    assert list(times_s) == sorted(times_s) and times_s
    found = _nearest(path, times_s, short_side_px, quality, flow, all_pictures=False, kept=kept)
    if found is None:
        found = _nearest(path, times_s, short_side_px, quality, flow, all_pictures=True)
    return found or []


def _nearest(
    path: Path,
    times_s: Sequence[float],
    short_side_px: int,
    quality: int,
    flow: str,
    all_pictures: bool,
    kept: KeptFile | None = None,
) -> list[Picture] | None:
    """The pictures, or None if one of those left out may be nearer, so that all must be decoded from the start."""
    with opened_file(path, kept) as container:
        stream = _stream(path, container)
        counted = _counted(container)
        zero = 0.0 if counted else zero_s(container)
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
                still = None if flow == "none" else reduced(upright, short_side_px)

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


def each_picture(path: Path) -> Iterator[tuple[float, np.ndarray]]:
    """Every picture of a video in order, upright `(H, W, 3)` uint8 BGR, each behind its time in seconds of the file.

    Raises: Refused (missing_file, unreadable, no_video, decode_error, too_large).
    """
    with opened_file(path) as container:
        stream = _stream(path, container)
        counted = _counted(container)
        zero = 0.0 if counted else zero_s(container)
        for count, frame in enumerate(_video_frames(container, stream, None)):
            yield _time_s(frame, count, stream, counted) - zero, _upright(path, frame)


def _stream(path: Path, container: av.container.InputContainer) -> av.VideoStream:
    """The video of a file, ready to be decoded. Raises: Refused (no_video, unreadable, too_large)."""
    # An attached cover is no video; best() knows that, but takes it where there is nothing else.
    stream = container.streams.best("video")
    if stream is None or av.stream.Disposition.attached_pic in stream.disposition:
        raise Refused("no_video", f"{path.name} has no video stream")
    assert isinstance(stream, av.VideoStream)
    context = one_thread(path, stream)
    check_size(path, context.width, context.height)
    return stream


def _counted(container: av.container.InputContainer) -> bool:
    """Whether a picture's time is its number: AVI stores no display times, and with B-frames, what FFmpeg makes of them
    runs back and forth.
    """
    return container.format.name == "avi"


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
    tick_s = float(stream.time_base or 1)
    leaving = False
    for count, packet in enumerate(container.demux(stream)):
        if leave_out is not None and context.name == "h264":
            far = packet.pts is not None and leave_out(packet.pts * tick_s)
            if far != leaving:
                context.skip_frame = "NONREF" if far else "DEFAULT"
                leaving = far
        yield from packet.decode()  # type: ignore[misc]
        if count >= MAX_DECODED_FRAMES:
            break


def _luma(frame: av.VideoFrame) -> np.ndarray:
    """`(H, W)` uint8, a view of the decoded picture."""
    plane: Any = frame.planes[0]  # a buffer, which PyAV's types do not say
    rows = np.frombuffer(plane, np.uint8)[: frame.height * plane.line_size].reshape(frame.height, plane.line_size)
    return rows[:, : frame.width]


def _time_s(frame: av.VideoFrame, count: int, stream, counted: bool) -> float:
    if frame.time is not None and not counted:
        return frame.time
    return count / float(stream.average_rate or 25)


def _upright(path: Path, frame: av.VideoFrame) -> np.ndarray:
    check_size(path, frame.width, frame.height)  # it may change within the stream
    pixels = frame.to_ndarray(format="bgr24")
    # frame.rotation: degrees counterclockwise from the display matrix, as np.rot90 counts.
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90) % 4))
