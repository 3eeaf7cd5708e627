import json
import re
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.resolve import names, resolve
from preprocess.layout import Layout, LayoutConfig, SourceClip, bad_box, inside
from preprocess.layouts.clips import Clips
from preprocess.layouts.manifest import Manifest


def manifest_of(folder: Path, *lines: dict | str) -> Manifest:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "manifest.jsonl").write_text(text, encoding="utf-8")
    return Manifest(Manifest.Config(name="manifest"), folder)


def clips_of(folder: Path, table: str | None = None) -> Clips:
    if table is not None:
        (folder / "clips.csv").write_text(table, encoding="utf-8")
    return Clips(Clips.Config(name="clips"), folder)


def files_in(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


@pytest.mark.parametrize("name", names("preprocess.layouts"))
def test_every_layout_says_what_it_reads(name: str):
    layout = resolve("preprocess.layouts", name)
    assert issubclass(layout, Layout) and issubclass(layout.Config, LayoutConfig)
    assert re.search(r"INPUT (is|holds) ", layout.__doc__ or "")


def test_a_manifest_line_with_everything(tmp_path: Path):
    line = {
        "clip_id": "a b-é",
        "video": "sub/a.mp4",
        "audio": "a.wav",
        "start_s": 3,
        "duration_s": 2.5,
        "annotated_s": 1,
        "split": "test",
        "label": "dog",
        "group": "g",
        "boxes": [[0, 0.1, 0.5, 1], [0, 0, 1, 1, 2]],
    }
    second = {"clip_id": "b", "image": "b.jpg", "audio": "b.ogg", "flow_x": "x/b.jpg", "flow_y": "y/b.jpg"}
    assert manifest_of(tmp_path, line, "", second).clips() == [
        SourceClip(
            clip_id="a b-é",
            video="sub/a.mp4",
            audio="a.wav",
            start_s=3.0,
            duration_s=2.5,
            annotated_s=1.0,
            split="test",
            label="dog",
            group="g",
            boxes=[[0.0, 0.1, 0.5, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0, 2.0]],
        ),
        SourceClip(clip_id="b", image="b.jpg", audio="b.ogg", flow_x="x/b.jpg", flow_y="y/b.jpg"),
    ]


@pytest.mark.parametrize("more", [{}, {"boxes": []}])
def test_a_manifest_line_of_a_negative_sound(tmp_path: Path, more: dict):
    line = {"clip_id": "a+noise", "video": "a.mp4", "audio": "noise.wav", "negative": True, **more}
    layout = manifest_of(tmp_path, line, {"clip_id": "b", "video": "b.mp4", "negative": False})
    negative, other = layout.clips()
    assert (negative.boxes, negative.extra) == ([], {"negative": True}) and not layout.notes
    assert (other.boxes, other.extra) == (None, {})


def test_a_manifest_is_named_by_file_or_folder(tmp_path: Path):
    by_folder = manifest_of(tmp_path, {"clip_id": "a", "video": "a.mp4"})
    (tmp_path / "other.jsonl").write_text((tmp_path / "manifest.jsonl").read_text())
    by_file = Manifest(Manifest.Config(name="manifest"), tmp_path / "other.jsonl")
    assert by_file.clips() == by_folder.clips() and by_file.root == by_folder.root == tmp_path.resolve()


def test_unknown_keys_are_kept_and_named_once(tmp_path: Path):
    layout = manifest_of(
        tmp_path,
        {"clip_id": "a", "video": "a.mp4", "boxs": [[0, 0, 1, 1]], "tiles": ["x"]},
        {"clip_id": "b", "video": "b.mp4", "tiles": ["y"]},
    )
    first, second = layout.clips()
    assert first.extra == {"boxs": [[0, 0, 1, 1]], "tiles": ["x"]} and second.extra == {"tiles": ["y"]}
    assert len(layout.notes) == 1
    assert "boxs (1 lines; did you mean boxes?)" in layout.notes[0] and "tiles (2 lines)" in layout.notes[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", r"line 2 is not valid JSON: .* at character 2"),
        ("[1, 2]", "line 2 must hold a JSON object, found list"),
        ({"video": "a.mp4"}, "line 2: clip_id: Field required"),
        ({"clip_id": 7, "video": "a.mp4"}, r"line 2: clip_id: .*string \(found 7\)"),
        ({"clip_id": "", "video": "a.mp4"}, "line 2: clip_id '' must be 1 to 250 printable"),
        ({"clip_id": "a\nb", "video": "a.mp4"}, "printable"),
        ({"clip_id": "first", "video": "a.mp4"}, "line 2: clip_id 'first' stands in line 1 already"),
        ({"clip_id": "a"}, "line 2: needs 'video', or 'image' and 'audio'"),
        ({"clip_id": "a", "image": "a.jpg"}, "needs 'video', or 'image' and 'audio'"),
        ({"clip_id": "a", "video": "a.mp4", "image": "a.jpg"}, "one of them only"),
        ({"clip_id": "a", "video": "a.mp4", "boxes": [], "mask": "m.png"}, "one of them only"),
        ({"clip_id": "a", "video": "a.mp4", "boxes": [0, 0, 1, 1]}, r"boxes must be a list of .* found \[0, 0, 1, 1\]"),
        ({"clip_id": "a", "video": "a.mp4", "boxes": [[0, 0, 1]]}, "boxes must be a list"),
        ({"clip_id": "a", "video": "a.mp4", "start_s": -1}, "line 2: start_s: .*greater than or equal to 0"),
        ({"clip_id": "a", "video": "a.mp4", "duration_s": 0}, "line 2: duration_s: .*greater than 0"),
        ('{"clip_id": "a", "video": "a.mp4", "start_s": NaN}', "line 2: start_s: .*finite"),
        ('{"clip_id": "a", "video": "a.mp4", "n": 1' + 40 * "0" + "}", "cannot be stored"),
        ('{"clip_id": "a", "video": "a.mp4", "n": "\\ud800"}', "cannot be stored"),
        ({"clip_id": "a", "video": "../a.mp4"}, r"line 2, video: the path '../a.mp4' leads out"),
        (
            {"clip_id": "a", "image": "a.jpg", "audio": "/etc/passwd"},
            r"line 2, audio: the path '/etc/passwd' leads out",
        ),
        ({"clip_id": "a", "video": "link/a.mp4"}, "leads out of"),
        ({"clip_id": "a", "video": "a.mp4", "flow_x": "x.jpg"}, "'flow_x' and 'flow_y' come together"),
        ({"clip_id": "a", "video": "a\0.mp4"}, "null character"),
        ({"clip_id": "a", "video": "a.mp4", "negative": "no"}, r"line 2: negative: .*boolean \(found 'no'\)"),
        ({"clip_id": "a", "video": "a.mp4", "negative": True, "boxes": [[0, 0, 1, 1]]}, "line 2: 'negative' says"),
        ({"clip_id": "a", "video": "a.mp4", "negative": True, "mask": "m.png"}, "line 2: 'negative' says"),
    ],
)
def test_wrong_manifest_lines_are_named(tmp_path: Path, line: dict | str, message: str):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match=message):
        manifest_of(folder, {"clip_id": "first", "video": "first.mp4"}, line).clips()


def test_no_manifest_and_an_empty_one(tmp_path: Path):
    with pytest.raises(UserError, match=r"no manifest at .*manifest.jsonl"):
        Manifest(Manifest.Config(name="manifest"), tmp_path)
    with pytest.raises(UserError, match="lists no clips"):
        manifest_of(tmp_path, "").clips()


def test_paths_within_the_root(tmp_path: Path):
    root = tmp_path.resolve()
    assert inside(root, f"{root}/a/b.mp4", "x") == "a/b.mp4"
    assert inside(root, "./a//b.mp4", "x") == "a/b.mp4"


def test_a_folder_of_clips(tmp_path: Path):
    files_in(tmp_path, "b.mp4", "deep/er/a.WEBM", ".hidden.mp4", "notes.txt", "c.mkv")
    found = clips_of(tmp_path).clips()
    assert sorted((clip.clip_id, clip.video, clip.split) for clip in found) == [
        ("a", "deep/er/a.WEBM", "train"),
        ("b", "b.mp4", "train"),
        ("c", "c.mkv", "train"),
    ]


def test_a_table_says_which_clips_and_what_they_are(tmp_path: Path):
    files_in(tmp_path, "a.mp4", "b.mp4", "c.mov")
    table = (
        "\ufeffclip_id, file, split, label, start_s, boxes, colour\n"
        'one,a.mp4,test,dog,1.5,"[[0, 0, 0.5, 1]]",red\n'
        "two,a.mp4,,,,,\n"
        "c,,dev,,,,blue\n"
        "gone,,,,,,\n"
    )
    layout = clips_of(tmp_path, table)
    one, two, three, gone = layout.clips()
    assert (one.clip_id, one.video, one.split, one.label, one.start_s) == ("one", "a.mp4", "test", "dog", 1.5)
    assert one.boxes == [[0.0, 0.0, 0.5, 1.0, 0.0]] and one.extra == {"colour": "red"}
    assert (two.video, two.split, two.label, two.boxes, two.start_s) == ("a.mp4", "train", None, None, 0.0)
    assert (three.video, three.split, gone.video) == ("c.mov", "dev", "gone.mp4")
    assert layout.notes == [f"1 video files are not in {tmp_path / 'clips.csv'} and are left out"]


def test_a_table_names_negative_sounds(tmp_path: Path):
    files_in(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    found = clips_of(tmp_path, "clip_id,negative,colour\na,True,red\nb,false,red\nc,,red\n").clips()
    assert [clip.boxes for clip in found] == [[], None, None]
    assert [clip.extra for clip in found] == [{"colour": "red", "negative": True}, {"colour": "red"}, {"colour": "red"}]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("name,split\na,test\n", "needs a header row .* clip_id or file"),
        ("clip_id,split\na,test,extra\n", "line 2: not 2 cells"),
        ("clip_id,split\na\n", "line 2: not 2 cells"),
        ("clip_id\na\na\n", "line 3: clip_id 'a' stands in line 2 already"),
        ("clip_id,start_s\na,soon\n", "line 2: start_s must be a number of seconds, 0 or more, found 'soon'"),
        ("clip_id,duration_s\na,0\n", "duration_s must be greater than 0"),
        ("clip_id,boxes\na,0 0 1 1\n", "line 2: boxes must be JSON"),
        ("clip_id,negative\na,no\n", "line 2: negative must be true, false or empty, found 'no'"),
        ('clip_id,negative,boxes\na,true,"[[0, 0, 1, 1]]"\n', "line 2: 'negative' says"),
        ("file\n../a.mp4\n", "line 2: the path '../a.mp4' leads out"),
        ("clip_id\n", "lists no clips"),
        ("", "needs a header row"),
        ("clip_id\ntwice\n", "2 files .* have the id 'twice'"),
    ],
)
def test_wrong_tables_are_named(tmp_path: Path, table: str, message: str):
    files_in(tmp_path, "a.mp4", "twice.mp4", "sub/twice.mkv")
    with pytest.raises(UserError, match=message):
        clips_of(tmp_path, table).clips()


def test_two_files_of_one_name_need_a_table(tmp_path: Path):
    files_in(tmp_path, "x/a.mp4", "y/a.mp4")
    with pytest.raises(UserError, match=r"2 files .* have the id 'a': x/a.mp4, y/a.mp4"):
        clips_of(tmp_path).clips()


def test_no_clips_to_pack(tmp_path: Path):
    with pytest.raises(UserError, match=r"no .mp4.* files in"):
        clips_of(tmp_path).clips()
    with pytest.raises(UserError, match="is not a folder"):
        clips_of(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("box", "good"),
    [
        ([0, 0, 1, 1, 0], True),
        ([-1e-9, 0, 1 + 1e-9, 1, 3], True),
        ([0.5, 0, 0.5, 1, 0], False),
        ([0.6, 0, 0.5, 1, 0], False),
        ([0, 0, 120, 80, 0], False),
        ([0, -0.1, 1, 1, 0], False),
        ([0, 0, float("nan"), 1, 0], False),
        ([0, 0, 1, 1, 0.5], False),
    ],
)
def test_boxes_are_fractions(box: list[float], good: bool):
    assert (bad_box([[0, 0, 1, 1, 0], box]) is None) == good
