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
# A title in an unknown coding is no reason to refuse a file; PyAV 19 and newer never fail over one.
_OPTIONS: dict[str, Any] = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "ignore"}
_BEFORE_ALL = -(1 << 40)  # microseconds


class KeptFile:
    """Keeps a file open between the reading of its sound and of its pictures: opening costs as much as decoding half a
    second, because FFmpeg decodes the beginning to learn what it holds.

    Only files with an index are kept (MP4 and its kin): in those the way back to the start is exact, unless the index
    itself is damaged.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._container: av.container.InputContainer | None = None

    def take(self, path: Path) -> av.container.InputContainer | None:
        """The container of this file, at its start, if it was kept; it is then the caller's."""
        if self._path != path or self._container is None:
            return None
        container, self._container = self._container, None
        try:
            # Not to 0: where a clip was cut out of a longer one, its first pictures hang on one from before 0.
            container.seek(_BEFORE_ALL)
        except av.error.FFmpegError:
            container.close()
            return None
        return container

    def put(self, path: Path, container: av.container.InputContainer) -> None:
        """Keep a container, or close it."""
        self.close()
        if "mp4" in container.format.name.split(","):
            self._path, self._container = path, container
        else:
            container.close()

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
        self._container = None

    def __enter__(self) -> "KeptFile":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@contextmanager
def opened_file(path: Path, kept: KeptFile | None = None) -> Iterator[av.container.InputContainer]:
    """The container of a media file; whatever FFmpeg raises inside becomes `Refused`.

    kept: where the file is taken from, if it is there, and else put to at the end.
    """
    check_there(path)
    # The libraries write about every damaged packet; what matters of it comes back as an exception. Said for every
    # file, because torchvision turns it on again wherever it is imported.
    av.logging.set_level(None)
    container = None if kept is None else kept.take(path)
    opened = taken = container is not None
    try:
        if container is None:
            container = av.open(
                str(path.absolute()),  # so that no file name is taken for an address
                options={"protocol_whitelist": "file", "format_whitelist": _FORMATS},
                **_OPTIONS,
            )
            opened = True
        yield container
        if kept is not None and not taken:
            kept.put(path, container)
            container = None
    except av.error.FFmpegError as error:
        text = getattr(error, "strerror", None) or str(error)
        raise Refused("decode_error" if opened else "unreadable", f"{path.name}: {text}") from error
    except (OverflowError, ValueError) as error:  # PyAV's own, for times and formats that it cannot say
        raise Refused("decode_error" if opened else "unreadable", f"{path.name}: {error}") from error
    finally:
        if container is not None:
            container.close()


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
