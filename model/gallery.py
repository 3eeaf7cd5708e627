"""Which clips a report shows, and their pictures: the map over the frame, its foreground and its truth."""

import hashlib
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol as Structure

import cv2
import numpy as np
import torch
from torch import Tensor

from configs.errors import UserError
from model.base import Localization
from model.protocol import Protocol
from model.rows import Rows, measured
from pipeline.batch import Truth
from pipeline.outline import outline

PICTURE_PX = 320
"""Longer side of the pictures in a report."""

_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)  # BGR, as OpenCV draws


class KeptMaps:
    """The maps of the scored clips at the method's own resolution, by clip id. bounds: the range that they can take."""

    def __init__(self, bounds: tuple[float, float] = (0.0, 1.0)) -> None:
        self.bounds = bounds
        self._place: dict[str, tuple[int, int]] = {}
        self._parts: list[Tensor] = []

    def add(self, clip_ids: Sequence[str], valid: Sequence[bool], found: Localization) -> None:
        """Keep the maps of the valid clips of a batch, in float32 on the CPU."""
        self.bounds = found.bounds
        for row, (clip_id, counts) in enumerate(zip(clip_ids, valid, strict=True)):
            if counts:
                self._place[clip_id] = (len(self._parts), row)
        self._parts.append(found.map.detach().float().cpu())

    def join(self, other: "KeptMaps") -> "KeptMaps":
        """The maps of both, shared and not copied; a clip of both has the other's."""
        joined = KeptMaps(self.bounds)
        joined._parts = [*self._parts, *other._parts]
        later = {name: (part + len(self._parts), row) for name, (part, row) in other._place.items()}
        joined._place = {**self._place, **later}
        return joined

    def __contains__(self, clip_id: str) -> bool:
        return clip_id in self._place

    def of(self, clip_ids: Sequence[str]) -> Tensor:
        """`(B, h, w)` float32. Raises: KeyError for a clip that was not kept."""
        return torch.stack([self._parts[part][row] for part, row in (self._place[name] for name in clip_ids)])

    @property
    def largest_side(self) -> int:
        """The longer side of the largest map; 0 without maps."""
        return max((max(part.shape[1:]) for part in self._parts), default=0)

    def save(self, path: Path) -> None:
        """Write npz with `clip_id`, `maps` (n, h, w) and `bounds`. Raises: OSError."""
        names = sorted(self._place)
        bounds = np.array(self.bounds, np.float64)
        np.savez_compressed(path, clip_id=np.array(names, np.str_), maps=self.of(names).numpy(), bounds=bounds)

    @staticmethod
    def load(path: Path) -> "KeptMaps":
        """The maps that `save` wrote. Raises: UserError if the file is missing or damaged."""
        try:
            with np.load(path, allow_pickle=False) as saved:
                names, maps, (low, high) = saved["clip_id"].tolist(), torch.from_numpy(saved["maps"]), saved["bounds"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} holds no maps of an evaluation: {error}") from error
        kept = KeptMaps()
        kept.add(names, [True] * len(names), Localization(map=maps, bounds=(float(low), float(high))))
        return kept


class Excerpt(Structure):
    """What a person sees and hears of a clip. image: `(H, W, 3)` uint8 RGB. sound: MP3, None where there is none."""

    @property
    def image(self) -> np.ndarray: ...

    @property
    def truth(self) -> Truth | None: ...

    @property
    def sound(self) -> bytes | None: ...


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A map as a protocol sees it. heat, foreground: `(S, S)` uint8 0 .. 255 and bool. best: x, y of the maximum, as
    fractions. values: the metrics' columns.
    """

    name: str
    heat: np.ndarray
    foreground: np.ndarray
    best: tuple[float, float]
    values: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One clip with the maps of one or several systems."""

    clip_id: str
    label: str
    image: np.ndarray
    truth: Truth | None
    sound: bytes | None
    layers: list[Layer]

    def plain(self) -> np.ndarray:
        """The picture with its truth outlined: BGR, longer side `PICTURE_PX`."""
        height, width = self.image.shape[:2]
        scale = PICTURE_PX / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        shown = cv2.resize(self.image[:, :, ::-1], size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA)
        return outline(np.ascontiguousarray(shown), self.truth)

    def overlay(self, layer: Layer) -> np.ndarray:
        """The picture under a map, the foreground's edge and the map's maximum: BGR, longer side `PICTURE_PX`."""
        shown = cover(self.plain(), layer.heat, layer.foreground)
        size = (shown.shape[1], shown.shape[0])
        x, y = round(layer.best[0] * size[0]), round(layer.best[1] * size[1])
        for colour_of, thickness in ((_BLACK, 5), (_WHITE, 2)):
            cv2.drawMarker(shown, (x, y), colour_of, cv2.MARKER_CROSS, 15, thickness, cv2.LINE_AA)
        return outline(shown, self.truth)


def cover(shown: np.ndarray, heat: np.ndarray, foreground: np.ndarray, strength: float = 0.7) -> np.ndarray:
    """A BGR picture under a map and the foreground's edge, both brought to its size.

    Args: heat (h, w) uint8. foreground (h, w) bool. strength: share of the colour where the map is strongest, 0 to 1.
    """
    size = (shown.shape[1], shown.shape[0])
    heat = cv2.resize(heat, size, interpolation=cv2.INTER_LINEAR)
    colour = cv2.applyColorMap(heat, cv2.COLORMAP_INFERNO)
    # Weak values hardly cover the picture: what lies under them stays to be seen.
    share = (strength * np.square(heat.astype(np.float32) / 255))[:, :, None]
    covered = (shown * (1 - share) + colour * share).astype(np.uint8)
    foreground = cv2.resize(foreground.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    edge, _ = cv2.findContours(foreground, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(covered, edge, -1, _WHITE, 1, cv2.LINE_AA)


Gallery = dict[str, list[Picture]]
"""Title of a section -> its pictures."""


def choose(rows: Rows, count: int) -> dict[str, list[str]]:
    """Title -> ids of the `count` best, median, worst and random clips by the first of the metrics' columns.

    One section if all clips fit in it, none without such a column. Ties are settled by lot, so that no label is
    preferred; the lot of a clip is its id's alone. Clips in which nothing sounds have a section of their own.
    """
    columns = measured(rows)
    if not count or not columns:
        return {}
    by = columns[0]
    silent = rows["negative"] > 0 if "negative" in rows else np.zeros(len(rows[by]), bool)
    values = {str(name): float(value) for name, value in zip(rows["clip_id"][~silent], rows[by][~silent])}
    lots = sorted(values, key=digest)
    best = sorted(lots, key=lambda name: -values[name])
    if len(best) <= count:
        sections = {"all clips, best first": best}
    else:
        first = max(0, (len(best) - count) // 2)
        sections = {
            f"best by {by}": best[:count],
            f"median by {by}": best[first : first + count],
            f"worst by {by}": sorted(lots, key=values.__getitem__)[:count],
            "random": lots[:count],
        }
    quiet = sorted((str(name) for name in rows["clip_id"][silent]), key=digest)[:count]
    return {**sections, **({"random, nothing sounds in the picture": quiet} if quiet else {})}


def build_gallery(
    sections: Mapping[str, Sequence[str]],
    protocol: Protocol,
    systems: Mapping[str, tuple[KeptMaps, Rows]],
    excerpt: Callable[[str], Excerpt],
) -> Gallery:
    """The pictures of chosen clips, with the maps and values of each system, as `protocol` sees them."""
    rows_of = {
        name: {str(clip_id): row for row, clip_id in enumerate(rows["clip_id"])} for name, (_, rows) in systems.items()
    }

    def picture(clip_id: str) -> Picture:
        shown = excerpt(clip_id)
        layers = []
        for name, (maps, rows) in systems.items():
            row = rows_of[name][clip_id]
            values = {key: float(rows[key][row]) for key in measured(rows)}
            layers.append(_layer(name, protocol, maps.of([clip_id]), maps.bounds, values))
        label = (shown.truth.label if shown.truth else None) or ""
        return Picture(
            clip_id=clip_id, label=label, image=shown.image, truth=shown.truth, sound=shown.sound, layers=layers
        )

    made = {clip_id: picture(clip_id) for clip_id in dict.fromkeys(name for ids in sections.values() for name in ids)}
    return {title: [made[clip_id] for clip_id in ids] for title, ids in sections.items()}


def _layer(
    name: str, protocol: Protocol, native: Tensor, bounds: tuple[float, float], values: dict[str, float]
) -> Layer:
    maps = protocol.prepare(native, bounds)
    scaled, resized = maps.scaled[0], maps.resized[0]
    low, high = scaled.min(), scaled.max()
    heat = (scaled - low) / (high - low) if high > low else torch.ones_like(scaled)
    side = resized.shape[-1]
    best = int(resized.flatten().argmax())
    return Layer(
        name=name,
        heat=(heat * 255).round().byte().numpy(),
        foreground=maps.foreground[0].numpy(),
        best=((best % side + 0.5) / side, (best // side + 0.5) / side),
        values=values,
    )


def disagreements(first: Rows, second: Rows, count: int) -> dict[str, list[str]]:
    """Title -> ids of the clips on which two systems differ most by the first of the metrics' columns that both have,
    either way; empty if they share none.
    """
    shared = [name for name in measured(first) if name in second]
    if not shared:
        return {}
    by = shared[0]
    known = {str(name): float(value) for name, value in zip(first["clip_id"], first[by])}
    gaps = {
        str(name): float(value) - known[str(name)]
        for name, value in zip(second["clip_id"], second[by])
        if str(name) in known
    }
    order = sorted(gaps, key=lambda name: (gaps[name], digest(name)))
    return {
        f"second better by {by}": [name for name in order[::-1][:count] if gaps[name] > 0],
        f"first better by {by}": [name for name in order[:count] if gaps[name] < 0],
    }


def write_overlays(folder: Path, gallery: Gallery) -> None:
    """Write every picture as `folder/<clip_id>.jpg`, in place of what pictures were there. Raises: OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.jpg"):
        old.unlink()
    for pictures in gallery.values():
        for picture in pictures:
            (folder / f"{safe_name(picture.clip_id)}.jpg").write_bytes(jpeg(picture.overlay(picture.layers[0])))


def safe_name(name: str) -> str:
    """A file name for any text: itself if it is plain, else its plain part and a checksum."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:80]
    return plain if plain == name and not name.startswith(".") and name else f"{plain.lstrip('.')}-{digest(name)[:8]}"


def digest(text: str) -> str:
    """16 hex digits that stand for a text."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def jpeg(picture: np.ndarray) -> bytes:
    """A BGR picture as JPEG."""
    done, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 80])
    assert done
    return data.tobytes()
