"""Losses in bf16 beside those in float32, from real short runs."""

import csv
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from configs.errors import UserError


def test_too_few_seeds_or_steps_are_refused():
    with pytest.raises(UserError, match="2 seeds of 40 steps"):
        main(["loss_curves", "--rounds", "2"])
    with pytest.raises(UserError, match="3 seeds of 4 steps"):
        main(["loss_curves", "--rounds", "3", "--steps", "4"])


@pytest.mark.slow
def test_precisions_begin_alike_and_seeds_do_not(
    packed_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    small = ("model.image_encoder={name: resnet}", "model.feature_dim=16", "data.batch_size=4", "data.image.size_px=32")
    options = ("data.audio.duration_s=0.5", "data.loader=reference", "train.device=cpu", "train.cpu_threads=1")
    main(["loss_curves", "--store", str(packed_store), "--rounds", "3", "--steps", "5", "--out", str(tmp_path),
          "--set", *small, *options])  # fmt: skip
    assert "seeds 0 to 2" in " ".join(capsys.readouterr().out.split())  # a title is as wide as its table
    with open(tmp_path / "loss_curves.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    first = {(row["variant"], row["seed"]): float(row["loss"]) for row in rows if row["step"] == "1"}
    assert len(rows) == 2 * 3 * 5 and len(first) == 6
    seeds = [first["float32", str(seed)] for seed in range(3)]
    assert len(set(seeds)) == 3
    for seed, loss in enumerate(seeds):
        assert first["bf16", str(seed)] == pytest.approx(loss, rel=0.05) and first["bf16", str(seed)] != loss
