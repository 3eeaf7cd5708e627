"""bf16 and channels-last against float32, for every method: maps correlate above 0.999, losses agree within 2%.

Compiled only for some, since compiling all takes ten minutes.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from golden_states import drawn_state, generator, pictures, plane_wave_batch, spectrograms
from torch import Tensor, nn

from configs.resolve import names, resolve
from model.build import build_objective, without_initial_weights
from model.objective import Objective
from model.published import load_published
from pipeline.batch import Batch

FEW_NEIGHBOURS = {"losses": {"mutual_neighbour_contrast": {"neighbours": 2}, "attention_matching": {}}}
OPTIONS = {"jsa": FEW_NEIGHBOURS | {"mask_share": 0.0}}
"""What four clips need."""
COMPILED = ("ez_vsl", "slavc")
"""Of all losses, rounding moves EZ-VSL's most when compiled, and of all maps SLAVC's."""


@cache
def clips(name: str) -> Batch:
    """The inputs of JSA's golden case, or for all others those of SIRA-SSL's."""
    if name == "jsa":
        return plane_wave_batch(101, 102, frames=501)
    rng = generator(11)
    image, flow = pictures(rng, 4, 3, 0.1), pictures(rng, 4, 2, 0.05)
    return Batch(
        clip_id=list("abcd"),
        valid=torch.ones(4, dtype=torch.bool),
        image=torch.from_numpy(image.astype(np.float32)),
        spectrogram=torch.from_numpy(spectrograms(rng, 4, (257, 276))),
        flow=torch.from_numpy(flow.astype(np.float32)),
    )


def build(name: str) -> Objective:
    """With golden weights, and without dropout: its draws differ between the precisions."""
    config = resolve("model.methods", name).Config.model_validate({"name": name, **OPTIONS.get(name, {})})
    objective = build_objective(without_initial_weights(config))
    load_published(objective.model, drawn_state(objective.model, {}), drop=(), where="the golden state")
    for module in objective.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return objective


def correlation(one: Tensor, other: Tensor) -> float:
    """The least of the clips'."""
    pairs = zip(one.flatten(1).float(), other.flatten(1).float())
    return min(float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "compiled"), [*((name, False) for name in names("model.methods")), *((name, True) for name in COMPILED)]
)
@torch.no_grad()
def test_half_precision_agrees(name: str, compiled: bool):
    def ready(call: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(call, fullgraph=True) if compiled else call

    exact, rounded = build(name), build(name).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weights = torch.ones(len(exact.losses))
    expected_map = exact.eval().model.localize(clips(name)).map
    with torch.autocast("cpu", torch.bfloat16):
        found_map = ready(rounded.eval().model.localize)(clips(name)).map
    assert correlation(found_map, expected_map) > 0.999
    for training in (True,) if compiled else (False, True):
        expected = exact.train(training)(clips(name), weights).terms
        with torch.autocast("cpu", torch.bfloat16):
            found = ready(rounded.train(training))(clips(name), weights).terms
        for key, value in found.items():
            assert float(value) == pytest.approx(float(expected[key]), rel=0.02), f"{key}, training {training}"
