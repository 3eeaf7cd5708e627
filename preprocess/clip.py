"""One source clip to one record."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from configs.schema import Config, FrontendConfig
from pipeline.record import Frame, Record, Source
from preprocess.features import Resampled, spectrograms
from preprocess.layout import SourceClip, bad_box, box_array
from preprocess.media import Refused, read_mask, read_pictures, read_sound, read_still

MAX_FRAMES = 1000
_RATE = re.compile(r"(\d+(?:\.\d+)?)fps")
_ANNOTATED_SLACK_S = 1.0


def _frame_rules(rules: tuple[str, ...]) -> tuple[str, ...]:
    for rule in rules:
        match = _RATE.fullmatch(rule)
        if rule not in ("annotated", "middle") and not (match and float(match[1]) > 0):
            raise ValueError(f"'{rule}' is none of annotated, middle, or a number a second like 1fps or 0.5fps")
    return tuple(dict.fromkeys(rules))


class PackConfig(Config):
    """What a record holds. Part of the plan of a store: the same input and options give the same records."""

    frames: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_frame_rules)] = ("annotated",)
    annotated_s: float = Field(default=5.0, ge=0, description="annotated instant where the layout gives none")
    short_side_px: int = Field(default=256, ge=16, le=4096)
    quality: int = Field(default=90, ge=1, le=100)
    frontends: tuple[FrontendConfig, ...] = ()
    waveform: bool = True
    waveform_rate_hz: int = Field(default=16000, ge=4000, le=192_000)


def annotated_instant(clip: SourceClip, duration_s: float, default_s: float) -> float:
    """The annotated instant from the clip's start: the layout's, else `default_s` if the clip lasts that long, else its
    middle.
    """
    if clip.annotated_s is not None:
        return clip.annotated_s
    return default_s if duration_s >= default_s else duration_s / 2


def frame_times(rules: tuple[str, ...], annotated_s: float, duration_s: float) -> list[float]:
    """The instants of all rules, ascending, from the clip's start; N fps: k / N for k = 0, 1, ... before the end.

    Raises: Refused (too_large) beyond 1000 pictures.
    """
    times: set[float] = set()
    for rule in rules:
        if rule == "annotated":
            times.add(annotated_s)
        elif rule == "middle":
            times.add(duration_s / 2)
        else:
            rate = float(rule.removesuffix("fps"))
            if duration_s * rate > MAX_FRAMES:
                raise Refused("too_large", f"{rule} of {duration_s:.1f} s are more than {MAX_FRAMES} pictures")
            times |= {step / rate for step in range(int(duration_s * rate) + 1) if step / rate < duration_s}
    return sorted(times)


def make_record(clip: SourceClip, root: Path, config: PackConfig) -> Record:
    """The record of a clip whose files lie under `root`. Raises: Refused."""
    problem = bad_box(clip.boxes or [])
    if problem:
        raise Refused("bad_boxes", problem)
    sound_file = clip.audio or clip.video
    assert sound_file is not None
    try:
        sound = read_sound(root / sound_file, clip.start_s, clip.duration_s)
    except Refused as refused:
        if refused.reason == "no_audio" and clip.video:
            # A broken file is worth knowing of before its missing sound is.
            instant = clip.start_s + (clip.annotated_s or config.annotated_s)
            read_pictures(root / clip.video, [instant], config.short_side_px, config.quality)
        raise
    duration_s = len(sound.samples) / sound.rate_hz
    annotated_s = annotated_instant(clip, duration_s, config.annotated_s)
    if clip.video:
        times = [clip.start_s + time_s for time_s in frame_times(config.frames, annotated_s, duration_s)]
        pictures = read_pictures(root / clip.video, times, config.short_side_px, config.quality)
    else:
        assert clip.image is not None
        # A still picture stands for the whole clip: it is as good as taken at the annotated instant.
        still = read_still(root / clip.image, config.short_side_px, config.quality)
        pictures = [replace(still, time_s=clip.start_s + annotated_s)]
    frames = [
        Frame(jpeg=picture.jpeg, time_s=picture.time_s - clip.start_s, width=picture.size[0], height=picture.size[1])
        for picture in pictures
    ]
    if clip.annotated_s is not None and "annotated" in config.frames:
        nearest = min((frame.time_s for frame in frames), key=lambda time_s: abs(time_s - annotated_s))
        if abs(nearest - annotated_s) > _ANNOTATED_SLACK_S:
            raise Refused(
                "no_frame", f"{clip.file}: annotated at {annotated_s:g} s, the nearest picture is at {nearest:.2f} s"
            )
    resampled = Resampled(sound)
    return Record(
        clip_id=clip.clip_id,
        split=clip.split,
        label=clip.label,
        group=clip.group,
        annotated_s=annotated_s,
        frames=frames,
        source=Source(
            file=clip.file,
            audio_file=clip.audio,
            start_s=clip.start_s,
            duration_s=duration_s,
            width=pictures[0].original[0],
            height=pictures[0].original[1],
            sample_rate_hz=sound.source_rate_hz,
            channels=sound.channels,
        ),
        spectrograms=spectrograms(resampled, config.frontends),
        waveform=resampled.waveform(config.waveform_rate_hz) if config.waveform else None,
        sample_rate_hz=config.waveform_rate_hz if config.waveform else None,
        boxes=None if clip.boxes is None else box_array(clip.boxes),
        mask=None if clip.mask is None else read_mask(root / clip.mask, (frames[0].width, frames[0].height)),
        extra=clip.extra,
    )
