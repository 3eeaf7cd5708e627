"""Flickr-SoundNet: the nested tree of its release, the annotated download, and flat folders."""

import re

from pydantic import Field

from configs.ids import normalise_id
from preprocess.layout import Layout, LayoutConfig, LeftOut, Look, SourceClip
from preprocess.listing import PICTURES, SOUNDS, by_id, chosen, find_files, paired, stem

_NUMBER = re.compile(r"\d{6,}")  # the folders above a video are single digits


class Soundnet(Layout):
    """INPUT holds Flickr-SoundNet in any depth of folders: `frames/videos1/1/2/3/<id>.mp4/<any>.jpg` with
    `mp3/videos1/1/2/3/<id>.mp4.mp3`; `Data/` of the annotated download; or flat files `<id>.jpg` and `<id>.wav`.

    The XML files of the annotators are taken from `Annotations/` in INPUT, or from `--annotations`.
    """

    class Config(LayoutConfig):
        picture: str = Field(default="middle", description="of a clip with several: first, middle, or a file name")

    def clips(self) -> list[SourceClip]:
        pictures: dict[str, list[str]] = {}
        for path in find_files(self.root, "", PICTURES, deep=True):
            folder = path.rpartition("/")[0].rpartition("/")[2]
            clip_id = next((name for name in map(normalise_id, (folder, stem(path))) if _NUMBER.fullmatch(name)), None)
            if clip_id is None:
                self.left_out.append(LeftOut(stem(path), "", "other_name", path))
            else:
                pictures.setdefault(clip_id, []).append(path)
        sounds = by_id(self, find_files(self.root, "", SOUNDS, deep=True))
        return paired(self, chosen(self, pictures, self.config.picture), sounds)

    @classmethod
    def recognise(cls, look: Look) -> str | None:
        if "Annotations" in look.folders and "Data" in look.folders:
            return "Annotations/ and Data/, as the annotated Flickr-SoundNet comes"
        if any(name.startswith("videos") for name in look.names("frames")) and "mp3" in look.folders:
            return "frames/videos*/ and mp3/, as SoundNet comes"
        return None
