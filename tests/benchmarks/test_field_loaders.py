from pathlib import Path

import pytest

from benchmarks.__main__ import main
from configs.errors import UserError

pytest.importorskip("scipy")


@pytest.mark.slow  # it packs a store
@pytest.mark.filterwarnings(r"ignore:unclosed file .*clips\.tar:ResourceWarning")  # WebDataset leaves them open
def test_ours_stands_beside_each_way_of_the_field(packed_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    asked = ["field_loaders", "--store", str(packed_store), "--rounds", "3", "--clips", "6"]
    assert main([*asked, "--ways", "SIRA", "SSL-Align, 3 views", "--out", str(tmp_path)]) == 0
    rows = (tmp_path / "field_loaders.csv").read_text().splitlines()[1:]
    assert len([row for row in rows if ",ours for SIRA," in row]) == 1 and len(rows) >= 3 + 3 + 3
    assert "ours for SSL-Align, 3 views" in " ".join(capsys.readouterr().out.split())


def test_wrong_options_are_named(packed_store: Path):
    asked = ["field_loaders", "--store", str(packed_store)]
    with pytest.raises(UserError, match=r"no loader of the field named 'SIRO'.*Did you mean 'SIRA'"):
        main([*asked, "--ways", "SIRO"])
    with pytest.raises(UserError, match="--clips must be at least 4"):
        main([*asked, "--clips", "1"])
