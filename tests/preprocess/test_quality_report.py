import csv
import json
import os
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.errors import UserError
from pipeline.store import DATA, Store
from preprocess.__main__ import main
from preprocess.quality import QUALITY
from preprocess.report import COLUMNS, CSV, HTML, ids_with, judge, write_report
from tests.conftest import write_wav
from tests.preprocess.test_quality import noise, photo


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of eight clips: two doubles across splits, one silent, one small; one more is refused by --drop."""
    folder = tmp_path_factory.mktemp("report")
    lines = []
    for number in range(9):
        Image.fromarray(photo(number, 340, 256)).save(folder / f"{number}.png")
        write_wav(folder / f"{number}.wav", noise(number), 16000)
        line = {"clip_id": f"clip_{number}", "split": "train", "image": f"{number}.png", "audio": f"{number}.wav"}
        lines.append(line)
    lines[5] |= {"split": "test", "boxes": [[0, 0, 1, 1]]}
    shutil.copy(folder / "5.png", folder / "2.png")  # a training clip with the picture of a test clip
    Image.fromarray(photo(5, 340, 256)).save(folder / "7.jpg", quality=85)
    lines[7]["image"] = "7.jpg"
    shutil.copy(folder / "0.wav", folder / "4.wav")
    write_wav(folder / "3.wav", np.zeros(32000, np.int16), 16000)
    Image.fromarray(photo(6, 170, 128)).save(folder / "6.png")
    Image.fromarray(np.full((256, 340, 3), 8, np.uint8)).save(folder / "8.png")
    (folder / "manifest.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    store = folder / "store"
    options = ["--frontend", "logmel64", "--workers", "0", "--shard-clips", "3", "--drop", "blank"]
    assert main(["pack", "manifest", str(folder), str(store), *options]) == 0
    return store


def rows(store: Path) -> dict[str, dict[str, str]]:
    with (store / CSV).open(newline="") as file:
        return {row["clip_id"]: row for row in csv.DictReader(file)}


def test_pack_leaves_a_row_for_every_clip(packed: Path):
    found = rows(packed)
    assert list(found) == [f"clip_{number}" for number in range(8)]
    assert tuple(found["clip_0"]) == COLUMNS
    said = {clip_id: row["flags"] for clip_id, row in found.items() if row["flags"]}
    assert said == {
        "clip_2": "same_picture",
        "clip_3": "silent",
        "clip_4": "same_sound",
        "clip_6": "small",
        "clip_7": "like_picture",
    }
    assert found["clip_2"]["same_picture"] == "clip_5"  # the training clip is the double, though its id comes first
    assert found["clip_4"]["same_sound"] == "clip_0" and found["clip_7"]["like_picture"] == "clip_5"
    assert (found["clip_1"]["width"], found["clip_1"]["height"], found["clip_1"]["channels"]) == ("340", "256", "1")
    assert found["clip_1"]["asked_s"] == found["clip_1"]["motion"] == ""  # not known
    assert float(found["clip_3"]["rms_dbfs"]) == -120
    refused = (packed / "refused.csv").read_text()
    assert "clip_8,train,8.png,blank,--drop blank: the picture has next to no contrast" in refused


def test_the_rows_do_not_depend_on_the_shards(packed: Path, tmp_path: Path):
    options = ["--frontend", "logmel64", "--workers", "0", "--shard-clips", "8", "--drop", "blank"]
    assert main(["pack", "manifest", str(packed.parent), str(tmp_path / "store"), *options]) == 0
    assert (tmp_path / "store" / CSV).read_bytes() == (packed / CSV).read_bytes()


def test_lists_by_flag(packed: Path, capsys: pytest.CaptureFixture):
    assert main(["report", str(packed), "--list", "silent,same_picture,rotated"]) == 0
    assert capsys.readouterr().out.splitlines() == ["clip_2", "clip_3"]
    with pytest.raises(UserError, match="no flag 'quiet'; there are: silent, clipped"):
        ids_with(judge(packed), ["quiet"])


def test_measures_follow_the_order_of_the_store(packed: Path):
    judged = judge(packed)
    with Store(packed) as store:
        assert judged.clip_id == store.index["clip_id"]
        assert judged.quality.duration_s.tolist() == store.index["duration_s"]


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for key, value in attrs if key in ("src", "href")]
        self.ids += [value or "" for key, value in attrs if key == "id"]
        assert tag not in ("script", "link", "iframe")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_else(packed: Path):
    page = _Page()
    page.feed((packed / HTML).read_text())
    pictures = [link for link in page.links if link.startswith("data:image/jpeg;base64,")]
    anchors = [link.removeprefix("#") for link in page.links if link.startswith("#")]
    assert len(pictures) + len(anchors) == len(page.links)
    assert set(anchors) == set(page.ids) == {"silent", "small", "same_picture", "same_sound", "like_picture"}
    assert len(pictures) == 1 + 1 + 2 + 2 + 2  # doubles beside what they are doubles of
    assert "8 clips: whether the picture moves is not known" in page.text and "blank" in page.text
    assert "8 of 9 clips are packed" in page.text


def test_a_store_without_its_measures_is_named(packed: Path, tmp_path: Path):
    store = tmp_path / "store"
    shutil.copytree(packed, store)
    (store / "shard-00001" / QUALITY).write_bytes(b"\x80")
    with pytest.raises(UserError, match=r"shard-00001/quality.msgpack .* is missing or damaged"):
        write_report(store)


def test_a_merged_store_knows_its_quality(packed: Path, tmp_path: Path):
    assert main(["merge", str(tmp_path / "merged"), str(packed)]) == 0
    assert (tmp_path / "merged" / CSV).read_bytes() == (packed / CSV).read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium to open the page with")
def test_the_page_fits_a_phone(packed: Path, tmp_path: Path):
    page = tmp_path / "page.html"
    probe = "<script>document.title=document.documentElement.scrollWidth+'/'+innerWidth</script>"
    page.write_text((packed / HTML).read_text().replace("</html>", f"{probe}</html>"))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=500,900", "--dump-dom", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    wide, window = shown.partition("<title>")[2].partition("</title>")[0].split("/")
    assert int(wide) <= int(window)


def test_damaged_shards_are_told(packed: Path, tmp_path: Path):
    store = Path(shutil.copytree(packed, tmp_path / "store"))
    for shard in store.glob("shard-*"):
        data = shard / DATA
        data.write_bytes(bytes(data.stat().st_size))
    with pytest.raises(
        UserError, match=r"the picture of clip clip_\d in .* cannot be read; run `python -m preprocess v"
    ):
        write_report(store)
    os.truncate(data, 5000)
    with pytest.raises(UserError, match="is missing or cut short"):
        judge(store)
