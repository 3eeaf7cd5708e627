"""The folders of FNAC: pictures as png."""

from preprocess.layout import Layout, LayoutConfig, Look, SourceClip
from preprocess.listing import SOUNDS, by_id, find_files, paired

_PICTURES = (".png",)
_TOGETHER = (".png", ".jpg")


class Fnac(Layout):
    """INPUT holds `frames/<id>.png` and `audio/<id>.wav`, or pictures and sounds together in one folder, as FNAC keeps
    VGGSound and the Flickr test.
    """

    class Config(LayoutConfig):
        pass

    def clips(self) -> list[SourceClip]:
        apart = all((self.root / name).is_dir() for name in ("frames", "audio"))
        frames, audio, suffixes = ("frames", "audio", _PICTURES) if apart else ("", "", _TOGETHER)
        pictures = by_id(self, find_files(self.root, frames, suffixes))
        return paired(self, pictures, by_id(self, find_files(self.root, audio, SOUNDS)))

    @classmethod
    def recognise(cls, look: Look) -> str | None:
        if look.has("frames", *_PICTURES) and look.has("audio", *SOUNDS):
            return "frames/ with .png pictures and audio/ with sounds"
        if look.has("", *_TOGETHER) and look.has("", *SOUNDS):
            return "pictures and sounds together in one folder"
        return None
