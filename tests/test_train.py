"""train.py as a user runs it: real store, real loader, real files."""

import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

import train
from configs.errors import UserError
from configs.load import load_config, load_frontend
from model import profiling
from model.checkpoint import load_checkpoint
from model.honesty import TRAIN_IDS, unpack_ids
from pipeline.batch import InputSpec
from pipeline.loader import build_loader
from pipeline.store import Store, is_held_out
from preprocess.engines.local import Local
from preprocess.layouts.manifest import Manifest
from preprocess.options import PackConfig
from preprocess.writer import pack
from tests.train_kills import make_config, refuse_different_runs, train_with_kills

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
    assert (tmp_path / "run" / "curves.png").read_bytes()[:4] == b"\x89PNG"
    values = json.loads(log[1])
    assert values["bytes_per_clip"] > 1000 and values["peak_memory_gb"] > 0.1 and values["batches_ready"] >= 0
    assert json.loads((tmp_path / "run" / "record.json").read_text())["loader"]["loader"] == "reference"
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
    """Pictures by DALI alone and by OpenCV, from the same draws: the losses agree, not bit for bit."""
    # A small rate and a mild temperature: else random weights amplify the difference of a grey level.
    mild = ("optim.lr=1e-6", "model.losses.max_mil.tau=1.0")
    by_dali = run("graph", *mild, "data.loader.change=dali", loader="dali")
    first, second = (run(loader, *mild, loader=loader) for loader in ("dali", "reference"))
    assert [epoch["loss"] for epoch in first.history] == [epoch["loss"] for epoch in second.history]
    for a, b in zip(by_dali.history, second.history):
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


def test_a_loss_that_is_not_finite_stops_with_its_batch(run, tmp_path: Path, packed_store: Path):
    # After a first step of this size the second loss is NaN; it is noticed at the fourth.
    with pytest.raises(UserError, match=r"the loss became (inf|nan) shortly before step 4.*not_finite\.txt"):
        run("run", "optim={name: sgd, lr: 1e30, schedule: constant, warmup_share: 0.0}", "train.log_every_steps=4")
    config = load_config([str(tmp_path / "reference.yaml")])
    loader = build_loader(config.data, InputSpec(), "train", train=True)
    _, second, *_ = loader
    loader.close()
    assert (tmp_path / "run" / "not_finite.txt").read_text().split() == second.clip_id
    dumped = torch.load(tmp_path / "run" / "not_finite.pt", weights_only=True)
    assert dumped["clip_id"] == second.clip_id and not math.isfinite(dumped["loss"])
    assert torch.equal(dumped["image"], second.image) and torch.equal(dumped["spectrogram"], second.spectrogram)


HELD_OUT = "train.selection={by: held_out, share: 0.35}"


@pytest.mark.slow
def test_the_best_epoch_on_held_out_clips_is_kept(run, tmp_path: Path, packed_store: Path):
    """With averaged weights, interrupted within an epoch: newest and best checkpoint equal those of a whole run."""
    options = (HELD_OUT, "train.ema=0.9", "optim.lr=1e-4", "evaluate.sets={test: null}")
    whole = run("whole", *options)
    run("parts", *options, "train.max_steps=5")
    same(whole, run("parts", *options, resume=True))
    with Store(packed_store) as store:
        names = {number: store.index["clip_id"][number] for number in store.select("train")}
    learned = unpack_ids(whole.record[TRAIN_IDS])
    assert learned == sorted(name for name in names.values() if not is_held_out(name, 0.35)) and len(learned) == 12
    losses = [row["held_out/loss"] for row in whole.history]
    assert len(losses) == 2 and len(set(losses)) == 2
    best, again = (load_checkpoint(tmp_path / folder / "checkpoints" / "best.pt") for folder in ("whole", "parts"))
    same(best, again)
    assert best.record["best"] == {"value": min(losses), "epoch": losses.index(min(losses)) + 1}
    assert best.record["selection"].startswith("best held_out/loss on 0.35 of the training list")
    assert whole.record["selection"] == "last epoch"
    for key, value in whole.trained.items():
        assert torch.equal(value, load_checkpoint(tmp_path / "parts").trained[key])
    assert any(not torch.equal(whole.trained[key], whole.model[key]) for key in whole.model)


def test_the_best_epoch_on_a_scored_set_says_so(run, tmp_path: Path):
    run("run", "train.selection={by: test_set, set: test, metric: pointing}", "train.epochs=1")
    best = load_checkpoint(tmp_path / "run" / "checkpoints" / "best.pt")
    assert best.record["selection"] == "best test/pointing on a set that is scored (split test), epoch 1"
    with pytest.raises(UserError, match=r"train\.selection\.metric=point: test has no such score; it has .*'pointing'"):
        run("typo", "train.selection={by: test_set, set: test, metric: point}", "train.epochs=1")


class CountSyncs(TorchDispatchMode):
    """Counts values that the host reads from tensors, outside of what `pause` wraps."""

    def __init__(self) -> None:
        super().__init__()
        self.met, self.paused = 0, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.met += "_local_scalar_dense" in str(func) and not self.paused
        return func(*args, **(kwargs or {}))

    def pause(self, method: Any) -> Any:
        def paused(*arguments: Any) -> Any:
            self.paused = True
            method(*arguments)
            self.paused = False

        return paused


def test_the_loop_reads_values_when_it_logs_only(run, monkeypatch: pytest.MonkeyPatch):
    """All between two lines of the log: learning rate, weights of the losses, both passes, clipping, optimizer, EMA."""
    syncs = CountSyncs()
    before = train.Training.train_epoch

    def counted(training: train.Training) -> None:
        with syncs:
            before(training)

    monkeypatch.setattr(train.Training, "train_epoch", counted)
    monkeypatch.setattr(train.Training, "log_interval", syncs.pause(train.Training.log_interval))
    run("run", "train.epochs=1", "train.ema=0.9", "optim.clip_norm=1.0", "evaluate.sets={test: null}")
    assert syncs.met == 0
    with syncs:
        float(torch.ones(1))
    assert syncs.met == 1


def test_a_plan_trains_nothing(run, tmp_path: Path, packed_store: Path, capsys: pytest.CaptureFixture):
    config = tmp_path / "reference.yaml"
    config.write_text(CONFIG.format(store=packed_store, loader="reference"))
    assert train.main([str(config), f"out={tmp_path / 'run'}", "--plan"]) == 0
    shown = capsys.readouterr().out
    for word in ("22.36 M", "GFLOP a clip", "clips/s", "16 clips of split 'train'", "fits"):
        assert word in shown
    assert not (tmp_path / "run").exists()
    assert train.main([str(config), "data.store=nowhere", "--plan"]) == 0
    assert "no store at nowhere" in capsys.readouterr().out
    assert train.main([str(config), "data.store=nowhere", "--plan=h200"]) == 0
    shown = capsys.readouterr().out
    for word in ("estimated, not measured", "144,000 clips, taken for want of a store", "of h200"):
        assert word in shown
    assert train.main([str(config), "--plan=h200"]) == 0
    shown = capsys.readouterr().out
    assert "16 clips; estimated" in shown and "0 to 0 s" not in shown
    with pytest.raises(UserError, match="no rates of a GPU 'abacus'"):
        train.main([str(config), "--plan=abacus"])


def test_a_profile_shows_its_stages(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(profiling, "WARM_UP_STEPS", 1)
    monkeypatch.setattr(profiling, "STEPS", 2)
    run("run", "train.epochs=1", "evaluate.sets={test: null}", "--profile")
    shown = capsys.readouterr().out
    events = json.loads((tmp_path / "run" / "trace.json").read_text())["traceEvents"]
    for stage in ("data", "forward and loss", "backward", "optimizer"):
        assert stage in shown and sum(event.get("name") == stage and event.get("ph") == "X" for event in events) == 2


def test_a_run_too_short_for_a_profile_says_so(run, tmp_path: Path, capsys: pytest.CaptureFixture):
    run("run", "train.max_steps=1", "evaluate.sets={test: null}", "--profile")
    assert "no profile: it takes 10 steps, and the run ended after 1" in capsys.readouterr().out
    assert not (tmp_path / "run" / "trace.json").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.batch_size=1000", "too few clips for one step of 1000"),
        ("data.store=gone", "no store at gone"),
        ("data.train_split=trian", "no split 'trian'"),
        ("train.device=cuda", "no GPU"),
        ("evaluate.sets={nothing: {}}", "no split 'nothing'"),
        ("train.selection={by: test_set, set: gone, metric: pointing}", r"train\.selection\.set=gone needs that set"),
        ("train.selection={by: test_set, set: test}", "needs a metric of the set"),
        ("train.selection={by: held_out, share: 0.1}", r"the 1 held-out clips \('train\[held_out:0.1000\]'\)"),
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


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.mark.slow
def test_two_launchers_that_meet_at_a_port_train_as_one(run, tmp_path: Path):
    """As on two nodes: two torchruns of one process each, which know of each other by host and port only."""
    frozen = (
        "model.image_encoder={name: resnet, frozen: true}",
        "model.audio_encoder={name: resnet, frozen: true, in_channels: 1}",
        *("train.max_steps=3", "evaluate.sets={test: null}", HELD_OUT, "train.ema=0.9"),
    )
    whole = run("whole", *frozen)
    options = [f"out={tmp_path / 'two'}", "data.batch_size=2", *frozen]
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--rdzv-id", "test"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *meeting]
    nodes = [
        subprocess.Popen(
            [*command, "train.py", str(tmp_path / "reference.yaml"), *options],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    for node in nodes:
        output, _ = node.communicate(timeout=300)
        assert node.returncode == 0, output
    spread = load_checkpoint(tmp_path / "two")
    assert spread.step == whole.step and spread.record["ranks"] == 2
    assert spread.history[-1]["held_out/loss"] == pytest.approx(whole.history[-1]["held_out/loss"], rel=1e-4)
    for first, second in ((whole.model, spread.model), (whole.trained, spread.trained)):
        for key, value in first.items():
            torch.testing.assert_close(second[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_run_compiles_once(run, monkeypatch: pytest.MonkeyPatch):
    """Over two epochs with checkpoints, scoring and held-out clips in between; the tracer is the one of every backend,
    and this backend generates no code."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    counters.clear()
    run("run", "train.compile=true", HELD_OUT, "train.ema=0.9", "train.checkpoint_every_steps=2")
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def stop_at_the_first_step(process: subprocess.Popen, number: signal.Signals, one_of: bool = False) -> None:
    """Send a signal to a run that has just said how a step went, or to one of the processes of its launcher."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step "):
            break
    if one_of:
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        os.kill(int(children[-1]), number)
    else:
        process.send_signal(number)
    output, errors = process.communicate(timeout=300)
    assert "go on with --resume" in output, errors


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both(tmp_path: Path, packed_store: Path):
    config, out = tmp_path / "reference.yaml", tmp_path / "two"
    config.write_text(CONFIG.format(store=packed_store, loader="reference"))
    process = torchrun(2, config, f"out={out}", "data.batch_size=2", "train.epochs=20", "evaluate.sets={test: null}")
    stop_at_the_first_step(process, signal.SIGTERM, one_of=True)
    assert 0 < load_checkpoint(out).step < 80


@pytest.mark.slow
def test_a_signal_saves_and_the_run_goes_on(run, tmp_path: Path):
    """Stopped twice, then left alone."""
    options = ("train.epochs=8", "evaluate.sets={test: null}")
    whole = run("whole", *options)
    before = 0
    for number in (signal.SIGTERM, signal.SIGINT):
        process = command(tmp_path / "reference.yaml", f"out={tmp_path / 'stopped'}", *options, "--resume")
        stop_at_the_first_step(process, number)
        assert process.returncode == 128 + number
        stopped = load_checkpoint(tmp_path / "stopped").step
        assert before < stopped < whole.step
        before = stopped
    same(whole, run("stopped", *options, resume=True))


@pytest.mark.slow
def test_killed_at_any_moment_a_run_ends_as_if_it_was_not(tmp_path: Path):
    """`python -m tests.train_kills` kills more often."""
    config = make_config(tmp_path, epochs=4)
    train_with_kills(config, tmp_path / "whole", 0, random.Random(1))
    train_with_kills(config, tmp_path / "killed", 2, random.Random(1))
    refuse_different_runs(tmp_path / "whole", tmp_path / "killed")
