"""VPO-MS: pictures of COCO with sounds of VGGSound, one to five sources a picture."""

from preprocess.annotated_set import AnnotatedSet, AnnotatedSetConfig


class VpoMs(AnnotatedSet):
    """INPUT holds `visual_frames/` (or images, frames), `audio_wav/` and `vpo_ms_bbox.json`; for `--truth masks` also
    `gray_masks/`. Clips of one picture share a group.
    """

    class Config(AnnotatedSetConfig):
        pass

    split = "vpo_ms_test"
    lists = ("vpo_ms_bbox.json",)
