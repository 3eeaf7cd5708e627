"""From scored maps to what people read: tables with what must be known of them, pictures, files."""

import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.schema import EvaluateSet
from model.compare import Comparison, scorer_of, table_of
from model.gallery import (
    Excerpt,
    Gallery,
    KeptMaps,
    build_gallery,
    choose,
    disagreements,
    safe_name,
    write_overlays,
)
from model.honesty import Leak, TrainingList
from model.refinement import PRIOR
from model.report import write_report
from model.results import Results, SetResult, write_results
from model.scoring import Scoreboard, Scorer, ScoreTable

IdHash = Callable[[Iterable[str]], str]

PICTURES = 12
"""Clips a section of the page of a comparison."""
LARGEST_KEPT_PX = 64
"""Maps of larger sides are not saved beside the scores."""


@dataclass(kw_only=True)
class Scores:
    """One set, scored: its board, which can score any part of it again, and the maps for pictures."""

    board: Scoreboard
    outside: set[str]
    maps: KeptMaps
    notes: Sequence[str] = ()

    def tables(self, id_hash: IdHash, expected: int | None, without: Iterable[str] = ()) -> list[ScoreTable]:
        """The tables of the set, first the chosen protocol's. without: clips to leave out."""
        found = self.board.tables(id_hash=id_hash, expected=expected, exclude=self.outside | set(without))
        networks = [each.settings() for each in self.board.refinements if PRIOR in each.provides]
        told = {key: _beside_prior(table, found, networks) for key, table in found.items()}
        only_floor = {variant for _, variant in told} == {"", PRIOR}
        return [table for (_, variant), table in told.items() if not (only_floor and variant == PRIOR)]


def first_scorer(board: Scoreboard) -> Scorer:
    """The scorer of the chosen protocol."""
    return next(iter(board.scorers.values()))


def leave_out_unfit(board: Scoreboard) -> list[str]:
    """Drop the further protocols that take their threshold from clips with negative sounds, if there are none. Returns
    what to tell of it.
    """
    chosen = first_scorer(board)
    unfit = [name for name, each in board.scorers.items() if each is not chosen and each.protocol.calibrated]
    if not unfit or chosen.rows()["negative"].any():
        return []
    board.scorers = {name: each for name, each in board.scorers.items() if name not in unfit}
    return [f"Not scored under {', '.join(unfit)}: no clip here has a sound that nothing in the picture makes."]


def _beside_prior(
    table: ScoreTable, tables: Mapping[tuple[str, str], ScoreTable], networks: Sequence[str]
) -> ScoreTable:
    """The table with the object prior, where one was scored, among its blind floors. networks: what it was made by."""
    prior = tables.get((table.protocol, PRIOR))
    if prior is None or table is prior:
        return table
    note = f"Floor '{PRIOR}': {'; '.join(networks)}."
    return replace(table, floors={**table.floors, PRIOR: prior.scores}, notes=[*table.notes, note])


def complete(
    name: str,
    options: EvaluateSet,
    scores: Scores,
    known: TrainingList | None,
    id_hash: IdHash,
    *,
    selection: str = "",
    warnings: Sequence[str] = (),
    exclude_leaked: bool,
) -> dict[str, SetResult]:
    """The results of a set with what a reader must know, and those of its clean rest, if asked for.

    selection: how the checkpoint was chosen. warnings: what else to say.
    """
    tables = scores.tables(id_hash, options.expected)
    clip_ids = [str(clip_id) for clip_id in tables[0].rows["clip_id"]]
    leak = known.leak(clip_ids) if known else None
    notes, warnings = list(scores.notes), list(warnings)
    if PRIOR not in tables[0].floors:
        notes.append("The object prior, a floor that sees the picture and hears nothing, was not scored.")
    if options.expected is not None and len(clip_ids) < options.expected:
        warnings.append(f"{options.expected - len(clip_ids)} clips of the full set are missing: compare with care.")
    if options.expected is not None and len(clip_ids) > options.expected:
        warnings.append(
            f"{len(clip_ids) - options.expected} clips more than the full set has: not its published score."
        )
    if any(re.search(rf"\b{re.escape(word)}\b", selection) for word in (name, *options.splits)):
        warnings.append(f"The checkpoint was chosen by its score here ({selection}): the score is too good.")
    if leak is None:
        warnings.append("Not known which clips were trained on: name the training list with --trained-on.")
    else:
        (warnings if leak.related.any() else notes).append(leak.sentence)

    def result(tables: Sequence[ScoreTable], notes: list[str], warnings: list[str], leak: Leak | None) -> SetResult:
        told = [replace(each, notes=[*each.notes, *notes], warnings=[*each.warnings, *warnings]) for each in tables]
        return SetResult(of=name, about=options.about, tables=told, leak=leak.counts if leak else None)

    if exclude_leaked and leak and leak.related.all():
        warnings.append("All clips are related to the training list: --exclude-leaked leaves none to score.")
    found = {name: result(tables, notes, warnings, leak)}
    if exclude_leaked and known and leak and leak.related.any() and not leak.related.all():
        seen = {clip_id for clip_id, related in zip(clip_ids, leak.related) if related}
        rest = known.leak([clip_id for clip_id in clip_ids if clip_id not in seen])
        found[f"{name}_unseen"] = result(scores.tables(id_hash, None, without=seen), [rest.sentence], [], rest)
    return found


def write(
    out: Path,
    results: Results,
    scored: Mapping[str, Scores],
    *,
    excerpt: Callable[[str], Excerpt] | None,
    config_yaml: str,
    gallery: int,
    history: Sequence[Mapping[str, Any]] = (),
    curves: Path | None = None,
) -> None:
    """Write scores, rows, maps and the report into `out`; pictures too where a store has them.

    gallery: clips a section. curves: a picture of the training, which need not exist. Raises: UserError if the disk
    does not take them.
    """
    galleries: dict[str, Gallery] = {}
    for name, scores in scored.items():
        if excerpt is not None:
            rows = results.sets[name].tables[0].rows
            systems = {"map": (scores.maps, rows)}
            galleries[name] = build_gallery(choose(rows, gallery), first_scorer(scores.board).rule, systems, excerpt)
    try:
        out.mkdir(parents=True, exist_ok=True)
        saved: dict[int, str] = {}  # sets of one pass share their maps
        for name, scores in scored.items():
            if id(scores.maps) not in saved and 0 < scores.maps.largest_side <= LARGEST_KEPT_PX:
                saved[id(scores.maps)] = f"maps_{safe_name(name)}.npz"
                scores.maps.save(out / saved[id(scores.maps)])
        files = {name: saved.get(id(scores.maps)) for name, scores in scored.items()}
        sets = {name: replace(result, maps=files.get(name)) for name, result in results.sets.items()}
        write_results(out, replace(results, sets=sets))
        for name, pictures in galleries.items():
            write_overlays(out / "overlays" / safe_name(name), pictures)
        write_report(
            out / "report.html",
            results=results,
            galleries=galleries,
            config_yaml=config_yaml,
            history=history,
            curves=curves.read_bytes() if curves and curves.is_file() else None,
        )
    except OSError as error:
        raise UserError(f"cannot write the results to {out}: {error.strerror or error}") from error


def disagreement_galleries(
    comparison: Comparison, excerpt: Callable[[str], Excerpt], stored: Container[str]
) -> dict[str, Gallery]:
    """Set -> the clips on which the first runs of the first two systems differ most, with both maps.

    stored: the clips that `excerpt` knows.
    """
    galleries: dict[str, Gallery] = {}
    runs = {system.name: system.runs[0] for system in comparison.systems[:2]}
    for name, protocol in dict(reversed(comparison.tables)).items():
        if len(runs) < 2 or any(run.sets[name].maps is None for run in runs.values()):
            continue
        maps = {title: KeptMaps.load(run.where / str(run.sets[name].maps)) for title, run in runs.items()}
        rows = {title: table_of(run.sets[name], protocol).rows for title, run in runs.items()}
        sections = disagreements(*rows.values(), PICTURES)
        kept = {title: [each for each in ids if each in stored] for title, ids in sections.items()}
        rule = scorer_of(next(iter(runs.values())), name, protocol).rule
        galleries[name] = build_gallery(kept, rule, {each: (maps[each], rows[each]) for each in runs}, excerpt)
    return galleries
