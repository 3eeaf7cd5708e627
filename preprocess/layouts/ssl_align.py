"""The folders of SSL-Align."""

from pydantic import Field

from preprocess.layout import Layout, LayoutConfig, Look, SourceClip
from preprocess.listing import PICTURES, SOUNDS, by_id, find_files, folder_of, paired, pictures_by_id


class SslAlign(Layout):
    """INPUT holds `IMG/<id>/image_050.jpg` (ten pictures a second), or `IMG/<id>.mp4/<any>.jpg`, `IMG/<id>.jpg`, and
    `AUD/<id>.wav`, as SSL-Align keeps VGGSound and Flickr. Ids of VGGSound are `<YouTube id>_<start ms>_<end ms>`.
    """

    class Config(LayoutConfig):
        picture: str = Field(
            default="image_050.jpg",
            description="which picture of a clip: first, middle, or a file name; image_050.jpg is at 5 s",
        )

    def clips(self) -> list[SourceClip]:
        pictures = pictures_by_id(self, folder_of(self, "IMG"), PICTURES, self.config.picture)
        return paired(self, pictures, by_id(self, find_files(self.root, folder_of(self, "AUD"), SOUNDS)))

    @classmethod
    def recognise(cls, look: Look) -> str | None:
        if "IMG" in look.folders and look.has("AUD", *SOUNDS):
            return "IMG/ and AUD/"
        return None
