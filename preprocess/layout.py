"""What a layout is: it turns a data set as people keep it on disk into `SourceClip`s."""

import json
import math
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from configs.errors import UserError
from configs.schema import ComponentConfig

MAX_ID_LENGTH = 250


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceClip:
    """A clip to pack. Paths are relative to the layout's `root`, in POSIX form.

    video, or image and audio; audio beside a video replaces the video's own sound. spectrogram: in place of sound, a
    .npy file of powers `(1, F, T)` or `(F, T)`. image_key, audio_key: image and audio are LMDB environments of raw
    values (`preprocess.raw_lmdb`), and these are the keys in them. flow_x, flow_y: grey pictures of the optical flow
    from the picture to the next one, in the published 8-bit form.
    start_s, duration_s: the clip within its video and sound files; duration None: to the end of the sound. annotated_s:
    the instant that boxes or mask belong to, from the clip's start; None: as `--annotated-s` says. boxes: rows x0, y0,
    x1, y1 as fractions of the picture and the annotator's index; an empty list says that nothing in the picture sounds,
    None that nobody looked. as_published: the boxes are those of a published set and are kept even where they have no
    area or leave the picture. mask: a picture of the truth; mask_above: its values above this are truth, None: its
    grey levels say how much.
    """

    clip_id: str
    split: str = "train"
    label: str | None = None
    group: str | None = None
    video: str | None = None
    image: str | None = None
    audio: str | None = None
    image_key: str | None = None
    audio_key: str | None = None
    spectrogram: str | None = None
    flow_x: str | None = None
    flow_y: str | None = None
    start_s: float = 0.0
    duration_s: float | None = None
    annotated_s: float | None = None
    boxes: list[list[float]] | None = None
    as_published: bool = False
    mask: str | None = None
    mask_above: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """The file that its picture comes from."""
        return self.video or self.image or ""


class LayoutConfig(ComponentConfig):
    """Base of every layout's `Config`; its fields are options of `python -m preprocess pack`."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A clip that will not be packed, known before any file is opened. reason: one of LEFT_OUT."""

    clip_id: str
    split: str
    reason: str
    detail: str


LEFT_OUT = {
    "missing": "listed or annotated, but no file of it in INPUT",
    "no_sound": "a picture without a sound",
    "no_picture": "a sound without a picture",
    "duplicate": "a second file of one clip",
    "other_name": "a file whose name is no id of this data set",
}


class Look:
    """A glance at a folder, enough to tell layouts apart: the names in it and the first ones of its folders."""

    def __init__(self, root: Path) -> None:
        """Raises: UserError if `root` cannot be read."""
        self.root = root
        try:
            entries = list(os.scandir(root)) if root.is_dir() else []
            self.folders = {entry.name for entry in entries if entry.is_dir()}
        except OSError as error:
            raise UserError(f"cannot read {root}: {error.strerror}") from error
        self.files = {entry.name for entry in entries} - self.folders

    def names(self, folder: str) -> list[str]:
        """Up to 64 names in a folder of `root`, hidden ones left out; none if there is no such folder."""
        if not (self.root / folder).is_dir():
            return []
        try:
            with os.scandir(self.root / folder) as entries:
                return list(islice((entry.name for entry in entries if not entry.name.startswith(".")), 64))
        except OSError as error:
            raise UserError(f"cannot read {self.root / folder}: {error.strerror}") from error

    def has(self, folder: str, *suffixes: str) -> bool:
        """Whether a folder of `root` holds, as far as the glance goes, files with one of the suffixes."""
        return any(name.lower().endswith(suffixes) for name in self.names(folder))


class Layout(ABC):
    """One way of keeping a data set on disk."""

    Config: ClassVar[type[LayoutConfig]]

    def __init__(self, config: Any, source: Path) -> None:
        """Raises: UserError if `source` is not there or not of this layout."""
        self.config = config
        self.source = source
        self.root = source.resolve()
        self.notes: list[str] = []
        """What a person should know about the input and that is no error; printed once."""
        self.left_out: list[LeftOut] = []
        """What is not packed of the input, and of a list that comes with it."""
        self.expected: dict[str, int] = {}
        """Split -> clips that the whole data set has, where a list in the input says so."""

    @abstractmethod
    def clips(self) -> list[SourceClip]:
        """All clips, with unique ids, in any order. Raises: UserError naming file and line."""

    @classmethod
    def recognise(cls, look: Look) -> str | None:
        """Why a folder is of this layout, in words, or None if it is not."""
        return None


def inside(root: Path, text: str, where: str) -> str:
    """`text` as a path relative to `root`. Raises: UserError if it leads out of it, symbolic links followed."""
    if "\0" in text:
        raise UserError(f"{where}: the path {text!r} holds a null character")
    given = Path(text)
    relative = given.relative_to(root) if given.is_absolute() and given.is_relative_to(root) else given
    if relative.is_absolute() or ".." in relative.parts or not (root / relative).resolve().is_relative_to(root):
        raise UserError(
            f"{where}: the path {text!r} leads out of {root}. Files must lie under the input folder, also when "
            "symbolic links are followed: move them there, or put the list above all of them"
        )
    return relative.as_posix()


def check_id(clip_id: str, where: str) -> str:
    """`clip_id`. Raises: UserError if it is empty, too long, or holds characters that do not print."""
    if not clip_id or len(clip_id) > MAX_ID_LENGTH or not clip_id.isprintable():
        raise UserError(f"{where}: clip_id {clip_id!r} must be 1 to {MAX_ID_LENGTH} printable characters")
    return clip_id


def parse_boxes(value: Any, where: str) -> list[list[float]]:
    """Boxes as rows of five numbers. Raises: UserError unless `value` is a list of lists of 4 or 5 numbers."""
    rows: list[Any] = value if isinstance(value, list) else [None]
    for row in rows:
        listed = isinstance(row, list) and len(row) in (4, 5)
        if not listed or any(isinstance(x, bool) or not isinstance(x, int | float) for x in row):
            raise UserError(
                f"{where}: boxes must be a list of [x0, y0, x1, y1] or [x0, y0, x1, y1, annotator], found "
                f"{json.dumps(value)[:100]}"
            )
    return [[float(x) for x in (*row, 0)[:5]] for row in rows]


def check_negative(boxes: Any, mask: str | None, where: str) -> None:
    """Raises: UserError if a clip in which nothing makes the sound has boxes or a mask."""
    if boxes or mask is not None:
        raise UserError(f"{where}: 'negative' says that nothing in the picture sounds; remove it, or 'boxes' or 'mask'")


def bad_box(boxes: list[list[float]], as_published: bool = False) -> str | None:
    """What is wrong with the first bad one of `boxes`, or None. Rounding beyond the picture by 1e-6 is allowed.

    as_published: of numbers only, see `SourceClip`.
    """
    slack = 1e-6
    for row in boxes:
        x0, y0, x1, y1, annotator = row
        finite = all(math.isfinite(x) for x in row)
        if as_published and finite:
            continue
        within = finite and all(-slack <= x <= 1 + slack for x in row[:4])
        if not (within and x0 < x1 and y0 < y1 and annotator >= 0 and annotator == int(annotator)):
            return f"{[round(x, 6) for x in row]}: boxes are x0 < x1, y0 < y1 as fractions of the picture, 0 to 1"
    return None


def box_array(boxes: list[list[float]], as_published: bool = False) -> np.ndarray:
    """`(k, 5)` float64, corners held within the picture unless they are kept as published."""
    array = np.array(boxes, np.float64).reshape(-1, 5)
    if not as_published:
        array[:, :4] = array[:, :4].clip(0, 1)
    return array
