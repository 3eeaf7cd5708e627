"""No question: train in bf16 and in float32 on the store that a config is for, and set the losses beside each other.

Method: `train.py` on a store, so many steps with as many seeds as there are rounds, once in float32, not compiled, and
once in bf16, compiled where there is a GPU (on a CPU compiling changes rounding alone, and takes a minute). A seed
gives both the same first weights, clips and crops. The steps are cut into five equal parts; of each, the mean loss of
every run, and the difference of the two, mean over the seeds, beside the standard deviation over the seeds in float32.
A good answer: a difference well below the deviation, in every part, and of changing sign.
"""

import contextlib
import csv
import io
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import train
from benchmarks.harness import MIN_ROUNDS
from configs.errors import UserError
from configs.load import load_config
from configs.run_record import commit, hardware

_PARTS = 5


def add_options(parser: Any) -> None:
    """The options of this benchmark."""
    parser.add_argument("--config", default="ez_vsl_realset", help="preset or file; default ez_vsl_realset")
    parser.add_argument("--steps", type=int, default=40, help=f"of every run, at least {_PARTS}; default 40")
    parser.add_argument("--set", dest="overrides", nargs="+", default=[], metavar="key=value", help="for every run")


def run(store: Path | None, rounds: int, out: Path | None, config: str, steps: int, overrides: list[str]) -> None:
    """Train, compare, print, and write every step's loss into `out`. store: None for the config's own.

    Raises: UserError for too few rounds or steps.
    """
    if rounds < MIN_ROUNDS or steps < _PARTS:
        raise UserError(f"{rounds} seeds of {steps} steps; use --rounds {MIN_ROUNDS} and --steps {_PARTS}, or more")
    compiled = str(torch.cuda.is_available()).lower()
    variants = {
        "float32": ("train.precision=fp32", "train.compile=false"),
        "bf16": ("train.precision=bf16", f"train.compile={compiled}"),
    }
    given = [config, *([] if store is None else [f"data.store={store}"]), *overrides]
    loaded = load_config(given)
    sets = dict.fromkeys(loaded.evaluate.sets)  # none is scored
    given += [f"evaluate.sets={json.dumps(sets)}", f"train.max_steps={steps}", "train.log_every_steps=1"]
    losses: dict[str, list[list[float]]] = {name: [] for name in variants}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(rounds):
            for name, options in variants.items():
                target = Path(folder) / f"{name}-{seed}"
                with contextlib.redirect_stdout(io.StringIO()):
                    train.main([*given, *options, f"seed={seed}", f"out={target}", "train.boards=[]"])
                lines = [json.loads(line) for line in (target / "log.jsonl").read_text().splitlines()]
                losses[name].append([line["loss"] for line in lines if line["kind"] == "train"])
    _print(losses, f"{config} {' '.join(overrides)}", str(loaded.data.store))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        with open(out / "loss_curves.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["variant", "seed", "step", "loss"])
            writer.writerows(
                (name, seed, step + 1, loss)
                for name, runs in losses.items()
                for seed, curve in enumerate(runs)
                for step, loss in enumerate(curve)
            )


def _print(losses: dict[str, list[list[float]]], what: str, store: str) -> None:
    exact, half = losses["float32"], losses["bf16"]
    steps = min(len(curve) for runs in losses.values() for curve in runs)  # the config may have fewer
    place = hardware()
    table = Table(
        title=f"{what.strip()} on {store}, seeds 0 to {len(exact) - 1}",
        caption=f"{place['cpu']}, {place['gpu'] or 'no GPU'}, commit {commit()}",
    )
    for heading in ("steps", "float32", "bf16", "difference", "deviation of seeds"):
        table.add_column(heading, justify="right")
    for part in range(_PARTS):
        begin, end = part * steps // _PARTS, (part + 1) * steps // _PARTS
        means = [[statistics.mean(curve[begin:end]) for curve in runs] for runs in (exact, half)]
        table.add_row(
            f"{begin + 1} to {end}",
            *(f"{statistics.mean(each):.4f}" for each in means),
            f"{statistics.mean(b - a for a, b in zip(*means)):+.4f}",
            f"{statistics.stdev(means[0]):.4f}",
        )
    Console().print(table)
