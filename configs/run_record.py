"""The run folder: the resolved config, what the run was made with, and its log."""

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.table import Table

from configs.errors import UserError
from configs.load import as_yaml
from configs.schema import RunConfig

_PACKAGES = ("torch", "torchaudio", "torchvision", "nvidia-dali-cuda120", "nvidia-dali-cuda130", "lmdb", "msgpack",
             "numpy", "opencv-python", "av", "pydantic")  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can move a result; absent ones are left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of this checkout, with "+" if files differ from it; None outside a repository or without git."""
    root = Path(__file__).parent.parent
    command = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*command, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        state = subprocess.run([*command, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if state.stdout.strip() else "")


def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, torch's threads, and accelerator; no host names."""
    import torch  # here: the record is read by commands that need no torch

    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": model, "cores": cores, "threads": torch.get_num_threads(), "gpu": gpu}


class RunRecord:
    """A run folder: `config.yaml`, `record.json`, `log.jsonl`, `checkpoints/`, and tensorboard's files."""

    def __init__(
        self, config: RunConfig, facts: dict[str, Any], *, resume: bool, step: int = 0, writes: bool = True
    ) -> None:
        """writes: False on the ranks that leave the files to the first one.

        step: where the run goes on; what the log says of later steps, which will be taken again, is cut off.

        Raises: UserError if the folder holds another run and `resume` is not asked for, or cannot be written.
        """
        assert config.out is not None
        self.folder = config.out
        self.checkpoints = self.folder / "checkpoints"
        self._writes = writes
        if not writes:
            return
        if not resume and (self.folder / "config.yaml").exists():
            raise UserError(
                f"{self.folder} holds a run already. Go on with it: --resume. Start another: out=NEW_FOLDER. "
                "Start over: remove the folder"
            )
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            (self.folder / "config.yaml").write_text(as_yaml(config), encoding="utf-8")
            (self.folder / "record.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            self._cut_log(step)
            self._log = open(self.folder / "log.jsonl", "a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write the run folder {self.folder}: {error.strerror}") from error
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1 if step else None)

    def _cut_log(self, step: int) -> None:
        log = self.folder / "log.jsonl"
        if log.is_file():
            lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            shorter = self.folder / ".log.jsonl.tmp"
            shorter.write_text("".join(kept), encoding="utf-8")
            shorter.replace(log)

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One line of the log, and its numbers as curves named `kind/key`."""
        if not self._writes:
            return
        self._log.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._log.flush()
        for key, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self._board.add_scalar(f"{kind}/{key}", value, step)

    def close(self) -> None:
        if not self._writes:
            return
        self._log.close()
        self._board.close()


def history_table(title: str, history: list[dict[str, Any]]) -> Table:
    """One row an epoch, one column a number."""
    table = Table(title=f"{title}: one row an epoch")
    columns = list(dict.fromkeys(key for row in history for key in row))
    for column in columns:
        table.add_column(column.replace("/", "\n"), justify="right")
    for row in history:
        table.add_row(*(f"{row[key]:.4g}" if key in row else "" for key in columns))
    return table


def environment() -> dict[str, Any]:
    """What a run was made with: command, commit, versions, hardware."""
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return {"command": command, "commit": commit(), "versions": versions(), "hardware": hardware()}


class Clock:
    """Time since the last reading: steps, clips, and how much of it went into waiting for data."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.start, self.waited, self.steps, self.clips = time.perf_counter(), 0.0, 0, 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """What happens inside is waiting for data."""
        begin = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begin

    def step(self, clips: int) -> None:
        self.steps += 1
        self.clips += clips

    def read(self) -> dict[str, float]:
        elapsed = time.perf_counter() - self.start
        values = {
            "clips_per_s": self.clips / elapsed,
            "step_ms": 1000 * elapsed / max(1, self.steps),
            "data_wait_share": self.waited / elapsed,
        }
        self.reset()
        return values
