"""evaluate.py as a user runs it: a real store, loader, method and checkpoint."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate
import train
from configs.errors import UserError
from configs.load import as_mapping, check, load_config
from configs.schema import RunConfig
from evaluate import evaluate_sets, trained_on
from model.build import build_model
from model.checkpoint import load_checkpoint, restore_model
from model.scoring import load_rows
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


def test_a_run_is_scored_and_pictured(
    run: Path, packed_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert evaluate.main([str(run), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    for word in ("test: 8 of 8 clips", "ez_vsl", "ciou_50", "centre", "ones", "random", "ceiling", "last epoch"):
        assert word in shown, word
    assert "0 of 8 clips are in the training list" in shown and "warning" not in shown
    assert str(tmp_path / "out" / "report.html") in shown.replace("\n", "")

    found = scores(tmp_path / "out")["sets"]["test"]
    with Store(packed_store) as store:
        names = sorted(store.index["clip_id"][number] for number in store.select("test"))
    rows = load_rows(tmp_path / "out" / "rows_test.npz")
    assert rows["clip_id"].tolist() == names and found["id_hash"] == id_hash(names)
    assert found["scores"]["ciou_50"] == np.mean(rows["ciou"] >= 0.5)
    # Every clip has the same box, so a uniform map points at it by its area.
    assert found["floors"]["ones"]["pointing"] == pytest.approx(rows["truth_area"][0])
    assert 0.07 < rows["truth_area"][0] < 0.09
    pictures = list((tmp_path / "out" / "overlays" / "test").iterdir())
    assert 2 <= len(pictures) <= 6 and {path.stem for path in pictures} <= set(names)
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
    words = ["evaluate.metrics.quadrant={rows: 1}", "evaluate.metrics.pointing=null", "evaluate.sets.train={}"]
    assert evaluate.main([str(run), *words, "evaluate.sets.test=null", "--out", str(out)]) == 0
    found = scores(out)["sets"]
    assert list(found) == ["train"] and set(found["train"]["scores"]) == {"ciou_50", "auc", "mean_ciou", "quadrant"}
    assert found["train"]["floors"]["ones"]["quadrant"] == pytest.approx(0.5)
    assert found["train"]["warnings"] == ["16 of 16 clips are in the training list; 16 come from a video of that list."]
    assert scores(out)["config"]["evaluate"]["sets"] == {"train": {"size_px": None, "expected": None}}


def test_missing_clips_and_another_training_list_are_said(run: Path, tmp_path: Path):
    out = tmp_path / "out"
    words = ["evaluate.sets.test.expected=10", "data.train_split=test"]
    assert evaluate.main([str(run), *words, "--out", str(out)]) == 0
    missing, leak, other = scores(out)["sets"]["test"]["warnings"]
    assert missing.startswith("2 clips of the full set are missing")
    assert leak.startswith("8 of 8 clips are in the training list")
    assert "is not the list that the checkpoint was trained on" in other
    assert scores(out)["sets"]["test"]["expected"] == 10


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
    assert evaluate.main([str(run)]) == 0
    (step,) = (run / "checkpoints").iterdir()
    assert (run / f"eval-{step.stem}" / "report.html").is_file()
    with pytest.raises(UserError, match=r"eval-step-\d+ is not empty.*--out.*--overwrite"):
        evaluate.main([str(step)])
    stale = run / f"eval-{step.stem}" / "overlays" / "test" / "stale.jpg"
    stale.write_bytes(b"")
    assert evaluate.main([str(step), "--overwrite"]) == 0
    assert not stale.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file is a file; name a folder"):
        evaluate.main([str(run), "--out", str(tmp_path / "file")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate.protocol=ez_vls"], r"no 'ez_vls' in protocols.*Did you mean 'ez_vsl'"),
        (["evaluate.metrics.cious={}"], r"no 'cious' in metrics.*Did you mean 'ciou'"),
        (["evaluate.batchsize=3"], r"unknown key 'batchsize'.*batch_size"),
        (["evaluate.sets.test=null"], r"evaluate\.sets is empty"),
        (["evaluate.sets.tset={}"], r"no split 'tset'.*test, train"),
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
    with pytest.raises(UserError, match=rf"1 clip\(s\) have neither boxes nor a mask.*{lines[0]['clip_id']}"):
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


def test_leaks_are_found_by_clip_and_by_video():
    listed = ["abcdefghijk_000010", "-_cdefghijk_000030", "1234567"]
    scored = [
        "abcdefghijk_000010",
        "abcdefghijk_000050",
        "-_cdefghijk_000040",
        "1234567",
        "other_12",
        "zzzzzzzzzzz_000010",
    ]
    assert trained_on(scored, listed) == (2, 4)
    assert trained_on([], listed) == trained_on(scored, []) == (0, 0)


def test_the_config_of_a_checkpoint_survives(run: Path):
    config = load_checkpoint(run).config
    assert check(RunConfig, as_mapping(config), "again") == config
    assert load_config([str(run / "config.yaml")]) == config
