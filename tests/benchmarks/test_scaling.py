from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import scaling
from benchmarks.__main__ import main
from benchmarks.harness import measure
from benchmarks.scaling import doubled, said
from configs.errors import UserError


def test_the_spread_is_that_between_the_fastest_and_the_slowest():
    (one,) = measure("scaling", {"a": lambda: 1}, 3, by="wall")
    figures = [replace(one, variant=f"{n} clips", value=value, value_interval=1.0) for n, value in ((1, 100), (9, 80))]
    assert said("clips", figures).startswith("1 clips x1.00, 9 clips x0.80: the slowest is 20% below the fastest")
    assert said("threads", figures) == "1 clips x1.00, 9 clips x0.80"


def test_values_double_up_to_the_most():
    assert doubled(1) == [1] and doubled(6) == [1, 2, 4, 6] and doubled(8) == [1, 2, 4, 8]


def test_threads_and_parts_of_a_store(
    packed_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(scaling, "_WINDOW_CLIPS", 16)
    asked = ["scaling", "--store", str(packed_store), "--rounds", "3", "--device", "cpu", "--axes", "threads", "clips"]
    assert main([*asked, "--threads", "1", "2", "--sizes", "4", "99", "--out", str(tmp_path)]) == 0
    rows = (tmp_path / "scaling.csv").read_text()
    assert all(f"scaling,{name}," in rows for name in ("1 threads", "2 threads", "4 clips", "16 clips"))
    assert "below the fastest" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow  # it starts processes, and packs a store
def test_ranks_and_made_stores(packed_store: Path, capsys: pytest.CaptureFixture):
    asked = ["scaling", "--store", str(packed_store), "--rounds", "3", "--device", "cpu", "--axes", "ranks", "clips"]
    assert main([*asked, "--ranks", "1", "2", "--made", "8", "16"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 ranks x" in said and "16 clips x" in said


def test_wrong_options_are_named(packed_store: Path):
    with pytest.raises(UserError, match="must be above 0"):
        main(["scaling", "--store", str(packed_store), "--threads", "0"])
