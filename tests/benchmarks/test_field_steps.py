"""Steps: both ways learn, and start from the same loss."""

from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.field_steps import FieldStep, OurStep, nchw, step_config
from configs.errors import UserError
from pipeline.sizes import synthetic_batch

CPU = torch.device("cpu")


def test_both_steps_train_the_same_network_to_the_same_weights():
    config = step_config("ez_vsl", CPU, 3, ["data.image.size_px=64", "data.audio.duration_s=1.0"])
    ours, field = OurStep(config, CPU), FieldStep(config, CPU)
    batch = synthetic_batch(config.data, config.model.inputs, 3, CPU)
    assert nchw(batch).image.is_contiguous() and not batch.image.is_contiguous()
    before = {name: value.clone() for name, value in ours.objective.state_dict().items()}
    torch.testing.assert_close(dict(field.objective.state_dict()), before)
    ours(batch)
    field(nchw(batch))
    after = ours.objective.state_dict()
    assert any(not torch.equal(before[name], value) for name, value in after.items())
    # Adam's first step is the sign of the gradient times the rate: where a gradient is rounding, it may differ.
    rate = config.optim.lr
    for name, value in field.objective.model.named_parameters():
        moved = (value.detach() - after[f"model.{name}"]).abs() > 0.1 * rate
        assert moved.float().mean() < 0.05, name


@pytest.mark.slow
def test_it_measures_a_method(tmp_path: Path, capsys: pytest.CaptureFixture):
    asked = ["field_steps", "--methods", "ez_vsl", "--size", "64", "--batch", "2", "--rounds", "3", "--device", "cpu"]
    assert main([*asked, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "field_steps.csv").read_text().count("ez_vsl as the field") >= 2
    said = " ".join(capsys.readouterr().out.split())
    assert "fp32, eager, NCHW" in said and "fp32, eager, channels-last" in said


def test_wrong_options_are_named():
    with pytest.raises(UserError, match=r"no method 'sira'.*Did you mean 'sira_ssl'"):
        main(["field_steps", "--methods", "sira"])
    with pytest.raises(UserError, match="must be above 0"):
        main(["field_steps", "--batch", "-1", "--device", "cpu"])
