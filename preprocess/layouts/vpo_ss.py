"""VPO-SS: pictures of COCO with sounds of VGGSound, one source a picture."""

from preprocess.annotated_set import AnnotatedSet, AnnotatedSetConfig


class VpoSs(AnnotatedSet):
    """INPUT holds `visual_frames/` (or images, frames), `audio_wav/` and `vpo_ss_bbox.json`; for `--truth masks` also
    `gray_masks/`. Clips of one picture share a group.
    """

    class Config(AnnotatedSetConfig):
        pass

    split = "vpo_ss_test"
    lists = ("vpo_ss_bbox.json",)
