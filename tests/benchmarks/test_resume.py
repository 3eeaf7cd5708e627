from pathlib import Path

import pytest

from benchmarks.__main__ import main


@pytest.mark.slow  # it starts processes
def test_it_saves_reads_and_goes_on(packed_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    asked = ["resume", "--store", str(packed_store), "--rounds", "3", "--batch", "4", "--device", "cpu"]
    assert main([*asked, "--out", str(tmp_path)]) == 0
    rows = (tmp_path / "resume.csv").read_text()
    assert all(f"resume,{name}," in rows for name in ("write", "read", '"first batch, middle"', "--resume: imports"))
    assert "first step, step 3," in " ".join(capsys.readouterr().out.split()), (
        "16 clips are 4 steps, it was saved after 2"
    )
