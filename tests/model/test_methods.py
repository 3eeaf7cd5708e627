"""What holds for every method file: gradients, independence of the batch, order invariance, pinned shapes."""

import pytest
import torch

from configs.resolve import names, resolve
from model.base import LocalizationModel
from model.build import build_objective
from pipeline.batch import Batch

SMALL: dict[str, dict] = {
    "ez_vsl": {"image_encoder": {"name": "resnet"}, "feature_dim": 32},
    "fnac": {"image_encoder": {"name": "resnet"}, "feature_dim": 32},
    "jsa": {
        "image_encoder": {"name": "resnet"},
        "feature_dim": 32,
        "update_hidden": 32,
        "mask_share": 0.5,  # else no token of so few may be hidden, and the learned one gets no gradient
        "losses": {
            "mutual_neighbour_contrast": {"neighbours": 2},
            "slot_reconstruction": {},
            "slot_divergence": {},
            "attention_matching": {},
        },
    },
    "lvs": {},
    "sira_ssl": {"image_encoder": {"name": "resnet", "frozen": True, "frozen_statistics": False}},
    "slavc": {"image_encoder": {"name": "resnet"}, "feature_dim": 32},
    "vcs": {},
}
"""Options that make a method small, repeatable and free of downloads; every method needs an entry."""

WITHOUT_GRADIENT: dict[str, set[str]] = {
    # Added to all slots' queries alike, they cancel in the softmax over slots: what they get is rounding.
    "jsa": {f"{side}_attention.{part}.bias" for side in ("image", "audio") for part in ("to_q", "norm_slots")},
    # Added to all logits of a query alike, they cancel in its softmax.
    "sira_ssl": {f"{each}_attention.key.bias" for each in ("visual", "gated", "recursive")},
}
"""Published parameters without effect, which stay because published weights have them."""


def build(name: str):
    torch.manual_seed(0)
    config = resolve("model.methods", name).Config.model_validate({"name": name, **SMALL[name]})
    return build_objective(config)


def batch(count: int = 4, seed: int = 0, size: int = 64) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=draw).permute(0, 3, 1, 2)
    return Batch(
        clip_id=[str(index) for index in range(count)],
        valid=torch.ones(count, dtype=torch.bool),
        image=image,
        spectrogram=torch.randn(count, 1, 64, 50, generator=draw),
    )


def take(source: Batch, order: list[int]) -> Batch:
    return Batch(
        clip_id=[source.clip_id[index] for index in order],
        valid=source.valid[order],
        image=source.image[order],
        spectrogram=source.spectrogram[order],
    )


@pytest.fixture(params=names("model.methods"))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_forward_gives_what_it_says(name: str):
    objective = build(name)
    model: LocalizationModel = objective.model
    assert set(model(batch())) == set(model.outputs)


def test_every_trainable_parameter_gets_a_gradient(name: str):
    objective = build(name).train()
    weights = torch.ones(len(objective.losses))
    losses = objective(batch(), weights)
    losses.total.backward()
    assert torch.isfinite(losses.total) and all(torch.isfinite(term) for term in losses.terms.values())
    for key, parameter in objective.model.named_parameters():
        if parameter.requires_grad and key not in WITHOUT_GRADIENT.get(name, ()):
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, f"{key} gets no gradient"


def test_a_map_does_not_depend_on_the_batch(name: str):
    model = build(name).model.eval()
    clips = batch()
    with torch.inference_mode():
        together = model.localize(clips)
        for index in range(len(clips.clip_id)):
            alone = model.localize(take(clips, [index]))
            torch.testing.assert_close(alone.map[0], together.map[index], rtol=1e-4, atol=1e-5)
    low, high = together.bounds
    assert together.map.min() >= low - 1e-5 and together.map.max() <= high + 1e-5


def test_loss_does_not_depend_on_the_order(name: str):
    objective = build(name).eval()
    weights = torch.ones(len(objective.losses))
    clips = batch()
    with torch.no_grad():
        first = objective(clips, weights).total
        turned = objective(take(clips, [2, 0, 3, 1]), weights).total
    torch.testing.assert_close(first, turned, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [64, 96])
def test_map_sizes_follow_the_input(name: str, size: int):
    model = build(name).model.eval()
    with torch.inference_mode():
        found = model.localize(batch(size=size)).map
    assert found.shape[0] == 4 and found.shape[1] == found.shape[2]
    assert size % found.shape[1] == 0


@pytest.mark.slow
def test_compiled_objective_has_no_break_and_the_same_numbers(name: str):
    objective = build(name).train()
    weights = torch.ones(len(objective.losses))
    clips = batch()
    torch.manual_seed(1)
    expected = objective(clips, weights)
    expected.total.backward()
    gradients = {key: value.grad.clone() for key, value in objective.named_parameters() if value.grad is not None}
    objective.zero_grad(set_to_none=True)
    # Compiled code has its own random numbers, unless it is asked for the usual ones.
    compiled = torch.compile(objective, fullgraph=True, options={"fallback_random": True})
    torch.manual_seed(1)
    found = compiled(clips, weights)
    found.total.backward()
    torch.testing.assert_close(found.total, expected.total, rtol=1e-4, atol=1e-4)
    for key, value in objective.named_parameters():
        if key in gradients and key.removeprefix("model.") not in WITHOUT_GRADIENT.get(name, ()):
            # As a whole: a ReLU that rounding opens or shuts moves single entries by more than that. Uncompiled float32
            # is itself up to 1.5% away from float64 here (lvs).
            assert (value.grad - gradients[key]).norm() <= 3e-2 * gradients[key].norm(), key
