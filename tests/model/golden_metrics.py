"""The inputs of the golden evaluator cases, made again from their recipes, and what the released evaluators gave."""

import gzip
import hashlib
import json
from functools import cache
from pathlib import Path

import numpy as np
from torch import Tensor, from_numpy

from configs.id_lists import LISTS_FOLDER
from pipeline.batch import Truth

FOLDER = Path(__file__).parent.parent / "golden" / "metrics"
N = 64


@cache
def golden() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "evaluators.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


def read_json(name: str) -> dict:
    return json.loads((FOLDER / name).read_text())


def checksum(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def vggss_boxes() -> dict[str, list[list[float]]]:
    """Clip id -> boxes of the real VGG-SS test set, fractions of the picture."""
    truth = json.loads(gzip.decompress((LISTS_FOLDER / "vggss.json.gz").read_bytes()))
    return {item["file"]: item["bbox"] for item in truth}


def drawn_boxes(seed: int, count: int) -> list[list[list[float]]]:
    """1 to 3 boxes a clip, inside the picture."""
    rng = np.random.default_rng(seed)
    clips = []
    for _ in range(count):
        boxes = []
        for _ in range(rng.integers(1, 4)):
            w, h = rng.uniform(0.2, 0.95, 2)
            x1, y1 = rng.uniform(0, 1 - w), rng.uniform(0, 1 - h)
            boxes.append([x1, y1, x1 + w, y1 + h])
        clips.append(boxes)
    return clips


def centres(clips: list, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    first = np.array([boxes[0] for boxes in clips], np.float64) / scale
    return (first[:, 0] + first[:, 2]) / 2, (first[:, 1] + first[:, 3]) / 2


def blobs(
    seed: int, cx: object, cy: object, h: int, s: float = 0.28, noise: float = 0.25, count: int = N
) -> np.ndarray:
    rng = np.random.default_rng(seed)
    cx, cy = (np.broadcast_to(np.asarray(each, np.float64), count) for each in (cx, cy))
    g = (np.arange(h) + 0.5) / h
    x, y = g[None, None, :] - cx[:, None, None], g[None, :, None] - cy[:, None, None]
    return (np.exp(-(x**2 + y**2) / (2 * s**2)) + noise * rng.standard_normal((count, h, h))).astype(np.float32)


@cache
def case(name: str) -> tuple[dict[str, Tensor], list[Truth], list]:
    """Maps LO7, OBJ7 and LO14, the truth, and the boxes as drawn, of `vggss` or `flickr`."""
    if name == "vggss":
        boxes = drawn_boxes(201, N)
        cx, cy = centres(boxes)
        boxes[0] = [[0.384375, 0.859375, 0.696875, -2.8823037615171176e16]]
        boxes[1] = [[0.1, 0.1, 1.2, 0.5], [0.2, -0.3, 0.6, 0.9]]
        boxes[2] = [[0.5, 0.5, 0.5, 0.9]]
        rows = [np.array([[*box, 0] for box in clip], np.float64) for clip in boxes]
        seed = 101
    else:
        rng = np.random.default_rng(202)
        boxes = []
        for _ in range(N):
            cx, cy = rng.integers(90, 167, 2)
            w, h = rng.integers(110, 231, 2)
            clip = []
            for _ in range(rng.integers(1, 5)):
                dx, dy, dw, dh = rng.integers(-15, 16, 4)
                clip.append(
                    [
                        int(max(0, cx - w // 2 + dx)),
                        int(max(0, cy - h // 2 + dy)),
                        int(min(256, cx + w // 2 + dx + dw)),
                        int(min(256, cy + h // 2 + dy + dh)),
                    ]
                )
            boxes.append(clip)
        cx, cy = centres(boxes, 256)
        rows = [np.array([[*(v / 256 for v in box), who] for who, box in enumerate(clip)]) for clip in boxes]
        seed = 111
    maps = {
        "LO7": blobs(seed, cx, cy, 7),
        "OBJ7": np.abs(blobs(seed + 1, 0.5, 0.5, 7)),
        "LO14": blobs(seed + 2, cx, cy, 14),
    }
    return {key: from_numpy(value) for key, value in maps.items()}, [Truth(boxes=row) for row in rows], boxes


def truth_of(boxes: list[list[float]], **facts: object) -> Truth:
    rows = np.array([[*box, 0] for box in boxes], np.float64).reshape(-1, 5)
    return Truth(boxes=rows, **facts)  # type: ignore[arg-type]


@cache
def extended_case() -> tuple[Tensor, Tensor, list[Truth]]:
    """SLAVC's: 200 maps between -1 / 0.03 and 1 / 0.03, object priors, and truth; 77 clips have a negative sound."""
    negative = np.random.default_rng(301).random(200) < 0.4
    boxes = drawn_boxes(304, 200)
    bump = blobs(302, *centres(boxes), 7, count=200)
    maps = (np.tanh(bump * np.where(negative, 0.35, 1)[:, None, None] - 0.3) / 0.03).astype(np.float32)
    priors = 2 * np.abs(blobs(303, 0.5, 0.5, 7, count=200))
    sums = read_json("input_checksums.json")
    assert [checksum(each) for each in (maps, priors, negative)] == [sums[key] for key in ("SL_float32", "SO", "neg")]
    truths = [
        Truth(extra={"negative": True}) if nothing else truth_of(each)
        for nothing, each in zip(negative, boxes, strict=True)
    ]
    return from_numpy(maps), from_numpy(priors), truths


@cache
def frames_case() -> tuple[Tensor, list[Truth]]:
    """AVSBench's: 20 maps of logits, 14 x 14, and masks of 224 x 224 pixels, of which two are empty."""
    boxes = drawn_boxes(402, 20)
    logits = (6 * blobs(401, *centres(boxes), 14, count=20) - 2).astype(np.float32)
    truths = []
    for number, clip in enumerate(boxes):
        mask = np.zeros((224, 224), np.uint8)
        for box in clip if number not in (3, 11) else ():
            x0, y0, x1, y1 = (np.clip(box, 0, 1) * 224).astype(int)
            mask[y0:y1, x0:x1] = 255
        truths.append(Truth(mask=mask))
    return from_numpy(logits), truths
