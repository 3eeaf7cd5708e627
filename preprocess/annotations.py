"""Truth as the field publishes it, read into boxes as fractions of the picture. Nothing is put right."""

import gzip
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from configs.errors import UserError
from configs.id_lists import LISTS_FOLDER
from configs.ids import normalise_id
from preprocess.layout import parse_boxes

VGGSS_INSTANT_S = 5.0
"""VGG-SS boxes belong to the 125th frame of a clip of 25 frames a second."""
FLICKR_ANNOTATORS = 3
_FLICKR_SIDE_PX = 256
_BOX_SIDE_PX = 224
_MAX_XML_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Annotated:
    """Truth of one clip: boxes as in `SourceClip`, its class where the set says one, how many people annotated it."""

    boxes: list[list[float]]
    label: str | None = None
    annotators: int = 1


@dataclass(frozen=True, slots=True)
class SetRow:
    """A row of a test set's JSON list: basenames of picture and sound, and either a box or the basename of a mask."""

    image: str
    audio: str
    box: list[float] | None
    mask: str | None


def vggss_truth(path: Path | None = None) -> dict[str, Annotated]:
    """Canonical clip id -> truth, from a file like `vggss.json`: `[{"file", "class", "bbox"}, ...]`. None: the bundled
    one. Raises: UserError naming the entry.
    """
    file = path or LISTS_FOLDER / "vggss.json.gz"

    def entry(item: Any, where: str) -> tuple[str, Annotated]:
        return normalise_id(item["file"]), Annotated(parse_boxes(item["bbox"], where), item["class"])

    return dict(_entries(file, entry))


def set_rows(path: Path) -> list[SetRow]:
    """The rows of a list as SSL-Align publishes them for IS3, VPO and AVSBench: `[{"image", "audio", "gt_box"}, ...]`.

    `gt_box` is x0, y0, x1, y1 in pixels of a picture of 224 squared, or the path of a mask. Paths are those of the
    authors' disks: only their last parts are used. Raises: UserError naming the entry.
    """

    def entry(item: Any, where: str) -> SetRow:
        truth = item["gt_box"]
        image, audio = (item[key].rpartition("/")[2] for key in ("image", "audio"))
        if isinstance(truth, str):
            return SetRow(image, audio, None, truth.rpartition("/")[2])
        box = parse_boxes([truth], where)[0]
        return SetRow(image, audio, [*(value / _BOX_SIDE_PX for value in box[:4]), 0.0], None)

    return _entries(path, entry)


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _entries(path: Path, entry: Callable[[Any, str], Any]) -> list[Any]:
    try:
        data = path.read_bytes()
        text = gzip.decompress(data) if path.suffix == ".gz" else data
        value = json.loads(text, parse_constant=_refuse_constant)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, RecursionError, zlib.error) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, list):
        raise UserError(f"{path} must hold a JSON list, found {type(value).__name__}")
    found = []
    for number, item in enumerate(value):
        where = f"{path}, entry {number}"
        try:
            found.append(entry(item, where))
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{where} lacks a key or holds another type: {error!r}") from error
    return found


def flickr_truth(path: Path) -> Annotated:
    """The boxes of one `<id>.xml` of Flickr-SoundNet.

    Below the root stands an element for each annotator, in it one `bbox` or more; of a bbox, the first child is no
    coordinate and the next four are xmin, ymin, xmax, ymax in pixels of a picture of 256 squared, as all released
    evaluators read it. Three people annotated each picture, also where fewer of them drew a box.
    Raises: UserError naming the file.
    """
    try:
        if path.stat().st_size > _MAX_XML_BYTES:
            raise UserError(f"{path} is larger than any annotation: {path.stat().st_size} bytes")
        root = ElementTree.fromstring(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ElementTree.ParseError as error:
        raise UserError(f"{path} is not valid XML: {error}") from error
    boxes: list[list[float]] = []
    people = [person for person in root if person.find("bbox") is not None]
    for number, person in enumerate(people):
        for box in person.findall("bbox"):
            try:
                corners = [int(child.text or "") / _FLICKR_SIDE_PX for child in box[1:5]]
            except ValueError as error:
                raise UserError(f"{path}: a bbox holds no whole numbers: {error}") from error
            if len(corners) != 4:
                raise UserError(f"{path}: a bbox needs five children, found {len(box)}")
            boxes.append([*corners, float(number)])
    return Annotated(boxes, annotators=max(FLICKR_ANNOTATORS, len(people)))


def oddities(boxes: list[list[float]]) -> tuple[int, int]:
    """How many boxes leave the picture, and how many have no area once drawn at 224 px as protocols do."""
    outside = sum(not all(-1e-6 <= value <= 1 + 1e-6 for value in row[:4]) for row in boxes)
    drawn = [[int(min(max(value, 0.0), 1.0) * _BOX_SIDE_PX) for value in row[:4]] for row in boxes]
    return outside, sum(not (x0 < x1 and y0 < y1) for x0, y0, x1, y1 in drawn)
