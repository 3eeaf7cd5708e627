"""The report: one file, nothing from outside, nobody's text taken for markup, and the right clips in the gallery."""

import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from model.base import Localization
from model.report import Gallery, safe_name, write_report
from model.scoring import ScoreTable, random_maps
from pipeline.batch import Truth
from tests.model.test_scoring import make, table

NASTY = "<script>alert('x')</script>&\"../../x"
COUNT = 30


def scored_set(count: int = COUNT, kept: int = 4, mask: bool = False) -> tuple[ScoreTable, Gallery]:
    scorer, gallery = make(bootstrap=10), Gallery(kept)
    for first in range(0, count, 7):
        names = [
            f"{NASTY}{number}" if number == 0 else f"clip_{number}" for number in range(first, min(first + 7, count))
        ]
        truths = [
            Truth(boxes=np.array([[0.1, 0.2, 0.6, 0.3 + number / 50, 0]]), label=NASTY if number % 2 else "dog")
            if not mask
            else Truth(mask=np.pad(np.full((20, 20), 255, np.uint8), 12), label="dog")
            for number in range(first, first + len(names))
        ]
        image = torch.randint(0, 256, (7, 3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(first))
        valid = torch.tensor([place < len(names) for place in range(7)])
        maps = torch.zeros(7, 8, 8)
        maps[: len(names)] = random_maps(names, 8, 8)
        padded = names + names[:1] * (7 - len(names))
        scored = scorer.add(
            padded, valid, Localization(map=maps, bounds=(0, 1)), truths + truths[:1] * (7 - len(names))
        )
        gallery.add(image, scored)
    return table(scorer, expected=count + 3), gallery


class Page(HTMLParser):
    """Tags, attributes that could load something, and text of a page; checks that tags close in order."""

    VOID = {"meta", "img", "br", "input"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "data", "action")]
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
    scores, gallery = scored_set()
    path = tmp_path_factory.mktemp("report") / "report.html"
    history = [
        {"epoch": 1, "step": 10, "loss": 3.5, f"{NASTY}/ciou_50": 0.1},
        {"epoch": 2, "step": 20, "loss": float("nan")},
        {"epoch": 3, "step": 30, "loss": 2.5, f"{NASTY}/ciou_50": 0.3},
    ]
    write_report(
        path,
        title=NASTY,
        tables={NASTY: scores},
        galleries={NASTY: gallery},
        facts={"who": NASTY},
        config_yaml=f"seed: 0 # {NASTY}",
        history=history,
    )
    return path.read_text()


def test_the_page_is_whole_and_loads_nothing(report: str):
    page = Page(report)
    assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
    assert page.links and all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert not re.search(r"url\(|@import|https?://", report)
    assert "default-src 'none'" in report


def test_every_text_is_shown_as_text(report: str):
    assert "<script" not in report
    text = Page(report).text
    for part in (f"who{NASTY}", f"{NASTY}0", f"seed: 0 # {NASTY}", f"{NASTY}/ciou_50"):
        assert part in text


def test_the_page_holds_scores_floors_settings_and_curves(report: str):
    text = Page(report).text
    scores, _ = scored_set()
    for name, value in scores.scores.items():
        assert name in text and f"{value:.3f}" in text
    for part in (
        "centre",
        "ones",
        "random",
        "ceiling",
        "95% interval",
        "30 of 33 clips",
        "bilinear to 224 x 224 px",
        "loss",
    ):
        assert part in text, part
    assert Page(report).tags.count("figure") >= 2 + 12


def test_the_gallery_keeps_the_best_the_worst_and_a_fair_draw():
    scores, gallery = scored_set()
    values = dict(zip(scores.rows["clip_id"].tolist(), scores.rows["ciou"].tolist()))
    ranked = sorted(values.values())
    assert [picture.rank[0] for picture in gallery.sections["best"]] == ranked[::-1][:4]
    assert [picture.rank[0] for picture in gallery.sections["worst"]] == ranked[:4]
    drawn = [picture.clip_id for picture in gallery.sections["random"]]
    assert len(set(drawn)) == 4 and drawn != sorted(values)[:4]
    for pictures in gallery.sections.values():
        for picture in pictures:
            assert picture.values["ciou"] == values[picture.clip_id]


def test_the_draw_does_not_depend_on_the_order():
    gallery, other = Gallery(3), Gallery(3)
    scorer, again = make(ciou={}), make(ciou={})
    names = [f"clip_{number}" for number in range(12)]
    truths = [Truth(boxes=np.array([[0.1, 0.1, 0.5, 0.5, 0]]))] * 12
    image = torch.zeros(12, 3, 32, 32, dtype=torch.uint8)
    for kept, one, order in ((gallery, scorer, range(12)), (other, again, range(11, -1, -1))):
        for place in order:
            maps = Localization(map=random_maps([names[place]], 5, 5), bounds=(0, 1))
            kept.add(image[:1], one.add([names[place]], torch.tensor([True]), maps, [truths[place]]))
    for section, pictures in gallery.sections.items():
        assert [p.clip_id for p in pictures] == [p.clip_id for p in other.sections[section]]


def test_few_clips_are_shown_once():
    _, gallery = scored_set(count=4, kept=4)
    ((title, pictures),) = gallery.sections.items()
    assert title.startswith("all clips") and len(pictures) == 4


def test_no_gallery_is_no_pictures(tmp_path: Path):
    scores, gallery = scored_set(kept=0)
    gallery.write(tmp_path / "overlays")
    assert list((tmp_path / "overlays").iterdir()) == []
    write_report(
        tmp_path / "r.html", title="t", tables={"s": scores}, galleries={"s": gallery}, facts={}, config_yaml=""
    )
    assert "data:image" not in Page((tmp_path / "r.html").read_text()).links


def test_overlays_are_pictures_with_safe_names(tmp_path: Path):
    _, gallery = scored_set(count=3)
    folder = tmp_path / "overlays"
    folder.mkdir()
    (folder / "stale.jpg").write_bytes(b"old")
    gallery.write(folder)
    names = {path.name for path in folder.iterdir()}
    assert names == {f"{safe_name(name)}.jpg" for name in (f"{NASTY}0", "clip_1", "clip_2")}
    assert list(tmp_path.iterdir()) == [folder]
    for path in folder.iterdir():
        picture = cv2.imread(str(path))
        assert picture is not None and picture.shape == (240, 320, 3)


def test_boxes_and_the_hot_spot_are_drawn_where_they_are():
    scorer, gallery = make(ciou={}), Gallery(1)
    native = torch.zeros(1, 224, 224)
    native[0, 160:180, 40:60] = 1
    image = torch.full((1, 3, 100, 100), 128, dtype=torch.uint8)
    truth = Truth(boxes=np.array([[0.5, 0.25, 1.0, 0.75, 0]]))
    gallery.add(image, scorer.add(["a"], torch.tensor([True]), Localization(map=native, bounds=(0, 1)), [truth]))
    ((picture,),) = gallery.sections.values()
    plain, overlay = picture.plain().astype(int), picture.overlay().astype(int)
    assert plain.shape == (320, 320, 3)
    for x, y in ((160, 160), (318, 160), (240, 80), (240, 238)):
        blue, green, red = plain[y, x]
        assert green > 180 and blue < 130 and red < 130, (x, y)
    assert plain[160, 240].tolist() == [128, 128, 128] and plain[160, 100].tolist() == [128, 128, 128]
    assert abs(overlay[238, 66] - 128).max() > 40  # in the hot spot, beside the cross
    assert abs(overlay[40, 40] - 128).max() < 3  # far from it the picture stays


def test_a_mask_is_outlined(tmp_path: Path):
    _, gallery = scored_set(count=2, mask=True)
    picture = gallery.sections["all clips, best first"][0]
    green = (picture.plain() == (94, 222, 74)).all(2)
    assert green.any() and not green[120, 160]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", "x" * 300, "ü", "a b", "con:", ".hidden", "-x_000010", "a_b"]
)
def test_names_are_safe_and_distinct(name: str):
    safe = safe_name(name)
    assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", safe)
    assert safe != safe_name(name + "!") and (safe == name) == (name in ("-x_000010", "a_b"))
