import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.__main__ import main
from benchmarks.make_store import jpeg, make, make_input, run, sound
from configs.errors import UserError
from configs.load import load_frontend
from pipeline.store import Store
from preprocess.options import PackConfig
from preprocess.pictures import plain_jpeg


def test_made_clips_have_the_sizes_of_real_ones():
    rng = np.random.default_rng(0)
    coded = [jpeg(rng) for _ in range(24)]
    assert all(plain_jpeg(data) == data for data in coded)  # stored as they are, as frames of a data set mostly are
    assert 18_000 < np.median([len(data) for data in coded]) < 30_000
    assert min(min(Image.open(io.BytesIO(data)).size) for data in coded) == 256
    samples = sound(rng, 2.0)
    assert samples.dtype == np.int16 and len(samples) == 32_000 and 1000 < np.abs(samples.astype(int)).max() < 32767


def test_clips_share_a_few_distinct_files(tmp_path: Path):
    make_input(tmp_path / "input", 10, distinct=3, seconds=1.0)
    files = sorted((tmp_path / "input" / "000").iterdir())
    assert len(files) == 20 and len({file.stat().st_ino for file in files}) == 6


def test_the_size_is_counted_before_packing(tmp_path: Path):
    config = PackConfig(frontends=(load_frontend("logmel64"),))
    packed, payload = make(tmp_path / "store", 9, 1.0, config, 0)
    with Store(tmp_path / "store") as store:
        names = ("frames/0", "spectrogram/logmel64", "waveform")
        stored = sum(store.view(number).blob(name).nbytes for number in range(9) for name in names)
    assert (packed, payload) == (9, stored)


def test_a_store_of_made_clips(tmp_path: Path):
    run(
        tmp_path / "store",
        3,
        None,
        clips=9,
        seconds=1.0,
        frontend=["ez_vsl"],
        no_waveform=True,
        pixels="both",
        workers=0,
    )
    with Store(tmp_path / "store") as store:
        assert len(store) == 9 and store.splits == ["test", "train"] and len(store.select("test")) == 1
        assert "waveform" not in store.view(0) and "raw/0" in store.view(0)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    with pytest.raises(UserError, match="is there already"):
        run(tmp_path / "store", 3, None, clips=9)


@pytest.mark.parametrize("words", [[], ["--store", "made", "--out", "rows"]])
def test_where_a_store_goes_must_be_said(words: list[str]):
    with pytest.raises(UserError, match="name a new folder with --store, and leave --out out"):
        main(["make_store", "--clips", "4", *words])
