"""The folders that LVS, EZ-VSL, SLAVC and ACL train and test on."""

from pydantic import Field

from preprocess.layout import Layout, LayoutConfig, Look, SourceClip
from preprocess.listing import SOUNDS, by_id, find_files, folder_of, paired, pictures_by_id

_PICTURES = (".jpg", ".jpeg")


class FramesAudio(Layout):
    """INPUT holds `frames/<id>.jpg` and `audio/<id>.wav`, as LVS, EZ-VSL, SLAVC and ACL keep VGGSound and Flickr.

    Also `frames/<id>/<any>.jpg`, and `extend_frames`, `extend_audio` of the extended test sets.
    """

    class Config(LayoutConfig):
        picture: str = Field(default="first", description="of a folder of pictures: first, middle, or a file name")

    def clips(self) -> list[SourceClip]:
        frames = folder_of(self, "frames", "extend_frames")
        audio = folder_of(self, "audio", "extend_audio")
        pictures = pictures_by_id(self, frames, _PICTURES, self.config.picture)
        return paired(self, pictures, by_id(self, find_files(self.root, audio, SOUNDS)))

    @classmethod
    def recognise(cls, look: Look) -> str | None:
        for frames, audio in (("frames", "audio"), ("extend_frames", "extend_audio")):
            folders = (frames, *(f"{frames}/{name}" for name in look.names(frames)[:1]))
            pictures = any(look.has(folder, *_PICTURES) for folder in folders)
            if pictures and look.has(audio, *SOUNDS) and "flow" not in look.folders:
                return f"{frames}/ with .jpg pictures and {audio}/ with sounds"
        return None
