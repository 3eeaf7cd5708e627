"""VCS against its authors' numbers, and its losses against the plainest possible twins."""

import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_states import (
    assert_near,
    checksum,
    drawn,
    generator,
    load_drawn,
    photo,
    pictures,
    spectrograms,
    waves,
)
from pydantic import ValidationError
from torch.nn.functional import interpolate, normalize

from configs.load import load_frontend
from configs.schema import ImageConfig, OptimConfig
from model.build import build_objective
from model.losses.map_consistency import MapConsistency
from model.losses.node_contrast import NodeContrast
from model.losses.scaled_mil import ScaledMIL
from model.methods.vcs import VCS
from model.objective import Objective
from model.optim import build_optimizer
from model.published import published_name
from model.standardise import IMAGENET
from pipeline.batch import Batch
from pipeline.frontends import log_spectrogram, normalise
from pipeline.loaders.reference import resize

GOLDEN = Path(__file__).parents[1] / "golden" / "vcs"
UNUSED = {
    "imgnet.conv1_a.weight": (64, 1, 7, 7),
    "imgnet.conv1_flow.weight": (64, 6, 7, 7),
    "audnet.conv1.weight": (64, 3, 7, 7),
    "audnet.conv1_flow.weight": (64, 6, 7, 7),
    **{f"{net}.fc.weight": (1000, 512) for net in ("imgnet", "audnet")},
    **{f"{net}.fc.bias": (1000,) for net in ("imgnet", "audnet")},
}
MAPS, LOSSES, GRADIENTS = 1e-4, 1e-4, 5e-3
"""Allowed differences in float32, relative to the largest value, as the golden case states them."""
TERMS = {"loc": "scaled_mil", "dis": "node_contrast", "div": "map_consistency"}


@cache
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "case_a.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


@cache
def golden_batch() -> Batch:
    rng = generator(33)
    image, spectrogram = pictures(rng, 4, 3, 0.1), spectrograms(rng, 4, (257, 301))
    mean, std = (np.array(values).reshape(1, 3, 1, 1) for values in IMAGENET)
    assert checksum(((image - mean) / std).astype(np.float32)) == golden()["crc_image"]
    assert checksum(spectrogram) == golden()["crc_spec"]
    return Batch(
        clip_id=list("abcd"),
        valid=torch.ones(4, dtype=torch.bool),
        image=torch.from_numpy(image.astype(np.float32)),
        spectrogram=torch.from_numpy(spectrogram),
    )


def golden_objective() -> Objective:
    """The published settings without dropout, as in the golden case."""
    objective = build_objective(VCS.Config.model_validate({"name": "vcs", "node_dropout": 0}))
    names = load_drawn(objective.model, UNUSED)
    assert len(names) == 250
    return objective


@cache
def evaluated() -> tuple[Objective, dict[str, torch.Tensor]]:
    objective = golden_objective().eval()
    with torch.no_grad():
        return objective, objective.model(golden_batch())


def terms(objective: Objective, outputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return {
            name: loss(**{need: outputs[need] for need in loss.needs})  # type: ignore[union-attr]
            for name, loss in objective.losses.items()
        }


def weights(objective: Objective) -> torch.Tensor:
    return torch.tensor([loss.config.weight for loss in objective.losses.values()])  # type: ignore[union-attr]


def test_golden_features():
    objective, _ = evaluated()
    batch = golden_batch()
    with torch.no_grad():
        image, sound = objective.model.image_encoder(batch.image), objective.model.audio_encoder(batch.spectrogram)
    assert_near(image[:, ::32], golden()["img_feat_c32"], MAPS, "image features")
    assert_near(sound[:, ::32], golden()["aud_feat_c32"], MAPS, "audio features")
    assert_near(image.double().sum((1, 2, 3)), golden()["img_feat_sum"], MAPS, "sum of image features")
    assert_near(sound.double().sum((1, 2, 3)), golden()["aud_feat_sum"], MAPS, "sum of audio features")
    with torch.no_grad():
        nodes = torch.einsum("bdhw,bkhw->bdk", image, objective.model.region_projection(image))
    assert_near(nodes[:, ::32], golden()["att_feat_c32"], MAPS, "nodes")


def test_golden_maps():
    _, outputs = evaluated()
    pairs = torch.einsum("idhw,jd->ijhw", outputs["image_features"], outputs["audio_features"]) * outputs["scale"]
    assert_near(outputs["audio_features"], golden()["aud_vect"], MAPS, "audio vector")
    assert_near(outputs["localization_map"], golden()["map_av"][:, 0], MAPS, "localization map")
    assert_near(pairs, golden()["map_all_pairs"], MAPS, "maps of all pairs")
    assert_near(pairs.amax((2, 3)), golden()["logits"], MAPS, "logits")
    assert_near(outputs["region_maps"], golden()["att_heatmaps"], MAPS, "region maps")
    assert_near(outputs["node_similarity"], golden()["att_sim"], MAPS, "node similarity")
    assert_near(outputs["foreground_map"], golden()["map_fg"][:, 0], MAPS, "foreground map")
    order = outputs["node_similarity"].argsort(dim=1, descending=True)
    assert np.array_equal(order[:, :8].numpy(), golden()["fg_index"])
    torch.testing.assert_close(
        torch.cat([outputs["foreground_similarity"], outputs["background_similarity"]], dim=1),
        outputs["node_similarity"].gather(1, order),
    )
    # OpenCV's bilinear resizing is interpolation without aligned corners.
    large = interpolate(outputs["localization_map"][:, None], (224, 224), mode="bilinear", align_corners=False)
    assert_near(large[:, 0, ::8, ::8], golden()["map_av_224_s8"].reshape(4, 28, 28), MAPS, "map at 224 px")


def test_golden_localization():
    objective, _ = evaluated()
    with torch.inference_mode():
        found = objective.model.localize(golden_batch())
    assert_near(found.map, golden()["map_av"][:, 0], MAPS, "localization map")
    assert_near(found.extra["foreground"], golden()["map_fg"][:, 0], MAPS, "foreground map")
    assert_near(found.extra["regions"], golden()["att_heatmaps"].mean(1), MAPS, "mean of the region maps")
    scale = float(drawn("scale", (1,)))
    assert found.bounds == pytest.approx((-scale, scale))
    assert found.map.max() <= found.bounds[1]


def test_golden_losses():
    objective, outputs = evaluated()
    found = terms(objective, outputs)
    for key, name in TERMS.items():
        assert float(found[name]) == pytest.approx(float(golden()[f"loss_{key}"]), rel=LOSSES), name
    kl = MapConsistency(MapConsistency.Config(name="map_consistency", divergence="kl"))
    value = float(kl(**{need: outputs[need] for need in kl.needs}))
    assert value == pytest.approx(float(golden()["loss_div_kl"]), rel=LOSSES)


def check_step(objective: Objective, forward) -> None:
    """One training step of the golden case."""
    losses = forward(golden_batch(), weights(objective))
    losses.total.backward()
    for key, name in TERMS.items():
        assert float(losses.terms[name]) == pytest.approx(float(golden()[f"train_loss_{key}"]), rel=LOSSES), name
    assert float(losses.total.detach()) == pytest.approx(float(golden()["train_loss_total"]), rel=LOSSES)
    norms = {
        published_name(objective.model, key): float(value.grad.double().norm())
        for key, value in objective.model.named_parameters()
        if value.grad is not None
    }
    names = [str(name) for name in golden()["train_grad_names"]]
    assert set(norms) == set(names)
    assert_near(np.array([norms[name] for name in names]), golden()["train_grad_norm"], GRADIENTS, "gradient norms")
    for name, expected in zip(names, golden()["train_grad_norm"]):
        assert norms[name] == pytest.approx(expected, rel=GRADIENTS), name
    model = objective.model
    statistics = {
        "train_bn_imgnet_bn1_mean": model.image_encoder.net.bn1.running_mean,
        "train_bn_audnet_bn1_var": model.audio_encoder.net.bn1.running_var,
    }
    for name, value in statistics.items():
        assert_near(value, golden()[name], MAPS, name)


def test_golden_step():
    objective = golden_objective().train()
    check_step(objective, objective)
    assert set(UNUSED) == {str(name) for name in golden()["train_nograd_names"]}


def test_golden_map_of_a_step():
    model = golden_objective().model.train()
    with torch.no_grad():
        outputs = model(golden_batch())
    assert_near(outputs["localization_map"], golden()["train_map_av"][:, 0], MAPS, "localization map")
    pairs = torch.einsum("idhw,jd->ijhw", outputs["image_features"], outputs["audio_features"]) * outputs["scale"]
    assert_near(pairs.amax((2, 3)), golden()["train_logits"], MAPS, "logits")


@pytest.mark.slow
def test_golden_step_compiled():
    objective = golden_objective().train()
    check_step(objective, torch.compile(objective, fullgraph=True))


@pytest.mark.parametrize(("tag", "seconds"), [("clip3s", 3.0), ("clip10s", 10.4)])
def test_golden_spectrograms(tag: str, seconds: float):
    config = load_frontend("vcs")
    with np.load(GOLDEN / "frontend.npz") as arrays:
        found = {
            f"{tag}_{name}": torch.from_numpy(wave.astype(np.float32) / 32768)
            for name, wave in waves(24000, seconds, 202).items()
        }
        for name in set(found) & set(arrays.files):
            middle = len(found[name]) // 2
            sound = found[name][middle - 36000 : middle + 36000]
            spectrogram = normalise(log_spectrogram(sound, config)[None], config)
            assert spectrogram.shape == (1, 1, 257, 301)
            assert np.abs(spectrogram[0, 0, ::4, ::4].numpy() - arrays[name]).max() < 1e-5, name


def test_golden_picture():
    config = ImageConfig(interpolation="cubic", antialias=True)
    resized = resize(photo(256, 256, 88), 224, config).transpose(2, 0, 1)[:, ::8, ::8] / 255
    with np.load(GOLDEN / "frontend.npz") as arrays:
        expected = arrays["image_lmdb_eval_s8"] * np.reshape(IMAGENET[1], (3, 1, 1)) + np.reshape(
            IMAGENET[0], (3, 1, 1)
        )
    assert np.abs(resized - expected).max() < 1.01 / 255


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("scale", [1.0, 8.0, -3.0])
@pytest.mark.parametrize("pool", ["max", "mean"])
def test_scaled_mil_equals_loops(pool: str, scale: float):
    image, sound = normalize(values(4, 6, 3, 2), dim=1), normalize(values(4, 6, seed=1), dim=1)
    expected = 0.0
    for i in range(4):
        row = []
        for j in range(4):
            cells = [scale * float(image[i, :, y, x] @ sound[j]) for y in range(3) for x in range(2)]
            row.append(max(cells) if pool == "max" else sum(cells) / len(cells))
        expected += (math.log(sum(math.exp(value) for value in row)) - row[i]) / 4
    loss = ScaledMIL(ScaledMIL.Config(name="scaled_mil", pool=pool))
    found = loss(image_features=image, audio_features=sound, scale=torch.tensor([scale], dtype=torch.float64))
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_node_contrast_equals_loops():
    foreground, background = values(5, 3), values(5, 4, seed=1)
    expected = 0.0
    for best, worst in zip(foreground.tolist(), background.tolist()):
        f, n = sum(best) / 3, sum(worst) / 4
        expected -= math.log(math.exp(f) / (math.exp(f) + math.exp(n))) / 5
    loss = NodeContrast(NodeContrast.Config(name="node_contrast"))
    found = loss(foreground_similarity=foreground, background_similarity=background)
    assert float(found) == pytest.approx(expected, rel=1e-12)


def plain_softmax(cells: list[float]) -> list[float]:
    powers = [math.exp(value) for value in cells]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("divergence", ["js", "kl"])
def test_map_consistency_equals_loops(divergence: str):
    foreground, localization = values(3, 2, 4), 2 * values(3, 2, 4, seed=1)
    expected = 0.0
    for one, other in zip(foreground.flatten(1).tolist(), localization.flatten(1).tolist()):
        for p, q in zip(plain_softmax(one), plain_softmax(other)):
            m = (p + q) / 2
            if divergence == "js":
                expected += (p * math.log(p / m) + q * math.log(q / m)) / 2 / 3
            else:
                expected += q * math.log(q / p) / 3
    loss = MapConsistency(MapConsistency.Config(name="map_consistency", divergence=divergence))
    assert float(loss(foreground_map=foreground, localization_map=localization)) == pytest.approx(expected, rel=1e-12)


def test_map_consistency_of_certain_maps_is_finite():
    """Where each map is sure of another cell: ln 2, and no nan from 0 times ln 0."""
    foreground, localization = torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)
    foreground[0, 0, 0] = localization[0, 1, 1] = 1000.0
    foreground.requires_grad_()
    value = MapConsistency(MapConsistency.Config(name="map_consistency"))(
        foreground_map=foreground, localization_map=localization
    )
    value.backward()
    assert float(value.detach()) == pytest.approx(math.log(2)) and foreground.grad is not None
    assert torch.isfinite(foreground.grad).all()


def test_gradients():
    def mil(image: torch.Tensor, sound: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return ScaledMIL(ScaledMIL.Config(name="scaled_mil"))(image_features=image, audio_features=sound, scale=scale)

    def contrast(foreground: torch.Tensor, background: torch.Tensor) -> torch.Tensor:
        loss = NodeContrast(NodeContrast.Config(name="node_contrast"))
        return loss(foreground_similarity=foreground, background_similarity=background)

    def consistency(foreground: torch.Tensor, localization: torch.Tensor) -> torch.Tensor:
        loss = MapConsistency(MapConsistency.Config(name="map_consistency"))
        return loss(foreground_map=foreground, localization_map=localization)

    scale = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    cases = [
        (mil, (values(3, 4, 2, 2).requires_grad_(), values(3, 4, seed=1).requires_grad_(), scale)),
        (contrast, (values(3, 2).requires_grad_(), values(3, 2, seed=1).requires_grad_())),
        (consistency, (values(2, 2, 3).requires_grad_(), values(2, 2, 3, seed=1).requires_grad_())),
    ]
    for function, inputs in cases:
        assert torch.autograd.gradcheck(function, inputs), function


def small(**options) -> VCS:
    return VCS(VCS.Config.model_validate({"name": "vcs", **options}))


def test_dropout_is_for_training_alone():
    model = small()
    batch = Batch(
        clip_id=["a"],
        valid=torch.ones(1, dtype=torch.bool),
        image=torch.rand(1, 3, 64, 64),
        spectrogram=torch.randn(1, 1, 64, 50),
    )
    with torch.no_grad():
        model.eval()
        assert torch.equal(model(batch)["node_similarity"], model(batch)["node_similarity"])
        model.node_dropout.train()
        assert not torch.equal(model(batch)["node_similarity"], model(batch)["node_similarity"])


@pytest.mark.parametrize("decay", [True, False])
def test_decay_of_the_scale_is_a_choice(decay: bool):
    groups = small(decay_scale=decay).param_groups()
    optimizer = build_optimizer(OptimConfig(weight_decay=1e-4), groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4, 1e-4 if decay else 0.0]
    assert sum(len(group["params"]) for group in groups) == 122


def test_more_nodes_than_there_are_is_refused():
    with pytest.raises(ValidationError, match="9 foreground and 8 background of 16 nodes"):
        small(foreground=9)
