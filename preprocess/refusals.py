"""Why a clip is not packed."""

import stat
from pathlib import Path

from preprocess.quality import CLIP_FLAGS

REASONS = {
    "missing_file": "the file is not there",
    "unreadable": "no video, sound or picture format that is read, or no regular file",
    "no_video": "no video stream, or no picture in it",
    "no_audio": "no audio stream, or no sound in it",
    "decode_error": "the file breaks off or is damaged inside",
    "too_short": "less than 0.1 s of sound in the clip",
    "too_long": "more than 10 minutes; give duration_s",
    "too_large": "a picture beyond 16384 pixels a side or 64 megapixels, a picture file beyond 256 MiB, or more than "
    "1000 pictures a clip",
    "no_frame": "no picture within 1 s of the annotated instant",
    "bad_boxes": "boxes that are not x0 < x1, y0 < y1 within 0 to 1",
    "bad_mask": "a mask that cannot be read",
    "bad_flow": "a flow picture that cannot be read",
    "bad_spectrogram": "a .npy file that holds no power spectrogram of the front-end",
    "worker_crash": "packing processes died on the clip again and again, or it took them more than 10 minutes",
    **CLIP_FLAGS,  # only where `--drop` asks for it
}


class Refused(Exception):
    """A clip that cannot be packed: a reason code of `REASONS`, and what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        assert reason in REASONS, reason
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def check_there(path: Path) -> None:
    """Raises: Refused unless a file can be opened without waiting."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise Refused("missing_file", f"{path.name} is not there") from error
    except OSError as error:
        raise Refused("unreadable", f"{path.name}: {error.strerror}") from error
    # Opening a pipe waits for somebody to write into it, and a device may never end.
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe, a device or a socket"
        raise Refused("unreadable", f"{path.name} is {what}, no regular file")
