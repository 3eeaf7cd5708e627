"""What a layout is: it turns a data set as people keep it on disk into `SourceClip`s."""

import json
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from configs.errors import UserError
from configs.schema import ComponentConfig

MAX_ID_LENGTH = 250


@dataclass(frozen=True, kw_only=True)
class SourceClip:
    """A clip to pack. Paths are relative to the layout's `root`, in POSIX form.

    video, or image and audio; audio beside a video replaces the video's own sound.
    start_s, duration_s: the clip within its video and sound files; duration None: to the end of the sound. annotated_s:
    the instant that boxes or mask belong to, from the clip's start; None: as `--annotated-s` says. boxes: rows x0, y0,
    x1, y1 as fractions of the picture and the annotator's index; an empty list says that nothing in the picture sounds,
    None that nobody looked.
    """

    clip_id: str
    split: str = "train"
    label: str | None = None
    group: str | None = None
    video: str | None = None
    image: str | None = None
    audio: str | None = None
    start_s: float = 0.0
    duration_s: float | None = None
    annotated_s: float | None = None
    boxes: list[list[float]] | None = None
    mask: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """The file that its picture comes from."""
        return self.video or self.image or ""


class LayoutConfig(ComponentConfig):
    """Base of every layout's `Config`; its fields are options of `python -m preprocess pack`."""


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

    @abstractmethod
    def clips(self) -> list[SourceClip]:
        """All clips, with unique ids, in any order. Raises: UserError naming file and line."""


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


def bad_box(boxes: list[list[float]]) -> str | None:
    """What is wrong with the first bad one of `boxes`, or None. Rounding beyond the picture by 1e-6 is allowed."""
    slack = 1e-6
    for row in boxes:
        x0, y0, x1, y1, annotator = row
        within = all(math.isfinite(x) and -slack <= x <= 1 + slack for x in row[:4])
        if not (within and x0 < x1 and y0 < y1 and annotator >= 0 and annotator == int(annotator)):
            return f"{[round(x, 6) for x in row]}: boxes are x0 < x1, y0 < y1 as fractions of the picture, 0 to 1"
    return None


def box_array(boxes: list[list[float]]) -> np.ndarray:
    """`(k, 5)` float64, corners held within the picture."""
    array = np.array(boxes, np.float64).reshape(-1, 5)
    array[:, :4] = array[:, :4].clip(0, 1)
    return array
