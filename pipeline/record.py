"""One clip as bytes: a msgpack map that any msgpack tool reads, with a table of offsets that lets ours not unpack it.

Layout of a value (all integers little endian):

    byte 0    map16 header                                     3 bytes
    byte 3    key "head"                                       5 bytes
    byte 8    bin16 header                                     3 bytes
    byte 11   the head: `_HEAD` then one `_ENTRY` for each blob
    ...       small fields: clip_id, split, label, group, annotated_s, frames, boxes, ..., as msgpack
    ...       blobs, each a bin32 after a filler that aligns it: "frames/0" (JPEG), "raw/0" (pixels), "flow/0/x" and
              "flow/0/y" (grey JPEGs), ... of every frame, "spectrogram/logmel", ..., "waveform", "mask"

A blob's payload starts where `(offset + VALUE_PHASE) % ALIGNMENT == 0`: LMDB puts a large value 16 bytes behind a page
boundary, so in the memory map the payload itself lies on a multiple of 64 bytes.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import msgpack
import numpy as np

from configs.errors import UserError

RECORD_VERSION = 2
ALIGNMENT = 64
VALUE_PHASE = 16

_MAGIC = 0x43485757  # "WWHC"
_HEAD = struct.Struct("<IHHII")  # magic, record version, number of blobs, length and crc32 of the small fields
_ENTRY = struct.Struct("<IIIIIIHH")  # name id, offset, length, crc32, dimensions 0..2 (0: absent), dtype code
_HEAD_OFFSET = 11
_DTYPES = (np.dtype("u1"), np.dtype("<i2"), np.dtype("<f2"), np.dtype("<f4"))
_FIELDS = (
    *("clip_id", "split", "label", "group", "annotated_s", "frames", "spectrogram_error", "sample_rate_hz"),
    *("boxes", "source", "extra"),
)


@lru_cache(maxsize=256)  # a few names are asked for over and over
def name_id(name: str) -> int:
    """The 32-bit id under which the head lists the blob `name`."""
    return zlib.crc32(name.encode())


@dataclass(kw_only=True)
class Frame:
    """A picture of the clip, upright; `time_s` counts from the clip's start.

    jpeg: baseline 4:2:0, without EXIF. pixels: `(height, width, 3)` uint8 RGB, as decoding the JPEG gives them. A frame
    has either or both. flow: where to its points move until the next picture of the video, to the right and down: two
    grey baseline JPEGs of the frame's size, whose codes the store's manifest explains.
    """

    time_s: float
    width: int
    height: int
    jpeg: bytes | memoryview | None = None
    pixels: np.ndarray | None = None
    flow: tuple[bytes | memoryview, bytes | memoryview] | None = None


@dataclass(kw_only=True)
class Source:
    """Where a clip came from, as it was before packing: paths under the input folder, the clip's start in the file, the
    duration of its sound, the upright picture size, the sound's own rate and channels.
    """

    file: str
    audio_file: str | None = None
    start_s: float = 0.0
    duration_s: float = 0.0
    width: int = 0
    height: int = 0
    sample_rate_hz: int = 0
    channels: int = 0


@dataclass(kw_only=True)
class Record:
    """A packed clip.

    annotated_s: the instant that the truth (or, without truth, the packer) points at, from the clip's start.
    spectrograms: front-end name -> `(T, F)`, `ln(power + floor)`, time-major: float16, or uint8 codes as the store's
    manifest says. spectrogram_error: front-end name -> how far the codes are from the float32 values at most.
    waveform: `(n,)` int16 mono at `sample_rate_hz`; 32767 is full scale.
    boxes: `(k, 5)` rows x0, y0, x1, y1 as fractions of the picture, and the index of the annotator.
    mask: `(H, W)` uint8 truth map, 255 where the sound is. Boxes and mask None: the clip has no truth.
    """

    clip_id: str
    split: str
    frames: list[Frame]
    source: Source
    label: str | None = None
    group: str | None = None
    annotated_s: float | None = None
    spectrograms: dict[str, np.ndarray] = field(default_factory=dict)
    spectrogram_error: dict[str, float] = field(default_factory=dict)
    waveform: np.ndarray | None = None
    sample_rate_hz: int | None = None
    boxes: np.ndarray | None = None
    mask: np.ndarray | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def encode(record: Record) -> bytes:
    """The stored form of a record. Raises: ValueError for a dtype or shape that the format does not have."""
    blobs: list[tuple[str, Any, tuple[int, ...], int]] = []
    for name, array in _arrays(record):
        if array is None:
            continue
        if array.dtype not in _DTYPES or not 1 <= array.ndim <= 3:
            raise ValueError(
                f"blob {name} of {record.clip_id}: {array.dtype} with {array.ndim} dimensions is not stored"
            )
        blobs.append((name, np.ascontiguousarray(array).data.cast("B"), array.shape, _DTYPES.index(array.dtype)))

    names = [name_id(name) for name, *_ in blobs]
    if len(set(names)) < len(names):
        raise ValueError(f"two blobs of {record.clip_id} share a name id: {', '.join(name for name, *_ in blobs)}")
    pack = msgpack.Packer(use_bin_type=True).pack
    small = {
        "clip_id": record.clip_id,
        "split": record.split,
        "label": record.label,
        "group": record.group,
        "annotated_s": record.annotated_s,
        "frames": [[frame.time_s, frame.width, frame.height] for frame in record.frames],
        "spectrogram_error": record.spectrogram_error,
        "sample_rate_hz": record.sample_rate_hz,
        "boxes": None if record.boxes is None else [[float(value) for value in row] for row in record.boxes],
        "source": vars(record.source),
        "extra": record.extra,
    }
    head_length = _HEAD.size + len(blobs) * _ENTRY.size
    out = bytearray()
    out += b"\xde" + struct.pack(">H", 1 + len(small) + 2 * len(blobs))
    out += pack("head") + b"\xc5" + struct.pack(">H", head_length)
    assert len(out) == _HEAD_OFFSET
    out += bytes(head_length)
    for key, value in small.items():
        out += pack(key) + pack(value)
    fields_at = _HEAD_OFFSET + head_length
    fields = memoryview(out)[fields_at:]
    head = _HEAD.pack(_MAGIC, RECORD_VERSION, len(blobs), len(fields), zlib.crc32(fields))
    fields.release()  # a bytearray with a view of it cannot grow
    for index, (name, payload, shape, dtype) in enumerate(blobs):
        # The filler (key "~k", bin8) brings the payload, behind its own key and bin32 header, to the boundary.
        key = pack(name)
        out += pack(f"~{index}") + b"\xc4"
        payload_at = len(out) + 1 + len(key) + 5
        filler = -(payload_at + VALUE_PHASE) % ALIGNMENT
        out += bytes([filler]) + bytes(filler) + key + b"\xc6" + struct.pack(">I", len(payload))
        dims = (*shape, 0, 0)[:3]
        if dims[2] > 0xFFFF:
            raise ValueError(f"blob {name} of {record.clip_id}: third dimension {dims[2]} exceeds 65535")
        head += _ENTRY.pack(name_id(name), len(out), len(payload), zlib.crc32(payload), *dims, dtype)
        out += payload
    out[_HEAD_OFFSET : _HEAD_OFFSET + head_length] = head
    return bytes(out)


def _arrays(record: Record) -> Iterator[tuple[str, np.ndarray | None]]:
    """Name and content of every blob that a record can have, in stored order."""
    for index, frame in enumerate(record.frames):
        if frame.jpeg is None and frame.pixels is None:
            raise ValueError(f"frame {index} of {record.clip_id} has neither a JPEG nor pixels")
        yield f"frames/{index}", None if frame.jpeg is None else np.frombuffer(frame.jpeg, np.uint8)
        yield f"raw/{index}", frame.pixels
        for axis, jpeg in zip("xy", frame.flow or ()):
            yield f"flow/{index}/{axis}", np.frombuffer(jpeg, np.uint8)
    for name, array in record.spectrograms.items():
        yield f"spectrogram/{name}", array
    yield "waveform", record.waveform
    yield "mask", record.mask


class RecordView:
    """A stored record, read in place: blobs are zero-copy views of `value`, which must outlive them."""

    __slots__ = ("_entries", "_fields", "_value")

    def __init__(self, value: memoryview | bytes) -> None:
        """Raises: UserError if `value` is not a record of a version that this code reads."""
        self._value = value
        if len(value) < _HEAD_OFFSET + _HEAD.size:
            raise UserError(f"not a Whence record: {len(value)} bytes are too few")
        magic, version, count, fields_length, fields_crc = _HEAD.unpack_from(value, _HEAD_OFFSET)
        if magic != _MAGIC:
            raise UserError("not a Whence record: its head does not start with the magic number")
        if version != RECORD_VERSION:
            raise UserError(f"the record has version {version}, this code reads {RECORD_VERSION}; pack the store again")
        start = _HEAD_OFFSET + _HEAD.size
        if start + count * _ENTRY.size > len(value):
            raise UserError("damaged record: its head is longer than the record")
        end = start + count * _ENTRY.size
        self._entries = {entry[0]: entry for entry in _ENTRY.iter_unpack(value[start:end])}
        self._fields = (end, end + fields_length, fields_crc)

    def __contains__(self, name: str) -> bool:
        return name_id(name) in self._entries

    def blob(self, name: str) -> np.ndarray:
        """The blob as an array of its stored shape, read-only, without a copy. Raises: KeyError."""
        try:
            _, offset, length, _, d0, d1, d2, code = self._entries[name_id(name)]
        except KeyError:
            raise KeyError(name) from None
        dtype = _DTYPES[code]
        array = np.frombuffer(self._value, dtype, length // dtype.itemsize, offset)
        return array if d1 == 0 else array.reshape((d0, d1) if d2 == 0 else (d0, d1, d2))

    def get(self, name: str) -> np.ndarray | None:
        """The blob, or None if the record does not have it."""
        return self.blob(name) if name in self else None

    def fields(self) -> dict[str, Any]:
        """The small fields, unpacked; blobs are skipped."""
        start, end, _ = self._fields
        unpacker = msgpack.Unpacker(raw=False, max_buffer_size=0)
        unpacker.feed(self._value[start:end])
        return {unpacker.unpack(): unpacker.unpack() for _ in _FIELDS}

    def damaged(self) -> list[str]:
        """Names of parts whose checksum does not match or that reach beyond the record; "fields": the small ones."""
        start, end, fields_crc = self._fields
        bad = []
        if end > len(self._value) or zlib.crc32(self._value[start:end]) != fields_crc:
            bad.append("fields")
        keys = [
            key
            for key, offset, length, crc, *_ in self._entries.values()
            if offset + length > len(self._value) or zlib.crc32(self._value[offset : offset + length]) != crc
        ]
        if keys:
            try:
                names = {name_id(name): name for name in self.names()}
            except ValueError:  # the map itself is broken, so that the names cannot be told
                names = {}
            bad += [names.get(key, f"blob {key:#x}") for key in keys]
        return bad

    def names(self) -> list[str]:
        """Names of the blobs, in stored order. Raises: ValueError if the record is no longer valid msgpack."""
        fields = msgpack.unpackb(self._value, raw=False)
        return [key for key in fields if name_id(key) in self._entries]


def decode(value: memoryview | bytes) -> Record:
    """The record that `encode` was given; blobs are views of `value`."""
    view = RecordView(value)
    fields = view.fields()
    spectrograms = {
        name.removeprefix("spectrogram/"): view.blob(name) for name in view.names() if name.startswith("spectrogram/")
    }
    return Record(
        clip_id=fields["clip_id"],
        split=fields["split"],
        label=fields["label"],
        group=fields["group"],
        annotated_s=fields["annotated_s"],
        frames=[
            _frame(view, index, time_s, width, height) for index, (time_s, width, height) in enumerate(fields["frames"])
        ],
        source=Source(**fields["source"]),
        spectrograms=spectrograms,
        spectrogram_error=fields["spectrogram_error"],
        waveform=view.get("waveform"),
        sample_rate_hz=fields["sample_rate_hz"],
        boxes=None if fields["boxes"] is None else np.array(fields["boxes"], np.float64).reshape(-1, 5),
        mask=view.get("mask"),
        extra=fields["extra"],
    )


def _frame(view: RecordView, index: int, time_s: float, width: int, height: int) -> Frame:
    jpeg, x, y = (view.get(name) for name in (f"frames/{index}", f"flow/{index}/x", f"flow/{index}/y"))
    return Frame(
        time_s=time_s,
        width=width,
        height=height,
        jpeg=None if jpeg is None else jpeg.data,
        pixels=view.get(f"raw/{index}"),
        flow=None if x is None or y is None else (x.data, y.data),
    )
