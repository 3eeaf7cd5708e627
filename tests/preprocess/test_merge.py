import json
import shutil
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.load import load_frontend
from pipeline.store import DATA, Store, id_hash, read_manifest
from preprocess.__main__ import main
from preprocess.engines.local import Local
from preprocess.extend import extend
from preprocess.layouts.manifest import Manifest
from preprocess.manifest_file import read_refused
from preprocess.merge import merge
from preprocess.options import PackConfig
from preprocess.selection import read_left_out
from preprocess.verify import verify
from preprocess.writer import pack
from tests.conftest import tone, write_wav

CONFIG = PackConfig(frontends=(load_frontend("logmel64"),), spectrogram_dtype="uint8")


def packed(folder: Path, names: str, config: PackConfig = CONFIG, dataset: str = "") -> Path:
    """A store of the clips with these one-letter names; "x" lacks its sound."""
    source = folder / f"source_{names}"
    source.mkdir()
    shutil.copy(Path(__file__).parents[2] / "examples" / "clips" / "bunny_title.mp4", source / "v.mp4")
    lines = []
    for number, name in enumerate(names):
        if name != "x":
            write_wav(source / f"{name}.wav", tone(0.5, 16000, 200 + 100 * ord(name) % 3000), 16000)
        split = "train" if number % 2 else "test"
        lines.append(
            {"clip_id": name, "video": "v.mp4", "audio": f"{name}.wav", "split": split, "annotated_s": 0, "label": name}
        )
    (source / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    layout = Manifest(Manifest.Config(name="manifest"), source)
    engine = Local(Local.Config(name="local", workers=0))
    store = folder / f"store_{names}"
    pack(layout, store, config, engine, dataset=dataset or names, shard_clips=2)
    return store


def test_stores_are_joined_without_a_byte_coded_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    first, second = packed(tmp_path, "abx"), packed(tmp_path, "cde")
    out = tmp_path / "new" / "merged"
    assert main(["merge", str(out), str(first), str(second)]) == 0
    assert "merged 2 stores into" in capsys.readouterr().out
    assert verify(out) == []
    with Store(out) as merged, Store(first) as one, Store(second) as two:
        assert merged.index["clip_id"] == one.index["clip_id"] + two.index["clip_id"]
        assert [bytes(merged.value(n)) for n in range(5)] == [
            *(bytes(one.value(n)) for n in range(2)),
            *(bytes(two.value(n)) for n in range(3)),
        ]
        manifest = merged.manifest
        errors = [store.manifest["spectrogram_storage"]["logmel64"]["max_error"] for store in (one, two)]
    assert manifest["spectrogram_storage"]["logmel64"]["max_error"] == max(errors) and min(errors) > 0
    assert manifest["dataset"] == "abx+cde" and manifest["id_hash"] == id_hash("abcde")
    assert (manifest["expected"], manifest["packed"], manifest["refused"]) == (6, 5, {"missing_file": 1})
    assert manifest["splits"]["test"] == {"clips": 3, "expected": 4, "id_hash": id_hash("ace")}
    assert [row[0] for row in read_refused(out)] == ["x"]
    assert [part["dataset"] for part in manifest["layout"]["stores"]] == ["abx", "cde"]
    assert (out / "shard-00000" / DATA).samefile(first / "shard-00000" / DATA)
    assert not list(out.parent.glob("*.merging"))


def test_merging_is_a_matter_of_order_alone(tmp_path: Path):
    stores = [packed(tmp_path, "ab"), packed(tmp_path, "cd"), packed(tmp_path, "e")]
    merge(tmp_path / "one", stores)
    merge(tmp_path / "two", stores, copy=True)
    one, two = (
        {path.relative_to(out): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
        for out in (tmp_path / "one", tmp_path / "two")
    )
    assert one == two
    assert not (tmp_path / "two" / "shard-00000" / DATA).samefile(stores[0] / "shard-00000" / DATA)


def test_a_clip_in_two_stores_is_named(tmp_path: Path):
    first, second = packed(tmp_path, "abc"), packed(tmp_path, "cdb")
    with pytest.raises(UserError, match=r"2 clips are in more than one store: .*c \(.*store_abc, .*store_cdb\)"):
        merge(tmp_path / "out", [first, second])
    with pytest.raises(UserError, match="3 clips are in more than one store"):
        merge(tmp_path / "out", [first, first])
    assert not (tmp_path / "out").exists()


def test_a_clip_refused_here_and_packed_there_counts_as_packed(tmp_path: Path):
    first, second = packed(tmp_path, "abx"), packed(tmp_path, "cx")
    merged = merge(tmp_path / "out", [first, second])
    assert (merged.packed, merged.refused) == (3, 1), "refused by both is refused once"
    source = tmp_path / "source_cx"
    write_wav(source / "x.wav", tone(0.5, 16000), 16000)
    shutil.rmtree(second)
    layout = Manifest(Manifest.Config(name="manifest"), source)
    pack(layout, second, CONFIG, Local(Local.Config(name="local", workers=0)), dataset="again", shard_clips=2)
    merged = merge(tmp_path / "out2", [first, second])
    assert (merged.packed, merged.refused) == (4, 0) and "1 clips that one store refused" in merged.notes[0]
    assert verify(tmp_path / "out2") == []


def test_stores_of_other_options_are_not_joined(tmp_path: Path):
    first = packed(tmp_path, "ab")
    quality = packed(tmp_path, "cd", CONFIG.model_copy(update={"quality": 50}))
    frontend = packed(tmp_path, "ef", CONFIG.model_copy(update={"frontends": (load_frontend("ez_vsl"),)}))
    with pytest.raises(UserError, match=r"packed differently \(options.quality, frames.quality\)"):
        merge(tmp_path / "out", [first, quality])
    with pytest.raises(UserError, match=r"frontends.logmel64, frontends.ez_vsl"):
        merge(tmp_path / "out", [first, frontend])
    with_codes = packed(tmp_path, "gh", CONFIG.model_copy(update={"spectrogram_dtype": "float16"}))
    extended = packed(tmp_path, "ij", CONFIG.model_copy(update={"spectrogram_dtype": "float16"}))
    for store, dtype in ((with_codes, "uint8"), (extended, "float16")):
        extend(store, [load_frontend("ez_vsl")], dtype, Local(Local.Config(name="local", workers=0)))
    with pytest.raises(UserError, match=r"packed differently \(spectrogram_storage.ez_vsl\)"):
        merge(tmp_path / "out", [with_codes, extended])
    assert not (tmp_path / "out").exists()


def test_what_one_store_lacks_and_another_holds_is_not_missing(tmp_path: Path):
    (tmp_path / "list.txt").write_text("a\nb\nc\nd\n")
    for name in ("ab", "c"):
        packed(tmp_path, name)
        inputs = [str(tmp_path / f"source_{name}"), str(tmp_path / name)]
        options = ["--list", f"dev={tmp_path / 'list.txt'}", "--frontend", "none", "--workers", "0"]
        assert main(["pack", "manifest", *inputs, *options]) == 0
    assert main(["merge", str(tmp_path / "out"), str(tmp_path / "ab"), str(tmp_path / "c")]) == 0
    manifest = read_manifest(tmp_path / "out")
    (said,) = manifest["lists"]
    assert (said["expected"], said["found"], said["missing"]) == (4, 3, 1) and manifest["left_out"] == {"missing": 1}
    assert [row.clip_id for row in read_left_out(tmp_path / "out")] == ["d"]


def test_neighbours_are_left_out_with_a_note(tmp_path: Path):
    first, second = packed(tmp_path, "ab"), packed(tmp_path, "cd")
    (first / "neighbours").mkdir()
    merged = merge(tmp_path / "out", [first, second])
    assert "neighbour tables are left out" in merged.notes[0] and not (tmp_path / "out" / "neighbours").exists()


def test_nothing_half_merged_is_left(tmp_path: Path):
    first, second = packed(tmp_path, "ab"), packed(tmp_path, "cd")
    (tmp_path / "out.merging").mkdir()
    (tmp_path / "out.merging" / "old").touch()
    (second / "shard-00000" / DATA).write_bytes(b"short")
    with pytest.raises(UserError, match="is damaged; run `python -m preprocess verify"):
        merge(tmp_path / "out", [first, second])
    (second / "shard-00000" / DATA).unlink()
    with pytest.raises(UserError, match="is not whole"):
        merge(tmp_path / "out", [first, second])
    merge(tmp_path / "out", [first])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("manifest.json", "plan.json", "refused.csv", "shard-00000")
    ]
    with pytest.raises(UserError, match="there already"):
        merge(tmp_path / "out", [first])
