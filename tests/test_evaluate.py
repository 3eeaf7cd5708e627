"""evaluate.py as a user runs it: a real store, loader, method and checkpoint."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

import evaluate
import train
from configs.errors import UserError
from configs.id_lists import load_list
from configs.load import as_mapping, check, load_config
from configs.schema import RunConfig
from evaluate import ScoringStopped, evaluate_sets
from model.build import build_model
from model.checkpoint import load_checkpoint, restore_model, save_checkpoint
from model.rows import load_rows
from pipeline.store import Store, id_hash

ROOT = Path(__file__).parents[1]

CONFIG = """
model:
  name: ez_vsl
  feature_dim: 16
  image_encoder: {{name: resnet}}
data:
  store: {store}
  batch_size: 4
  image: {{size_px: 32}}
  audio: {{frontend: logmel64, duration_s: 0.5}}
  loader: reference
train: {{epochs: 1, cpu_threads: 1, device: cpu}}
evaluate:
  metrics: {{ciou: {{}}, pointing: {{}}}}
  sets: {{test: {{size_px: 48}}}}
  batch_size: 3
  bootstrap: 20
  gallery: 2
"""


@pytest.fixture(scope="module")
def run(packed_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "tiny.yaml").write_text(CONFIG.format(store=packed_store))
    assert train.main([str(folder / "tiny.yaml"), f"out={folder / 'run'}"]) == 0
    return folder / "run"


def scores(out: Path) -> dict:
    return json.loads((out / "scores.json").read_text())


def table(out: Path, name: str, number: int = 0) -> dict:
    return scores(out)["sets"][name]["tables"][number]


@pytest.fixture(scope="module")
def scored(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of the run on its own set."""
    out = tmp_path_factory.mktemp("scored") / "out"
    assert evaluate.main([str(run), "--protocols", "lvs,htf", "--out", str(out)]) == 0
    return out


def test_a_run_is_scored_and_pictured(
    run: Path, packed_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert evaluate.main([str(run), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    words = ("test: 8 of 8 clips", "ez_vsl", "ciou_50", "centre", "ones", "random", "object", "ceiling", "last epoch")
    for word in words:
        assert word in shown, word
    assert "0 of 8 clips are in the training list" in shown and "as the checkpoint says" in shown
    assert "warning" not in shown
    assert str(tmp_path / "out" / "report.html") in shown.replace("\n", "")

    found = table(tmp_path / "out", "test")
    with Store(packed_store) as store:
        names = sorted(store.index["clip_id"][number] for number in store.select("test"))
    rows = load_rows(tmp_path / "out" / "rows_test.npz")
    assert rows["clip_id"].tolist() == names and found["id_hash"] == id_hash(names)
    assert found["scores"]["ciou_50"] == np.mean(rows["ciou"] >= 0.5)
    # Every clip has the same box, so a uniform map points at it by its area.
    assert found["floors"]["ones"]["pointing"] == pytest.approx(rows["truth_area"][0])
    assert 0.07 < rows["truth_area"][0] < 0.09
    assert found["floors"]["object"]["mean_ciou"] == np.mean(rows["object.ciou"])
    assert any("Floor 'object': object prior: mean |features| of efficientnet_lite0" in note for note in found["notes"])
    pictures = list((tmp_path / "out" / "overlays" / "test").iterdir())
    assert 2 <= len(pictures) <= 8 and {path.stem for path in pictures} <= set(names)
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(path.stem in page for path in pictures) and "logmel64" in page
    # What the last epoch of training said of the same weights, without floors.
    last = load_checkpoint(run).history[-1]
    assert {name: last[f"test/{name}"] for name in found["scores"]} == pytest.approx(found["scores"])


def test_batch_size_and_loader_settings_do_not_move_a_score(run: Path, tmp_path: Path):
    evaluate.main([str(run), "--out", str(tmp_path / "a")])
    evaluate.main([str(run), "evaluate.batch_size=8", "data.loader.workers=1", "--out", str(tmp_path / "b")])
    first, second = (load_rows(tmp_path / name / "rows_test.npz") for name in "ab")
    for key, column in first.items():
        if column.dtype.kind == "f":
            np.testing.assert_allclose(second[key], column, atol=2e-3, err_msg=key)


def test_overrides_add_metrics_and_sets_and_remove_them(run: Path, tmp_path: Path):
    out = tmp_path / "out"
    words = ["evaluate.metrics.quadrant={rows: 1}", "evaluate.metrics.miou={}", "evaluate.metrics.miou=null"]
    words += ["evaluate.sets.train={}", "evaluate.sets.test=null"]
    assert evaluate.main([str(run), *words, "--out", str(out)]) == 0
    assert list(scores(out)["sets"]) == ["train"]
    found = table(out, "train")
    assert {"ciou_50", "auc", "mean_ciou", "quadrant"} <= set(found["scores"]) and "miou" not in found["scores"]
    assert found["floors"]["ones"]["quadrant"] == pytest.approx(0.5)
    (leak,) = found["warnings"]
    assert leak.startswith("16 of 16 clips are in the training list; 16 come from a video of that list")
    assert scores(out)["sets"]["train"]["leak"] == {"same": 16, "related": 16}
    assert list(scores(out)["config"]["evaluate"]["sets"]) == ["train"]


def test_sets_are_lists_of_clips_and_the_leaked_ones_can_be_left_out(run: Path, tmp_path: Path):
    half, out = tmp_path / "half.txt", tmp_path / "out"
    half.write_text("clip_16\nclip_17\nclip_18\nclip_19\nelsewhere\n")
    (tmp_path / "trained.txt").write_text("clip_16\nclip_20\n")
    sets = f"evaluate.sets.half={{splits: [test], ids: {half}, expected: 5, size_px: 48}}"
    assert (
        evaluate.main(
            [str(run), sets, "--out", str(out), "--trained-on", str(tmp_path / "trained.txt"), "--exclude-leaked"]
        )
        == 0
    )
    found = scores(out)["sets"]
    assert list(found) == ["test", "test_unseen", "half", "half_unseen"]
    assert [found[name]["tables"][0]["found"] for name in found] == [8, 6, 4, 3]
    assert found["half"]["leak"] == {"same": 1, "related": 1} and found["half_unseen"]["leak"]["related"] == 0
    missing, leak = table(out, "half")["warnings"]
    assert missing == "1 clips of the full set are missing: compare with care." and "1 of 4" in leak
    whole, part = load_rows(out / "rows_test.npz"), load_rows(out / "rows_half.npz")
    assert part["clip_id"].tolist() == ["clip_16", "clip_17", "clip_18", "clip_19"]
    assert np.array_equal(part["ciou"], whole["ciou"][:4])
    assert load_rows(out / "rows_half_unseen.npz")["clip_id"].tolist() == part["clip_id"].tolist()[1:]


def test_all_sets_are_what_the_store_has(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert evaluate.main([str(run), "--sets", "all", "--protocols", "all", "--out", str(tmp_path / "out")]) == 0
    found = scores(tmp_path / "out")["sets"]
    assert list(found) == ["test"]
    protocols = [each["protocol"] for each in found["test"]["tables"]]
    assert protocols[0] == "ez_vsl" and len(set(protocols)) == len(protocols) > 8
    assert "vssl" not in protocols  # its threshold comes from negative sounds, and here is none
    shown = capsys.readouterr().out
    assert "the same maps, read in other ways" in shown and "Not scored under vssl: no clip here" in shown


def test_the_object_prior_can_be_left_out(run: Path, tmp_path: Path):
    assert evaluate.main([str(run), "evaluate.object_prior=null", "--out", str(tmp_path / "out")]) == 0
    found = table(tmp_path / "out", "test")
    assert set(found["floors"]) == {"centre", "ones", "random"}
    assert any("The object prior" in note and "was not scored" in note for note in found["notes"])


def test_the_floor_is_told_without_what_was_done_to_the_map(run: Path, tmp_path: Path):
    assert evaluate.main([str(run), "evaluate.refine.flip={}", "--out", str(tmp_path / "out")]) == 0
    found = table(tmp_path / "out", "test")
    (floor,) = [note for note in found["notes"] if note.startswith("Floor 'object'")]
    assert "efficientnet_lite0" in floor and "mirror" not in floor and "mirror" in found["settings"]["refinement"]


def test_nothing_left_by_exclude_leaked_is_said(run: Path, packed_store: Path, tmp_path: Path):
    with Store(packed_store) as store:
        names = [store.index["clip_id"][number] for number in store.select("test")]
    (tmp_path / "trained.txt").write_text("\n".join(names))
    asked = ["--trained-on", str(tmp_path / "trained.txt"), "--exclude-leaked", "--out", str(tmp_path / "out")]
    assert evaluate.main([str(run), *asked]) == 0
    assert list(scores(tmp_path / "out")["sets"]) == ["test"]
    assert any("--exclude-leaked leaves none" in warning for warning in table(tmp_path / "out", "test")["warnings"])


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match=r"evaluate\.py is one process, and torchrun started 3"):
        evaluate.main(["run"])


def test_an_unknown_training_list_is_said(run: Path, tmp_path: Path):
    checkpoint = load_checkpoint(run)
    del checkpoint.record["train_ids"]
    checkpoint.record["train_id_hash"] = "another"
    checkpoint.record["selection"] = "best test/ciou_50"
    path = save_checkpoint(tmp_path, checkpoint, keep=1)
    assert evaluate.main([str(path), "--out", str(tmp_path / "out")]) == 0
    chosen, unknown = table(tmp_path / "out", "test")["warnings"]
    assert "chosen by its score here (best test/ciou_50)" in chosen and "--trained-on" in unknown
    assert scores(tmp_path / "out")["sets"]["test"]["leak"] is None
    with pytest.raises(UserError, match="--exclude-leaked needs the list"):
        evaluate.main([str(path), "--exclude-leaked", "--out", str(tmp_path / "other")])


def test_a_checkpoint_needs_no_initial_weights(packed_store: Path, tmp_path: Path):
    weights = tmp_path / "resnet.pt"
    torch.save(torchvision.models.resnet18().state_dict(), weights)
    text = CONFIG.format(store=packed_store).replace("{name: resnet}", f"{{name: resnet, weights: {weights}}}")
    (tmp_path / "tiny.yaml").write_text(text)
    assert train.main([str(tmp_path / "tiny.yaml"), f"out={tmp_path / 'run'}", "train.max_steps=1"]) == 0
    weights.unlink()
    assert evaluate.main([str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    assert scores(tmp_path / "out")["config"]["model"]["image_encoder"]["weights"] == str(weights)


def test_flow_coded_otherwise_than_in_training_is_refused(run: Path, tmp_path: Path):
    checkpoint = load_checkpoint(run)
    encoders = {"image_encoder": {"name": "resnet"}, "flow_encoder": {"name": "resnet", "in_channels": 2}}
    mapping = as_mapping(checkpoint.config) | {"model": {"name": "htf", **encoders}}
    config = check(RunConfig, mapping, "the test")
    path = save_checkpoint(
        tmp_path,
        replace(
            checkpoint,
            config=config,
            model=build_model(config.model).state_dict(),
            record=checkpoint.record | {"flow": "published"},
        ),
        keep=1,
    )
    with pytest.raises(UserError, match=r"trained on a store with flow published, .* has flow none"):
        evaluate.main([str(path), "--out", str(tmp_path / "out")])


def test_scoring_stops_between_batches(run: Path):
    config = load_checkpoint(run).config
    model = build_model(config.model).train()
    asked = iter([False, True])
    with pytest.raises(ScoringStopped):
        evaluate_sets(model, config, torch.device("cpu"), blind=False, stop=lambda: next(asked))
    assert model.training and next(asked, None) is None


def test_the_model_comes_back_as_it_was(run: Path, packed_store: Path):
    config = load_checkpoint(run).config
    model = build_model(config.model)
    restore_model(model, load_checkpoint(run).model, "test")
    model.train()
    frozen = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    frozen.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    first = evaluate_sets(model, config, torch.device("cpu"), blind=False)["test"]
    assert model.training and not frozen.training
    assert [module for module in model.modules() if not module.training] == [frozen]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
    again = evaluate_sets(model.eval(), config, torch.device("cpu"))["test"]
    assert again.scores == first.scores and again.floors and not first.floors


def test_where_the_results_go(run: Path, tmp_path: Path):
    curves = run / "curves.png"
    curves.write_bytes(b"a picture")
    assert evaluate.main([str(run)]) == 0
    (step,) = (run / "checkpoints").iterdir()
    page = (run / f"eval-{step.stem}" / "report.html").read_text()
    assert f"data:image/png;base64,{base64.b64encode(curves.read_bytes()).decode()}" in page
    with pytest.raises(UserError, match=r"eval-step-\d+ is not empty.*--out.*--overwrite"):
        evaluate.main([str(step)])
    stale = run / f"eval-{step.stem}" / "overlays" / "test" / "stale.jpg"
    stale.write_bytes(b"")
    assert evaluate.main([str(step), "--overwrite"]) == 0
    assert not stale.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file is a file; name a folder"):
        evaluate.main([str(run), "--out", str(tmp_path / "file" / "below")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate.protocol=ez_vls"], r"no 'ez_vls' in protocols.*Did you mean 'ez_vsl'"),
        (["evaluate.metrics.cious={}"], r"no 'cious' in metrics.*Did you mean 'ciou'"),
        (["evaluate.batchsize=3"], r"unknown key 'batchsize'.*batch_size"),
        (["evaluate.sets.test=null"], r"evaluate\.sets is empty"),
        (["evaluate.sets.tset={}"], r"no split 'tset'.*test, train"),
        (["--sets", "vggss"], r"no split 'vggss_test'.*test, train"),
        (["evaluate.sets.vggss_4655={splits: [test]}"], r"list of clips that we may not bundle.*kaist.*ids=FILE"),
        (["evaluate.sets.test.ids=vggss_test"], r"no clip of split test of .* is in the list vggss_test"),
        (["--protocols", "lsv"], r"no 'lsv' in protocols.*Did you mean 'lvs'"),
        (["--trained-on", "vgg"], r"no list 'vgg'"),
        (["data.store=null"], r"names no store.*--store"),
        (["--store", "nowhere"], r"no store at nowhere"),
        (["model.feature_dim=8"], r"does not fit this method"),
        (["nonsense"], r"'nonsense' is not an override"),
    ],
)
def test_wrong_words_are_answered(run: Path, tmp_path: Path, words: list[str], message: str):
    with pytest.raises(UserError, match=re.compile(message, re.DOTALL)):
        evaluate.main([str(run), *words, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_clip_without_truth_stops_before_anything_is_written(run: Path, packed_clips: Path, tmp_path: Path):
    clips = shutil.copytree(packed_clips, tmp_path / "clips")
    lines = [json.loads(line) for line in (clips / "manifest.jsonl").read_text().splitlines()][-5:]
    del lines[0]["boxes"]
    (clips / "manifest.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    command = ["-m", "preprocess", "pack", "manifest", str(clips), str(tmp_path / "store"), "--frontend", "logmel64"]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with pytest.raises(UserError, match=rf"1 of 5 clip\(s\) have neither boxes nor a mask.*{lines[0]['clip_id']}"):
        evaluate.main([str(run), "--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_the_command_answers_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(UserError, match="no checkpoint in"):
        evaluate.main([str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        evaluate.main([])
    assert "checkpoint" in capsys.readouterr().err
    command = [sys.executable, "evaluate.py", str(tmp_path / "no.pt")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: no checkpoint at") and done.stderr.count("\n") == 1


def test_the_config_of_a_checkpoint_survives(run: Path):
    config = load_checkpoint(run).config
    assert check(RunConfig, as_mapping(config), "again") == config
    assert load_config([str(run / "config.yaml")]) == config


def test_maps_of_any_system_score_as_their_checkpoint(scored: Path, packed_store: Path, tmp_path: Path):
    out, truth = tmp_path / "out", tmp_path / "truth.jsonl"
    lines = [
        {"clip_id": f"clip_{number}", "boxes": [[1 / 8, 1 / 8, 1 / 3, 1 / 2]], "label": ("low", "high")[number % 2]}
        for number in range(16, 24)
    ]
    truth.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    maps = str(scored / "maps_test.npz")
    assert evaluate.main(["maps", maps, "--truth", str(truth), "--protocols", "lvs", "--out", str(out)]) == 0
    for number in (0, 1):
        found, expected = table(out, "maps", number), table(scored, "test", number)
        assert found["protocol"] == expected["protocol"] and found["scores"] == expected["scores"]
        assert set(expected["floors"]) == {*found["floors"], "object"}, "a system's maps come without pictures"
        assert all(expected["floors"][key] == value for key, value in found["floors"].items())
        assert found["id_hash"] == expected["id_hash"]
    assert not (out / "overlays").exists()
    pictured = tmp_path / "pictured"
    words = ["--set", "test", "--store", str(packed_store), "--out", str(pictured)]
    assert evaluate.main(["maps", maps, *words]) == 0
    assert table(pictured, "test")["scores"] == table(scored, "test")["scores"]
    assert list((pictured / "overlays" / "test").iterdir())
    with pytest.raises(UserError, match="is not empty"):
        evaluate.main(["maps", maps, *words])


def test_bundled_truth_needs_no_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    chosen = load_list("vggss_test")[:40]
    spot = np.zeros((40, 7, 7), np.float32)
    spot[:, 3, 3] = 1
    names = [f"{name[:11]}_{int(name[12:]) * 1000}_{int(name[12:]) * 1000 + 10000}" for name in chosen[:-1]]
    np.savez(tmp_path / "maps.npz", clip_id=np.array([*names, "not_a_clip"]), maps=spot)
    words = ["--set", "vggss", "--trained-on", "vggsound_144k_ezvsl", "evaluate.bootstrap=10"]
    assert evaluate.main(["maps", str(tmp_path / "maps.npz"), *words]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "vggss: 39 of 5158 clips, protocol ez_vsl" in shown
    assert "5119 clips of the set have no map" in shown and "1 maps belong to no clip of the set" in shown
    assert "not_a_clip" in shown and "of 39 clips are in the training list" in shown
    with pytest.raises(UserError, match=r"no truth of set 'flickr' is bundled.*--truth.*--store"):
        evaluate.main(["maps", str(tmp_path / "maps.npz"), "--set", "flickr"])
    np.savez(tmp_path / "other.npz", a=spot[0])
    with pytest.raises(UserError, match=r"no map of .*other\.npz belongs to a clip of the set: maps of a; truth of"):
        evaluate.main(["maps", str(tmp_path / "other.npz"), "--set", "vggss"])
    spot[3, 0, 0] = np.nan
    np.savez(tmp_path / "nan.npz", clip_id=np.array(chosen), maps=spot)
    with pytest.raises(UserError, match=f"the map of {chosen[3]} in .* holds NaN"):
        evaluate.main(["maps", str(tmp_path / "nan.npz"), "--set", "vggss"])


def test_maps_of_clips_with_negative_sounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    names = [f"clip_{number}" for number in range(16)]
    maps = np.random.default_rng(0).random((16, 7, 7)).astype(np.float32)
    np.savez(tmp_path / "maps.npz", clip_id=np.array(names), maps=maps)
    kinds = [{"boxes": [[0.2, 0.2, 0.8, 0.8]]}, {"negative": True}]
    lines = [{"clip_id": name, **kinds[number % 2]} for number, name in enumerate(names)]
    (tmp_path / "truth.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    words = ["--truth", str(tmp_path / "truth.jsonl"), "--protocol", "vssl", "evaluate.metrics.detection={}"]
    assert evaluate.main(["maps", str(tmp_path / "maps.npz"), *words, "--out", str(tmp_path / "out")]) == 0
    found = table(tmp_path / "out", "maps")
    assert {"ciou_50", "pointing", "pia", "auc_n", "f_loc", "max_f1"} <= set(found["scores"]) and found["empty"] == 0
    assert "8 clips have a sound that nothing in the picture makes" in " ".join(capsys.readouterr().out.split())
    cut = np.quantile(maps[1::2].max((1, 2)), 0.75)
    assert found["scores"]["pia"] < 0.01 and f"{cut:.4g}, the third quartile" in str(found["settings"])


def test_extended_sets_need_no_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def shown(name: str, *words: str) -> str:
        assert evaluate.main(["maps", str(tmp_path / f"{name}.npz"), "--set", f"{name}_extended", *words]) == 0
        return " ".join(capsys.readouterr().out.split())

    for name, positive in (("vggss", "vggss_test"), ("flickr", "flickr_test_slavc")):
        chosen = [*load_list(positive)[:10], *load_list(f"{name}_silent")[:7]]
        np.savez(tmp_path / f"{name}.npz", clip_id=np.array(chosen), maps=np.random.default_rng(0).random((17, 7, 7)))
    said = shown("vggss", "evaluate.bootstrap=10")
    assert "vggss_extended: 17 of 10316 clips" in said and "ap_50_visible" in said
    assert "7 clips have a sound that nothing in the picture makes" in said
    with pytest.raises(UserError, match=r"no truth of set 'flickr_extended' is bundled.*--truth"):
        shown("flickr")
    boxes = [{"clip_id": name, "boxes": [[0, 0, 0.5, 0.5]]} for name in load_list("flickr_test_slavc")]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    said = shown("flickr", "--truth", str(tmp_path / "boxes.json"), "evaluate.bootstrap=10")
    assert "flickr_extended: 17 of 500 clips" in said and "7 clips have a sound" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "vgss"], r"no truth of set 'vgss' is bundled.*Did you mean 'vggss'\?"),
        (["--set", "vggss", "evaluate.refine.ogl={}"], r"evaluate\.refine\.ogl needs a method and the pictures"),
        (["--set", "vggss", "data.loader=dali"], r"evaluate\.<key>=value alone, found data"),
    ],
)
def test_what_maps_cannot_take_is_refused(tmp_path: Path, words: list[str], message: str):
    np.savez(tmp_path / "maps.npz", clip_id=np.array(load_list("vggss_test")[:2]), maps=np.ones((2, 7, 7)))
    with pytest.raises(UserError, match=message):
        evaluate.main(["maps", str(tmp_path / "maps.npz"), *words])


def test_runs_are_compared(
    run: Path, scored: Path, packed_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = tmp_path / "other"
    assert (
        evaluate.main(
            [
                "maps",
                str(scored / "maps_test.npz"),
                "--set",
                "test",
                "--store",
                str(packed_store),
                "--protocols",
                "lvs",
                "--out",
                str(other),
            ]
        )
        == 0
    )
    out = tmp_path / "out"
    capsys.readouterr()
    words = ["compare", str(scored), str(other), "--resamples", "50", "--out", str(out), "--store", str(packed_store)]
    assert evaluate.main(words) == 0
    shown = capsys.readouterr().out
    assert "| test | ez_vsl | ciou_50 |" in shown and "| test | lvs | ciou_50 |" in shown and "| htf |" not in shown
    same = next(line for line in shown.splitlines() if line.startswith("| test | ez_vsl | auc | 8 |"))
    assert "| +0.0000 | +0.0000 to +0.0000 | 1.0000 |" in same
    assert {path.name for path in out.iterdir()} == {"compare.md", "compare.tex", "compare.csv", "compare.html"}
    assert (out / "compare.md").read_text() in shown
    assert r"ciou\_50 & " in (out / "compare.tex").read_text() and "test,lvs,auc," in (out / "compare.csv").read_text()
    with pytest.raises(UserError, match=r"no results in .*scores\.json"):
        evaluate.main(["compare", str(tmp_path)])


RANK = """
import json, sys
from pathlib import Path
import torch
import torch.distributed as dist
from evaluate import evaluate_sets
from model.build import build_model
from model.checkpoint import load_checkpoint, restore_model
run, rank, world, out = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
torch.set_num_threads(1)
if world > 1:
    dist.init_process_group("gloo", init_method=f"file://{out / 'meet'}", rank=rank, world_size=world)
checkpoint = load_checkpoint(run)
model = build_model(checkpoint.config.model)
restore_model(model, checkpoint.model, "test")
table = evaluate_sets(model, checkpoint.config, torch.device("cpu"), rank=rank, world_size=world)["test"]
(out / f"{world}-{rank}.json").write_text(json.dumps({**table.as_mapping(), "ids": table.rows["clip_id"].tolist()}))
if world > 1:
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_three_ranks_score_as_one(run: Path, tmp_path: Path):
    (tmp_path / "rank.py").write_text(RANK)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for world in (1, 3):
        started = [
            subprocess.Popen(
                [sys.executable, str(tmp_path / "rank.py"), str(run), str(rank), str(world), str(tmp_path)],
                env=environment,
            )
            for rank in range(world)
        ]
        assert [process.wait(timeout=300) for process in started] == [0] * world
    alone, *others = (
        json.loads((tmp_path / name).read_text()) for name in ("1-0.json", "3-0.json", "3-1.json", "3-2.json")
    )
    for other in others:
        assert other["ids"] == alone["ids"] and other["found"] == 8 and other["id_hash"] == alone["id_hash"]
        assert other["floors"] == alone["floors"] and other["ceiling"] == alone["ceiling"]
        # Batches of other sizes move a map in its last digits.
        assert other["scores"] == pytest.approx(alone["scores"], abs=2e-3)
        assert other["scores"] == others[0]["scores"] and other["intervals"] == others[0]["intervals"]
