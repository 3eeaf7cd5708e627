"""Charts as SVG text, without scripts: they follow the page's colours, light or dark."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np


def track(value: float, low: float, high: float, floors: Mapping[str, float], best: float | None) -> str:
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


def histogram(name: str, values: np.ndarray, blind: np.ndarray | None) -> str:
    """How often each value in 0 .. 1 occurs, in steps of 0.05; the blind map's as an outline."""
    edges = np.linspace(0, 1, 21)
    counts = np.histogram(values, edges)[0]
    outline = np.histogram(blind, edges)[0] if blind is not None else np.zeros_like(counts)
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
    half = left + 10 * step
    shown = f"<path class='outline' d='{line}V{height - bottom}'/>" if blind is not None else ""
    return (
        f"<figure><figcaption>{escape(name)} of {len(values)} clips{'; line: blind centre' if shown else ''}"
        f"</figcaption><svg viewBox='0 0 {width} {height}' role='img'>"
        f"<text x='{left - 5}' y='{y(top) + 4:.1f}' text-anchor='end'>{top}</text>"
        f"<text x='{left - 5}' y='{height - bottom}' text-anchor='end'>0</text>{bars}{shown}"
        f"<line class='ceiling' x1='{half:.1f}' x2='{half:.1f}' y1='8' y2='{height - bottom}'/>"
        f"<line class='axis' x1='{left}' x2='{width - 8}' y1='{height - bottom}' y2='{height - bottom}'/>"
        f"{_ticks(left, 20 * step, height)}</svg></figure>"
    )


def success(name: str, curves: Mapping[str, np.ndarray]) -> str:
    """Share of clips with at least a value, over that value: a curve a source, the first one as the method's own."""
    width, height, left, bottom = 360, 170, 34, 24
    span_x, span_y = width - left - 8, height - bottom - 12
    at = np.linspace(0, 1, 51)
    lines, names = [], []
    for number, (source, values) in enumerate(curves.items()):
        ordered = np.sort(values)
        share = (len(ordered) - np.searchsorted(ordered, at, side="left")) / len(ordered)
        points = " ".join(
            f"{left + span_x * x:.1f},{12 + span_y * (1 - y):.1f}" for x, y in zip(at.tolist(), share.tolist())
        )
        kind = "curve" if number == 0 else f"other other-{number}"
        lines.append(f"<polyline class='{kind}' points='{points}'><title>{escape(source)}</title></polyline>")
        names.append(f"<span class='key {kind}'>{escape(source)}</span>")
    half = left + span_x / 2
    return (
        f"<figure><figcaption>share of clips with at least this {escape(name)}: {' '.join(names)}</figcaption>"
        f"<svg viewBox='0 0 {width} {height}' role='img'><text x='{left - 5}' y='16' text-anchor='end'>1</text>"
        f"<text x='{left - 5}' y='{height - bottom}' text-anchor='end'>0</text>"
        f"<line class='ceiling' x1='{half:.1f}' x2='{half:.1f}' y1='8' y2='{height - bottom}'/>"
        f"<line class='axis' x1='{left}' x2='{width - 8}' y1='{height - bottom}' y2='{height - bottom}'/>"
        f"{''.join(lines)}{_ticks(left, span_x, height)}</svg></figure>"
    )


def _ticks(left: float, span: float, height: int) -> str:
    return "".join(
        f"<text x='{left + share * span:.1f}' y='{height - 6}' text-anchor='middle'>{share:g}</text>"
        for share in (0, 0.25, 0.5, 0.75, 1)
    )


def curve(key: str, history: Sequence[Mapping[str, Any]]) -> str:
    """One number over the epochs; nothing if it is nowhere finite."""
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
