"""Averaged weights against the formula written out, and back again bit for bit."""

import torch
from torch import nn

from model.ema import WeightAverage


def moving_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_the_average_follows_its_formula():
    model = moving_model()
    average = WeightAverage(model, decay=0.3)
    expected = {name: value.double() for name, value in model.state_dict().items()}
    for step in range(1, 6):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model(torch.randn(4, 3))
        average.update(model, step)
        decay = min(0.3, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            moved = decay * expected[name] + (1 - decay) * value.double()
            expected[name] = moved if value.is_floating_point() else value.double()
    for name, value in average.state.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-6, atol=1e-6)
    assert average.state["1.num_batches_tracked"] == 5


def test_frozen_weights_stay_as_they_are():
    model = moving_model()
    average = WeightAverage(model, decay=0.999)
    for step in range(1, 50):
        average.update(model, step)
    assert all(torch.equal(value, average.state[name]) for name, value in model.state_dict().items())


def test_the_model_gets_its_own_weights_back():
    model = moving_model()
    average = WeightAverage(model, decay=0.5)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    place = model[0].weight.data_ptr()
    with average.applied(model):
        assert torch.equal(model[0].weight, average.state["0.weight"])
        assert not torch.equal(model[0].weight, own["0.weight"])
    assert model[0].weight.data_ptr() == place
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())


def test_an_average_goes_on_from_a_checkpoint():
    model = moving_model()
    first = WeightAverage(model, decay=0.9)
    with torch.no_grad():
        model[0].weight.mul_(2.0)
    first.update(model, 1)
    second = WeightAverage(model, decay=0.9, state={name: value.clone() for name, value in first.state.items()})
    for average in (first, second):
        average.update(model, 2)
    assert all(torch.equal(value, second.state[name]) for name, value in first.state.items())
