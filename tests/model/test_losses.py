"""Losses against the plainest possible twins: loops in float64."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from configs.errors import UserError
from configs.load import load_config
from model.base import Progress
from model.build import build_model, build_objective
from model.losses.max_mil import MaxMIL
from model.objective import Objective
from model.similarity import all_pairs_max, own_pair_map


def features(count: int = 5, dim: int = 8, height: int = 3, width: int = 2) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    image = normalize(torch.randn(count, dim, height, width, generator=draw, dtype=torch.float64), dim=1)
    sound = normalize(torch.randn(count, dim, generator=draw, dtype=torch.float64), dim=1)
    return {"image_features": image, "audio_features": sound}


def plain_max_mil(image: torch.Tensor, sound: torch.Tensor, tau: float) -> float:
    count = len(sound)
    logits = [
        [
            max(float(image[n, :, y, x] @ sound[m]) for y in range(image.shape[2]) for x in range(image.shape[3])) / tau
            for m in range(count)
        ]
        for n in range(count)
    ]
    total = 0.0
    for n in range(count):
        rows = math.log(sum(math.exp(logits[n][m]) for m in range(count))) - logits[n][n]
        columns = math.log(sum(math.exp(logits[m][n]) for m in range(count))) - logits[n][n]
        total += (rows + columns) / count
    return total


@pytest.mark.parametrize("tau", [0.03, 0.07, 1.0])
def test_max_mil_equals_loops(tau: float):
    inputs = features()
    loss = MaxMIL(MaxMIL.Config(name="max_mil", tau=tau))
    expected = plain_max_mil(inputs["image_features"], inputs["audio_features"], tau)
    assert float(loss(**inputs)) == pytest.approx(expected, rel=1e-5)


def test_max_mil_of_random_features_is_near_chance():
    inputs = features(count=32, dim=512)
    loss = MaxMIL(MaxMIL.Config(name="max_mil", tau=1.0))
    assert float(loss(**inputs)) == pytest.approx(2 * math.log(32), abs=0.2)


def test_similarities_equal_loops():
    inputs = features()
    image, sound = inputs["image_features"], inputs["audio_features"]
    pairs, own = all_pairs_max(image, sound), own_pair_map(image, sound)
    for n in range(5):
        for m in range(5):
            best = max(image[n, :, y, x] @ sound[m] for y in range(3) for x in range(2))
            assert pairs[n, m] == pytest.approx(float(best), abs=1e-12)
        assert own[n, 2, 1] == pytest.approx(float(image[n, :, 2, 1] @ sound[n]), abs=1e-12)


def test_similarity_gradients():
    inputs = [value.requires_grad_() for value in features(count=3, dim=4).values()]
    assert torch.autograd.gradcheck(all_pairs_max, inputs)  # type: ignore[arg-type]
    assert torch.autograd.gradcheck(own_pair_map, inputs)  # type: ignore[arg-type]


SMALL = ["ez_vsl_realset", "model.image_encoder={name: resnet}", "model.feature_dim=16"]


def test_a_loss_joins_at_its_epoch():
    objective = build_objective(load_config([*SMALL, "model.losses.max_mil={weight: 2, start_epoch: 3}"]).model)
    cpu = torch.device("cpu")
    assert objective.weights_at(Progress(step=0, epoch=2.9, total_steps=9), cpu).tolist() == [0.0]
    assert objective.weights_at(Progress(step=0, epoch=3.0, total_steps=9), cpu).tolist() == [2.0]


def test_a_loss_that_does_not_fit_is_named():
    class Wrong(MaxMIL):
        needs = ("image_slots",)

    with pytest.raises(UserError, match="needs output 'image_slots'; method 'ez_vsl' gives audio_features,"):
        Objective(build_model(load_config(SMALL).model), {"wrong": Wrong(MaxMIL.Config(name="wrong"))})


def test_a_method_without_losses_is_refused():
    with pytest.raises(UserError, match=r"model\.losses is empty"):
        build_objective(load_config([*SMALL, "model.losses.max_mil=null"]).model)
