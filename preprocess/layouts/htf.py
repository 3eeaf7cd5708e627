"""The folders of Hear the Flow and SIRA-SSL: pictures, sounds and optical flow."""

from dataclasses import replace

from preprocess.layout import Layout, LayoutConfig, Look, SourceClip
from preprocess.listing import PICTURES, SOUNDS, by_id, find_files, folder_of, paired

_FLOWS = ("flow/flow_x", "flow/flow_y")


class Htf(Layout):
    """INPUT holds `frames/<id>.jpg`, `audio/<id>.wav` and `flow/flow_x/<id>.jpg`, `flow/flow_y/<id>.jpg`, as Hear the
    Flow and SIRA-SSL do. The ids may be VGGSound's in either form.
    """

    class Config(LayoutConfig):
        pass

    def clips(self) -> list[SourceClip]:
        pictures = by_id(self, find_files(self.root, folder_of(self, "frames"), PICTURES))
        sounds = by_id(self, find_files(self.root, folder_of(self, "audio"), SOUNDS))
        across, down = (by_id(self, find_files(self.root, folder_of(self, name), PICTURES)) for name in _FLOWS)
        clips = paired(self, pictures, sounds)
        both = across.keys() & down.keys()
        without = sum(clip.clip_id not in both for clip in clips)
        if without:
            self.notes.append(
                f"{without} of {len(clips)} clips have no flow_x and flow_y; they are packed without flow"
            )
        return [
            replace(clip, flow_x=across[clip.clip_id], flow_y=down[clip.clip_id]) if clip.clip_id in both else clip
            for clip in clips
        ]

    @classmethod
    def recognise(cls, look: Look) -> str | None:
        if look.has("frames", *PICTURES) and look.has("audio", *SOUNDS) and "flow" in look.folders:
            return "frames/, audio/ and flow/"
        return None
