import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.loss_rate import _grown, outputs_of
from configs.errors import UserError


def test_outputs_grow_along_the_batch_alone():
    few, more = torch.randn(3, 2, 5), torch.randn(3, 4, 5)
    grown = _grown(few, more, 7)
    assert grown.shape == (3, 7, 5) and grown.requires_grad
    assert torch.corrcoef(torch.stack([grown[:, 2].flatten(), few[:, 0].flatten()]))[0, 1] > 0.9
    same = _grown(few, few, 7)
    assert torch.equal(same, few), "what no batch enlarges stays as it is"


@pytest.mark.slow
def test_losses_get_the_cells_that_are_asked_for(capsys: pytest.CaptureFixture[str]):
    losses, outputs = outputs_of("ez_vsl", 7, 8, torch.device("cpu"))
    assert {need for loss in losses.values() for need in loss.needs} <= set(outputs)
    assert outputs["image_features"].shape[-2:] == (7, 7) and len(outputs["image_features"]) == 8
    threads = torch.get_num_threads()
    asked = ["loss_rate", "--methods", "fnac", "--batch", "8", "--sides", "7", "--rounds", "3", "--device", "cpu"]
    try:
        assert main(asked) == 0
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().out
    assert said.count("one product") == said.count("ours") == 4 and said.count("published") == 1


def test_wrong_options_are_told():
    with pytest.raises(UserError, match=r"no method 'fnax'"):
        main(["loss_rate", "--methods", "fnax"])
    with pytest.raises(UserError, match="at least 3"):
        main(["loss_rate", "--batch", "1"])
