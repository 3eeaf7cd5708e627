import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest

from configs.errors import UserError
from configs.load import load_frontend
from pipeline.store import DATA, Store
from preprocess.__main__ import main
from preprocess.engines.local import Local
from preprocess.extend import extend
from preprocess.files import ADDING
from preprocess.layouts.manifest import Manifest
from preprocess.options import PackConfig
from preprocess.verify import verify
from preprocess.writer import pack
from tests.conftest import numbered_picture, tone, write_wav

OLD, NEW = load_frontend("logmel64"), load_frontend("ez_vsl")
HERE = Local(Local.Config(name="local", workers=0))


def packed(source: Path, store: Path, **options) -> Path:
    """Ten clips of a picture and a sound, in four shards; the last one stereo."""
    if not source.is_dir():
        source.mkdir()
        cv2.imwrite(str(source / "i.jpg"), numbered_picture(0, 64, 64))
        lines = []
        for number in range(10):
            write_wav(source / f"{number}.wav", tone(0.5, 16000, 200 + 100 * number, 1 + number // 9), 16000)
            lines.append({"clip_id": f"c{number}", "image": "i.jpg", "audio": f"{number}.wav"})
        (source / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    layout = Manifest(Manifest.Config(name="manifest"), source)
    pack(layout, store, PackConfig(**{"frontends": (OLD,), **options}), HERE, dataset="made", shard_clips=3)
    return store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return packed(tmp_path / "source", tmp_path / "store")


def records(store: Path) -> dict[str, bytes]:
    with Store(store) as opened:
        return {clip_id: bytes(opened.value(number)) for number, clip_id in enumerate(opened.index["clip_id"])}


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_the_store_becomes_what_packing_gives(tmp_path: Path, dtype: str):
    store = packed(tmp_path / "source", tmp_path / "store", spectrogram_dtype=dtype)
    both = packed(tmp_path / "source", tmp_path / "both", frontends=(OLD, NEW), spectrogram_dtype=dtype)
    result = extend(store, [OLD, NEW], dtype, HERE)
    assert (result.added, result.there, result.notes) == (("ez_vsl",), ("logmel64",), ())
    assert verify(store) == []
    assert records(store) == records(both)
    with Store(store) as found, Store(both) as wanted:
        assert found.index == wanted.index
        for key in ("frontends", "spectrogram_storage", "splits", "id_hash", "packed", "waveform", "options"):
            assert found.manifest[key] == wanted.manifest[key]
    assert not (store / ADDING).exists()
    assert sorted(path.name for path in store.glob("shard-*")) == [f"shard-0000{number}-1" for number in range(4)]
    # Once more, onto shards that have been replaced before.
    extend(store, [load_frontend("jsa")], "float16", HERE)
    assert verify(store) == []
    assert sorted(path.name for path in store.glob("shard-*")) == [f"shard-0000{number}-2" for number in range(4)]


def test_what_is_there_is_left_alone(store: Path):
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    result = extend(store, [OLD], "float16", HERE)
    assert (result.added, result.there) == ((), ("logmel64",))
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before
    for frontend, dtype, message in (
        (OLD.model_copy(update={"hop": 200}), "float16", "hop is 320 there, 200 now"),
        (OLD, "uint8", "stored as float16, asked is uint8"),
    ):
        with pytest.raises(UserError, match=message):
            extend(store, [frontend], dtype, HERE)


def test_a_store_without_the_sound_is_refused(tmp_path: Path, store: Path):
    mute = packed(tmp_path / "source", tmp_path / "mute", waveform=False)
    with pytest.raises(UserError, match=r"10 of 10 clips .* have no waveform.* --frontend ez_vsl"):
        extend(mute, [NEW], "float16", HERE)
    with pytest.raises(UserError, match=r"hears the first channel, .* 1 of 10 clips had several"):
        extend(store, [load_frontend("ssl_align")], "float16", HERE)
    with pytest.raises(UserError, match="not a folder"):
        extend(tmp_path / "none", [NEW], "float16", HERE)


def test_a_front_end_beyond_the_waveform_is_noted(store: Path):
    result = extend(store, [load_frontend("sira")], "float16", HERE)
    assert result.notes == ("sira hears up to 11025 Hz, but the store's waveforms hold nothing above 8000 Hz",)


def test_stopped_anywhere_the_old_store_is_whole_and_the_rest_is_done(store: Path):
    before = records(store)

    class Stop(Exception):
        pass

    def stop_at_the_eighth(kind: str, what: str) -> None:
        done.extend([what] if kind == "packed" else [])
        if len(done) == 8:
            raise Stop

    done: list[str] = []
    with pytest.raises(Stop):
        extend(store, [NEW], "float16", HERE, report=stop_at_the_eighth)
    assert verify(store) == [] and records(store) == before
    counts = []
    extend(store, [NEW], "float16", HERE, found=lambda *found: counts.append(found))
    assert counts == [(10, 6, 0)] and verify(store) == []


def test_stopped_while_shards_get_their_names(store: Path, tmp_path: Path):
    half, done = tmp_path / "half", tmp_path / "done"
    shutil.copytree(store, half)
    shutil.copytree(store, done)
    extend(done, [NEW], "float16", HERE)
    # Two shards moved, the manifest still the old one; then the manifest new, an old shard not yet deleted.
    for number in range(2):
        shutil.copytree(done / f"shard-0000{number}-1", half / f"shard-0000{number}-1")
    assert records(half) == records(store)
    shutil.copytree(store / "shard-00002", done / "shard-00002")
    for each in (half, done):
        extend(each, [NEW], "float16", HERE)
        assert verify(each) == []
    assert records(half) == records(done)


def test_other_front_ends_do_not_take_over_what_was_begun(store: Path):
    def stop(kind: str, what: str) -> None:
        if kind == "shard":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extend(store, [NEW], "float16", HERE, report=stop)
    extend(store, [load_frontend("jsa")], "float16", HERE)
    with Store(store) as opened:
        assert set(opened.manifest["frontends"]) == {"logmel64", "jsa"}
    assert verify(store) == []


def test_a_damaged_record_is_not_copied(store: Path):
    file = store / "shard-00001" / DATA
    data = bytearray(file.read_bytes())
    with Store(store) as opened:
        number = opened.index["clip_id"].index(opened.index["clip_id"][3])
        blob = opened.view(number).blob("waveform").tobytes()
    data[bytes(data).index(blob) + 500] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"record 0 of .*shard-00001 is damaged; run `python -m preprocess verify"):
        extend(store, [NEW], "float16", HERE)


def test_the_command(store: Path, capsys: pytest.CaptureFixture[str]):
    command = ["features", str(store), "--frontend", "ez_vsl", "--uint8"]
    assert main([*command, "--workers", "1"]) == 0
    assert "added ez_vsl" in capsys.readouterr().out
    assert verify(store) == []
    assert main(command) == 0
    assert "already" in capsys.readouterr().out
    assert main(["info", str(store)]) == 0
    assert "8 bits, off by 0.026" in " ".join(capsys.readouterr().out.split())


def test_a_store_is_changed_by_one_at_a_time(store: Path):
    def again(kind: str, what: str) -> None:
        extend(store, [NEW], "float16", HERE)

    with pytest.raises(UserError, match="another process is changing"):
        extend(store, [NEW], "float16", HERE, report=again)


@pytest.mark.slow
def test_killed_at_random_moments(store: Path):
    """Whenever the command is killed, the store verifies and can be read."""

    def begin(where: Path) -> subprocess.Popen:
        command = ["-m", "preprocess", "features", str(where), "--frontend", "ez_vsl", "--workers", "1"]
        root = Path(__file__).parents[2]
        return subprocess.Popen([sys.executable, *command], cwd=root, stdout=subprocess.DEVNULL)

    whole = shutil.copytree(store, store.with_name("whole"))
    start = time.monotonic()
    assert begin(whole).wait() == 0
    took_s = time.monotonic() - start
    draw = random.Random(4)
    before = records(store)
    for _ in range(5):
        process = begin(store)
        try:
            process.wait(draw.uniform(0.4, 1) * took_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert verify(store) == []
        found = records(store)
        assert found.keys() == before.keys()
    assert begin(store).wait() == 0
    assert verify(store) == []
    assert records(store) == records(whole)
