"""Several benchmarks one after the other, each in a process and with a time of its own; one table of all figures."""

import csv
import importlib
import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.harness import append_lines, stop_at, summary, wide
from configs.errors import UserError, run_command

START_S = 15.0
"""What a process may take to import torch and to find the GPU; its rounds have the rest of its time."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A benchmark in a suite and the values of its options there."""

    name: str
    options: Mapping[str, Any]


def missing(needs: Sequence[str]) -> list[str]:
    """Those of the modules that are not installed."""

    def there(name: str) -> bool:
        try:
            return find_spec(name) is not None
        except ModuleNotFoundError:  # the package around it
            return False

    return [name for name in needs if not there(name)]


def run_suite(
    title: str, parts: Sequence[Part], store: Path | None, rounds: int, out: Path | None, budget_s: float | None
) -> list[dict[str, Any]]:
    """Run all parts, print one table, write `out`/<title>.jsonl and .csv; returns the rows.

    A part gets an equal share of the time that is left, so that what one does not use is for those after it. It takes
    fewer rounds once its time is up, but for the least that make a figure, and is ended at half as much again; that, a
    missing module and wrong input are told, and the others run. What it had reported by then counts.
    store: None: a small one is made for the parts.
    """
    began_s = time.monotonic()
    console = Console(soft_wrap=True)
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            (out / f"{title}.jsonl").write_text("")
        except OSError as error:
            raise UserError(f"cannot write into {out}: {error.strerror}") from error
    with tempfile.TemporaryDirectory(prefix="whence-bench-") as work:
        if store is None:
            store = Path(work) / "store"
            console.print("no --store is named, and there is no stores/demo to read: making one of 128 clips")
            made = _in_process(Part(name="make_store", options={"clips": 128}), store, rounds, None, None, None)
            if made:
                left_out.append(f"what reads a store: make_store {made}")
        for number, part in enumerate(parts):
            elapsed_s = time.monotonic() - began_s
            share_s = None if budget_s is None else (budget_s - elapsed_s) / (len(parts) - number)
            if share_s is not None and share_s < START_S:
                left_out.append(f"{part.name}: no time was left")
                continue
            console.print(f"\n{part.name} ({elapsed_s:.0f} s)" + (f", has {share_s:.0f} s" if share_s else ""))
            folder = Path(work) / part.name
            left_s = None if budget_s is None else budget_s - elapsed_s
            why = _in_process(part, store, rounds, folder, share_s, left_s)
            if why:
                left_out.append(f"{part.name}: {why}")
            found = [
                json.loads(line)
                for path in sorted(folder.glob("*.jsonl"))
                for line in path.read_text(encoding="utf-8").splitlines()
            ]
            rows += found
            if out is not None:
                append_lines(out / f"{title}.jsonl", found)
    wide().print(summary(rows))
    for line in left_out:
        console.print(f"left out: {line}")
    console.print(f"{title}: {len(rows)} figures, {time.monotonic() - began_s:.0f} s")
    if out is not None and rows:
        _write_csv(out / f"{title}.csv", rows)
        console.print(f"rows: {out / title}.csv, .jsonl")
    return rows


def _in_process(
    part: Part, store: Path, rounds: int, out: Path | None, share_s: float | None, left_s: float | None
) -> str:
    """Run a benchmark in a process of its own; why it did not do all of its work, or an empty string."""
    limit_s = None if share_s is None or left_s is None else min(1.5 * share_s, left_s)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_child, args=(part, store, rounds, out, share_s))
    process.start()
    process.join(limit_s)
    if process.is_alive():
        with suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.kill()
        process.join()
        return f"ended after its {limit_s:.0f} s; figures printed before count"
    return {0: "", 2: "could not run, see above"}.get(
        process.exitcode or 0, f"failed (exit {process.exitcode}), see above"
    )


def _child(part: Part, store: Path, rounds: int, out: Path | None, share_s: float | None) -> None:
    began_s = time.monotonic()
    os.setsid()  # so that it can be ended with the processes that it starts
    if share_s is not None:
        stop_at(began_s + max(0.0, share_s - START_S))

    def run(argv: list[str]) -> int:
        importlib.import_module(f"benchmarks.{part.name}").run(store, rounds, out, **part.options)
        return 0

    run_command(run)


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
