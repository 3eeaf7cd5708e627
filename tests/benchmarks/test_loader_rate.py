from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.loader_rate import training, windows
from configs.errors import UserError
from pipeline.batch import InputSpec
from pipeline.loader import PlannedLoader, build_loader
from pipeline.store import Store


@pytest.mark.parametrize("name", ["reference", "dali"])
def test_a_window_makes_no_batch_that_it_does_not_count(packed_store: Path, name: str):
    with Store(packed_store) as store:
        frontend = store.manifest["frontends"]["ez_vsl"]
    config = training(packed_store, frontend, batch_size=4, loader={"name": name, "prefetch": 3}, image={"size_px": 32})
    loader = build_loader(config, InputSpec(), "train", train=True)
    assert isinstance(loader, PlannedLoader)
    assert windows(loader, 4)() == 512
    seen = loader.stats()
    assert seen.batches == 128
    assert loader.bytes_read == seen.bytes_per_clip * 512, "nothing was made ahead of what was handed out"
    loader.close()


def test_it_prints_a_table_and_says_what_is_data_bound(packed_store: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["loader_rate", "--store", str(packed_store), "--rounds", "3", "--batch-size", "4", "--step-ms", "0.01"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("bare decode", "reference", "dali", "synthetic", "read only", "waiting for"))
    with pytest.raises(UserError, match="must be above 0"):
        main(["loader_rate", "--store", str(packed_store), "--batch-size", "0"])
