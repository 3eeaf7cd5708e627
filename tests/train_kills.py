"""Kill a training run at random moments, go on, and compare with a run that nobody disturbed.

`python -m tests.train_kills --kills 20` does it for long; test_train.py kills a few times. The run averages its weights
and keeps the best epoch on held-out clips, so that those are compared too.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from configs.load import load_frontend
from model.checkpoint import list_checkpoints, load_checkpoint
from preprocess.engines.local import Local
from preprocess.layouts.manifest import Manifest
from preprocess.options import PackConfig
from preprocess.writer import pack
from tests.conftest import make_clip

ROOT = Path(__file__).parents[1]
EPOCHS = 14
_EPOCHS_A_KILL = 2  # of two or three steps; on a quiet core a kill takes two steps, seldom four
CONFIG = """
model: {{name: ez_vsl, feature_dim: 16, image_encoder: {{name: resnet}}, image_dropout: 0.1}}
data:
  store: {store}
  batch_size: 4
  image: {{size_px: 32}}
  audio: {{frontend: logmel64, duration_s: 0.5}}
  augment: {{random_resized_crop: {{}}, flip: {{}}, time_crop: {{}}}}
  loader: {{name: reference}}
optim: {{name: adamw, lr: 1e-4, schedule: one_cycle, warmup_share: 0.35}}
train:
  epochs: {epochs}
  cpu_threads: 1
  device: cpu
  log_every_steps: 1
  checkpoint_every_steps: 1
  ema: 0.9
  selection: {{by: held_out, share: 0.35}}
  boards: []
evaluate: {{sets: {{test: {{}}}}}}
"""


def make_config(folder: Path, epochs: int = EPOCHS) -> Path:
    """A store of made clips, and a config that trains on them."""
    lines = []
    for number in range(20):
        make_clip(folder / f"clip_{number:02d}.mp4", seconds=1.0, pitch_hz=300 + 200 * number)
        split = "train" if number < 16 else "test"
        clip = {"clip_id": f"clip_{number:02d}", "video": f"clip_{number:02d}.mp4", "split": split}
        lines.append(clip | {"boxes": [[1 / 8, 1 / 8, 1 / 3, 1 / 2]]})
    (folder / "manifest.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    layout = Manifest(Manifest.Config(name="manifest"), folder)
    pack(layout, folder / "store", PackConfig(frontends=(load_frontend("logmel64"),)),
         Local(Local.Config(name="local", workers=0)), dataset="made")  # fmt: skip
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(store=folder / "store", epochs=epochs))
    return config


def start(config: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "train.py", str(config), f"out={out}", "--resume"],
        cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def train_with_kills(config: Path, out: Path, kills: int, draw: random.Random) -> list[int]:
    """Kill a run so many times, up to three steps and a second after it went on; then let it end.

    Returns the step of the newest checkpoint after every kill, all of which load.
    """
    left: list[int] = []
    while len(left) < kills:
        run = start(config, out)
        steps = draw.randint(0, 3)
        assert run.stdout is not None
        for line in run.stdout:
            steps -= line.startswith("step ")
            if steps < 0:
                break
        time.sleep(draw.uniform(0, 1))
        run.kill()
        assert run.wait() != 0, "the run ended before it was killed often enough"
        run.stdout.close()
        found = list_checkpoints(out / "checkpoints")
        left.append(load_checkpoint(out).step if found else 0)
    run = start(config, out)
    output, _ = run.communicate()
    assert run.returncode == 0, output
    return left


def refuse_different(first: Any, second: Any, where: str) -> None:
    """Raises: AssertionError naming the first difference between two values of a checkpoint."""
    assert type(first) is type(second), where
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key, value in first.items():
            refuse_different(value, second[key], f"{where}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for number, pair in enumerate(zip(first, second)):
            refuse_different(*pair, f"{where}[{number}]")
    else:
        assert first == second, f"{where}: {first} and {second}"


def refuse_different_runs(whole: Path, killed: Path) -> None:
    """Compare two run folders: the newest and the best checkpoint, and the log."""
    for name in (list_checkpoints(whole / "checkpoints")[-1].name, "best.pt"):
        first, second = (load_checkpoint(out / "checkpoints" / name) for out in (whole, killed))
        for part in ("model", "trained", "optimizer", "step", "loader", "rng", "history"):
            refuse_different(getattr(first, part), getattr(second, part), f"{name}: {part}")
        for key in ("best", "selection", "epoch_loss", "finished", "unscored"):
            refuse_different(first.record[key], second.record[key], f"{name}: record.{key}")
    logged = [json.loads(line) for line in (killed / "log.jsonl").read_text().splitlines()]
    last = load_checkpoint(whole).step
    assert [line["step"] for line in logged if line["kind"] == "train"] == list(range(1, last + 1))
    assert sum(line["kind"] == "epoch" for line in logged) == len(load_checkpoint(whole).history)


def main() -> None:
    """Train undisturbed, then with kills, and compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="to work in; default: a new one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        config = make_config(folder, max(EPOCHS, _EPOCHS_A_KILL * options.kills))
        train_with_kills(config, folder / "whole", 0, random.Random())
        print("trained undisturbed", flush=True)
        left = train_with_kills(config, folder / "killed", options.kills, random.Random(options.seed))
        print(f"newest checkpoint after every kill: steps {left}", flush=True)
        refuse_different_runs(folder / "whole", folder / "killed")
        print(f"{options.kills} kills: weights, averages, optimizer, generators, history, best epoch and log are equal")


if __name__ == "__main__":
    main()
