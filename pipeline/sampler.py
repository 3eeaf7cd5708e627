"""Order and random draws as pure functions of (seed, epoch, clip): the same for every batch size, thread count, number
of ranks, loader and restart.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """The output function of splitmix64: a bijection of 64 bits without visible structure."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@lru_cache(maxsize=4096)
def text_key(text: str) -> int:
    """A 64-bit key of a text, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def clip_keys(clip_ids: Sequence[str]) -> np.ndarray:
    """`(n,)` uint64: the keys from which the draws of these clips are made."""
    keys = (hashlib.blake2b(clip_id.encode(), digest_size=8).digest() for clip_id in clip_ids)
    return np.frombuffer(b"".join(keys), "<u8")


@dataclass(frozen=True)
class Draws:
    """The random numbers of B clips in one epoch. `view` tells augmented copies of a clip apart."""

    seed: int
    epoch: int
    keys: np.ndarray
    view: int = 0

    def uniform(self, slot: str, count: int = 1) -> np.ndarray:
        """`(B, count)` float64 in [0, 1). The numbers of a slot do not depend on which other slots are drawn."""
        # Arrays throughout: they wrap around silently, as is meant; numpy warns when a scalar does.
        base = _mix(np.array([self.seed], np.uint64) + _GOLDEN)
        base = _mix(base ^ np.array([self.epoch], np.uint64) * _GOLDEN)
        base = _mix(base ^ np.uint64(text_key(f"{slot}/{self.view}")))
        clip = _mix(base ^ self.keys)
        bits = _mix(clip[:, None] + (np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)[None, :])
        return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def epoch_order(seed: int, epoch: int, count: int, shuffle: bool) -> np.ndarray:
    """`(count,)` int64: the order in which an epoch visits the clips."""
    if not shuffle:
        return np.arange(count)
    return np.random.default_rng((seed, epoch)).permutation(count)


@dataclass(frozen=True)
class Plan:
    """Which clips a rank takes at each step of an epoch.

    Step s covers the positions s * G to (s + 1) * G of the epoch's order, G = batch_size * world_size, and rank r takes
    the r-th slice of batch_size of them: so the clips of a step do not depend on how many ranks share it. With
    `drop_last` (training) an incomplete step is left out, so that all ranks take equally many full batches; without
    (evaluation) it is filled with the first clips of the order, marked as not valid.
    """

    count: int
    batch_size: int
    drop_last: bool
    rank: int = 0
    world_size: int = 1

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.world_size

    def steps(self, first: int = 0) -> int:
        """Steps from position `first` of the order to the end of the epoch."""
        left = max(0, self.count - first)
        return left // self.global_batch if self.drop_last else -(-left // self.global_batch)

    def take(self, order: np.ndarray, first: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Clip indices `(batch_size,)` and validity `(batch_size,)` of this rank at `step` after position `first`."""
        start = first + step * self.global_batch + self.rank * self.batch_size
        positions = np.arange(start, start + self.batch_size)
        return order[positions % self.count], positions < self.count
