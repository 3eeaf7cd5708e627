"""The tri-map loss against loops in float64, at its edges, and for methods that name other outputs."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from model.losses.trimap import TriMap


def features(count: int = 5, dim: int = 6, seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    image = normalize(torch.randn(count, dim, 3, 2, generator=draw, dtype=torch.float64), dim=1)
    sound = normalize(torch.randn(count, dim, generator=draw, dtype=torch.float64), dim=1)
    return {"image_features": image, "audio_features": sound}


def loss(**options) -> TriMap:
    return TriMap(TriMap.Config(name="trimap", **options))


def plain_trimap(
    image: Tensor, sound: Tensor, epsilon_p: float, epsilon_n: float, tau: float, temperature: float, masked: bool
) -> float:
    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    def pooled(cosines: list[float], weights: list[float]) -> float:
        return sum(w * c for w, c in zip(weights, cosines)) / sum(weights)

    count, total = len(sound), 0.0
    for n in range(count):
        negatives = []
        for m in range(count):
            cosines = [
                float(image[n, :, y, x] @ sound[m]) for y in range(image.shape[2]) for x in range(image.shape[3])
            ]
            value = pooled(cosines, [sigmoid((c - epsilon_p) / tau) for c in cosines])
            if m != n:
                negatives.append(value)
            else:
                positive = value
                background = pooled(cosines, [1 - sigmoid((c - epsilon_n) / tau) for c in cosines])
                if not masked:
                    negatives.append(value * (1 - 100))
        row = [value / temperature for value in (positive, *negatives, background)]
        total += math.log(sum(math.exp(value - row[0]) for value in row))
    return total / count


@pytest.mark.parametrize("own_pair", ["scaled", "masked"])
@pytest.mark.parametrize(
    ("epsilon_p", "epsilon_n", "tau", "temperature"),
    [(0.65, 0.4, 0.03, 0.07), (0.1, 0.0, 0.3, 0.5), (0.65, 0.65, 0.1, 1)],
)
def test_equals_loops(own_pair: str, epsilon_p: float, epsilon_n: float, tau: float, temperature: float):
    inputs = features()
    numbers = {"epsilon_p": epsilon_p, "epsilon_n": epsilon_n, "tau": tau, "temperature": temperature}
    expected = plain_trimap(*inputs.values(), **numbers, masked=own_pair == "masked")
    assert float(loss(own_pair=own_pair, **numbers)(**inputs)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("own_pair", ["scaled", "masked"])
def test_gradients(own_pair: str):
    inputs = [value.requires_grad_() for value in features(count=3, dim=4).values()]
    objective = loss(own_pair=own_pair, tau=0.2, temperature=0.5)
    assert torch.autograd.gradcheck(lambda i, s: objective(image_features=i, audio_features=s), inputs)


def test_order_of_the_batch_does_not_matter():
    inputs = features()
    order = torch.tensor([3, 0, 4, 1, 2])
    turned = {key: value[order] for key, value in inputs.items()}
    torch.testing.assert_close(loss()(**turned), loss()(**inputs), rtol=1e-12, atol=1e-12)


def test_one_clip_alone():
    inputs = features(count=1)
    logits = loss().logits(**inputs)
    assert logits.shape == (1, 3)
    torch.testing.assert_close(logits[0, 1], -99 * logits[0, 0])
    assert loss(own_pair="masked").logits(**inputs)[0, 1] == -torch.inf
    assert torch.isfinite(loss(own_pair="masked")(**inputs))


def test_a_negative_own_pair_is_a_false_negative_only_as_published():
    sound = normalize(torch.ones(2, 4), dim=1)
    image = -sound[:, :, None, None].expand(2, 4, 2, 2).contiguous()
    image[1] = -image[1]
    published = loss().logits(image, sound)
    assert published[0].argmax() == 1 and published[1].argmax() != 2
    assert torch.isneginf(loss(own_pair="masked").logits(image, sound)[:, 1:3].diagonal()).all()


def test_cells_far_from_both_borders_leave_no_hole():
    """With plain sigmoids the weights of a map without a sounding cell, or without background, sum to 0."""
    sound = normalize(torch.ones(2, 4), dim=1)
    for sign in (1.0, -1.0):
        image = (sign * sound[:, :, None, None]).expand(2, 4, 2, 2).contiguous().requires_grad_()
        total = loss(tau=0.003)(image_features=image, audio_features=sound)
        total.backward()
        assert torch.isfinite(total) and image.grad is not None and torch.isfinite(image.grad).all()


def test_half_precision_features_are_widened():
    inputs = {key: value.bfloat16() for key, value in features().items()}
    total = loss()(**inputs)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, loss()(**{key: value.float() for key, value in inputs.items()}))


def test_other_outputs_by_name():
    class Attended(TriMap):
        needs = ("attended_features", "audio_features")

    inputs = features()
    named = {"attended_features": inputs["image_features"], "audio_features": inputs["audio_features"]}
    assert Attended(TriMap.Config(name="attended"))(**named) == loss()(**inputs)
