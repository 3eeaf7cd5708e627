"""A folder of video files, with or without a table of what they are."""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from configs.errors import UserError
from configs.ids import is_vggsound
from preprocess.layout import Layout, LayoutConfig, Look, SourceClip, check_id, check_negative, inside, parse_boxes
from preprocess.listing import VIDEOS, find_files, stem

TABLE_NAME = "clips.csv"
_NUMBERS = ("start_s", "duration_s", "annotated_s")
_TEXTS = ("split", "label", "group")


class Clips(Layout):
    """INPUT is a folder with video files, also in folders below it; the id of a clip is its file's name without suffix.

    A csv table with a header row (`--csv`, or `clips.csv` in the folder) says which of them to pack and what they are:
    columns clip_id or file (one of them must be there), split, label, group, start_s, duration_s, annotated_s
    (seconds), boxes (JSON) and negative (true or false), as in the `manifest` layout. Other columns are kept in
    `Record.extra`. Without a table every file is packed, in the split "train".
    """

    class Config(LayoutConfig):
        csv: Path | None = Field(
            default=None, description="table of the clips; null: clips.csv in INPUT, if it is there"
        )

    def __init__(self, config: Config, source: Path) -> None:
        super().__init__(config, source)
        if not self.root.is_dir():
            raise UserError(f"{source} is not a folder; the layout 'clips' packs a folder of {', '.join(VIDEOS)} files")

    def clips(self) -> list[SourceClip]:
        files = list(find_files(self.root, "", VIDEOS, deep=True))
        table = self.config.csv or (self.root / TABLE_NAME if (self.root / TABLE_NAME).is_file() else None)
        if table is None:
            if not files:
                raise UserError(f"no {', '.join(VIDEOS)} files in {self.source}")
            by_id = _by_stem(files)
            self._refuse_ambiguous(by_id, by_id)
            return [SourceClip(clip_id=check_id(clip_id, names[0]), video=names[0]) for clip_id, names in by_id.items()]
        return self._from_table(table, files)

    @classmethod
    def recognise(cls, look: Look) -> str | None:
        if TABLE_NAME in look.files:
            return TABLE_NAME
        videos = [name for name in look.names("") if name.lower().endswith(VIDEOS)]
        others = [name for name in videos if not is_vggsound(stem(name))]
        return f"video files, like {others[0]}" if others else None

    def _from_table(self, table: Path, files: list[str]) -> list[SourceClip]:
        by_id = _by_stem(files)
        clips: list[SourceClip] = []
        seen: dict[str, int] = {}
        for line, row in _rows(table):
            where = f"{table}, line {line}"
            file = row.pop("file", "")
            clip_id = check_id(row.pop("clip_id", "") or Path(file).stem, where)
            if clip_id in seen:
                raise UserError(f"{where}: clip_id {clip_id!r} stands in line {seen[clip_id]} already")
            seen[clip_id] = line
            if file:
                file = inside(self.root, file, where)
            else:
                self._refuse_ambiguous(by_id, [clip_id])
                file = by_id.get(clip_id, [f"{clip_id}{VIDEOS[0]}"])[0]
            texts = {key: row.pop(key, "") for key in (*_TEXTS, *_NUMBERS, "boxes")}
            numbers: dict[str, Any] = {key: _number(texts[key], key, where) for key in _NUMBERS if texts[key]}
            if numbers.get("duration_s") == 0:
                raise UserError(f"{where}: duration_s must be greater than 0")
            boxes = _boxes(texts["boxes"], where) if texts["boxes"] else None
            if _negative(row.pop("negative", ""), where):
                check_negative(boxes, None, where)
                boxes, row = [], {**row, "negative": True}
            clips.append(
                SourceClip(
                    clip_id=clip_id,
                    video=file,
                    **{key: texts[key] for key in _TEXTS if texts[key]},
                    **numbers,
                    boxes=boxes,
                    extra=row,
                )
            )
        if not clips:
            raise UserError(f"{table} lists no clips")
        unlisted = set(files) - {clip.file for clip in clips}
        if unlisted:
            self.notes.append(f"{len(unlisted)} video files are not in {table} and are left out")
        return clips

    def _refuse_ambiguous(self, by_id: dict[str, list[str]], wanted: Iterable[str]) -> None:
        for clip_id in wanted:
            names = by_id.get(clip_id, [])
            if len(names) > 1:
                raise UserError(
                    f"{len(names)} files in {self.source} have the id {clip_id!r}: {', '.join(names[:3])}. "
                    "Rename them, or list them in a csv table with the columns clip_id and file"
                )


def _by_stem(files: list[str]) -> dict[str, list[str]]:
    by_id: dict[str, list[str]] = {}
    for file in files:
        by_id.setdefault(stem(file), []).append(file)
    return by_id


def _rows(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells of each row of a table, cells stripped. Raises: UserError."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header = [name.strip() for name in reader.fieldnames or []]
            if not {"clip_id", "file"} & set(header) or len(set(header)) < len(header):
                raise UserError(
                    f"{table} needs a header row with different names, clip_id or file among them; it has {header}"
                )
            reader.fieldnames = header
            for row in reader:
                if None in row or None in row.values():
                    raise UserError(f"{table}, line {reader.line_num}: not {len(header)} cells, as the header row has")
                yield reader.line_num, {key: value.strip() for key, value in row.items()}
    except OSError as error:
        raise UserError(f"cannot read {table}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{table} is not a UTF-8 text file: {error}") from error
    except csv.Error as error:
        raise UserError(f"{table} is not a csv table: {error}") from error


def _number(text: str, key: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UserError(f"{where}: {key} must be a number of seconds, 0 or more, found {text!r}")
    return value


def _negative(text: str, where: str) -> bool:
    if text.lower() not in ("", "true", "false"):
        raise UserError(f"{where}: negative must be true, false or empty, found {text!r}")
    return text.lower() == "true"


def _boxes(text: str, where: str) -> list[list[float]]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where}: boxes must be JSON like [[x0, y0, x1, y1]], found {text[:100]!r}: {error}"
        ) from error
    return parse_boxes(value, where)
