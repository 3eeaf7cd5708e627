from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.ceilings import matrix_products, page_cache, record_copies


def test_what_is_copied_is_what_is_counted(tmp_path: Path):
    for name, size in (("a", 3000), ("b", 5000)):
        (tmp_path / name).write_bytes(bytes(size))
    files = [tmp_path / "a", tmp_path / "b"]
    assert page_cache(files)() == pytest.approx(8000e-9)
    assert page_cache(files, 4000)() == pytest.approx(4000e-9), "all of the first file, and the beginning of the other"
    values = {0: memoryview(bytes(100)), 1: memoryview(bytes(300))}
    seen: list[int] = []

    def value(number: int) -> memoryview:
        seen.append(number)
        return values[number]

    run = record_copies(value, [1, 0], 900)
    seen.clear()
    assert run() == pytest.approx(1100e-9) and seen == [1, 0, 1, 0, 1], "around and around"


def test_products_leave_the_precision_of_others_alone():
    before = torch.get_float32_matmul_precision()
    assert matrix_products("fp32", "cpu")() == pytest.approx(2 * 1024**3 / 1e12)
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.slow
def test_it_measures_every_limit_of_a_cpu(packed_store: Path, capsys: pytest.CaptureFixture[str]):
    threads = torch.get_num_threads()
    try:
        assert main(["ceilings", "--store", str(packed_store), "--rounds", "3", "--device", "cpu"]) == 0
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().out
    expected = ("memory to memory", "pages of the shards", "records through LMDB", "JPEG decode", "products, bf16")
    assert all(name in said for name in expected)
    assert np.isfinite(matrix_products("bf16", "cpu")())
