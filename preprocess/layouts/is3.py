"""IS3: generated pictures with two sounding things each (Senocak et al., ICCV 2023)."""

from preprocess.annotated_set import AnnotatedSet, AnnotatedSetConfig


class Is3(AnnotatedSet):
    """INPUT holds `images/`, `audio_wav/` (or audio_waw) and `synthetic3240_bbox.json` of IS3; for `--truth masks` also
    `gt_segmentation/`. The two clips of a picture share a group; the last part of a name is the label.
    """

    class Config(AnnotatedSetConfig):
        pass

    split = "is3_test"
    lists = ("synthetic3240_bbox.json", "IS3_annotation.json")

    def label(self, clip_id: str) -> str | None:
        return clip_id.rpartition("_")[2]
