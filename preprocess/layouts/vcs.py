"""The folders of VCS: one picture a second, and the sound."""

from pydantic import Field

from preprocess.layout import Layout, LayoutConfig, Look, SourceClip
from preprocess.listing import PICTURES, SOUNDS, by_id, find_files, folder_of, paired, pictures_by_id


class Vcs(Layout):
    """INPUT holds `video_frames/<id>/001.jpg`, `002.jpg`, ... (one a second) and `audios/<id>.wav`, .flac or .mp3, as
    VCS does. One picture a clip is stored; the authors read 007.jpg. VGG-SS boxes belong to 006.jpg, at 5 s.
    """

    class Config(LayoutConfig):
        picture: str = Field(default="007.jpg", description="which picture of a clip: first, middle, or a file name")

    def clips(self) -> list[SourceClip]:
        pictures = pictures_by_id(self, folder_of(self, "video_frames"), PICTURES, self.config.picture)
        return paired(self, pictures, by_id(self, find_files(self.root, folder_of(self, "audios"), SOUNDS)))

    @classmethod
    def recognise(cls, look: Look) -> str | None:
        if "video_frames" in look.folders and look.has("audios", *SOUNDS):
            return "video_frames/ and audios/"
        return None
