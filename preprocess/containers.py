"""Files of video and sound that nobody vouches for, opened by PyAV.

Times count from the start of the file, that is, from the earlier of its first picture and its first sound. Whatever is
wrong with a file becomes a `Refused` with a reason code.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import av.container
import av.error
import av.logging
import av.stream

from preprocess.pictures import MAX_PIXELS
from preprocess.refusals import Refused, check_there

# Containers of media only: playlists and scripts (hls, concat, dash, ...) can name other files and addresses.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,wav,w64,mp3,flac,aac,aiff,au,caf,amr,nut,mxf"
)


@contextmanager
def opened_file(path: Path) -> Iterator[av.container.InputContainer]:
    """The container of a media file; whatever FFmpeg raises inside becomes `Refused`."""
    check_there(path)
    # The libraries write about every damaged packet; what matters of it comes back as an exception. Said for every
    # file, because torchvision turns it on again wherever it is imported.
    av.logging.set_level(None)
    opened = False
    try:
        # An absolute path, so that no file name is taken for an address.
        with av.open(
            str(path.absolute()),
            metadata_errors="ignore",
            options={"protocol_whitelist": "file", "format_whitelist": _FORMATS},
        ) as container:
            opened = True
            yield container
    except av.error.FFmpegError as error:
        text = getattr(error, "strerror", None) or str(error)
        raise Refused("decode_error" if opened else "unreadable", f"{path.name}: {text}") from error
    except (OverflowError, ValueError) as error:  # PyAV's own, for times and formats that it cannot say
        raise Refused("decode_error" if opened else "unreadable", f"{path.name}: {error}") from error


def one_thread(path: Path, stream: av.VideoStream | av.AudioStream) -> Any:
    """The decoder of a stream, on one thread and for pictures of a bounded size, whatever the container says of it."""
    context = stream.codec_context
    if context is None:
        raise Refused("unreadable", f"{path.name}: its {stream.type} has a coding that is not read")
    context.thread_count = 1
    context.options = {"max_pixels": str(MAX_PIXELS)} if stream.type == "video" else {}
    return context


def zero_s(container: av.container.InputContainer) -> float:
    """The time stamp at which the file starts."""
    return (container.start_time or 0) / av.time_base
