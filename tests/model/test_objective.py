"""What a run makes of its objective, and what it refuses."""

from typing import Any

import pytest
import torch
from small_methods import build

from configs.errors import UserError
from configs.load import load_config
from model.objective import as_configured

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "ranks", "overrides", "reason"),
    [
        (CPU, 1, ["train.compile=true"], "needs a CUDA GPU, and this run is on cpu"),
        (GPU, 1, [], "needs train.compile=true"),
        (GPU, 2, ["train.compile=true"], "is for one GPU, and this run has 2 processes"),
        (GPU, 1, ["train.compile=true", "optim.accumulate=2"], "needs optim.accumulate=1, as"),
    ],
)
def test_cuda_graphs_are_refused_where_they_cannot_serve(
    device: torch.device, ranks: int, overrides: list[str], reason: str
):
    config = load_config(["ez_vsl_realset", "train.cuda_graphs=true", *overrides])
    objective: Any = torch.nn.Identity()
    with pytest.raises(UserError, match=f"train.cuda_graphs=true {reason}"):
        as_configured(objective, config, device, ranks)


def test_without_options_it_is_called_as_it_is():
    objective = build("ez_vsl")
    assert as_configured(objective, load_config(["ez_vsl_realset"]), CPU, ranks=2) is objective
