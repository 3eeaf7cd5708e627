import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from pipeline.record import decode
from pipeline.store import (
    DATA,
    INDEX,
    INDEX_COLUMNS,
    MANIFEST,
    Store,
    id_hash,
    index_row,
    is_held_out,
    key_of,
    part_of,
    read_manifest,
    training_list,
    training_numbers,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def copied(packed_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed_store, tmp_path / "store"))


def change_manifest(store: Path, **changes) -> None:
    manifest = json.loads((store / MANIFEST).read_text())
    (store / MANIFEST).write_text(json.dumps({**manifest, **changes}))


def test_the_index_says_what_the_records_hold(packed_store: Path):
    with Store(packed_store) as store:
        assert len(store) == 24 and store.splits == ["test", "train"]
        for number in range(len(store)):
            row = index_row(decode(store.value(number)))
            assert row == {name: store.index[name][number] for name in INDEX_COLUMNS}
            assert store.view(number).damaged() == []
        assert id_hash(store.index["clip_id"]) == store.manifest["id_hash"]


def test_a_split_comes_in_the_order_of_its_ids(packed_store: Path):
    with Store(packed_store) as store:
        ids = [store.index["clip_id"][number] for number in store.select("test")]
        assert ids == [f"clip_{number:02d}" for number in range(16, 24)]
        assert store.index["clip_id"] != sorted(store.index["clip_id"])
        with pytest.raises(UserError, match=r"no split 'tset'; it has: test, train"):
            store.select("tset")


def test_training_leaves_out_the_clips_of_a_list(packed_store: Path, tmp_path: Path):
    listed = tmp_path / "bad.txt"
    listed.write_text("clip_03\nclip_00\nclip_20\nno_such_clip\n")
    facts, clip_ids = training_list(packed_store, "train", str(listed))
    assert clip_ids == [f"clip_{number:02d}" for number in range(16) if number not in (0, 3)]
    assert (facts["exclude"], facts["excluded_clips"], facts["train_clips"]) == (str(listed), 2, 14)
    assert facts["flow"] is None
    assert facts["train_id_hash"] == id_hash(clip_ids) != training_list(packed_store, "train")[0]["train_id_hash"]
    with Store(packed_store) as store:
        parts = [training_numbers(store, part_of("train", side, 0.3), str(listed)) for side in ("kept", "held_out")]
        assert sorted(np.concatenate(parts)) == sorted(training_numbers(store, "train", str(listed)))
        with pytest.raises(UserError, match=r"none of the 5,?158 ids of data.exclude=vggss_test is in split 'train'"):
            training_numbers(store, "train", "vggss_test")
        listed.write_text("".join(f"{clip_id}\n" for clip_id in store.index["clip_id"]))
        with pytest.raises(UserError, match="leaves none of the 16 clips of split 'train'"):
            training_numbers(store, "train", str(listed))


def test_blobs_lie_on_cache_lines_in_the_memory_map(packed_store: Path):
    with Store(packed_store) as store:
        view = store.view(0)
        assert all(view.blob(name).ctypes.data % 64 == 0 for name in view.names())


def test_a_path_can_be_opened_twice_in_a_process(packed_store: Path):
    first = Store(packed_store)
    second = Store(packed_store)
    third = copy.copy(second)
    first.close()
    second.close()
    assert third.view(3).fields()["clip_id"] == third.index["clip_id"][3]
    third.close()
    with Store(packed_store) as again:
        assert len(again) == 24


def test_a_forked_child_reads_on_its_own(packed_store: Path):
    # In a process of its own: forking one with the threads of a test run is no good idea.
    code = f"""
import os
from pipeline.store import Store
store = Store({str(packed_store)!r})
before = bytes(store.value(5))
child = os.fork()
same = bytes(store.value(5)) == before and len(store.view(20).names()) == 4
if child == 0:
    again = Store({str(packed_store)!r})
    same = same and bytes(again.value(5)) == before
    again.close()
    os._exit(0 if same else 1)
status = os.waitpid(child, 0)[1]
assert same and os.waitstatus_to_exitcode(status) == 0
assert bytes(store.value(5)) == before
store.close()
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_warming_up_reads_every_byte(packed_store: Path):
    with Store(packed_store) as store:
        assert store.warm_up() == sum(path.stat().st_size for path in packed_store.glob("shard-*/data.mdb"))


def test_values_are_not_copied(packed_store: Path):
    with Store(packed_store) as store:
        one = np.frombuffer(store.value(2), np.uint8)
        two = np.frombuffer(store.value(2), np.uint8)
        assert one.ctypes.data == two.ctypes.data and not one.flags.writeable


def test_what_is_no_finished_store(tmp_path: Path, copied: Path):
    with pytest.raises(UserError, match="not a folder"):
        Store(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"no manifest.json.*same pack command"):
        Store(tmp_path)
    (copied / MANIFEST).write_text("{")
    with pytest.raises(UserError, match="damaged"):
        Store(copied)
    (copied / MANIFEST).write_text('{"format": "other"}')
    with pytest.raises(UserError, match="not the manifest of a Whence store"):
        Store(copied)


@pytest.mark.parametrize("key", ["version", "record_version"])
def test_a_store_of_another_version(copied: Path, key: str):
    change_manifest(copied, **{key: 99})
    with pytest.raises(UserError, match=r"99.*Pack it again"):
        read_manifest(copied)


def test_a_truncated_or_missing_shard(copied: Path):
    file = copied / "shard-00001" / DATA
    size = file.stat().st_size
    os.truncate(file, size - 4096)
    with pytest.raises(UserError, match=f"shard-00001.*has {size - 4096} bytes, the manifest says {size}"):
        Store(copied)
    file.unlink()
    with pytest.raises(UserError, match="is missing"):
        Store(copied)


def test_a_damaged_index(copied: Path):
    index = copied / "shard-00002" / INDEX
    index.write_bytes(index.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"index.msgpack is missing or damaged"):
        Store(copied)
    shutil.copy(copied / "shard-00001" / INDEX, index)
    shards = json.loads((copied / MANIFEST).read_text())["shards"]
    shards[2]["clips"] = 9
    change_manifest(copied, shards=shards)
    with pytest.raises(UserError, match="the manifest says 9"):
        Store(copied)


def test_a_failed_opening_leaves_nothing_open(copied: Path):
    (copied / "shard-00002" / INDEX).unlink()
    with pytest.raises(UserError):
        Store(copied)
    shutil.copy(copied / "shard-00001" / INDEX, copied / "shard-00002" / INDEX)
    with Store(copied) as store:
        assert len(store) == 24


def test_ids_and_keys():
    assert id_hash(["b", "a"]) == id_hash(["a", "b"]) != id_hash(["a", "c"])
    assert len(id_hash([])) == 16
    assert key_of(258) == b"\0\0\0\0\0\0\1\2"
    assert sorted(map(key_of, (300, 2, 70000))) == [key_of(2), key_of(300), key_of(70000)]


def test_a_held_out_part_and_the_rest_make_the_split(packed_store: Path):
    with Store(packed_store) as store:
        whole = set(store.select("train").tolist())
        for share in (0.2, 0.5):
            out, kept = (set(store.select(part_of("train", side, share)).tolist()) for side in ("held_out", "kept"))
            assert out and kept and not out & kept and out | kept == whole
        assert set(store.select("train[held_out:0.2]")) < set(store.select("train[held_out:0.5]"))
        with pytest.raises(UserError, match=r"no split 'tain'"):
            store.select("tain[kept:0.2]")
        with pytest.raises(UserError, match=r"none of the 16 clips of .* choose another share"):
            store.select("train[held_out:0.0001]")


def test_a_recording_is_held_out_whole():
    clips = [f"{number:011d}_{second:06d}" for number in range(2000) for second in (0, 30)]
    out = [is_held_out(clip_id, 0.1) for clip_id in clips]
    assert out[::2] == out[1::2]
    assert 150 < sum(out[::2]) < 250
