"""The LMDB environments that VCS packs its pictures and sounds into."""

from pydantic import Field

from configs.errors import UserError
from configs.ids import normalise_id
from preprocess.layout import Layout, LayoutConfig, LeftOut, Look, SourceClip, check_id, inside
from preprocess.raw_lmdb import PICTURE_BYTES, read_keys

_MODES = {"train": "train", "eval": "test"}


class VcsLmdb(Layout):
    """INPUT holds `train_images.lmdb` and `train_audios.lmdb`, or `eval_...`, as VCS packs them: raw BGR pictures of
    256 squared under `<video>/001.jpg` ..., float32 samples at 24 kHz under `<video>`. `meta_info.pkl` is not read.
    """

    class Config(LayoutConfig):
        picture: str = Field(default="007.jpg", description="which picture of a video; the authors read 007.jpg")

    def clips(self) -> list[SourceClip]:
        clips = []
        for mode, split in _MODES.items():
            images, audios = (
                inside(self.root, f"{mode}_{kind}.lmdb", str(self.source)) for kind in ("images", "audios")
            )
            if not ((self.root / images).exists() and (self.root / audios).exists()):
                continue
            pictures = read_keys(self.root / images, suffix=f"/{self.config.picture}", size=PICTURE_BYTES)
            sounds = read_keys(self.root / audios)
            for video in sorted(pictures.keys() | sounds.keys()):
                if video in pictures and video in sounds:
                    clips.append(
                        SourceClip(
                            clip_id=check_id(normalise_id(video), str(self.source)),
                            split=split,
                            image=images,
                            image_key=pictures[video],
                            audio=audios,
                            audio_key=sounds[video],
                        )
                    )
                else:
                    reason = "no_sound" if video in pictures else "no_picture"
                    self.left_out.append(LeftOut(normalise_id(video), split, reason, f"{mode}_*.lmdb"))
        if not clips:
            raise UserError(
                f"{self.source} has no train_images.lmdb and train_audios.lmdb (or eval_...), or no video in them has "
                f"both {self.config.picture} and sound"
            )
        return clips

    @classmethod
    def recognise(cls, look: Look) -> str | None:
        there = {f"{mode}_images.lmdb" for mode in _MODES} & (look.folders | look.files)
        return " and ".join(sorted(there)) or None
