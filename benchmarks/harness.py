"""How every figure here is taken: variants interleaved, several rounds, CPU and wall time, and where it was measured.

On a shared machine CPU time is the figure to trust; wall time is printed beside it.
"""

import csv
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from configs.errors import UserError
from configs.run_record import commit, hardware, versions

MIN_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One variant's result: medians over the rounds, and half the width of the 95% interval of the mean."""

    benchmark: str
    variant: str
    cpu_ms_per_clip: float
    cpu_ms_interval: float
    clips_per_s: float
    clips_per_s_interval: float
    rounds: int
    note: str = ""


def measure(
    benchmark: str, variants: dict[str, Callable[[], int]], rounds: int, notes: dict[str, str] | None = None
) -> list[Figure]:
    """Run every variant once to warm up, then all of them in turn, `rounds` times; a variant returns its clips.

    Raises: UserError for fewer than three rounds: a figure without spread is not reported.
    """
    if rounds < MIN_ROUNDS:
        raise UserError(f"{rounds} rounds give no spread; use --rounds {MIN_ROUNDS} or more")
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, run in variants.items():
            wall, cpu = time.perf_counter(), time.process_time()
            clips = run()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if turn:
                samples[name].append((1000 * cpu / clips, clips / wall))
    return [
        Figure(
            benchmark=benchmark,
            variant=name,
            cpu_ms_per_clip=statistics.median(cpu for cpu, _ in taken),
            cpu_ms_interval=half_interval([cpu for cpu, _ in taken]),
            clips_per_s=statistics.median(rate for _, rate in taken),
            clips_per_s_interval=half_interval([rate for _, rate in taken]),
            rounds=rounds,
            note=(notes or {}).get(name, ""),
        )
        for name, taken in samples.items()
    ]


def half_interval(values: Sequence[float]) -> float:
    """Half the width of the 95% interval of the mean, by Student's t."""
    freedom = len(values) - 1
    # Cornish-Fisher: within 0.2% of the true quantile from five degrees of freedom on; below, the true values.
    z = 1.959964
    series = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    series += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    t = {2: 4.3027, 3: 3.1824, 4: 2.7764}.get(freedom, series)
    return t * statistics.stdev(values) / math.sqrt(len(values))


def report(figures: Sequence[Figure], ceiling: str | None, out: Path | None, facts: dict[str, Any]) -> None:
    """Print the figures, each as a share of the variant that is the ceiling; append them to `out`/<benchmark>.csv."""
    place = hardware()
    best = next((figure for figure in figures if figure.variant == ceiling), None)
    where = f"{place['cpu']}, {place['gpu'] or 'no GPU'}"
    table = Table(title=f"{figures[0].benchmark}: {', '.join(f'{k} {v}' for k, v in facts.items())}", caption=where)
    for heading in ("variant", "CPU-ms/clip", "clips/s (wall)", "x ceiling's CPU", "note"):
        table.add_column(heading, justify="left" if heading in ("variant", "note") else "right")
    for figure in figures:
        table.add_row(
            figure.variant,
            f"{figure.cpu_ms_per_clip:.3f} ± {figure.cpu_ms_interval:.3f}",
            f"{figure.clips_per_s:.0f} ± {figure.clips_per_s_interval:.0f}",
            f"{figure.cpu_ms_per_clip / best.cpu_ms_per_clip:.2f}" if best else "",
            figure.note,
        )
    Console().print(table)
    if out is None:
        return
    rows = [asdict(figure) | facts | {"commit": commit()} | place | versions() for figure in figures]
    path = out / f"{figures[0].benchmark}.csv"
    try:
        out.mkdir(parents=True, exist_ok=True)
        with open(path, "a+", newline="", encoding="utf-8") as file:
            file.seek(0)
            head = next(csv.reader(file), None)
            if head not in (None, list(rows[0])):
                raise UserError(f"{path} holds rows with other columns; name another folder with --out")
            file.seek(0, os.SEEK_END)
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            if file.tell() == 0:
                writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    Console().print(f"rows: {path}", soft_wrap=True)
