"""The scorer: the same table however the clips arrive, and no clip scored in silence that should not be."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.functional import interpolate

from configs.errors import UserError
from configs.load import check
from configs.resolve import names, resolve
from configs.schema import ComponentConfig, EvaluateConfig
from model.base import Localization
from model.metric import success_scores
from model.protocol import Protocol, Source, random_maps
from model.refinement import Mixtures, Refinement
from model.rows import load_rows, save_rows, units
from model.scoring import (
    FLOORS,
    Floors,
    Scoreboard,
    Scorer,
    ScoreTable,
    build_scoreboard,
    build_scorer,
)
from pipeline.batch import Batch, Truth

IDS = [f"clip {number:02d}" for number in range(23)]
MAPS = random_maps([f"map of {name}" for name in IDS], 8, 8)


def truth(name: str) -> Truth:
    x, y, w, h = np.random.default_rng(int(name[-2:])).random(4) * (0.5, 0.5, 0.4, 0.4)
    return Truth(boxes=np.array([[x, y, x + 0.1 + w, y + 0.1 + h, 0]]), label=name[-1], group=None)


def config_of(bootstrap: int = 20, protocol: str = "ez_vsl", **metrics: dict) -> EvaluateConfig:
    chosen = metrics or {"ciou": {}, "ciou_adaptive": {}, "pointing": {}, "quadrant": {}}
    return check(EvaluateConfig, {"metrics": chosen, "bootstrap": bootstrap, "protocol": protocol}, "test")


def make(bootstrap: int = 20, **metrics: dict) -> Scorer:
    return build_scorer(config_of(bootstrap, **metrics))


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


@pytest.mark.parametrize("size", [1, 7, 64])
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
    assert set(whole.ceiling) == {"ciou_50", "auc", "mean_ciou", "ciou_30", "mciou"}
    assert whole.ceiling["mean_ciou"] > whole.scores["mean_ciou"]
    assert whole.floors["ones"]["quadrant"] == 0.25
    assert whole.floors["ones"]["pointing"] == pytest.approx(whole.rows["truth_area"].mean())
    for name, (low, high) in whole.intervals.items():
        assert low <= whole.scores[name] <= high or name.endswith("50"), name


def test_blind_maps_can_be_left_out(whole: ScoreTable):
    config = check(EvaluateConfig, {"metrics": {"ciou": {}}, "bootstrap": 50}, "test")
    scorer = build_scorer(config, blind=False)
    add(scorer, list(range(23)))
    bare = table(scorer)
    assert bare.floors == {} and bare.ceiling == {} and bare.intervals == {}
    assert bare.scores == {key: whole.scores[key] for key in bare.scores}
    facts = {"clip_id", "label", "group", "truth_area", "negative", "odd_boxes", "flat_boxes"}
    assert set(bare.rows) == {*facts, "ciou", "pointing"}


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


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_map_that_is_not_finite_is_named(value: float):
    maps = MAPS[:3].clone()
    maps[1, 2, 2] = value
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
        **{
            name: np.ones(20) * (name == "truth_area") for name in ("truth_area", "negative", "odd_boxes", "flat_boxes")
        },
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


class Prior(Refinement):
    """An object prior that needs no picture."""

    class Config(ComponentConfig):
        pass

    provides = ("object",)

    def sources(self, batch: Batch, localization: Localization) -> dict[str, Source]:
        return {"object": Source(random_maps(batch.clip_id, 7, 7), (0, 2.5), prior=True)}

    def mixtures(self, protocol: Protocol) -> Mixtures:
        return {"half": {"map": 0.5, "object": 0.5}, "object": {"object": 1.0}}

    def settings(self) -> str:
        return "noise"


def batch_of(places: list[int], truths: list[Truth] | None = None) -> Batch:
    return Batch(
        clip_id=[IDS[place] for place in places],
        valid=torch.ones(len(places), dtype=torch.bool),
        image=torch.zeros(len(places), 3, 8, 8),
        spectrogram=torch.zeros(len(places), 1, 4, 4),
        truth=truths or [truth(IDS[place]) for place in places],  # type: ignore[arg-type]
    )


def tables_of(board: Scoreboard, **options: Any) -> dict[tuple[str, str], ScoreTable]:
    return board.tables(id_hash=lambda ids: "+".join(ids), **options)


def test_several_protocols_and_mixtures_in_one_pass_are_those_of_one_at_a_time():
    prior = Prior(None)
    board = build_scoreboard(config_of(0), protocols=["htf", "jsa"], refinements=[prior])
    for places in ([4, 9, 2], list(range(10, 23))):
        found = board.localize(
            lambda batch: Localization(map=MAPS[[IDS.index(i) for i in batch.clip_id]], bounds=(0, 1)), batch_of(places)
        )
        scored = board.add(batch_of(places), found)
        assert scored.clip_ids == [IDS[place] for place in places] and set(scored.columns) == {
            "ciou",
            "ciou_adaptive",
            "pointing",
            "quadrant",
        }
    tables = tables_of(board)
    assert set(tables) == {(name, variant) for name in ("ez_vsl", "htf", "jsa") for variant in ("", "half", "object")}
    chosen = [2, 4, *range(9, 23)]
    for name in ("ez_vsl", "htf", "jsa"):
        alone = build_scorer(config_of(0), protocol=name)
        batch = batch_of(chosen)
        alone.add(batch.clip_id, batch.valid, Localization(map=MAPS[chosen], bounds=(0, 1)), batch.truth)
        wanted, found = table(alone), tables[name, ""]
        assert found.scores == wanted.scores and found.floors == wanted.floors and found.ceiling == wanted.ceiling
        assert found.protocol == name
        np.testing.assert_array_equal(found.rows["ciou"], wanted.rows["ciou"])
        by_prior = build_scorer(config_of(0), protocol=name)
        by_prior.add(
            batch.clip_id, batch.valid, Localization(map=random_maps(batch.clip_id, 7, 7), bounds=(0, 1)), batch.truth
        )
        assert tables[name, "object"].scores == table(by_prior).scores
        half = tables[name, "half"]
        np.testing.assert_array_equal(half.rows["ciou"], found.rows["half.ciou"])
        assert half.floors == found.floors and "half.ciou" not in half.rows and "centre.ciou" in half.rows
        assert half.settings["refinement"] == "0.5 map + 0.5 object; noise"
    assert "refinement" not in tables["htf", ""].settings


def test_floors_are_computed_once_for_a_set():
    floors = Floors()
    first = build_scorer(config_of(), floors=floors)
    add(first, list(range(23)))
    second = build_scorer(config_of(), floors=floors)

    def refuse(*arguments: Any) -> dict[str, np.ndarray]:
        raise AssertionError("the floors were computed again")

    second._blind = refuse  # type: ignore[method-assign]
    add(second, [7, 3, 22])
    add(second, [place for place in range(23) if place not in (7, 3, 22)])
    same(table(second), table(first))
    # Under another protocol they are others.
    with pytest.raises(AssertionError, match="again"):
        other = build_scorer(config_of(), protocol="htf", floors=floors)
        other._blind = refuse  # type: ignore[method-assign]
        add(other, [1])


def test_clips_can_be_left_out_afterwards(whole: ScoreTable, tmp_path: Path):
    save_rows(tmp_path / "rows.npz", whole.rows)
    again = make()
    again.extend(load_rows(tmp_path / "rows.npz"))
    kept = [place for place in range(23) if place not in (3, 11)]
    some = again.result(id_hash=lambda ids: "+".join(ids), exclude={IDS[3], IDS[11], "no clip of this set"})
    direct = make()
    add(direct, kept)
    wanted = table(direct)
    assert some.scores == wanted.scores and some.floors == wanted.floors and some.intervals == wanted.intervals
    assert some.found == 21 and some.id_hash == wanted.id_hash and "2 clips were left out." in some.notes
    with pytest.raises(UserError, match="all 23 clips of the set were left out"):
        again.result(id_hash=len, exclude=set(IDS))  # type: ignore[arg-type]


def test_negatives_are_scored_by_those_who_want_them():
    nothing = Truth(extra={"negative": True})
    scorer = make(ciou={}, detection={}, negatives={})
    add(scorer, list(range(8)), **{f"n{place}": nothing for place in (1, 5, 6)})  # type: ignore[arg-type]
    found = table(scorer)
    positive = make(ciou={})
    add(positive, [0, 2, 3, 4, 7])
    assert found.scores["ciou_50"] == table(positive).scores["ciou_50"]
    assert found.found == 8 and found.empty == 0 and found.rows["negative"].sum() == 3
    assert found.scores["precision"] == pytest.approx((found.rows["ciou"] >= 0.5).sum() / 8)
    assert "3 clips have a sound that nothing in the picture makes." in found.notes
    only = make(ciou={}, negatives={})
    add(only, [0, 1], n0=nothing, n1=nothing)
    assert set(table(only).scores) == {"pia", "auc_n"}


def test_broken_boxes_are_counted_in_the_notes():
    absurd = Truth(boxes=np.array([[0.2, 0.2, 0.6, -2.88e16, 0], [0.1, 0.1, 0.9, 0.9, 0]]))
    line = Truth(boxes=np.array([[0.5, 0.1, 0.5, 0.9, 0]]))
    scorer = make()
    add(scorer, [0, 1, 2], n1=absurd, n2=line)
    assert table(scorer).notes == [
        "1 boxes of 1 clips have a coordinate far outside the picture; they are cut at its edge: clip 01.",
        "2 boxes of 2 clips cover no pixel: clip 01, clip 02.",
        "1 clips have a truth without a pixel, which no foreground hits: clip 02.",
    ]


def vssl_board(bootstrap: int = 0) -> Scoreboard:
    return build_scoreboard(config_of(bootstrap, "vssl", ciou={}, negatives={}), refinements=[Prior(None)])


def vssl_truths(places: list[int]) -> list[Truth]:
    return [Truth(extra={"negative": True}) if place % 3 == 0 else truth(IDS[place]) for place in places]


def fill_vssl(board: Scoreboard, size: int, places: list[int]) -> None:
    for first in range(0, len(places), size):
        some = places[first : first + size]
        scored = board.add(batch_of(some, vssl_truths(some)), Localization(map=MAPS[some] * 3, bounds=(0, 3)))
        assert scored.clip_ids == []


def test_a_threshold_of_the_whole_set_does_not_depend_on_batches():
    wanted = None
    for size in (1, 7, 64):
        board = vssl_board()
        fill_vssl(board, size, list(range(23)))
        tables = tables_of(board)
        cut = np.quantile([float(MAPS[place].max() * 3) for place in range(0, 23, 3)], 0.75)
        assert tables["vssl", ""].settings["foreground"].startswith(f">= {cut:.4g}, the third quartile")
        wanted = wanted or tables
        for key, found in tables.items():
            same(found, wanted[key])
    assert wanted is not None
    lit = [
        float(
            (interpolate(MAPS[place][None, None] * 3, (224, 224), mode="bilinear", align_corners=True) > cut)
            .float()
            .mean()
        )
        for place in range(0, 23, 3)
    ]
    assert wanted["vssl", ""].scores["pia"] == pytest.approx(np.mean(lit))
    assert wanted["vssl", ""].scores["pia"] != wanted["vssl", "half"].scores["pia"]


def test_no_clip_comes_after_the_threshold_was_taken():
    board = vssl_board()
    fill_vssl(board, 8, list(range(8)))
    tables_of(board)
    with pytest.raises(ValueError, match="after the threshold"):
        fill_vssl(board, 8, [9])


def test_saved_rows_need_no_threshold(tmp_path: Path):
    board = vssl_board()
    fill_vssl(board, 8, list(range(23)))
    first = tables_of(board)
    save_rows(tmp_path / "rows.npz", first["vssl", ""].rows)
    again = vssl_board()
    again.scorers["vssl"].extend(load_rows(tmp_path / "rows.npz"))
    assert {key: each.scores for key, each in tables_of(again).items()} == {
        key: each.scores for key, each in first.items()
    }


def rank(number: int, count: int, folder: str) -> None:
    """One of several processes: score every count-th clip, gather, and save what this rank then holds."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=count)
    places = list(range(23))[number::count] if number < 2 else []  # the third rank has nothing but padding
    boards = {
        "plain": build_scoreboard(config_of(0), protocols=["htf"], refinements=[Prior(None)]),
        "vssl": vssl_board(),
    }
    if places:
        boards["plain"].add(batch_of(places), Localization(map=MAPS[places], bounds=(0, 1)))
        fill_vssl(boards["vssl"], 5, places)
    for name, board in boards.items():
        board.gather()
        for (protocol, variant), found in tables_of(board).items():
            np.savez(
                Path(folder) / f"{name}-{protocol}-{variant}-{number}.npz",
                **found.rows,
                scores=np.array([json.dumps(found.scores)]),
            )
    dist.destroy_process_group()


@pytest.mark.slow
def test_three_ranks_hold_the_rows_of_one(tmp_path: Path):
    """Real processes over gloo; the third one has no clip."""
    places = [*range(0, 23, 3), *range(1, 23, 3)]
    boards = {
        "plain": build_scoreboard(config_of(0), protocols=["htf"], refinements=[Prior(None)]),
        "vssl": vssl_board(),
    }
    boards["plain"].add(batch_of(places), Localization(map=MAPS[places], bounds=(0, 1)))
    fill_vssl(boards["vssl"], 64, places)
    boards["plain"].gather()  # without a process group: nothing happens
    torch.multiprocessing.spawn(rank, args=(3, str(tmp_path)), nprocs=3)
    for name, board in boards.items():
        for (protocol, variant), wanted in tables_of(board).items():
            for number in range(3):
                with np.load(tmp_path / f"{name}-{protocol}-{variant}-{number}.npz") as found:
                    assert json.loads(str(found["scores"][0])) == wanted.scores
                    for key, column in wanted.rows.items():
                        np.testing.assert_array_equal(found[key], column, err_msg=key)


def test_a_metric_brings_those_that_it_needs():
    scorer = make(interactive={}, ciou={})
    assert list(scorer.metrics) == ["ciou", "pointing", "interactive"]
    assert list(make(ciou_sweep={}, detection={}).metrics) == ["ciou", "pointing", "ciou_sweep", "detection"]


@pytest.mark.parametrize("protocol", names("model.protocols"))
def test_a_protocol_scores_what_its_papers_report(protocol: str):
    usual = resolve("model.protocols", protocol).usual_metrics
    none: dict[str, None] = {"ciou": None, "pointing": None}
    chosen = check(EvaluateConfig, {"protocol": protocol, "metrics": none}, "test")
    beside = build_scorer(config_of(quadrant={}), protocol=protocol)
    assert usual and set(usual) <= build_scorer(chosen).metrics.keys() and {*usual, "quadrant"} <= beside.metrics.keys()


def test_retrieval_needs_embeddings_and_ranks_among_all_clips():
    with pytest.raises(UserError, match=r"metrics\.retrieval compares embeddings"):
        add(make(retrieval={}), [0, 1])
    draw = torch.Generator().manual_seed(1)
    image, audio = torch.rand(23, 4, generator=draw), torch.rand(23, 4, generator=draw)
    wanted = None
    for size in (1, 7, 64):
        scorer = make(retrieval={}, ciou={})
        for first in range(0, 23, size):
            places = list(range(23))[first : first + size]
            found = Localization(map=MAPS[places], bounds=(0, 1), embeddings=(image[places], audio[places]))
            batch = batch_of(places)
            scorer.add(batch.clip_id, batch.valid, found, batch.truth)
        wanted = wanted or table(scorer)
        same(table(scorer), wanted)
    assert wanted is not None and set(wanted.floors["centre"]) == {
        "ciou_50",
        "auc",
        "mean_ciou",
        "ciou_30",
        "mciou",
        "pointing",
    }
    assert 0 <= wanted.scores["r1_i2a"] <= wanted.scores["class_r1_i2a"] <= 1
