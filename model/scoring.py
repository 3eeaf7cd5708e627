"""How maps become scores: what a protocol and a metric are, and the scorer that runs them over the clips of a split.

A protocol turns a map at the method's own resolution into a map and a foreground of the size at which truth is drawn. A
metric turns those and the truth into one row a clip, and rows into scores. Scores are made from rows alone, sorted by
clip id: they depend neither on the batch size nor on order or ranks, and can be made again from the saved rows.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import interpolate

from configs.errors import UserError
from configs.resolve import resolve
from configs.schema import ComponentConfig, EvaluateConfig
from model.base import Localization
from pipeline.batch import Truth

Rows = dict[str, np.ndarray]
"""Columns of equal length, one entry a clip: `clip_id`, `label`, `group`, `truth_area`, and the metrics' columns.

The columns of a blind map or of the ceiling start with its name and a dot: `centre.ciou`.
"""

FLOORS = ("centre", "ones", "random")
CEILING = "ceiling"
CENTRE_SIGMA = 50 / 224
"""Width of the centred Gaussian as a share of the map's side."""


class Maps:
    """The maps of B clips as a protocol sees them.

    resized: `(B, S, S)` float32 in the method's scale. scaled: the same after the protocol's normalisation.
    """

    def __init__(self, resized: Tensor, scaled: Tensor, protocol: "Protocol") -> None:
        self.resized = resized
        self.scaled = scaled
        self._protocol = protocol

    @cached_property
    def ordered(self) -> Tensor:
        """`(B, S * S)`: each clip's `scaled` values, ascending."""
        return ascending(self.scaled)

    @cached_property
    def best(self) -> Tensor:
        """`(B, S, S)` bool: the pixels at the map's maximum; more than one where it is flat."""
        return self.resized == self.resized.amax((1, 2), keepdim=True)

    @cached_property
    def foreground(self) -> Tensor:
        """`(B, S, S)` bool: the pixels that the protocol counts as source."""
        threshold = self._protocol.threshold(self)[:, None, None]
        return self.scaled > threshold if self._protocol.strict else self.scaled >= threshold

    def repeat(self, count: int) -> "Maps":
        """One map for `count` clips, without copies; it is sorted and cut once."""
        many = Maps(self.resized.expand(count, -1, -1), self.scaled.expand(count, -1, -1), self._protocol)
        many.__dict__["ordered"] = self.ordered.expand(count, -1)
        many.__dict__["best"] = self.best.expand(count, -1, -1)
        many.__dict__["foreground"] = self.foreground.expand(count, -1, -1)
        return many


@dataclass(frozen=True)
class TruthMaps:
    """The truth of B clips as a protocol draws it.

    weights: `(B, S, S)` float32 in [0, 1], how far the annotators agree that the sound is there. clips: as stored.
    """

    weights: Tensor
    clips: Sequence[Truth]

    @cached_property
    def area(self) -> Tensor:
        """`(B,)` float64: sum of the weights, in pixels."""
        return pixel_sum(self.weights)


class ProtocolConfig(ComponentConfig):
    """Base of every protocol's `Config`. What the protocol fixes is no option: another rule is another protocol."""

    truth: Literal["auto", "union", "consensus"] = Field(
        "auto",
        description="union: 1 inside any box; consensus: half a point a box, at most 1; auto: consensus for clips "
        "that several people annotated",
    )


class Protocol(ABC):
    """A fixed way from a map to a foreground, and from boxes to a truth map, both `size_px` squared."""

    Config: ClassVar[type[ProtocolConfig]]
    size_px: ClassVar[int] = 224
    resize_mode: ClassVar[Literal["bilinear", "bicubic"]]
    align_corners: ClassVar[bool]
    strict: ClassVar[bool]
    """True: foreground is above the threshold. False: above or at it."""
    rule: ClassVar[str]
    """The threshold in words, for reports."""
    half_area: ClassVar[bool]
    """Whether the rule makes half of the picture foreground, so that no map can do better than `half_area_ceiling`."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def threshold(self, maps: Maps) -> Tensor:
        """`(B,)`: where each clip's `scaled` map is cut."""

    def prepare(self, native: Tensor) -> Maps:
        """Maps `(B, h, w)` of any resolution and float type, resized and normalised clip by clip."""
        resized = self.resize(native.float())
        return Maps(resized, self.scale(resized), self)

    def resize(self, native: Tensor) -> Tensor:
        """`(B, h, w)` to `(B, S, S)`."""
        if native.shape[1:] == (self.size_px, self.size_px):
            return native
        size = (self.size_px, self.size_px)
        return interpolate(native[:, None], size, mode=self.resize_mode, align_corners=self.align_corners)[:, 0]

    def scale(self, resized: Tensor) -> Tensor:
        """Each map to 0 .. 1; a constant map stays as it is."""
        low, high = resized.amin((1, 2), keepdim=True), resized.amax((1, 2), keepdim=True)
        varies = high > low
        return (resized - torch.where(varies, low, 0)).div_(torch.where(varies, high - low, 1))

    def rasterise(self, truths: Sequence[Truth], device: torch.device | str = "cpu") -> TruthMaps:
        """The truth of B clips, drawn.

        A box is clipped to the picture and its corners times `size_px` truncated, as the released evaluators of the
        EZ-VSL family do. A mask is resized to the nearest pixel; 255 is weight 1. Weights are multiples of 1/256, so
        that sums of them are exact in any order.
        """
        weights = np.stack([self._draw(truth) for truth in truths])
        return TruthMaps(torch.from_numpy(weights).to(device), truths)

    def _draw(self, truth: Truth) -> np.ndarray:
        side = self.size_px
        if truth.boxes is None:
            assert truth.mask is not None, "clips without truth are refused before they are drawn"
            mask = torch.from_numpy(np.round(truth.mask.astype(np.float32) * (256 / 255)) / 256)
            return interpolate(mask[None, None], (side, side), mode="nearest-exact")[0, 0].numpy()
        votes = np.zeros((side, side), np.float32)
        for x0, y0, x1, y1 in (np.clip(truth.boxes[:, :4], 0, 1) * side).astype(np.int64):
            votes[y0:y1, x0:x1] += 1
        return np.minimum(votes / 2 if self._by_consensus(truth) else votes, 1)

    def _by_consensus(self, truth: Truth) -> bool:
        if self.config.truth != "auto":
            return self.config.truth == "consensus"
        # A clip that only one of several people marked still says so: by a later annotator's index, or in `extra`.
        return bool((truth.boxes[:, 4] > 0).any()) or truth.extra.get("annotators", 1) > 1  # type: ignore[index]

    def settings(self) -> dict[str, str]:
        """What a score depends on, for reports."""
        corners = "corners aligned" if self.align_corners else "corners not aligned"
        return {
            "map": f"{self.resize_mode} to {self.size_px} x {self.size_px} px, {corners}",
            "normalisation": "each map to 0 .. 1 (a constant map as it is)",
            "foreground": f"{'>' if self.strict else '>='} {self.rule}",
            "truth": f"boxes: {self.config.truth}",
        }


class Metric(ABC):
    """One question about maps: a row a clip, and scores from the rows."""

    Config: ClassVar[type[ComponentConfig]]
    columns: ClassVar[tuple[str, ...]]
    """Names that `per_clip` returns; no two metrics share one."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def per_clip(self, maps: Maps, truth: TruthMaps, protocol: Protocol) -> dict[str, Tensor]:
        """The `columns`, each `(B,)`; no clip's value depends on another clip."""

    @abstractmethod
    def reduce(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Named scores from the `columns` and `unit` (clips of one group share a number), for one clip or more."""

    def ceiling(self, truth: TruthMaps, protocol: Protocol) -> dict[str, Tensor]:
        """The `columns` of the best map there could be, where the protocol sets a limit; else nothing."""
        return {}


def median(maps: Maps) -> Tensor:
    """`(B,)`: the value at index S * S // 2 of each clip's sorted pixels (no mean of the two middle ones)."""
    return maps.ordered[:, maps.ordered.shape[1] // 2]


def pixel_sum(weights: Tensor) -> Tensor:
    """`(B,)` float64: sums over maps `(B, S, S)` of multiples of 1/256, exact: one line of pixels fits in float32."""
    return weights.sum(2).sum(1, dtype=torch.float64)


def consensus_iou(foreground: Tensor, truth: TruthMaps) -> Tensor:
    """`(B,)` float64: sum(P g) / (sum(g) + sum(P where g = 0)); 0 where both are empty.

    Args: foreground P (B, S, S) bool; g = truth.weights.
    Source: Senocak et al., Learning to Localize Sound Source in Visual Scenes (CVPR 2018), eq. 8.
    """
    hit = pixel_sum(foreground * truth.weights)
    false = (foreground & (truth.weights == 0)).sum((1, 2)).double()
    whole = truth.area + false
    return torch.where(whole > 0, hit / torch.where(whole > 0, whole, 1), 0.0)


def half_area_ceiling(truth: TruthMaps) -> Tensor:
    """`(B,)` float64: the best consensus IoU of any foreground that fills half of the picture.

    It takes the pixels of most weight; for a binary truth of area share a this is min(a, .5) / max(a, .5).
    """
    weights = ascending(truth.weights)
    chosen = weights[:, weights.shape[1] // 2 :]
    false = (chosen == 0).sum(1)
    return chosen.sum(1, dtype=torch.float64) / (truth.area + false).clamp_min(1)


def success_scores(values: np.ndarray) -> dict[str, float]:
    """Share of clips with a value of at least 0.5, area under that share over thresholds 0, 0.05 .. 1, and the mean.

    The thresholds are the float products 0.05 * i, as in the released evaluators; the first point is always 1.
    """
    values = np.sort(values)
    thresholds = np.array([0.05 * step for step in range(21)])
    share = (len(values) - np.searchsorted(values, thresholds, side="left")) / len(values)
    area = float(np.sum((share[1:] + share[:-1]) / 2 * np.diff(thresholds)))
    return {"at_50": float(np.mean(values >= 0.5)), "auc": area, "mean": float(np.mean(values))}


def ascending(maps: Tensor) -> Tensor:
    """`(B, S * S)`: the sorted values of maps `(B, S, S)`."""
    flat = maps.flatten(1)
    if flat.device.type == "cpu":
        # numpy sorts float32 with vector instructions, some twenty times as fast as torch on a CPU.
        return torch.from_numpy(np.sort(flat.numpy(), axis=1))
    return flat.sort(dim=1).values


def centred_gaussian(side: int) -> Tensor:
    """`(1, side, side)` float32 in (0, 1]: knows nothing but that things stand in the middle."""
    line = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) / (CENTRE_SIGMA * side)
    return torch.exp(-(line[:, None].square() + line[None, :].square()) / 2)[None].float()


def random_maps(clip_ids: Sequence[str], height: int, width: int) -> Tensor:
    """`(B, height, width)` float32, uniform in [0, 1): each clip's numbers come from its id alone."""
    digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in clip_ids]
    draws = [np.random.default_rng(int.from_bytes(digest, "little")) for digest in digests]
    return torch.from_numpy(np.stack([draw.random((height, width), np.float32) for draw in draws]))


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What `Scorer.add` found for the valid clips of one batch: for pictures."""

    positions: list[int]
    clip_ids: list[str]
    maps: Maps
    truths: list[Truth]
    columns: dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """The scores of one set, and all that is needed to read them.

    scores: name -> value; intervals: name -> 95% bounds over clips; floors: blind map -> the same names -> value;
    ceiling: name -> best value that the protocol allows. empty: clips whose truth covers no pixel (they score 0).
    """

    rows: Rows
    scores: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    floors: dict[str, dict[str, float]]
    ceiling: dict[str, float]
    found: int
    expected: int | None
    empty: int
    id_hash: str
    protocol: str
    settings: dict[str, str]
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def as_mapping(self) -> dict[str, Any]:
        """Plain values for JSON: everything but the rows."""
        plain = {key: value for key, value in vars(self).items() if key != "rows"}
        return {**plain, "intervals": {name: list(bounds) for name, bounds in self.intervals.items()}}


class Scorer:
    """Collects the rows of one set, batch by batch, and makes its table."""

    def __init__(
        self,
        protocol: Protocol,
        metrics: Mapping[str, Metric],
        *,
        bootstrap: int = 1000,
        seed: int = 0,
        blind: bool = True,
    ) -> None:
        """blind: score the floors and the ceiling too; they are the same for every state of a method."""
        self.protocol = protocol
        self.metrics = dict(metrics)
        columns = [column for metric in metrics.values() for column in metric.columns]
        if len(set(columns)) < len(columns):
            raise ValueError(f"two metrics write the same column: {sorted(columns)}")
        self.bootstrap = bootstrap
        self.seed = seed
        self.blind = blind
        self._parts: list[Rows] = []
        self._seen: set[str] = set()
        self._constant: dict[tuple[str, torch.device], Maps] = {}

    @property
    def clip_ids(self) -> list[str]:
        """Ids of all clips scored so far, in the order of arrival."""
        return [str(clip_id) for part in self._parts for clip_id in part["clip_id"]]

    @torch.inference_mode()
    def add(
        self,
        clip_ids: Sequence[str],
        valid: Tensor,
        localization: Localization,
        truth: Sequence[Truth | None] | None,
    ) -> Scored:
        """Score a batch; clips that are not valid (padding) are left out.

        Raises: UserError naming clips without truth, or with a map that is not finite. ValueError for a clip that
        was scored before.
        """
        positions = [place for place, counts in enumerate(valid.tolist()) if counts]
        names = [clip_ids[place] for place in positions]
        truths: list[Truth] = []
        bare: list[str] = []
        for name, place in zip(names, positions, strict=True):
            item = truth[place] if truth is not None else None
            if item is None or (item.boxes is None and item.mask is None):
                bare.append(name)
            else:
                truths.append(item)
        if bare:
            raise UserError(
                f"{len(bare)} clip(s) have neither boxes nor a mask and cannot be scored: {_some(bare)}. Pack the "
                "split with its annotations, or leave it out of evaluate.sets"
            )
        self._claim(names)
        native = localization.map[positions].float()
        finite = native.flatten(1).isfinite().all(1).tolist()
        if not all(finite):
            broken = [name for name, good in zip(names, finite, strict=True) if not good]
            raise UserError(
                f"the map of {len(broken)} clip(s) is not finite: {_some(broken)}; these weights are unusable"
            )
        if not names:
            nothing = native.new_zeros(0, self.protocol.size_px, self.protocol.size_px)
            return Scored(positions=[], clip_ids=[], maps=Maps(nothing, nothing, self.protocol), truths=[], columns={})

        truth_maps = self.protocol.rasterise(truths, native.device)
        maps = self.protocol.prepare(native)
        columns = self._columns(maps, truth_maps)
        if self.blind:
            for source in FLOORS:
                columns |= self._columns(self._blind(source, names, native), truth_maps, f"{source}.")
            for metric in self.metrics.values():
                best = metric.ceiling(truth_maps, self.protocol)
                columns |= {f"{CEILING}.{key}": value for key, value in best.items()}
        rows = {key: value.double().cpu().numpy() for key, value in columns.items()}
        self._parts.append(
            {
                "clip_id": np.array(names, dtype=np.str_),
                "label": np.array([item.label or "" for item in truths], dtype=np.str_),
                "group": np.array([item.group or "" for item in truths], dtype=np.str_),
                "truth_area": truth_maps.area.cpu().numpy() / self.protocol.size_px**2,
                **rows,
            }
        )
        return Scored(positions=positions, clip_ids=names, maps=maps, truths=truths, columns=rows)

    def _claim(self, names: Sequence[str]) -> None:
        twice = [name for name in names if name in self._seen]
        if twice or len(set(names)) < len(names):
            raise ValueError(f"clips were scored twice: {_some(twice or list(names))}")
        self._seen.update(names)

    def _columns(self, maps: Maps, truth: TruthMaps, prefix: str = "") -> dict[str, Tensor]:
        columns: dict[str, Tensor] = {}
        for metric in self.metrics.values():
            columns |= {f"{prefix}{key}": value for key, value in metric.per_clip(maps, truth, self.protocol).items()}
        return columns

    def _blind(self, source: str, names: Sequence[str], native: Tensor) -> Maps:
        """A map that saw neither picture nor sound, for each clip.

        The random one has the method's own resolution, so that resizing makes it as smooth as the method's maps.
        """
        if source == "random":
            return self.protocol.prepare(random_maps(names, *native.shape[1:]).to(native.device))
        key = (source, native.device)
        if key not in self._constant:
            side = self.protocol.size_px
            blind = centred_gaussian(side) if source == "centre" else torch.ones(1, side, side)
            self._constant[key] = self.protocol.prepare(blind.to(native.device))
        return self._constant[key].repeat(len(names))

    def extend(self, rows: Rows) -> None:
        """Take the rows that another rank collected."""
        self._claim([str(clip_id) for clip_id in rows["clip_id"]])
        self._parts.append(rows)

    def rows(self) -> Rows:
        """The rows of all clips, sorted by clip id. Raises: UserError if there are none."""
        parts = [part for part in self._parts if len(part["clip_id"])]
        if not parts:
            raise UserError("no clip was scored: the split is empty")
        joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        order = np.argsort(joined["clip_id"])
        return {key: column[order] for key, column in joined.items()}

    def result(self, *, id_hash: Callable[[Sequence[str]], str], expected: int | None = None) -> ScoreTable:
        """The table of all clips added. `id_hash` names a set of clip ids; `expected` is the size of the full set."""
        rows = self.rows()
        numbers = {key: column for key, column in rows.items() if column.dtype.kind == "f"}
        unit = units(rows["clip_id"], rows["group"])
        floors = {source: self._reduce(_of_source(numbers, source), unit) for source in FLOORS if self.blind}
        return ScoreTable(
            rows=rows,
            scores=self._reduce(_of_source(numbers, ""), unit),
            intervals=self._intervals(_of_source(numbers, ""), unit),
            floors=floors,
            ceiling=self._reduce(_of_source(numbers, CEILING), unit),
            found=len(unit),
            expected=expected,
            empty=int((rows["truth_area"] == 0).sum()),
            id_hash=id_hash([str(clip_id) for clip_id in rows["clip_id"]]),
            protocol=self.protocol.config.name,
            settings=self.protocol.settings(),
        )

    def _reduce(self, numbers: Mapping[str, np.ndarray], unit: np.ndarray) -> dict[str, float]:
        scores: dict[str, float] = {}
        for metric in self.metrics.values():
            # Only some metrics have a ceiling: without its columns a metric has no say.
            if all(name in numbers for name in metric.columns):
                scores |= metric.reduce({**numbers, "unit": unit})
        return scores

    def _intervals(self, numbers: Mapping[str, np.ndarray], unit: np.ndarray) -> dict[str, tuple[float, float]]:
        """95% of the scores of as many clips drawn with replacement; clips of one group are drawn together."""
        draw = np.random.default_rng(self.seed)
        members = np.split(np.argsort(unit, kind="stable"), np.cumsum(np.bincount(unit))[:-1])
        single = len(members) == len(unit)
        draws: dict[str, list[float]] = {}
        for _ in range(self.bootstrap):
            chosen = draw.integers(len(members), size=len(members))
            take = chosen if single else np.concatenate([members[number] for number in chosen])
            sizes = 1 if single else [len(members[number]) for number in chosen]
            again = np.repeat(np.arange(len(members)), sizes)
            for name, value in self._reduce({key: column[take] for key, column in numbers.items()}, again).items():
                draws.setdefault(name, []).append(value)
        bounds = {name: np.percentile(values, (2.5, 97.5)) for name, values in draws.items()}
        return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}


def build_scorer(config: EvaluateConfig, *, blind: bool = True) -> Scorer:
    """The scorer that a config asks for; `blind` as in `Scorer`."""
    metrics = {name: resolve("model.metrics", name)(options) for name, options in config.metrics.items()}
    protocol = resolve("model.protocols", config.protocol.name)(config.protocol)
    return Scorer(protocol, metrics, bootstrap=config.bootstrap, blind=blind)


def units(clip_ids: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """`(n,)` int: one number a group; a clip without a group has its own."""
    names = [f"group/{group}" if group else f"clip/{clip_id}" for clip_id, group in zip(clip_ids, groups, strict=True)]
    return np.unique(names, return_inverse=True)[1]


def save_rows(path: Path, rows: Rows) -> None:
    """Write rows as npz: columns of numbers and fixed-width text, readable without pickle."""
    assert all(column.dtype.kind in "fU" for column in rows.values()), "object columns would be pickled"
    np.savez_compressed(path, **rows)  # type: ignore[arg-type]


def load_rows(path: Path) -> Rows:
    """The rows that `save_rows` wrote."""
    with np.load(path, allow_pickle=False) as columns:
        return {key: columns[key] for key in columns.files}


def _of_source(numbers: Mapping[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """The columns of one blind map or of the ceiling, without its name; "": those of the scored maps."""
    if not source:
        return {key: column for key, column in numbers.items() if "." not in key}
    return {key.removeprefix(f"{source}."): column for key, column in numbers.items() if key.startswith(f"{source}.")}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
