"""The report: one file, nothing from outside, nobody's text taken for markup, and a browser that agrees."""

import base64
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.schema import EvaluateConfig
from model.base import Localization
from model.gallery import Gallery, KeptMaps, build_gallery, choose
from model.protocol import random_maps
from model.report import BUDGET_BYTES, write_report
from model.results import Results, SetResult
from model.rows import Rows
from model.scoring import ScoreTable, build_scorer
from pipeline.batch import Truth
from pipeline.excerpts import Excerpt
from pipeline.store import id_hash

NASTY = "<script>alert('x')</script>&\"../../x"
COUNT = 30
CURVES = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)


def truth_of(number: int) -> Truth:
    return Truth(boxes=np.array([[0.1, 0.2, 0.6, 0.3 + number / 50, 0]]), label=NASTY if number % 2 else "dog")


def scored_set(count: int = COUNT, kept: int = 4, sound: bytes | None = b"ID3") -> tuple[list[ScoreTable], Gallery]:
    """Tables under two protocols, and pictures, of clips with random maps."""
    names = [f"{NASTY}0", *(f"clip_{number}" for number in range(1, count))]
    truths = dict(zip(names, map(truth_of, range(count))))
    maps, tables = KeptMaps(), []
    found = Localization(map=random_maps(names, 8, 8), bounds=(0, 1))
    maps.add(names, [True] * count, found)
    for protocol in ("ez_vsl", "lvs"):
        scorer = build_scorer(EvaluateConfig(bootstrap=10), protocol=protocol)
        scorer.add(names, torch.ones(count, dtype=torch.bool), found, list(truths.values()))
        tables.append(scorer.result(id_hash=id_hash, expected=count + 3))
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)

    def excerpt(clip_id: str) -> Excerpt:
        return Excerpt(image=image, truth=truths[clip_id], sound=sound)

    rows = tables[0].rows
    scorer = build_scorer(EvaluateConfig())
    return tables, build_gallery(choose(rows, kept), scorer.rule, {"map": (maps, rows)}, excerpt)


def write(path: Path, sets: dict[str, list[ScoreTable]], galleries: dict[str, Gallery]) -> str:
    results = {
        name: SetResult(of=name, about=NASTY, tables=tables, leak={"same": 1, "related": 2})
        for name, tables in sets.items()
    }
    history = [
        {"epoch": 1, "step": 10, "loss": 3.5, f"{NASTY}/ciou_50": 0.1},
        {"epoch": 2, "step": 20, "loss": float("nan")},
        {"epoch": 3, "step": 30, "loss": 2.5, f"{NASTY}/ciou_50": 0.3},
    ]
    write_report(
        path,
        results=Results(title=NASTY, sets=results, facts={"who": NASTY}, config={}),
        galleries=galleries,
        config_yaml=f"seed: 0 # {NASTY}",
        history=history,
        curves=CURVES,
    )
    return path.read_text()


class Page(HTMLParser):
    """Tags, attributes that could load something, and text of a page; checks that tags close in order."""

    VOID = {"meta", "img", "br", "input"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.labels: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "data", "action")]
        self.ids += [value or "" for key, value in attrs if key == "id"]
        self.labels += [value or "" for key, value in attrs if key == "for"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    tables, gallery = scored_set()
    return write(tmp_path_factory.mktemp("report") / "r.html", {NASTY: tables, "b": tables}, {NASTY: gallery})


def test_the_page_is_whole_and_loads_nothing(report: str):
    page = Page(report)
    assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
    assert page.links and all(link.startswith(("data:image/", "data:audio/mpeg;base64,")) for link in page.links)
    assert page.links.count(f"data:image/png;base64,{base64.b64encode(CURVES).decode()}") == 1
    assert not re.search(r"url\(|@import|https?://", report)
    assert "default-src 'none'" in report
    assert len(set(page.ids)) == len(page.ids) and set(page.labels) <= set(page.ids)


def test_every_text_is_shown_as_text(report: str):
    assert "<script" not in report
    text = Page(report).text
    for part in (f"who{NASTY}", f"{NASTY}0", f"seed: 0 # {NASTY}", f"{NASTY}/ciou_50"):
        assert part in text


def test_the_page_holds_scores_floors_settings_and_curves(report: str):
    text = Page(report).text
    tables, _ = scored_set()
    for table in tables:
        for name, value in table.scores.items():
            assert name in text and f"{value:.3f}" in text
    for part in ("centre", "ones", "random", "ceiling", "95% interval", "30 of 33 clips", "bilinear to 224 x 224 px"):
        assert part in text, part
    for tab in ("Overview", "Scores", "Protocols", "Curves", "Classes", "Sizes", "Pictures", "Training", "About"):
        assert f">{tab}</label>" in report, tab
    for part in (
        "best by ciou",
        "median by ciou",
        "worst by ciou",
        "medium (2% to 18%)",
        "share of clips with at least",
    ):
        assert part in text, part
    assert Page(report).tags.count("audio") == 16


def test_the_gallery_keeps_the_best_the_median_the_worst_and_a_fair_draw():
    (table, _), gallery = scored_set()
    values = dict(zip(table.rows["clip_id"].tolist(), table.rows["ciou"].tolist()))
    ranked = sorted(values.values())
    shown = {title: [picture.clip_id for picture in pictures] for title, pictures in gallery.items()}
    assert [values[name] for name in shown["best by ciou"]] == ranked[::-1][:4]
    assert [values[name] for name in shown["worst by ciou"]] == ranked[:4]
    assert [values[name] for name in shown["median by ciou"]] == ranked[::-1][13:17]
    assert len(set(shown["random"])) == 4 and shown["random"] != sorted(values)[:4]
    for pictures in gallery.values():
        for picture in pictures:
            assert picture.layers[0].values["ciou"] == values[picture.clip_id]


def test_pictures_and_sounds_fit_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tables, gallery = scored_set(sound=b"x" * 100_000)
    whole = write(tmp_path / "a.html", {"a": tables}, {"a": gallery})
    assert "left out" not in whole and whole.count("<audio") == 16
    pictures = len(whole) - 16 * 4 * 100_000 // 3
    monkeypatch.setattr("model.report.BUDGET_BYTES", pictures)
    quiet = write(tmp_path / "b.html", {"a": tables}, {"a": gallery})
    assert "the sounds are left out" in quiet and "<audio" not in quiet and quiet.count("class='card'") == 16
    monkeypatch.setattr("model.report.BUDGET_BYTES", pictures // 3)
    small = write(tmp_path / "c.html", {"a": tables}, {"a": gallery})
    assert "the sounds and some of the pictures are left out" in small and 0 < small.count("class='card'") < 16
    assert len(small) < len(quiet) // 2


def test_no_gallery_is_no_pictures(tmp_path: Path):
    tables, gallery = scored_set(kept=0)
    assert gallery == {}
    assert "Pictures" not in write(tmp_path / "r.html", {"s": tables}, {"s": gallery})


def test_a_table_of_curves_alone_has_a_page(tmp_path: Path):
    (table, _), _ = scored_set()
    rows = {key: column for key, column in table.rows.items() if "ciou" not in key and "pointing" not in key}
    page = write(tmp_path / "report.html", {"a": [replace(table, rows=rows)]}, {"a": {}})
    assert "ciou_50" in page and ">Classes<" not in page


def large_rows(rows: Rows, count: int) -> Rows:
    """As many rows, of ids, labels and values that VGG-SS could have."""
    draw = np.random.default_rng(0)
    again = {key: column[draw.integers(len(column), size=count)] for key, column in rows.items()}
    again["clip_id"] = np.array([f"{number:011d}_000010" for number in range(count)])
    again["label"] = np.array([f"class number {number % 220}" for number in range(count)])
    for name in ("ciou", "centre.ciou", "truth_area"):
        again[name] = draw.random(count)
    return again


@pytest.fixture(scope="module")
def full_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of 5,158 clips under two protocols, with the usual pictures of the usual size and sound."""
    tables, gallery = scored_set(kept=12, sound=bytes(30_000))
    tables = [replace(table, rows=large_rows(table.rows, 5158), found=5158, expected=5158) for table in tables]
    noisy = np.random.default_rng(1).integers(0, 256, (180, 320, 3), dtype=np.uint8)
    gallery = {title: [replace(picture, image=noisy) for picture in pictures] for title, pictures in gallery.items()}
    path = tmp_path_factory.mktemp("full") / "report.html"
    write(path, {"vggss": tables, "heard": tables, "unheard": tables}, {"vggss": gallery, "heard": gallery})
    return path


def test_the_report_of_vggss_is_small(full_report: Path):
    assert 2_000_000 < full_report.stat().st_size < 30_000_000
    assert BUDGET_BYTES < 25_000_000


@pytest.mark.parametrize("budget_bytes", [0, 300_000])
def test_a_page_takes_as_many_pictures_as_fit(budget_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tables, gallery = scored_set(kept=12, sound=bytes(3000))
    monkeypatch.setattr("model.report.BUDGET_BYTES", budget_bytes)
    write(tmp_path / "none.html", {"vggss": tables}, {})
    write(tmp_path / "many.html", {"vggss": tables}, {"vggss": {title: 4 * each for title, each in gallery.items()}})
    none, many = ((tmp_path / name).read_text() for name in ("none.html", "many.html"))
    assert "the sounds and some of the pictures are left out" in many
    pictures = many.count("<img") - none.count("<img")
    assert (pictures > 0) == (budget_bytes > 0)
    assert budget_bytes / 4 < len(many) - len(none) < budget_bytes + 2000 or not budget_bytes


def browse(page: Path, *options: str) -> str:
    """What headless Chromium makes of a page, without a network."""
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--proxy-server=127.0.0.1:9",
    ]
    command += [f"--user-data-dir={page.parent / 'browser'}", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# A page that opens the report in a frame, goes through its tabs, and writes down what it sees. Only this page has a
# script: the report allows none.
PROBE = """<!doctype html><title>probe</title><pre id=out></pre>
<iframe id=f width={width} height=800 src="{page}"></iframe>
<script>
const found = {{}}, frame = document.getElementById('f'), shown = node => node.getClientRects().length > 0;
frame.onload = () => {{
  const page = frame.contentDocument, root = page.documentElement;
  const wide = () => found.wide = Math.max(found.wide || 0, root.scrollWidth);
  found.panes = [];
  for (const input of page.querySelectorAll('input[name=page]')) {{
    input.click();
    wide();
    const panes = [...input.parentElement.children].filter(node => node.className === 'pane');
    found.panes.push(panes.filter(shown).length + ':' + panes.findIndex(shown));
    for (const inner of page.querySelectorAll('.pane .tabs > input')) {{
      if (shown(inner.nextElementSibling)) {{ inner.click(); wide(); }}
    }}
  }}
  found.images = page.images.length;
  found.audio = page.querySelectorAll('audio').length;
  found.decoded = [...page.images].filter(image => image.complete && image.naturalWidth).length;
  found.plays = page.querySelector('audio').canPlayType('audio/mpeg');
  document.getElementById('out').textContent = 'FOUND' + JSON.stringify(found) + 'END';
}};
</script>"""


@pytest.mark.skipif(not BROWSER, reason="no Chromium or Chrome is installed: the report is not seen by a browser")
@pytest.mark.parametrize("width_px", [390, 1200])
def test_a_browser_shows_every_tab_on_a_phone_and_on_a_desktop(full_report: Path, width_px: int):
    probe = full_report.parent / f"probe-{width_px}.html"
    probe.write_text(PROBE.format(width=width_px, page=full_report.name))
    # Pages of files are strangers to each other unless told otherwise.
    dom = browse(probe, "--dump-dom", "--allow-file-access-from-files", "--virtual-time-budget=20000")
    match = re.search("FOUND(.*)END</pre>", dom)
    assert match, dom[-2000:]
    found = json.loads(match[1])
    assert found["panes"] == [f"1:{number}" for number in range(6)], "each tab shows its own pane alone"
    assert found["wide"] <= width_px, "nothing sticks out to the right"
    assert found["images"] == found["decoded"] == 2 * 2 * 48 + 1 and found["audio"] == 2 * 48
    assert found["plays"]
