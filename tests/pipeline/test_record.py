import struct

import msgpack
import numpy as np
import pytest

from configs.errors import UserError
from pipeline.record import ALIGNMENT, VALUE_PHASE, Frame, Record, RecordView, Source, decode, encode


def full_record(**changes) -> Record:
    random = np.random.default_rng(0)
    values = {
        "clip_id": "clip é 1",
        "split": "train",
        "label": "bird",
        "group": "g7",
        "annotated_s": 5.0,
        "frames": [
            Frame(
                jpeg=random.bytes(1001),
                pixels=random.integers(0, 256, (4, 3, 3)).astype(np.uint8),
                flow=(random.bytes(101), random.bytes(99)),
                time_s=5.0,
                width=3,
                height=4,
            ),
            Frame(jpeg=random.bytes(7), time_s=6.5, width=5, height=6),
        ],
        "source": Source(file="a/b.mp4", start_s=1.5, duration_s=10.0, width=30, height=40, sample_rate_hz=44100),
        "spectrograms": {
            "logmel": random.standard_normal((11, 128)).astype(np.float16),
            "ez_vsl": random.standard_normal((9, 257)).astype(np.float16),
            "sira": random.integers(0, 256, (9, 257)).astype(np.uint8),
        },
        "spectrogram_error": {"sira": 0.03},
        "waveform": random.integers(-32768, 32768, 1003).astype(np.int16),
        "sample_rate_hz": 16000,
        "boxes": np.array([[0.1, 0.2, 0.3, 0.4, 0], [0, 0, 1, 1, 2]]),
        "extra": {"tiles": ["a", "b"], "n": 3, "none": None},
    }
    return Record(**{**values, **changes})


def test_decode_gives_back_what_encode_was_given():
    record = full_record()
    found = decode(encode(record))
    same = ("clip_id", "split", "label", "group", "annotated_s", "source", "sample_rate_hz", "extra")
    for name in (*same, "spectrogram_error"):
        assert getattr(found, name) == getattr(record, name)
    assert [bytes(frame.jpeg) for frame in found.frames] == [frame.jpeg for frame in record.frames]
    assert [(f.time_s, f.width, f.height) for f in found.frames] == [(5.0, 3, 4), (6.5, 5, 6)]
    np.testing.assert_array_equal(found.frames[0].pixels, record.frames[0].pixels)
    assert tuple(map(bytes, found.frames[0].flow)) == record.frames[0].flow
    assert found.frames[1].pixels is None and found.frames[1].flow is None
    assert list(found.spectrograms) == ["logmel", "ez_vsl", "sira"]
    for name, array in record.spectrograms.items():
        np.testing.assert_array_equal(found.spectrograms[name], array)
        assert found.spectrograms[name].dtype == array.dtype
    for name in ("waveform", "boxes"):
        np.testing.assert_array_equal(getattr(found, name), getattr(record, name))
    assert found.mask is None


def test_a_bare_record_and_empty_truth():
    bare = decode(encode(Record(clip_id="a", split="s", frames=[], source=Source(file="x"))))
    assert (bare.boxes, bare.mask, bare.waveform, bare.label, bare.annotated_s) == (None,) * 5
    assert bare.frames == [] and bare.spectrograms == {} and bare.extra == {}
    silent = decode(encode(full_record(boxes=np.zeros((0, 5)))))
    assert silent.boxes is not None and silent.boxes.shape == (0, 5)


def test_a_frame_of_pixels_alone():
    pixels = np.arange(36, dtype=np.uint8).reshape(4, 3, 3)
    record = full_record(frames=[Frame(pixels=pixels, time_s=0, width=3, height=4)])
    found = decode(encode(record)).frames[0]
    np.testing.assert_array_equal(found.pixels, pixels)
    assert found.jpeg is None
    with pytest.raises(ValueError, match="frame 0 of clip é 1 has neither"):
        encode(full_record(frames=[Frame(time_s=0, width=3, height=4)]))


def test_any_msgpack_tool_reads_a_record():
    record = full_record()
    value = msgpack.unpackb(encode(record))
    assert value["clip_id"] == record.clip_id and value["frames/1"] == record.frames[1].jpeg
    assert value["source"]["file"] == "a/b.mp4" and value["boxes"][1] == [0, 0, 1, 1, 2]


def test_blobs_are_aligned_read_only_views_of_the_value():
    value = encode(full_record())
    start = np.frombuffer(value, np.uint8).ctypes.data
    view = RecordView(memoryview(value))
    assert view.names() == [
        *("frames/0", "raw/0", "flow/0/x", "flow/0/y", "frames/1"),
        *("spectrogram/logmel", "spectrogram/ez_vsl", "spectrogram/sira", "waveform"),
    ]
    for name in view.names():
        blob = view.blob(name)
        offset = blob.ctypes.data - start
        assert 0 < offset < len(value) and (offset + VALUE_PHASE) % ALIGNMENT == 0
        assert not blob.flags.writeable
        assert name in view
    assert "mask" not in view and view.get("mask") is None
    with pytest.raises(KeyError, match="mask"):
        view.blob("mask")


def test_encoding_repeats_byte_for_byte():
    assert encode(full_record()) == encode(full_record())


@pytest.mark.parametrize(
    "name", ["frames/0", "raw/0", "flow/0/y", "spectrogram/ez_vsl", "spectrogram/sira", "waveform"]
)
def test_a_flipped_bit_is_found_and_named(name: str):
    value = bytearray(encode(full_record()))
    assert RecordView(bytes(value)).damaged() == []
    blob = RecordView(bytes(value)).blob(name).tobytes()
    value[bytes(value).index(blob) + 3] ^= 4
    assert RecordView(bytes(value)).damaged() == [name]


def test_a_flipped_bit_in_the_small_fields_is_found():
    value = bytearray(encode(full_record()))
    value[bytes(value).index(b"bird")] ^= 1
    assert RecordView(bytes(value)).damaged() == ["fields"]


def test_a_cut_record_is_found():
    value = encode(full_record())
    assert len(RecordView(value[:-1]).damaged()) == 1
    for length in (0, 5, 20):
        with pytest.raises(UserError, match="not a Whence record"):
            RecordView(value[:length])
    with pytest.raises(UserError, match="head is longer"):
        RecordView(value[:60])


def test_other_versions_and_other_things_are_refused():
    value = bytearray(encode(full_record()))
    value[15:17] = struct.pack("<H", 9)
    with pytest.raises(UserError, match="version 9, this code reads 2"):
        RecordView(bytes(value))
    with pytest.raises(UserError, match="magic"):
        RecordView(bytes(100))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"waveform": np.zeros(4, np.float64)}, "float64"),
        ({"waveform": np.int16(3) * np.ones((), np.int16)}, "0 dimensions"),
        ({"mask": np.zeros((1, 1, 70000), np.uint8)}, "exceeds 65535"),
    ],
)
def test_what_the_format_does_not_have_is_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        encode(full_record(**changes))
