"""What may be wrong with a clip although it can be packed: measured while it is decoded, judged here.

A clip's measures are a `Quality`; every shard keeps those of its clips in columns (`QUALITY`, one msgpack file beside
the index). Flags follow from the measures by fixed thresholds. Those of `CLIP_FLAGS` need the clip alone, so that
`pack --drop` can refuse by them; those of `STORE_FLAGS` compare clips and are known when a store is whole.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

QUALITY = "quality.msgpack"

CLIP_FLAGS = {
    "silent": "the sound is below -60 dB of full scale (RMS)",
    "clipped": "at least 0.1% of the samples are at full scale",
    "low_rate": "the file's sound has a lower rate than the stored waveform",
    "short": "the sound ends more than 0.1 s before the duration that was asked for",
    "static": "the video shows one still picture as far as it was decoded",
    "blank": "the picture has next to no contrast",
    "small": "the picture's short side is below the one asked for; it was not enlarged",
    "rotated": "the file says that the picture must be turned; it is stored upright",
}
STORE_FLAGS = {
    "same_picture": "its pictures are, byte for byte, those of an earlier clip",
    "same_sound": "its decoded sound is, sample for sample, that of an earlier clip",
    "like_picture": "its picture looks like that of an earlier clip, but is not the same",
    "like_sound": "its loudness runs like that of an earlier clip, but its sound is not the same",
}

SILENT_DBFS = -60.0
CLIPPED_SHARE = 1e-3
SHORT_S = 0.1
STATIC_SHARE = 2e-3
BLANK_DEVIATION = 2.0

LIKE_BITS = 6  # of 64; different clips differ in 20 and more, the same one coded anew in 0 to 9
TINY_ROWS, TINY_COLUMNS = 8, 9  # 8 differences in each of 8 rows

_TELLING_BITS = 12
_STEPS = 64
_MOTION_EVERY_S = 0.5
_MOTION_SAMPLES = 3
_MOTION_STRIDE_PX = 8
_MOTION_LEVELS = 12


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The measures of one clip, or arrays `(n,)` of those of n clips; NaN where something is not known.

    asked_s: the duration that the layout gave, not known where it gave none. width, height: of the upright picture
    before reduction. motion: largest share of points of the picture that change visibly against the first decoded one,
    not known where fewer than three pictures half a second apart were decoded. deviation: of the picture's brightness
    over 8 x 9 cells, in levels. rms_dbfs: of the mono sound, at least -120; clipped_share: of its samples. picture,
    sound: 64-bit hashes of the pictures as they are stored and of the decoded samples; picture_look, sound_run: 64 bits
    that stay nearly the same when a picture or a sound is coded anew. What is said of the sound is not known, and its
    numbers are 0, where a clip comes as a spectrogram.
    """

    duration_s: Any
    asked_s: Any
    width: Any
    height: Any
    rotated: Any
    motion: Any
    deviation: Any
    picture: Any
    picture_look: Any
    sample_rate_hz: Any = 0
    channels: Any = 0
    rms_dbfs: Any = math.nan
    clipped_share: Any = math.nan
    sound: Any = 0
    sound_run: Any = 0


def content_hash(*parts: bytes | np.ndarray) -> int:
    """64 bits that name the content."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).data.cast("B"))
    return int.from_bytes(digest.digest()[:8], "big")


def picture_measures(jpegs: Sequence[bytes], tiny: bytes) -> dict[str, Any]:
    """What `Quality` says of the pictures of a clip. tiny: one of them as 8 rows of 9 grey levels.

    Source of `picture_look`: the "difference hash", which of two cells side by side is brighter.
    """
    cells = np.frombuffer(tiny, np.uint8).reshape(TINY_ROWS, TINY_COLUMNS)
    return {
        "deviation": float(cells.std()),
        "picture": content_hash(*jpegs),
        "picture_look": _bits(cells[:, 1:] > cells[:, :-1]),
    }


def sound_measures(samples: np.ndarray) -> dict[str, Any]:
    """What `Quality` says of the sound of a clip, `(n,)` int16.

    `sound_run`: whether the sound grows louder from each of 65 steps of equal length to the next.
    """
    values = samples.astype(np.float32)
    power = float(values @ values) / len(values)
    rms_dbfs = 10 * np.log10(max(power / 32767**2, 1e-12))
    clipped = np.count_nonzero(samples >= 32766) + np.count_nonzero(samples <= -32766)
    steps = values[: len(values) // (_STEPS + 1) * (_STEPS + 1)].reshape(_STEPS + 1, -1)
    energy = np.einsum("ij,ij->i", steps, steps)
    return {
        "rms_dbfs": float(rms_dbfs),
        "clipped_share": clipped / len(samples),
        "sound": content_hash(samples),
        "sound_run": _bits(energy[1:] > energy[:-1]),
    }


def _bits(mask: np.ndarray) -> int:
    return int.from_bytes(np.packbits(mask).tobytes(), "big")


class Motion:
    """How much the pictures of a video differ from its first, seen at every eighth point, twice a second."""

    def __init__(self) -> None:
        self._first: np.ndarray | None = None
        self._seen = 0
        self._next_s = float("-inf")
        self._largest = 0.0

    def wants(self, time_s: float) -> bool:
        """Whether the picture of this time is one to see."""
        return time_s >= self._next_s

    def see(self, luma: np.ndarray, time_s: float) -> None:
        """luma: `(H, W)` uint8."""
        points = luma[::_MOTION_STRIDE_PX, ::_MOTION_STRIDE_PX].astype(np.int16)
        self._next_s = time_s + _MOTION_EVERY_S
        self._seen += 1
        if self._first is None:
            self._first = points
        elif points.shape != self._first.shape:
            self._largest = 1.0
        else:
            self._largest = max(self._largest, float((np.abs(points - self._first) > _MOTION_LEVELS).mean()))

    @property
    def share(self) -> float:
        """As `Quality.motion`."""
        return self._largest if self._seen >= _MOTION_SAMPLES else math.nan


def clip_flags(quality: Quality, short_side_px: int, rate_hz: int) -> dict[str, Any]:
    """Flag of `CLIP_FLAGS` -> whether the clip, or each of n clips, has it. What is not known sets no flag.

    rate_hz: of the stored waveform, 0 without one.
    """
    heard = quality.sample_rate_hz > 0
    return {
        "silent": quality.rms_dbfs < SILENT_DBFS,
        "clipped": quality.clipped_share >= CLIPPED_SHARE,
        "low_rate": heard & (quality.sample_rate_hz < rate_hz),
        "short": quality.duration_s < quality.asked_s - SHORT_S,
        "static": quality.motion < STATIC_SHARE,
        "blank": quality.deviation < BLANK_DEVIATION,
        "small": np.minimum(quality.width, quality.height) < short_side_px,
        "rotated": quality.rotated,
    }


def earlier_alike(quality: Quality) -> dict[str, np.ndarray]:
    """Flag of `STORE_FLAGS` -> `(n,)` int64: for each of n clips the number of the first earlier one that it is a
    double of, else -1. Silence and blank pictures are no doubles of each other.
    """
    heard = quality.rms_dbfs >= SILENT_DBFS
    seen = quality.deviation >= BLANK_DEVIATION
    same = {"picture": _doubles(quality.picture, seen), "sound": _doubles(quality.sound, heard)}
    like = {
        "picture": _doubles(quality.picture_look, seen & _telling(quality.picture_look), LIKE_BITS),
        "sound": _doubles(quality.sound_run, heard & _telling(quality.sound_run), LIKE_BITS),
    }
    return {
        **{f"same_{kind}": found for kind, found in same.items()},
        **{f"like_{kind}": np.where(same[kind] < 0, found, -1) for kind, found in like.items()},
    }


def _telling(hashes: np.ndarray) -> np.ndarray:
    """Whether so many bits of both kinds are set that equal ones mean something."""
    ones = np.bitwise_count(hashes)
    return (ones >= _TELLING_BITS) & (ones <= 64 - _TELLING_BITS)


def _doubles(hashes: np.ndarray, usable: np.ndarray, distance: int = 0) -> np.ndarray:
    numbers = np.flatnonzero(usable)
    found = np.full(len(hashes), -1, np.int64)
    if len(numbers):
        alike = first_alike(hashes[numbers], distance)
        found[numbers] = np.where(alike >= 0, numbers[alike], -1)
    return found


def first_alike(hashes: np.ndarray, distance: int) -> np.ndarray:
    """`(n,)` int64: for each of `(n,)` uint64 the first earlier one that differs in at most `distance` bits, else -1.

    Candidates share one of `distance + 1` bands of bits, so that nothing is missed and few pairs are compared.
    """
    unique, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    values, place = unique[order], first[order]  # different values, by first appearance
    nearest = np.arange(len(values))
    edges = np.linspace(0, 64, distance + 2).astype(np.uint64)
    for low, high in pairwise(edges):
        band = (values >> low) & ((np.uint64(1) << (high - low)) - np.uint64(1)) if distance else values
        by_band = np.argsort(band, kind="stable")
        cuts = np.flatnonzero(np.diff(band[by_band])) + 1
        for members in np.split(by_band, cuts):
            if len(members) > 1:
                _pull(values, members, nearest, distance)
    rank = np.empty(len(values), np.int64)
    rank[order] = np.arange(len(values))
    found = place[nearest[rank[inverse]]]
    return np.where(found < np.arange(len(hashes)), found, -1)


def _pull(values: np.ndarray, members: np.ndarray, nearest: np.ndarray, distance: int, block: int = 1024) -> None:
    """Lower `nearest` of each of the members (ascending) to its first member within the distance."""
    for start in range(0, len(members), block):
        rows = members[start : start + block]
        near = np.bitwise_count(values[rows, None] ^ values[members[: start + len(rows)]][None]) <= distance
        # argmax finds the first; every row is near itself.
        nearest[rows] = np.minimum(nearest[rows], members[near.argmax(1)])
