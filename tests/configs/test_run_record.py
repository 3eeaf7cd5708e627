"""The run folder and its boards."""

import json
import sys
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.load import load_config
from configs.run_record import Clock, RunRecord


@pytest.mark.slow
def test_wandb_keeps_a_run_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = load_config(["ez_vsl_realset", f"out={tmp_path / 'run'}", "train.boards=[wandb]"])
    ids = []
    for resume, step in ((False, 0), (True, 1)):
        record = RunRecord(config, {}, resume=resume, step=step)
        record.log("train", step + 1, {"loss": 2.5, "note": "words are for the log alone"})
        record.close()
        ids.append((tmp_path / "run" / "wandb-id").read_text())
    assert ids[0] == ids[1]
    assert len(list((tmp_path / "run" / "wandb").glob(f"offline-run-*-{ids[0].strip()}"))) == 2
    assert [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()] == [1, 2]
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_a_board_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = load_config(["ez_vsl_realset", f"out={tmp_path / 'run'}", "train.boards=[wandb]"])
    with pytest.raises(UserError, match="names wandb, which is not installed"):
        RunRecord(config, {}, resume=False)
    RunRecord(load_config(["ez_vsl_realset", f"out={tmp_path / 'run'}"]), {}, resume=False).close()


def test_what_is_paused_does_not_count(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = Clock()
    with clock.waiting():
        now[0] += 1.0
    now[0] += 3.0
    clock.step(8)
    with clock.paused():
        now[0] += 100.0
    assert clock.read() == {"clips_per_s": 2.0, "step_ms": 4000.0, "data_wait_share": 0.25}
