"""Pictures as they are stored, and still pictures, masks and flow out of files that nobody vouches for, by Pillow;
sizes are bounded before memory is spent.
"""

import io
import math
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from preprocess.flow import grey_jpeg
from preprocess.quality import TINY_COLUMNS, TINY_ROWS
from preprocess.refusals import Refused, check_there

MAX_SIDE_PX = 16384
MAX_PIXELS = 64_000_000  # 256 MB as Pillow holds it; a larger picture is a mistake or an attack
MAX_STILL_BYTES = 256 * 2**20
_ORIENTATION = 0x0112  # the EXIF tag

# Pillow reads far more, some of it by other programs (EPS by Ghostscript) and much of it untested against attacks.
_STILL_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture as it is stored. size: `(width, height)` as stored, original: of the upright picture before reduction.

    time_s: from the start of the file; 0 for a still picture. flow: the codes of the motion to the next picture, to the
    right and down (`preprocess.flow`). rotated: it had to be turned to come upright. tiny: as 8 rows of 9 grey levels.
    motion: of the whole video as far as it was decoded, see `preprocess.quality`.
    """

    jpeg: bytes
    size: tuple[int, int]
    original: tuple[int, int]
    tiny: bytes
    time_s: float = 0.0
    flow: tuple[bytes, bytes] | None = None
    rotated: bool = False
    motion: float = math.nan


def check_size(path: Path, width: int, height: int) -> None:
    """Raises: Refused (too_large)."""
    if max(width, height) > MAX_SIDE_PX or width * height > MAX_PIXELS:
        raise Refused("too_large", f"{path.name}: {width} x {height} pixels")


def stored_picture(
    pixels: np.ndarray, short_side_px: int, quality: int, time_s: float = 0.0, rotated: bool = False
) -> Picture:
    """An upright `(H, W, 3)` uint8 BGR picture, reduced and coded."""
    small = reduced(pixels, short_side_px)
    return Picture(
        jpeg=encode_jpeg(small, quality),
        size=(small.shape[1], small.shape[0]),
        original=(pixels.shape[1], pixels.shape[0]),
        time_s=time_s,
        rotated=rotated,
        tiny=_tiny(small),
    )


def reduced(pixels: np.ndarray, short_side_px: int) -> np.ndarray:
    """`pixels` with the given short side, by area averaging; a smaller picture is never enlarged."""
    height, width = pixels.shape[:2]
    scale = short_side_px / min(height, width)
    if scale >= 1:
        return pixels
    size = (max(short_side_px, round(width * scale)), max(short_side_px, round(height * scale)))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def _tiny(pixels: np.ndarray) -> bytes:
    small = cv2.resize(pixels, (TINY_COLUMNS, TINY_ROWS), interpolation=cv2.INTER_AREA)
    return (small if small.ndim == 2 else cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)).tobytes()


def decoded(jpeg: bytes) -> np.ndarray:
    """`(height, width, 3)` uint8 RGB of a picture as it is stored, by OpenCV, as the reference loader decodes it."""
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert picture is not None, "a JPEG of our own must decode"
    return picture


def encode_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """`(H, W, 3)` uint8 BGR as baseline 4:2:0 JPEG without EXIF."""
    options = [
        *(cv2.IMWRITE_JPEG_QUALITY, quality),
        *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420),
    ]
    written, data = cv2.imencode(".jpg", pixels, options)
    assert written
    return data.tobytes()


@contextmanager
def _still(path: Path, data: bytes) -> Iterator[Image.Image]:
    """A still picture with its size checked; what Pillow raises inside becomes `Refused`."""
    opened = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sizes below our own limit, odd metadata, ...
            image = Image.open(io.BytesIO(data), formats=_STILL_FORMATS)
        with image:
            check_size(path, *image.size)
            opened = True
            yield image
    except Image.DecompressionBombError as error:
        raise Refused("too_large", f"{path.name}: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise Refused("decode_error" if opened else "unreadable", f"{path.name}: {error}") from error


def _file_bytes(path: Path) -> bytes:
    check_there(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_STILL_BYTES + 1)
        if len(data) > MAX_STILL_BYTES:
            raise Refused("too_large", f"{path.name} has more than {MAX_STILL_BYTES // 2**20} MiB")
        return data
    except OSError as error:
        raise Refused("unreadable", f"{path.name}: {error.strerror}") from error


def read_still(path: Path, short_side_px: int, quality: int) -> Picture:
    """A still picture, upright.

    A file that already is what the store holds (baseline 4:2:0 JPEG of three components, upright, not too large) keeps
    its coded pixels byte for byte; only EXIF and other application segments are dropped.

    Raises: Refused (missing_file, unreadable, decode_error, too_large).
    """
    data = _file_bytes(path)
    with _still(path, data) as image:
        size = image.size
        plain = None if min(size) > short_side_px else plain_jpeg(data)
        if plain is not None:
            image.draft("L", (1, 1))  # its brightness at an eighth of the size; every coded bit is read all the same
        image.load()  # all of it, so that a truncated file is known here and not in training
        if plain is not None:
            return Picture(jpeg=plain, size=size, original=size, tiny=_tiny(np.asarray(image)))
        rotated = image.getexif().get(_ORIENTATION, 1) != 1
        upright = ImageOps.exif_transpose(image) if rotated else image
        if upright.mode.startswith("I;16"):
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        pixels = np.asarray(upright if upright.mode == "RGB" else upright.convert("RGB"))
    return stored_picture(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), short_side_px, quality, rotated=rotated)


def read_mask(path: Path, size: tuple[int, int], above: int | None = None) -> np.ndarray:
    """A truth map `(H, W)` uint8, 255 where the sound is, reduced to at most `size` (width, height) by area averaging.

    above: values above this are 255, all others 0. None: grey levels are kept, and a picture whose brightest value is 1
    counts as 0 and 1. Raises: Refused (missing_file, bad_mask, too_large).
    """
    try:
        with _still(path, _file_bytes(path)) as image:
            mask = np.asarray(image if image.mode == "P" else image.convert("L"))
    except Refused as error:
        if error.reason in ("unreadable", "decode_error"):
            raise Refused("bad_mask", error.detail) from error
        raise
    if above is not None:
        mask = np.where(mask > above, np.uint8(255), np.uint8(0))
    elif mask.max(initial=0) == 1:
        mask = mask * np.uint8(255)
    if mask.shape[1] > size[0] or mask.shape[0] > size[1]:
        mask = cv2.resize(mask, size, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(mask)


def read_flow(path: Path, size: tuple[int, int]) -> bytes:
    """A grey picture of ready flow codes as a baseline JPEG of `size` (width, height); one that already is that keeps
    its bytes but for application segments. Codes stay as they are where the size does not.

    Raises: Refused (missing_file, bad_flow, too_large).
    """
    data = _file_bytes(path)
    try:
        with _still(path, data) as image:
            plain = plain_jpeg(data, grey=True) if image.size == size else None
            codes = np.asarray(image.convert("L"))  # all of it, so that a truncated file is known here
    except Refused as error:
        if error.reason in ("unreadable", "decode_error"):
            raise Refused("bad_flow", error.detail) from error
        raise
    return plain or grey_jpeg(codes if image.size == size else cv2.resize(codes, size, interpolation=cv2.INTER_AREA))


def plain_jpeg(data: bytes, grey: bool = False) -> bytes | None:
    """`data` without its application and comment segments, if it is a baseline 4:2:0 JPEG that all decoders show alike.

    None if it must be coded anew: progressive or arithmetic, other than 8 bit and three components with 2x2 luma
    (`grey`: one component), turned by EXIF, in Adobe's RGB, or not a JPEG.
    """
    if data[:2] != b"\xff\xd8":
        return None
    out = bytearray(b"\xff\xd8")
    at = 2
    baseline = False
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # a filling byte
            at += 1
            continue
        length = struct.unpack_from(">H", data, at + 2)[0]
        segment = data[at : at + 2 + length]
        body = segment[4:]
        if marker == 0xC0:
            # precision, height, width, components, then (id, sampling, table) of each
            if len(body) < 9 or body[0] != 8 or body[5] != (1 if grey else 3):
                return None
            if not grey and (len(body) < 15 or (body[7], body[10], body[13]) != (0x22, 0x11, 0x11)):
                return None
            baseline = True
        other_coding = 0xC1 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)
        turned = marker == 0xE1 and body[:4] == b"Exif" and _turned(data)
        other_colours = marker == 0xEE and body[:5] == b"Adobe" and body[11:12] != b"\x01"
        if other_coding or turned or other_colours:
            return None
        if marker == 0xDA:
            return bytes(out + data[at:]) if baseline else None
        if marker == 0xE0 or not (0xE1 <= marker <= 0xEF or marker == 0xFE):
            out += segment
        at += 2 + length
    return None


def _turned(data: bytes) -> bool:
    with Image.open(io.BytesIO(data)) as image:
        return image.getexif().get(_ORIENTATION, 1) != 1
