import json
import os
import shutil
from pathlib import Path

import msgpack
import numpy as np
import pytest

from configs.errors import UserError
from pipeline.store import DATA, INDEX, MANIFEST, Store
from preprocess.files import NEIGHBOURS
from preprocess.neighbours import write_neighbours
from preprocess.quality import QUALITY
from preprocess.verify import verify


@pytest.fixture
def store(packed_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed_store, tmp_path / "store"))


def change_index(shard: Path, **columns: list) -> None:
    index = msgpack.unpackb((shard / INDEX).read_bytes())
    (shard / INDEX).write_bytes(msgpack.Packer().pack({**index, **columns}))


def test_a_whole_store(packed_store: Path):
    seen = []
    assert verify(packed_store, seen.append) == []
    assert seen == ["shard-00000", "shard-00001", "shard-00002"]


def test_a_flipped_bit_is_found_in_its_shard_clip_and_blob(store: Path):
    with Store(store) as opened:
        clip_id = opened.index["clip_id"][10]
        jpeg = opened.view(10).blob("frames/0").tobytes()
    file = store / "shard-00001" / DATA
    data = bytearray(file.read_bytes())
    data[data.index(jpeg) + 100] ^= 1
    file.write_bytes(data)
    assert verify(store) == [
        "shard-00001: data.mdb has other content than when it was written (sha256)",
        f"shard-00001: record 2 ({clip_id}) is damaged: frames/0",
    ]


def test_damaged_pages_do_not_end_the_check(store: Path):
    file = store / "shard-00000" / DATA
    size = file.stat().st_size
    with file.open("r+b") as data:
        data.seek(2 * 4096)
        data.write(bytes(range(256)) * ((size - 2 * 4096) // 256))
    found = verify(store)
    assert found[0] == "shard-00000: data.mdb has other content than when it was written (sha256)"
    assert len(found) > 1 and all(text.startswith("shard-00000: ") for text in found)


def test_truncated_and_missing_shards(store: Path):
    size = (store / "shard-00000" / DATA).stat().st_size
    os.truncate(store / "shard-00000" / DATA, size - 1)
    (store / "shard-00001" / DATA).unlink()
    shutil.rmtree(store / "shard-00002")
    assert verify(store) == [
        f"shard-00000: data.mdb has {size - 1} bytes, the manifest says {size}",
        "shard-00001: data.mdb is missing",
        "shard-00002: data.mdb is missing",
    ]


def test_an_index_that_says_something_else(store: Path):
    index = msgpack.unpackb((store / "shard-00000" / INDEX).read_bytes())
    labels = list(index["label"])
    labels[3] = "other"
    change_index(store / "shard-00000", label=labels)
    change_index(store / "shard-00001", split=["train"])
    (store / "shard-00002" / INDEX).write_bytes(b"\xc1")
    other = "index.msgpack has other content than when it was written (sha256)"
    marks, first, marks_2, second, marks_3, third = verify(store)
    assert [marks, marks_2, marks_3] == [f"shard-0000{number}: {other}" for number in range(3)]
    assert first == f"shard-00000: record 3 ({index['clip_id'][3]}): index.msgpack says something else about label"
    assert second == "shard-00001: index.msgpack does not list 8 clips in every column"
    assert third.startswith("shard-00002: index.msgpack is missing or damaged")


def test_totals_and_strays(store: Path):
    shutil.copytree(store / "shard-00000", store / "shard-00007")
    assert verify(store) == ["shard-00007: not in the manifest; no part of the store, it may be deleted"]
    shutil.rmtree(store / "shard-00007")
    manifest = json.loads((store / MANIFEST).read_text())
    manifest["splits"]["test"]["clips"] = 9
    manifest["id_hash"] = "0" * 16
    (store / MANIFEST).write_text(json.dumps(manifest))
    assert verify(store) == [
        "manifest: split 'test' has 9 clips by it, the shards hold 8 or others",
        "manifest: 24 clips are said to be packed, the shards hold 24 or others",
    ]


def test_measures_and_neighbours_are_checked(store: Path):
    rng = np.random.default_rng(0)
    with Store(store) as opened:
        tables = {kind: rng.integers(0, 2, (len(opened), 1), np.int32) for kind in ("image", "audio")}
        write_neighbours(opened, tables, 1, {})
    assert verify(store) == []
    for file in (store / "shard-00000" / QUALITY, store / NEIGHBOURS / "audio.npy"):
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    remedy = "run `python -m preprocess neighbours` again, or delete the folder"
    changed = "has other content than when it was written (sha256)"
    assert verify(store) == [
        f"shard-00000: quality.msgpack {changed}",
        f"neighbours/audio.npy {changed}; {remedy}",
    ]
    (store / "shard-00000" / QUALITY).unlink()
    (store / NEIGHBOURS / "neighbours.json").unlink()
    first, second = verify(store)
    assert first == "shard-00000: quality.msgpack cannot be read (No such file or directory)"
    assert second.startswith("neighbours: unfinished or damaged") and second.endswith(remedy)


def test_no_store(tmp_path: Path):
    with pytest.raises(UserError, match="no finished store"):
        verify(tmp_path)
