"""Pictures of clips: the right map over the right place, under safe names."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from configs.errors import UserError
from configs.schema import EvaluateConfig
from model.base import Localization
from model.gallery import Gallery, KeptMaps, build_gallery, choose, disagreements, safe_name, write_overlays
from model.rows import Rows
from model.scoring import build_scorer
from pipeline.batch import Truth
from pipeline.excerpts import Excerpt

NASTY = "<script>../x"


def pictures(maps: torch.Tensor, truth: Truth, names: list[str], count: int = 12) -> tuple[Gallery, Rows]:
    """The gallery of clips with these maps and one truth, over grey pictures of 100 x 100."""
    found = Localization(map=maps, bounds=(0, 1))
    scorer, kept = build_scorer(EvaluateConfig(), blind=False), KeptMaps()
    scorer.add(names, torch.ones(len(names), dtype=torch.bool), found, [truth] * len(names))
    kept.add(names, [True] * len(names), found)
    rows = scorer.rows()
    grey = Excerpt(image=np.full((100, 100, 3), 128, np.uint8), truth=truth, sound=None)
    return build_gallery(choose(rows, count), scorer.rule, {"map": (kept, rows)}, lambda _: grey), rows


def test_boxes_and_the_hot_spot_are_drawn_where_they_are():
    native = torch.zeros(1, 224, 224)
    native[0, 160:180, 40:60] = 1
    gallery, _ = pictures(native, Truth(boxes=np.array([[0.5, 0.25, 1.0, 0.75, 0]])), ["a"])
    ((picture,),) = gallery.values()
    plain, overlay = picture.plain().astype(int), picture.overlay(picture.layers[0]).astype(int)
    assert plain.shape == (320, 320, 3)
    for x, y in ((160, 160), (318, 160), (240, 80), (240, 238)):
        blue, green, red = plain[y, x]
        assert green > 180 and blue < 130 and red < 130, (x, y)
    assert plain[160, 240].tolist() == [128, 128, 128] and plain[160, 100].tolist() == [128, 128, 128]
    assert abs(overlay[238, 66] - 128).max() > 40  # in the hot spot, beside the cross
    assert abs(overlay[40, 40] - 128).max() < 3  # far from it the picture stays


def test_a_mask_is_outlined():
    gallery, _ = pictures(torch.rand(2, 8, 8), Truth(mask=np.pad(np.full((20, 20), 255, np.uint8), 12)), ["a", "b"])
    green = (gallery["all clips, best first"][0].plain() == (94, 222, 74)).all(2)
    assert green.any() and not green[160, 160]


def test_overlays_are_pictures_with_safe_names(tmp_path: Path):
    names = [f"{NASTY}0", "clip_1", "clip_2"]
    gallery, _ = pictures(torch.rand(3, 8, 8), Truth(boxes=np.array([[0.1, 0.1, 0.5, 0.5, 0]])), names)
    folder = tmp_path / "overlays"
    folder.mkdir()
    (folder / "stale.jpg").write_bytes(b"old")
    write_overlays(folder, gallery)
    assert {path.name for path in folder.iterdir()} == {f"{safe_name(name)}.jpg" for name in names}
    assert list(tmp_path.iterdir()) == [folder]
    for path in folder.iterdir():
        picture = cv2.imread(str(path))
        assert picture is not None and picture.shape == (320, 320, 3)


def test_few_clips_are_shown_once_and_negative_ones_apart():
    rows: Rows = {
        "clip_id": np.array(list("abcdefgh")),
        "negative": np.array([0.0] * 6 + [1.0] * 2),
        "ciou": np.array([0.5, 0.1, 0.9, 0.3, 0.7, 0.2, 0.0, 0.0]),
    }
    (title, shown), (quiet, negative) = choose(rows, 6).items()
    assert title.startswith("all clips") and shown == ["c", "e", "a", "d", "f", "b"]
    assert "nothing sounds" in quiet and set(negative) == {"g", "h"}
    sections = choose(rows, 2)
    assert sections["best by ciou"] == ["c", "e"] and sections["worst by ciou"] == ["b", "f"]
    assert sections["median by ciou"] == ["a", "d"] and len(set(sections["random"])) == 2
    turned = {key: column[::-1] for key, column in rows.items()}
    assert choose(turned, 2) == sections
    assert choose(rows, 0) == {}
    assert choose({"clip_id": rows["clip_id"], "curve": np.zeros((8, 3))}, 2) == {}


def test_disagreements_are_the_largest_gaps_of_shared_clips():
    first: Rows = {"clip_id": np.array(list("abcd")), "ciou": np.array([0.5, 0.1, 0.9, 0.3])}
    second: Rows = {"clip_id": np.array(list("cdbz")), "ciou": np.array([0.2, 0.3, 0.8, 1.0])}
    assert disagreements(first, second, 5) == {"second better by ciou": ["b"], "first better by ciou": ["c"]}


def test_disagreements_are_by_a_column_that_both_have():
    first: Rows = {"clip_id": np.array(["a"]), "ciou": np.array([0.5]), "pointing": np.array([0.0])}
    second: Rows = {"clip_id": np.array(["a"]), "pointing": np.array([1.0])}
    for pair, better in (((first, second), "second"), ((second, first), "first")):
        assert disagreements(*pair, 5)[f"{better} better by pointing"] == ["a"]
    assert disagreements({key: first[key] for key in ("clip_id", "ciou")}, second, 5) == {}


def test_kept_maps_are_saved_and_joined(tmp_path: Path):
    one, two = KeptMaps(), KeptMaps()
    one.add(["b", "a", "padding"], [True, True, False], Localization(map=torch.rand(3, 4, 5), bounds=(-1, 2)))
    two.add(["c"], [True], Localization(map=torch.rand(1, 4, 5), bounds=(-1, 2)))
    both = one.join(two)
    assert torch.equal(both.of(["c", "b"]), torch.cat([two.of(["c"]), one.of(["b"])]))
    assert "padding" not in both and both.largest_side == 5 and KeptMaps().largest_side == 0
    both.save(tmp_path / "maps.npz")
    again = KeptMaps.load(tmp_path / "maps.npz")
    assert again.bounds == (-1, 2) and torch.equal(again.of(["a", "b", "c"]), both.of(["a", "b", "c"]))
    (tmp_path / "maps.npz").write_bytes(b"no")
    with pytest.raises(UserError, match="holds no maps of an evaluation"):
        KeptMaps.load(tmp_path / "maps.npz")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", "x" * 300, "ü", "a b", "con:", ".hidden", "-x_000010", "a_b"]
)
def test_names_are_safe_and_distinct(name: str):
    safe = safe_name(name)
    assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", safe)
    assert safe != safe_name(name + "!") and (safe == name) == (name in ("-x_000010", "a_b"))
