"""The training folders of JSA: pictures, and spectrograms in place of sounds."""

from dataclasses import replace

from preprocess.layout import Layout, LayoutConfig, Look, SourceClip
from preprocess.listing import PICTURES, by_id, find_files, folder_of, paired

_ARRAYS = (".npy",)


class Jsa(Layout):
    """INPUT holds `frames/<id>.jpg` and `audio/<id>.npy`, power spectrograms before the logarithm, as JSA trains on.

    There is no sound in it: pack it with `--frontend jsa --no-waveform`. Other front-ends cannot be made from it.
    """

    class Config(LayoutConfig):
        pass

    def clips(self) -> list[SourceClip]:
        pictures = by_id(self, find_files(self.root, folder_of(self, "frames"), PICTURES))
        arrays = by_id(self, find_files(self.root, folder_of(self, "audio"), _ARRAYS))
        return [replace(clip, audio=None, spectrogram=clip.audio) for clip in paired(self, pictures, arrays)]

    @classmethod
    def recognise(cls, look: Look) -> str | None:
        if look.has("frames", *PICTURES) and look.has("audio", *_ARRAYS):
            return "frames/ with pictures and audio/ with .npy spectrograms"
        return None
