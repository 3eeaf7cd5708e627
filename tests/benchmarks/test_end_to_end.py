from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.end_to_end import disk_reads, verdict
from configs.errors import UserError
from pipeline.store import Store

FACTS = {"precision": "fp32", "compiled": False, "device": "cuda", "workers": 2}


@pytest.mark.parametrize(
    ("step", "loader", "copy", "disk", "wanted", "unwanted"),
    [
        (100, 900, 5000, None, ["bound by the step", "train.precision=bf16"], "disk"),
        (900, 100, 5000, None, ["bound by the loader", "data.loader.threads=8"], "bf16"),
        (900, 800, 95, None, ["bound by the copy", "resident"], "threads"),
        (100, 900, 5000, 20, ["from disk alone only 20", "data.warm_up"], "threads"),
    ],
)
def test_the_verdict_names_the_slowest_part_and_an_option(
    step: float, loader: float, copy: float, disk: float | None, wanted: list[str], unwanted: str
):
    rates = {"training": 95.0, "step": step, "loader": loader, "copy": copy} | ({"disk": disk} if disk else {})
    said = verdict(rates, 0.02, FACTS, 8)
    assert all(words in said for words in wanted) and unwanted not in said
    assert "waiting for data 2% of the time" in said


def test_reading_from_disk_counts_whole_records(packed_store: Path):
    with Store(packed_store) as store:
        clips = len(store)
    assert disk_reads(packed_store)() == pytest.approx(clips)
    assert disk_reads(packed_store, 1)() < clips


@pytest.mark.slow  # it trains, and starts a process
def test_training_stands_beside_its_parts(packed_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    asked = ["end_to_end", "--store", str(packed_store), "--rounds", "3", "--device", "cpu", "--out", str(tmp_path)]
    small = ["--batch", "2", "--steps", "1", "--workers", "1"]
    assert main([*asked, *small, "--set", "data.audio.duration_s=1.0"]) == 0
    rows = (tmp_path / "end_to_end.csv").read_text()
    parts = ["training", "step", "loader", "disk"] + ["field's way"] * (find_spec("scipy") is not None)
    assert all(f"end_to_end,{part}," in rows for part in parts)
    said = " ".join(capsys.readouterr().out.split())
    assert "bound by the" in said and "clips/s" in said


def test_wrong_options_are_named(packed_store: Path):
    with pytest.raises(UserError, match="must be above 0"):
        main(["end_to_end", "--store", str(packed_store), "--workers", "-1", "--device", "cpu"])
