"""SLAVC: its loss against loops in float64, and the slow copy: how it moves, what it keeps, what it gives."""

import io
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from configs.resolve import resolve
from model.base import Progress
from model.build import build_objective
from model.losses.factorised import Factorised, factorised_logits
from model.methods.slavc import SLAVC
from model.objective import Objective
from model.similarity import all_pairs
from pipeline.batch import Batch

NOW = Progress(step=0, epoch=0.0, total_steps=10)


def features(count: int = 4, dim: int = 5, seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"image": (count, dim, 3, 2), "audio": (count, dim)}
    return {
        name: normalize(
            torch.randn(*shapes[name.split("_")[-2]], generator=draw, dtype=torch.float64),
            dim=1,
        )
        for name in Factorised.needs
    }


def loss(tau: float = 0.03) -> Factorised:
    return Factorised(Factorised.Config(name="factorised", tau=tau))


def plain_logits(image: dict[str, Tensor], sound: dict[str, Tensor], tau: float) -> list[list[float]]:
    count = len(sound["which"])
    places = [(y, x) for y in range(image["which"].shape[2]) for x in range(image["which"].shape[3])]

    def cosine(head: str, n: int, y: int, x: int, m: int) -> float:
        return float(image[head][n, :, y, x] @ sound[head][m])

    rows = []
    for n in range(count):
        row = []
        for m in range(count):
            share = 0.0
            for y, x in places:
                of_sounds = sum(math.exp(cosine("which", n, y, x, other) / tau) for other in range(count))
                of_cells = sum(math.exp(cosine("where", n, *place, m) / tau) for place in places)
                which = math.exp(cosine("which", n, y, x, m) / tau) / of_sounds
                share += which * math.exp(cosine("where", n, y, x, m) / tau) / of_cells
            row.append(math.log(share))
        rows.append(row)
    return rows


def plain_factorised(inputs: dict[str, Tensor], tau: float) -> float:
    total = 0.0
    for image, audio in (("image", "slow_audio"), ("slow_image", "audio")):
        rows = plain_logits(
            {head: inputs[f"{image}_{head}"] for head in ("which", "where")},
            {head: inputs[f"{audio}_{head}"] for head in ("which", "where")},
            tau,
        )
        for n, row in enumerate(rows):
            total += (math.log(sum(math.exp(value) for value in row)) - row[n]) / len(rows)
    return total


@pytest.mark.parametrize("tau", [0.03, 0.5])
def test_loss_equals_loops(tau: float):
    inputs = features()
    assert float(loss(tau)(**inputs)) == pytest.approx(plain_factorised(inputs, tau), rel=1e-9)


def test_logits_are_logarithms_of_shares():
    for seed in range(5):
        inputs = features(seed=seed)
        which = all_pairs(inputs["image_which"], inputs["slow_audio_which"])
        where = all_pairs(inputs["image_where"], inputs["slow_audio_where"])
        assert factorised_logits(which, where, 0.03).max() <= 0


def test_order_of_the_batch_does_not_matter():
    inputs = features()
    turned = {key: value[[2, 0, 3, 1]] for key, value in inputs.items()}
    torch.testing.assert_close(loss()(**turned), loss()(**inputs), rtol=1e-12, atol=1e-12)


def test_gradients():
    inputs = features(count=3, dim=3)
    names = [name for name in inputs if not name.startswith("slow")]
    slow = {name: value for name, value in inputs.items() if name.startswith("slow")}
    moving = [inputs[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(lambda *given: loss(0.5)(**slow, **dict(zip(names, given))), moving)


def build(seed: int = 0, **options) -> Objective:
    torch.manual_seed(seed)
    encoder = {"image_encoder": {"name": "resnet"}, "feature_dim": 16}
    config = resolve("model.methods", "slavc").Config.model_validate({"name": "slavc", **encoder, **options})
    return build_objective(config).train()


def batch(seed: int = 0, count: int = 3) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    return Batch(
        clip_id=[str(index) for index in range(count)],
        valid=torch.ones(count, dtype=torch.bool),
        image=torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=draw),
        spectrogram=torch.randn(count, 1, 64, 50, generator=draw),
    )


def step(objective: Objective, optimizer: torch.optim.Optimizer, number: int) -> None:
    objective.model.before_step(NOW)
    objective(batch(number), torch.ones(1)).total.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def parameters(module: torch.nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in module.parameters()]


def test_the_slow_copy_moves_before_each_step():
    objective = build(momentum=0.9)
    model: SLAVC = objective.model  # type: ignore[assignment]
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.1)
    expected = parameters(model.trained)
    for number in range(3):
        trained = parameters(model.trained)
        expected = [0.9 * slow + 0.1 * new for slow, new in zip(expected, trained)]
        step(objective, optimizer, number)
        for found, value, new in zip(model.slow.parameters(), expected, trained):
            torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-7)
            assert found.grad is None and not found.requires_grad
            if number == 0:
                assert torch.equal(found, new), "before the first step both are the same to the last bit"
    assert any(not torch.equal(slow, new) for slow, new in zip(model.slow.parameters(), model.trained.parameters()))


def test_statistics_follow_the_slow_passes_alone():
    objective = build(momentum=0.9)
    model: SLAVC = objective.model  # type: ignore[assignment]
    before = [value.clone() for value in model.slow.buffers()]
    with torch.no_grad():
        for value in model.trained.parameters():
            value.add_(0.01)
    model.before_step(NOW)
    assert all(torch.equal(value, old) for value, old in zip(model.slow.buffers(), before))
    objective(batch(), torch.ones(1))
    norms = [module for module in model.slow.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert all(int(norm.num_batches_tracked) == 1 for norm in norms)  # type: ignore[arg-type]
    means = [value for key, value in model.slow.named_buffers() if key.endswith("running_mean")]
    others = [value for key, value in model.trained.named_buffers() if key.endswith("running_mean")]
    assert all(not torch.equal(slow, new) for slow, new in zip(means, others))


def test_a_run_goes_on_from_its_state_to_the_last_bit():
    first = build(momentum=0.9)
    optimizer = torch.optim.Adam([value for value in first.model.parameters() if value.requires_grad], lr=1e-2)
    for number in range(2):
        step(first, optimizer, number)
    file = io.BytesIO()
    torch.save((first.model.state_dict(), optimizer.state_dict(), torch.get_rng_state()), file)
    step(first, optimizer, 2)

    second = build(seed=1, momentum=0.9)
    again = torch.optim.Adam([value for value in second.model.parameters() if value.requires_grad], lr=1e-2)
    file.seek(0)
    model_state, optimizer_state, draws = torch.load(file, weights_only=True)
    second.model.load_state_dict(model_state)
    again.load_state_dict(optimizer_state)
    torch.set_rng_state(draws)
    step(second, again, 2)
    assert all(torch.equal(value, second.model.state_dict()[key]) for key, value in first.model.state_dict().items())


def test_maps_come_from_the_copy_that_is_asked_for():
    objective = build()
    model: SLAVC = objective.model  # type: ignore[assignment]
    clips = batch()
    with torch.no_grad():
        for head in (*model.trained.image_heads.values(), *model.trained.audio_heads.values()):
            head.weight.copy_(torch.randn_like(head.weight))  # type: ignore[union-attr]
        model.eval()
        slow = model.localize(clips)
        trained_model = build(localize_with="trained").model.eval()
        trained_model.load_state_dict(model.state_dict())
        trained = trained_model.localize(clips)
    assert not torch.allclose(slow.map, trained.map, atol=1e-2)
    for found in (slow, trained):
        torch.testing.assert_close(found.map, (found.extra["which"] + found.extra["where"]) / 2)
        assert found.bounds == (-1.0, 1.0) and found.map.abs().max() <= 1 + 1e-6


def test_dropout_falls_on_both_branches_while_training():
    model: SLAVC = build().model  # type: ignore[assignment]
    assert model.trained.image_dropout.p == model.slow.image_dropout.p == 0.9
    assert model.trained.audio_dropout.p == model.slow.audio_dropout.p == 0
    clips = batch()
    with torch.no_grad():
        outputs = model(clips)
    assert set(outputs) == model.outputs
    assert not torch.allclose(outputs["image_which"], outputs["slow_image_which"], atol=1e-3)
    torch.testing.assert_close(outputs["audio_which"], outputs["slow_audio_which"])
