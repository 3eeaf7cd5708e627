"""A list of clips with one JSON object a line: for everything that no other layout reads."""

import difflib
import json
from pathlib import Path
from typing import Any

import msgpack
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from configs.errors import UserError
from preprocess.layout import Layout, LayoutConfig, Look, SourceClip, check_id, check_negative, inside, parse_boxes

MANIFEST_NAME = "manifest.jsonl"


class _Line(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    clip_id: str
    video: str | None = None
    image: str | None = None
    audio: str | None = None
    start_s: float = Field(0.0, ge=0)
    duration_s: float | None = Field(None, gt=0)
    annotated_s: float | None = Field(None, ge=0)
    split: str = Field("train", min_length=1)
    label: str | None = None
    boxes: Any = None
    mask: str | None = None
    negative: bool = Field(False, strict=True)
    flow_x: str | None = None
    flow_y: str | None = None
    group: str | None = None


class Manifest(Layout):
    """INPUT is a .jsonl file, or a folder with `manifest.jsonl`; paths in it are relative to its folder.

    Keys: clip_id; video, or image and audio; start_s, duration_s, annotated_s (seconds); split, label, group; boxes
    (rows of x0, y0, x1, y1 and perhaps the annotator, fractions of the picture), mask (a picture file) or negative
    (true: nothing in the picture makes the sound); flow_x and flow_y (grey pictures of ready optical flow in the
    published encoding). Other keys are kept in `Record.extra`.
    """

    class Config(LayoutConfig):
        pass

    def __init__(self, config: Config, source: Path) -> None:
        super().__init__(config, source)
        self.file = self.root / MANIFEST_NAME if self.root.is_dir() else self.root
        if not self.file.is_file():
            raise UserError(f"no manifest at {self.file}: INPUT must be a .jsonl file or a folder with {MANIFEST_NAME}")
        self.root = self.file.parent

    @classmethod
    def recognise(cls, look: Look) -> str | None:
        if look.root.is_file():
            return "a .jsonl file" if look.root.suffix == ".jsonl" else None
        return MANIFEST_NAME if MANIFEST_NAME in look.files else None

    def clips(self) -> list[SourceClip]:
        clips: list[SourceClip] = []
        seen: dict[str, int] = {}
        unknown: dict[str, int] = {}
        with self.file.open("rb") as lines:
            for number, raw in enumerate(lines, 1):
                if not raw.strip():
                    continue
                where = f"{self.file}, line {number}"
                clip = self._clip(raw, where)
                if clip.clip_id in seen:
                    raise UserError(f"{where}: clip_id {clip.clip_id!r} stands in line {seen[clip.clip_id]} already")
                seen[clip.clip_id] = number
                for key in clip.extra:
                    if key not in _Line.model_fields:
                        unknown[key] = unknown.get(key, 0) + 1
                clips.append(clip)
        if not clips:
            raise UserError(f"{self.file} lists no clips")
        if unknown:
            known = list(_Line.model_fields)
            shown = []
            for key, count in unknown.items():
                close = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
                shown.append(f"{key} ({count} lines{f'; did you mean {close[0]}?' if close else ''})")
            self.notes.append(f"keys without a meaning here, kept as they are in `extra`: {', '.join(shown)}")
        return clips

    def _clip(self, raw: bytes, where: str) -> SourceClip:
        try:
            value = json.loads(raw.decode("utf-8-sig"))
            msgpack.packb(value)
        except json.JSONDecodeError as error:
            raise UserError(f"{where} is not valid JSON: {error.msg} at character {error.pos + 1}") from error
        except (ValueError, OverflowError, RecursionError) as error:
            raise UserError(f"{where} holds what cannot be stored: {error}") from error
        if not isinstance(value, dict):
            raise UserError(f"{where} must hold a JSON object, found {type(value).__name__}")
        try:
            line = _Line.model_validate(value)
        except ValidationError as error:
            problem = error.errors()[0]
            key = ".".join(str(part) for part in problem["loc"])
            found = "" if problem["type"] == "missing" else f" (found {problem['input']!r})"
            raise UserError(f"{where}: {key}: {problem['msg']}{found}") from None
        if line.video is None and (line.image is None or line.audio is None):
            raise UserError(f"{where}: needs 'video', or 'image' and 'audio'")
        if line.video is not None and line.image is not None:
            raise UserError(f"{where}: has 'video' and 'image'; the picture can come from one of them only")
        if line.boxes is not None and line.mask is not None:
            raise UserError(f"{where}: has 'boxes' and 'mask'; the truth can be one of them only")
        if line.negative:
            check_negative(line.boxes, line.mask, where)
        if (line.flow_x is None) != (line.flow_y is None):
            raise UserError(f"{where}: 'flow_x' and 'flow_y' come together, but one is missing")
        paths = {
            key: None if (text := getattr(line, key)) is None else inside(self.root, text, f"{where}, {key}")
            for key in ("video", "image", "audio", "mask", "flow_x", "flow_y")
        }
        boxes = [] if line.negative else line.boxes
        return SourceClip(
            clip_id=check_id(line.clip_id, where),
            split=line.split,
            label=line.label,
            group=line.group,
            start_s=line.start_s,
            duration_s=line.duration_s,
            annotated_s=line.annotated_s,
            boxes=None if boxes is None else parse_boxes(boxes, where),
            extra={**(line.model_extra or {}), **({"negative": True} if line.negative else {})},
            **paths,  # type: ignore[arg-type]
        )
