from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.first_step import STAGES, figures_of, timed_run
from configs.errors import UserError


def test_a_stage_is_the_median_of_its_runs():
    runs = [
        dict.fromkeys(("all, to the first step", *STAGES), (seconds, seconds / 2)) | {"peak_mb": (100 * seconds, 0.0)}
        for seconds in (1.0, 2.0, 4.0)
    ]
    figures = figures_of("startup", "eager", runs)
    assert [figure.variant for figure in figures][:2] == ["eager: all, to the first step", "eager: imports"]
    assert {(figure.value, figure.cpu_ms, figure.peak_mb, figure.rounds) for figure in figures} == {(2, 1000, 400, 3)}


@pytest.mark.slow  # it starts processes
def test_it_tells_the_stages_of_a_start(packed_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    asked = ["startup", "--store", str(packed_store), "--rounds", "3", "--batch", "2", "--device", "cpu"]
    assert main([*asked, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "startup.csv").read_text().count("eager: ") == 1 + len(STAGES)
    assert "s to the first step, of which" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_a_run_that_fails_says_why():
    with pytest.raises(UserError, match=r"failed:.*no_such_preset"):
        timed_run(["no_such_preset"])


def test_a_start_needs_rounds(packed_store: Path):
    with pytest.raises(UserError, match="2 rounds give no spread"):
        main(["startup", "--store", str(packed_store), "--rounds", "2"])
