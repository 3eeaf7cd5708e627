from pathlib import Path

import pytest

from benchmarks.__main__ import main
from configs.errors import UserError


def test_it_names_the_fastest_of_all_combinations(packed_store: Path, capsys: pytest.CaptureFixture[str]):
    command = ["decode_rate", "--store", str(packed_store), "--rounds", "3"]
    assert main([*command, "--threads", "1", "2", "--batch-size", "4"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("batch 4, 1") >= 2 and said.count("batch 4, 2") >= 2 and "fastest: batch 4, " in said
    with pytest.raises(UserError, match="must be above 0"):
        main([*command, "--threads", "0"])
