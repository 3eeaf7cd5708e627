"""From maps to scores: the scorer that runs a protocol and metrics over the clips of a set, and the table it makes.

A protocol (`model.protocol`) turns a map at the method's own resolution into a map and a foreground of the size at
which truth is drawn. A metric (`model.metric`) turns those and the truth into columns of one row a clip, and rows into
scores. Scores are made from rows alone, sorted by clip id: they depend neither on the batch size nor on order or ranks,
and can be made again from the saved rows.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.errors import UserError
from configs.resolve import resolve
from configs.schema import ComponentConfig, EvaluateConfig, component_config
from model.base import Localization
from model.metric import Metric
from model.protocol import Maps, Protocol, SetFacts, Source, centred_gaussian, random_maps
from model.refinement import PRIOR, Localize, Mixtures, Refinement
from model.rows import Rows, gather_rows, join_rows, resamples, take_rows, units
from model.truth_maps import TruthMaps
from pipeline.batch import Batch, Truth

FLOORS = ("centre", "ones", "random")
CEILING = "ceiling"
_CHUNK = 32
"""Maps that a CPU works on at once: few enough for its cache, many enough to pay for the calls."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What `Scorer.add` found for the valid clips of one batch: for pictures. columns: the metrics' `(n,)` ones."""

    positions: list[int]
    clip_ids: list[str]
    native: Tensor
    bounds: tuple[float, float]
    protocol: Protocol
    truths: list[Truth]
    columns: dict[str, np.ndarray]
    _maps: list[Maps] = field(default_factory=list)

    @property
    def maps(self) -> Maps:
        """The maps as the protocol sees them, made when they are first asked for."""
        if not self._maps:
            self._maps.append(self.protocol.prepare(self.native, self.bounds))
        return self._maps[0]


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """The scores of one set, and all that is needed to read them.

    scores: name -> value; intervals: name -> 95% bounds over clips; floors: blind map -> the same names -> value;
    ceiling: name -> best value that the protocol allows. empty: clips whose truth covers no pixel though something
    makes the sound (they score 0). variant: which refinement's map; empty: the method's own.
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
    variant: str = ""
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def as_mapping(self) -> dict[str, Any]:
        """Plain values for JSON: everything but the rows."""
        plain = {key: value for key, value in vars(self).items() if key != "rows"}
        return {**plain, "intervals": {name: list(bounds) for name, bounds in self.intervals.items()}}


class Floors:
    """The columns of the blind maps and of the ceiling for the clips of one set, which no method changes.

    Scorers of the same set that share one compute them once, whatever the number of checkpoints.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], dict[str, dict[str, np.ndarray]]] = {}

    def columns(
        self, key: tuple[Any, ...], names: Sequence[str], make: Callable[[], dict[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """The columns for these clips, made if one of them is new. key: what else they depend on."""
        known = self._known.setdefault(key, {})
        if any(name not in known for name in names):
            made = make()
            known |= {name: {title: each[place] for title, each in made.items()} for place, name in enumerate(names)}
            return made
        titles = known[names[0]]
        return {title: np.stack([known[name][title] for name in names]) for title in titles}


@dataclass(frozen=True)
class _Held:
    """A batch whose threshold is not known before the whole set has been seen."""

    names: list[str]
    truths: list[Truth]
    sources: dict[str, Source]
    embeddings: tuple[Tensor, Tensor] | None


class Scorer:
    """Collects the rows of one set under one protocol, batch by batch, and makes its tables."""

    def __init__(
        self,
        protocol: Protocol,
        metrics: Mapping[str, Metric],
        *,
        refinements: Iterable[Refinement] = (),
        bootstrap: int = 1000,
        seed: int = 0,
        blind: bool = True,
        floors: Floors | None = None,
    ) -> None:
        """blind: score the floors and the ceiling too. floors: those of the set, shared with other scorers of it."""
        self.protocol = protocol
        self.metrics = dict(metrics)
        self.refinements = list(refinements)
        self.mixtures: Mixtures = {"": {"map": 1.0}}
        for refinement in self.refinements:
            self.mixtures |= refinement.mixtures(protocol)
        columns = [column for metric in metrics.values() for column in metric.columns]
        if len(set(columns)) < len(columns):
            raise ValueError(f"two metrics write the same column: {sorted(columns)}")
        self.bootstrap = bootstrap
        self.seed = seed
        self.blind = blind
        self.floors = floors or Floors()
        self._rules: dict[str, Protocol] = {}  # where the threshold of a map follows from the whole set
        self._parts: list[Rows] = []
        self._held: list[_Held] = []
        self._seen: set[str] = set()
        self._constant: dict[tuple[str, int, torch.device], Maps] = {}

    @property
    def clip_ids(self) -> list[str]:
        """Ids of all clips scored so far, in the order of arrival."""
        kept = [str(clip_id) for part in self._parts for clip_id in part["clip_id"]]
        return kept + [name for held in self._held for name in held.names]

    @torch.inference_mode()
    def add(
        self,
        clip_ids: Sequence[str],
        valid: Tensor,
        localization: Localization,
        truth: Sequence[Truth | None] | None,
        sources: Mapping[str, Source] | None = None,
        drawn: dict[tuple[str, int], TruthMaps] | None = None,
    ) -> Scored:
        """Score a batch; clips that are not valid (padding) are left out.

        sources: what the refinements give for the batch. drawn: truth maps of this batch, kept for further scorers.
        Under a protocol whose threshold comes from the whole set there is nothing to picture yet: the result is empty.
        Raises: UserError naming clips without truth, or with a map that is not finite. ValueError for a clip that
        was scored before.
        """
        positions = [place for place, counts in enumerate(valid.tolist()) if counts]
        names = [clip_ids[place] for place in positions]
        truths = _truths(names, positions, truth)
        self._claim(names)
        given = {"map": Source(localization.map, localization.bounds), **(sources or {})}
        wanted = {name for shares in self.mixtures.values() for name in shares}
        given = {
            name: Source(each.map[positions].float(), each.bounds, each.prior)
            for name, each in given.items()
            if name in wanted
        }
        for name, each in given.items():
            _check_finite(names, each.map, name)
        embeddings = localization.embeddings
        if embeddings is not None:
            embeddings = (embeddings[0][positions], embeddings[1][positions])
        elif wanting := [name for name, metric in self.metrics.items() if metric.wants_embeddings]:
            raise UserError(
                f"evaluate.metrics.{wanting[0]} compares embeddings of pictures and sounds, and the method gives none; "
                f"remove it with evaluate.metrics.{wanting[0]}=null"
            )
        native = given["map"].map
        scored = Scored(
            positions=positions,
            clip_ids=names,
            native=native,
            bounds=localization.bounds,
            protocol=self.protocol,
            truths=truths,
            columns={},
        )
        if not names:
            return scored
        if self.protocol.calibrated:
            if self._rules:
                raise ValueError("clips came after the threshold of the set was taken")
            on_cpu = {name: Source(each.map.cpu(), each.bounds, each.prior) for name, each in given.items()}
            if embeddings is not None:
                embeddings = (embeddings[0].cpu(), embeddings[1].cpu())
            self._held.append(_Held(names, truths, on_cpu, embeddings))
            return Scored(**{**vars(scored), "positions": [], "clip_ids": [], "truths": [], "native": native[:0]})
        drawn = {} if drawn is None else drawn
        key = self.protocol.drawing()
        if key not in drawn:
            drawn[key] = self.protocol.rasterise(truths, native.device)
        rows = self._rows_of(names, truths, drawn[key], given, embeddings)
        self._parts.append(rows)
        plain = {key: column for key, column in _of_source(_numbers(rows), "").items() if column.ndim == 1}
        chosen = {column for metric in self.metrics.values() for column in metric.columns}
        scored.columns.update({key: column for key, column in plain.items() if key in chosen})
        return scored

    def _claim(self, names: Sequence[str]) -> None:
        twice = [name for name in names if name in self._seen]
        if twice or len(set(names)) < len(names):
            raise ValueError(f"clips were scored twice: {_some(twice or list(names))}")
        self._seen.update(names)

    def _rows_of(
        self,
        names: list[str],
        truths: list[Truth],
        truth: TruthMaps,
        sources: Mapping[str, Source],
        embeddings: tuple[Tensor, Tensor] | None,
    ) -> Rows:
        """The rows of a batch of valid clips: facts, columns of every mixture, and those of the floors."""
        device, total = truth.covered.device, len(names)
        step = _CHUNK if device.type == "cpu" else total
        parts: list[dict[str, Tensor]] = []
        for first in range(0, total, step):
            chunk = slice(first, first + step)
            prepared: dict[tuple[int, str], Maps] = {}
            columns: dict[str, Tensor] = {}
            for variant, shares in self.mixtures.items():
                rule = self._rules.get(variant, self.protocol)
                mixed = self._mix(rule, shares, sources, chunk, prepared)
                if not variant and embeddings is not None:
                    mixed.embeddings = (embeddings[0][chunk], embeddings[1][chunk])
                columns |= self._columns(mixed, truth.part(chunk), rule, variant)
            parts.append(columns)
        rows = {key: torch.cat([part[key] for part in parts]).double().cpu().numpy() for key in parts[0]}
        if self.blind:
            native = sources["map"].map
            key = (str(self.protocol.settings()), self.protocol.config.name, *self.metrics, *native.shape[1:])
            rows |= self.floors.columns(key, names, lambda: self._blind(names, truth, native))
        return {**_facts(names, truths, truth, self.protocol), **rows}

    def _mix(
        self,
        rule: Protocol,
        shares: Mapping[str, float],
        sources: Mapping[str, Source],
        chunk: slice,
        prepared: dict[tuple[int, str], Maps],
    ) -> Maps:
        for name in shares:
            if (id(rule), name) not in prepared:
                source = sources[name]
                prepared[id(rule), name] = rule.prepare(source.map[chunk], source.bounds, prior=source.prior)
        if shares == {"map": 1.0}:
            return prepared[id(rule), "map"]
        return rule.mix(shares, {name: prepared[id(rule), name] for name in shares})

    def _columns(self, maps: Maps, truth: TruthMaps, rule: Protocol, source: str) -> dict[str, Tensor]:
        prefix = f"{source}." if source else ""
        columns: dict[str, Tensor] = {}
        for metric in self.metrics.values():
            columns |= {f"{prefix}{key}": value for key, value in metric.per_clip(maps, truth, rule).items()}
        return columns

    def _blind(self, names: Sequence[str], truth: TruthMaps, native: Tensor) -> dict[str, np.ndarray]:
        """The columns of maps that saw neither picture nor sound, and of the best foreground that is allowed."""
        parts: list[dict[str, Tensor]] = []
        step = _CHUNK if native.device.type == "cpu" else len(names)
        for first in range(0, len(names), step):
            chunk = slice(first, first + step)
            part = truth.part(chunk)
            columns: dict[str, Tensor] = {}
            for source in FLOORS:
                rule = self._rules.get(source, self.protocol)
                columns |= self._columns(self._blind_maps(source, names[chunk], native, rule), part, rule, source)
            for metric in self.metrics.values():
                best = metric.ceiling(part, self.protocol)
                columns |= {f"{CEILING}.{key}": value for key, value in best.items()}
            parts.append(columns)
        return {key: torch.cat([part[key] for part in parts]).double().cpu().numpy() for key in parts[0]}

    def _blind_maps(self, source: str, names: Sequence[str], native: Tensor, rule: Protocol) -> Maps:
        """The random map has the method's own resolution, so that resizing makes it as smooth as the method's maps."""
        if source == "random":
            return rule.prepare(random_maps(names, *native.shape[1:]).to(native.device))
        key = (source, id(rule), native.device)
        if key not in self._constant:
            self._constant[key] = rule.prepare(_constant(source, rule.size_px).to(native.device))
        return self._constant[key].repeat(len(names))

    @torch.inference_mode()
    def _release(self, device: torch.device | str = "cpu", *, together: bool = False) -> None:
        """Score the batches that waited for a threshold; together: it follows from the clips of all ranks."""
        if not self.protocol.calibrated or not (self._held or together):
            return
        maxima: Rows = {}
        for held in self._held:
            negative = np.array([_is_negative(truth) for truth in held.truths])
            for source, values in self._maxima(held).items():
                maxima[source] = np.concatenate([maxima.get(source, np.zeros(0)), values[negative]])
        parts = gather_rows(maxima, device) if together else [maxima]
        if not parts:
            return
        for source in parts[0]:
            self._rules[source] = self.protocol.at(np.concatenate([part[source] for part in parts]))
        held_batches, self._held = self._held, []
        for held in held_batches:
            truth = self.protocol.rasterise(held.truths)
            self._parts.append(self._rows_of(held.names, held.truths, truth, held.sources, held.embeddings))

    def _maxima(self, held: _Held) -> dict[str, np.ndarray]:
        """The largest value of every map, `(n,)` each: of the method's own before it is resized, as released."""
        native, whole = held.sources["map"].map, slice(0, len(held.names))
        found = {"": native}
        for variant, shares in self.mixtures.items():
            if variant:
                found[variant] = self._mix(self.protocol, shares, held.sources, whole, {}).resized
        if self.blind:
            same = {source: _constant(source, self.protocol.size_px) for source in FLOORS if source != "random"}
            found |= {source: drawn.expand(len(native), -1, -1) for source, drawn in same.items()}
            found["random"] = random_maps(held.names, *native.shape[1:])
        return {name: maps.flatten(1).amax(1).double().numpy() for name, maps in found.items()}

    def extend(self, rows: Rows) -> None:
        """Take rows that another scorer collected, or that were saved."""
        self._claim([str(clip_id) for clip_id in rows["clip_id"]])
        self._parts.append(rows)

    def gather(self, device: torch.device | str = "cpu") -> None:
        """Bring the rows of all ranks to every rank; each rank calls this once, after its last batch.

        device: where the process group wants its tensors. Without a process group nothing happens.
        """
        self._release(device, together=True)
        own = join_rows(self._parts) if self._parts else {}
        self._parts, self._seen = [], set()
        for rows in gather_rows(own, device):
            self.extend(rows)

    def rows(self) -> Rows:
        """The rows of all clips, sorted by clip id. Raises: UserError if there are none."""
        self._release()
        parts = [part for part in self._parts if len(part["clip_id"])]
        if not parts:
            raise UserError("no clip was scored: the split is empty")
        rows = join_rows(parts)
        for metric in self.metrics.values():
            rows = metric.finish(rows)
        return rows

    def result(
        self,
        *,
        id_hash: Callable[[Sequence[str]], str],
        expected: int | None = None,
        exclude: Collection[str] = (),
        variant: str = "",
    ) -> ScoreTable:
        """The table of all clips added. `id_hash` names a set of clip ids; `expected` is the size of the full set.

        exclude: ids of clips to leave out. variant: a name of `mixtures`, to score that map instead of the method's.
        Raises: UserError if nothing is left.
        """
        return self.results(id_hash=id_hash, expected=expected, exclude=exclude, variants=[variant])[variant]

    def results(
        self,
        *,
        id_hash: Callable[[Sequence[str]], str],
        expected: int | None = None,
        exclude: Collection[str] = (),
        variants: Iterable[str] | None = None,
    ) -> dict[str, ScoreTable]:
        """A table a variant (default: all `mixtures`); arguments as in `result`."""
        rows = self.rows()
        left_out = np.isin(rows["clip_id"], sorted(exclude))
        if left_out.all():
            raise UserError(f"all {len(left_out)} clips of the set were left out: nothing to score")
        rows = take_rows(rows, ~left_out)
        notes = _notes(rows)
        if left_out.any():
            notes.append(f"{int(left_out.sum())} clips were left out.")
        numbers = _numbers(rows)
        unit = units(rows["clip_id"], rows["group"])
        shared = {key: numbers[key] for key in ("truth_area", "negative")}
        found = len(unit)

        def reduced(source: str) -> dict[str, float]:
            own = _of_source(numbers, source)
            return self._reduce({**shared, **own}, unit) if own else {}

        floors = {source: reduced(source) for source in FLOORS} if self.blind else {}
        ceiling = reduced(CEILING)
        tables: dict[str, ScoreTable] = {}
        for variant in self.mixtures if variants is None else variants:
            own = {**shared, **_of_source(numbers, variant)}
            settings = {**self._rules.get(variant, self.protocol).settings(), **self._words(variant)}
            tables[variant] = ScoreTable(
                rows=_variant_rows(rows, variant),
                scores=self._reduce(own, unit),
                intervals=self._intervals(own, unit),
                floors=floors,
                ceiling=ceiling,
                found=found,
                expected=expected,
                empty=int(((rows["truth_area"] == 0) & (rows["negative"] == 0)).sum()),
                id_hash=id_hash([str(clip_id) for clip_id in rows["clip_id"]]),
                protocol=self.protocol.config.name,
                settings=settings,
                variant=variant,
                notes=list(notes),
            )
        return tables

    def _words(self, variant: str) -> dict[str, str]:
        """What was mixed, for reports."""
        used = [each.settings() for each in self.refinements if variant in each.mixtures(self.protocol)]
        used += [each.settings() for each in self.refinements if not each.mixtures(self.protocol)]
        if variant:
            used.insert(0, " + ".join(f"{share:g} {name}" for name, share in self.mixtures[variant].items()))
        return {"refinement": "; ".join(used)} if used else {}

    @property
    def rule(self) -> Protocol:
        """The protocol, with the threshold that followed from the whole set where it needs one."""
        self._release()
        return self._rules.get("", self.protocol)

    def reduce(self, rows: Rows) -> dict[str, float]:
        """The scores of rows of the plain map, which may be drawn anew; they hold `unit` beside the columns."""
        return self._reduce({key: column for key, column in rows.items() if key != "unit"}, rows["unit"])

    def _reduce(self, numbers: Mapping[str, np.ndarray], unit: np.ndarray) -> dict[str, float]:
        everything = {**numbers, "unit": unit}
        visible = numbers["negative"] == 0
        positive = everything if visible.all() else {key: column[visible] for key, column in everything.items()}
        scores: dict[str, float] = {}
        for metric in self.metrics.values():
            rows = everything if metric.on_negatives else positive
            # Only some metrics have floors or a ceiling: without its columns a metric has no say.
            needed = {*metric.final_columns, *(name for other in metric.needs for name in self.metrics[other].columns)}
            if needed <= numbers.keys() and len(rows["unit"]):
                scores |= metric.reduce(rows)
        return scores

    def _intervals(self, numbers: Mapping[str, np.ndarray], unit: np.ndarray) -> dict[str, tuple[float, float]]:
        """95% of the scores of as many clips drawn with replacement; clips of one group are drawn together."""
        draws: dict[str, list[float]] = {}
        for take, again in resamples(unit, self.bootstrap, self.seed):
            for name, value in self._reduce({key: column[take] for key, column in numbers.items()}, again).items():
                draws.setdefault(name, []).append(value)
        bounds = {name: np.percentile(values, (2.5, 97.5)) for name, values in draws.items()}
        return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}


class Scoreboard:
    """Several protocols over the same maps of one set: one pass of the method, one scorer a protocol."""

    def __init__(self, scorers: Sequence[Scorer], refinements: Sequence[Refinement] = ()) -> None:
        self.scorers = {scorer.protocol.config.name: scorer for scorer in scorers}
        self.refinements = list(refinements)

    def localize(self, localize: Localize, batch: Batch) -> Localization:
        """The method's maps, as the refinements that change how it is asked want them."""
        for refinement in self.refinements:
            localize = _bound(refinement, localize)
        return localize(batch)

    def add(self, batch: Batch, localization: Localization) -> Scored:
        """Score a batch under every protocol. Returns what the first one found, for pictures."""
        sources: dict[str, Source] = {}
        for refinement in self.refinements:
            if not sources.keys() >= set(refinement.provides):
                sources |= refinement.sources(batch, localization)
        return self.add_maps(batch.clip_id, batch.valid, localization, batch.truth, sources)

    def add_maps(
        self,
        clip_ids: Sequence[str],
        valid: Tensor,
        localization: Localization,
        truth: Sequence[Truth | None] | None,
        sources: Mapping[str, Source] | None = None,
    ) -> Scored:
        """As `add`, for maps that came without pictures."""
        drawn: dict[tuple[str, int], TruthMaps] = {}
        found = [each.add(clip_ids, valid, localization, truth, sources, drawn) for each in self.scorers.values()]
        return found[0]

    def gather(self, device: torch.device | str = "cpu") -> None:
        """Bring the rows of all ranks to every rank."""
        for scorer in self.scorers.values():
            scorer.gather(device)

    def tables(
        self,
        *,
        id_hash: Callable[[Sequence[str]], str],
        expected: int | None = None,
        exclude: Collection[str] = (),
    ) -> dict[tuple[str, str], ScoreTable]:
        """(protocol, variant) -> table; arguments as in `Scorer.result`."""
        return {
            (name, variant): table
            for name, scorer in self.scorers.items()
            for variant, table in scorer.results(id_hash=id_hash, expected=expected, exclude=exclude).items()
        }


def build_scorer(
    config: EvaluateConfig,
    *,
    protocol: str | None = None,
    blind: bool = True,
    facts: SetFacts | None = None,
    refinements: Iterable[Refinement] = (),
    floors: Floors | None = None,
) -> Scorer:
    """The scorer that a config asks for: with the protocol's usual metrics first, so that no table lacks what the
    protocol's papers report, then the config's.

    protocol: another one than the config's. blind: score floors, ceiling and intervals too; without them scoring costs
    least, as between epochs. Other arguments: see `Scorer`.
    """
    options: ComponentConfig = config.protocol
    if protocol is not None and protocol != options.name:
        options = component_config("model.protocols", protocol, {"truth": config.protocol.truth})
    kind = resolve("model.protocols", options.name)
    metrics: dict[str, Metric] = {}
    for name in (*kind.usual_metrics, *config.metrics):
        _add_metric(metrics, name, config.metrics)
    return Scorer(
        kind(options, facts),
        metrics,
        refinements=refinements,
        bootstrap=config.bootstrap if blind else 0,
        blind=blind,
        floors=floors,
    )


def build_scoreboard(
    config: EvaluateConfig,
    *,
    protocols: Sequence[str] = (),
    blind: bool = True,
    facts: SetFacts | None = None,
    refinements: Sequence[Refinement] = (),
    floors: Floors | None = None,
) -> Scoreboard:
    """The config's protocol first, then the named ones; arguments as in `build_scorer`."""
    names = dict.fromkeys([config.protocol.name, *protocols])
    floors = floors or Floors()
    scorers = [
        build_scorer(config, protocol=name, blind=blind, facts=facts, refinements=refinements, floors=floors)
        for name in names
    ]
    return Scoreboard(scorers, refinements)


def build_refinements(config: EvaluateConfig, device: torch.device | str, *, floor: bool = False) -> list[Refinement]:
    """The refinements that a config names. They keep what they computed for a clip: one list a test set.

    floor: the object prior too, as a floor, if none of them brings one.
    Raises: UserError if the weights of an object prior are not here and cannot be downloaded.
    """
    wanted = [resolve("model.refine", name)(options) for name, options in config.refine.items()]
    if floor and config.object_prior is not None and not any(PRIOR in each.provides for each in wanted):
        options = component_config("model.refine", "object_prior", {"network": config.object_prior})
        wanted.append(resolve("model.refine", "object_prior")(options))
    return [each.to(device).eval().requires_grad_(False) for each in wanted]


def _add_metric(metrics: dict[str, Metric], name: str, configured: Mapping[str, ComponentConfig]) -> None:
    """Add a metric after those that it needs."""
    if name not in metrics:
        kind = resolve("model.metrics", name)
        for needed in kind.needs:
            _add_metric(metrics, needed, configured)
        metrics[name] = kind(configured.get(name) or component_config("model.metrics", name, {}))


def _bound(refinement: Refinement, localize: Localize) -> Localize:
    return lambda batch: refinement.localize(localize, batch)


def _is_negative(truth: Truth) -> bool:
    return bool(truth.extra.get("negative", False))


def _truths(names: Sequence[str], positions: Sequence[int], truth: Sequence[Truth | None] | None) -> list[Truth]:
    """The truth of the valid clips. Raises: UserError naming those without."""
    truths: list[Truth] = []
    bare: list[str] = []
    for name, place in zip(names, positions, strict=True):
        item = truth[place] if truth is not None else None
        if item is None or (item.boxes is None and item.mask is None and not _is_negative(item)):
            bare.append(name)
        else:
            truths.append(item)
    if bare:
        raise UserError(
            f"{len(bare)} clip(s) have neither boxes nor a mask and cannot be scored: {_some(bare)}. Pack the "
            "split with its annotations, or leave it out of evaluate.sets"
        )
    return truths


def _check_finite(names: Sequence[str], maps: Tensor, source: str) -> None:
    # Both extremes are NaN where one value is. To look for them takes a tenth of looking at each value of a large map.
    finite = (maps.amin((1, 2)).isfinite() & maps.amax((1, 2)).isfinite()).tolist()
    if not all(finite):
        broken = [name for name, good in zip(names, finite, strict=True) if not good]
        what = "map" if source == "map" else f"map '{source}'"
        raise UserError(
            f"the {what} of {len(broken)} clip(s) is not finite: {_some(broken)}; these weights are unusable"
        )


def _facts(names: Sequence[str], truths: Sequence[Truth], truth: TruthMaps, protocol: Protocol) -> Rows:
    """The columns that are the same for every map."""
    return {
        "clip_id": np.array(names, dtype=np.str_),
        "label": np.array([item.label or "" for item in truths], dtype=np.str_),
        "group": np.array([item.group or "" for item in truths], dtype=np.str_),
        "truth_area": truth.area.cpu().numpy() / protocol.size_px**2,
        "negative": np.array([float(_is_negative(item)) for item in truths]),
        "odd_boxes": truth.odd_boxes,
        "flat_boxes": truth.flat_boxes,
    }


_FACTS = ("clip_id", "label", "group", "truth_area", "negative", "odd_boxes", "flat_boxes")


def _notes(rows: Rows) -> list[str]:
    """What is broken in the annotation of these clips, and what becomes of it."""
    names, notes = rows["clip_id"], []
    negative = rows["negative"] > 0
    for column, words in (
        ("odd_boxes", "have a coordinate far outside the picture; they are cut at its edge"),
        ("flat_boxes", "cover no pixel"),
    ):
        if rows[column].any():
            clips = [str(name) for name in names[rows[column] > 0]]
            notes.append(f"{int(rows[column].sum())} boxes of {len(clips)} clips {words}: {_some(clips)}.")
    empty = [str(name) for name in names[(rows["truth_area"] == 0) & ~negative]]
    if empty:
        notes.append(f"{len(empty)} clips have a truth without a pixel, which no foreground hits: {_some(empty)}.")
    if negative.any():
        notes.append(f"{int(negative.sum())} clips have a sound that nothing in the picture makes.")
    return notes


def _numbers(rows: Rows) -> Rows:
    return {key: column for key, column in rows.items() if column.dtype.kind == "f"}


def _of_source(numbers: Mapping[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """The columns of one map or of the ceiling, without its name; "": those of the method's own map."""
    if not source:
        return {key: column for key, column in numbers.items() if "." not in key}
    return {key.removeprefix(f"{source}."): column for key, column in numbers.items() if key.startswith(f"{source}.")}


def _variant_rows(rows: Rows, variant: str) -> Rows:
    """The rows of one map as if it were the method's own; "": all columns."""
    if not variant:
        return rows
    floors = {key: column for key, column in rows.items() if key.partition(".")[0] in (*FLOORS, CEILING)}
    return {**{key: rows[key] for key in _FACTS}, **_of_source(rows, variant), **floors}


def _constant(source: str, side: int) -> Tensor:
    """`(1, side, side)`: the blind map of every clip."""
    return centred_gaussian(side) if source == "centre" else torch.ones(1, side, side)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
