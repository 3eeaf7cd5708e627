"""The scorer: the same table however the clips arrive, and no clip scored in silence that should not be."""

from pathlib import Path

import numpy as np
import pytest
import torch

from configs.errors import UserError
from configs.load import check
from configs.schema import EvaluateConfig
from model.base import Localization
from model.metric import success_scores
from model.protocol import random_maps
from model.rows import load_rows, save_rows, units
from model.scoring import (
    FLOORS,
    Scorer,
    ScoreTable,
    build_scorer,
)
from pipeline.batch import Truth

IDS = [f"clip {number:02d}" for number in range(23)]
MAPS = random_maps([f"map of {name}" for name in IDS], 8, 8)


def truth(name: str) -> Truth:
    x, y, w, h = np.random.default_rng(int(name[-2:])).random(4) * (0.5, 0.5, 0.4, 0.4)
    return Truth(boxes=np.array([[x, y, x + 0.1 + w, y + 0.1 + h, 0]]), label=name[-1], group=None)


def make(bootstrap: int = 20, **metrics: dict) -> Scorer:
    chosen = metrics or {"ciou": {}, "ciou_adaptive": {}, "pointing": {}, "quadrant": {}}
    return build_scorer(check(EvaluateConfig, {"metrics": chosen, "bootstrap": bootstrap}, "test"))


def add(scorer: Scorer, chosen: list[int], padding: int = 0, **changed: Truth | None) -> None:
    """Score clips by number, followed by padding: copies of the first clip that are not valid."""
    places = chosen + chosen[:1] * padding
    names = [IDS[place] for place in places]
    truths = [changed.get(f"n{place}", truth(IDS[place])) for place in places]
    valid = torch.tensor([True] * len(chosen) + [False] * padding)
    scorer.add(names, valid, Localization(map=MAPS[places], bounds=(0, 1)), truths)


def table(scorer: Scorer, expected: int | None = None) -> ScoreTable:
    return scorer.result(id_hash=lambda ids: "+".join(ids), expected=expected)


def same(first: ScoreTable, second: ScoreTable) -> None:
    assert first.as_mapping() == second.as_mapping()
    assert list(first.rows) == list(second.rows)
    for key, column in first.rows.items():
        np.testing.assert_array_equal(column, second.rows[key], err_msg=key)


@pytest.fixture(scope="module")
def whole() -> ScoreTable:
    scorer = make()
    add(scorer, list(range(23)))
    return table(scorer)


@pytest.mark.parametrize("size", [1, 5, 23])
def test_batch_size_and_padding_do_not_matter(whole: ScoreTable, size: int):
    scorer = make()
    for first in range(0, 23, size):
        chosen = list(range(first, min(first + size, 23)))
        add(scorer, chosen, padding=size - len(chosen))
    same(table(scorer), whole)


def test_order_does_not_matter(whole: ScoreTable):
    scorer = make()
    order = np.random.default_rng(1).permutation(23).tolist()
    add(scorer, order[:10])
    add(scorer, order[10:])
    same(table(scorer), whole)


def test_two_ranks_equal_one(whole: ScoreTable):
    first, second = make(), make()
    add(first, list(range(0, 23, 2)), padding=3)
    add(second, list(range(1, 23, 2)))
    first.extend(second.rows())
    same(table(first), whole)


def test_a_rank_whose_last_batch_is_all_padding(whole: ScoreTable):
    scorer = make()
    add(scorer, list(range(23)))
    names, maps = IDS[:2], Localization(map=MAPS[:2], bounds=(0, 1))
    scored = scorer.add(names, torch.tensor([False, False]), maps, [None, None])
    assert scored.clip_ids == [] and scored.maps.scaled.shape == (0, 224, 224)
    same(table(scorer), whole)


def test_scores_come_from_the_saved_rows_alone(whole: ScoreTable, tmp_path: Path):
    save_rows(tmp_path / "rows.npz", whole.rows)
    again = make()
    again.extend(load_rows(tmp_path / "rows.npz"))
    same(table(again), whole)
    assert success_scores(load_rows(tmp_path / "rows.npz")["ciou"])["at_50"] == whole.scores["ciou_50"]


def test_the_table_says_what_it_stands_on(whole: ScoreTable):
    assert whole.found == 23 and whole.expected is None and whole.empty == 0
    assert whole.id_hash == "+".join(IDS) and whole.protocol == "ez_vsl"
    assert set(whole.floors) == set(FLOORS)
    for scores in whole.floors.values():
        assert set(scores) == set(whole.scores)
    assert set(whole.ceiling) == {"ciou_50", "auc", "mean_ciou"}
    assert whole.ceiling["mean_ciou"] > whole.scores["mean_ciou"]
    assert whole.floors["ones"]["quadrant"] == 0.25
    assert whole.floors["ones"]["pointing"] == pytest.approx(whole.rows["truth_area"].mean())
    for name, (low, high) in whole.intervals.items():
        assert low <= whole.scores[name] <= high or name.endswith("50"), name


def test_blind_maps_can_be_left_out(whole: ScoreTable):
    config = check(EvaluateConfig, {"metrics": {"ciou": {}}, "bootstrap": 0}, "test")
    scorer = build_scorer(config, blind=False)
    add(scorer, list(range(23)))
    bare = table(scorer)
    assert bare.floors == {} and bare.ceiling == {} and bare.intervals == {}
    assert bare.scores == {key: whole.scores[key] for key in bare.scores}
    assert set(bare.rows) == {"clip_id", "label", "group", "truth_area", "ciou"}


def test_clips_with_empty_truth_are_counted_and_score_nothing():
    scorer = make()
    nothing = Truth(boxes=np.zeros((0, 5)))
    line = Truth(boxes=np.array([[0.5, 0.1, 0.5, 0.9, 0]]))
    add(scorer, [0, 1, 2], n1=nothing, n2=line)
    found = table(scorer)
    assert found.empty == 2 and found.found == 3
    for key in ("ciou", "ciou_adaptive", "pointing", "quadrant"):
        assert found.rows[key][1:].tolist() == [0, 0], key


def test_clips_without_truth_are_named():
    bare = Truth(label="dog")
    with pytest.raises(UserError, match=r"2 clip\(s\) have neither boxes nor a mask.*clip 01, clip 03"):
        add(make(), [0, 1, 2, 3], n1=None, n3=bare)
    with pytest.raises(UserError, match=r"2 clip\(s\).*clip 00, clip 01"):
        make().add(IDS[:2], torch.tensor([True, True]), Localization(map=MAPS[:2], bounds=(0, 1)), None)


def test_a_map_that_is_not_finite_is_named():
    maps = MAPS[:3].clone()
    maps[1, 2, 2] = float("nan")
    with pytest.raises(UserError, match=r"map of 1 clip\(s\) is not finite: clip 01"):
        make().add(
            IDS[:3], torch.ones(3, dtype=torch.bool), Localization(map=maps, bounds=(0, 1)), list(map(truth, IDS[:3]))
        )


def test_a_clip_counts_once():
    scorer = make()
    add(scorer, [0, 1])
    with pytest.raises(ValueError, match="scored twice: clip 01"):
        add(scorer, [1, 2])
    with pytest.raises(ValueError, match="scored twice"):
        add(make(), [4, 4])


def test_an_empty_split_is_said():
    with pytest.raises(UserError, match="no clip was scored"):
        table(make())


def test_half_precision_maps_are_scored():
    scorer = make(ciou={})
    maps = Localization(map=MAPS[:4].bfloat16(), bounds=(0, 1))
    scorer.add(IDS[:4], torch.ones(4, dtype=torch.bool), maps, list(map(truth, IDS[:4])))
    assert table(scorer).found == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_scores_as_the_cpu_does(whole: ScoreTable):
    scorer = make()
    maps = Localization(map=MAPS.cuda(), bounds=(0, 1))
    scored = scorer.add(IDS, torch.ones(23, dtype=torch.bool).cuda(), maps, list(map(truth, IDS)))
    assert scored.maps.scaled.is_cuda
    found = table(scorer)
    for key, column in whole.rows.items():
        if column.dtype.kind == "f":
            # Resizing rounds otherwise: a pixel at the threshold or at the maximum may fall on the other side.
            np.testing.assert_allclose(found.rows[key], column, atol=2e-3, err_msg=key)


def test_random_maps_follow_from_the_id():
    maps = random_maps(["a", "b", "a"], 3, 5)
    assert maps.shape == (3, 3, 5) and torch.equal(maps[0], maps[2]) and not torch.equal(maps[0], maps[1])
    assert torch.equal(random_maps(["b"], 3, 5)[0], maps[1])


def test_the_interval_covers_the_mean_of_the_clips():
    scorer = make(bootstrap=400, pointing={})
    add(scorer, list(range(23)))
    found = table(scorer)
    low, high = found.intervals["pointing"]
    values = found.rows["pointing"]
    error = values.std() / np.sqrt(len(values))
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.25)


def test_clips_of_one_group_are_drawn_together():
    numbers = units(np.array(["a", "b", "c", "d"]), np.array(["x", "", "x", ""]))
    assert numbers[0] == numbers[2] and len(set(numbers.tolist())) == 3
    # All values of a group are equal: with 4 groups of 5 the mean is as uncertain as that of 4 clips.
    scorer, alone = make(bootstrap=400, pointing={}), make(bootstrap=400, pointing={})
    names = np.array([f"{number:02d}" for number in range(20)])
    rows = {
        "clip_id": names,
        "label": np.full(20, ""),
        "truth_area": np.ones(20),
        "pointing": np.repeat([0.0, 1.0, 0.0, 1.0], 5),
        **{f"{source}.pointing": np.zeros(20) for source in FLOORS},
    }
    scorer.extend({**rows, "group": np.repeat(["a", "b", "c", "d"], 5)})
    alone.extend({**rows, "group": np.full(20, "")})
    grouped, single = table(scorer).intervals["pointing"], table(alone).intervals["pointing"]
    assert grouped[1] - grouped[0] > 1.5 * (single[1] - single[0])


def test_two_metrics_may_not_write_one_column():
    one = make(ciou={}).metrics["ciou"]
    with pytest.raises(ValueError, match="same column"):
        Scorer(make().protocol, {"ciou": one, "other": one})
