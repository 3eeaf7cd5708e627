"""What AVSBench S4 and MS3 have in common: five frames a video, each with a mask, in the official folders or flat."""

import csv
import re
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from configs.errors import UserError
from preprocess.annotations import set_rows
from preprocess.layout import Layout, LayoutConfig, LeftOut, Look, SourceClip, check_id
from preprocess.listing import PICTURES, SOUNDS, by_id, find_files, folder_of, stem

_FRAME = re.compile(r"(.+?)(?:\.mp4)?_([1-5])")
_SPLITS = ("train", "val", "test")


class AvsBenchConfig(LayoutConfig):
    meta: Path | None = Field(default=None, description="table of the videos with their splits; null: the one in INPUT")
    boxes: Path | None = Field(default=None, description="JSON list of boxes to take in place of the masks")


class AvsBench(Layout):
    """One clip a frame: its picture, the video's five seconds of sound, its mask.

    A clip is named `<video>_<1..5>`; its picture is the last one of that second. Splits come from the folders, else
    from the table of the videos; test frames go to the split that the class names.
    """

    test_split: ClassVar[str]
    table: ClassVar[str]
    """Name of the table of the videos in INPUT; its columns are `video_column`, split and perhaps category."""
    video_column: ClassVar[str]
    kind: ClassVar[str]
    """Folder that other releases put this part of AVSBench into."""

    def clips(self) -> list[SourceClip]:
        table = self._table()
        frames = list(find_files(self.root, folder_of(self, "visual_frames"), PICTURES, deep=True))
        pictures = by_id(self, frames, map(_frame_id, frames))
        paths = list(find_files(self.root, folder_of(self, "audio_wav"), SOUNDS, deep=True))
        sounds = by_id(self, paths, map(stem, paths))
        paths = list(find_files(self.root, folder_of(self, "gt_masks"), PICTURES, deep=True))
        masks = by_id(self, paths, map(_frame_id, paths))
        boxes = None
        if self.config.boxes is not None:
            boxes = {_frame_id(row.image): row.box for row in set_rows(self.config.boxes)}
        clips, heard = [], set()
        for clip_id, image in pictures.items():
            video, _, number = clip_id.rpartition("_")
            heard.add(video)
            if video not in sounds or not number.isdigit():
                self.left_out.append(LeftOut(clip_id, "", "no_sound", image))
                continue
            parts = {*sounds[video].split("/")[:-1], *masks.get(clip_id, "").split("/")[:-1]}
            known, category = table.get(video, (None, None))
            split = next((name for name in _SPLITS if name in parts), known)
            if split is None:
                raise UserError(
                    f"{image}: neither its folders nor a table say which split it is of; name the table of the "
                    f"data set with --meta {self.table}"
                )
            if boxes is not None and clip_id not in boxes:
                self.left_out.append(LeftOut(clip_id, split, "missing", f"not in {self.config.boxes}"))
                continue
            box = None if boxes is None else boxes[clip_id]
            mask = masks.get(clip_id) if boxes is None else None
            clips.append(
                SourceClip(
                    clip_id=check_id(clip_id, image),
                    split=self.test_split if split == "test" else split,
                    label=category or _category(image),
                    image=image,
                    audio=sounds[video],
                    annotated_s=float(number),
                    boxes=None if box is None else [box],
                    as_published=True,
                    mask=mask,
                    mask_above=None if mask is None else 0,
                )
            )
        for video in sorted(sounds.keys() - heard):
            self.left_out.append(LeftOut(video, "", "no_picture", sounds[video]))
        if not clips:
            raise UserError(f"no frame in {self.source}/visual_frames has a sound in audio_wav")
        for split in _SPLITS if table else ():
            listed = sum(known == split for known, _ in table.values())
            self.expected[self.test_split if split == "test" else split] = 5 * listed
        return clips

    def _table(self) -> dict[str, tuple[str, str | None]]:
        """Video -> split and category."""
        path = self.config.meta or self.root / self.table
        if self.config.meta is None and not path.is_file():
            return {}
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = list(csv.DictReader(file))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"cannot read the table {path}: {error}") from error
        if not rows or not {self.video_column, "split"} <= rows[0].keys():
            raise UserError(f"{path} must have the columns {self.video_column} and split")
        return {row[self.video_column]: (row["split"], row.get("category")) for row in rows}

    @classmethod
    def recognise(cls, look: Look) -> str | None:
        if not {"visual_frames", "gt_masks", "audio_wav"} <= look.folders:
            return None
        if cls.table in look.files or look.root.resolve().name == cls.kind:
            return f"visual_frames/, gt_masks/, audio_wav/ and {cls.table if cls.table in look.files else cls.kind}"
        return cls.recognise_frames(look)

    @classmethod
    def recognise_frames(cls, look: Look) -> str | None:
        """As `recognise`, from the names in visual_frames alone."""
        return None


def _category(image: str) -> str | None:
    """The category in `visual_frames/<split>/<category>/<video>/<frame>`; other forms have none."""
    parts = image.split("/")
    return parts[2] if len(parts) == 5 else None


def _frame_id(path: str) -> str:
    """`<video>_<k>` of a frame or mask; MS3's frames are named `<video>.mp4_<k>.png`."""
    name = stem(path)
    match = _FRAME.fullmatch(name)
    return f"{match[1]}_{match[2]}" if match else name
