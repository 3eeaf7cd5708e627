"""Protocols: from a map and from annotation to what is compared; and the blind maps that scores stand beside."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from configs.schema import ComponentConfig
from model.resize import Mode, resize
from model.truth_maps import TruthMaps, draw
from pipeline.batch import Truth

CENTRE_SIGMA = 50 / 224
"""Width of the centred Gaussian as a share of the map's side."""


@dataclass(frozen=True, kw_only=True)
class SetFacts:
    """What a protocol may know about a test set. family: vggss, flickr, is3, vpo, avsbench, or empty."""

    name: str = ""
    family: str = ""


@dataclass(frozen=True)
class Source:
    """A native map `(B, h, w)` that goes into a mixture, and the range it can take. prior: it never heard the sound."""

    map: Tensor
    bounds: tuple[float, float]
    prior: bool = False


class Maps:
    """The maps of B clips as a protocol sees them.

    resized: `(B, S, S)` float32 in the method's scale. bounds: the range of that scale; infinite for logits.
    embeddings: of picture and sound, `(B, D)` each, where the method gives them.
    """

    embeddings: tuple[Tensor, Tensor] | None = None

    def __init__(
        self, resized: Tensor, bounds: tuple[float, float], protocol: "Protocol", *, negated: bool = False
    ) -> None:
        """negated: the normalised map is 1 minus that of the negated one."""
        self.resized = resized
        self.bounds = bounds
        self.negated = negated
        self._protocol = protocol

    @cached_property
    def absolute(self) -> Tensor:
        """`(B, S, S)`: the maps on a scale from 0 to 1 that all clips share: between the bounds, or by a sigmoid."""
        return self._to_absolute(self.resized)

    def _to_absolute(self, values: Tensor) -> Tensor:
        low, high = self.bounds
        if np.isinf(low) or np.isinf(high):
            return values.sigmoid()
        if (low, high) == (0.0, 1.0):
            return values
        span = high - low
        # By a power of two, as in nearly all methods, the product is the quotient, in half the time.
        by = (torch.mul, np.multiply, 1 / span) if math.frexp(span)[0] == 0.5 else (torch.div, np.divide, span)
        if values.device.type != "cpu":
            return by[0](values - low, by[2])
        out = np.empty(values.shape, np.float32)
        for line, scaled in zip(values.numpy(), out):  # in the cache
            np.subtract(line, np.float32(low), out=scaled)
            by[1](scaled, np.float32(by[2]), out=scaled)
        return torch.from_numpy(out)

    @cached_property
    def scaled(self) -> Tensor:
        """`(B, S, S)`: the maps after the protocol's normalisation."""
        return self._protocol.scale(self)

    @cached_property
    def extremes(self) -> tuple[Tensor, Tensor]:
        """`(B,)` twice: the least and the largest value of `resized`."""
        if self.resized.device.type != "cpu":
            return self.resized.amin((1, 2)), self.resized.amax((1, 2))
        if "_halves" in self.__dict__:  # which know them
            both = [(each.least, each.largest) for each in self._halves]
        else:
            # Line by line, so that the second pass finds it in the cache.
            both = [(line.min(), line.max()) for line in self.resized.flatten(1).numpy()]
        least, largest = np.array(both, np.float32).reshape(-1, 2).T
        return torch.from_numpy(least), torch.from_numpy(largest)

    @cached_property
    def best(self) -> Tensor:
        """`(B, S, S)` bool: the pixels at the map's maximum; more than one where it is flat."""
        return _compare(self.resized, self.extremes[1], np.equal)

    @cached_property
    def foreground(self) -> Tensor:
        """`(B, S, S)` bool: the pixels that the protocol counts as source."""
        return self._protocol.foreground(self)

    @cached_property
    def _sorted(self) -> Tensor:
        return self.scaled.flatten(1).sort(dim=1).values

    @cached_property
    def _halves(self) -> "_EachHalved":
        return _EachHalved(self.resized.flatten(1).numpy())

    def above(self, threshold: Tensor, *, strict: bool) -> Tensor:
        """`(B, S, S)` bool: where `scaled` is above a threshold `(B,)`, or not below it."""
        return _compare(self.scaled, threshold, np.greater if strict else np.greater_equal)

    def ranked(self, place: int | Tensor) -> Tensor:
        """`(B,)`: each clip's `scaled` value at a place, or its own place `(B,)`, of the ascending order from 0."""
        places = torch.as_tensor(place).expand(len(self.resized))
        if self.resized.device.type != "cpu":
            return self._sorted.gather(1, places.to(self.resized.device)[:, None])[:, 0]
        if self._by_sigmoid:
            lines = zip(self.scaled.flatten(1).numpy(), places.tolist(), strict=True)
            return torch.from_numpy(np.array([np.partition(line, at)[at] for line, at in lines], np.float32))
        own = [halves.around(at, after=True)[0] for halves, at in zip(self._halves, places.tolist(), strict=True)]
        return self._scale_of(np.array(own, np.float32)[:, None])[:, 0]

    def beyond(self, place: int | Tensor, *, strict: bool) -> Tensor:
        """`(B, S, S)` bool: where `scaled` is above what `ranked` gives for the place, or not below it."""
        if self.resized.device.type != "cpu" or self._by_sigmoid:
            return self.above(self.ranked(place), strict=strict)
        # Normalisation keeps the order, so `resized` can be cut in place of `scaled`, which need not be made: unless it
        # rounds the first value on the other side of the cut to the same number.
        compare = np.greater if strict else np.greater_equal
        found, around = np.empty(self.resized.shape, bool), np.empty((len(self.resized), 2), np.float32)
        places = torch.as_tensor(place).expand(len(found)).tolist()
        for line, halves, at, values, own in zip(self.resized.numpy(), self._halves, places, around, found):
            values[:] = halves.around(at, after=strict)
            compare(line, values[0], out=own)
        cut, other = self._scale_of(around).unbind(1)
        found = torch.from_numpy(found)
        if len(alike := torch.nonzero(cut == other)[:, 0]):
            some = self._with_range_of(alike, self.resized[alike])
            found[alike] = some.above(cut[alike], strict=strict)
        return found

    @property
    def _by_sigmoid(self) -> bool:
        """Whether `scaled` comes by a function whose last bit for one value may differ from that for many."""
        return self._protocol.normalisation == "bounds" and bool(np.isinf(self.bounds).any())

    def _scale_of(self, values: np.ndarray) -> Tensor:
        """`(B, k)`: what `scaled` has where `resized` has these values `(B, k)` float32."""
        return self._with_range_of(slice(None), torch.from_numpy(values)[:, None]).scaled[:, 0]

    def _with_range_of(self, chosen: slice | Tensor, resized: Tensor) -> "Maps":
        """Values of the chosen clips, to be normalised as those are."""
        some = Maps(resized, self.bounds, self._protocol, negated=self.negated)
        least, largest = self.extremes
        some.__dict__["extremes"] = least[chosen], largest[chosen]
        return some

    def top_mean(self, share: float) -> Tensor:
        """`(B,)` float64: mean of the given share of largest `absolute` values."""
        # The scale keeps the order: only what is averaged has to be put on it.
        pixels = self.resized.shape[1:].numel()
        count = int(pixels * share)
        if self.resized.device.type != "cpu":
            top = self.resized.flatten(1).topk(count, dim=1, sorted=False).values
            return self._to_absolute(top).mean(1, dtype=torch.float64)
        if self._protocol.half_area and count < pixels // 2:
            tops = (halves.top(count) for halves in self._halves)
        else:
            tops = (np.partition(line, pixels - count)[-count:] for line in self.resized.flatten(1).numpy())
        # One by one, while they are in the cache.
        scaled = (self._to_absolute(torch.from_numpy(top)[None]) for top in tops)
        means = [each.mean(1, dtype=torch.float64) for each in scaled]
        return torch.cat(means) if means else torch.zeros(0, dtype=torch.float64)

    def repeat(self, count: int) -> "Maps":
        """One map for `count` clips, without copies; it is normalised and cut once."""
        many = Maps(self.resized.expand(count, -1, -1), self.bounds, self._protocol, negated=self.negated)
        for name in ("absolute", "scaled", "best", "foreground"):
            many.__dict__[name] = getattr(self, name).expand(count, -1, -1)
        return many


class ProtocolConfig(ComponentConfig):
    """Base of every protocol's `Config`. What the protocol fixes is no option: another rule is another protocol."""

    truth: Literal["auto", "union", "consensus", "first"] = Field(
        "auto",
        description="union: 1 inside any box; consensus: half a point a box, at most 1; first: the first box alone; "
        "auto: consensus for clips that several people annotated, else union",
    )


class Protocol(ABC):
    """A fixed way from a map to a foreground, and from annotation to a truth map, both `size_px` squared."""

    Config: ClassVar[type[ProtocolConfig]]
    size_px: ClassVar[int] = 224
    resize_mode: Mode
    align_corners: bool
    prior_resize: ClassVar[tuple[Mode, bool] | None] = None
    """Mode and align_corners for an object prior, where they are not those of the map."""
    normalisation: ClassVar[Literal["own range", "bounds", "none"]] = "own range"
    """own range: each map to 0 .. 1 (a constant one as it is); bounds: between the range that the method can take."""
    negated: ClassVar[bool] = False
    """1 - normalised(-map) instead of normalised(map), the same but for rounding; not for priors and mixtures."""
    strict: ClassVar[bool]
    """True: foreground is above the threshold. False: above or at it."""
    rule: str
    """The threshold in words, for reports."""
    half_area: ClassVar[bool] = False
    """Whether the rule makes half of the picture foreground, so that no map can do better than `half_area_ceiling`."""
    map_share: ClassVar[float] = 0.4
    """Share of the method's own map beside an object prior (1 minus this)."""
    calibrated: ClassVar[bool] = False
    """Whether the threshold comes from the whole set: see `at`."""
    usual_metrics: ClassVar[tuple[str, ...]] = ("ciou", "pointing")
    """What the protocol's papers report."""

    def __init__(self, config: Any, facts: SetFacts | None = None) -> None:
        self.config = config
        self.facts = facts or SetFacts()

    @abstractmethod
    def threshold(self, maps: Maps) -> Tensor:
        """`(B,)`: where each clip's `scaled` map is cut."""

    def foreground(self, maps: Maps) -> Tensor:
        """`(B, S, S)` bool: the pixels that count as source."""
        return maps.above(self.threshold(maps), strict=self.strict)

    def at(self, maxima: np.ndarray) -> "Protocol":
        """The protocol with the threshold that follows from the native maxima of all clips with a negative sound."""
        raise NotImplementedError(f"{type(self).__name__} has its threshold")

    def prepare(self, native: Tensor, bounds: tuple[float, float] = (0.0, 1.0), *, prior: bool = False) -> Maps:
        """Maps `(B, h, w)` of any resolution and float type, resized clip by clip."""
        return Maps(self.resize(native.float(), prior=prior), bounds, self, negated=self.negated and not prior)

    def resize(self, native: Tensor, *, prior: bool = False) -> Tensor:
        """`(B, h, w)` to `(B, S, S)`."""
        size = (self.size_px, self.size_px)
        if native.shape[1:] == size:
            return native
        mode, corners = self.resize_mode, self.align_corners
        if prior and self.prior_resize is not None:
            mode, corners = self.prior_resize
        return resize(native, self.size_px, mode, corners)

    def scale(self, maps: Maps) -> Tensor:
        """The maps `(B, S, S)` after normalisation."""
        if self.normalisation == "none":
            return maps.resized
        if self.normalisation == "bounds":
            return maps.absolute
        return full_range(maps)

    def mix(self, shares: Mapping[str, float], maps: Mapping[str, Maps]) -> Maps:
        """The weighted sum of several maps of the same clips, each normalised first; it is then normalised again.

        A share of 0 leaves a map out, so that a share of 1 gives the other one exactly.
        """
        present = [(share, maps[name]) for name, share in shares.items() if share]
        if len(present) == 1 and present[0][0] == 1:
            return present[0][1]
        total = sum(each.scaled * share for share, each in present)
        assert isinstance(total, Tensor)
        return Maps(total, (0.0, 1.0), self)

    def mix_absolute(self, shares: Mapping[str, float], maps: Mapping[str, Maps]) -> Maps:
        """The weighted sum on the scale from 0 to 1 that all clips share; nothing is normalised a clip before it."""
        total = sum(maps[name].absolute * share for name, share in shares.items())
        assert isinstance(total, Tensor)
        return Maps(total, (0.0, 1.0), self)

    def drawing(self) -> tuple[str, int]:
        """Protocols with the same value draw truth alike."""
        return self.config.truth, self.size_px

    def rasterise(self, truths: Sequence[Truth], device: torch.device | str = "cpu") -> TruthMaps:
        """The truth of B clips, drawn as `model.truth_maps.draw` says, by the config's `truth`."""
        boxes = [np.zeros((0, 5)) if truth.boxes is None else truth.boxes for truth in truths]
        if self.config.truth == "first":
            boxes = [each[:1] for each in boxes]
        by_votes = [truth.boxes is not None and self._by_consensus(truth) for truth in truths]
        return draw(truths, boxes, by_votes, self.size_px, device)

    def _by_consensus(self, truth: Truth) -> bool:
        if self.config.truth != "auto":
            return self.config.truth == "consensus"
        # A clip that only one of several people marked still says so: by a later annotator's index, or in `extra`.
        return bool((truth.boxes[:, 4] > 0).any()) or truth.extra.get("annotators", 1) > 1  # type: ignore[index]

    def settings(self) -> dict[str, str]:
        """What a score depends on, for reports."""
        words = {"own range": "each map to 0 .. 1 (a constant map as it is)", "bounds": "the method's range to 0 .. 1"}
        settings = {
            "map": self._resize_words(self.resize_mode, self.align_corners),
            "normalisation": words.get(self.normalisation, "none"),
            "foreground": f"{'>' if self.strict else '>='} {self.rule}",
            "truth": f"boxes: {self.config.truth}",
        }
        if self.prior_resize is not None:
            settings["object prior"] = self._resize_words(*self.prior_resize)
        return settings

    def _resize_words(self, mode: str, corners: bool) -> str:
        return f"{mode} to {self.size_px} x {self.size_px} px, corners {'' if corners else 'not '}aligned"


class MedianProtocol(Protocol):
    """Base of the protocols that make the upper half of the pixels foreground."""

    rule = "the map's median (value number 25088 of 50176, ascending from 0)"
    half_area = True

    def threshold(self, maps: Maps) -> Tensor:
        return maps.ranked(self.size_px**2 // 2)

    def foreground(self, maps: Maps) -> Tensor:
        return maps.beyond(self.size_px**2 // 2, strict=self.strict)


class FixedProtocol(Protocol):
    """Base of the protocols with one threshold for all maps: the foreground may have any size."""

    cut: ClassVar[float]

    def threshold(self, maps: Maps) -> Tensor:
        return torch.full((len(maps.scaled),), self.cut, device=maps.scaled.device)


def full_range(maps: Maps) -> Tensor:
    """`(B, S, S)`: each map to 0 .. 1; a constant map as it is (negated: plus 1)."""
    low, high = (each[:, None, None] for each in maps.extremes)
    varies = high > low
    span = torch.where(varies, high - low, 1)
    if maps.negated:  # 1 - ((-x) - (-high)) / (high - low), rounded as if written so
        return (torch.where(varies, high, 0) - maps.resized).div_(span).neg_().add_(1)
    return (maps.resized - torch.where(varies, low, 0)).div_(span)


class _Halved:
    """The values of one map, parted by the one in the middle: below and above it they are in no order.

    What is asked changes nothing, so that no answer depends on what was asked before.
    """

    def __init__(self, line: np.ndarray) -> None:
        """Line: `(P,)` float32, P at least 3."""
        self._half = len(line) // 2
        # numpy selects with vector instructions, far faster than torch sorts on a CPU.
        parted = np.partition(line, self._half)
        self._below, self._middle, self._above = parted[: self._half], parted[self._half], parted[self._half + 1 :]
        self.least, self.largest = self._below.min(), self._above.max()

    def around(self, place: int, *, after: bool) -> tuple[np.float32, np.float32]:
        """The value at a place of the ascending order from 0, and the one after it or before it; at the ends the own
        value stands for that.
        """
        if place == self._half - 1 and after:
            return self._below.max(), self._middle
        if place == self._half + 1 and not after:
            return self._above.min(), self._middle
        if place == self._half:
            own, rest = self._middle, self._above if after else self._below
        else:
            half, at = (self._below, place) if place < self._half else (self._above, place - self._half - 1)
            half = np.partition(half, at)
            own, rest = half[at], half[at + 1 :] if after else half[:at]
        if not len(rest):
            return own, own
        return own, rest.min() if after else rest.max()

    def top(self, count: int) -> np.ndarray:
        """`(count,)`: the largest values, fewer than half of all, in no order."""
        return np.partition(self._above, len(self._above) - count)[-count:]


class _EachHalved:
    """The maps of a batch, each halved when its turn first comes: what is then asked of it finds it in the cache."""

    def __init__(self, lines: np.ndarray) -> None:
        """Lines: `(B, P)` float32; they stay as they are."""
        self._lines = lines
        self._halved: list[_Halved] = []

    def __iter__(self) -> Iterator[_Halved]:
        for number, line in enumerate(self._lines):
            if number == len(self._halved):
                self._halved.append(_Halved(line))
            yield self._halved[number]


def _compare(maps: Tensor, bound: Tensor, compare: np.ufunc) -> Tensor:
    """Maps (B, S, S) against a value (B,) each."""
    if maps.device.type != "cpu":
        names = {np.equal: torch.eq, np.greater: torch.gt, np.greater_equal: torch.ge}
        return names[compare](maps, bound[:, None, None])
    # Some three times as fast as torch on a CPU.
    return torch.from_numpy(compare(maps.numpy(), bound.numpy()[:, None, None]))


def centred_gaussian(side: int) -> Tensor:
    """`(1, side, side)` float32 in (0, 1]: knows nothing but that things stand in the middle."""
    line = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) / (CENTRE_SIGMA * side)
    return torch.exp(-(line[:, None].square() + line[None, :].square()) / 2)[None].float()


def random_maps(clip_ids: Sequence[str], height: int, width: int) -> Tensor:
    """`(B, height, width)` float32, uniform in [0, 1): each clip's numbers come from its id alone."""
    digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in clip_ids]
    draws = [np.random.default_rng(int.from_bytes(digest, "little")) for digest in digests]
    return torch.from_numpy(np.stack([draw.random((height, width), np.float32) for draw in draws]))
