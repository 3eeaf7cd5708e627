"""Differences between systems: paired, with the interval and the p-value that the numbers deserve."""

import csv
import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import evaluate
from configs.errors import UserError
from configs.load import as_mapping
from configs.schema import EvaluateConfig
from model.compare import Comparison, compare, render
from model.results import TRAINING_LIST, Results, SetResult, read_results, write_results
from model.rows import Rows
from model.scoring import ScoreTable, build_scorer
from model.selection import LAST, Selection
from pipeline.store import id_hash

CONFIG = EvaluateConfig.model_validate({"sets": {"test": {}}, "metrics": {"ciou": {}}, "bootstrap": 20})


def rows_of(ciou: np.ndarray, names: list[str] | None = None, group: list[str] | None = None) -> Rows:
    count = len(ciou)
    zero = np.zeros(count)
    return {
        "clip_id": np.array(names or [f"clip_{number:04d}" for number in range(count)]),
        "label": np.array([""] * count),
        "group": np.array(group or [""] * count),
        "truth_area": zero + 0.3,
        "negative": zero,
        "odd_boxes": zero,
        "flat_boxes": zero,
        "ciou": ciou,
    }


def run(
    rows: Rows,
    title: str = "a",
    seed: int = 0,
    scored: EvaluateConfig = CONFIG,
    facts: dict[str, str] | None = None,
    **config: object,
) -> Results:
    scorer = build_scorer(scored, blind=False)
    scorer.extend(rows)
    table: ScoreTable = scorer.result(id_hash=id_hash)
    whole = {"seed": seed, "model": {"name": title}, "evaluate": as_mapping(scored), **config}
    sets = {"test": SetResult(of="test", about="", tables=[table], leak=None)}
    return Results(title=title, sets=sets, facts=facts or {}, config=whole, where=Path(f"run-{title}-{seed}"))


def by_score(runs: list[Results], resamples: int = 200) -> dict:
    return {line.score: line for line in compare(runs, resamples).differences}


def test_a_clear_difference_is_clear_and_noise_is_not():
    draw = np.random.default_rng(0)
    base = draw.random(300)
    better = np.clip(base + 0.05, 0, 1)
    shuffled = base + draw.normal(0, 0.2, 300)
    clear = by_score([run(rows_of(base)), run(rows_of(better), "b")])["mean_ciou"]
    assert clear.second - clear.first == pytest.approx(np.mean(better - base)) and clear.clips == 300
    assert 0.04 < clear.low < clear.second - clear.first < clear.high < 0.06
    assert clear.p == pytest.approx(1 / 201)
    noise = by_score([run(rows_of(base)), run(rows_of(shuffled), "b")])["mean_ciou"]
    assert noise.low < 0 < noise.high and noise.p is not None and noise.p > 0.05
    # Paired: the clips differ among each other by far more than the two systems.
    assert clear.high - clear.low < 0.1 * (2 * 1.96 * base.std() / np.sqrt(300))


def test_the_interval_and_p_are_those_of_the_mean_difference():
    draw = np.random.default_rng(1)
    gap = draw.normal(0.02, 0.15, 400)
    base = draw.uniform(0.3, 0.7, 400)
    line = by_score([run(rows_of(base)), run(rows_of(base + gap), "b")], 2000)["mean_ciou"]
    error = gap.std(ddof=1) / 20
    assert line.low == pytest.approx(gap.mean() - 1.96 * error, abs=0.1 * error)
    assert line.high == pytest.approx(gap.mean() + 1.96 * error, abs=0.1 * error)
    flips = np.abs((draw.choice([-1, 1], (4000, 400)) * gap).mean(1))
    assert line.p == pytest.approx(np.mean(flips >= abs(gap.mean())), abs=0.03)


def test_the_same_maps_do_not_differ():
    line = by_score([run(rows_of(np.linspace(0, 1, 50))), run(rows_of(np.linspace(0, 1, 50)), "b")])["ciou_50"]
    assert (line.low, line.high, line.p) == (0, 0, 1)


def test_only_shared_clips_count_in_any_order():
    names = [f"clip_{number}" for number in range(60)]
    values = np.linspace(0, 1, 60)
    part = np.random.default_rng(2).permutation(60)[:40]
    other = rows_of(values[part] + 0.1, [names[number] for number in part])
    line = by_score([run(rows_of(values, names)), run(other, "b")])["mean_ciou"]
    assert line.clips == 40 and line.second - line.first == pytest.approx(0.1) and line.low == pytest.approx(0.1)
    with pytest.raises(UserError, match="no clip was scored by all"):
        compare([run(rows_of(values, names)), run(rows_of(values), "b")], 10)


def test_scores_that_only_one_system_has_are_not_compared():
    more = EvaluateConfig.model_validate({"sets": {"test": {}}, "metrics": {"ciou": {}, "pointing": {}}})
    ciou = np.random.default_rng(3).random(20)
    wide = run({**rows_of(ciou), "pointing": ciou}, "wide", scored=more)
    narrow = run(rows_of(ciou / 2), "narrow")
    for pair in ([wide, narrow], [narrow, wide]):
        assert set(by_score(pair, 20)) == {"ciou_50", "auc", "mean_ciou", "ciou_30", "mciou"}


def test_clips_of_a_group_go_together():
    draw = np.random.default_rng(3)
    base, gap = draw.random(100), np.repeat(draw.normal(0, 0.2, 10), 10)
    alone = by_score([run(rows_of(base)), run(rows_of(base + gap), "b")])["mean_ciou"]
    group = [f"g{number // 10}" for number in range(100)]
    grouped = by_score([run(rows_of(base, group=group)), run(rows_of(base + gap, group=group), "b")])["mean_ciou"]
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)


def test_seeds_of_one_config_are_one_system():
    values = np.linspace(0, 1, 40)
    seeds = [run(rows_of(np.clip(values + shift, 0, 1)), "a", seed) for seed, shift in enumerate((0, 0.1, 0.2))]
    other = [run(rows_of(values), "b", 0, optim={"lr": 1})]
    found = compare([*seeds, *other], 50)
    assert [len(system.runs) for system in found.systems] == [3, 1]
    line = {line.score: line for line in found.differences}["mean_ciou"]
    means = [np.clip(values + shift, 0, 1).mean() for shift in (0, 0.1, 0.2)]
    assert line.first == pytest.approx(np.mean(means)) and line.spread[0] == pytest.approx(np.std(means, ddof=1))
    assert line.spread[1] is None and line.p is None
    heads, lines = found.scores()
    assert "a, 3 seeds" in heads and f"{np.mean(means):.4f} ± {np.std(means, ddof=1):.4f}" in lines[2]
    alone = compare(seeds, 50)
    assert len(alone.systems) == 1 and alone.differences == [] and "Differences" not in alone.files()["md"]


def best(step: int, epoch: int) -> str:
    text = Selection.text.fget(SimpleNamespace(best={"epoch": epoch}, key="loss", _where="the held-out clips"))
    return f"step {step}, chosen by: {text}"


def names(found: Comparison) -> list[str]:
    return [system.name for system in found.systems]


def test_maps_are_systems_of_their_own():
    values = np.linspace(0, 1, 40)
    one, two = run(rows_of(values)), run(rows_of(values / 2))
    for each in (one, two):
        del each.config["seed"], each.config["model"]
    found = compare([replace(one, where=Path("n7")), replace(two, where=Path("n14"))], 20)
    assert names(found) == ["a (n7)", "a (n14)"] and found.differences and "±" not in found.files()["md"]
    assert names(compare([one, one], 20)) == ["a (run-a-0) #1", "a (run-a-0) #2"]


def test_runs_with_one_seed_are_not_seeds():
    values = np.linspace(0, 1, 40)
    first, again = run(rows_of(values)), replace(run(rows_of(values)), where=Path("again"))
    found = compare([first, again], 20)
    assert names(found) == ["a (run-a-0)", "a (again)"] and {line.p for line in found.differences} == {1}
    inside = [replace(first, where=Path(f"/runs/a/eval-{name}")) for name in ("best", "step")]
    assert names(compare(inside, 20)) == ["a (/runs/a/eval-best)", "a (/runs/a/eval-step)"]
    assert len(compare([first, run(rows_of(values), seed=1), again], 20).systems) == 3


@pytest.mark.parametrize(
    ("one", "other", "systems"),
    [
        ({"facts": {TRAINING_LIST: "abc"}}, {"facts": {TRAINING_LIST: "def"}}, 2),
        ({"data": {"store": "stores/a"}}, {"data": {"store": "stores/b"}}, 2),
        ({"facts": {TRAINING_LIST: "a"}, "data": {"store": "b"}}, {"facts": {TRAINING_LIST: "a"}, "data": {}}, 1),
        ({"facts": {"checkpoint": f"step 9, chosen by: {LAST}"}}, {"facts": {"checkpoint": "step 8"}}, 2),
        ({"facts": {"checkpoint": f"step 9, chosen by: {LAST}"}}, {"facts": {"checkpoint": best(9, 3)}}, 2),
        ({"facts": {"checkpoint": best(9, 3)}}, {"facts": {"checkpoint": best(12, 4)}}, 1),
        ({"train": {"device": "cpu"}}, {"train": {"device": "cuda"}}, 1),
        ({"train": {"epochs": 1}}, {"train": {"epochs": 2}}, 2),
    ],
)
def test_seeds_are_alike_in_training_list_and_choice(one: dict, other: dict, systems: int):
    values = np.linspace(0, 1, 40)
    found = compare([run(rows_of(values), **one), run(rows_of(values), seed=1, **other)], 10)
    assert len(found.systems) == systems


def test_seeds_are_scored_alike():
    values = np.linspace(0, 1, 40)
    first, second = run(rows_of(values)), run(rows_of(values / 2), seed=1)
    assert len(compare([first, second], 10).systems) == 1
    assert len(compare([first, run(rows_of(values[1:]), seed=1)], 10).systems) == 2
    second.sets["test"].tables[0].settings["refinement"] = "the mean over mirror images"
    found = compare([first, second], 10)
    assert len(found.systems) == 2 and found.differences and "ez_vsl: the mean over mirror images" in found.notes[1]
    second.sets["test"].tables[0].settings["truth"] = "boxes: first"
    with pytest.raises(UserError, match="protocol ez_vsl was used with different settings"):
        compare([first, second], 10)


def test_seeds_are_pooled_by_name_or_compared_with_each_other():
    values = np.linspace(0, 1, 40)
    seeds = [run(rows_of(values * share), seed=seed) for seed, share in ((3, 1), (5, 0.5))]
    assert "mean ± standard deviation over seeds 3, 5" in compare(seeds, 10).files()["md"]
    found = compare(seeds, 10, separate=True)
    assert names(found) == ["a (run-a-3)", "a (run-a-5)"] and found.differences[0].first > found.differences[0].second


def test_the_command_pools_or_separates(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folders = [tmp_path / name for name in ("one", "two")]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        write_results(folder, run(rows_of(np.linspace(0, 1, 9)), seed=seed))
    words = ["compare", *map(str, folders), "--resamples", "10"]
    assert evaluate.main(words) == 0
    pooled = capsys.readouterr().out
    assert "a, 2 seeds: " in pooled and "over seeds 0, 1" in pooled and "## Differences" not in pooled
    assert evaluate.main([*words, "--separate"]) == 0
    apart = capsys.readouterr().out
    assert "| a (one) | 95% interval | a (two) |" in apart and "## Differences" in apart


def test_results_know_their_training_list():
    facts = evaluate.training_facts({"train_clips": 16, "train_id_hash": "abc"})
    assert facts == {TRAINING_LIST: "16 clips, ids abc"} and evaluate.training_facts({}) == {}


def test_every_file_says_what_the_scores_are_of():
    values = np.linspace(0, 1, 40)
    facts = {"checkpoint": "step 9, chosen by: last epoch", TRAINING_LIST: "16 clips, ids abc"}
    whole = run(rows_of(values), facts=facts)
    part = run(rows_of(values[:30], [f"clip_{number:04d}" for number in range(10, 40)]), "b")
    table = whole.sets["test"].tables[0]
    told = replace(
        table,
        expected=50,
        intervals={"ciou_50": (0.4, 0.6)},
        ceiling={"ciou_50": 0.9},
        warnings=["10 clips of the full set are missing."],
    )
    whole.sets["test"] = SetResult(of="test", about="", tables=[told], leak={"same": 0, "related": 0})
    found = compare([whole, part], 10)
    heads, lines = found.scores()
    assert heads[3:] == ["clips", "a", "95% interval", "b", "95% interval", "blind centre", "ceiling", "ids"]
    first, second = (each.sets["test"].tables[0] for each in (whole, part))
    own, other = (f"{each.scores['ciou_50']:.4f}" for each in (first, second))
    ids = f"{first.id_hash} / {second.id_hash}"
    assert lines[0][3:] == ["40 of 50 / 30", own, "0.4000 to 0.6000", other, "-", "-", "0.9000 / -", ids]
    assert found.notes == [
        "a: step 9, chosen by: last epoch; trained on 16 clips, ids abc; test: no clip of a video that was trained on; "
        "warning: test: 10 clips of the full set are missing.",
        "b: not known how the weights were chosen.",
        "warning: test: a was scored on 40 clips and b on 30, which are not the same ones; both scored 30 of them, "
        "and differences are over those alone.",
    ]
    for text in found.files().values():
        for word in ("40 of 50 / 30", "a: step 9, chosen by: last epoch", "both scored 30 of them", "two sided"):
            assert word in text


def test_a_score_that_a_system_lacks_is_a_dash():
    more = EvaluateConfig.model_validate({"sets": {"test": {}}, "metrics": {"ciou": {}, "pointing": {}}})
    ciou = np.random.default_rng(3).random(20)
    wide = run({**rows_of(ciou), "pointing": ciou}, "wide", scored=more)
    for pair in ([wide, run(rows_of(ciou), "narrow")], [run(rows_of(ciou), "narrow"), wide]):
        heads, lines = compare(pair, 10).scores()
        line = next(each for each in lines if each[2] == "pointing")
        place = heads.index("narrow")
        assert line[place : place + 2] == ["-", "-"] and line[heads.index("wide")] == f"{ciou.mean():.4f}"
    lines = compare([run(wide.sets["test"].tables[0].rows, scored=more), run(rows_of(ciou), seed=1)], 10).scores()[1]
    assert "nan" not in str(lines) and next(each[4] for each in lines if each[2] == "pointing") == "-"


def test_a_threshold_that_maps_gave_is_no_other_setting():
    rows = rows_of(np.linspace(0, 1, 20))
    both = [run(rows, title) for title in "ab"]
    for each, cut in zip(both, ("0.1", "0.2")):
        (table,) = each.sets["test"].tables
        each.sets["test"].tables[0] = replace(table, protocol="vssl", settings={"foreground": f"> {cut}"})
    assert len(compare(both, 10).differences) == 5


def test_runs_that_cannot_be_compared_are_refused():
    first, second = run(rows_of(np.linspace(0, 1, 9))), run(rows_of(np.linspace(0, 1, 9)), "b")
    second.sets["test"].tables[0].settings["truth"] = "boxes: first"
    with pytest.raises(UserError, match="protocol ez_vsl was used with different settings"):
        compare([first, second], 10)
    second.sets["other"] = second.sets.pop("test")
    with pytest.raises(UserError, match=r"share no set under one protocol: run-a-0: test \(ez_vsl\); run-b-0: other"):
        compare([first, second], 10)


def test_results_survive_the_disk(tmp_path: Path):
    written = run(rows_of(np.linspace(0, 1, 9)))
    folder = tmp_path / "eval-step"
    folder.mkdir()
    write_results(folder, written)
    for path in (folder, tmp_path):
        again = read_results(path)
        table, expected = again.sets["test"].tables[0], written.sets["test"].tables[0]
        assert again.title == "a" and again.config == written.config and again.where == folder
        assert table.as_mapping() == expected.as_mapping()
        assert all(np.array_equal(table.rows[key], column) for key, column in expected.rows.items())
    (folder / "rows_test.npz").unlink()
    with pytest.raises(UserError, match=r"results in .* are damaged"):
        read_results(folder)
    (folder / "scores.json").write_text('{"version": 1}')
    with pytest.raises(UserError, match="is of version 1, this code reads 2: evaluate again"):
        read_results(folder)


def test_tables_are_rendered():
    heads, lines = ["a_b", "c"], [["50 %", "x|y, z"], ["1 ± 2", "#"]]
    assert render(heads, lines, "md").splitlines() == [
        "| a_b | c |",
        "| --- | --- |",
        "| 50 % | x/y, z |",
        "| 1 ± 2 | # |",
    ]
    assert list(csv.reader(io.StringIO(render(heads, lines, "csv")))) == [heads, *lines]
    tex = render(heads, lines, "tex")
    assert r"a\_b & c \\" in tex and r"50 \% & x|y, z \\" in tex and r"1 $\pm$ 2 & \# \\" in tex
    assert tex.startswith(r"\begin{tabular}{ll}") and tex.rstrip().endswith(r"\end{tabular}")
