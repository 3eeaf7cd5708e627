import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import preprocess.shard
from configs.errors import UserError
from configs.load import load_frontend
from pipeline.store import Store, id_hash
from preprocess.engines.local import Local
from preprocess.layouts.manifest import Manifest
from preprocess.manifest_file import REFUSED
from preprocess.options import PackConfig
from preprocess.shard import write_shard
from preprocess.task import PLAN
from preprocess.verify import verify
from preprocess.writer import Packed, Stopped, default_shard_clips, pack
from tests.conftest import tone, write_wav

CONFIG = PackConfig(frontends=(load_frontend("logmel64"),))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Ten clips of picture and sound, of which c3 lacks its sound."""
    folder = tmp_path / "source"
    folder.mkdir()
    shutil.copy(Path(__file__).parents[2] / "examples" / "clips" / "bunny_title.mp4", folder / "v.mp4")
    lines = []
    for number in range(10):
        write_wav(folder / f"{number}.wav", tone(0.5, 16000, 200 + 100 * number), 16000)
        clip = {"clip_id": f"c{number}", "video": "v.mp4", "audio": f"{number}.wav", "split": "train", "annotated_s": 0}
        lines.append({**clip, "split": "test" if number > 7 else "train"})
    (folder / "3.wav").unlink()
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def run(source: Path, store: Path, workers: int = 0, config: PackConfig = CONFIG, **options) -> Packed:
    layout = Manifest(Manifest.Config(name="manifest"), source)
    engine = Local(Local.Config(name="local", workers=workers))
    return pack(layout, store, config, engine, dataset="made", shard_clips=3, **options)


def content(store: Path) -> dict[str, bytes]:
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def test_a_store_with_all_it_says(source: Path, tmp_path: Path):
    store = tmp_path / "new" / "store"
    packed = run(source, store)
    assert (packed.expected, packed.packed, packed.new) == (10, 9, True)
    assert packed.refused == [["c3", "train", "v.mp4", "missing_file", "3.wav is not there"]]
    assert sorted(path.name for path in store.iterdir()) == [
        *("manifest.json", "plan.json", "refused.csv"),
        *(f"shard-0000{number}" for number in range(4)),
    ]
    with (store / REFUSED).open() as file:
        assert [row["clip_id"] for row in csv.DictReader(file)] == ["c3"]
    with Store(store) as opened:
        manifest = opened.manifest
        ids = opened.index["clip_id"]
    assert sorted(ids) == [f"c{number}" for number in range(10) if number != 3] and ids != sorted(ids)
    assert manifest["id_hash"] == id_hash(ids)
    assert manifest["splits"]["train"] == {"clips": 7, "expected": 8, "id_hash": id_hash([i for i in ids if i < "c8"])}
    assert (manifest["dataset"], manifest["expected"], manifest["refused"]) == ("made", 10, {"missing_file": 1})
    assert manifest["frontends"]["logmel64"] == CONFIG.frontends[0].model_dump(mode="json")
    said = {"frames": ["annotated"], "annotated_s": 5.0, "short_side_px": 256, "quality": 90, "pixels": "jpeg"}
    assert manifest["frames"] == said
    assert manifest["waveform"] == {"sample_rate_hz": 16000}
    assert verify(store) == []


def test_processes_do_not_change_a_byte(source: Path, tmp_path: Path):
    run(source, tmp_path / "here")
    seen = []
    run(source, tmp_path / "processes", workers=2, report=lambda kind, what: seen.append((kind, what)))
    assert content(tmp_path / "here") == content(tmp_path / "processes")
    assert sorted(what for kind, what in seen if kind == "shard") == [f"shard-0000{number}" for number in range(4)]
    assert [kind for kind, _ in seen].count("packed") == 9 and ("refused", "missing_file") in seen


def test_a_store_is_there_once_and_knows_its_plan(source: Path, tmp_path: Path):
    store = tmp_path / "store"
    first = run(source, store)
    before = content(store)
    again = run(source, store)
    assert not again.new and (again.packed, again.refused) == (first.packed, first.refused)
    assert content(store) == before
    with pytest.raises(UserError, match=r"finished store of another plan(.|\n)*quality: 90 there, 50 now"):
        run(source, store, config=CONFIG.model_copy(update={"quality": 50}))
    text = (source / "manifest.jsonl").read_text()
    (source / "manifest.jsonl").write_text(text.replace('"annotated_s": 0', '"annotated_s": 1'))
    with pytest.raises(UserError, match="what the layout says about the clips"):
        run(source, store)
    assert content(store) == before


def test_packing_goes_on_where_it_stopped(source: Path, tmp_path: Path):
    whole, store = tmp_path / "whole", tmp_path / "store"
    run(source, whole)
    finished = []

    def stop(kind: str, what: str) -> None:
        if kind == "shard":
            finished.append(what)
        elif len(finished) == 2 and kind == "packed":
            raise KeyboardInterrupt

    with pytest.raises(Stopped, match="stopped; 2 of 4 shards done; run the same command to go on"):
        run(source, store, report=stop)
    assert sorted(path.name for path in store.iterdir()) == [PLAN, *finished]
    with pytest.raises(UserError, match="run the same pack command again"):
        Store(store)
    with pytest.raises(UserError, match="unfinished store of another plan"):
        run(source, store, config=CONFIG.model_copy(update={"waveform": False}))
    found = []
    seen = []
    run(source, store, found=lambda *counts: found.append(counts), report=lambda kind, what: seen.append((kind, what)))
    assert found == [(10, 6 - found[0][2], found[0][2])]
    assert {what for kind, what in seen if kind == "shard"} == {"shard-00002", "shard-00003"}
    assert content(store) == content(whole)


def test_an_unfinished_shard_is_done_again(source: Path, tmp_path: Path):
    whole, store = tmp_path / "whole", tmp_path / "store"
    run(source, whole)
    shutil.copytree(whole, store)
    (store / "manifest.json").unlink()
    (store / "shard-00001" / "shard.json").unlink()
    (store / "shard-00002" / "data.mdb").write_bytes(b"cut short")
    shutil.copytree(whole / "shard-00003", store / "shard-00003.tmp-99")
    run(source, store)
    assert content(store) == content(whole)


def test_the_map_grows_and_transactions_are_cut(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run(source, tmp_path / "whole")
    monkeypatch.setattr(preprocess.shard, "_MAP_BYTES", 2**15)
    monkeypatch.setattr(preprocess.shard, "_RECORDS_PER_TRANSACTION", 2)
    run(source, tmp_path / "store")
    assert verify(tmp_path / "store") == []
    with Store(tmp_path / "store") as small, Store(tmp_path / "whole") as whole:
        assert small.index == whole.index
        assert all(bytes(small.value(number)) == bytes(whole.value(number)) for number in range(9))


def test_a_folder_with_other_things_is_left_alone(source: Path, tmp_path: Path):
    store = tmp_path / "store"
    store.mkdir()
    (store / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match=r"thesis.txt.*name a new or an empty folder"):
        run(source, store)
    assert content(store) == {"thesis.txt": b"precious"}
    with pytest.raises(UserError, match="cannot make a store at"):
        run(source, store / "thesis.txt" / "store")


def test_two_processes_do_not_pack_into_one_folder(source: Path, tmp_path: Path):
    store = tmp_path / "store"
    store.mkdir()
    code = "import fcntl, sys; f = open(sys.argv[1], 'a+b'); fcntl.lockf(f, fcntl.LOCK_EX, 1, 3); print(flush=True)"
    other = subprocess.Popen(
        [sys.executable, "-c", f"{code}; input()", str(store / PLAN)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UserError, match="another process is packing"):
            run(source, store)
        other.communicate(b"\n")
    assert run(source, store).packed == 9


def test_nothing_packed_leaves_room_for_another_try(source: Path, tmp_path: Path):
    store = tmp_path / "store"
    video = (source / "v.mp4").read_bytes()
    (source / "v.mp4").write_text("broken")
    with pytest.raises(UserError, match=r"none of 10 clips could be packed \(unreadable 9, missing_file 1\)"):
        run(source, store)
    assert [path.name for path in store.iterdir()] == [REFUSED]
    (source / "v.mp4").write_bytes(video)
    assert run(source, store).packed == 9


def test_default_shard_size():
    assert [default_shard_clips(count) for count in (1, 100, 160, 4680, 144_000)] == [8, 8, 10, 293, 4096]


class DyingEngine:
    """Writes in this process, after reporting so many deaths on each of some clips."""

    def __init__(self, deaths: dict[str, int]) -> None:
        self.deaths = deaths
        self.tried: list[str] = []

    def run(self, tasks, report, crashed) -> None:
        for task in tasks:
            for clip in task.clips:
                for _ in range(self.deaths.get(clip.clip_id, 0)):
                    task = crashed(task, clip.clip_id, "the process ended by SIGSEGV")
            write_shard(task, lambda kind, what: self.tried.append(what) if kind == "clip" else None)


def test_a_clip_is_refused_when_a_process_died_on_it_twice(source: Path, tmp_path: Path):
    layout = Manifest(Manifest.Config(name="manifest"), source)
    engine = DyingEngine({"c1": 1, "c5": 2})
    packed = pack(layout, tmp_path / "store", CONFIG, engine, dataset="made", shard_clips=3)
    assert packed.refused == [
        ["c3", "train", "v.mp4", "missing_file", "3.wav is not there"],
        ["c5", "train", "v.mp4", "worker_crash", "the process ended by SIGSEGV"],
    ]
    assert engine.tried.count("c1") == 2, "the suspect was not tried before its shard was written"
    assert not list((tmp_path / "store").glob("*.crashed.json")) and verify(tmp_path / "store") == []


def test_deaths_are_remembered_when_packing_goes_on(source: Path, tmp_path: Path):
    layout = Manifest(Manifest.Config(name="manifest"), source)

    class Killed(DyingEngine):
        def run(self, tasks, report, crashed) -> None:
            super().run(tasks[:1], report, crashed)
            crashed(tasks[-1], last := tasks[-1].clips[0].clip_id, "killed")
            suspects.append(last)
            raise KeyboardInterrupt

    suspects: list[str] = []

    for _ in range(2):
        with pytest.raises(Stopped):
            pack(layout, tmp_path / "store", CONFIG, Killed({}), dataset="made", shard_clips=3)
    assert suspects[0] == suspects[1]
    assert (suspects[0], "worker_crash") in [(row[0], row[3]) for row in run(source, tmp_path / "store").refused]
