"""What a record holds: the options of packing. Kept apart from `preprocess.clip`, so that planning loads no torch."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from configs.schema import Config, FrontendConfig
from preprocess.quality import CLIP_FLAGS

_RATE = re.compile(r"(\d+(?:\.\d+)?)fps")


def _flags(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in CLIP_FLAGS:
            raise ValueError(f"'{name}' is none of {', '.join(CLIP_FLAGS)}")
    return tuple(sorted(set(names)))


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
    pixels: Literal["jpeg", "raw", "both"] = "jpeg"
    flow: Literal["none", "signed", "published"] = "none"
    frontends: tuple[FrontendConfig, ...] = ()
    spectrogram_dtype: Literal["float16", "uint8"] = "float16"
    waveform: bool = True
    waveform_rate_hz: int = Field(default=16000, ge=4000, le=192_000)
    drop: Annotated[tuple[str, ...], AfterValidator(_flags)] = Field(
        default=(), description="flags of `preprocess.quality` by which clips are refused"
    )
