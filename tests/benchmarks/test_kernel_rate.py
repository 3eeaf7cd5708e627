import pytest
import torch

from benchmarks.__main__ import main
from configs.errors import UserError

SMALL = ["--device", "cpu", "--batch-sizes", "4", "--cells", "6", "--dim", "8"]


@pytest.mark.slow  # it compiles
def test_it_measures_every_form_that_a_cpu_has(capsys: pytest.CaptureFixture[str]):
    threads = torch.get_num_threads()
    try:
        assert main(["kernel_rate", "--rounds", "3", *SMALL]) == 0
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().out
    assert "no GPU: the fused form and peak memory are not measured" in said
    assert all(word in said for word in ("max", "soft mean", "products:", "plain:", "plain compiled:", "chunked:"))
    assert "100% of the products' rate" in said and "fused:" not in said


def test_sizes_are_checked():
    with pytest.raises(UserError, match="must be above 0"):
        main(["kernel_rate", *SMALL[:-1], "0"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_gpu_that_is_asked_for_must_be_there():
    with pytest.raises(UserError, match="no CUDA GPU; use --device cpu"):
        main(["kernel_rate", "--device", "cuda"])
