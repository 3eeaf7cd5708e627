"""The page says what the rows say, and every row says where it comes from."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.harness import MIN_ROUNDS
from benchmarks.page import (
    BLOCKS,
    COURSE,
    HERE,
    PLOTS,
    TARGETS,
    draw,
    file_rows,
    hardware_name,
    read_rows,
    remade,
    rows_hash,
    rows_of,
)
from configs.errors import UserError

RESULTS = HERE / "results"
ROWS = read_rows(RESULTS)


def test_the_page_is_made_from_the_rows():
    page = (HERE / "README.md").read_text(encoding="utf-8")
    assert remade(page, ROWS) == page, "run `python -m benchmarks page`"
    assert sorted(re.findall(r"<!-- begin (\w+) -->", page)) == sorted(BLOCKS)
    assert ROWS and all(target.number in page for target in TARGETS)


def test_plots_are_of_these_rows():
    shown = {name for name in PLOTS if rows_of(name, ROWS)}
    assert {path.name.rpartition("-")[0] for path in RESULTS.glob("*.svg")} == shown
    for name in shown:
        for variant in ("light", "dark"):
            drawn = (RESULTS / f"{name}-{variant}.svg").read_text(encoding="utf-8")
            assert rows_hash(rows_of(name, ROWS)) in drawn, "run `python -m benchmarks page`"


def test_every_row_says_where_it_comes_from():
    for row in ROWS:
        assert {"benchmark", "variant", "unit", "value", "cpu_ms", "cpu", "cores", "python", "torch"} <= row.keys()
        assert re.fullmatch(r"[0-9a-f]{12}\+?", row["commit"]), row
        name = f"{row['benchmark']}-{hardware_name(row.get('gpu') or row['cpu'])}-{row['month']}.csv"
        assert row["file"] == name
        assert row["benchmark"] == COURSE or int(row["rounds"]) >= MIN_ROUNDS


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Intel(R) Xeon(R) Processor", "xeon"),
        ("AMD EPYC 7B13 64-Core Processor", "epyc_7b13"),
        ("NVIDIA H200", "h200"),
        ("Intel(R) Core(TM) i7-9700K CPU @ 3.60GHz", "core_i7_9700k"),
    ],
)
def test_hardware_is_named_in_short(model: str, name: str):
    assert hardware_name(model) == name


def test_rows_are_filed_shown_and_drawn(tmp_path: Path):
    written = {"benchmark": "loader_rate", "unit": "clips/s", "value": 1000.0, "value_interval": 5.0, "cpu_ms": 0.4321,
               "cpu_ms_interval": 0.01, "rounds": 5, "note": "", "share_of_ceiling": None, "times_field": None,
               "month": "2031-02", "commit": "0" * 12, "cpu": "Some CPU", "cores": 2, "gpu": None,
               "python": "3.11.0", "torch": "2.10.0", "batch": 64}  # fmt: skip
    variants = [written | {"variant": name} for name in ("bare decode", "dali, jpeg", "dali, raw")]
    lines = tmp_path / "quick.jsonl"
    lines.write_text("".join(f"{json.dumps(row)}\n" for row in variants), encoding="utf-8")
    (file,) = file_rows([lines], tmp_path)
    assert file.name == "loader_rate-some-2031-02.csv"
    assert file_rows([lines], tmp_path) == [file] and len(read_rows(tmp_path)) == 3  # replaced, not doubled
    blocks = ("<!-- begin targets -->", "<!-- end targets -->", "<!-- begin figures -->", "old", "<!-- end figures -->")
    page = remade("\n".join(blocks), read_rows(tmp_path))
    assert "old" not in page and "| dali, jpeg | 1,000 ± 5 clips/s | 0.432 ± 0.01 |" in page
    assert "| dali, jpeg: 0.432 ± 0.01 (loader_rate-some-2031-02) |" in page and "| not measured: needs a GPU |" in page
    assert [path.name for path in draw(read_rows(tmp_path), tmp_path)] == [
        "loader_rate-light.svg",
        "loader_rate-dark.svg",
    ]
    lines.write_text("{}\n", encoding="utf-8")
    with pytest.raises(UserError, match="holds no rows of a benchmark"):
        file_rows([lines], tmp_path)
