"""SSL-Align against its authors' network, and its losses, whose code was never released, against plain loops."""

import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_states import assert_near, generator, load_drawn, plane_wave_batch, smooth_photo
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from configs.schema import ImageConfig
from model.build import build_objective
from model.losses.trimap import TriMap
from model.losses.view_alignment import ViewAlignment
from model.losses.view_localization import ViewLocalization
from model.methods.ssl_align import SSLAlign
from model.objective import Objective
from model.published import published_name
from model.similarity import own_pair_map
from model.standardise import IMAGENET
from pipeline.batch import Batch
from pipeline.loaders.reference import resize

GOLDEN = Path(__file__).parents[1] / "golden" / "ssl_align"
MAPS, LOSSES, GRADIENTS = 1e-3, 1e-3, 1e-2
"""Allowed differences in float32, relative to the largest value, as the golden case states them."""
UNUSED = {
    "imgnet.conv1_a.weight": (64, 1, 7, 7),
    "imgnet.conv1_flow.weight": (64, 6, 7, 7),
    "audnet.conv1.weight": (64, 3, 7, 7),
    "audnet.conv1_flow.weight": (64, 6, 7, 7),
    **{f"{net}.fc.weight": (1000, 512) for net in ("imgnet", "audnet")},
    **{f"{net}.fc.bias": (1000,) for net in ("imgnet", "audnet")},
}


def read(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


@cache
def golden() -> dict[str, np.ndarray]:
    return read("case_a")


@cache
def golden_batch() -> Batch:
    return plane_wave_batch(*golden()["seeds_image_spec"].tolist(), frames=299)


def golden_objective() -> Objective:
    """With the tri-map loss of LVS, which the authors' network computes beside the map."""
    config = {"name": "ssl_align", "losses": {"trimap": {}}}
    objective = build_objective(SSLAlign.Config.model_validate(config))
    assert len(load_drawn(objective.model, UNUSED)) == 248
    return objective


@cache
def evaluated() -> tuple[Objective, dict[str, Tensor]]:
    objective = golden_objective().eval()
    with torch.no_grad():
        return objective, objective.model(golden_batch())


def trimap(objective: Objective) -> TriMap:
    loss = objective.losses["trimap"]
    assert isinstance(loss, TriMap)
    return loss


@torch.no_grad()
def test_golden_features():
    objective, outputs = evaluated()
    image = objective.model.image_encoder(golden_batch().image)
    sound = objective.model.audio_encoder(golden_batch().spectrogram)
    assert image.shape == tuple(golden()["img_feat_shape"]) and sound.shape == tuple(golden()["aud_feat_shape"])
    assert_near(image[:, :16], golden()["img_feat_c0_16"], MAPS, "image features")
    assert_near(sound[:, :8], golden()["aud_feat_c0_8"], MAPS, "audio features")
    assert_near(sound.amax((2, 3)), golden()["aud_pooled"], MAPS, "pooled audio features")
    assert_near(outputs["audio_features"], golden()["aud_embed"], MAPS, "audio vector")


def test_golden_maps():
    objective, outputs = evaluated()
    with torch.inference_mode():
        found = objective.model.localize(golden_batch())
    assert_near(found.map, golden()["map"][:, 0], MAPS, "map")
    assert found.bounds == (-1.0, 1.0)
    other = own_pair_map(outputs["image_features"][:1], outputs["audio_features"][1:2])[0]
    assert_near(other, golden()["cross_map_0_1"], MAPS, "map of another pair")
    # OpenCV's bilinear resizing is torch's without aligned corners.
    for branch, corners in (("cv2", False), ("ac", True)):
        large = interpolate(found.map[:, None], (224, 224), mode="bilinear", align_corners=corners)[:, 0]
        low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
        scaled = (large - low) / (high - low)
        assert_near(scaled[:, ::4, ::4], golden()[f"pred_{branch}_av_stride4"], MAPS, f"scaled map, {branch}")
        cut = scaled.flatten(1).sort(dim=1).values[:, 224 * 224 // 2]
        assert_near(cut, golden()[f"pred_{branch}_av_median"], MAPS, f"upper median, {branch}")


def test_golden_side_products():
    objective, outputs = evaluated()
    logits = trimap(objective).logits(outputs["image_features"], outputs["audio_features"])
    assert_near(logits, golden()["lvs_logits"], MAPS, "logits")
    cosines = own_pair_map(outputs["image_features"], outputs["audio_features"])
    assert_near(((cosines - 0.65) / 0.03).sigmoid(), golden()["lvs_pos"][:, 0], MAPS, "sounding cells")
    assert_near(1 - ((cosines - 0.4) / 0.03).sigmoid(), golden()["lvs_neg"][:, 0], MAPS, "background cells")


def check_step(objective: Objective, forward) -> None:
    """One training step of the golden case."""
    losses = forward(golden_batch(), torch.ones(1))
    losses.total.backward()
    assert float(losses.total.detach()) == pytest.approx(float(golden()["train_lvs_loss"]), rel=LOSSES)
    norms = {
        published_name(objective.model, key): float(value.grad.double().norm())
        for key, value in objective.model.named_parameters()
        if value.grad is not None
    }
    names = [str(name) for name in golden()["grad_names"]]
    assert set(norms) == set(names)
    for name, expected in zip(names, golden()["grad_l2"]):
        assert norms[name] == pytest.approx(expected, rel=GRADIENTS), name


def test_golden_step():
    objective = golden_objective().train()
    check_step(objective, objective)


def test_golden_map_of_a_step():
    objective = golden_objective().train()
    with torch.no_grad():
        outputs = objective.model(golden_batch())
    maps = own_pair_map(outputs["image_features"], outputs["audio_features"])
    assert_near(maps, golden()["train_map"][:, 0], MAPS, "map")
    logits = trimap(objective).logits(outputs["image_features"], outputs["audio_features"])
    assert_near(logits, golden()["train_lvs_logits"], MAPS, "logits")


@pytest.mark.slow
def test_golden_case_compiled():
    objective = golden_objective().train()
    check_step(objective, torch.compile(objective, fullgraph=True))
    model = golden_objective().model.eval()
    with torch.inference_mode():
        found = torch.compile(lambda batch: model.localize(batch).map, fullgraph=True)(golden_batch())
    assert_near(found, golden()["map"][:, 0], MAPS, "map")


@pytest.mark.parametrize("antialias", [False, True])
def test_golden_picture(antialias: bool):
    """The whole frame squeezed into a square; the authors resize floats, ours are rounded to bytes."""
    config = ImageConfig(interpolation="cubic", antialias=antialias)
    small = torch.from_numpy(resize(smooth_photo(360, 640, 5), 224, config)).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    found = ((small - mean) / std)[:, ::4, ::4].numpy()
    away = np.abs(found - read("image_frontend")[f"eval_{'' if antialias else 'no_'}antialias_stride4"])
    assert away.mean() < 6e-3 and away.max() < 0.02  # half a byte is 0.0087


def golden_views(seed: int) -> dict[str, Tensor]:
    """Three views of eight clips: maps of 5 x 5 cells, sounds, and embeddings that partly agree."""
    rng = generator(seed)
    image, sound = rng.standard_normal((3, 8, 32, 5, 5)), rng.standard_normal((3, 8, 32))
    seen = rng.standard_normal((3, 8, 16))
    heard = 0.5 * seen + rng.standard_normal((3, 8, 16))
    views = {"image_views": image, "audio_views": sound, "image_embeddings": seen, "audio_embeddings": heard}
    return {name: normalize(torch.from_numpy(value), dim=2) for name, value in views.items()}


def localization(views: dict[str, Tensor], weights: Tensor, **options) -> Tensor:
    loss = ViewLocalization(ViewLocalization.Config(name="view_localization", **options))
    return loss(image_views=views["image_views"], audio_views=views["audio_views"], pair_weights=weights)


def alignment(views: dict[str, Tensor], weights: Tensor, **options) -> Tensor:
    loss = ViewAlignment(ViewAlignment.Config(name="view_alignment", **options))
    seen, heard = views["image_embeddings"], views["audio_embeddings"]
    return loss(image_embeddings=seen, audio_embeddings=heard, pair_weights=weights)


@pytest.mark.parametrize("seed", [401, 402])
def test_golden_losses(seed: int):
    """Every pair of views alone, and all of them together."""
    golden_losses, views = read("paper_loss"), golden_views(seed)
    for v in range(3):
        for w in range(3):
            pair = torch.zeros(3, 3, dtype=torch.float64)
            pair[v, w] = 1
            for found, key in (
                (localization(views, pair), "loc_mean"),
                (localization(views, pair, pool="max"), "loc_max"),
                (alignment(views, pair), "align"),
            ):
                assert float(found) == pytest.approx(float(golden_losses[f"{key}_{seed}"][v, w]), rel=1e-9)
    ones = torch.ones(3, 3, dtype=torch.float64)
    total = localization(views, ones) + alignment(views, ones)
    assert float(total) == pytest.approx(float(golden_losses[f"total_mean_pool_{seed}"]), rel=1e-9)


def small_views(v: int = 2, w: int = 3, count: int = 3, dim: int = 4) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)

    def unit(*shape: int) -> Tensor:
        return normalize(torch.randn(*shape, generator=draw, dtype=torch.float64), dim=2)

    return {
        "image_views": unit(v, count, dim, 2, 3),
        "audio_views": unit(w, count, dim),
        "image_embeddings": unit(v, count, dim),
        "audio_embeddings": unit(w, count, dim),
    }


def plain_contrast(cosine, v: int, w: int, count: int, tau: float, weights: Tensor) -> float:
    """`cosine(view of the picture, its clip, view of the sound, its clip)`."""
    total = 0.0
    for p in range(v):
        for q in range(w):
            for n in range(count):
                row = [cosine(p, n, q, m) / tau for m in range(count)]
                column = [cosine(p, m, q, n) / tau for m in range(count)]
                for values in (row, column):
                    chance = math.exp(values[n]) / sum(math.exp(value) for value in values)
                    total -= float(weights[p, q]) * math.log(chance) / count
    return total


@pytest.mark.parametrize(("tau", "pool"), [(0.07, "mean"), (0.5, "max")])
def test_losses_equal_loops(tau: float, pool: str):
    views, weights = small_views(), torch.tensor([[1.0, 0.5, 2.0], [0.0, 1.0, 3.0]], dtype=torch.float64)

    def localized(p: int, n: int, q: int, m: int) -> float:
        cells = [
            float(views["image_views"][p, n, :, y, x] @ views["audio_views"][q, m]) for y in range(2) for x in range(3)
        ]
        return max(cells) if pool == "max" else sum(cells) / 6

    def aligned(p: int, n: int, q: int, m: int) -> float:
        return float(views["image_embeddings"][p, n] @ views["audio_embeddings"][q, m])

    expected = plain_contrast(localized, 2, 3, 3, tau, weights)
    assert float(localization(views, weights, tau=tau, pool=pool)) == pytest.approx(expected, rel=1e-9)
    expected = plain_contrast(aligned, 2, 3, 3, tau, weights)
    assert float(alignment(views, weights, tau=tau)) == pytest.approx(expected, rel=1e-9)


def test_gradients():
    views = {name: value.requires_grad_() for name, value in small_views().items()}
    weights = torch.ones(2, 3, dtype=torch.float64)
    for loss, names in ((localization, ("image_views", "audio_views")), (alignment, ("image_embeddings",))):
        inputs = [views[name] for name in names]
        assert torch.autograd.gradcheck(
            lambda *given, loss=loss, names=names: loss({**views, **dict(zip(names, given))}, weights, tau=0.5), inputs
        )


def build(**options) -> SSLAlign:
    torch.manual_seed(0)
    return SSLAlign(SSLAlign.Config.model_validate({"name": "ssl_align", "embedding_dim": 16, **options}))


def clips(views: int, count: int = 3) -> Batch:
    draw = torch.Generator().manual_seed(0)

    def pictures() -> Tensor:
        return torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=draw)

    def sounds() -> Tensor:
        return torch.randn(count, 1, 64, 50, generator=draw)

    return Batch(
        clip_id=[str(number) for number in range(count)],
        valid=torch.ones(count, dtype=torch.bool),
        image=pictures(),
        spectrogram=sounds(),
        more_images=tuple(pictures() for _ in range(views - 1)),
        more_spectrograms=tuple(sounds() for _ in range(views - 1)),
    )


@pytest.mark.parametrize(("augmented", "neighbours"), [(1, 1), (0, 0), (2, 0), (0, 3)])
def test_the_pipeline_is_asked_for_the_views(augmented: int, neighbours: int):
    spec = build(augmented=augmented, neighbours=neighbours).inputs
    assert (spec.image_views, spec.audio_views, spec.neighbours) == (1 + augmented, 1 + augmented, neighbours)


@torch.no_grad()
def test_views_keep_their_order_and_weights():
    model = build(view_weights=(1.0, 0.5, 0.25)).eval()
    batch = clips(3)
    outputs = model(batch)
    assert set(outputs) == model.outputs
    assert outputs["image_views"].shape == (3, 3, 512, 4, 4) and outputs["audio_embeddings"].shape == (3, 3, 16)
    weights = torch.tensor([1.0, 0.5, 0.25])
    torch.testing.assert_close(outputs["pair_weights"], weights[:, None] * weights)
    for number, picture in enumerate((batch.image, *batch.more_images)):
        alone = normalize(model.image_encoder(picture), dim=1)
        torch.testing.assert_close(outputs["image_views"][number], alone, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(outputs["image_features"], outputs["image_views"][0])
    single = model(clips(1))
    assert single["pair_weights"].tolist() == [[1.0]] and len(single["image_views"]) == 1


@torch.no_grad()
def test_the_head_sees_the_mean_cell_before_unit_length():
    model = build(head_layers=2).eval()
    batch = clips(1)
    image = model.image_encoder(batch.image)
    first, _, last = model.image_head
    expected = normalize(last(first(image.mean((2, 3))).relu()), dim=1)
    torch.testing.assert_close(model(batch)["image_embeddings"][0], expected)


def test_negative_weights_are_refused():
    with pytest.raises(ValueError, match="must not be negative"):
        build(view_weights=(1.0, -1.0, 1.0))
