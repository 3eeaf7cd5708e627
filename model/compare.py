"""Differences between systems on the same clips: paired, with an interval and a p-value, and tables to paste."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from configs.errors import UserError
from configs.load import check
from configs.resolve import resolve
from configs.schema import EvaluateConfig
from model.protocol import SetFacts
from model.results import TRAINING_LIST, Results, SetResult, counted, label
from model.rows import Rows, take_rows, units
from model.rows import resamples as resampled
from model.scoring import Scorer, ScoreTable, build_scorer

Reduce = Callable[[Rows], dict[str, float]]

METHOD = (
    "Difference: the second minus the first, on the clips that both scored. Interval: 95% of the differences over {n} "
    "resamples of the clips, the same for both; clips of one group go together, seeds are not resampled. p: how often, "
    "in {n} random exchanges of the two systems' rows clip by clip, the difference is at least as large: "
    "(1 + hits) / (1 + {n}), two sided, not corrected for the number of lines."
)


@dataclass(frozen=True, kw_only=True)
class System:
    """One evaluation, or several whose runs differ by seed alone."""

    name: str
    runs: list[Results]

    @property
    def heading(self) -> str:
        """The name, and how many runs stand behind a mean."""
        return self.name if len(self.runs) == 1 else f"{self.name}, {len(self.runs)} seeds"

    def tables(self, set_name: str, protocol: str) -> list[ScoreTable]:
        """The table of every run; `protocol` is its label."""
        return [table_of(run.sets[set_name], protocol) for run in self.runs]

    def about(self, tables: Sequence[tuple[str, str]]) -> str:
        """What must be known before its scores on these tables are believed, in one line."""
        told = [run.facts.get("checkpoint", "not known how the weights were chosen") for run in self.runs]
        told += [f"trained on {run.facts[TRAINING_LIST]}" for run in self.runs if TRAINING_LIST in run.facts]
        if len(self.runs) > 1:
            seeds = ", ".join(str(run.config["seed"]) for run in self.runs)
            told.append(f"mean ± standard deviation over seeds {seeds}, alike in all else (--separate parts them)")
        for set_name, protocol in tables:
            for run, table in zip(self.runs, self.tables(set_name, protocol)):
                leak, refined = run.sets[set_name].leak, table.settings.get("refinement")
                if leak and not leak["related"]:
                    told.append(f"{set_name}: no clip of a video that was trained on")
                told += [f"{protocol}: {refined}"] if refined else []
                told += [f"warning: {set_name}: {warning.removesuffix('.')}" for warning in table.warnings]
        return f"{self.heading}: {'; '.join(dict.fromkeys(told))}."


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One score of two systems on one set under one protocol.

    names: of the systems. first, second: means over their runs; spread: standard deviations over runs, None for one
    run. p: None where the numbers of runs differ, so that their rows cannot be exchanged.
    """

    names: tuple[str, str]
    set: str
    protocol: str
    score: str
    clips: int
    first: float
    second: float
    spread: tuple[float | None, float | None]
    low: float
    high: float
    p: float | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several systems on the sets and protocols that all of them were scored with.

    tables: (set, label of the table). differences: of every system from the first.
    """

    systems: list[System]
    tables: list[tuple[str, str]]
    differences: list[Difference]
    resamples: int

    @property
    def method(self) -> str:
        """How the differences were made, for people."""
        return METHOD.format(n=self.resamples)

    @property
    def notes(self) -> list[str]:
        """A line a system, then a warning for every two that were scored on different clips of a set."""
        notes = [system.about(self.tables) for system in self.systems]
        first, *others = self.systems
        for other in others:
            for set_name, protocol in dict(reversed(self.tables)).items():
                one, two = (system.tables(set_name, protocol)[0] for system in (first, other))
                if one.id_hash != two.id_hash:
                    notes.append(
                        f"warning: {set_name}: {first.name} was scored on {one.found} clips and {other.name} on "
                        f"{two.found}, which are not the same ones; both scored {len(_shared_clips([one, two]))} of "
                        "them, and differences are over those alone."
                    )
        return notes

    def scores(self) -> tuple[list[str], list[list[str]]]:
        """Heads and lines: every score under every protocol, a column a system; mean and spread over its runs.

        What is the same for all systems stands once, else a value a system in their order.
        """
        heads = ["set", "protocol", "score", "clips"]
        for system in self.systems:
            heads += [system.heading, "95% interval"] if len(system.runs) == 1 else [system.heading]
        lines: list[list[str]] = []
        for set_name, protocol in self.tables:
            sides = [system.tables(set_name, protocol) for system in self.systems]
            firsts = [side[0] for side in sides]
            clips, ids = _once(map(counted, firsts)), _once(table.id_hash for table in firsts)
            for score in dict.fromkeys(score for side in sides for table in side for score in table.scores):
                cells = [cell for side in sides for cell in _score_cells(side, score)]
                blind = _once(_number(table.floors.get("centre", {}).get(score)) for table in firsts)
                ceiling = _once(_number(table.ceiling.get(score)) for table in firsts)
                lines.append([set_name, protocol, score, clips, *cells, blind, ceiling, ids])
        return [*heads, "blind centre", "ceiling", "ids"], lines

    def lines(self) -> tuple[list[str], list[list[str]]]:
        """Heads and lines of the differences; two systems name their columns, more of them their lines."""
        few = len(self.systems) == 2
        names = [system.heading for system in self.systems] if few else ["systems", "first", "second"]
        heads = ["set", "protocol", "score", "clips", *names, "difference", "95% interval", "p"]
        return heads, [_cells(line, named=not few) for line in self.differences]

    def files(self) -> dict[str, str]:
        """Suffix -> text, the same in Markdown, LaTeX and CSV: scores, differences, and what must be known of them."""
        scores, differences = self.scores(), self.lines()
        markdown = f"## Scores\n\n{render(*scores, 'md')}\n"
        markdown += "".join(f"- {note}\n" for note in self.notes)
        both, notes = [scores], self.notes
        if self.differences:
            markdown += f"\n## Differences\n\n{render(*differences, 'md')}\n{self.method}\n"
            both, notes = [scores, differences], [*notes, self.method]
        return {
            "md": markdown,
            "tex": "\n".join([*(render(*table, "tex") for table in both), *(f"{_tex(note)}\n" for note in notes)]),
            "csv": "\n".join(render(*table, "csv") for table in [*both, (["notes"], [[note] for note in notes])]),
        }


def compare(runs: Sequence[Results], resamples: int, *, separate: bool = False) -> Comparison:
    """The runs side by side: grouped into systems, then every system against the first.

    separate: make a system of every run, to compare seeds with each other.
    Raises: UserError if they share no set under one protocol, or a set was scored under other settings.
    """
    tables = shared_tables(runs)
    grouped = systems(runs, tables, separate=separate)
    first = grouped[0]
    found: list[Difference] = []
    for other in grouped[1:]:
        for set_name, protocol in tables:
            found += difference(
                (first.name, other.name),
                set_name,
                protocol,
                first.tables(set_name, protocol),
                other.tables(set_name, protocol),
                _reducer(first.runs[0], set_name, protocol),
                resamples=resamples,
            )
    return Comparison(systems=grouped, tables=tables, differences=found, resamples=resamples)


def scorer_of(run: Results, set_name: str, protocol: str) -> Scorer:
    """A scorer as it made a table of a run: the protocol and the metrics, without rows."""
    config = check(EvaluateConfig, run.config["evaluate"], f"the config of {run.where}")
    options = config.sets[run.sets[set_name].of]
    return build_scorer(config.for_set(options), protocol=protocol, facts=SetFacts(family=options.family), blind=False)


def _reducer(run: Results, set_name: str, protocol: str) -> Reduce:
    return scorer_of(run, set_name, table_of(run.sets[set_name], protocol).protocol).reduce


def systems(runs: Sequence[Results], tables: Sequence[tuple[str, str]], *, separate: bool) -> list[System]:
    """The runs grouped: those whose seeds differ and nothing else that these tables follow from are one system.

    Where two of a group have one seed, its runs stand apart: they differ by something that is not recorded.
    """
    alike: dict[str, list[Results]] = {}
    for number, run in enumerate(runs):
        seeded = not separate and "seed" in run.config
        alike.setdefault(_identity(run, tables) if seeded else str(number), []).append(run)
    groups: list[list[Results]] = []
    for members in alike.values():
        distinct = len({run.config.get("seed") for run in members}) == len(members)
        groups += [members] if distinct else [[run] for run in members]
    names = _names([members[0] for members in groups])
    return [System(name=name, runs=members) for name, members in zip(names, groups)]


def _names(runs: Sequence[Results]) -> list[str]:
    """A name of its own for each: the title, and where titles are alike the folder, the whole path, then a number."""
    names = [run.title for run in runs]
    for places in ([_folder(run) for run in runs], [str(run.where) for run in runs]):
        plain = [f"{run.title} ({place})" for run, place in zip(runs, places)]
        names = [name if names.count(name) == 1 else other for name, other in zip(names, plain)]
    counts = [names[: number + 1].count(name) for number, name in enumerate(names)]
    return [name if names.count(name) == 1 else f"{name} #{count}" for name, count in zip(names, counts)]


def _folder(run: Results) -> str:
    """The run folder of an evaluation inside it, else the evaluation's own."""
    folder = run.where.resolve()
    return folder.parent.name if folder.name.startswith("eval-") else folder.name


def _identity(run: Results, tables: Sequence[tuple[str, str]]) -> str:
    """What seeds of one system share: how they were trained, on which clips, chosen, and scored for these tables."""
    kept = {key: value for key, value in run.config.items() if key not in ("seed", "out", "evaluate")}
    kept["train"] = {key: value for key, value in kept.get("train", {}).items() if key not in ("device", "cpu_threads")}
    data = kept.get("data", {})
    kept["data"] = {key: value for key, value in data.items() if key not in ("store", "loader")}
    listed = run.facts.get(TRAINING_LIST, data.get("store"))
    # Seeds have their best epoch at different steps; the last epoch of one config is at one step.
    chosen = re.sub(r"^step \d+, (chosen by: best .*), epoch \d+$", r"\1", run.facts.get("checkpoint", ""))
    found = [table_of(run.sets[name], protocol) for name, protocol in tables]
    scored = [(_rules(table), table.settings.get("refinement"), table.id_hash) for table in found]
    return repr([sorted(kept.items()), listed, chosen, scored])


def _rules(table: ScoreTable) -> dict[str, str]:
    """The settings that compared tables share: not a system's refinement, nor a threshold that its own maps gave."""
    own = {"refinement", *(["foreground"] if resolve("model.protocols", table.protocol).calibrated else [])}
    return {key: words for key, words in table.settings.items() if key not in own}


def shared_tables(runs: Sequence[Results]) -> list[tuple[str, str]]:
    """(set, label) of the tables that every run has. Raises: UserError if there is none."""
    names = [[(name, label(table)) for name, result in run.sets.items() for table in result.tables] for run in runs]
    shared = [key for key in names[0] if all(key in other for other in names[1:])]
    if not shared:
        raise UserError(
            "the evaluations share no set under one protocol: "
            + "; ".join(f"{run.where}: {', '.join(f'{a} ({b})' for a, b in keys)}" for run, keys in zip(runs, names))
        )
    return shared


def table_of(result: SetResult, name: str) -> ScoreTable:
    """The table of a set with this label."""
    return next(table for table in result.tables if label(table) == name)


def difference(
    names: tuple[str, str],
    set_name: str,
    protocol: str,
    first: Sequence[ScoreTable],
    second: Sequence[ScoreTable],
    reduce: Reduce,
    *,
    resamples: int,
) -> list[Difference]:
    """Every score that both systems have, each given by the tables of its runs, on the clips that all of them scored.

    Raises: UserError if they share no clip, or were scored under other settings.
    """
    both = [*first, *second]
    for table in both[1:]:
        if _rules(table) != _rules(both[0]):
            raise UserError(f"{set_name}: protocol {protocol} was used with different settings; evaluate again")
    shared = sorted(_shared_clips(both))
    if not shared:
        raise UserError(f"{set_name}: no clip was scored by all")
    aligned = [_aligned(table.rows, shared) for table in both]
    unit = units(aligned[0]["clip_id"], aligned[0]["group"])
    numbers = [_numbers(rows) for rows in aligned]
    shared_columns = set.intersection(*(set(rows) for rows in numbers))  # of metrics that all of them were scored with
    numbers = [{key: column for key, column in rows.items() if key in shared_columns} for rows in numbers]
    a, b = numbers[: len(first)], numbers[len(first) :]
    scored = [[reduce({**rows, "unit": unit}) for rows in side] for side in (a, b)]
    found = _mean(scored[1], scored[0])
    draws = _bootstrap(a, b, unit, reduce, resamples)
    exchanged = _exchange(a, b, unit, reduce, resamples) if len(a) == len(b) else None
    lines = []
    for score in scored[0][0]:
        values = [np.array([run[score] for run in side]) for side in scored]
        low, high = np.percentile(draws[score], (2.5, 97.5))
        p = None
        if exchanged is not None:
            hits = np.abs(exchanged[score]) >= abs(found[score]) - 1e-12
            p = float((1 + hits.sum()) / (1 + resamples))
        lines.append(
            Difference(
                names=names,
                set=set_name,
                protocol=protocol,
                score=score,
                clips=len(shared),
                first=float(values[0].mean()),
                second=float(values[1].mean()),
                spread=(_spread(values[0]), _spread(values[1])),
                low=float(low),
                high=float(high),
                p=p,
            )
        )
    return lines


def _shared_clips(tables: Sequence[ScoreTable]) -> set[str]:
    return set.intersection(*({str(name) for name in table.rows["clip_id"]} for table in tables))


def _numbers(rows: Rows) -> Rows:
    """What a difference needs: names and blind maps would only be copied at every draw."""
    return {key: column for key, column in rows.items() if column.dtype.kind == "f" and "." not in key}


def _aligned(rows: Rows, clip_ids: Sequence[str]) -> Rows:
    place = {str(name): row for row, name in enumerate(rows["clip_id"])}
    return take_rows(rows, np.array([place[name] for name in clip_ids]))


def _mean(second: Sequence[Mapping[str, float]], first: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Score -> mean over the second's runs minus mean over the first's."""
    return {
        score: float(np.mean([run[score] for run in second]) - np.mean([run[score] for run in first]))
        for score in first[0]
    }


def _bootstrap(
    a: Sequence[Rows], b: Sequence[Rows], unit: np.ndarray, reduce: Reduce, resamples: int
) -> dict[str, np.ndarray]:
    draws: dict[str, list[float]] = {}
    for take, again in resampled(unit, resamples, seed=0):
        sides = [[reduce({**take_rows(rows, take), "unit": again}) for rows in side] for side in (a, b)]
        for score, value in _mean(sides[1], sides[0]).items():
            draws.setdefault(score, []).append(value)
    return {score: np.array(values) for score, values in draws.items()}


def _exchange(
    a: Sequence[Rows], b: Sequence[Rows], unit: np.ndarray, reduce: Reduce, resamples: int
) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(1)
    draws: dict[str, list[float]] = {}
    for _ in range(resamples):
        swap = draw.integers(2, size=unit.max() + 1, dtype=np.int64)[unit].astype(bool)
        sides: list[list[dict[str, float]]] = [[], []]
        for one, other in zip(a, b):
            for side, (kept, taken) in zip(sides, ((one, other), (other, one))):
                mixed = {key: np.where(_beside(swap, column), taken[key], column) for key, column in kept.items()}
                side.append(reduce({**mixed, "unit": unit}))
        for score, value in _mean(sides[1], sides[0]).items():
            draws.setdefault(score, []).append(value)
    return {score: np.array(values) for score, values in draws.items()}


def _beside(swap: np.ndarray, column: np.ndarray) -> np.ndarray:
    return swap if column.ndim == 1 else swap[:, None]


Style = Literal["md", "tex", "csv"]


def render(heads: Sequence[str], lines: Sequence[Sequence[str]], style: Style) -> str:
    """A table as Markdown, LaTeX (booktabs) or CSV text."""
    if style == "csv":
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([heads, *lines])
        return out.getvalue()
    if style == "md":
        rows = [heads, ["---"] * len(heads), *lines]
        return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |\n" for row in rows)
    rows = [" & ".join(_tex(cell) for cell in row) + r" \\" for row in [heads, *lines]]
    top = [rf"\begin{{tabular}}{{{'l' * len(heads)}}}", r"\toprule", rows[0], r"\midrule"]
    return "\n".join([*top, *rows[1:], r"\bottomrule", r"\end{tabular}", ""])


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    special |= {sign: rf"\{sign}" for sign in "&%$#_{}"}
    return "".join(special.get(sign, sign) for sign in text)


def _cells(line: Difference, *, named: bool) -> list[str]:
    return [
        line.set,
        line.protocol,
        line.score,
        str(line.clips),
        *([" / ".join(line.names)] if named else []),
        _with_spread(line.first, line.spread[0]),
        _with_spread(line.second, line.spread[1]),
        f"{line.second - line.first:+.4f}",
        f"{line.low:+.4f} to {line.high:+.4f}",
        _number(line.p),
    ]


def _spread(values: np.ndarray) -> float | None:
    """The standard deviation over runs; None for one run."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _with_spread(value: float, spread: float | None) -> str:
    return f"{value:.4f}" if spread is None else f"{value:.4f} ± {spread:.4f}"


def _score_cells(side: Sequence[ScoreTable], score: str) -> list[str]:
    """A system's value, and its interval if it is of one run."""
    if not all(score in table.scores for table in side):
        return ["-"] * (2 if len(side) == 1 else 1)
    values = np.array([table.scores[score] for table in side])
    cell = _with_spread(float(values.mean()), _spread(values))
    if len(side) > 1:
        return [cell]
    bounds = side[0].intervals.get(score)
    return [cell, "-" if bounds is None else f"{bounds[0]:.4f} to {bounds[1]:.4f}"]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _once(values: Iterable[str]) -> str:
    """One value where all are alike, else all of them."""
    each = list(values)
    return each[0] if len(set(each)) == 1 else " / ".join(each)
