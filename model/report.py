"""Pictures and the report: one HTML file that needs nothing else, and overlay pictures beside it."""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import Tensor

from model.scoring import CEILING, Scored, ScoreTable

PICTURE_PX = 320
"""Longer side of the pictures in the report."""

_GREEN, _WHITE, _BLACK = (94, 222, 74), (255, 255, 255), (0, 0, 0)  # BGR, as OpenCV draws

FLOOR_MEANING = {
    "centre": "a blob in the middle of every picture",
    "ones": "the same value everywhere",
    "random": "noise at the method's resolution",
    CEILING: "the best that the protocol's threshold allows",
}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One clip as the method saw it.

    image: `(H, W, 3)` uint8 RGB. heat, foreground: `(S, S)` uint8 0 .. 255 and bool. boxes: `(k, 4)` fractions. values:
    the metrics' columns; the clips are ranked by the first.
    """

    clip_id: str
    label: str
    image: np.ndarray
    heat: np.ndarray
    foreground: np.ndarray
    best: tuple[float, float]
    boxes: np.ndarray
    truth: np.ndarray | None
    values: dict[str, float]

    @property
    def rank(self) -> tuple[float, str]:
        return next(iter(self.values.values())), self.clip_id

    @property
    def lot(self) -> str:
        return _digest(self.clip_id)

    def plain(self) -> np.ndarray:
        """The picture with its truth outlined: BGR, longer side `PICTURE_PX`."""
        height, width = self.image.shape[:2]
        scale = PICTURE_PX / max(height, width)
        size = (round(width * scale), round(height * scale))
        shown = cv2.resize(self.image[:, :, ::-1], size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA)
        return self._outline(np.ascontiguousarray(shown))

    def overlay(self) -> np.ndarray:
        """The picture under its map, the foreground's edge and the map's maximum: BGR, longer side `PICTURE_PX`."""
        shown = self.plain()
        size = (shown.shape[1], shown.shape[0])
        heat = cv2.resize(self.heat, size, interpolation=cv2.INTER_LINEAR)
        colour = cv2.applyColorMap(heat, cv2.COLORMAP_INFERNO)
        # Weak values hardly cover the picture: what lies under them stays to be seen.
        share = (0.7 * np.square(heat.astype(np.float32) / 255))[:, :, None]
        shown = (shown * (1 - share) + colour * share).astype(np.uint8)
        edge, _ = cv2.findContours(
            cv2.resize(self.foreground.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST),
            cv2.RETR_LIST,
            cv2.CHAIN_APPROX_NONE,
        )
        cv2.drawContours(shown, edge, -1, _WHITE, 1, cv2.LINE_AA)
        x, y = round(self.best[0] * size[0]), round(self.best[1] * size[1])
        for colour_of, thickness in ((_BLACK, 5), (_WHITE, 2)):
            cv2.drawMarker(shown, (x, y), colour_of, cv2.MARKER_CROSS, 15, thickness, cv2.LINE_AA)
        return self._outline(shown)

    def _outline(self, shown: np.ndarray) -> np.ndarray:
        height, width = shown.shape[:2]
        corners = np.clip(self.boxes, 0, 1) * (width, height, width, height)
        for thickness, colour in ((4, _BLACK), (2, _GREEN)):
            for x0, y0, x1, y1 in corners.round().astype(int).tolist():
                cv2.rectangle(shown, (x0, y0), (x1 - 1, y1 - 1), colour, thickness)
            if self.truth is not None:
                mask = cv2.resize((self.truth > 127).astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
                edge, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
                cv2.drawContours(shown, edge, -1, colour, thickness, cv2.LINE_AA)
        return shown


class Gallery:
    """The `count` best, worst and random clips of a set, kept while it is scored."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.total = 0
        self._kept: dict[str, list[Picture]] = {"best": [], "worst": [], "random": []}

    def add(self, image: Tensor, scored: Scored) -> None:
        """Take the clips of a batch that belong in. `image` is the batch's `(B, 3, H, W)` uint8."""
        self.total += len(scored.clip_ids)
        if not self.count:
            return
        for row, place in enumerate(scored.positions):
            values = {key: float(column[row]) for key, column in scored.columns.items() if "." not in key}
            rank, name = next(iter(values.values())), scored.clip_ids[row]
            sections = [
                section
                for section, pictures in self._kept.items()
                if len(pictures) < self.count or self._order(section, rank, name) < self._key(section, pictures[-1])
            ]
            if not sections:
                continue
            picture = _picture(image[place], scored, row, values)
            for section in sections:
                pictures = self._kept[section]
                pictures.append(picture)
                pictures.sort(key=lambda item, section=section: self._key(section, item))
                del pictures[self.count :]

    @staticmethod
    def _order(section: str, rank: float, clip_id: str) -> tuple[float, str]:
        """Clips come first whose order is least; ties are settled by lot, so that no label is preferred."""
        first = {"best": -rank, "worst": rank, "random": 0.0}[section]
        return first, _digest(clip_id)

    def _key(self, section: str, picture: Picture) -> tuple[float, str]:
        return self._order(section, picture.rank[0], picture.clip_id)

    @property
    def sections(self) -> dict[str, list[Picture]]:
        """Title -> pictures; one section if all clips fit in it."""
        if self.total <= self.count:
            return {"all clips, best first": self._kept["best"]}
        return dict(self._kept)

    def write(self, folder: Path) -> None:
        """Write every picture kept as `folder/<clip_id>.jpg`, in place of what pictures were there."""
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.jpg"):
            old.unlink()
        for pictures in self._kept.values():
            for picture in pictures:
                (folder / f"{safe_name(picture.clip_id)}.jpg").write_bytes(_jpeg(picture.overlay()))


def _picture(image: Tensor, scored: Scored, row: int, values: dict[str, float]) -> Picture:
    truth, scaled, resized = scored.truths[row], scored.maps.scaled[row], scored.maps.resized[row]
    side = resized.shape[-1]
    best = int(resized.flatten().argmax())
    return Picture(
        clip_id=scored.clip_ids[row],
        label=truth.label or "",
        image=image.permute(1, 2, 0).cpu().numpy(),
        heat=(scaled.clamp(0, 1) * 255).round().byte().cpu().numpy(),
        foreground=scored.maps.foreground[row].cpu().numpy(),
        best=((best % side + 0.5) / side, (best // side + 0.5) / side),
        boxes=np.zeros((0, 4)) if truth.boxes is None else truth.boxes[:, :4],
        truth=truth.mask if truth.boxes is None else None,
        values=values,
    )


def safe_name(name: str) -> str:
    """A file name for any text: itself if it is plain, else its plain part and a checksum."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:80]
    return plain if plain == name and not name.startswith(".") and name else f"{plain.lstrip('.')}-{_digest(name)[:8]}"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _jpeg(picture: np.ndarray) -> bytes:
    done, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 82])
    assert done
    return data.tobytes()


def write_report(
    path: Path,
    *,
    title: str,
    tables: Mapping[str, ScoreTable],
    galleries: Mapping[str, Gallery],
    facts: Mapping[str, str],
    config_yaml: str,
    history: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write the report of an evaluation: scores, floors, curves, pictures, settings. Raises: OSError.

    facts: what else to say about the checkpoint. history: one mapping an epoch with `epoch`, `loss` and
    `<set>/<score>`.
    """
    body = [f"<h1>{escape(title)}</h1>", _facts(facts)]
    for name, table in tables.items():
        body.append(_set_section(name, table, galleries.get(name)))
    if len(history) > 0:
        body.append(_history_section(history))
    body.append(
        f"<section><h2>Config</h2><details><summary>as resolved</summary><pre>{escape(config_yaml)}</pre></details>"
        "</section>"
    )
    page = _PAGE.replace("{title}", escape(title)).replace("{body}", "\n".join(body))
    path.write_text(page, encoding="utf-8")


def _facts(facts: Mapping[str, str]) -> str:
    rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items())
    return f"<dl>{rows}</dl>"


def _set_section(name: str, table: ScoreTable, gallery: Gallery | None) -> str:
    of = f" of {table.expected}" if table.expected else ""
    count = f"<b>{table.found}{of} clips</b>"
    parts = [
        f"<section><h2>{escape(name)}</h2>",
        f"<p>{count}, ids <code>{escape(table.id_hash)}</code>, protocol <b>{escape(table.protocol)}</b>.</p>",
    ]
    notes = list(table.notes)
    if table.empty:
        notes.append(f"{table.empty} clips have a truth that covers no pixel; they count, with 0.")
    parts += [f'<p class="warning">{escape(warning)}</p>' for warning in table.warnings]
    parts += [f"<p>{escape(note)}</p>" for note in notes]
    parts += [_score_table(table), _settings(table)]
    parts.append('<div class="charts">' + "".join(_histograms(table)) + "</div>")
    parts.append(_labels(table))
    if gallery is not None and gallery.count:
        parts.append(_gallery(name, gallery))
    return "\n".join([*parts, "</section>"])


def _score_table(table: ScoreTable) -> str:
    heads = "".join(f"<th>{escape(head)}</th>" for head in [*table.floors, CEILING])
    rows = []
    for score, value in table.scores.items():
        low, high = table.intervals.get(score, (value, value))
        floors = {source: scores[score] for source, scores in table.floors.items()}
        best = table.ceiling.get(score)
        cells = "".join(f"<td>{floor:.3f}</td>" for floor in floors.values())
        cells += f"<td>{best:.3f}</td>" if best is not None else "<td>-</td>"
        between = f"{low:.3f} - {high:.3f}" if score in table.intervals else "-"
        rows.append(
            f"<tr><th>{escape(score)}</th><td class='value'>{value:.3f}</td><td class='quiet'>{between}</td>"
            f"<td class='plot'>{_track(value, low, high, floors, best)}</td>{cells}</tr>"
        )
    meaning = "; ".join(f"<b>{key}</b>: {escape(text)}" for key, text in FLOOR_MEANING.items())
    return (
        "<div class='wide'><table class='scores'><thead><tr><th>score</th><th>value</th><th>95% interval</th>"
        f"<th class='plot'>0 <span>1</span></th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f"<p class='quiet'>Blind maps, scored in the same way on the same clips, and the limit: {meaning}. In the "
        "bars, the dot is the value, the band its interval, thin lines the blind maps, the dashed line the ceiling.</p>"
    )


def _track(value: float, low: float, high: float, floors: Mapping[str, float], best: float | None) -> str:
    """A line from 0 to 1 with the value, its interval, the floors and the ceiling."""

    def at(number: float) -> float:
        return 6 + 188 * min(max(number, 0.0), 1.0)

    marks = "".join(
        f"<line class='floor' x1='{at(floor):.1f}' x2='{at(floor):.1f}' y1='3' y2='17'><title>{escape(source)} "
        f"{floor:.3f}</title></line>"
        for source, floor in floors.items()
    )
    if best is not None:
        marks += f"<line class='ceiling' x1='{at(best):.1f}' x2='{at(best):.1f}' y1='1' y2='19'/>"
    return (
        "<svg viewBox='0 0 200 20' width='200' height='20' role='img'>"
        "<line class='axis' x1='6' x2='194' y1='10' y2='10'/>"
        f"<rect class='band' x='{at(low):.1f}' y='6' width='{max(1.0, at(high) - at(low)):.1f}' height='8' rx='2'/>"
        f"{marks}<circle class='dot' cx='{at(value):.1f}' cy='10' r='4.5'/></svg>"
    )


def _settings(table: ScoreTable) -> str:
    return f"<details><summary>Protocol {escape(table.protocol)}</summary>{_facts(table.settings)}</details>"


def _histograms(table: ScoreTable) -> list[str]:
    """One chart for every column that is not just hit or miss, with the centred blob as an outline."""
    charts = []
    for name, column in table.rows.items():
        if "." in name or column.dtype.kind != "f" or name == "truth_area" or np.isin(column, (0.0, 1.0)).all():
            continue
        if not ((column >= 0) & (column <= 1)).all():
            continue
        edges = np.linspace(0, 1, 21)
        counts = np.histogram(column, edges)[0]
        blind = table.rows.get(f"centre.{name}")
        outline = np.histogram(blind, edges)[0] if blind is not None else np.zeros_like(counts)
        charts.append(_histogram(name, counts, outline, len(column)))
    return charts


def _histogram(name: str, counts: np.ndarray, outline: np.ndarray, total: int) -> str:
    width, height, left, bottom = 360, 170, 34, 24
    top = max(1, int(max(counts.max(), outline.max())))
    step = (width - left - 8) / len(counts)

    def y(count: float) -> float:
        return (height - bottom) - (height - bottom - 12) * count / top

    bars = "".join(
        f"<rect class='bar' x='{left + index * step + 1:.1f}' y='{y(count):.1f}' width='{step - 2:.1f}' "
        f"height='{height - bottom - y(count):.1f}'><title>{index / 20:.2f} - {(index + 1) / 20:.2f}: {count} clips"
        "</title></rect>"
        for index, count in enumerate(counts.tolist())
    )
    line = f"M{left},{height - bottom}" + "".join(
        f"L{left + index * step:.1f},{y(count):.1f}H{left + (index + 1) * step:.1f}"
        for index, count in enumerate(outline.tolist())
    )
    ticks = "".join(
        f"<text x='{left + share * 20 * step:.1f}' y='{height - 6}' text-anchor='middle'>{share:g}</text>"
        for share in (0, 0.25, 0.5, 0.75, 1)
    )
    half = left + 10 * step
    return (
        f"<figure><figcaption>{escape(name)} of {total} clips; line: blind centre</figcaption>"
        f"<svg viewBox='0 0 {width} {height}' role='img'>"
        f"<text x='{left - 5}' y='{y(top) + 4:.1f}' text-anchor='end'>{top}</text>"
        f"<text x='{left - 5}' y='{height - bottom}' text-anchor='end'>0</text>{bars}"
        f"<path class='outline' d='{line}V{height - bottom}'/>"
        f"<line class='ceiling' x1='{half:.1f}' x2='{half:.1f}' y1='8' y2='{height - bottom}'/>"
        f"<line class='axis' x1='{left}' x2='{width - 8}' y1='{height - bottom}' y2='{height - bottom}'/>{ticks}"
        "</svg></figure>"
    )


def _labels(table: ScoreTable) -> str:
    """Means by label, if there are at least two labels."""
    labels = table.rows["label"]
    known = [str(label) for label in np.unique(labels) if label]
    if len(known) < 2:
        return ""
    names = [
        key for key, column in table.rows.items() if "." not in key and column.dtype.kind == "f" and key != "truth_area"
    ]
    lines = []
    for label in known:
        here = labels == label
        lines.append((label, int(here.sum()), [float(table.rows[key][here].mean()) for key in names]))
    lines.sort(key=lambda line: -line[2][0])
    rows = "".join(
        f"<tr><th>{escape(label)}</th><td>{count}</td>{''.join(f'<td>{value:.3f}</td>' for value in values)}</tr>"
        for label, count, values in lines
    )
    heads = "".join(f"<th>mean {escape(key)}</th>" for key in names)
    return (
        f"<details><summary>By label ({len(known)})</summary><div class='wide'><table><thead><tr><th>label</th>"
        f"<th>clips</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _gallery(name: str, gallery: Gallery) -> str:
    key = f"maps-{_digest(name)}"
    parts = [
        f"<input type='checkbox' class='maps' id='{key}' checked><label for='{key}'>show maps</label>",
        "<p class='quiet'>Green: the truth. White line: the edge of what counts as source. Cross: the map's maximum."
        "</p>",
    ]
    for section, pictures in gallery.sections.items():
        first = next(iter(pictures[0].values)) if pictures else ""
        how = f" by {first}" if section in ("best", "worst") else ""
        parts.append(f"<h3>{escape(section)}{escape(how)}</h3><div class='grid'>{''.join(map(_card, pictures))}</div>")
    return f"<div class='gallery'>{''.join(parts)}</div>"


def _card(picture: Picture) -> str:
    plain, overlay = (base64.b64encode(_jpeg(shown)).decode() for shown in (picture.plain(), picture.overlay()))
    values = " ".join(f"<span>{escape(key)}&nbsp;<b>{value:.2f}</b></span>" for key, value in picture.values.items())
    height, width = picture.overlay().shape[:2]
    return (
        "<figure class='card'><div class='stack'>"
        f"<img alt='' width='{width}' height='{height}' src='data:image/jpeg;base64,{plain}'>"
        f"<img alt='map of {escape(picture.clip_id)}' width='{width}' height='{height}' class='map' "
        f"src='data:image/jpeg;base64,{overlay}'></div>"
        f"<figcaption><b>{escape(picture.label) or '-'}</b> <code>{escape(picture.clip_id)}</code><br>{values}"
        "</figcaption></figure>"
    )


def _history_section(history: Sequence[Mapping[str, Any]]) -> str:
    """A curve for every number of the epochs, and their table."""
    keys = list(dict.fromkeys(key for row in history for key, value in row.items() if isinstance(value, int | float)))
    charts = [_curve(key, history) for key in keys if key not in ("epoch", "step")]
    heads = "".join(f"<th>{escape(key)}</th>" for key in keys)
    rows = "".join(
        "<tr>" + "".join(f"<td>{row[key]:.4g}</td>" if key in row else "<td></td>" for key in keys) + "</tr>"
        for row in history
    )
    return (
        f"<section><h2>Training</h2><div class='charts'>{''.join(charts)}</div><details><summary>All {len(history)} "
        f"epochs</summary><div class='wide'><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
        "</details></section>"
    )


def _curve(key: str, history: Sequence[Mapping[str, Any]]) -> str:
    points = [(float(row.get("epoch", index + 1)), float(row[key])) for index, row in enumerate(history) if key in row]
    points = [(x, y) for x, y in points if np.isfinite(y)]
    if not points:
        return ""
    width, height, left, bottom = 360, 150, 48, 24
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    span_x, span_y = (max(xs) - min(xs)) or 1.0, (high - low) or 1.0

    def place(x: float, y: float) -> str:
        return (
            f"{left + (width - left - 12) * (x - min(xs)) / span_x:.1f},"
            f"{height - bottom - 6 - (height - bottom - 22) * (y - low) / span_y:.1f}"
        )

    dots = "".join(
        "<circle class='dot' r='2.5' cx='{}' cy='{}'><title>epoch {:g}: {:.4g}</title></circle>".format(
            *place(x, y).split(","), x, y
        )
        for x, y in points
    )
    top, base = (float(place(xs[0], value).split(",")[1]) + 4 for value in (high, low))
    low_text = f"<text x='{left - 6}' y='{base:.1f}' text-anchor='end'>{low:.3g}</text>" if high > low else ""
    return (
        f"<figure><figcaption>{escape(key)}</figcaption><svg viewBox='0 0 {width} {height}' role='img'>"
        f"<text x='{left - 6}' y='{top:.1f}' text-anchor='end'>{high:.3g}</text>{low_text}"
        f"<line class='axis' x1='{left}' x2='{width - 8}' y1='{height - bottom}' y2='{height - bottom}'/>"
        f"<polyline class='curve' points='{' '.join(place(x, y) for x, y in points)}'/>{dots}"
        f"<text x='{left}' y='{height - 6}'>epoch {min(xs):g}</text>"
        f"<text x='{width - 8}' y='{height - 6}' text-anchor='end'>{max(xs):g}</text></svg></figure>"
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root { --ink: #1d2330; --quiet: #5d6678; --page: #f6f7f9; --card: #fff; --line: #dde1e8; --main: #2563c9;
  --band: #2563c944; --floor: #b4600a; --note: #fff4dc; --note-ink: #6b4a06; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9f0; --quiet: #9aa4b6; --page: #12151b; --card: #1b2029;
  --line: #323a48; --main: #7cb0ff; --band: #7cb0ff44; --floor: #f0a04b; --note: #33290f; --note-ink: #f3d9a0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 1120px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .75rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1.1rem;
  margin: 1.1rem 0; }
p { margin: .4rem 0; }
.quiet, dt, figcaption { color: var(--quiet); font-size: .87rem; }
.warning { background: var(--note); color: var(--note-ink); border-radius: 6px; padding: .4rem .7rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .5rem 0; }
dd { margin: 0; overflow-wrap: anywhere; font-size: .9rem; }
code { font-size: .85em; overflow-wrap: anywhere; }
pre { overflow-x: auto; font-size: .8rem; margin: .5rem 0 0; }
details { margin: .7rem 0; }
summary { cursor: pointer; color: var(--main); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child { text-align: left; }
thead th { color: var(--quiet); font-weight: 500; font-size: .85rem; }
tbody th { font-weight: 500; }
td.value { font-weight: 700; font-size: 1.05rem; }
th.plot { text-align: left; padding-left: .9rem; }
th.plot span { float: right; }
svg { display: block; }
svg text { fill: var(--quiet); font-size: 11px; }
.axis { stroke: var(--line); stroke-width: 1.5; }
.band { fill: var(--band); }
.dot { fill: var(--main); }
.floor { stroke: var(--floor); stroke-width: 1.5; }
.ceiling { stroke: var(--quiet); stroke-width: 1.2; stroke-dasharray: 3 2; }
.bar { fill: var(--main); opacity: .75; }
.outline { fill: none; stroke: var(--floor); stroke-width: 1.5; }
.curve { fill: none; stroke: var(--main); stroke-width: 1.8; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); gap: 1rem;
  margin: 1rem 0; }
figure { margin: 0; }
.charts svg { width: 100%; height: auto; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(150px, 46%), 1fr)); gap: .8rem; }
.card { border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
.card figcaption { padding: .4rem .55rem .5rem; font-size: .8rem; line-height: 1.4; overflow-wrap: anywhere; }
.card figcaption b { color: var(--ink); }
.card figcaption span { white-space: nowrap; margin-right: .4rem; }
.stack { position: relative; }
.stack img { display: block; width: 100%; height: auto; }
.stack .map { position: absolute; inset: 0; opacity: 0; }
.maps:checked ~ .grid .map { opacity: 1; }
.gallery > label { cursor: pointer; padding-left: .3rem; }
</style>
</head>
<body>
{body}
</body>
</html>
"""
