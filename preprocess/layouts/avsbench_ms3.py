"""AVSBench MS3: several sources a video (Zhou et al., ECCV 2022)."""

from preprocess.avsbench import AvsBench, AvsBenchConfig
from preprocess.layout import Look


class AvsBenchMs3(AvsBench):
    """INPUT holds `visual_frames/<video>/<video>.mp4_<1..5>.png`, `gt_masks/<split>/<video>/<video>_<1..5>.png` and
    `audio_wav/<split>/<video>.wav`; or all flat, with `ms3_meta_data.csv`. A clip is one frame.
    """

    class Config(AvsBenchConfig):
        pass

    test_split = "avsbench_ms3_test"
    table = "ms3_meta_data.csv"
    video_column = "video_id"
    kind = "ms3"

    @classmethod
    def recognise_frames(cls, look: Look) -> str | None:
        videos = look.names("visual_frames")[:1]
        named = [name for video in videos for name in look.names(f"visual_frames/{video}") if ".mp4_" in name]
        return f"frames named like {named[0]}" if named else None
