"""What the test sets have in common that SSL-Align publishes as JSON lists: IS3, VPO-SS, VPO-MS."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from configs.errors import UserError
from preprocess.annotations import set_rows
from preprocess.layout import Layout, LayoutConfig, LeftOut, Look, SourceClip, check_id
from preprocess.listing import PICTURES, SOUNDS, by_id, find_files, folder_of, stem

PICTURE_FOLDERS = ("images", "visual_frames", "frames")
SOUND_FOLDERS = ("audio_wav", "audio_waw", "audio")
MASK_FOLDERS = ("gt_segmentation", "gt_masks", "gray_masks")
JPEG_MIDDLE = 127
"""Masks saved as JPEG have grey noise around 0 and 255."""


class AnnotatedSetConfig(LayoutConfig):
    boxes: Path | None = Field(default=None, description="JSON list of the set; null: the one in INPUT")
    truth: Literal["boxes", "masks"] = Field(default="boxes", description="boxes, or masks of the mask folder")


class AnnotatedSet(Layout):
    """A test set whose clips are the rows of a JSON list with one box each."""

    split: ClassVar[str]
    lists: ClassVar[tuple[str, ...]]
    """Names that the list may have in INPUT; `.gz` may follow."""

    def clips(self) -> list[SourceClip]:
        rows = set_rows(self._list())
        # By whole names: an id here may look like one of a video with its seconds.
        pictures = self._stems(folder_of(self, *PICTURE_FOLDERS), PICTURES)
        sounds = self._stems(folder_of(self, *SOUND_FOLDERS), SOUNDS)
        masked = self.config.truth == "masks"
        masks = self._stems(folder_of(self, *MASK_FOLDERS), PICTURES) if masked else {}
        clips = []
        for row in rows:
            clip_id = check_id(stem(row.image), row.image)
            files = {row.image: pictures.get(clip_id), row.audio: sounds.get(stem(row.audio))}
            if masked:
                files[f"mask of {clip_id}"] = masks.get(clip_id)
            absent = [name for name, path in files.items() if path is None]
            if absent:
                self.left_out.append(LeftOut(clip_id, self.split, "missing", ", ".join(absent)))
                continue
            if row.box is None and not masked:
                raise UserError(f"{self._list()} lists masks, not boxes: name the list of boxes, or take --truth masks")
            clips.append(
                SourceClip(
                    clip_id=clip_id,
                    split=self.split,
                    label=self.label(clip_id),
                    group=clip_id.rpartition("_")[0],
                    image=pictures[clip_id],
                    audio=sounds[stem(row.audio)],
                    boxes=[row.box] if row.box is not None and not masked else None,
                    as_published=True,
                    mask=masks.get(clip_id),
                    mask_above=JPEG_MIDDLE if masked else None,
                )
            )
        if not clips:
            raise UserError(f"none of the {len(rows)} clips of {self._list()} is in {self.source}")
        self.expected[self.split] = len(rows)
        return clips

    def label(self, clip_id: str) -> str | None:
        """The class of a clip, where its name says one."""
        return None

    def _stems(self, folder: str, suffixes: tuple[str, ...]) -> dict[str, str]:
        paths = list(find_files(self.root, folder, suffixes, deep=True))
        return by_id(self, paths, map(stem, paths))

    def _list(self) -> Path:
        if self.config.boxes is not None:
            return self.config.boxes
        for name in self.lists:
            for path in (self.root / name, self.root / f"{name}.gz"):
                if path.is_file():
                    return path
        raise UserError(
            f"{self.source} has no {' or '.join(self.lists)}: name the list of the set with --boxes FILE "
            "(kaistmm/SSLalignment publishes it)"
        )

    @classmethod
    def recognise(cls, look: Look) -> str | None:
        there = [name for name in cls.lists if {name, f"{name}.gz"} & look.files]
        return f"{there[0]} in INPUT" if there else None
