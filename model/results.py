"""The results of an evaluation on disk: `scores.json`, and a file of rows a table, from which every score follows."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from configs.errors import UserError
from model.gallery import safe_name
from model.rows import load_rows, save_rows
from model.scoring import ScoreTable

SCORES = "scores.json"
VERSION = 2
TRAINING_LIST = "training list"
"""Key of `Results.facts`: how many clips the weights were trained on, and the hash of their ids."""


@dataclass(frozen=True, kw_only=True)
class SetResult:
    """The tables of one test set: first the one of the chosen protocol, then others of the same maps.

    of: the set of the config that they are of; about: what that is. leak: `same` and `related` clips of the training
    list (see `TrainingList.leak`); None where the list is unknown. maps: the file of the maps, beside the scores.
    """

    of: str
    about: str
    tables: list[ScoreTable]
    leak: dict[str, int] | None
    maps: str | None = None


@dataclass(frozen=True, kw_only=True)
class Results:
    """The results of one evaluation. config: of the run as plain values, at least its `evaluate`. where: their folder,
    once they are read from one.
    """

    title: str
    sets: dict[str, SetResult]
    facts: dict[str, str]
    config: dict[str, Any]
    where: Path = Path()


def label(table: ScoreTable) -> str:
    """The name of a table among those of its set: protocol, and refinement if there is one."""
    return f"{table.protocol} + {table.variant}" if table.variant else table.protocol


def counted(table: ScoreTable) -> str:
    """How many clips were scored, and of how many where the full set is known."""
    return f"{table.found} of {table.expected}" if table.expected else str(table.found)


def write_results(folder: Path, results: Results) -> None:
    """Write `scores.json` and the rows into a folder that exists. Raises: OSError."""
    sets: dict[str, Any] = {}
    for name, result in results.sets.items():
        tables = []
        for number, table in enumerate(result.tables):
            suffix = "" if number == 0 else f"_{safe_name(label(table))}"
            rows = f"rows_{safe_name(name)}{suffix}.npz"
            save_rows(folder / rows, table.rows)
            tables.append({"rows": rows, **table.as_mapping()})
        sets[name] = {**vars(result), "tables": tables}
    values = {
        "version": VERSION,
        "title": results.title,
        "sets": sets,
        "facts": results.facts,
        "config": results.config,
    }
    (folder / SCORES).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def find_results(path: Path) -> Path:
    """The folder of an evaluation: itself, or the newest `eval-*` of a run folder. Raises: UserError."""
    if (path / SCORES).is_file():
        return path
    found = sorted(file.parent for file in path.glob(f"eval-*/{SCORES}"))
    if not found:
        raise UserError(f"no results in {path}: expected {SCORES}, written by `python evaluate.py CHECKPOINT`")
    return found[-1]


def read_results(path: Path) -> Results:
    """The results in a folder, or the newest of a run folder. Raises: UserError if they are missing or damaged."""
    folder = find_results(path)
    try:
        values = json.loads((folder / SCORES).read_text(encoding="utf-8"))
        if values.get("version") != VERSION:
            raise UserError(
                f"{folder / SCORES} is of version {values.get('version')}, this code reads {VERSION}: evaluate again"
            )
        sets = {name: _set(folder, value) for name, value in values["sets"].items()}
        return Results(title=values["title"], sets=sets, facts=values["facts"], config=values["config"], where=folder)
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"the results in {folder} are damaged ({error!r}); evaluate again") from error


def _set(folder: Path, value: Mapping[str, Any]) -> SetResult:
    known = {item.name for item in fields(ScoreTable)} - {"rows"}
    tables = []
    for mapping in value["tables"]:
        plain = {key: item for key, item in mapping.items() if key in known}
        plain["intervals"] = {name: tuple(bounds) for name, bounds in plain["intervals"].items()}
        tables.append(ScoreTable(**plain, rows=load_rows(folder / mapping["rows"])))
    return SetResult(**{**value, "tables": tables})
