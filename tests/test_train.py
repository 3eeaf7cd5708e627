"""train.py as a user runs it: real store, real loader, real files."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torchvision

import train
from configs.errors import UserError
from configs.load import load_frontend
from model.checkpoint import load_checkpoint
from model.honesty import TRAIN_IDS, unpack_ids
from preprocess.engines.local import Local
from preprocess.layouts.manifest import Manifest
from preprocess.options import PackConfig
from preprocess.writer import pack

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
  augment: {{random_resized_crop: {{}}, flip: {{}}, time_crop: {{}}}}
  loader: {{name: {loader}}}
optim: {{name: adamw, lr: 1e-3, schedule: one_cycle, warmup_share: 0.3}}
train: {{epochs: 2, cpu_threads: 1, device: cpu, log_every_steps: 1}}
evaluate:
  metrics: {{ciou: {{}}, pointing: {{}}}}
  sets: {{test: {{}}}}
"""


@pytest.fixture
def run(tmp_path: Path, packed_store: Path):
    """A function that trains with overrides and returns the last checkpoint."""

    def go(folder: str, *overrides: str, loader: str = "reference", resume: bool = False):
        config = tmp_path / f"{loader}.yaml"
        config.write_text(CONFIG.format(store=packed_store, loader=loader))
        out = tmp_path / folder
        code = train.main([str(config), f"out={out}", *overrides, *(["--resume"] if resume else [])])
        assert code == 0
        return load_checkpoint(out)

    return go


def same(first, second) -> None:
    assert first.step == second.step and first.loader == second.loader and first.history == second.history
    assert all(torch.equal(first.model[key], second.model[key]) for key in first.model)
    for key, state in first.optimizer["state"].items():
        for name, value in state.items():
            assert torch.equal(value, second.optimizer["state"][key][name]), (key, name)


def test_a_run_takes_every_step_and_leaves_its_record(run, tmp_path: Path):
    checkpoint = run("run")
    steps = checkpoint.record["train_clips"] // 4
    assert checkpoint.step == 2 * steps and checkpoint.record["finished"]
    assert [row["epoch"] for row in checkpoint.history] == [1, 2]
    assert {"loss", "test/ciou_50", "test/pointing"} <= set(checkpoint.history[-1])
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert sum('"kind": "train"' in line for line in log) == 2 * steps
    assert (tmp_path / "run" / "config.yaml").is_file() and list((tmp_path / "run" / "tensorboard").iterdir())
    assert len(unpack_ids(checkpoint.record[TRAIN_IDS])) == checkpoint.record["train_clips"] == 16
    # Its own resolved config is enough to run it again, and gives the same weights.
    again = tmp_path / "again"
    assert train.main([str(tmp_path / "run" / "config.yaml"), f"out={again}"]) == 0
    same(checkpoint, load_checkpoint(again))


@pytest.mark.parametrize("loader", ["reference", "dali"])
@pytest.mark.parametrize("stop", [3, 4, 5])
def test_a_resumed_run_equals_an_uninterrupted_one(run, loader: str, stop: int):
    whole = run("whole", loader=loader)
    run("parts", f"train.max_steps={stop}", loader=loader)
    same(whole, run("parts", loader=loader, resume=True))


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, method: str) -> None:
    """Send this process SIGTERM when a run comes to `method` at a step."""
    before = getattr(train.Training, method)

    def signalled(training: train.Training, *arguments) -> None:
        if training.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        before(training, *arguments)

    monkeypatch.setattr(train.Training, method, signalled)


@pytest.mark.parametrize("method", ["log_interval", "score_epoch"])
@pytest.mark.parametrize("step", [4, 8], ids=["last of an epoch", "last of the run"])
def test_a_signal_in_a_last_step_loses_nothing(run, monkeypatch: pytest.MonkeyPatch, step: int, method: str):
    whole = run("whole")
    with monkeypatch.context() as patched:
        stop_at(patched, step, method)
        with pytest.raises(AssertionError, match="assert 143 == 0"):
            run("parts")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    same(whole, run("parts", resume=True))


def test_the_log_of_a_resumed_run_has_every_step_once(run, tmp_path: Path):
    run("run", "train.max_steps=5", "train.checkpoint_every_steps=3", "train.keep_checkpoints=9")
    (tmp_path / "run" / "checkpoints" / "step-00000005.pt").unlink()  # as after a kill: logged, but not saved
    run("run", resume=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 9))


def test_scoring_that_fails_loses_no_epoch(run, tmp_path: Path, packed_store: Path):
    """The store of the test split is gone when the first epoch ends; later it is back."""
    copy = tmp_path / "copy"
    shutil.copytree(packed_store, copy)
    data = copy / "shard-00000" / "data.mdb"
    whole = run("whole")
    with pytest.MonkeyPatch.context() as patched:
        before = train.Training.score_epoch

        def without_store(training: train.Training) -> None:
            data.rename(data.with_suffix(".away"))
            before(training)

        patched.setattr(train.Training, "score_epoch", without_store)
        with pytest.raises(UserError, match="is missing"):
            run("parts", f"data.store={copy}")
    data.with_suffix(".away").rename(data)
    same(whole, run("parts", resume=True))


def test_a_run_goes_on_without_the_weights_that_it_began_with(run, tmp_path: Path):
    weights = tmp_path / "resnet18.pt"
    torch.save(torchvision.models.resnet18().state_dict(), weights)
    start = f"model.image_encoder={{name: resnet, weights: {weights}}}"
    whole = run("whole", start, "train.max_steps=2")
    run("parts", start, "train.max_steps=1")
    weights.unlink()
    same(whole, run("parts", start, "train.max_steps=2", resume=True))


def test_another_training_list_is_refused(run, packed_clips: Path, tmp_path: Path):
    run("run", "train.max_steps=2")
    with pytest.raises(UserError, match=r"was trained on the list .* goes on with its own clips only"):
        run("run", f"data.store={smaller_store(packed_clips, tmp_path)}", resume=True)


def smaller_store(packed_clips: Path, tmp_path: Path) -> Path:
    lines = (packed_clips / "manifest.jsonl").read_text().splitlines()
    (packed_clips / "fewer.jsonl").write_text("\n".join(line for line in lines if "clip_03" not in line) + "\n")
    layout = Manifest(Manifest.Config(name="manifest"), packed_clips / "fewer.jsonl")
    config = PackConfig(frontends=(load_frontend("logmel64"),))
    pack(layout, tmp_path / "fewer", config, Local(Local.Config(name="local", workers=0)), dataset="fewer")
    return tmp_path / "fewer"


def test_weights_that_are_not_finite_are_not_saved(run, tmp_path: Path):
    # The first loss is finite, but the step that follows is beyond float32.
    with pytest.raises(UserError, match=r"tensors hold NaN or infinity after step 1"):
        run("run", "optim={name: sgd, lr: 1e38, schedule: constant, warmup_share: 0.0}", "train.max_steps=1",
            "model.losses.max_mil.weight=1e6")  # fmt: skip
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_the_loader_does_not_change_the_curve(run):
    """One is decoded by DALI, the other by OpenCV, from the same draws: the losses agree, not bit for bit."""
    # A small rate and a mild temperature: else random weights amplify the difference of a grey level.
    mild = ("optim.lr=1e-6", "model.losses.max_mil.tau=1.0")
    first, second = (run(loader, *mild, loader=loader) for loader in ("dali", "reference"))
    for a, b in zip(first.history, second.history):
        assert a["loss"] == pytest.approx(b["loss"], rel=0.02)


def test_accumulation_and_clipping_take_their_steps(run):
    checkpoint = run("run", "optim.accumulate=2", "optim.clip_norm=1.0", "train.epochs=1")
    assert checkpoint.step == checkpoint.record["train_clips"] // 4 // 2


def test_finished_runs_are_left_alone(run, tmp_path: Path, capsys: pytest.CaptureFixture):
    before = run("run")
    same(before, run("run", resume=True))
    assert "already finished" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"holds a run already.*--resume"):
        run("run")
    with pytest.raises(UserError, match=r"optim\.lr: 0\.001 in the checkpoint, 0\.002 now"):
        run("run", "optim.lr=2e-3", resume=True)


def test_a_loss_that_is_not_finite_stops_with_its_clips(run, tmp_path: Path):
    # A weight beyond float32 makes the very first loss infinite.
    with pytest.raises(UserError, match=r"the loss became inf.*not_finite\.txt"):
        run("run", "model.losses.max_mil.weight=1e39")
    assert (tmp_path / "run" / "not_finite.txt").read_text().count("\n") == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.batch_size=1000", "too few clips for one step of 1000"),
        ("data.store=gone", "no store at gone"),
        ("data.train_split=trian", "no split 'trian'"),
        ("train.device=cuda", "no GPU"),
        ("evaluate.sets={nothing: {}}", "no split 'nothing'"),
    ],
)
def test_wrong_input_is_named(run, override: str, message: str):
    if "cuda" in override and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match=message):
        run("run", override)


def command(config: Path, *arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "train.py", str(config), *arguments],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_errors_are_one_message_without_traceback(tmp_path: Path):
    process = command(tmp_path / "gone.yaml")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and errors.startswith("error: no config") and "Traceback" not in errors


def torchrun(ranks: int, config: Path, *arguments: str) -> subprocess.Popen:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*launcher, "train.py", str(config), *arguments],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_train_as_one(run, tmp_path: Path):
    """Two gloo ranks of two clips each; frozen encoders, so that no BatchNorm looks at its own rank's clips."""
    frozen = (
        "model.image_encoder={name: resnet, frozen: true}",
        "model.audio_encoder={name: resnet, frozen: true, in_channels: 1}",
    )
    whole = run("whole", *frozen)
    config = tmp_path / "reference.yaml"

    def two(*arguments: str) -> str:
        process = torchrun(2, config, f"out={tmp_path / 'two'}", "data.batch_size=2", *frozen, *arguments)
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        return output

    output = two("train.max_steps=3")
    assert output.count("4 clips on 2 x cpu") == 1, "only the first rank speaks"
    two("--resume")
    spread = load_checkpoint(tmp_path / "two")
    assert spread.step == whole.step and spread.record["ranks"] == 2
    for key, value in whole.model.items():
        torch.testing.assert_close(
            spread.model[key], value, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )
    assert spread.history[-1]["loss"] == pytest.approx(whole.history[-1]["loss"], rel=1e-4)
    assert spread.history[-1]["test/pointing"] == pytest.approx(whole.history[-1]["test/pointing"])
    # The last epoch once more, by one process.
    sorted((tmp_path / "two" / "checkpoints").iterdir())[-1].unlink()
    alone = run("two", *frozen, resume=True)
    assert alone.step == whole.step and alone.record["ranks"] == 1
    with pytest.raises(UserError, match="was trained with 4 clips a step, this run has 2"):
        run("two", *frozen, "data.batch_size=2", resume=True)


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both(run, tmp_path: Path):
    whole = run("whole", "train.epochs=12")
    out = tmp_path / "two"
    process = torchrun(2, tmp_path / "reference.yaml", f"out={out}", "data.batch_size=2", "train.epochs=12")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step "):
            children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
            os.kill(int(children[-1]), signal.SIGTERM)
            break
    output, errors = process.communicate(timeout=120)
    assert "go on with --resume" in output, errors
    assert 0 < load_checkpoint(out).step < whole.step


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_goes_on(run, tmp_path: Path, packed_store: Path, number: signal.Signals):
    whole = run("whole", "train.epochs=12")
    config, out = tmp_path / "reference.yaml", tmp_path / "stopped"
    process = command(config, f"out={out}", "train.epochs=12")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step "):
            process.send_signal(number)
            break
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    assert "go on with --resume" in output
    stopped = load_checkpoint(out)
    assert 0 < stopped.step < whole.step
    same(whole, run("stopped", "train.epochs=12", resume=True))


@pytest.mark.slow
def test_killed_at_any_moment_the_newest_checkpoint_loads(run, tmp_path: Path, packed_store: Path):
    whole = run("whole", "train.epochs=30", "evaluate.sets={}")
    config, out = tmp_path / "reference.yaml", tmp_path / "killed"
    for attempt in range(3):
        process = command(
            config, f"out={out}", "train.epochs=30", "evaluate.sets={}", "train.checkpoint_every_steps=1", "--resume"
        )
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step "):
                break
        time.sleep(0.2 + 0.37 * attempt)
        process.kill()
        process.communicate()
        if out.is_dir() and list((out / "checkpoints").glob("step-*.pt")):
            load_checkpoint(out)
    same(whole, run("killed", "train.epochs=30", "evaluate.sets={}", "train.checkpoint_every_steps=1", resume=True))
