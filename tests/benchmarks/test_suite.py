"""Several benchmarks in processes of their own: what cannot run is named, the rest runs and is counted."""

import csv
import json
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.suite import Part, missing, run_suite
from configs.errors import UserError

SMALL = {"device": "cpu", "batch_sizes": [2], "cells": [3], "dim": 4}


def test_modules_that_are_not_there_are_named():
    assert missing(("json", "no_such_module", "no_such_package.part", "importlib.util")) == [
        "no_such_module",
        "no_such_package.part",
    ]


def test_wrong_names_and_options_are_told():
    with pytest.raises(UserError, match=r"no benchmark 'loader'.*Did you mean"):
        main(["loader"])
    with pytest.raises(UserError, match="--quick goes with `all`"):
        main(["loader_rate", "--quick"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_the_gpu_suite_needs_a_gpu():
    with pytest.raises(UserError, match="this machine has none"):
        main(["gpu"])


def test_every_benchmark_is_listed_with_its_question(capsys: pytest.CaptureFixture[str]):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.strip().startswith(("Question:", "No question:")) for line in lines[1::2])
    assert {"ceilings", "loader_rate", "make_store"} <= set(lines[::2]) and "harness" not in lines[::2]


@pytest.mark.slow
def test_what_cannot_run_is_named_and_the_rest_is_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    parts = [
        Part(name="loader_rate", options={}),
        Part(name="kernel_rate", options=SMALL),
        Part(name="kernel_rate", options=SMALL | {"dim": -1}),
    ]
    rows = run_suite("some", parts, tmp_path / "no_store", 3, tmp_path / "out", None)
    said = capfd.readouterr().out
    assert said.count("could not run, see above") == 2 and "left out: loader_rate" in said
    assert {row["variant"] for row in rows} >= {"products", "plain", "chunked"}
    lines = (tmp_path / "out" / "some.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows
    with open(tmp_path / "out" / "some.csv", encoding="utf-8") as file:
        assert [row["variant"] for row in csv.DictReader(file)] == [row["variant"] for row in rows]
    assert len(list((tmp_path / "out").iterdir())) == 2
