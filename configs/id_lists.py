"""Lists of clip ids: those of the field, bundled under their names, and any other by path."""

import csv
import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from configs.errors import UserError
from configs.ids import normalise_id
from configs.resolve import nearest

LISTS_FOLDER = Path(__file__).parent / "lists"

# name -> (the list, the test sets that are taken out of it). Not stored: the rule is shorter than what it gives.
_WITHOUT_TESTS = {
    f"{data}_{size}_clean": (f"{data}_{size}_ezvsl", ("vggss_test", "flickr_test_slavc"))
    for data in ("vggsound", "flickr")
    for size in ("10k", "144k")
}
_HEADERS = {"id", "clip_id", "video", "video_id", "file", "filename", "ytid", "youtube_id"}


@dataclass(frozen=True)
class Listed:
    """A row of a list: the canonical id, and what the row says beside it."""

    clip_id: str
    label: str | None = None
    split: str | None = None


def list_names() -> list[str]:
    """Names of the bundled lists, sorted."""
    return sorted([*(path.name.removesuffix(".txt.gz") for path in LISTS_FOLDER.glob("*.txt.gz")), *_WITHOUT_TESTS])


def load_list(name_or_path: str | Path) -> list[str]:
    """Canonical ids of a bundled list, or of a file with one id a row (see `read_rows`), each once, in its order.

    Raises: UserError if there is no such list or file, or no id in it.
    """
    name = str(name_or_path)
    if name in _WITHOUT_TESTS:
        legacy, tests = _WITHOUT_TESTS[name]
        test_ids = {clip_id for test in tests for clip_id in load_list(test)}
        return [clip_id for clip_id in load_list(legacy) if clip_id not in test_ids]
    if _is_bundled(name):
        return gzip.decompress(_bundled(name).read_bytes()).decode().split()
    return list(dict.fromkeys(row.clip_id for row in read_rows(list_file(name))))


def _bundled(name: str) -> Path:
    return LISTS_FOLDER / f"{name}.txt.gz"


def _is_bundled(name: str) -> bool:
    return Path(name).name == name and _bundled(name).is_file()  # a path beside whose file a .txt.gz lies is none


def list_file(name: str) -> Path:
    """The file of a stored list: bundled, or at a path. Raises: UserError naming the lists there are."""
    if _is_bundled(name):
        return _bundled(name)
    path = Path(name)
    if not path.is_file():
        known = list_names()
        raise UserError(f"no list '{name}': neither a file nor one of {', '.join(known)}.{nearest(name, known)}")
    return path


def read_rows(path: Path) -> Iterator[Listed]:
    """The rows of a list: a text or csv file, also gzipped, with the id in the first column.

    A header is skipped if its first cell is id, video, file or the like. A second column is the label unless it is a
    number (as in Flickr's test lists). VGGSound's own table `<YouTube id>,<start second>,label,split` is known by its
    last column; a table with the columns video, audio, label lists pairs, whose id is `<video>+<audio>`.
    Raises: UserError if it cannot be read or holds no id.
    """
    count = 0
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8-sig", newline="") as lines:
            pairs = False
            reader = csv.reader(lines, skipinitialspace=True)
            for cells in reader:
                row = [cell.strip() for cell in cells]
                if not row or not row[0]:
                    continue
                if count == 0 and row[0].lower() in _HEADERS:
                    pairs = row[:2] == ["video", "audio"]
                    continue
                count += 1
                if pairs and len(row) < 2:
                    raise UserError(f"{path}, line {reader.line_num}: needs two ids, of a picture and of a sound")
                yield _pair(row) if pairs else _listed(row)
    except OSError as error:
        raise UserError(f"cannot read the list {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a list of ids, one a line: {error}") from error
    if not count:
        raise UserError(f"the list {path} holds no ids")


def _pair(row: list[str]) -> Listed:
    seen, heard, *label = row
    return Listed(f"{normalise_id(seen)}+{normalise_id(heard)}", label[0] if label else None)


def _listed(row: list[str]) -> Listed:
    if len(row) == 4 and row[3] in ("train", "test") and row[1].isdigit():
        return Listed(f"{row[0]}_{int(row[1]):06d}", row[2], row[3])
    label = row[1] if len(row) > 1 and row[1] and not row[1].isdigit() else None
    return Listed(normalise_id(row[0]), label)
