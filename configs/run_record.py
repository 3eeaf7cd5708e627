"""The run folder: the resolved config, what the run was made with, and its log."""

import contextlib
import json
import os
import platform
import resource
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.table import Table

from configs.errors import UserError
from configs.load import as_mapping, as_yaml
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


class _Tensorboard:
    def __init__(self, folder: Path, config: RunConfig, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here: the record is read by commands that need no torch

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def log(self, values: dict[str, int | float], step: int) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """The run keeps its id in the folder, so that it goes on as the same one there too."""

    def __init__(self, folder: Path, config: RunConfig, step: int) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                "train.boards names wandb, which is not installed: install the extra 'wandb', or leave it out"
            ) from error
        name = folder / "wandb-id"
        if not name.is_file():
            name.write_text(secrets.token_hex(6) + "\n", encoding="utf-8")
        self._run = wandb.init(
            project="whence",
            name=folder.name,
            id=name.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=folder,
            config=as_mapping(config),
        )

    def log(self, values: dict[str, int | float], step: int) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


_BOARDS = {"tensorboard": _Tensorboard, "wandb": _Wandb}


class RunRecord:
    """A run folder: `config.yaml`, `record.json`, `log.jsonl`, `checkpoints/`, and the files of `train.boards`."""

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
            # First, for a board that is not there must not leave a run behind.
            self._boards = [_BOARDS[name](self.folder, config, step) for name in config.train.boards]
            (self.folder / "config.yaml").write_text(as_yaml(config), encoding="utf-8")
            (self.folder / "record.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            self._cut_log(step)
            self._log = open(self.folder / "log.jsonl", "a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write the run folder {self.folder}: {error.strerror}") from error

    def _cut_log(self, step: int) -> None:
        log = self.folder / "log.jsonl"
        if log.is_file():
            lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            shorter = self.folder / ".log.jsonl.tmp"
            shorter.write_text("".join(kept), encoding="utf-8")
            shorter.replace(log)

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One line of the log, and its numbers as curves named `kind/key` on the boards."""
        if not self._writes:
            return
        self._log.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._log.flush()
        numbers = {
            f"{kind}/{key}": value
            for key, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        for board in self._boards:
            board.log(numbers, step)

    def close(self) -> None:
        if not self._writes:
            return
        self._log.close()
        for board in self._boards:
            board.close()


def interval_line(step: int, steps: int, steps_left: int, values: dict[str, Any]) -> str:
    """A line of the log for people."""
    minutes_left = steps_left * values["step_ms"] / 60_000
    return (
        f"step {step:>6}/{steps}  epoch {values['epoch']:6.2f}  loss {values['loss']:8.4f}  lr {values['lr']:.2e}  "
        f"{values['clips_per_s']:7.1f} clips/s  {values['step_ms']:7.1f} ms/step  "
        f"data wait {values['data_wait_share']:4.0%}  peak {values['peak_memory_gb']:5.2f} GB  "
        f"{minutes_left:5.1f} min left"
    )


def peak_memory_gb(device_type: str) -> float:
    """The most memory that was in use so far: of the GPU by torch's tensors, or of this process."""
    if device_type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


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

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside does not count."""
        begin = time.perf_counter()
        yield
        self.start += time.perf_counter() - begin

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
