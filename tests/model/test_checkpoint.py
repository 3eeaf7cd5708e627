"""Checkpoints: whole or not there, and clear about what does not fit."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from configs.errors import UserError
from configs.load import load_config
from model.checkpoint import (
    Checkpoint,
    capture_rng,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    refuse_other_steps,
    restore_model,
    restore_rng,
    save_checkpoint,
    write_atomically,
)

ROOT = Path(__file__).parents[2]


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(
        config=load_config(["ez_vsl_realset"]),
        model={"weight": torch.full((2,), float(step))},
        optimizer={"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]},
        step=step,
        loader={"epoch": 1, "samples": 128},
        rng=capture_rng(),
        record={"finished": False},
        history=[{"epoch": 1, "loss": 2.5}],
    )


def test_round_trip(tmp_path: Path):
    saved = checkpoint(7)
    path = save_checkpoint(tmp_path, saved, keep=2)
    loaded = load_checkpoint(path)
    assert loaded.config == saved.config and loaded.step == 7 and loaded.history == saved.history
    assert loaded.loader == saved.loader and loaded.optimizer["param_groups"] == saved.optimizer["param_groups"]
    assert torch.equal(loaded.model["weight"], saved.model["weight"])
    first = torch.rand(3)
    restore_rng(loaded.rng)
    restored = torch.rand(3)
    restore_rng(loaded.rng)
    assert torch.equal(torch.rand(3), restored)
    assert first.shape == restored.shape


def test_only_the_newest_are_kept(tmp_path: Path):
    for step in (1, 5, 20):
        save_checkpoint(tmp_path / "checkpoints", checkpoint(step), keep=2)
    kept = list_checkpoints(tmp_path / "checkpoints")
    assert [path.name for path in kept] == ["step-00000005.pt", "step-00000020.pt"]
    assert find_checkpoint(tmp_path) == kept[-1]


def test_an_unfinished_file_does_not_count(tmp_path: Path):
    save_checkpoint(tmp_path, checkpoint(1), keep=2)

    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left on device; what was there before is untouched"):
        write_atomically(tmp_path / "step-00000002.pt", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.pt"]


def test_a_full_disk_keeps_what_was_there(tmp_path: Path):
    """A real limit on the size of files, in a process of its own: torch.save fails half way through."""
    save_checkpoint(tmp_path, checkpoint(1), keep=2)
    script = f"""
import resource, torch
from pathlib import Path
from model.checkpoint import load_checkpoint, save_checkpoint
from configs.errors import UserError
old = load_checkpoint(Path({str(tmp_path)!r}))
old.step, old.model = 2, {{"weight": torch.zeros(1_000_000)}}
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    save_checkpoint(Path({str(tmp_path)!r}), old, keep=2)
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "File too large; what was there before is untouched" in done.stdout, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.pt"]
    assert load_checkpoint(tmp_path).step == 1


def test_what_is_no_checkpoint_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "gone.pt")
    with pytest.raises(UserError, match="no checkpoint in"):
        load_checkpoint(tmp_path)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "foreign.pt")
    with pytest.raises(UserError, match="not a checkpoint of this project"):
        load_checkpoint(tmp_path / "foreign.pt")
    torch.save({"format": "whence-checkpoint", "version": 2, "step": 3}, tmp_path / "half.pt")
    with pytest.raises(UserError, match="missing or unknown: config, history"):
        load_checkpoint(tmp_path / "half.pt")
    path = save_checkpoint(tmp_path, checkpoint(3), keep=1)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(path)


def test_flow_of_another_code_is_refused():
    facts = {"step_clips": 8, "train_id_hash": "a", "store": "stores/b", "flow": "signed"}
    refuse_other_steps(facts, facts, "run")
    refuse_other_steps({"step_clips": 8, "train_id_hash": "a"}, facts, "run")  # of before it was recorded
    for was in ("published", None):
        with pytest.raises(UserError, match=f"flow {was or 'none'}, stores/b has flow signed"):
            refuse_other_steps(facts | {"flow": was}, facts, "run")


def test_weights_of_another_method_are_refused():
    module = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"1 missing \(bias\), 1 unexpected \(scale\)"):
        restore_model(module, {"weight": torch.zeros(2, 2), "scale": torch.zeros(1)}, "x.pt")
    with pytest.raises(UserError, match="size mismatch"):
        restore_model(module, {"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, "x.pt")
