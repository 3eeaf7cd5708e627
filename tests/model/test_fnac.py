"""FNAC's three terms against loops in float64, and when they join."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from configs.load import load_config
from model.base import Loss, Progress
from model.build import build_objective
from model.losses.false_negatives_audio import FalseNegativesAudio
from model.losses.false_negatives_image import FalseNegativesImage
from model.losses.true_negatives import TrueNegatives

TERMS = {
    "false_negatives_audio": FalseNegativesAudio,
    "false_negatives_image": FalseNegativesImage,
    "true_negatives": TrueNegatives,
}


def features(count: int = 5, dim: int = 6, seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    image = normalize(torch.randn(count, dim, 3, 2, generator=draw, dtype=torch.float64), dim=1)
    sound = normalize(torch.randn(count, dim, generator=draw, dtype=torch.float64), dim=1)
    return {"image_features": image, "audio_features": sound}


def term(name: str, **options) -> Loss:
    return TERMS[name](TERMS[name].Config(name=name, **options))


def shares(rows: list[list[float]], tau: float) -> list[list[float]]:
    found = []
    for row in rows:
        weights = [math.exp((value - max(row)) / tau) for value in row]
        found.append([weight / sum(weights) for weight in weights])
    return found


def plain_terms(image: Tensor, sound: Tensor, tau: float) -> dict[str, float]:
    count = len(sound)
    places = [(y, x) for y in range(image.shape[2]) for x in range(image.shape[3])]
    pictures, regions = [], []
    for n in range(count):
        cells = [image[n, :, y, x] for y, x in places]
        cosines = [float(cell @ sound[n]) for cell in cells]
        scaled = [(value - min(cosines)) / (max(cosines) - min(cosines) + 1e-5) for value in cosines]
        nothing = torch.zeros_like(sound[n])
        pictures.append(sum(cells, nothing) / len(cells))
        regions.append(sum((cell for cell, value in zip(cells, scaled) if value > 0.6), nothing) / len(cells))
    numbers = range(count)
    heard = shares([[float(sound[n] @ sound[m]) for m in numbers] for n in numbers], tau)
    seen = shares([[float(pictures[n] @ pictures[m]) for m in numbers] for n in numbers], tau)
    sounding = shares([[float(regions[n] @ regions[m]) for m in numbers] for n in numbers], tau)
    across = shares(
        [[max(float(image[n, :, y, x] @ sound[m]) for y, x in places) for m in numbers] for n in numbers], tau
    )

    def gap(first: list[list[float]], second: list[list[float]]) -> float:
        return sum(abs(first[n][m] - second[n][m]) for n in numbers for m in numbers) / count**2

    return {
        "false_negatives_audio": gap(heard, across),
        "false_negatives_image": gap(seen, across),
        "true_negatives": gap(heard, sounding),
    }


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("tau", [0.03, 0.3])
def test_equals_loops(name: str, tau: float):
    inputs = features()
    expected = plain_terms(*inputs.values(), tau)[name]
    assert float(term(name, tau=tau)(**inputs)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", TERMS)
def test_range_order_and_gradient(name: str):
    for seed in range(5):
        inputs = features(seed=seed)
        value = float(term(name)(**inputs))
        assert 0 <= value <= 2 / 5
        turned = {key: each[[3, 0, 4, 1, 2]] for key, each in inputs.items()}
        assert float(term(name)(**turned)) == pytest.approx(value, rel=1e-12)
    inputs = [value.requires_grad_() for value in features(count=3, dim=4).values()]
    smooth = term(name, tau=0.5)
    assert torch.autograd.gradcheck(lambda i, s: smooth(image_features=i, audio_features=s), inputs)


def test_rows_that_share_nothing_reach_the_bound():
    """Every sound is like itself alone, and every image like the sound of the next clip alone."""
    sound = torch.eye(4)
    image = sound.roll(1, 0)[:, :, None, None]
    value = term("false_negatives_audio", tau=1e-3)(image_features=image, audio_features=sound)
    assert float(value) == pytest.approx(2 / 4)


def test_a_region_is_divided_by_all_cells():
    sound = torch.eye(2)
    image = torch.zeros(2, 2, 1, 4)
    image[0, 0] = torch.tensor([[1.0, 0.5, 0.0, -1.0]])  # on 0 .. 1: 1, 0.75, 0.5 and 0
    image[1, 1] = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    region = torch.diag(torch.tensor([1.5 / 4, 1 / 4]))
    expected = (sound.softmax(1) - (region @ region.T).softmax(1)).abs().mean()
    torch.testing.assert_close(term("true_negatives", tau=1.0)(image_features=image, audio_features=sound), expected)


def test_the_terms_join_after_five_epochs():
    config = load_config(["fnac_vggsound144k", "model.image_encoder.weights=none", "model.feature_dim=8"])
    objective = build_objective(config.model)
    assert list(objective.losses) == ["max_mil", "false_negatives_audio", "true_negatives", "false_negatives_image"]
    cpu = torch.device("cpu")
    assert objective.weights_at(Progress(step=0, epoch=4.99, total_steps=9), cpu).tolist() == [1, 0, 0, 0]
    assert objective.weights_at(Progress(step=0, epoch=5.0, total_steps=9), cpu).tolist() == [1, 100, 100, 100]
