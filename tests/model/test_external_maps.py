"""Maps and truth from files: ids are matched, and whatever cannot be scored is named."""

import gzip
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from configs.errors import UserError
from model.external_maps import ExternalMaps, batches, read_truth

MAP = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_every_form_gives_the_same_maps(tmp_path: Path):
    names = ["abcdefghijk_000010", "-_cdefghijk_30000_40000", "1234567.mp4"]
    np.savez(tmp_path / "a.npz", clip_id=np.array(names), maps=np.stack([MAP, MAP + 1, MAP + 2]))
    np.savez(tmp_path / "b.npz", **{name: MAP[None] + number for number, name in enumerate(names)})
    for folder in ("npy", "png"):
        (tmp_path / folder).mkdir()
    for number, name in enumerate(names):
        np.save(tmp_path / "npy" / f"{name}.npy", (MAP + number).astype(np.float64))
        cv2.imwrite(str(tmp_path / "png" / f"{name}.png"), (MAP + number).astype(np.uint16 if number else np.uint8))
    (tmp_path / "npy" / "readme.txt").write_text("no map")
    for source in ("a.npz", "b.npz", "npy", "png"):
        maps = ExternalMaps(tmp_path / source)
        assert maps.clip_ids == ["-_cdefghijk_000030", "1234567", "abcdefghijk_000010"], source
        found = maps.read("1234567")
        expected = (MAP + 2) / np.float32(65535) if source == "png" else MAP + 2
        assert found.dtype == np.float32 and np.array_equal(found, expected), source


def test_maps_outside_their_bounds_are_said(tmp_path: Path):
    """Without bounds a system's cosines or logits would pass for values from 0 to 1."""
    ids = np.array(["a", "b"])
    values = np.stack([np.full((2, 2), 0.5), np.array([[0, 1], [-3, 1]])])
    np.savez(tmp_path / "bare.npz", clip_id=ids, maps=values)
    np.savez(tmp_path / "told.npz", clip_id=ids, maps=values, bounds=np.array([-np.inf, np.inf]))
    bare, told = ExternalMaps(tmp_path / "bare.npz"), ExternalMaps(tmp_path / "told.npz")
    bare.read("a")
    assert not bare.out_of_bounds()
    for maps in (bare, told):
        maps.read("b")
    (said,) = bare.out_of_bounds()
    assert "from -3 to 1" in said and "0 to 1" in said
    assert not told.out_of_bounds()


@pytest.mark.parametrize("bounds", [[1, 0], [1, 1], [np.nan, 1], [0, np.nan], [0, 1, 2], [], ["a", "b"]])
def test_bounds_that_are_no_range_are_refused(tmp_path: Path, bounds: list):
    np.savez(tmp_path / "m.npz", clip_id=np.array(["a"]), maps=MAP[None], bounds=np.array(bounds))
    with pytest.raises(UserError, match=r"`bounds` of .*m\.npz must be two numbers, the smaller one first.*found \["):
        ExternalMaps(tmp_path / "m.npz")


def test_bounds_stand_beside_maps_by_name_too(tmp_path: Path):
    np.savez(tmp_path / "m.npz", a=MAP, bounds=np.array([-1.0, 11]))
    maps = ExternalMaps(tmp_path / "m.npz")
    assert maps.bounds == (-1, 11) and maps.clip_ids == ["a"]


def test_batches_hold_one_shape(tmp_path: Path):
    np.savez(tmp_path / "m.npz", **{name: np.ones((2, side)) for name, side in zip("abcde", (3, 3, 3, 4, 3))})
    maps = ExternalMaps(tmp_path / "m.npz")
    found = [(names, values.shape) for names, values in batches(maps, {name: name for name in maps.clip_ids}, 2)]
    assert found == [(["a", "b"], (2, 2, 3)), (["c"], (1, 2, 3)), (["d"], (1, 2, 4)), (["e"], (1, 2, 3))]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([[1.0, np.nan], [0, 0]]), "map of a in .* holds NaN or infinity"),
        (np.array([[1.0, np.inf], [0, 0]]), "holds NaN or infinity"),
        (np.ones((3, 4, 4)), r"shape \(3, 4, 4\); a map is \(h, w\)"),
        (np.ones(9), r"shape \(9,\)"),
        (np.ones((1, 9)), r"shape \(1, 9\); a map is \(h, w\) with sides of 2"),
        (np.array([["x", "y"], ["z", "w"]]), "holds <U1; a map holds numbers"),
    ],
)
def test_a_map_that_cannot_be_scored_is_named(tmp_path: Path, value: np.ndarray, message: str):
    np.savez(tmp_path / "m.npz", a=value)
    with pytest.raises(UserError, match=message):
        ExternalMaps(tmp_path / "m.npz").read("a")


def test_what_holds_no_maps_is_said(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npz").write_text("hello")
    np.save(tmp_path / "one.npy", MAP)
    np.savez(tmp_path / "nameless.npz", maps=MAP[None])
    np.savez(tmp_path / "few.npz", maps=MAP[None], clip_id=np.array(["a", "b"]))
    np.savez(tmp_path / "twice.npz", maps=np.stack([MAP, MAP]), clip_id=np.array(["1234567", "1234567.mp4"]))
    np.savez(tmp_path / "object.npz", a=np.array([{}], dtype=object))
    cases = {
        "nowhere": "no maps at",
        "empty": "no maps in .*<clip id>.npy",
        "text.npz": "no npz file",
        "one.npy": "one array without clip ids",
        "nameless.npz": "has `maps` but no `clip_id`",
        "few.npz": r"must name each map by a text; found <U1 of shape \(2,\)",
        "object.npz": "no npz file of plain arrays",
        "twice.npz": "two maps of clip 1234567",
    }
    for name, message in cases.items():
        with pytest.raises(UserError, match=message):
            ExternalMaps(tmp_path / name)
    (tmp_path / "png").mkdir()
    (tmp_path / "png" / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"a\.png is no readable picture"):
        ExternalMaps(tmp_path / "png").read("a")


def test_truth_is_read_as_published_and_from_manifests(tmp_path: Path):
    published = [{"file": "abcdefghijk_000010", "class": "dog", "bbox": [[0.1, 0.2, 0.3, -2.88e16], [0, 0, 1, 1]]}]
    (tmp_path / "vggss.json.gz").write_bytes(gzip.compress(json.dumps(published).encode()))
    truth = read_truth(tmp_path / "vggss.json.gz")["abcdefghijk_000010"]
    assert truth.label == "dog" and truth.boxes is not None
    assert truth.boxes.tolist() == [[0.1, 0.2, 0.3, -2.88e16, 0], [0, 0, 1, 1, 0]]
    mask = np.zeros((5, 7), np.uint8)
    mask[1:3, 2:4] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    lines = [
        {"clip_id": "a.mp4", "boxes": [[0, 0, 0.5, 0.5, 2]], "group": "g"},
        {"clip_id": "b", "mask": "mask.png"},
        {"clip_id": "c", "video": "c.mp4", "negative": False},
        {"clip_id": "d", "negative": True, "label": "noise"},
        {"clip_id": "e", "negative": True, "boxes": [], "group": "g"},
    ]
    (tmp_path / "manifest.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    found = read_truth(tmp_path / "manifest.jsonl")
    assert set(found) == {"a.mp4", "b", "d", "e"} and found["a.mp4"].group == "g"
    assert found["a.mp4"].boxes is not None and found["a.mp4"].boxes.tolist() == [[0, 0, 0.5, 0.5, 2]]
    assert np.array_equal(found["b"].mask, mask)  # type: ignore[arg-type]
    assert found["a.mp4"].extra == found["b"].extra == {}
    for name in "de":
        nothing = found[name]
        assert nothing.extra == {"negative": True} and nothing.boxes is not None and nothing.boxes.shape == (0, 5)
    assert (found["d"].label, found["e"].group) == ("noise", "g")


def test_truth_is_read_as_ssl_align_publishes_it(tmp_path: Path):
    folder = "/mnt/is3/visual_frames"
    rows = [{"image": f"{folder}/cat_dog_7_{name}.jpg", "audio": "x", "gt_box": [56, 0, 224, 112]} for name in "ab"]
    (tmp_path / "bbox.json").write_text(json.dumps(rows))
    found = read_truth(tmp_path / "bbox.json")
    assert list(found) == ["cat_dog_7_a", "cat_dog_7_b"] and {truth.group for truth in found.values()} == {"cat_dog_7"}
    assert found["cat_dog_7_a"].boxes is not None
    assert found["cat_dog_7_a"].boxes.tolist() == [[0.25, 0, 1, 0.5, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "neither a JSON list nor JSON lines"),
        ("[]", "holds no truth"),
        ('[{"class": "x"}]', "entry 1 lacks a key"),
        ('[{"file": "a", "bbox": [[0, 1]]}]', "entry 1: a box is x0, y0, x1, y1"),
        ('[{"file": "a", "bbox": [["x", 0, 1, 1]]}]', "entry 1 lacks a key or holds another type"),
        ('[{"file": "a", "bbox": []}, {"file": "a", "bbox": []}]', "entry 2: clip a has truth already"),
        ('[{"file": "a", "mask": "../b.png"}]', "lies outside"),
        ('[{"file": "a", "mask": "b.png"}]', "no readable picture"),
        (
            '[{"file": "a", "negative": true, "bbox": [[0, 0, 1, 1]]}]',
            "entry 1: negative says .* remove it, or the boxes",
        ),
        ('[{"file": "a", "negative": true, "mask": "b.png"}]', "entry 1: negative says"),
        ('[{"file": "a", "negative": "yes"}]', "entry 1: negative is true or false, found 'yes'"),
        ('[{"image": "a.jpg", "gt_box": "masks/a.png"}]', "entry 1 names a mask"),
        ('[{"image": "a.jpg", "gt_box": [0, 0, 1]}]', "entry 1: a box is x0, y0, x1, y1"),
        ("[3]", "entry 1 lacks a key or holds another type"),
    ],
)
def test_broken_truth_is_named(tmp_path: Path, text: str, message: str):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(UserError, match=re.compile(message, re.DOTALL)):
        read_truth(tmp_path / "t.json")
    with pytest.raises(UserError, match="cannot read"):
        read_truth(tmp_path / "none.json")
