"""No question: files rows under results/, and remakes the tables of README.md and its plots from all that is there.

`python -m benchmarks all --quick --out ROWS`, then `python -m benchmarks page --add ROWS/quick.jsonl`. Rows of a
benchmark, a machine and a month are one file, results/<benchmark>-<hardware>-<year>-<month>.csv; new ones replace it.
"""

import csv
import hashlib
import importlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.harness import number
from configs.errors import UserError

HERE = Path(__file__).parent
COURSE = "large_store_course"
Row = dict[str, str]
_WORDLESS = re.compile(r"\(r\)|\(tm\)|@.*|\b(nvidia|intel|amd|processor|cpu|\d+-core)\b")
_BLOCK = re.compile(r"(<!-- begin (\w+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)
_SAID = ("cpu", "gpu", "cores", "month", "commit", "rounds")  # above a table
_SHOWN = ("variant", "unit", "value", "cpu_ms", "share_of_ceiling", "times_field", "gpu_ms", "note")  # its columns
_HIDDEN = ("benchmark", "by", "ceiling", "field", "peak_mb", "gpu_peak_mb", "about", "threads")


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the project aims at. benchmark and variants (a pattern): the rows whose `cpu_ms` says how far it is; none
    for what only a GPU can say.
    """

    number: str
    what: str
    ahead: str
    near_limit: str
    benchmark: str = ""
    variants: str = ""


TARGETS = (
    Target(
        number="P1",
        what="loader, JPEG, random crop and flip, uint8: CPU-ms a clip",
        ahead="≤ 0.50",
        near_limit="≤ 0.42",
        benchmark="loader_rate",
        variants="(dali|reference), jpeg",
    ),
    Target(
        number="P2",
        what="loader, stored pixels: CPU-ms a clip",
        ahead="≤ 0.15",
        near_limit="≤ 0.10",
        benchmark="loader_rate",
        variants="(dali|reference), raw",
    ),
    Target(number="P3", what="resident loader, from the second epoch", ahead="data wait < 1% of the step",
           near_limit="host idle"),
    Target(number="P4", what="one H200, 224 px and 257 x 300, batch 256 to 1024, with loader, 144k clips",
           ahead="epoch ≤ 16 s", near_limit="13 s"),
    Target(number="P5", what="the same with 257 x 200", ahead="epoch ≤ 12.5 s", near_limit="10.3 s"),
    Target(number="P6", what="14 x 14 map, 257 x 300", ahead="epoch ≤ 19 s", near_limit="15.5 s"),
    Target(number="P7", what="step with the loader against the step on a batch that is there, 8 cores or more",
           ahead="≥ 95%", near_limit="≥ 99%"),
    Target(number="P8", what="all-pairs loss, 196 cells, batch 1024 / 4096, share of the step", ahead="≤ 4% / 8%",
           near_limit="≤ 2% / 6%"),
    Target(number="P9", what="peak memory at batch 4096, 49 cells, 257 x 200", ahead="fits 141 GB",
           near_limit="≤ 100 GB"),
    Target(number="P10", what="8 GPUs, negatives of all", ahead="≥ 93% of linear, exact gradient", near_limit="≥ 97%"),
    Target(
        number="P11",
        what="packing from frames and WAV: CPU-ms a clip (144k clips on 16 cores within 3 min: 20)",
        ahead="≤ 20",
        near_limit="the disk",
        benchmark="large_store",
        variants="pack",
    ),
    Target(number="P12", what="VGG-SS scored from a store", ahead="≤ 5 s, metric ≤ 0.2 s", near_limit="≤ 2 s"),
    Target(number="P13", what="first step after the command", ahead="≤ 60 s compiling, ≤ 10 s with a warm cache",
           near_limit=""),
)  # fmt: skip


def add_options(parser: Any) -> None:
    """The options of this command."""
    parser.add_argument("--add", nargs="+", type=Path, default=[], metavar="FILE", help="rows as JSON lines")


def run(store: Path | None, rounds: int, out: Path | None, add: Sequence[Path] = ()) -> None:
    """File the rows of `add`; remake page and plots. Raises: UserError."""
    console = Console(soft_wrap=True)
    for path in file_rows(add, HERE / "results"):
        console.print(f"rows: {path}")
    rows = read_rows(HERE / "results")
    page = HERE / "README.md"
    page.write_text(remade(page.read_text(encoding="utf-8"), rows), encoding="utf-8")
    console.print(f"remade {page}")
    for path in draw(rows, HERE / "results"):
        console.print(f"drew {path}")


def file_rows(sources: Sequence[Path], results: Path) -> list[Path]:
    """Write the rows of JSON-lines files as CSV under `results`; the files. Raises: UserError for what is no row."""
    filed: dict[Path, list[dict[str, Any]]] = {}
    for source in sources:
        try:
            for line in source.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                name = f"{row['benchmark']}-{hardware_name(row['gpu'] or row['cpu'])}-{row['month']}.csv"
                filed.setdefault(results / name, []).append(row)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{source} holds no rows of a benchmark, as --out writes them to .jsonl: {error!r}"
            ) from error
    for path, rows in filed.items():
        columns = list(dict.fromkeys(key for row in rows for key in row))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return sorted(filed)


def hardware_name(model: str) -> str:
    """A processor's or GPU's name for a file name: "Intel(R) Xeon(R) Processor" is "xeon", "NVIDIA H200" "h200"."""
    return "_".join(re.findall(r"[a-z0-9]+", _WORDLESS.sub(" ", model.lower())))


def read_rows(results: Path) -> list[Row]:
    """All rows under `results`, without the columns that are empty there; `file` names where each is from."""
    rows: list[Row] = []
    for path in sorted(results.glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                rows.append({key: value for key, value in row.items() if value} | {"file": path.name})
    return rows


def remade(page: str, rows: Sequence[Row]) -> str:
    """The page with its blocks made anew from the rows."""
    return _BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found[2]](rows)}{found[3]}", page)


def _figures(rows: Sequence[Row]) -> str:
    """One table a file: what it asks, where it was measured, and its figures."""
    parts = []
    for file, group in groupby((row for row in rows if row["benchmark"] != COURSE), lambda row: row["file"]):
        taken = list(group)
        name = taken[0]["benchmark"]
        about = (importlib.import_module(f"benchmarks.{name}").__doc__ or "").strip()
        question = about.partition("\n")[0].partition(": ")[2]
        said = {key: ", ".join(dict.fromkeys(row.get(key, "none") for row in taken)) for key in _SAID}
        facts = [key for key in _facts(taken) if len({row.get(key) for row in taken}) == 1]
        where = [f"{said['cpu']}, cores {said['cores']}, GPU {said['gpu']}", said["month"], f"commit {said['commit']}"]
        where += [f"rounds {said['rounds']}", *(f"{key} {taken[0][key]}" for key in facts)]
        where += [f"[rows](results/{file})"]
        parts.append(f"### {name}: {question}\n\n{_table(taken)}\n\n{'; '.join(where)}\n")
    return "\n".join(parts)


def _facts(rows: Sequence[Row]) -> list[str]:
    """Columns that say what was done: neither measured, nor of the machine, nor a version."""
    columns = dict.fromkeys(key for row in rows for key in row)
    known = {*_SAID, *_SHOWN, *_HIDDEN, "file", "python", "ceiling_value", "field_value"}
    return [
        key
        for key in columns
        if key not in known and not key.endswith("_interval") and not all(_is_version(row.get(key, "")) for row in rows)
    ]


def _is_version(value: str) -> bool:
    return value.count(".") >= 2 and value[0].isdigit()


def _table(rows: Sequence[Row]) -> str:
    facts = [key for key in _facts(rows) if len({row.get(key) for row in rows}) > 1]
    cells: dict[str, Callable[[Row], str]] = {key: lambda row, key=key: row.get(key, "") for key in facts}
    cells |= {
        "variant": lambda row: row["variant"],
        "rate or time (wall)": lambda row: f"{_spread(row, 'value')} {row['unit']}",
        "CPU-ms for one": lambda row: _spread(row, "cpu_ms"),
        # Variants that do less than the ceiling's work have no share of it.
        "of ceiling": lambda row: f"{share:.1%}" if 0 < (share := float(row.get("share_of_ceiling", 0))) <= 1 else "",
        "x field's": lambda row: f"{float(row['times_field']):.2f}" if "times_field" in row else "",
        "GPU-ms": lambda row: number(float(row["gpu_ms"])) if "gpu_ms" in row else "",
        "note": lambda row: row.get("note", ""),
    }
    filled = {heading: cell for heading, cell in cells.items() if any(cell(row) for row in rows)}
    lines = [list(filled), ["---"] * len(filled), *([cell(row) for cell in filled.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _spread(row: Row, column: str) -> str:
    interval = row.get(f"{column}_interval")
    return number(float(row[column])) + (f" ± {number(float(interval))}" if interval else "")


def _targets(rows: Sequence[Row]) -> str:
    lines = ["| | target | ahead | near the limit | measured |", "|---|---|---|---|---|"]
    for target in TARGETS:
        cells = (target.number, target.what, target.ahead, target.near_limit, _measured(target, rows))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _measured(target: Target, rows: Sequence[Row]) -> str:
    if not target.benchmark:
        return "not measured: needs a GPU"
    found = [
        f"{row['variant']}: {_spread(row, 'cpu_ms')} ({row['file'].removesuffix('.csv')})"
        for row in rows
        if row["benchmark"] == target.benchmark and re.fullmatch(target.variants, row["variant"])
    ]
    return "; ".join(found) or "not measured"


def _plots(rows: Sequence[Row]) -> str:
    return "".join(
        f"<picture>\n"
        f'  <source media="(prefers-color-scheme: dark)" srcset="results/{name}-dark.svg">\n'
        f'  <img alt="{text}" src="results/{name}-light.svg">\n'
        f"</picture>\n\n*{text}*\n\n"
        for name, (text, _) in PLOTS.items()
        if rows_of(name, rows)
    )


def rows_of(plot: str, rows: Sequence[Row]) -> list[Row]:
    """The newest rows of a plot: those of the last of its files by name."""
    files = sorted({row["file"] for row in rows if row["benchmark"] == plot}, key=lambda file: file[-11:])
    return [row for row in rows if files and row["file"] == files[-1]]


def draw(rows: Sequence[Row], results: Path) -> list[Path]:
    """Draw every plot that there are rows for, light and dark; the files."""
    import matplotlib  # here: a table needs none

    matplotlib.use("svg")
    from matplotlib import pyplot

    drawn = []
    for name, (_, plot) in PLOTS.items():
        taken = rows_of(name, rows)
        for variant, style in (("light", "default"), ("dark", "dark_background")) if taken else ():
            settings = {"svg.hashsalt": "whence", "svg.fonttype": "none", "font.size": 9}
            with pyplot.style.context([style, settings]):
                figure = plot(taken)
                path = results / f"{name}-{variant}.svg"
                about = {"Date": None, "Creator": None, "Description": rows_hash(taken)}
                figure.savefig(path, transparent=True, metadata=about)
                pyplot.close(figure)
            path.write_text("".join(f"{line.rstrip()}\n" for line in path.read_text().splitlines()), encoding="utf-8")
            drawn.append(path)
    return drawn


def rows_hash(rows: Sequence[Row]) -> str:
    """What a plot says of the rows that it shows."""
    return "rows " + hashlib.sha256(json.dumps(list(rows), sort_keys=True).encode()).hexdigest()[:16]


def _draw_loaders(rows: Sequence[Row]) -> Any:
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 0.5 + 0.35 * len(rows)), layout="constrained")
    names = [row["variant"] for row in rows][::-1]
    costs = [float(row["cpu_ms"]) for row in rows][::-1]
    spreads = [float(row["cpu_ms_interval"]) for row in rows][::-1]
    axis.barh(names, costs, xerr=spreads, color="tab:blue", error_kw={"ecolor": "tab:gray"})
    axis.set_xlabel(f"CPU-ms a clip (batch {rows[0]['batch']}, {rows[0]['cpu']})")
    return figure


def _draw_course(rows: Sequence[Row]) -> Any:
    from matplotlib import pyplot

    figure, (costs, memory) = pyplot.subplots(2, 1, figsize=(7, 5), sharex=True, layout="constrained")
    for stage in dict.fromkeys(row["variant"] for row in rows):
        taken = [row for row in rows if row["variant"] == stage]
        clips = [int(row["clips_done"]) / 1000 for row in taken]
        costs.plot(clips, [float(row["cpu_ms"]) for row in taken], label=stage)
        memory.plot(clips, [float(row["memory_mb"]) for row in taken], label=stage)
    costs.set(yscale="log", ylabel="CPU-ms a clip")
    memory.set(ylim=(0, None), ylabel="memory, MB", xlabel="thousand clips")
    costs.legend(ncols=2)
    return figure


PLOTS: dict[str, tuple[str, Callable[[Sequence[Row]], Any]]] = {
    "loader_rate": ("What a batch costs beside the bare decode of its pictures.", _draw_loaders),
    COURSE: ("A large store, thousand by thousand: cost of each clip, and memory.", _draw_course),
}
BLOCKS: dict[str, Callable[[Sequence[Row]], str]] = {"figures": _figures, "targets": _targets, "plots": _plots}
