"""Metrics against the released evaluators, against maps computed by hand, and what every metric must keep."""

import numpy as np
import pytest
import torch

from configs.resolve import names, resolve
from model.metric import Metric
from model.protocol import centred_gaussian, random_maps
from pipeline.batch import Truth
from tests.model.golden_metrics import case, golden, read_json, vggss_boxes
from tests.model.test_protocols import protocol, truth_of


def metric(name: str, **options) -> Metric:
    kind = resolve("model.metrics", name)
    return kind(kind.Config(name=name, **options))


def boxes(*rows: tuple[float, float, float, float]) -> Truth:
    return Truth(boxes=np.array([[*row, 0] for row in rows], np.float64).reshape(-1, 5))


def score(name: str, native: torch.Tensor, *truths: Truth, **options) -> list[float]:
    """The first column of a metric for maps under the protocol of EZ-VSL."""
    rule, one = protocol("ez_vsl"), metric(name, **options)
    return one.per_clip(rule.prepare(native), rule.rasterise(truths), rule)[one.columns[0]].tolist()


def peak(*places: tuple[int, int], side: int = 224) -> torch.Tensor:
    """A map of one clip that is 1 at the places (x, y) and 0 elsewhere."""
    drawn = torch.zeros(1, side, side)
    for x, y in places:
        drawn[0, y, x] = 1
    return drawn


@pytest.mark.parametrize("data", ["vggss", "flickr"])
def test_adaptive_ciou_equals_the_released_one(data: str):
    maps, truths, _ = case(data)
    rule, one = protocol("ez_vsl", truth=truth_of(data)), metric("ciou_adaptive")
    found = one.per_clip(rule.prepare(maps["LO7"]), rule.rasterise(truths), rule)["ciou_adaptive"].numpy()
    np.testing.assert_allclose(found, golden()[f"align_{data}_ciou_adap"], rtol=0, atol=1e-6)
    summary = one.reduce({"ciou_adaptive": found})
    released = golden()[f"align_{data}_summary"]
    assert summary["ciou_adaptive_50"] == pytest.approx(released[1], abs=1e-6)
    assert summary["auc_adaptive"] == pytest.approx(released[3], abs=1e-6)


def test_blind_maps_score_on_vggss_what_they_are_known_to_score():
    rule, ciou, adaptive = protocol("ez_vsl"), metric("ciou"), metric("ciou_adaptive")
    centre = rule.prepare(centred_gaussian(224))
    ones = rule.prepare(torch.ones(1, 224, 224))
    rows: dict[str, list[torch.Tensor]] = {"centre": [], "adaptive": [], "ones": [], "ceiling": []}
    clips = list(vggss_boxes().values())
    for first in range(0, len(clips), 128):
        truth = rule.rasterise([boxes(*map(tuple, clip)) for clip in clips[first : first + 128]])
        count = len(truth.clips)
        rows["centre"].append(ciou.per_clip(centre.repeat(count), truth, rule)["ciou"])
        rows["adaptive"].append(adaptive.per_clip(centre.repeat(count), truth, rule)["ciou_adaptive"])
        rows["ones"].append(ciou.per_clip(ones.repeat(count), truth, rule)["ciou"])
        rows["ceiling"].append(ciou.ceiling(truth, rule)["ciou"])
    columns = {key: torch.cat(parts).numpy() for key, parts in rows.items()}
    known = read_json("datafree_baselines.json")["vggss"]
    assert len(columns["centre"]) == known["count"] == 5158
    for key, wanted in (("centre", "centre_median"), ("ones", "all_ones"), ("ceiling", "upper_bound_median")):
        found = ciou.reduce({"ciou": columns[key]})
        assert [found["ciou_50"], found["auc"], found["mean_ciou"]][: len(known[wanted])] == pytest.approx(
            known[wanted]
        )
    found = adaptive.reduce({"ciou_adaptive": columns["adaptive"]})
    assert found["ciou_adaptive_50"] == pytest.approx(known["centre_adaptive"][0])
    # The recorded area keeps the pixels at the threshold, the released evaluator does not: many tie in a round blob.
    assert found["auc_adaptive"] == pytest.approx(known["centre_adaptive"][1], abs=2e-4)


def test_ciou_by_hand():
    left = torch.zeros(1, 224, 224)
    left[:, :, :112] = 1
    truth = boxes((0, 0, 0.25, 1)), boxes((0.5, 0, 1, 1)), boxes((0, 0, 0.75, 1)), boxes()
    assert score("ciou", left.expand(4, -1, -1), *truth) == [0.5, 0.0, 112 / 168, 0.0]
    # Two of three people marked the left quarter, one the right quarter: weights 1 and 0.5.
    votes = Truth(boxes=np.array([[0, 0, 0.25, 1, 0], [0, 0, 0.25, 1, 1], [0.75, 0, 1, 1, 2]]))
    assert score("ciou", left, votes) == [56 / (56 * 1.5 + 56)]


def test_success_counts_the_threshold_itself():
    found = metric("ciou").reduce({"ciou": np.array([0.5, 0.49999, 0.0, 1.0])})
    assert found["ciou_50"] == 0.5 and found["mean_ciou"] == pytest.approx(1.99999 / 4)
    assert metric("ciou").reduce({"ciou": np.zeros(3)})["auc"] == pytest.approx(0.025)
    assert metric("ciou").reduce({"ciou": np.ones(3)})["auc"] == pytest.approx(1)


def test_the_ceiling_is_reached_by_the_best_map_and_by_no_other():
    rule, ciou = protocol("ez_vsl"), metric("ciou")
    votes = Truth(boxes=np.array([[0.1, 0.2, 0.5, 0.6, 0], [0.2, 0.2, 0.9, 0.6, 1]]))
    truth = rule.rasterise([boxes((0.2, 0.3, 0.6, 0.5)), boxes((0.1, 0, 1, 0.9)), votes, boxes()])
    ceiling = ciou.ceiling(truth, rule)["ciou"]
    assert ceiling[0] == pytest.approx(2 * 90 * 45 / 224**2, rel=0.02) and ceiling[3] == 0
    # The truth itself, with ties broken so that exactly half of the pixels are foreground.
    best = rule.prepare(truth.weights + 1e-3 * torch.linspace(0, 1, 224 * 224).reshape(224, 224))
    torch.testing.assert_close(ciou.per_clip(best, truth, rule)["ciou"], ceiling, rtol=0, atol=1e-4)
    other = ciou.per_clip(rule.prepare(random_maps(list("abcd"), 7, 7)), truth, rule)["ciou"]
    assert (other < ceiling)[:3].all() and other[3] == 0


def test_adaptive_ciou_cuts_at_the_size_of_the_truth():
    ramp = torch.linspace(0, 1, 224 * 224).reshape(1, 224, 224)
    # A quarter of the picture: the map's largest quarter is its lowest 56 lines; `>` leaves one pixel out.
    below, above = boxes((0, 0.75, 1, 1)), boxes((0, 0, 1, 0.25))
    area = 56 * 224
    assert score("ciou_adaptive", ramp.expand(2, -1, -1), below, above) == [(area - 1) / area, 0.0]


def test_pointing_by_hand():
    truth = boxes((0, 0, 0.5, 0.5))
    assert score("pointing", peak((10, 10)), truth) == [1.0]
    assert score("pointing", peak((111, 111)), truth) == [1.0]
    assert score("pointing", peak((112, 10)), truth) == [0.0]
    assert score("pointing", peak((10, 10), (200, 200)), truth) == [0.5]
    assert score("pointing", torch.zeros(1, 7, 7), truth) == [0.25]
    assert score("pointing", peak((10, 10)), boxes()) == [0.0]
    # Scores keep their order through rounding: the map is taken before it is brought to 0 .. 1.
    assert score("pointing", 1e6 + peak((10, 10)) * 0.125, truth) == [1.0]


def test_quadrant_by_hand():
    corner = boxes((0.6, 0.1, 0.7, 0.2), (0.8, 0.2, 0.9, 0.4))
    assert score("quadrant", peak((113, 111)), corner) == [1.0]
    assert score("quadrant", peak((111, 111)), corner) == [0.0]
    assert score("quadrant", peak((113, 112)), corner) == [0.0]
    assert score("quadrant", peak((200, 0), (0, 200)), corner) == [0.5]
    assert score("quadrant", torch.zeros(1, 7, 7), corner) == [0.25]
    assert score("quadrant", peak((200, 0)), boxes()) == [0.0]
    assert score("quadrant", peak((200, 0)), corner, rows=1, cols=1) == [1.0]
    assert score("quadrant", peak((100, 10)), boxes((0.4, 0.0, 0.6, 0.3)), rows=1, cols=3) == [1.0]
    assert score("quadrant", peak((150, 10)), boxes((0.4, 0.0, 0.6, 0.3)), rows=1, cols=3) == [0.0]


@pytest.mark.parametrize("name", names("model.metrics"))
def test_every_metric_keeps_its_contract(name: str):
    rule, one = protocol("ez_vsl"), metric(name)
    truths = [boxes((0.1 * n, 0.2, 0.1 * n + 0.3, 0.9)) for n in range(6)] + [boxes()]
    native = random_maps([str(number) for number in range(7)], 9, 9)
    columns = one.per_clip(rule.prepare(native), rule.rasterise(truths), rule)
    assert tuple(columns) == one.columns
    for key, values in columns.items():
        assert values.shape == (7,) and values.isfinite().all() and "." not in key
        for place in range(7):
            alone = one.per_clip(
                rule.prepare(native[place : place + 1]), rule.rasterise(truths[place : place + 1]), rule
            )
            assert alone[key].item() == values[place].item()
    rows = {key: values.double().numpy() for key, values in columns.items()}
    scores = one.reduce({**rows, "unit": np.arange(7)})
    assert scores and all(isinstance(value, float) and np.isfinite(value) for value in scores.values())
    single = one.reduce({**{key: values[:1] for key, values in rows.items()}, "unit": np.arange(1)})
    assert set(single) == set(scores)
    assert set(one.ceiling(rule.rasterise(truths), rule)) in (set(), set(one.columns))
