"""A run of train.py in a process of its own, timed from the command to its second step: for `startup` and `resume`.

`python -m benchmarks.first_step CONFIG [key=value ...] [--resume]` prints one line of JSON: how many seconds each
stage took by the clock and of CPU time.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.harness import Figure, half_interval, peak_mb
from configs.errors import UserError, run_command

STAGES = ("imports", "model, store, loader", "first batch", "first step", "second step")


def main(argv: list[str]) -> None:
    import torch

    import train
    from configs.allocator import keep_freed_memory
    from configs.load import load_config
    from evaluate import choose_device
    from model.distributed import Ranks

    stages = {"imports": _now()}
    config = load_config([argument for argument in argv if argument != "--resume"])
    device = choose_device(config)
    if device.type == "cpu":
        keep_freed_memory()
    train.console.quiet = True
    with train.Training(config, device, Ranks(device), resume="--resume" in argv) as training:
        stages["model, store, loader"] = _now()
        for name in ("first step", "second step"):
            training.loader.stats()
            training.last_step = training.step + 1
            training.train_epoch()
            if device.type == "cuda":
                torch.cuda.synchronize()
            waited_s = training.loader.stats().wait_s
            done = _now()
            if name == "first step":
                before = stages["model, store, loader"]
                stages["first batch"] = (before[0] + waited_s, before[1])
            stages[name] = done
    sys.stdout.write(json.dumps({"stages": stages, "peak_mb": peak_mb()}) + "\n")


def _now() -> tuple[float, float]:
    return time.monotonic(), time.process_time()


def timed_run(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> dict[str, tuple[float, float]]:
    """Seconds by the clock and of CPU time that each stage took, and "all" until the first step was done.

    Linux has one monotonic clock for all processes. Raises: UserError with what the process said, if it failed.
    """
    command = [sys.executable, "-m", "benchmarks.first_step", *arguments]
    root = Path(__file__).parents[1]
    began_s = time.monotonic()
    done = subprocess.run(
        command, cwd=root, env={**os.environ, **(environment or {})}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(f"`{' '.join(command[1:])}` failed: {done.stderr.strip()[-2000:]}")
    said = json.loads(done.stdout.splitlines()[-1])
    taken, before = {}, (began_s, 0.0)
    for name in STAGES:
        now = said["stages"][name]
        taken[name] = (now[0] - before[0], now[1] - before[1])
        before = now
    first = said["stages"]["first step"]
    return {"all, to the first step": (first[0] - began_s, first[1]), **taken, "peak_mb": (said["peak_mb"], 0.0)}


def figures_of(benchmark: str, kind: str, runs: Sequence[Mapping[str, tuple[float, float]]]) -> list[Figure]:
    """A figure in seconds for every stage of some runs of one kind."""
    peak = max(run["peak_mb"][0] for run in runs)
    found = []
    for stage in ("all, to the first step", *STAGES):
        wall = [run[stage][0] for run in runs]
        cpu_ms = [1000 * run[stage][1] for run in runs]
        found.append(
            Figure(
                benchmark=benchmark,
                variant=f"{kind}: {stage}",
                unit="s",
                value=statistics.median(wall),
                value_interval=half_interval(wall),
                cpu_ms=statistics.median(cpu_ms),
                cpu_ms_interval=half_interval(cpu_ms),
                by="wall",
                peak_mb=peak,
                gpu_ms=None,
                gpu_peak_mb=None,
                rounds=len(runs),
            )
        )
    return found


if __name__ == "__main__":
    run_command(main)
