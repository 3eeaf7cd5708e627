from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.read_rate import _blob_names, _file_reads, _part
from pipeline.store import Store


def test_it_prints_both_tables(packed_store: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["read_rate", "--store", str(packed_store), "--rounds", "3", "--megabytes", "2"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("records, in order", "records, at random", "picture and window", "files"))
    assert "GB/s (wall)" in said and "clips/s (wall)" in said and said.count("100.0%") == 2


def test_a_part_is_a_picture_and_a_third_of_the_sound(packed_store: Path, tmp_path: Path):
    with Store(packed_store) as store:
        view = store.view(0)
        picture, sound = _blob_names(view)
        assert picture == "frames/0" and sound.startswith("spectrogram/")
        assert len(_part(view, picture)) == view.blob(picture).nbytes
        assert 0.25 < len(_part(view, sound)) / view.blob(sound).nbytes < 0.35
        assert _file_reads(tmp_path, store, [0, 1], [picture, sound])() == 2
        files = sorted(path.stat().st_size for path in tmp_path.iterdir())
        assert files == sorted(store.view(number).blob(name).nbytes for number in (0, 1) for name in (picture, sound))
