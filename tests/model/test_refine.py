"""Refined maps against the numbers of their authors' code.

`golden/refine/maps.npz`: native maps and the final maps that the released evaluators of JSA and SSL-Align made of them
(every 8th pixel), with the number of pixels at or above 0.6, or the median; and the object prior of four pictures.
"""

import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from configs.errors import UserError
from configs.resolve import names, resolve
from model.base import Localization
from model.protocol import SetFacts, Source
from model.refine.ogl import Ogl
from model.refinement import Refinement, share_name
from pipeline.batch import Batch
from tests.model.golden_metrics import case, extended_case, golden
from tests.model.golden_states import generator, plane_wave_batch
from tests.model.test_metrics import metric
from tests.model.test_protocols import protocol, truth_of

FOLDER = Path(__file__).parent.parent / "golden" / "refine"


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "maps.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


def saliency_state() -> dict[str, Tensor]:
    """The golden weights of the object prior, made again from their rule."""
    net = resolve("model.encoders", "resnet")(encoder_config(weights="none")).net
    state: dict[str, Tensor] = {}
    for name, value in net.state_dict().items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros_like(value)
            continue
        z = generator(zlib.crc32(name.encode())).standard_normal(tuple(value.shape))
        if name.endswith("running_var"):
            z = 1 + np.abs(z) / 10
        elif value.ndim == 1:
            z = z / 10 + name.endswith("weight")
        else:
            z = z * np.sqrt(2 / np.prod(value.shape[1:]))
        state[name] = torch.from_numpy(z.astype(np.float32))
    return state


def encoder_config(**options: Any) -> Any:
    return resolve("model.encoders", "resnet").Config.model_validate({"name": "resnet", **options})


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "saliency.pth"
    torch.save(saliency_state(), path)
    return path


def refinement(name: str, weights: Path, **options: Any) -> Refinement:
    kind = resolve("model.refine", name)
    if issubclass(kind, Ogl):
        options["network"] = {"name": "resnet", "weights": str(weights), "frozen": True}
    return kind(kind.Config.model_validate({"name": name, **options}))


def batch_of(image: Tensor, **fields: Any) -> Batch:
    count = len(image)
    return Batch(
        clip_id=[f"clip {number}" for number in range(count)],
        valid=torch.ones(count, dtype=torch.bool),
        image=image,
        spectrogram=torch.zeros(count, 1, 4, 4),
        **fields,
    )


def mixed(name: str, shares: dict[str, float], sources: dict[str, Source], family: str = "") -> Tensor:
    rule = protocol(name, SetFacts(family=family))
    prepared = {key: rule.prepare(each.map, each.bounds, prior=each.prior) for key, each in sources.items()}
    return rule.mix(shares, prepared).scaled


def test_the_object_prior_equals_the_released_one(recorded: dict[str, np.ndarray], weights: Path):
    ogl = refinement("ogl", weights)
    assert isinstance(ogl, Ogl)
    image = plane_wave_batch(int(recorded["jsa_seeds_image"][0]), 0, 4).image
    found = ogl.train().prior(list("abcd"), image)
    expected = recorded["jsa_map_obj"][:, 0]
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-3 * expected.max())
    assert not any(parameter.requires_grad for parameter in ogl.parameters())


def test_an_object_prior_is_computed_once_a_clip(weights: Path):
    ogl = refinement("ogl", weights)
    assert isinstance(ogl, Ogl)
    pictures = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    first = ogl.prior(["a", "b"], pictures[:2])
    seen: list[int] = []
    ogl.network.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    # Whatever picture comes with a known id: it is not looked at again.
    again = ogl.prior(["b", "c", "a"], pictures[[2, 2, 2]])
    assert seen == [1] and torch.equal(again[[2, 0]], first)
    torch.testing.assert_close(again[1], ogl.prior(["d"], pictures[2:])[0])
    assert ogl.prior(["a"], torch.rand(1, 3, 96, 96)).shape == (1, 3, 3)


def test_missing_weights_are_an_error_with_a_remedy(tmp_path: Path):
    with pytest.raises(UserError, match="no file"):
        refinement("ogl", tmp_path / "none.pth")


def test_mixtures_equal_those_of_jsa(recorded: dict[str, np.ndarray], weights: Path):
    given = {key: torch.from_numpy(recorded[f"jsa_map_{name}"][:, 0]) for key, name in MAPS_OF_JSA.items()}
    localization = Localization(map=given["map"], bounds=(0, 1), extra={"image_query": given["image_query"]})
    batch = batch_of(torch.zeros(4, 3, 8, 8))
    rule = protocol("jsa")
    shares: dict[str, dict[str, float]] = {"aud": {"map": 1.0}}
    sources = {"map": Source(given["map"], (0, 1)), "object": Source(given["object"], (0, 2.5), prior=True)}
    iqr = refinement("iqr", weights)
    sources |= iqr.sources(batch, localization)
    for name in ("ogl", "iqr", "jsa_all"):
        shares |= refinement(name, weights).mixtures(rule)
    for ours, theirs in VARIANTS_OF_JSA.items():
        found = mixed("jsa", shares[ours], sources)
        np.testing.assert_allclose(
            found[:, ::8, ::8].numpy(), recorded[f"jsa_pred_{theirs}_stride8"], atol=2e-5, err_msg=ours
        )
        area = (found >= 0.6).sum((1, 2)).numpy()
        assert np.abs(area - recorded[f"jsa_pred_{theirs}_area06"]).max() <= 4, ours


MAPS_OF_JSA = {"map": "aud_s0.1", "image_query": "img_s0.1", "object": "obj"}
VARIANTS_OF_JSA = {
    "aud": "aud",
    "image_query": "img",
    "iqr": "iqr",
    "object": "obj",
    "ogl": "ogl",
    "jsa_all": "all",
}


@pytest.mark.parametrize(("branch", "family"), [("cv2", "vggss"), ("ac", "is3")])
def test_mixtures_equal_those_of_ssl_align(recorded: dict[str, np.ndarray], weights: Path, branch: str, family: str):
    sources = {
        "map": Source(torch.from_numpy(recorded["ssl_align_map"][:, 0]), (-1, 1)),
        "object": Source(torch.from_numpy(recorded["ssl_align_map_obj"][:, 0]), (0, 2.5), prior=True),
    }
    rule = protocol("ssl_align")
    shares = {"av": {"map": 1.0}, **refinement("ogl", weights).mixtures(rule)}
    for ours, theirs in (("av", "av"), ("object", "obj"), ("ogl", "ogl")):
        found = mixed("ssl_align", shares[ours], sources, family)
        key = f"ssl_align_pred_{branch}_{theirs}"
        np.testing.assert_allclose(found[:, ::8, ::8].numpy(), recorded[f"{key}_stride8"], atol=1e-5, err_msg=ours)
        median = found.flatten(1).sort(dim=1).values[:, 25088]
        np.testing.assert_allclose(median.numpy(), recorded[f"{key}_median"], atol=1e-5)


@pytest.mark.parametrize("data", ["vggss", "flickr"])
@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("ez_vsl", "ezvsl_test_{}_avobj"),
        ("fnac", "fnac_test_{}_avobj"),
        ("fnac_bicubic", "fnac_test2_{}_avobj"),
        ("jsa", "jsa06_{}_ogl"),
        ("ssl_align", "align_{}_ogl"),
    ],
)
def test_scores_of_mixtures_equal_the_released_ones(weights: Path, data: str, name: str, pattern: str):
    maps, truths, _ = case(data)
    rule = protocol(name, truth=truth_of(data))
    sources = {"map": rule.prepare(maps["LO7"]), "object": rule.prepare(maps["OBJ7"], (0, 2.5), prior=True)}
    truth = rule.rasterise(truths)
    for variant, key in (("ogl", pattern), ("object", pattern.replace("avobj", "obj"))):
        if key == pattern and variant == "object":
            continue  # the prior alone was not recorded
        found = rule.mix(refinement("ogl", weights).mixtures(rule)[variant], sources)
        ciou = metric("ciou").per_clip(found, truth, rule)["ciou"]
        np.testing.assert_allclose(ciou.numpy(), golden()[f"{key.format(data)}_ciou"], rtol=0, atol=1e-6)
        if name == "ssl_align":
            adaptive = metric("ciou_adaptive").per_clip(found, truth, rule)["ciou_adaptive"]
            np.testing.assert_allclose(adaptive.numpy(), golden()[f"{key.format(data)}_ciou_adap"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["rel", "abs"])
def test_mixtures_of_slavc_keep_the_scale_of_all_clips(weights: Path, mode: str):
    maps, priors, truths = extended_case()
    rule = protocol(f"slavc_{mode}")
    sources = {
        "map": rule.prepare(maps, (-1 / 0.03, 1 / 0.03)),
        "object": rule.prepare(priors, (0, 2.5), prior=True),
    }
    truth = rule.rasterise(truths)
    mixtures = refinement("ogl", weights, alphas=[0.9]).mixtures(rule)
    for variant, key in (("ogl", "a4_avobj"), ("ogl_90", "a9_avobj"), ("object", "a4_obj")):
        found = rule.mix(mixtures[variant], sources)
        ciou = metric("ciou").per_clip(found, truth, rule)["ciou"].numpy()
        confidence = metric("detection").per_clip(found, truth, rule)["confidence"].numpy()
        np.testing.assert_allclose(ciou, golden()[f"slavc_{mode}_{key}_ciou"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(confidence, golden()[f"slavc_{mode}_{key}_conf"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["ez_vsl", "jsa", "slavc_abs", "avsbench"])
def test_a_share_of_one_is_the_map_itself_and_of_nothing_the_prior(name: str):
    maps, _, _ = case("vggss")
    sources = {"map": Source(maps["LO7"], (-2, 2)), "object": Source(maps["OBJ7"], (0, 2.5), prior=True)}
    rule = protocol(name)
    own = rule.prepare(maps["LO7"], (-2, 2)).scaled
    prior = rule.prepare(maps["OBJ7"], (0, 2.5), prior=True).scaled
    assert torch.equal(mixed(name, {"map": 1.0, "object": 0.0}, sources), own)
    assert torch.equal(mixed(name, {"map": 0.0, "object": 1.0}, sources), prior)


def test_shares_name_their_mixtures(weights: Path):
    assert [share_name("ogl", share) for share in (0.6, 0.45, 1.0, 0.125)] == [
        "ogl_60",
        "ogl_45",
        "ogl_100",
        "ogl_12_5",
    ]
    mixtures = refinement("iqr", weights, alphas=[0.6]).mixtures(protocol("jsa"))
    assert mixtures["iqr_60"] == {"map": 0.6, "image_query": 0.4} and set(mixtures) == {"iqr", "iqr_60", "image_query"}
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        refinement("ogl", weights, alphas=[1.5])


@pytest.mark.parametrize("name", ["iqr", "jsa_all"])
def test_a_method_without_an_image_query_is_told(weights: Path, name: str):
    localization = Localization(map=torch.rand(2, 7, 7), bounds=(0, 1), extra={"which": torch.rand(2, 7, 7)})
    with pytest.raises(UserError, match=f"refine.{name} needs a map 'image_query'.*gives further maps: which"):
        refinement(name, weights).sources(batch_of(torch.zeros(2, 3, 32, 32)), localization)


def test_flip_averaging(weights: Path):
    def localize(batch: Batch) -> Localization:
        seen = torch.nn.functional.avg_pool2d(batch.image[:, 0], 4) * torch.linspace(1, 2, 8)  # not symmetric
        return Localization(map=seen, bounds=(0, 1), extra={"twice": 2 * seen})

    flip = refinement("flip", weights)
    batch = batch_of(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    found = flip.localize(localize, batch)
    straight, turned = localize(batch).map, localize(replace(batch, image=batch.image.flip(3))).map
    torch.testing.assert_close(found.map, (straight + turned.flip(2)) / 2)
    torch.testing.assert_close(found.extra["twice"], 2 * found.map)
    # A mirrored picture has the mirrored map.
    again = flip.localize(localize, replace(batch, image=batch.image.flip(3)))
    torch.testing.assert_close(again.map, found.map.flip(2))
    assert flip.mixtures(protocol("ez_vsl")) == {}
    with pytest.raises(UserError, match="methods that see no flow"):
        flip.localize(localize, replace(batch, flow=torch.zeros(2, 2, 32, 32)))


@pytest.mark.parametrize("name", names("model.refine"))
def test_every_refinement_keeps_its_contract(weights: Path, name: str):
    one = refinement(name, weights)
    batch = batch_of(torch.rand(2, 3, 64, 64))
    localization = Localization(map=torch.rand(2, 7, 7), bounds=(0, 1), extra={"image_query": torch.rand(2, 7, 7)})
    sources = one.sources(batch, localization)
    assert set(sources) == set(one.provides)
    assert all(len(source.map) == 2 and source.map.ndim == 3 for source in sources.values())
    for rule in names("model.protocols"):
        for variant, shares in one.mixtures(protocol(rule)).items():
            assert "." not in variant and set(shares) <= {"map", *sources}
            assert sum(shares.values()) == pytest.approx(1)
    assert one.settings()
