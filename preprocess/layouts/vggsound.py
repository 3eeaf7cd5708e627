"""VGGSound as it is downloaded: one video file a clip."""

from configs.ids import is_vggsound
from preprocess.layout import Layout, LayoutConfig, LeftOut, Look, SourceClip
from preprocess.listing import VIDEOS, by_id, find_files, stem


class Vggsound(Layout):
    """INPUT is a folder of VGGSound clips, also in folders below it, named `<YouTube id>_<second, 6 digits>` or
    `<YouTube id>_<start ms>_<end ms>`. Give `--labels vggsound.csv` for classes and splits.
    """

    class Config(LayoutConfig):
        pass

    def clips(self) -> list[SourceClip]:
        paths = []
        for path in find_files(self.root, "", VIDEOS, deep=True):
            if is_vggsound(stem(path)):
                paths.append(path)
            else:
                self.left_out.append(LeftOut(stem(path), "", "other_name", path))
        return [SourceClip(clip_id=clip_id, video=path) for clip_id, path in by_id(self, paths).items()]

    @classmethod
    def recognise(cls, look: Look) -> str | None:
        below = look.names("")
        inner = [name for folder in sorted(look.folders)[:1] for name in look.names(folder)]
        for names, where in ((below, ""), (inner, ", in folders")):
            videos = [name for name in names if name.lower().endswith(VIDEOS)]
            if videos and all(is_vggsound(stem(name)) for name in videos):
                return f"videos with names of VGGSound, like {videos[0]}{where}"
        return None
