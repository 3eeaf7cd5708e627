"""How every figure here is taken: variants interleaved, several rounds, CPU and wall time, and where it was measured.

On a shared machine the CPU time of one thread is the figure to trust; wall time is printed beside it. What a GPU, other
processes or several threads do is compared by the rate.
"""

import csv
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from configs.errors import UserError
from configs.run_record import commit, hardware, peak_memory_gb, versions

MIN_ROUNDS = 3
_deadline_s = math.inf
"""Reading of `time.monotonic` after which no round begins that is not needed."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One variant's result: medians over the rounds, and half the width of the 95% interval of the mean.

    value: in `unit`, by wall time: a rate such as "clips/s", "GB/s" or "TFLOP/s", or "s" for how long one takes.
    cpu_ms: CPU time of this process for each clip, GB, ... that the rate counts, or for one that takes "s".
    by: what shares and ratios compare: "cpu" or "wall" time.
    peak_mb: the most memory of this process while the variant ran, with all that was there before. gpu_ms: from first
    to last kernel, idle time between them included. gpu_peak_mb: by torch's tensors. None without a GPU.
    """

    benchmark: str
    variant: str
    unit: str
    value: float
    value_interval: float
    cpu_ms: float
    cpu_ms_interval: float
    by: str
    peak_mb: float
    gpu_ms: float | None
    gpu_peak_mb: float | None
    rounds: int
    note: str = ""


def stop_at(deadline_s: float) -> None:
    """Take no more rounds than `MIN_ROUNDS` once `time.monotonic` has passed this."""
    global _deadline_s
    _deadline_s = deadline_s


def time_left_s() -> float:
    """Until the deadline; infinite without one. Benchmarks of many parts ask before each but the first, and name what
    they leave.
    """
    return _deadline_s - time.monotonic()


def measure(
    benchmark: str,
    variants: Mapping[str, Callable[[], float]],
    rounds: int,
    notes: Mapping[str, str] | None = None,
    *,
    unit: str = "clips/s",
    by: Literal["cpu", "wall"] | None = None,
    device: torch.device | str = "cpu",
) -> list[Figure]:
    """Run every variant once to warm up, then all of them in turn, `rounds` times.

    A variant returns how many clips (GB, TFLOP, ...) it got through and waits for what it started, a GPU apart, which
    is waited for here. by: default "wall" for a GPU and for unit "s", else "cpu".

    Raises: UserError for fewer than three rounds: a figure without spread is not reported.
    """
    if rounds < MIN_ROUNDS:
        raise UserError(f"{rounds} rounds give no spread; use --rounds {MIN_ROUNDS} or more")
    on_gpu = torch.device(device).type == "cuda"
    samples: dict[str, list[_Sample]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        if turn > MIN_ROUNDS and time_left_s() < 0:
            break
        for name, run in variants.items():
            taken = _sample(run, device if on_gpu else None)
            if turn:
                samples[name].append(taken)
    compared = by or ("wall" if on_gpu or unit == "s" else "cpu")
    return [
        _figure(benchmark, name, unit, compared, taken, (notes or {}).get(name, "")) for name, taken in samples.items()
    ]


@dataclass(frozen=True, kw_only=True)
class _Sample:
    amount: float
    wall_s: float
    cpu_s: float
    peak_mb: float
    gpu_s: float | None
    gpu_peak_mb: float | None


def _sample(run: Callable[[], float], gpu: torch.device | str | None) -> _Sample:
    with suppress(OSError):  # not on every kernel: then the peak is that of the process so far
        Path("/proc/self/clear_refs").write_text("5")
    begin = end = None
    if gpu is not None:
        torch.cuda.synchronize(gpu)
        torch.cuda.reset_peak_memory_stats(gpu)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
    wall, cpu = time.perf_counter(), time.process_time()
    amount = run()
    if begin is not None and end is not None:
        end.record()
        torch.cuda.synchronize(gpu)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return _Sample(
        amount=amount,
        wall_s=wall,
        cpu_s=cpu,
        peak_mb=peak_mb(),
        gpu_s=begin.elapsed_time(end) / 1000 if begin is not None and end is not None else None,
        gpu_peak_mb=torch.cuda.max_memory_allocated(gpu) / 1e6 if begin is not None else None,
    )


def peak_mb() -> float:
    """The most memory of this process since the kernel's mark was last reset, MB; else since the process began."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    peaks_kib = [int(line.split()[1]) for line in status if line.startswith("VmHWM:")]
    return peaks_kib[0] * 1024 / 1e6 if peaks_kib else 1000 * peak_memory_gb("cpu")


def _figure(benchmark: str, variant: str, unit: str, by: str, taken: list[_Sample], note: str) -> Figure:
    values = [each.wall_s / each.amount if unit == "s" else each.amount / each.wall_s for each in taken]
    cpu = [1000 * each.cpu_s / each.amount for each in taken]
    gpu = [1000 * each.gpu_s / each.amount for each in taken if each.gpu_s is not None]
    gpu_peaks = [each.gpu_peak_mb for each in taken if each.gpu_peak_mb is not None]
    return Figure(
        benchmark=benchmark,
        variant=variant,
        unit=unit,
        value=statistics.median(values),
        value_interval=half_interval(values),
        cpu_ms=statistics.median(cpu),
        cpu_ms_interval=half_interval(cpu),
        by=by,
        peak_mb=max(each.peak_mb for each in taken),
        gpu_ms=statistics.median(gpu) if gpu else None,
        gpu_peak_mb=max(gpu_peaks) if gpu_peaks else None,
        rounds=len(taken),
        note=note,
    )


def half_interval(values: Sequence[float]) -> float:
    """Half the width of the 95% interval of the mean, by Student's t."""
    freedom = len(values) - 1
    # Cornish-Fisher: within 0.2% of the true quantile from five degrees of freedom on; below, the true values.
    z = 1.959964
    series = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    series += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    t = {2: 4.3027, 3: 3.1824, 4: 2.7764}.get(freedom, series)
    return t * statistics.stdev(values) / math.sqrt(len(values))


def times(figure: Figure, other: Figure) -> float:
    """How many times as fast as `other` a figure is, by what both are compared by."""
    if figure.by == "cpu":
        return other.cpu_ms / max(figure.cpu_ms, 1e-9)
    return other.value / figure.value if figure.unit == "s" else figure.value / other.value


def origin() -> dict[str, Any]:
    """What every row says of where it comes from: month, commit, hardware, versions."""
    return {"month": f"{datetime.now(UTC):%Y-%m}", "commit": commit(), **hardware(), **versions()}


def report(
    figures: Sequence[Figure],
    ceiling: str | None,
    out: Path | None,
    facts: Mapping[str, Any],
    field: str | None = None,
    about: str = "",
) -> None:
    """Print the figures, and append them as rows to `out`/<benchmark>.csv and .jsonl.

    about: what tells these figures from others of the benchmark with the same variants, for the table of all figures.
    ceiling: the variant that cannot be beaten; figures are shown as a share of it. field: the variant that works as the
    field's code does; figures are shown as a multiple of it. Both must be of one unit with the figures.

    Raises: UserError for figures of fewer than three rounds.
    """
    few = min(figure.rounds for figure in figures)
    if few < MIN_ROUNDS:
        raise UserError(f"a figure of {few} rounds has no spread and is not printed; {MIN_ROUNDS} are needed")
    named = {figure.variant: figure for figure in figures}
    best, usual = named.get(ceiling or ""), named.get(field or "")
    where_from = origin()
    rows = [
        asdict(figure)
        | {
            "about": about,
            "ceiling": best.variant if best else None,
            "ceiling_value": best.value if best else None,
            "share_of_ceiling": times(figure, best) if best else None,
            "field": usual.variant if usual else None,
            "field_value": usual.value if usual else None,
            "times_field": times(figure, usual) if usual else None,
        }
        | where_from
        | dict(facts)
        for figure in figures
    ]
    where = f"{where_from['cpu']}, {where_from['gpu'] or 'no GPU'}; shares and ratios by {figures[0].by} time"
    title = f"{figures[0].benchmark}: {', '.join(f'{key} {value}' for key, value in facts.items())}"
    wide().print(_table(title, where, figures, rows))
    if out is None:
        return
    path = out / f"{figures[0].benchmark}.csv"
    try:
        out.mkdir(parents=True, exist_ok=True)
        append_csv(path, rows)
        append_lines(path.with_suffix(".jsonl"), rows)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    Console().print(f"rows: {path}", soft_wrap=True)


def _table(title: str, caption: str, figures: Sequence[Figure], rows: Sequence[dict[str, Any]]) -> Table:
    unit = figures[0].unit
    on_gpu = any(figure.gpu_ms is not None for figure in figures)
    each = "" if unit == "s" else f"/{unit.removesuffix('/s').removesuffix('s')}"
    columns: dict[str, Callable[[Figure, dict[str, Any]], str]] = {
        "variant": lambda figure, row: figure.variant,
        f"CPU-ms{each}": lambda figure, row: f"{figure.cpu_ms:.3f} ± {figure.cpu_ms_interval:.3f}",
        f"{unit} (wall)": lambda figure, row: f"{number(figure.value)} ± {number(figure.value_interval)}",
        "of ceiling": lambda figure, row: "" if row["ceiling"] is None else f"{row['share_of_ceiling']:.1%}",
        "x field's": lambda figure, row: "" if row["field"] is None else f"{row['times_field']:.2f}",
        "peak MB": lambda figure, row: f"{figure.peak_mb:.0f}",
    }
    if on_gpu:
        columns[f"GPU-ms{each}"] = lambda figure, row: "" if figure.gpu_ms is None else f"{figure.gpu_ms:.3f}"
        columns["GPU MB"] = lambda figure, row: "" if figure.gpu_peak_mb is None else f"{figure.gpu_peak_mb:.0f}"
    columns["note"] = lambda figure, row: figure.note
    table = Table(title=title, caption=caption)
    filled = {
        heading: cells
        for heading, cell in columns.items()
        if any(cells := [cell(figure, row) for figure, row in zip(figures, rows)])
    }
    for heading in filled:
        table.add_column(heading, justify="left" if heading in ("variant", "note") else "right")
    for cells in zip(*filled.values()):
        table.add_row(*cells)
    return table


def wide() -> Console:
    """A console for tables: as wide as the terminal, or as COLUMNS says; 160 in a file or a pipe."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=160)


def number(value: float) -> str:
    """For people: three digits that mean something, no exponent between a thousandth and a billion."""
    return f"{value:,.0f}" if 100 <= abs(value) < 1e9 else f"{value:.3g}"


def summary(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One line a figure that is neither a ceiling nor the field's way; at most 100 columns wide.

    Above the lines of a group stand its name, its unit, and which variants are its ceiling and the field's way.
    """
    caption = "values by the clock; shares and ratios on a CPU mostly by CPU time, as the tables above say"
    table = Table(title="all figures", caption=caption, box=SIMPLE_HEAD, padding=0)
    widths = {"figure": 32, "value": 19, "ceiling": 17, "share": 6, "field's way": 13, "ratio": 6}
    for heading, width in widths.items():
        table.add_column(heading, justify="left" if heading == "figure" else "right", max_width=width, overflow="fold")
    shown = [row for row in rows if row["variant"] not in (row["ceiling"], row["field"])]
    for (name, about, unit, ceiling, field), group in groupby(
        shown, lambda row: tuple(row[key] for key in ("benchmark", "about", "unit", "ceiling", "field"))
    ):
        table.add_row(f"{name}: {about}" if about else name, unit, ceiling, "", field, "", style="bold")
        for row in group:
            table.add_row(
                f"  {row['variant']}",
                f"{number(row['value'])} ± {number(row['value_interval'])}",
                "" if ceiling is None else number(row["ceiling_value"]),
                "" if ceiling is None else f"{row['share_of_ceiling']:.1%}",
                "" if field is None else number(row["field_value"]),
                "" if field is None else f"{row['times_field']:.2f}",
            )
    return table


def append_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to a CSV file. Raises: UserError if it holds other columns. OSError."""
    with open(path, "a+", newline="", encoding="utf-8") as file:
        file.seek(0)
        head = next(csv.reader(file), None)
        if head not in (None, list(rows[0])):
            raise UserError(f"{path} holds rows with other columns; name another folder with --out")
        file.seek(0, os.SEEK_END)
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        if head is None:
            writer.writeheader()
        writer.writerows(rows)


def append_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to a JSON-lines file. Raises: OSError."""
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and those that these have."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        found = [int(text) for task in tasks for text in (task / "children").read_text().split()]
    except OSError:
        return []
    return found + [deeper for child in found for deeper in descendants(child)]
