"""One name for a clip, whatever form a list or a file gives it."""

import re

# A YouTube id has 11 characters and may itself hold `_` and `-`: it is cut off by position, never at a separator.
_YOUTUBE = r"[A-Za-z0-9_-]{11}"
_SECOND = re.compile(rf"{_YOUTUBE}_\d{{6}}")
_MILLISECONDS = re.compile(rf"({_YOUTUBE})_(\d+)_(\d+)")
_FLICKR = re.compile(r"\d{6,12}")
_VIDEO = re.compile(rf"({_YOUTUBE})(_\d+){{1,2}}")
_SUFFIXES = re.compile(r"(\.(mp4|webm|mkv|wav|flac|mp3|jpe?g|png|npy))+$", re.IGNORECASE)
_CLIP_MS = 10_000


def normalise_id(text: str) -> str:
    """The canonical id of a VGGSound or Flickr clip.

    VGGSound: `<YouTube id>_<start second, 6 digits>`, also from `<YouTube id>_<start ms>_<end ms>` of its ten-second
    clips; Flickr: the number of the video. Suffixes of media files, `.mp4.mp3` as well, are dropped from both. Any
    other text is given back as it is.
    """
    stem = _SUFFIXES.sub("", text)
    if _SECOND.fullmatch(stem) or _FLICKR.fullmatch(stem):
        return stem
    match = _MILLISECONDS.fullmatch(stem)
    if match:
        start_ms, end_ms = int(match[2]), int(match[3])
        if end_ms - start_ms == _CLIP_MS and start_ms % 1000 == 0 and start_ms < 10**9:
            return f"{match[1]}_{start_ms // 1000:06d}"
    return text


def is_vggsound(text: str) -> bool:
    """Whether a text is the id of a VGGSound clip in any of its forms."""
    return _SECOND.fullmatch(normalise_id(text)) is not None


def source_of(clip_id: str) -> str:
    """What a clip was cut from: the YouTube id or the Flickr number; of any other clip, its own id.

    Two clips with one source show the same recording, so a split that holds one of them knows the other.
    """
    canonical = normalise_id(clip_id)
    match = _VIDEO.fullmatch(canonical)
    return match[1] if match else canonical
