"""Scores as tables in a terminal."""

import sys
from collections.abc import Sequence
from itertools import accumulate

from rich import box
from rich.console import Console
from rich.table import Table

from model.compare import Comparison
from model.results import SetResult, counted, label
from model.scoring import ScoreTable


def make_console() -> Console:
    """A console for people; a log file has no width of its own."""
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def print_result(console: Console, name: str, result: SetResult) -> None:
    """The scores of one set beside what a map scores that saw nothing, then the other protocols', then the notes."""
    first = result.tables[0]
    _print_table(console, name, first)
    if len(result.tables) > 1:
        _print_protocols(console, name, result.tables)
    for note in first.notes:
        console.print(note, soft_wrap=True)
    for warning in first.warnings:
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True)


def _print_protocols(console: Console, name: str, tables: Sequence[ScoreTable]) -> None:
    """The first table's scores under every protocol, as many as fit, with the blind centre's behind the first of them;
    then the first of each protocol's own.
    """
    common = list(tables[0].scores)
    room = console.width - _BESIDE_SCORES - max(len(label(table)) for table in tables)
    widths = accumulate(max(len(score), len("0.0000")) + 2 for score in common)
    fitting = max(1, sum(width <= room for width in widths))
    scores, left = common[:fitting], common[fitting:]
    shown = Table(title=f"{name}: the same maps, read in other ways", box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("protocol", no_wrap=True)
    for heading in (scores[0], "blind centre", *scores[1:]):
        shown.add_column(heading, justify="right")
    shown.add_column("its own first score", no_wrap=True)
    for table in tables:
        blind = table.floors.get("centre", {}).get(scores[0])
        numbers = [table.scores.get(scores[0]), blind, *(table.scores.get(score) for score in scores[1:])]
        own = next((f"{score} {value:.4f}" for score, value in table.scores.items() if score not in common), "")
        shown.add_row(label(table), *("" if number is None else f"{number:.4f}" for number in numbers), own)
    console.print(shown)
    if left:
        console.print(f"and, in the report: {', '.join(left)}", soft_wrap=True)


_BESIDE_SCORES = 46
"""Characters that the other columns of a table over protocols take, but for the protocol's name."""


def _print_table(console: Console, name: str, table: ScoreTable) -> None:
    shown = Table(
        title=f"{name}: {counted(table)} clips, protocol {label(table)}",
        caption=f"ids {table.id_hash}; " + "; ".join(f"{key}: {value}" for key, value in table.settings.items()),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    shown.add_column("score", no_wrap=True)
    for heading in ("value", "95% interval", *table.floors, "ceiling"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for score, value in table.scores.items():
        low, high = table.intervals.get(score, (None, None))
        floors = [scores.get(score) for scores in table.floors.values()]
        shown.add_row(
            score,
            f"{value:.4f}",
            f"{low:.3f}-{high:.3f}" if low is not None else "",
            *("" if number is None else f"{number:.4f}" for number in [*floors, table.ceiling.get(score)]),
        )
    console.print(shown)


def print_comparison(console: Console, comparison: Comparison) -> None:
    """The scores and the differences as Markdown, ready to paste."""
    for system in comparison.systems:
        folders = ", ".join(str(run.where) for run in system.runs)
        console.print(f"{system.name}: {folders}", soft_wrap=True, markup=False)
    console.print(f"\n{comparison.files()['md']}", soft_wrap=True, markup=False, end="")
