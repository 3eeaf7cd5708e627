"""AVSBench S4: one sounding source a video (Zhou et al., ECCV 2022)."""

from preprocess.avsbench import AvsBench, AvsBenchConfig
from preprocess.layout import Look


class AvsBenchS4(AvsBench):
    """INPUT holds `visual_frames/<split>/<category>/<video>/<video>_<1..5>.png`, `gt_masks/` likewise and
    `audio_wav/<split>/<category>/<video>.wav`; or all flat, with `s4_meta_data.csv`. A clip is one frame.
    """

    class Config(AvsBenchConfig):
        pass

    test_split = "avsbench_s4_test"
    table = "s4_meta_data.csv"
    video_column = "name"
    kind = "s4"

    @classmethod
    def recognise_frames(cls, look: Look) -> str | None:
        splits = {"train", "val", "test"} & set(look.names("visual_frames"))
        return f"visual_frames/{min(splits)}/, gt_masks/, audio_wav/" if splits else None
