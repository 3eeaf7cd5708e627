"""Protocols against the released evaluators, and what every protocol must keep."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from configs.errors import UserError
from configs.resolve import names, resolve
from model.metric import consensus_iou, half_area_ceiling, met_thresholds, success_scores, sums_met
from model.pixel_sets import Pixels
from model.protocol import Maps, Protocol, SetFacts, full_range, random_maps
from pipeline.batch import Truth
from tests.model.golden_metrics import FOLDER, case, checksum, golden, read_json

# Protocol, map, and the name of the released evaluator's scores of that map in the golden file.
RELEASED = [
    ("ez_vsl", "LO7", "ezvsl_test_{}_av"),
    ("ez_vsl", "OBJ7", "ezvsl_test_{}_obj"),
    ("ez_vsl_train", "LO7", "ezvsl_train_{}_av"),
    ("lvs", "LO14", "lvs_{}_h14"),
    ("lvs", "LO7", "lvs_{}_h7"),
    ("htf", "LO7", "htf_{}"),
    ("sira", "LO7", "htf_{}"),
    ("fnac", "LO7", "fnac_test_{}_av"),
    ("fnac", "OBJ7", "fnac_test_{}_obj"),
    ("fnac_bicubic", "LO7", "fnac_test2_{}_av"),
    ("ssl_align", "LO7", "align_{}"),
    ("jsa", "LO7", "jsa06_{}_aud"),
]


def protocol(name: str, facts: SetFacts | None = None, **options) -> Protocol:
    """The protocol; one whose threshold comes from a set has it from a set of maxima around 0.5."""
    kind = resolve("model.protocols", name)
    rule = kind(kind.Config(name=name, **options), facts)
    return rule.at(np.array([0.1, 0.5, 0.5, 0.5])) if rule.calibrated else rule


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
    by_opencv = name in ("lvs", "htf", "sira")
    np.testing.assert_allclose(found, golden()[f"{key}_ciou"], rtol=0, atol=2e-3 if by_opencv else 1e-6)
    summary, released = success_scores(found), golden()[f"{key}_summary"]
    if pattern.startswith("align"):  # cIoU and AUC stand among six others
        assert [summary["at_50"], summary["auc"]] == pytest.approx([released[0], released[2]], abs=1e-6)
    else:
        np.testing.assert_allclose(
            [summary["at_50"], summary["auc"], summary["mean"]],
            released,
            rtol=0,
            atol=1e-4 if by_opencv else 1e-6,
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
        torch.testing.assert_close(resized, found, rtol=0, atol=2e-7)


@pytest.mark.parametrize("name", names("model.protocols"))
def test_no_map_depends_on_its_neighbours(name: str):
    rule = protocol(name)
    native = random_maps([str(number) for number in range(9)], 7, 5) * 3 - 1
    together = rule.prepare(native, (-1, 2))
    assert together.resized.shape == together.foreground.shape == (9, rule.size_px, rule.size_px)
    for chosen in (slice(3, 4), slice(2, 9), [8, 0, 3]):
        alone = rule.prepare(native[chosen], (-1, 2))
        for part in ("resized", "absolute", "scaled", "foreground", "best"):
            assert torch.equal(getattr(alone, part), getattr(together, part)[chosen]), part
        assert torch.equal(alone.ranked(77), together.ranked(77)[chosen])
        assert torch.equal(alone.top_mean(0.25), together.top_mean(0.25)[chosen])
    repeated = rule.prepare(native[:1], (-1, 2)).repeat(4)
    assert torch.equal(repeated.foreground, together.foreground[:1].expand(4, -1, -1))


@pytest.mark.parametrize("bounds", [(-1.0, 2.0), (0.0, 0.3), (-np.inf, np.inf)])
@pytest.mark.parametrize("name", names("model.protocols"))
def test_places_of_the_order_are_those_of_the_sorted_map(name: str, bounds: tuple[float, float]):
    rule = protocol(name)
    free = random_maps([str(number) for number in range(6)], 7, 7)
    few = (free[:2] * 3).round() / 3  # flat parts: many equal pixels
    close = 1e-6 * free[2:4] + 100  # normalised, some of its values become equal
    across = torch.cat([free * 1e-4 - 0.2, free[:1] * 0 + 0.5])
    native = torch.cat([free, few, close, across])
    maps, pixels = rule.prepare(native, bounds), rule.size_px**2
    ordered = maps.scaled.flatten(1).sort(dim=1).values
    for place in (0, 1, 77, pixels // 2 - 1, pixels // 2, pixels // 2 + 1, pixels - 2, pixels - 1):
        own = torch.arange(len(native)) if place == 77 else torch.zeros(len(native), dtype=torch.long)
        wanted = ordered.gather(1, (place + own)[:, None])
        assert torch.equal(maps.ranked(place + own), wanted[:, 0])
        for strict, compare in ((True, torch.gt), (False, torch.ge)):
            assert torch.equal(maps.beyond(place + own, strict=strict), compare(maps.scaled, wanted[:, :, None]))
    for share in (0.25, 0.75):
        top = maps.absolute.flatten(1).sort(dim=1).values[:, -int(pixels * share) :]
        torch.testing.assert_close(maps.top_mean(share), top.mean(1, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["slavc_rel", "slavc_abs"])
def test_the_mean_of_the_top_depends_on_nothing_else(name: str):
    # Over so many magnitudes the last bit of a sum depends on the order in which it is added up.
    rule = protocol(name)
    native = random_maps([str(number) for number in range(24)], 224, 224) ** 60
    first = rule.prepare(native).top_mean(0.25)
    maps = rule.prepare(native)
    _ = maps.foreground, maps.extremes, maps.ranked(40000), maps.beyond(45000, strict=True)
    assert torch.equal(maps.top_mean(0.25), first) and torch.equal(maps.top_mean(0.25), first)
    alone = [rule.prepare(native[number : number + 1].clone()).top_mean(0.25) for number in range(len(native))]
    assert torch.equal(torch.cat(alone), first)


@pytest.mark.parametrize("name", names("model.protocols"))
def test_no_map_has_no_score(name: str):
    rule = protocol(name)
    rule = rule.at(np.array([0.5])) if rule.calibrated else rule
    maps, truth = rule.prepare(torch.zeros(0, 7, 7)), rule.rasterise([])
    assert maps.foreground.shape == maps.best.shape == (0, 224, 224)
    assert maps.ranked(5).shape == maps.top_mean(0.25).shape == (0,)
    assert consensus_iou(maps.foreground, truth).shape == half_area_ceiling(truth).shape == (0,)
    for count in (20, 255):
        met = met_thresholds(maps.resized, torch.linspace(0, 1, count))
        assert [each.shape for each in sums_met(met, count, truth)] == [(0, count)] * 3


@pytest.mark.parametrize("name", [name for name in names("model.protocols") if name != "vssl"])
def test_the_foreground_is_what_the_threshold_says(name: str):
    rule = protocol(name)
    free = random_maps([str(number) for number in range(40)], 7, 7)
    neighbours = torch.tensor([1.0, np.nextafter(np.float32(1), np.float32(2))]).repeat_interleave(224 * 112)
    for native in ((free * 10).round() / 10, (free * 3).round() / 3, neighbours.reshape(1, 224, 224)):
        maps = rule.prepare(native)
        assert torch.equal(maps.foreground, maps.above(rule.threshold(maps), strict=rule.strict))
        if name == "vcs":
            median = np.median(maps.resized.flatten(1).numpy(), axis=1)
            assert np.array_equal(maps.foreground.numpy(), maps.resized.numpy() >= median[:, None, None])


@pytest.mark.parametrize("name", names("model.protocols"))
def test_the_least_and_the_largest_pixel_are_on_their_sides(name: str):
    rule = protocol(name)
    native = torch.linspace(-4, 9, 49).reshape(1, 7, 7)
    maps = rule.prepare(native, (-4, 9))
    assert maps.foreground[0].flatten()[maps.resized.argmax()]
    assert not maps.foreground[0].flatten()[maps.resized.argmin()]
    if rule.half_area:
        assert maps.foreground.sum().item() == pytest.approx(rule.size_px**2 / 2, rel=1e-3)
    assert all(isinstance(text, str) and text for text in rule.settings().values())


def test_a_constant_map_stays_and_is_all_foreground():
    maps = protocol("ez_vsl").prepare(torch.full((2, 7, 7), -3.0))
    assert torch.equal(maps.scaled, torch.full((2, 224, 224), -3.0)) and maps.foreground.all()


def test_a_strict_threshold_leaves_a_constant_map_empty():
    for name in ("ssl_align", "lvs", "htf"):
        assert not protocol(name).prepare(torch.zeros(2, 7, 7)).foreground.any(), name


def test_ssl_align_resizes_vggss_otherwise():
    native = case("vggss")[0]["LO14"]
    by_opencv = protocol("ssl_align", SetFacts(family="vggss")).resize(native)
    torch.testing.assert_close(by_opencv, protocol("lvs").resize(native), rtol=0, atol=0)
    for family in ("flickr", "is3", ""):
        aligned = protocol("ssl_align", SetFacts(family=family)).resize(native)
        torch.testing.assert_close(aligned, protocol("ez_vsl").resize(native), rtol=0, atol=0)


def test_vcs_cuts_at_the_mean_of_the_middle_values():
    maps = protocol("vcs").prepare(random_maps(["a", "b"], 7, 7) * 4 - 9)
    thresholds = np.median(maps.resized.flatten(1).numpy(), axis=1)
    for foreground, resized, threshold in zip(maps.foreground, maps.resized, thresholds, strict=True):
        assert torch.equal(foreground, resized >= float(threshold))
    assert protocol("vcs").prepare(torch.full((1, 7, 7), -3.0)).foreground.all()


def test_negated_maps_are_rounded_as_if_they_were_turned_round():
    native = random_maps(list("abcd"), 14, 14) * 7 - 2
    native[3] = -0.25
    rule = protocol("lvs")
    resized = rule.resize(native)
    turned = 1 - full_range(Maps(-resized, (0, 1), rule))
    assert torch.equal(rule.prepare(native).scaled, turned)
    assert rule.prepare(native).scaled[3].unique().tolist() == [0.75]


def test_logits_go_through_a_sigmoid_and_bounded_maps_between_their_bounds():
    native = torch.linspace(-3, 3, 49).reshape(1, 7, 7)
    rule = protocol("avsbench")
    logits = rule.prepare(native, (-np.inf, np.inf))
    torch.testing.assert_close(logits.scaled, rule.resize(native).sigmoid())
    assert torch.equal(logits.foreground, rule.resize(native) > 0)
    torch.testing.assert_close(rule.prepare(native, (-3, 3)).scaled, (rule.resize(native) + 3) / 6)


def test_the_threshold_of_vssl_is_the_third_quartile_of_the_maxima():
    kind = resolve("model.protocols", "vssl")
    rule = kind(kind.Config(name="vssl")).at(np.array([0.0, 1.0, 2.0, 3.0]))
    native = torch.linspace(0, 3, 49).reshape(1, 7, 7)
    assert torch.equal(rule.prepare(native).foreground, rule.resize(native) >= 2.25)
    assert "2.25" in rule.settings()["foreground"]
    with pytest.raises(UserError, match="has none; score a split with negatives"):
        rule.at(np.zeros(0))


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
    first = protocol("ez_vsl", truth="first").rasterise([two]).weights[0]
    assert first[0, 0] == 1 and first[0, 200] == 0


def test_clips_of_every_kind_are_drawn_alike_alone_and_together():
    """Some need fractions of a pixel's truth and some do not."""
    mask = np.full((10, 10), 77, np.uint8)
    truths = [
        Truth(boxes=np.array([[0, 0, 0.5, 0.5, 0]])),
        Truth(mask=np.where(np.eye(10) > 0, 255, 0).astype(np.uint8)),
        Truth(extra={"negative": True}),
        Truth(boxes=np.array([[0, 0, 0.5, 0.5, 0], [0.25, 0.25, 0.75, 0.75, 1]])),
        Truth(boxes=np.zeros((0, 5))),
        Truth(mask=mask),
        Truth(boxes=np.array([[0, 0.5, 1, 0.75, 0]])),
    ]
    rule = protocol("ez_vsl")
    together = rule.rasterise(truths)
    foreground = rule.prepare(random_maps(list("abcdefg"), 7, 7)).foreground
    for place, truth in enumerate(truths):
        alone, part = rule.rasterise([truth]), together.part(slice(place, place + 1))
        for name in ("covered", "levels", "weights", "area", "covered_px"):
            assert torch.equal(getattr(alone, name), getattr(part, name)), (place, name)
        assert torch.equal(alone.area, alone.weights.sum((1, 2)).double())
        fore = foreground[place : place + 1]
        assert torch.equal(alone.hit(Pixels(fore)), part.hit(Pixels(fore)))
        assert torch.equal(consensus_iou(fore, alone), consensus_iou(fore, part))
    assert together.area.tolist()[2] == together.area.tolist()[4] == 0


def test_corners_given_in_pixels_are_those_pixels():
    truths = [Truth(boxes=np.array([[0, 0, 1, pixel / 224, 0]])) for pixel in range(225)]
    assert protocol("ez_vsl").rasterise(truths).area.tolist() == [224 * pixel for pixel in range(225)]


def test_broken_boxes_are_counted_and_cut_at_the_edge():
    absurd = Truth(boxes=np.array([[0.25, 0.5, 0.75, -2.88e16, 0], [0.25, 0.5, 0.75, 2.88e16, 0]]))
    line = Truth(boxes=np.array([[0.5, 0, 0.5, 1, 0], [0, 0, 0, 0, 0], [-0.25, 0, 1.25, 0.25, 0]]))
    drawn = protocol("ez_vsl").rasterise([absurd, line])
    assert drawn.odd_boxes.tolist() == [2, 0] and drawn.flat_boxes.tolist() == [1, 2]
    assert drawn.area.tolist() == [112 * 112, 56 * 224]


def test_a_mask_of_another_size_keeps_its_edges():
    mask = np.zeros((448, 112), np.uint8)
    mask[:224, :28] = 255
    mask[224:, :28] = 128
    drawn = protocol("ez_vsl").rasterise([Truth(mask=mask)])
    expected = torch.zeros(224, 224)
    expected[:112, :56], expected[112:, :56] = 1, 129 / 256  # 128 / 255, in steps of 1/256
    assert torch.equal(drawn.weights[0], expected)
    assert drawn.area.item() == 112 * 56 * (1 + 129 / 256)
