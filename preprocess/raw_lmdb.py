"""Pictures and sounds that VCS keeps as raw values in LMDB: bytes without a header, so nothing of them is unpickled."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import numpy as np

from configs.errors import UserError
from preprocess.pictures import Picture, stored_picture
from preprocess.refusals import Refused
from preprocess.sound import MAX_CLIP_S, MIN_SOUND_S, Sound

SIDE_PX = 256
PICTURE_BYTES = SIDE_PX * SIDE_PX * 3
RATE_HZ = 24_000
_PICKLE = b"\x80"


@contextmanager
def _values(path: Path) -> Iterator[lmdb.Transaction]:
    with (
        lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False, create=False) as environment,
        environment.begin(buffers=True) as transaction,
    ):
        yield transaction


def read_keys(path: Path, suffix: str = "", size: int | None = None) -> dict[str, str]:
    """What stands before `suffix` in the keys that end with it -> the key. size: that the first value must have.

    Raises: UserError if `path` is no LMDB environment, or its values are not raw arrays.
    """
    found = {}
    end = suffix.encode()
    try:
        with _values(path) as transaction:
            for key in transaction.cursor().iternext(values=False):
                if bytes(key).endswith(end):
                    text = bytes(key).decode("ascii")
                    found[text[: len(text) - len(suffix)]] = text
            for key in list(found.values())[:1]:
                _check(bytes(transaction.get(key.encode()) or b""), f"{path}, key {key}", size)
    except lmdb.Error as error:
        raise UserError(f"{path} is not an LMDB environment: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} has keys that are no names of VCS: {error}") from error
    return found


def _check(value: bytes, where: str, size: int | None) -> None:
    raw = len(value) == size if size else len(value) % 4 == 0
    if raw:
        return
    wanted = f"{size} bytes ({SIDE_PX} x {SIDE_PX} BGR)" if size else "float32 samples"
    pickled = " It looks pickled, and unpickling a file runs whatever it says: export it as raw arrays or files." * (
        value[:1] == _PICKLE
    )
    raise UserError(f"{where} holds {len(value)} bytes, not {wanted} as VCS stores them.{pickled}")


def read_raw_picture(path: Path, key: str, short_side_px: int, quality: int) -> Picture:
    """The picture under a key. Raises: Refused (missing_file, unreadable)."""
    value = _value(path, key)
    if len(value) != PICTURE_BYTES:
        raise Refused("unreadable", f"{path.name}, {key}: {len(value)} bytes, not {PICTURE_BYTES}")
    return stored_picture(np.frombuffer(value, np.uint8).reshape(SIDE_PX, SIDE_PX, 3), short_side_px, quality)


def read_raw_sound(path: Path, key: str, start_s: float = 0.0, duration_s: float | None = None) -> Sound:
    """The sound under a key, from `start_s` on. Raises: Refused (missing_file, unreadable, too_short, too_long)."""
    value = _value(path, key)
    if len(value) % 4:
        raise Refused("unreadable", f"{path.name}, {key}: {len(value)} bytes are no float32 samples")
    samples = np.frombuffer(value, "<f4")
    if not np.isfinite(samples).all():
        raise Refused("unreadable", f"{path.name}, {key}: samples that are no numbers")
    start = round(start_s * RATE_HZ)
    samples = samples[start : None if duration_s is None else start + round(duration_s * RATE_HZ)]
    if len(samples) < MIN_SOUND_S * RATE_HZ:
        raise Refused("too_short", f"{key}: {len(samples) / RATE_HZ:.3f} s of sound from {start_s:g} s on")
    if len(samples) > MAX_CLIP_S * RATE_HZ:
        raise Refused("too_long", f"{key}: {len(samples) / RATE_HZ:.0f} s; give duration_s")
    pcm = (samples.clip(-1, 1) * 32767).round().astype(np.int16)
    return Sound(samples=pcm, rate_hz=RATE_HZ, source_rate_hz=RATE_HZ, channels=1)


def _value(path: Path, key: str) -> bytes:
    try:
        with _values(path) as transaction:
            value = transaction.get(key.encode())
            if value is not None:
                return bytes(value)
    except lmdb.Error as error:
        raise Refused("unreadable", f"{path.name}: {error}") from error
    raise Refused("missing_file", f"{path.name} has no key {key}")
