"""Protocols against the released evaluators, and what every protocol must keep."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from configs.resolve import names, resolve
from model.metric import consensus_iou, success_scores
from model.protocol import Protocol, random_maps
from pipeline.batch import Truth
from tests.model.golden_metrics import FOLDER, case, checksum, golden, read_json

# Protocol, map, and the name of the released evaluator's scores of that map in the golden file.
RELEASED = [
    ("ez_vsl", "LO7", "ezvsl_test_{}_av"),
    ("ez_vsl", "OBJ7", "ezvsl_test_{}_obj"),
    ("ez_vsl", "LO7", "fnac_test_{}_av"),
    ("ez_vsl_train", "LO7", "ezvsl_train_{}_av"),
    ("ez_vsl_train", "LO7", "fnac_test2_{}_av"),
    ("lvs", "LO14", "lvs_{}_h14"),
    ("lvs", "LO7", "lvs_{}_h7"),
    ("htf", "LO7", "htf_{}"),
    ("ssl_align", "LO7", "align_{}"),
    ("jsa", "LO7", "jsa06_{}_aud"),
]


def protocol(name: str, **options) -> Protocol:
    kind = resolve("model.protocols", name)
    return kind(kind.Config(name=name, **options))


def truth_of(data: str) -> str:
    return {"vggss": "union", "flickr": "consensus"}[data]


@pytest.mark.parametrize("data", ["vggss", "flickr"])
def test_the_golden_inputs_are_made_again(data: str):
    maps, _, boxes = case(data)
    sums = read_json("input_checksums.json")
    for name, value in maps.items():
        assert checksum(value.numpy()) == sums[f"{data}_{name}"]
    assert checksum(np.array([box for clip in boxes for box in clip])) == sums["VB" if data == "vggss" else "FB"]


def test_truth_is_drawn_as_the_released_evaluators_draw_it():
    drawn = protocol("ez_vsl", truth="union").rasterise(case("vggss")[1])
    released = np.unpackbits(golden()["gt_vggss_bits"]).reshape(64, 224, 224)
    np.testing.assert_array_equal(drawn.weights.numpy(), released)
    drawn = protocol("ez_vsl", truth="consensus").rasterise(case("flickr")[1])
    planes = np.unpackbits(golden()["gt_flickr_x2"]).reshape(64, 2, 224, 224)
    np.testing.assert_array_equal(drawn.weights.numpy(), planes.sum(1) / 2)
    np.testing.assert_array_equal(drawn.area.numpy(), golden()["gt_flickr_sum"])


@pytest.mark.parametrize("data", ["vggss", "flickr"])
@pytest.mark.parametrize(("name", "which", "pattern"), RELEASED)
def test_scores_equal_the_released_ones(name: str, which: str, pattern: str, data: str):
    maps, truths, _ = case(data)
    rule = protocol(name, truth=truth_of(data))
    found = consensus_iou(rule.prepare(maps[which]).foreground, rule.rasterise(truths)).numpy()
    key = pattern.format(data)
    # OpenCV resizes with other roundings than torch: a pixel at the threshold may fall on the other side.
    np.testing.assert_allclose(found, golden()[f"{key}_ciou"], rtol=0, atol=2e-3 if name in ("lvs", "htf") else 1e-6)
    summary, released = success_scores(found), golden()[f"{key}_summary"]
    if pattern.startswith("align"):  # cIoU and AUC stand among six others
        assert [summary["at_50"], summary["auc"]] == pytest.approx([released[0], released[2]], abs=1e-6)
    else:
        np.testing.assert_allclose(
            [summary["at_50"], summary["auc"], summary["mean"]],
            released,
            rtol=0,
            atol=1e-4 if name in ("lvs", "htf") else 1e-6,
        )


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("corners", [True, False])
def test_resizing_equals_the_recorded_one(mode: str, corners: bool):
    with np.load(FOLDER / "interpolation.npz") as recorded:
        wanted = recorded[f"torch_{mode}_{'ac' if corners else 'noac'}"]
    maps = case("vggss")[0]["LO7"][:4]
    found = interpolate(maps[:, None], (224, 224), mode=mode, align_corners=corners)[:, 0, ::8, ::8]
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=2e-6)
    if (mode, corners) == ("bilinear", True):
        resized = protocol("ez_vsl").resize(maps)[:, ::8, ::8]
        torch.testing.assert_close(resized, found, rtol=0, atol=0)


@pytest.mark.parametrize("name", names("model.protocols"))
def test_no_map_depends_on_its_neighbours(name: str):
    rule = protocol(name)
    native = random_maps([str(number) for number in range(9)], 7, 5)
    together = rule.prepare(native)
    assert together.resized.shape == together.foreground.shape == (9, rule.size_px, rule.size_px)
    for chosen in (slice(3, 4), slice(2, 9), [8, 0, 3]):
        alone = rule.prepare(native[chosen])
        for part in ("resized", "scaled", "foreground", "ordered"):
            assert torch.equal(getattr(alone, part), getattr(together, part)[chosen]), part
    repeated = rule.prepare(native[:1]).repeat(4)
    assert torch.equal(repeated.foreground, together.foreground[:1].expand(4, -1, -1))


@pytest.mark.parametrize("name", names("model.protocols"))
def test_the_least_and_the_largest_pixel_are_on_their_sides(name: str):
    rule = protocol(name)
    native = torch.linspace(-4, 9, 49).reshape(1, 7, 7)
    maps = rule.prepare(native)
    assert maps.foreground[0].flatten()[maps.resized.argmax()]
    assert not maps.foreground[0].flatten()[maps.resized.argmin()]
    if rule.half_area:
        assert maps.foreground.sum().item() == pytest.approx(rule.size_px**2 / 2, rel=1e-3)
    assert all(isinstance(text, str) and text for text in rule.settings().values())


def test_a_constant_map_stays_and_is_all_foreground():
    maps = protocol("ez_vsl").prepare(torch.full((2, 7, 7), -3.0))
    assert torch.equal(maps.scaled, torch.full((2, 224, 224), -3.0)) and maps.foreground.all()


def test_a_strict_threshold_leaves_a_constant_map_empty():
    assert not protocol("ssl_align").prepare(torch.zeros(2, 7, 7)).foreground.any()


def test_scaling_does_not_change_the_map_it_was_given():
    native = torch.rand(1, 224, 224, generator=torch.Generator().manual_seed(0)) + 1
    before = native.clone()
    protocol("ez_vsl").prepare(native)
    assert torch.equal(native, before)


def test_how_many_annotators_there_are_decides_the_truth():
    corner, other = [0, 0, 0.5, 0.5], [0, 0, 1, 0.25]
    one = Truth(boxes=np.array([[*corner, 0], [*other, 0]]))
    two = Truth(boxes=np.array([[*corner, 0], [*other, 1]]))
    second_only = Truth(boxes=np.array([[*corner, 1]]))
    said = Truth(boxes=np.array([[*corner, 0]]), extra={"annotators": 3})
    drawn = protocol("ez_vsl").rasterise([one, two, second_only, said]).weights
    assert drawn[:, 0, 0].tolist() == [1.0, 1.0, 0.5, 0.5]
    assert drawn[:, 0, 200].tolist() == [1.0, 0.5, 0.0, 0.0]
    assert protocol("ez_vsl", truth="union").rasterise([two]).weights[0, 0, 200] == 1
    assert protocol("ez_vsl", truth="consensus").rasterise([one]).weights[0, 0, 200] == 0.5


def test_a_mask_of_another_size_keeps_its_edges():
    mask = np.zeros((448, 112), np.uint8)
    mask[:224, :28] = 255
    mask[224:, :28] = 128
    drawn = protocol("ez_vsl").rasterise([Truth(mask=mask)])
    expected = torch.zeros(224, 224)
    expected[:112, :56], expected[112:, :56] = 1, 129 / 256  # 128 / 255, in steps of 1/256
    assert torch.equal(drawn.weights[0], expected)
    assert drawn.area.item() == 112 * 56 * (1 + 129 / 256)
