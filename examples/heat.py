"""Maps as heat over pictures, and over the video that they were made for."""

import itertools
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import cv2
import numpy as np
import torch
from av.container import OutputContainer
from rich.progress import Progress

from configs.errors import UserError
from examples.localization import Heard, Localizer, Maps, refusals_explained
from model.gallery import cover
from preprocess.pictures import decoded, read_still
from preprocess.sound import Sound
from preprocess.video import each_picture

STRENGTH, THRESHOLD = 0.7, 0.5
JPEG_QUALITY = 95
MAX_SIDE_PX = 1280
"""Of written pictures and videos."""
_TICKS_HZ = 60_000  # every usual frame rate fits, and MPEG-4 allows no finer clock than 65,535
_SOUND_RATES_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # of AAC, as far as it is of use
_ENCODERS = {"libx264": {"preset": "veryfast", "crf": "20"}, "mpeg4": {"qscale": "3"}}  # the first that is there


class Heat:
    """One map of a clip as heat over its pictures: every moment's map brought to 0 .. 255 between its own least and
    largest value, as most protocols do, and smooth in time.
    """

    def __init__(self, localizer: Localizer, maps: Maps, name: str) -> None:
        self._protocol = localizer.protocol
        self._native = maps.named[name]
        self._part = maps.part
        self._times_s = np.array([picture.time_s for picture in maps.pictures])

    def at(self, time_s: float, size: tuple[int, int]) -> np.ndarray:
        """`(height, width)` uint8 at a time of the file, linear between the pictures that have a map; size: (width,
        height). What the method did not see is 0; a flat map is 255 everywhere, as in reports.
        """
        place = float(np.interp(time_s, self._times_s, np.arange(len(self._times_s))))
        before = int(place)
        native = self._native[before]
        if place > before:
            native = native.lerp(self._native[before + 1], place - before)
        resized = self._protocol.resize(native[None])[0]
        low, high = resized.min(), resized.max()
        share = (resized - low) / (high - low) if high > low else torch.ones_like(resized)
        x0, y0, x1, y1 = (round(edge * side) for edge, side in zip(self._part, (*size, *size)))
        heat = np.zeros((size[1], size[0]), np.uint8)
        levels = (share * 255).round().byte().numpy()
        heat[y0:y1, x0:x1] = cv2.resize(levels, (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR)
        return heat

    def over(self, picture: np.ndarray, time_s: float, strength: float, threshold: float) -> np.ndarray:
        """A BGR picture under the heat, with the edge of what is at least `threshold` of the largest value."""
        heat = self.at(time_s, (picture.shape[1], picture.shape[0]))
        return cover(picture, heat, heat >= 255 * threshold, strength)


def still_picture(path: Path) -> np.ndarray:
    """A picture file as it is shown, `(h, w, 3)` uint8 BGR. Raises: UserError."""
    with refusals_explained(path):
        picture = read_still(path, MAX_SIDE_PX, JPEG_QUALITY)
    return shown_size(np.ascontiguousarray(decoded(picture.jpeg)[:, :, ::-1]))


def shown_size(picture: np.ndarray) -> np.ndarray:
    """A picture with at most `MAX_SIDE_PX` a side, and even sides, as video has them."""
    height, width = picture.shape[:2]
    scale = min(1.0, MAX_SIDE_PX / max(height, width))
    size = (max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2))
    return picture if size == (width, height) else cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def write_video(
    file: BinaryIO, source: Path, heat: Heat, heard: Heard, strength: float, threshold: float, progress: bool = False
) -> None:
    """Write the part of a video that was heard as MP4: every picture at its own time under the heat, and the sound, in
    one channel.

    Raises: UserError if the video cannot be decoded.
    """
    end_s = heard.start_s + heard.duration_s
    with refusals_explained(source), av.open(file, "w", format="mp4", options={"movflags": "+faststart"}) as container:
        pictures = each_picture(source)
        part = itertools.dropwhile(lambda item: item[0] < heard.start_s, pictures)
        part = itertools.takewhile(lambda item: item[0] < end_s, part)
        writer = _Writer(container, heard.sound)
        for time_s, picture in _followed(part, heard, progress):
            shown = heat.over(shown_size(picture), time_s, strength, threshold)
            writer.add(time_s - heard.start_s, shown)
        writer.finish()


def _followed(
    part: Iterable[tuple[float, np.ndarray]], heard: Heard, progress: bool
) -> Iterator[tuple[float, np.ndarray]]:
    """The same pictures, beside a bar that counts seconds of the video."""
    with Progress(disable=not progress, transient=True) as bar:
        task = bar.add_task("video", total=heard.duration_s)
        for time_s, picture in part:
            yield time_s, picture
            bar.update(task, completed=time_s - heard.start_s)


class _Writer:
    """Pictures and sound of one file, encoded side by side, so that a player finds them together."""

    def __init__(self, container: OutputContainer, sound: Sound) -> None:
        self._container = container
        encoder = next(name for name in _ENCODERS if name in av.codecs_available)
        video = container.add_stream(encoder, options=_ENCODERS[encoder])
        assert isinstance(video, av.VideoStream)
        self._video = video
        self._video.pix_fmt = "yuv420p"
        self._video.codec_context.time_base = Fraction(1, _TICKS_HZ)
        rate_hz = sound.rate_hz if sound.rate_hz in _SOUND_RATES_HZ else 48_000
        self._audio = container.add_stream("aac", rate=rate_hz, layout="mono")
        self._sound, self._heard, self._last = sound, 0, -1

    def add(self, time_s: float, picture: np.ndarray) -> None:
        """The next picture, `(h, w, 3)` uint8 BGR, and the sound until then. One that is not later is left out."""
        ticks = round(time_s * _TICKS_HZ)
        if ticks <= self._last:
            return
        if self._last < 0:
            self._video.height, self._video.width = picture.shape[:2]
        elif picture.shape[:2] != (self._video.height, self._video.width):  # it may change within the source
            picture = cv2.resize(picture, (self._video.width, self._video.height), interpolation=cv2.INTER_AREA)
        self._last = ticks
        frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
        frame.pts, frame.time_base = ticks, Fraction(1, _TICKS_HZ)
        self._container.mux(self._video.encode(frame))
        self._hear(round(time_s * self._sound.rate_hz))

    def _hear(self, until: int) -> None:
        samples = self._sound.samples[self._heard : until]
        if not len(samples):
            return
        piece = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples)[None], format="s16", layout="mono")
        piece.sample_rate, piece.pts = self._sound.rate_hz, self._heard
        piece.time_base = Fraction(1, self._sound.rate_hz)
        self._container.mux(self._audio.encode(piece))
        self._heard += len(samples)

    def finish(self) -> None:
        """The rest of the sound. Raises: UserError if there was no picture."""
        if self._last < 0:
            raise UserError("there is no picture in this part of the video; give an earlier --start-s")
        self._hear(len(self._sound.samples))
        self._container.mux(self._video.encode(None))
        self._container.mux(self._audio.encode(None))
