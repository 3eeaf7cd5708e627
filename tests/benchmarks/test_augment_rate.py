import pytest
import torch

from benchmarks.__main__ import main
from configs.errors import UserError


@pytest.mark.slow
def test_every_form_of_every_augmentation_is_measured(capsys: pytest.CaptureFixture[str]):
    threads = torch.get_num_threads()
    try:
        assert main(["augment_rate", "--batch", "2", "--rounds", "3", "--device", "cpu"]) == 0
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().out
    for name in ("random_resized_crop", "flip", "color_jitter", "greyscale", "blur", "spectrogram_mask"):
        assert f"augmentation {name}" in said
    assert said.count("reference") == said.count("Pillow") == 5 and said.count("torch") == 6


def test_a_batch_must_hold_clips():
    with pytest.raises(UserError, match="must be above 0"):
        main(["augment_rate", "--batch", "0"])
