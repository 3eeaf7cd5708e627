"""Maps of any system, and truth, from files: what is needed to score them without a model or a store."""

import gzip
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from configs.errors import UserError
from configs.ids import normalise_id
from pipeline.batch import Truth

_KINDS = (".npy", ".png")
_ID_KEYS = ("clip_id", "clip_ids", "ids", "file")
_MAX_SIDE_PX = 4096
_SSL_ALIGN_SIDE_PX = 224


class ExternalMaps:
    """Maps by canonical clip id, read when asked for; higher means source.

    An npz file with the arrays `clip_id` (n,) and `maps` (n, h, w), or with one array (h, w) a clip under its id; or a
    folder with `<id>.npy` or grey `<id>.png` files of 8 or 16 bit, whose white is 1. `(1, h, w)` counts as `(h, w)`.
    bounds: the range that the maps can take, where an npz file has it as `bounds` (2,); else 0 to 1.
    """

    def __init__(self, path: Path) -> None:
        """Raises: UserError if there are no maps at `path`, two of one clip, or bounds that are no range."""
        self.path = path
        self.bounds = (0.0, 1.0)
        self._reach = (np.inf, -np.inf)
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in _KINDS)
            self._readers = self._by_id((file.stem, self._file_reader(file)) for file in files)
        else:
            self._readers = self._by_id(self._archive(path))
        if not self._readers:
            raise UserError(f"no maps in {path}: expected <clip id>.npy or <clip id>.png files")

    def _by_id(self, found: Iterable[tuple[str, Callable[[], Any]]]) -> dict[str, Callable[[], Any]]:
        readers: dict[str, Callable[[], Any]] = {}
        for name, reader in found:
            clip_id = normalise_id(name)
            if clip_id in readers:
                raise UserError(f"{self.path} holds two maps of clip {clip_id}; keep one of them")
            readers[clip_id] = reader
        return readers

    def _archive(self, path: Path) -> list[tuple[str, Callable[[], Any]]]:
        if not path.is_file():
            raise UserError(f"no maps at {path}: name an npz file, or a folder of npy or PNG files")
        try:
            loaded: Any = np.load(path, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                raise UserError(f"{path} holds one array without clip ids; save npz with `clip_id` and `maps`")
            with loaded:
                arrays: dict[str, np.ndarray] = {name: loaded[name] for name in loaded.files}
        except (OSError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is no npz file: {error}") from error
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path} is no npz file of plain arrays: {error}") from error
        if "bounds" in arrays:
            self.bounds = self._range(arrays.pop("bounds"))
        if "maps" not in arrays:
            return [(name, lambda value=value: value) for name, value in arrays.items()]
        key = next((name for name in _ID_KEYS if name in arrays), None)
        if key is None:
            raise UserError(f"{path} has `maps` but no `clip_id`; it has {', '.join(arrays)}")
        names, maps = arrays[key], arrays["maps"]
        if names.ndim != 1 or names.dtype.kind not in "US" or maps.ndim < 1 or len(names) != len(maps):
            raise UserError(
                f"`{key}` of {path} must name each map by a text; found {names.dtype} of shape {names.shape} beside "
                f"maps of shape {maps.shape}"
            )
        return [(text, lambda row=row: maps[row]) for row, text in enumerate(names.astype(np.str_).tolist())]

    def _range(self, bounds: np.ndarray) -> tuple[float, float]:
        if bounds.shape != (2,) or bounds.dtype.kind not in "fiu" or not bounds[0] < bounds[1]:
            raise UserError(
                f"`bounds` of {self.path} must be two numbers, the smaller one first, between which all maps lie (also "
                f"-inf and inf); found {bounds.tolist()}"
            )
        return float(bounds[0]), float(bounds[1])

    @staticmethod
    def _file_reader(file: Path) -> Callable[[], Any]:
        def read() -> Any:
            if file.suffix.lower() == ".png":
                picture = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
                if picture is None:
                    raise UserError(f"{file} is no readable picture")
                return picture / np.float32(np.iinfo(str(picture.dtype)).max)
            try:
                return np.load(file, allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise UserError(f"{file} is no npy file of a plain array: {error}") from error

        return read

    @property
    def clip_ids(self) -> list[str]:
        """Canonical ids of all maps, sorted."""
        return sorted(self._readers)

    def read(self, clip_id: str) -> np.ndarray:
        """`(h, w)` float32. Raises: UserError naming the clip whose map has another shape or type, or is not finite."""
        value = np.asarray(self._readers[clip_id]())
        where = f"the map of {clip_id} in {self.path}"
        if value.ndim == 3 and value.shape[0] == 1:
            value = value[0]
        if value.ndim != 2 or not all(2 <= side <= _MAX_SIDE_PX for side in value.shape):
            raise UserError(f"{where} has shape {value.shape}; a map is (h, w) with sides of 2 to {_MAX_SIDE_PX}")
        if value.dtype.kind not in "fiub":
            raise UserError(f"{where} holds {value.dtype}; a map holds numbers")
        value = value.astype(np.float32)
        if not np.isfinite(value).all():
            raise UserError(f"{where} holds NaN or infinity; leave the clip out, or write what the system says of it")
        self._reach = (min(self._reach[0], float(value.min())), max(self._reach[1], float(value.max())))
        return value

    def out_of_bounds(self) -> list[str]:
        """What to say if the maps read so far leave their bounds; else nothing."""
        (least, largest), (low, high) = self._reach, self.bounds
        if least >= low and largest <= high:
            return []
        return [
            f"The maps reach from {least:.4g} to {largest:.4g}, and their bounds are {low:g} to {high:g}: scores on a "
            "scale that all clips share (slavc_abs, acl_sweep, avsbench, confidence) are wrong. Save npz with `bounds`."
        ]


def match(maps: ExternalMaps, truths: Mapping[str, Truth]) -> tuple[dict[str, str], list[str]]:
    """Clips with truth and a map: clip id of the truth -> id of the map; and what to say of all others, by name.

    Raises: UserError if no clip has both.
    """
    canonical = {normalise_id(clip_id): clip_id for clip_id in truths}
    have = set(maps.clip_ids)
    found = {clip_id: name for name, clip_id in sorted(canonical.items()) if name in have}
    if not found:
        raise UserError(
            f"no map of {maps.path} belongs to a clip of the set: maps of {_some(maps.clip_ids)}; truth of "
            f"{_some(sorted(truths))}"
        )
    missing = sorted(clip_id for name, clip_id in canonical.items() if name not in have)
    extra = sorted(have - set(canonical))
    said = []
    if missing:
        said.append(f"{len(missing)} clips of the set have no map: {_some(missing)}.")
    if extra:
        said.append(f"{len(extra)} maps belong to no clip of the set and are not scored: {_some(extra)}.")
    return found, said


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def batches(maps: ExternalMaps, chosen: Mapping[str, str], size: int) -> Iterator[tuple[list[str], np.ndarray]]:
    """The maps of some clips, up to `size` neighbours of one shape at a time: clip ids and `(B, h, w)` float32.

    chosen: clip id -> id of its map.
    """
    names: list[str] = []
    values: list[np.ndarray] = []
    for clip_id, name in chosen.items():
        value = maps.read(name)
        if names and (len(names) == size or value.shape != values[0].shape):
            yield names, np.stack(values)
            names, values = [], []
        names.append(clip_id)
        values.append(value)
    if names:
        yield names, np.stack(values)


def read_truth(path: Path) -> dict[str, Truth]:
    """Canonical clip id -> truth, of a JSON list or of JSON lines, also gzipped.

    An entry is VGG-SS's `{"file", "class", "bbox"}`, `{"image", "gt_box"}` of IS3 and VPO, or a manifest's
    `{"clip_id", "label", "group", "boxes" or "mask" or "negative"}`: boxes are rows x0, y0, x1, y1 and perhaps the
    annotator, as fractions of the picture, a mask is the path of a grey picture below the file's folder, and negative
    says that nothing in the picture makes the sound. Entries without truth are left out.
    Raises: UserError naming the entry.
    """
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
        lists = text.lstrip().startswith("[")
        entries = json.loads(text) if lists else [json.loads(line) for line in text.splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, RecursionError) as error:
        raise UserError(f"{path} is neither a JSON list nor JSON lines: {error}") from error
    truths: dict[str, Truth] = {}
    for number, entry in enumerate(entries, 1):
        where = f"{path}, entry {number}"
        try:
            if "gt_box" in entry:
                entry = _as_manifest(entry, where)
            clip_id = normalise_id(entry["clip_id"] if "clip_id" in entry else entry["file"])
            truth = _truth(entry, path.parent, where)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{where} lacks a key or holds another type: {error!r}") from error
        if clip_id in truths:
            raise UserError(f"{where}: clip {clip_id} has truth already")
        if truth is not None:
            truths[clip_id] = truth
    if not truths:
        raise UserError(f"{path} holds no truth")
    return truths


def negative_truth(label: str | None = None, group: str | None = None) -> Truth:
    """The truth of a clip whose sound nothing in its picture makes, as stores give it."""
    return Truth(boxes=np.zeros((0, 5)), label=label, group=group, extra={"negative": True})


def _as_manifest(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    """An entry as SSL-Align publishes them: one box in pixels of a picture of 224 squared; several share a picture."""
    if isinstance(entry["gt_box"], str):
        raise UserError(f"{where} names a mask of IS3 or VPO; name the list of boxes, or pack the masks into a store")
    clip_id = PurePosixPath(entry["image"]).stem
    box = [value / _SSL_ALIGN_SIDE_PX for value in entry["gt_box"]]
    return {"clip_id": clip_id, "group": clip_id.rpartition("_")[0], "boxes": [box]}


def _truth(entry: Mapping[str, Any], root: Path, where: str) -> Truth | None:
    boxes, mask, negative = entry.get("boxes", entry.get("bbox")), entry.get("mask"), entry.get("negative", False)
    shared = {"label": entry.get("label", entry.get("class")), "group": entry.get("group")}
    if not isinstance(negative, bool):
        raise UserError(f"{where}: negative is true or false, found {negative!r}")
    if negative:
        if boxes or mask is not None:
            raise UserError(
                f"{where}: negative says that nothing in the picture sounds; remove it, or the boxes or mask"
            )
        return negative_truth(**shared)
    if boxes is not None:
        rows = [[*map(float, row), *([0.0] if len(row) == 4 else [])] for row in boxes]
        if any(len(row) != 5 for row in rows):
            raise UserError(f"{where}: a box is x0, y0, x1, y1 and perhaps the annotator, found {boxes}")
        return Truth(boxes=np.array(rows, np.float64).reshape(-1, 5), **shared)
    if mask is None:
        return None
    file = (root / mask).resolve()
    if not file.is_relative_to(root.resolve()):
        raise UserError(f"{where}: the mask {mask} lies outside {root}")
    picture = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
    if picture is None:
        raise UserError(f"{where}: no readable picture at {file}")
    return Truth(mask=picture, **shared)
