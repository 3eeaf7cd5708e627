"""One source clip to one record."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pipeline.record import Frame, Record, Source
from preprocess.containers import KeptFile
from preprocess.features import Resampled, as_stored, lasting_s, read_log_power, spectrogram
from preprocess.layout import SourceClip, bad_box, box_array
from preprocess.options import PackConfig
from preprocess.pictures import decoded, read_flow, read_mask, read_still
from preprocess.quality import CLIP_FLAGS, Quality, clip_flags, picture_measures, sound_measures
from preprocess.raw_lmdb import read_raw_picture, read_raw_sound
from preprocess.refusals import Refused
from preprocess.sound import Sound, read_sound
from preprocess.video import read_pictures

MAX_FRAMES = 1000
_ANNOTATED_SLACK_S = 1.0


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


def make_record(clip: SourceClip, root: Path, config: PackConfig) -> tuple[Record, Quality]:
    """The record of a clip whose files lie under `root`, and its measures. Raises: Refused."""
    with KeptFile() as kept:
        return _make_record(clip, root, config, kept)


def _make_record(clip: SourceClip, root: Path, config: PackConfig, kept: KeptFile) -> tuple[Record, Quality]:
    problem = bad_box(clip.boxes or [], clip.as_published)
    if problem:
        raise Refused("bad_boxes", problem)
    if clip.spectrogram is None:
        sound = _sound(clip, root, config, kept=kept)
        duration_s = len(sound.samples) / sound.rate_hz
        mean = first = Resampled(sound)
        if sound.channels > 1 and any(frontend.channel == "first" for frontend in config.frontends):
            first = Resampled(_sound(clip, root, config, channel="first"))
        stored = {
            item.name: spectrogram(first if item.channel == "first" else mean, item, config.spectrogram_dtype)
            for item in config.frontends
        }
        waveform = mean.waveform(config.waveform_rate_hz) if config.waveform else None
        heard = {"sample_rate_hz": sound.source_rate_hz, "channels": sound.channels}
        measures = {**heard, **sound_measures(sound.samples)}
    else:
        assert len(config.frontends) == 1 and not config.waveform, "options were checked before packing"
        frontend = config.frontends[0]
        log_power = read_log_power(root / clip.spectrogram, frontend)
        duration_s = lasting_s(len(log_power), frontend)
        stored = {frontend.name: as_stored(log_power, frontend, config.spectrogram_dtype)}
        waveform, heard, measures = None, {}, {}
    annotated_s = annotated_instant(clip, duration_s, config.annotated_s)
    if clip.video:
        times = [clip.start_s + time_s for time_s in frame_times(config.frames, annotated_s, duration_s)]
        pictures = read_pictures(root / clip.video, times, config.short_side_px, config.quality, config.flow, kept)
    else:
        assert clip.image is not None
        # A still picture stands for the whole clip: it is as good as taken at the annotated instant.
        if clip.image_key is None:
            still = read_still(root / clip.image, config.short_side_px, config.quality)
        else:
            still = read_raw_picture(root / clip.image, clip.image_key, config.short_side_px, config.quality)
        flow = None
        if config.flow != "none" and clip.flow_x is not None and clip.flow_y is not None:
            flow = read_flow(root / clip.flow_x, still.size), read_flow(root / clip.flow_y, still.size)
        pictures = [replace(still, time_s=clip.start_s + annotated_s, flow=flow)]
    frames = [
        Frame(
            jpeg=None if config.pixels == "raw" else picture.jpeg,
            pixels=None if config.pixels == "jpeg" else decoded(picture.jpeg),
            time_s=picture.time_s - clip.start_s,
            width=picture.size[0],
            height=picture.size[1],
            flow=picture.flow,
        )
        for picture in pictures
    ]
    if clip.annotated_s is not None and "annotated" in config.frames:
        nearest = min((frame.time_s for frame in frames), key=lambda time_s: abs(time_s - annotated_s))
        if abs(nearest - annotated_s) > _ANNOTATED_SLACK_S:
            raise Refused(
                "no_frame", f"{clip.file}: annotated at {annotated_s:g} s, the nearest picture is at {nearest:.2f} s"
            )
    quality = Quality(
        duration_s=duration_s,
        asked_s=math.nan if clip.duration_s is None else clip.duration_s,
        width=pictures[0].original[0],
        height=pictures[0].original[1],
        rotated=pictures[0].rotated,
        motion=pictures[0].motion,
        **picture_measures([picture.jpeg for picture in pictures], pictures[len(pictures) // 2].tiny),
        **measures,
    )
    _drop(quality, config)
    record = Record(
        clip_id=clip.clip_id,
        split=clip.split,
        label=clip.label,
        group=clip.group,
        annotated_s=annotated_s,
        frames=frames,
        source=Source(
            file=clip.file,
            audio_file=clip.audio or clip.spectrogram,
            start_s=clip.start_s,
            duration_s=duration_s,
            width=pictures[0].original[0],
            height=pictures[0].original[1],
            **heard,
        ),
        spectrograms={name: array for name, (array, _) in stored.items()},
        spectrogram_error={name: error for name, (_, error) in stored.items() if error is not None},
        waveform=waveform,
        sample_rate_hz=config.waveform_rate_hz if config.waveform else None,
        boxes=None if clip.boxes is None else box_array(clip.boxes, clip.as_published),
        mask=None
        if clip.mask is None
        else read_mask(root / clip.mask, (frames[0].width, frames[0].height), above=clip.mask_above),
        extra=clip.extra,
    )
    return record, quality


def _drop(quality: Quality, config: PackConfig) -> None:
    if config.drop:
        flags = clip_flags(quality, config.short_side_px, config.waveform_rate_hz if config.waveform else 0)
        for name in config.drop:
            if flags[name]:
                raise Refused(name, f"--drop {name}: {CLIP_FLAGS[name]}")


def _sound(
    clip: SourceClip,
    root: Path,
    config: PackConfig,
    channel: Literal["mean", "first"] = "mean",
    kept: KeptFile | None = None,
) -> Sound:
    """The sound of a clip that has one. Raises: Refused."""
    if clip.audio_key is not None:
        assert clip.audio is not None
        return read_raw_sound(root / clip.audio, clip.audio_key, clip.start_s, clip.duration_s)
    file = clip.audio or clip.video
    assert file is not None
    try:
        return read_sound(root / file, clip.start_s, clip.duration_s, channel=channel, kept=kept)
    except Refused as refused:
        if refused.reason == "no_audio" and clip.video:
            # A broken file is worth knowing of before its missing sound is.
            instant = clip.start_s + (clip.annotated_s or config.annotated_s)
            read_pictures(root / clip.video, [instant], config.short_side_px, config.quality)
        raise
