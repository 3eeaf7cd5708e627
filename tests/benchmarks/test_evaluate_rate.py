import pytest
import torch

from benchmarks.__main__ import main
from configs.errors import UserError


@pytest.mark.slow
@pytest.mark.parametrize("truth", ["boxes", "consensus", "masks"])
def test_protocols_stand_beside_the_forward_pass(truth: str, capsys: pytest.CaptureFixture[str]):
    threads = torch.get_num_threads()
    asked = ["evaluate_rate", "--protocols", "ez_vsl", "vcs", "--clips", "8", "--rounds", "3", "--device", "cpu"]
    asked += ["--truth", truth]
    try:
        assert main(asked) == 0
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().out
    assert said.count("of a forward pass") == 2 and "resizing alone" in said
    assert ("clip by clip" in said) == (truth == "boxes")  # the field's way knows no others


def test_a_protocol_that_needs_the_whole_set_is_not_offered():
    with pytest.raises(UserError, match=r"no protocol with a rule of its own 'vssl'"):
        main(["evaluate_rate", "--protocols", "vssl"])
