import pytest
import torch

from benchmarks.__main__ import main
from configs.errors import UserError


def test_front_ends_stand_beside_the_transform_alone(capsys: pytest.CaptureFixture[str]):
    threads = torch.get_num_threads()
    asked = ["frontend_rate", "--frontends", "ez_vsl", "logmel64", "--batch", "1", "--seconds", "0.3"]
    try:
        assert main([*asked, "--rounds", "3", "--device", "cpu"]) == 0
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().out
    assert said.count("torch.stft alone") == said.count("torchaudio") == said.count("ours") == 2


def test_wrong_names_are_told():
    with pytest.raises(UserError, match=r"no front-end 'logmell'.*Did you mean 'logmel'"):
        main(["frontend_rate", "--frontends", "logmell"])
