"""The bundled lists are what their README says, and lists of people are read in every form."""

import gzip
import json
import re
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.id_lists import LISTS_FOLDER, Listed, list_names, load_list, read_rows
from configs.ids import normalise_id, source_of

TABLE = re.compile(r"^\| (\w+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|", re.MULTILINE)


def described() -> dict[str, list[int]]:
    rows = TABLE.findall((LISTS_FOLDER / "README.md").read_text())
    return {name: [int(number.replace(",", "")) for number in numbers] for name, *numbers in rows}


def test_the_readme_names_every_list():
    assert sorted(described()) == list_names()


@pytest.mark.parametrize(("name", "counts"), described().items())
def test_a_list_is_what_the_readme_says(name: str, counts: list[int]):
    ids = load_list(name)
    leaks = [len(set(ids) & set(load_list(test))) for test in ("vggss_test", "flickr_test_slavc")]
    assert [len(ids), *leaks] == counts
    assert len(set(ids)) == len(ids)
    assert all(normalise_id(part) == part for clip_id in ids for part in clip_id.split("+"))


def test_the_clean_list_is_the_legacy_list_without_test_clips():
    legacy, clean, test = (load_list(f"vgg{name}") for name in ("sound_144k_ezvsl", "sound_144k_clean", "ss_test"))
    assert set(legacy) - set(clean) == set(legacy) & set(test)
    sources = {source_of(clip_id) for clip_id in test}
    assert sum(source_of(clip_id) in sources for clip_id in clean) == 101


def test_heard_and_unheard_leave_out_the_choirs():
    heard, unheard, test = (set(load_list(f"vggss_{name}")) for name in ("heard_test", "unheard_test", "test"))
    assert not heard & unheard and heard | unheard < test
    truth = json.loads(gzip.decompress((LISTS_FOLDER / "vggss.json.gz").read_bytes()))
    assert {item["class"] for item in truth if item["file"] in test - heard - unheard} == {"singing choir"}


def test_lists_of_people_are_read_in_every_form(tmp_path: Path):
    plain = tmp_path / "mine.txt"
    plain.write_text("\ufeffzpWuikVorYg_32000_42000\r\n\nzpWuikVorYg_000032.mp4\nmy clip", encoding="utf-8")
    assert load_list(plain) == ["zpWuikVorYg_000032", "my clip"]
    table = tmp_path / "mine.csv.gz"
    table.write_bytes(gzip.compress(b'video,label\n-Qowmc0P9ic_000034,"bird chirping, tweeting"\n10000130166,202\n'))
    assert list(read_rows(table)) == [Listed("-Qowmc0P9ic_000034", "bird chirping, tweeting"), Listed("10000130166")]
    official = tmp_path / "vggsound.csv"
    official.write_text("-Qowmc0P9ic,34,playing bass drum,train\n---1_cCGK4M,0,car passing by,test\n")
    assert list(read_rows(official)) == [
        Listed("-Qowmc0P9ic_000034", "playing bass drum", "train"),
        Listed("---1_cCGK4M_000000", "car passing by", "test"),
    ]


def test_a_list_that_is_none_says_so(tmp_path: Path):
    with pytest.raises(UserError, match="Did you mean 'vggsound_144k_htf'"):
        load_list("vggsound_144k_hft")
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    with pytest.raises(UserError, match="holds no ids"):
        load_list(empty)
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "torn.txt.gz").write_bytes(gzip.compress(b"a\n" * 1000)[:-8])
    (tmp_path / "plain.gz").write_text("not gzipped")
    (tmp_path / "bent.gz").write_bytes(gzip.compress(b"abc\n" * 1000)[:12] + b"\xff" * 40)
    (tmp_path / "half.csv").write_text("video,audio,label\nzpWuikVorYg_000032\n")
    for name in ("binary.txt", "torn.txt.gz", "plain.gz", "bent.gz", "half.csv"):
        with pytest.raises(UserError, match=name):
            load_list(tmp_path / name)


def test_a_file_beside_one_of_its_name_and_txt_gz_is_read_itself(tmp_path: Path):
    (tmp_path / "mine").write_text("a\n")
    (tmp_path / "mine.txt.gz").write_bytes(gzip.compress(b"b\n"))
    assert load_list(tmp_path / "mine") == ["a"] and load_list(tmp_path / "mine.txt.gz") == ["b"]
