"""The harness: spread, ceilings, and rows that stay readable."""

import csv
from pathlib import Path

import pytest

from benchmarks.harness import half_interval, measure, report
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
