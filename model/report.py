"""The report: one HTML file that needs nothing else, no script and no network; readable on a phone."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from model import charts
from model.compare import Comparison
from model.gallery import Gallery, Picture, digest, jpeg
from model.results import Results, SetResult, counted, label
from model.rows import Rows, measured
from model.scoring import CEILING, ScoreTable

BUDGET_BYTES = 24_000_000
"""Pictures and sounds of a report take at most so much; what does not fit is left out and said."""

NO_DISAGREEMENTS = "<p>No pictures: the systems share no metric by which clips could be chosen.</p>"
FLOOR_MEANING = {
    "centre": "a blob in the middle of every picture",
    "ones": "the same value everywhere",
    "random": "noise at the method's resolution",
    "object": "a network that names what is in the picture and hears nothing",
    CEILING: "the best that the protocol's threshold allows",
}
_SIZES_PX = (("small", 32), ("medium", 96), ("large", 144), ("huge", 224))
"""Truth of less than so many pixels squared, of a picture of 224 x 224: the sizes of SLAVC's evaluation."""


def write_report(
    path: Path,
    *,
    results: Results,
    galleries: Mapping[str, Gallery],
    config_yaml: str,
    history: Sequence[Mapping[str, Any]] = (),
    curves: bytes | None = None,
) -> None:
    """Write the report of an evaluation: scores, floors, protocols, curves, pictures, sounds, settings.

    history: one mapping an epoch with `epoch`, `loss` and `<set>/<score>`. curves: a PNG of the whole run's log, as
    `model.curves` draws it. Raises: OSError.
    """
    budget = BUDGET_BYTES // max(1, len(galleries))
    panes = {"Overview": _overview(results.sets)} if len(results.sets) > 1 else {}
    for name, result in results.sets.items():
        panes[name] = _set_pane(name, result, galleries.get(name, {}), budget)
    if history or curves:
        panes["Training"] = _training(history, curves)
    config = f"<details><summary>Config, as resolved</summary><pre>{escape(config_yaml)}</pre></details>"
    panes["About"] = _facts(results.facts) + config
    chosen = results.facts.get("checkpoint", "")
    _write_page(path, results.title, f"<p class='quiet'>{escape(chosen)}</p>" + _tabs("page", panes))


def write_comparison(path: Path, comparison: Comparison, galleries: Mapping[str, Gallery]) -> None:
    """Write the page of a comparison: scores, differences, and the clips on which two systems differ most.

    Raises: OSError.
    """
    notes = "".join(f"<li>{escape(note)}</li>" for note in comparison.notes)
    panes = {"Scores": f"{_plain_table(*comparison.scores())}<ul>{notes}</ul>"}
    if comparison.differences:
        panes["Differences"] = _plain_table(*comparison.lines()) + f"<p class='quiet'>{escape(comparison.method)}</p>"
    budget = BUDGET_BYTES // max(1, len(galleries))
    for name, gallery in galleries.items():
        panes[f"Pictures: {name}"] = _gallery(name, gallery, budget) if gallery else NO_DISAGREEMENTS
    runs = {system.name: ", ".join(str(run.where) for run in system.runs) for system in comparison.systems}
    panes["Runs"] = _facts(runs)
    _write_page(path, " / ".join(system.name for system in comparison.systems), _tabs("page", panes))


def _plain_table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in line)}</tr>" for line in lines)
    return f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _write_page(path: Path, title: str, body: str) -> None:
    """Write a page. `body` is markup, `title` is text."""
    rule = ".tabs > input:nth-of-type({0}):checked ~ .pane:nth-of-type({0}) {{ display: block; }}"
    tabs = "\n".join(rule.format(number) for number in range(1, body.count("class='pane'") + 1))
    page = _PAGE.replace("{tabs}", tabs).replace("{title}", escape(title)).replace("{body}", body)
    path.write_text(page, encoding="utf-8")


def _tabs(group: str, panes: Mapping[str, str]) -> str:
    """Tabs without a script: radio buttons, and a pane that shows while its own is chosen."""
    if len(panes) == 1:
        return f"<div class='single'>{next(iter(panes.values()))}</div>"
    heads = "".join(
        f"<input type='radio' name='{group}' id='{group}-{number}'{' checked' if number == 0 else ''}>"
        f"<label for='{group}-{number}'>{escape(name)}</label>"
        for number, name in enumerate(panes)
    )
    bodies = "".join(f"<section class='pane'>{pane}</section>" for pane in panes.values())
    return f"<div class='tabs'>{heads}{bodies}</div>"


def _facts(facts: Mapping[str, str]) -> str:
    rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items())
    return f"<dl>{rows}</dl>"


def _overview(results: Mapping[str, SetResult]) -> str:
    """A row a set: its clips, its first score with interval, floors and ceiling, and what was trained on."""
    lines = []
    for name, result in results.items():
        table = result.tables[0]
        score, value = next(iter(table.scores.items()))
        low, high = table.intervals.get(score, (value, value))
        floors = {source: scores[score] for source, scores in table.floors.items() if score in scores}
        blind = max(floors.values(), default=None)
        leaked = f"{result.leak['related']}" if result.leak else "not known"
        lines.append(
            f"<tr><th>{escape(name)}</th><td>{counted(table)}</td><td>{escape(table.protocol)}</td><td>{escape(score)}"
            f"</td><td class='value'>{value:.3f}</td><td class='quiet'>{low:.3f} - {high:.3f}</td>"
            f"<td class='plot'>{charts.track(value, low, high, floors, table.ceiling.get(score))}</td>"
            f"<td>{'-' if blind is None else f'{blind:.3f}'}</td><td>{leaked}</td></tr>"
        )
    return (
        "<div class='wide'><table class='scores'><thead><tr><th>set</th><th>clips</th><th>protocol</th><th>score</th>"
        "<th>value</th><th>95% interval</th><th class='plot'>0 <span>1</span></th><th>best blind</th>"
        f"<th>trained on</th></tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        "<p class='quiet'>Best blind: the best map that saw nothing. Trained on: clips whose recording is in the "
        "training list.</p>"
    )


def _set_pane(name: str, result: SetResult, gallery: Gallery, budget: int) -> str:
    table = result.tables[0]
    about = f"<p>{escape(result.about)}.</p>" if result.about else ""
    head = (
        f"<h2>{escape(name)}</h2>{about}<p><b>{counted(table)} clips</b>, ids <code>{escape(table.id_hash)}</code>, "
        f"protocol <b>{escape(label(table))}</b>.</p>"
    )
    head += "".join(f'<p class="warning">{escape(warning)}</p>' for warning in table.warnings)
    head += "".join(f"<p>{escape(note)}</p>" for note in table.notes)
    panes = {"Scores": _score_table(table) + _settings(table)}
    if len(result.tables) > 1:
        panes["Protocols"] = _protocols(result.tables)
    panes["Curves"] = "<div class='charts'>" + "".join(_curves(table.rows)) + "</div>"
    panes["Classes"] = _means(table.rows, _by_label(table.rows), "label")
    panes["Sizes"] = _means(table.rows, _by_size(table.rows), "truth covers")
    if gallery:
        panes["Pictures"] = _gallery(name, gallery, budget)
    return head + _tabs(f"set-{digest(name)}", {title: pane for title, pane in panes.items() if pane})


def _score_table(table: ScoreTable) -> str:
    heads = "".join(f"<th>{escape(head)}</th>" for head in [*table.floors, CEILING])
    rows = []
    for score, value in table.scores.items():
        low, high = table.intervals.get(score, (value, value))
        floors = {source: scores.get(score) for source, scores in table.floors.items()}
        best = table.ceiling.get(score)
        cells = "".join(f"<td>{'-' if floor is None else f'{floor:.3f}'}</td>" for floor in [*floors.values(), best])
        known = {source: floor for source, floor in floors.items() if floor is not None}
        between = f"{low:.3f} - {high:.3f}" if score in table.intervals else "-"
        rows.append(
            f"<tr><th>{escape(score)}</th><td class='value'>{value:.3f}</td><td class='quiet'>{between}</td>"
            f"<td class='plot'>{charts.track(value, low, high, known, best)}</td>{cells}</tr>"
        )
    shown = [*table.floors, CEILING]
    meaning = "; ".join(f"<b>{key}</b>: {escape(text)}" for key, text in FLOOR_MEANING.items() if key in shown)
    return (
        "<div class='wide'><table class='scores'><thead><tr><th>score</th><th>value</th><th>95% interval</th>"
        f"<th class='plot'>0 <span>1</span></th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f"<p class='quiet'>Blind maps, scored in the same way on the same clips, and the limit: {meaning}. In the "
        "bars, the dot is the value, the band its interval, thin lines the blind maps, the dashed line the ceiling.</p>"
    )


def _settings(table: ScoreTable) -> str:
    return f"<details><summary>Protocol {escape(table.protocol)}</summary>{_facts(table.settings)}</details>"


def _protocols(tables: Sequence[ScoreTable]) -> str:
    """The same maps under every protocol: a row a protocol, a column a score, its blind centre below the value."""
    scores = list(dict.fromkeys(score for table in tables for score in table.scores))
    lines = []
    for table in tables:
        cells = []
        for score in scores:
            value, blind = table.scores.get(score), table.floors.get("centre", {}).get(score)
            below = "" if blind is None else f"<br><span class='quiet'>{blind:.3f}</span>"
            cells.append("<td></td>" if value is None else f"<td>{value:.3f}{below}</td>")
        lines.append(f"<tr><th>{escape(label(table))}</th>{''.join(cells)}</tr>")
    heads = "".join(f"<th>{escape(score)}</th>" for score in scores)
    settings = "".join(
        f"<details><summary>{escape(label(table))}</summary>{_facts(table.settings)}</details>" for table in tables
    )
    return (
        "<p class='quiet'>The same maps of the same clips, read in different ways; small: the blind centre.</p><div "
        f"class='wide'><table><thead><tr><th>protocol</th>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
        f"</div>{settings}"
    )


def _curves(rows: Rows) -> Iterator[str]:
    """Charts of every column that lies in 0 .. 1 and is not just hit or miss, beside the blind maps'."""
    for name in measured(rows):
        column = rows[name]
        if np.isin(column, (0.0, 1.0)).all() or not ((column >= 0) & (column <= 1)).all():
            continue
        yield charts.histogram(name, column, rows.get(f"centre.{name}"))
        sources = {source: rows[f"{source}.{name}"] for source in FLOOR_MEANING if f"{source}.{name}" in rows}
        yield charts.success(name, {"scored": column, **sources})


def _by_label(rows: Rows) -> dict[str, np.ndarray]:
    """Label -> `(n,)` bool, if there are at least two labels."""
    known = [str(name) for name in np.unique(rows["label"]) if name]
    return {name: rows["label"] == name for name in known} if len(known) > 1 else {}


def _by_size(rows: Rows) -> dict[str, np.ndarray]:
    """Size of the truth -> `(n,)` bool."""
    area, low, found = rows["truth_area"] * 224**2, 0.0, {}
    for name, side in _SIZES_PX:
        high = float("inf") if name == "huge" else side**2
        inside = (area > low) & (area <= high) if low else (area > 0) & (area <= high)
        share = f"over {low / 224**2:.0%}" if name == "huge" else f"{low / 224**2:.0%} to {high / 224**2:.0%}"
        found[f"{name} ({share})"] = inside
        low = high
    return {name: inside for name, inside in found.items() if inside.any()}


def _means(rows: Rows, groups: Mapping[str, np.ndarray], head: str) -> str:
    """Means of the metrics' columns over groups of clips, the blind centre's beside the first, best first."""
    names = [name for name in measured(rows) if np.isfinite(rows[name]).all()]
    if not groups or not names:
        return ""
    blind = f"centre.{names[0]}" if f"centre.{names[0]}" in rows else None
    lines = [
        (title, int(inside.sum()), [float(rows[key][inside].mean()) for key in [*names, *([blind] if blind else [])]])
        for title, inside in groups.items()
    ]
    if head == "label":
        lines.sort(key=lambda line: -line[2][0])
    body = "".join(
        f"<tr><th>{escape(title)}</th><td>{count}</td>{''.join(f'<td>{value:.3f}</td>' for value in values)}</tr>"
        for title, count, values in lines
    )
    heads = "".join(f"<th>mean {escape(key)}</th>" for key in names)
    heads += f"<th>blind centre, {escape(names[0])}</th>" if blind else ""
    return (
        f"<div class='wide'><table><thead><tr><th>{escape(head)}</th><th>clips</th>{heads}</tr></thead><tbody>{body}"
        "</tbody></table></div>"
    )


def _gallery(name: str, gallery: Gallery, budget: int) -> str:
    """The pictures, as many and with as much sound as the budget allows."""
    most = max(len(pictures) for pictures in gallery.values())
    fewer = [most >> halved for halved in range(most.bit_length() + 1)]  # down to none
    for count, sound in ((most, True), *((count, False) for count in fewer)):
        shown = _sections(name, {title: pictures[:count] for title, pictures in gallery.items()}, sound)
        if len(shown) <= budget:
            break
    left_out = [*(["the sounds"] if not sound else []), *(["some of the pictures"] if count < most else [])]
    has_sound = any(picture.sound for pictures in gallery.values() for picture in pictures)
    left_out = left_out if has_sound else left_out[1:]
    note = f"<p class='warning'>To keep this page small, {' and '.join(left_out)} are left out.</p>" if left_out else ""
    return note + shown


def _sections(name: str, gallery: Gallery, sound: bool) -> str:
    key = f"maps-{digest(name)}"
    parts = [
        f"<input type='checkbox' class='maps' id='{key}' checked><label for='{key}'>show maps</label>",
        "<p class='quiet'>Green: the truth. White line: the edge of what counts as source. Cross: the map's maximum."
        "</p>",
    ]
    parts += [
        f"<h3>{escape(title)}</h3><div class='grid'>{''.join(card(picture, sound=sound) for picture in pictures)}</div>"
        for title, pictures in gallery.items()
    ]
    return f"<div class='gallery'>{''.join(parts)}</div>"


def card(picture: Picture, *, sound: bool) -> str:
    """A clip: its picture under each system's map, the values, and its sound to play."""
    plain = picture.plain()
    height, width = plain.shape[:2]
    below = f"<img alt='' width='{width}' height='{height}' src='{_data('image/jpeg', jpeg(plain))}'>"
    stacks = []
    for layer in picture.layers:
        over = _data("image/jpeg", jpeg(picture.overlay(layer)))
        values = " ".join(f"<span>{escape(key)}&nbsp;<b>{value:.2f}</b></span>" for key, value in layer.values.items())
        title = f"<b>{escape(layer.name)}</b> " if len(picture.layers) > 1 else ""
        stacks.append(
            f"<div class='stack'>{below}<img alt='map of {escape(picture.clip_id)}' width='{width}' height='{height}' "
            f"class='map' src='{over}'></div><div class='values'>{title}{values}</div>"
        )
    play = ""
    if sound and picture.sound:
        play = f"<audio controls preload='none' src='{_data('audio/mpeg', picture.sound)}'></audio>"
    return (
        f"<figure class='card'>{''.join(stacks)}{play}<figcaption><b>{escape(picture.label) or '-'}</b> "
        f"<code>{escape(picture.clip_id)}</code></figcaption></figure>"
    )


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _training(history: Sequence[Mapping[str, Any]], curves: bytes | None) -> str:
    """What the epochs up to the checkpoint gave, and the picture of the run's log, which may go on after it."""
    drawn = ""
    if curves:
        drawn = (
            "<h3>The run, as far as it had come when its curves were last drawn</h3><div class='wide'>"
            f"<img class='log' alt='curves of the log' src='{_data('image/png', curves)}'></div>"
        )
    return f"<h2>Training</h2>{_history(history) if history else ''}{drawn}"


def _history(history: Sequence[Mapping[str, Any]]) -> str:
    """A curve for every number of the epochs, and their table."""
    keys = list(dict.fromkeys(key for row in history for key, value in row.items() if isinstance(value, int | float)))
    drawn = [charts.curve(key, history) for key in keys if key not in ("epoch", "step")]
    heads = "".join(f"<th>{escape(key)}</th>" for key in keys)
    rows = "".join(
        "<tr>" + "".join(f"<td>{row[key]:.4g}</td>" if key in row else "<td></td>" for key in keys) + "</tr>"
        for row in history
    )
    return (
        f"<div class='charts'>{''.join(drawn)}</div><details><summary>All {len(history)} "
        f"epochs</summary><div class='wide'><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
        "</details>"
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; media-src data:;
  style-src 'unsafe-inline'">
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
.pane, .single { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1.1rem;
  margin: .4rem 0; flex: 1 0 100%; min-width: 0; max-width: 100%; order: 2; }
.pane .single { border: 0; padding: 0; }
.pane .pane { border-width: 1px 0 0; border-radius: 0; padding: .8rem 0 0; }
.tabs { display: flex; flex-wrap: wrap; gap: .3rem; }
.tabs > input { position: absolute; opacity: 0; }
.tabs > label { padding: .35rem .8rem; border: 1px solid var(--line); border-radius: 999px; cursor: pointer;
  background: var(--card); overflow-wrap: anywhere; }
.tabs > input:checked + label { background: var(--main); border-color: var(--main); color: var(--card); }
.tabs > input:focus-visible + label { outline: 2px solid var(--ink); outline-offset: 1px; }
.tabs > .pane { display: none; }
{tabs}
@media (max-width: 640px) { .scores .plot { display: none; } }
@media print { .tabs > .pane { display: block; } }
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
.other { fill: none; stroke: var(--quiet); stroke-width: 1.2; }
.other-1 { stroke: var(--floor); }
.other-2 { stroke-dasharray: 6 3; }
.other-3 { stroke-dasharray: 2 2; }
.other-4 { stroke-dasharray: 8 3 2 3; }
.key { white-space: nowrap; border-bottom: 2px solid var(--quiet); margin-right: .3rem; }
.key.curve { border-color: var(--main); }
.key.other-1 { border-color: var(--floor); }
.key.other-2 { border-bottom-style: dashed; }
.key.other-3 { border-bottom-style: dotted; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); gap: 1rem;
  margin: 1rem 0; }
figure { margin: 0; }
.charts svg, .log { width: 100%; height: auto; }
.log { min-width: 640px; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(200px, 46%), 1fr)); gap: .8rem; }
.card { border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
.card figcaption { padding: .4rem .55rem .5rem; font-size: .8rem; line-height: 1.4; overflow-wrap: anywhere; }
.card figcaption b { color: var(--ink); }
.values { padding: .3rem .55rem 0; font-size: .8rem; line-height: 1.4; }
.values span { white-space: nowrap; margin-right: .4rem; color: var(--quiet); }
.values span b { color: var(--ink); }
.card audio { display: block; width: 100%; height: 2.2rem; margin-top: .3rem; }
.stack { position: relative; }
.stack img { display: block; width: 100%; height: auto; }
.stack .map { position: absolute; inset: 0; opacity: 0; }
.maps:checked ~ .grid .map { opacity: 1; }
.gallery > label { cursor: pointer; padding-left: .3rem; }
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""
