"""Lists pick clips; what is missing, leaks and odd in the truth is counted."""

import csv
import json
import os
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.id_lists import load_list
from pipeline.record import decode
from pipeline.store import Store, id_hash
from preprocess.__main__ import main
from preprocess.annotations import flickr_truth, oddities, vggss_truth
from preprocess.layout import Layout, SourceClip
from preprocess.layouts.frames_audio import FramesAudio
from preprocess.layouts.manifest import Manifest
from preprocess.layouts.vggsound import Vggsound
from preprocess.selection import Selection, leaks, select
from tests.conftest import make_clip

TEST = load_list("vggss_test")[:3]
TRAIN = load_list("vggsound_144k_clean")[:3]
BROKEN = "MKC9LvRivTM_000030"  # its only box has one coordinate of -2.88e16


def videos(folder: Path, *clip_ids: str) -> Layout:
    """A folder of empty files: listing opens none."""
    folder.mkdir(exist_ok=True)
    for clip_id in clip_ids:
        (folder / f"{clip_id}.mp4").touch()
    return Vggsound(Vggsound.Config(name="vggsound"), folder)


def chosen(layout: Layout, **options) -> Selection:
    return select(layout, layout.clips(), **options)


def by_id(selection: Selection) -> dict[str, SourceClip]:
    return {clip.clip_id: clip for clip in selection.clips}


def test_without_a_list_everything_is_packed_and_leaks_are_told(tmp_path: Path):
    found = chosen(videos(tmp_path, *TEST, *TRAIN))
    assert {clip.split for clip in found.clips} == {"train"} and len(found.clips) == 6
    assert all(clip.boxes is None for clip in found.clips)
    assert found.leaks["train"]["vggss_test"] == {"of": 5158, "by_id": 3, "by_source": 3}
    assert "--list vggss_test" in found.notes[0]


def test_lists_pick_clips_and_count_what_is_missing(tmp_path: Path):
    mine = tmp_path / "mine.txt"
    start = int(TRAIN[0][12:])
    mine.write_text(f"{TRAIN[0][:11]}_{start * 1000}_{(start + 10) * 1000}\n{TRAIN[1]}.mp4\n{TRAIN[1]}\nabsent\n")
    layout = videos(tmp_path / "in", *TEST, *TRAIN)
    found = chosen(layout, lists=["vggss_test", f"train={mine}"])
    assert {clip.clip_id: clip.split for clip in found.clips} == {
        **dict.fromkeys(TEST, "vggss_test"),
        **dict.fromkeys(TRAIN[:2], "train"),
    }
    test, train = found.lists
    assert test == {
        "split": "vggss_test",
        "list": "vggss_test",
        "id_hash": id_hash(load_list("vggss_test")),
        "expected": 5158,
        "found": 3,
        "missing": 5155,
        "duplicates": 0,
    }
    assert {key: train[key] for key in ("expected", "found", "missing", "duplicates")} == {
        "expected": 3,
        "found": 2,
        "missing": 1,
        "duplicates": 1,
    }
    assert [(item.clip_id, item.split, item.reason) for item in found.left_out][-1] == ("absent", "train", "missing")
    assert len(found.left_out) == 5156
    assert "1 of 6 clips" in found.notes[0]
    assert found.leaks["train"]["vggss_test"]["by_id"] == 0


def test_test_clips_get_their_published_truth(tmp_path: Path):
    clip = by_id(chosen(videos(tmp_path, "6zlMP_kQ_-w_000030", BROKEN), lists=["vggss_test"]))
    harp = clip["6zlMP_kQ_-w_000030"]
    assert (harp.label, harp.annotated_s, harp.as_published) == ("playing harp", 5.0, True)
    assert harp.boxes == [[0.18125, 0.0, 0.9656250000000001, 0.99375, 0.0]]
    assert clip[BROKEN].boxes is not None and min(min(row) for row in clip[BROKEN].boxes) < -1e16


def test_what_is_odd_in_the_published_truth_is_counted(tmp_path: Path):
    found = chosen(videos(tmp_path, *load_list("vggss_test")), lists=["vggss_test"])
    assert found.truth == {
        "vggss_test": {
            "clips": 5158,
            "with_boxes": 5158,
            "with_mask": 0,
            "without": 0,
            "boxes": 5941,
            "boxes_outside": 12,
            "boxes_without_area": 18,
            "clips_with_empty_truth": 2,
        }
    }


def test_the_published_lists_leak_as_published():
    found = {name: leaks(load_list(name)) for name in ("vggsound_144k_ezvsl", "vggsound_10k_ezvsl")}
    assert [said["vggss_test"]["by_id"] for said in found.values()] == [3709, 238]
    found = {name: leaks(load_list(name)) for name in ("flickr_144k_ezvsl", "flickr_10k_ezvsl")}
    assert [said["flickr_test"]["by_id"] for said in found.values()] == [20, 1]


def test_negatives_are_one_clip_seen_and_another_heard(tmp_path: Path):
    pair = next(pair for pair in load_list("vggss_silent") if len(set(pair.split("+"))) == 2)
    seen, heard = pair.split("+")
    found = chosen(videos(tmp_path / "a", seen, heard), lists=["vggss_test", "vggss_silent"])
    clip = by_id(found)[pair]
    assert (clip.video, clip.audio, clip.split) == (f"{seen}.mp4", f"{heard}.mp4", "vggss_silent")
    assert (clip.boxes, clip.label, clip.extra) == ([], "non-sounding", {"negative": True})
    assert {clip.split for clip in found.clips} == {"vggss_test", "vggss_silent"}
    for folder, name in (
        ("extend_frames", f"{seen}.jpg"),
        ("extend_audio", f"{heard}.wav"),
        ("extend_audio", f"{seen}.wav"),
    ):
        (tmp_path / "b" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "b" / folder / name).touch()
    (tmp_path / "b" / "extend_frames" / f"{heard}.jpg").touch()
    table = tmp_path / "pairs.csv"
    table.write_text(f"video,audio,label\n{seen},{heard},non-sounding\n")
    layout = FramesAudio(FramesAudio.Config(name="frames_audio"), tmp_path / "b")
    clip = chosen(layout, lists=[f"vggss_silent={table}"]).clips[0]
    assert (clip.clip_id, clip.image, clip.audio) == (pair, f"extend_frames/{seen}.jpg", f"extend_audio/{heard}.wav")


def test_a_clip_is_in_one_split_only(tmp_path: Path):
    leaked = next(iter(set(load_list("vggsound_144k_ezvsl")) & set(load_list("vggss_test"))))
    layout = videos(tmp_path, leaked, *TRAIN)
    with pytest.raises(UserError, match=r"1 clips of --list vggsound_144k_ezvsl are in split 'vggss_test'.*144k_clean"):
        chosen(layout, lists=["vggss_test", "vggsound_144k_ezvsl"])
    with pytest.raises(UserError, match="none of the 249 clips"):
        chosen(layout, lists=["flickr_test_249"])


def test_labels_and_splits_of_vggsounds_own_table(tmp_path: Path):
    table = tmp_path / "vggsound.csv"
    rows = [(TRAIN[0], "train", "duck"), (TEST[0], "test", "harp")]
    table.write_text("".join(f"{clip_id[:11]},{int(clip_id[12:])},{label},{split}\n" for clip_id, split, label in rows))
    found = chosen(videos(tmp_path / "in", TRAIN[0], TRAIN[1], TEST[0]), labels=table)
    assert {clip.clip_id: (clip.split, clip.label) for clip in found.clips} == {
        TRAIN[0]: ("train", "duck"),
        TRAIN[1]: ("train", None),
        TEST[0]: ("vggsound_test", "harp"),
    }
    assert any("1 of 3 clips are not in" in note for note in found.notes)
    table.write_text("nothing,here\n")
    with pytest.raises(UserError, match="labels none"):
        chosen(videos(tmp_path / "in"), labels=table)


def test_annotations_of_people_are_read_as_published(tmp_path: Path):
    file = tmp_path / "a.xml"
    person = "<p{0}><bbox><n>x</n><a>{1}</a><b>0</b><c>256</c><d>128</d></bbox></p{0}>"
    file.write_text(f"<r>{person.format(1, 0)}<name/>{person.format(2, 128)}</r>")
    truth = flickr_truth(file)
    assert truth.boxes == [[0, 0, 1, 0.5, 0], [0.5, 0, 1, 0.5, 1]] and truth.annotators == 3
    for text, problem in (
        ("<r>", "not valid XML"),
        ("<r><p><bbox><n/><a>1</a><b>2</b><c>3</c></bbox></p></r>", "needs five children"),
        ("<r><p><bbox><n/><a>1</a><b>2</b><c>x</c><d>1</d></bbox></p></r>", "no whole numbers"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=problem):
            flickr_truth(file)


def test_a_negative_of_clips_that_start_apart_is_refused_by_name(tmp_path: Path):
    lines = [{"clip_id": name, "video": "v.mp4", "start_s": start_s} for name, start_s in (("a", 0), ("b", 3))]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "list.txt").write_text("a+b\n")
    layout = Manifest(Manifest.Config(name="manifest"), tmp_path)
    with pytest.raises(
        UserError, match=r"negative a\+b cannot be packed: its picture starts at 0 s of v.mp4 .* at 3 s"
    ):
        chosen(layout, lists=[f"vggss_silent={tmp_path / 'list.txt'}"])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{}", "must hold a JSON list"),
        ("[{}]", "entry 0 lacks a key"),
        ('[{"file": "a", "class": "c", "bbox": [[0, 0, 1]]}]', "boxes must be a list"),
        ('[{"file": "a", "class": "c", "bbox": [[0, 0, 1, NaN]]}]', "NaN is no number"),
        ("[", "not valid JSON"),
    ],
)
def test_boxes_that_are_none_are_refused(text: str, problem: str, tmp_path: Path):
    (tmp_path / "truth.json").write_text(text)
    with pytest.raises(UserError, match=problem):
        vggss_truth(tmp_path / "truth.json")


def test_boxes_outside_and_without_area():
    assert oddities([[0, 0, 1, 1, 0], [-2.88e16, 0, 1, 1, 0], [0.5, 0.5, 0.5, 1, 0], [0.2, -2.88e16, 0.4, -1, 0]]) == (
        2,
        2,
    )


def test_merging_keeps_what_is_known(tmp_path: Path):
    stores = []
    for number, options in enumerate((["--list", "vggss_test"], ["--list", "vggsound_144k_clean"])):
        make_clip(tmp_path / str(number) / f"{(TEST, TRAIN)[number][0]}.mp4", seconds=5.5, width=64, height=64)
        stores.append(tmp_path / f"store{number}")
        folders = [str(tmp_path / str(number)), str(stores[-1])]
        code = main(["pack", "vggsound", *folders, *options, "--workers", "0", "--frontend", "none"])
        assert code == (1 if number == 0 else 0), "of the test list clips are missing"
    assert main(["merge", str(tmp_path / "both"), *map(str, stores)]) == 0
    manifest = json.loads((tmp_path / "both" / "manifest.json").read_text())
    assert [(item["split"], item["found"]) for item in manifest["lists"]] == [("vggss_test", 1), ("train", 1)]
    assert manifest["truth"]["vggss_test"]["with_boxes"] == 1
    assert manifest["leaks"]["train"]["vggss_test"]["by_id"] == 0
    assert manifest["left_out"] == {"missing": 5157 + 140290}
    assert len((tmp_path / "both" / "left_out.csv").read_text().splitlines()) == 1 + 5157 + 140290


def test_a_packed_list_as_a_person_sees_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    harp, broken, other = "6zlMP_kQ_-w_000030", BROKEN, TRAIN[0]
    for clip_id in (harp, broken, other):
        make_clip(tmp_path / "in" / f"{clip_id}.mp4", seconds=5.5, width=64, height=64)
    store = tmp_path / "store"
    options = ["--list", "vggss_test", "--list", "vggsound_10k_clean", "--list", f"train={tmp_path / 'mine.txt'}"]
    (tmp_path / "mine.txt").write_text(other)
    with pytest.raises(UserError, match="none of the 9762 clips"):
        main(["pack", "vggsound", str(tmp_path / "in"), str(store), *options])
    options[2:4] = []
    command = ["pack", "auto", str(tmp_path / "in"), str(store), *options, "--workers", "0", "--frontend", "none"]
    assert main(command) == 1
    said, failed = capsys.readouterr()
    assert "failed: 5,156 of 5,158 clips of test split 'vggss_test' (vggss_test) are missing in" in failed
    assert "recognised layout 'vggsound'" in said
    assert "split 'vggss_test' from vggss_test: 5,158 expected, 2 found, 5,156 missing, 0 duplicates" in said
    assert "1 leave the picture and 1 have no area, leaving 1 clips without any" in said
    with (store / "left_out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5156 and {row["reason"] for row in rows} == {"missing"}
    Path(os.fsdecode(bytes(tmp_path / "in") + b"/\xff.mp4")).touch()
    options[:] = ["--workers", "0", "--frontend", "none"]
    assert main(["pack", "vggsound", str(tmp_path / "in"), str(tmp_path / "all"), *options]) == 0
    assert r"left out, other_name: 1 (a file whose name is no id of this data set): \udcff" in capsys.readouterr().out
    assert r"\udcff,,other_name,\udcff.mp4" in (tmp_path / "all" / "left_out.csv").read_text()
    manifest = json.loads((store / "manifest.json").read_text())
    assert [item["found"] for item in manifest["lists"]] == [2, 1]
    assert manifest["left_out"] == {"missing": 5156} and manifest["truth"]["vggss_test"]["with_boxes"] == 2
    with Store(store) as found:
        records = [decode(bytes(found.value(number))) for number in range(len(found))]
    boxes = {record.clip_id: record.boxes for record in records}
    assert boxes[other] is None and boxes[harp].shape == (1, 5)
    assert boxes[broken].shape == (1, 5) and boxes[broken].min() < -1e16  # protocols say what becomes of it
    assert main(["info", str(store)]) == 0
    assert "5,156 missing" in " ".join(capsys.readouterr().out.split())
