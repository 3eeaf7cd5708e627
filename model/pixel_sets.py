"""Sets of pixels, counted by the word on a CPU."""

from functools import cached_property

import numpy as np
import torch
from torch import Tensor


class Pixels:
    """A set of pixels in each of B pictures, from a mask `(B, S, S)` bool, which must not change any more.

    A CPU packs the mask into a bit a pixel when first asked: what sets share is then counted in a fraction of the time.
    A GPU counts the mask itself.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    @cached_property
    def count(self) -> Tensor:
        """`(B,)` int64: pixels of each set."""
        return self._total(self._bits)

    def shared(self, other: "Pixels") -> Tensor:
        """`(B,)` int64: pixels that are in both sets of a picture."""
        return self._total(self._bits & other._bits)  # pyright: ignore[reportOperatorIssue]

    def part(self, chosen: slice) -> "Pixels":
        """The sets of some of the pictures."""
        some = Pixels(self.mask[chosen])
        some.__dict__.update(_bits=self._bits[chosen], count=self.count[chosen])
        return some

    @cached_property
    def _bits(self) -> Tensor | np.ndarray:
        """On a GPU the mask, on a CPU `(B, words)` of whole numbers without a sign."""
        if self.mask.device.type != "cpu":
            return self.mask.flatten(1)
        octets = np.packbits(self.mask.flatten(1).numpy(), axis=1)
        return octets.view(np.uint64) if octets.shape[1] % 8 == 0 else octets

    @staticmethod
    def _total(bits: Tensor | np.ndarray) -> Tensor:
        if isinstance(bits, Tensor):
            return bits.sum(1)
        return torch.from_numpy(np.bitwise_count(bits).sum(1, dtype=np.int64))
