"""The harness: spread, ceilings, and rows that stay readable."""

import csv
import json
import math
import mmap
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.harness import Figure, half_interval, measure, report, stop_at, summary, time_left_s
from configs.errors import UserError


@pytest.mark.parametrize(("count", "quantile"), [(3, 4.3027), (5, 2.7764), (7, 2.4469), (10, 2.2622), (31, 2.0423)])
def test_the_interval_is_students(count: int, quantile: float):
    values = [0.0, 2.0] * (count // 2) + [1.0] * (count % 2)
    mean = sum(values) / count
    deviation = (sum((value - mean) ** 2 for value in values) / (count - 1)) ** 0.5
    assert half_interval(values) == pytest.approx(quantile * deviation / count**0.5, rel=0.002)


def test_a_figure_needs_rounds():
    with pytest.raises(UserError, match="2 rounds give no spread"):
        measure("x", {"a": lambda: 1}, 2)


def test_rows_are_appended_to_a_file_of_the_same_columns_only(tmp_path: Path):
    figures = measure("x", {"a": lambda: 10, "b": lambda: 20}, 3)
    for _ in range(2):
        report(figures, "a", tmp_path, {"clips": 10})
    with open(tmp_path / "x.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["variant"] for row in rows] == ["a", "b", "a", "b"] and {row["rounds"] for row in rows} == {"3"}
    with pytest.raises(UserError, match="rows with other columns"):
        report(figures, "a", tmp_path, {"clips": 10, "batch": 4})


def made(variant: str, value: float, **changes: object) -> Figure:
    figure = measure("x", {variant: lambda: 1}, 3)[0]
    return replace(figure, value=value, cpu_ms=1000 / value, **changes)


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    return {row["variant"]: row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}


@pytest.mark.parametrize(("unit", "by"), [("clips/s", "cpu"), ("GB/s", "wall"), ("s", "wall")])
def test_shares_and_ratios_follow_the_unit(unit: str, by: str, tmp_path: Path):
    speeds = {"limit": 100.0, "ours": 50.0, "usual": 10.0}
    figures = [made(name, 1 / speed if unit == "s" else speed, unit=unit, by=by) for name, speed in speeds.items()]
    report(figures, "limit", tmp_path, {}, field="usual")
    rows = read_rows(tmp_path / "x.jsonl")
    assert [rows[name]["share_of_ceiling"] for name in speeds] == pytest.approx([1.0, 0.5, 0.1])
    assert [rows[name]["times_field"] for name in speeds] == pytest.approx([10.0, 5.0, 1.0])
    assert re.fullmatch(r"\d{4}-\d\d", rows["ours"]["month"]) and rows["ours"]["commit"]
    table = summary(list(rows.values()))
    assert list(table.columns[0].cells) == ["x", "  ours"], "ceiling and the field's way stand in columns of their own"
    assert [next(iter(column.cells)) for column in table.columns[1:]] == [unit, "limit", "", "usual", ""]


def test_the_table_of_all_figures_fits_into_100_columns(tmp_path: Path):
    names = "a limit of this machine", "how the field does all of this", "batch 1024, 16 threads, roi, engines 0.75"
    figures = [made(name, 123_456_789.0, value_interval=12_345_678.0) for name in names]
    report(figures, names[0], tmp_path, {}, field=names[1], about="slavc negative-free pairs, 14 x 14 cells")
    console = Console(width=200)
    with console.capture() as printed:
        console.print(summary(list(read_rows(tmp_path / "x.jsonl").values())))
    lines = printed.get().splitlines()
    assert max(map(len, lines)) <= 100 and any("engines 0.75" in line for line in lines)


def test_the_unit_decides_what_the_value_is():
    rate, seconds = (measure("x", {"a": lambda: 4.0}, 3, unit=unit)[0] for unit in ("GB/s", "s"))
    assert rate.value > 4 and rate.by == "cpu" and seconds.value < 1 and seconds.by == "wall"


def test_a_figure_says_how_much_memory_its_own_rounds_took():
    def large() -> int:
        # A mapping, because the allocator may have as much in hand that earlier tests have freed.
        with mmap.mmap(-1, 200_000_000) as fresh:
            for page in range(0, len(fresh), mmap.PAGESIZE):
                fresh[page] = 1
        return 1

    first, second = measure("x", {"large": large, "small": lambda: 1}, 3)
    assert first.peak_mb > second.peak_mb + 150


def test_figures_of_too_few_rounds_are_not_printed():
    figures = measure("x", {"a": lambda: 1}, 3)
    with pytest.raises(UserError, match="2 rounds has no spread"):
        report([replace(figures[0], rounds=2)], None, None, {})


def test_after_the_deadline_only_the_rounds_that_make_a_figure_are_taken():
    stop_at(time.monotonic())
    try:
        assert measure("x", {"a": lambda: 1}, 9)[0].rounds == 3 and time_left_s() <= 0
    finally:
        stop_at(math.inf)
    assert measure("x", {"a": lambda: 1}, 9)[0].rounds == 9
