"""What is in a store, and what of it may be wrong: `quality.csv` with a row a clip, and `report.html` to look at."""

import base64
import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from html import escape
from pathlib import Path
from typing import Any

import lmdb
import msgpack
import numpy as np

from configs.errors import UserError
from configs.resolve import check_name
from pipeline.record import RecordView
from pipeline.store import DATA, INDEX, key_of, read_manifest
from preprocess.files import write_bytes
from preprocess.quality import CLIP_FLAGS, QUALITY, STORE_FLAGS, Quality, clip_flags, earlier_alike
from preprocess.refusals import REASONS
from preprocess.selection import is_test_split

CSV = "quality.csv"
HTML = "report.html"
FLAGS = {**CLIP_FLAGS, **STORE_FLAGS}
COLUMNS = (
    *("clip_id", "split", "flags", *STORE_FLAGS, "duration_s", "asked_s", "sample_rate_hz", "channels", "rms_dbfs"),
    *("clipped_share", "width", "height", "rotated", "motion", "deviation", "picture", "sound"),
)
"""Columns of `quality.csv`: flags, separated by spaces; for each flag of `STORE_FLAGS` the earlier clip; the measures
of `preprocess.quality.Quality`. What is not known is empty."""

_SHOWN = 8  # clips a flag
_THUMBNAIL_PX = 112
_BARS = 24
_CATEGORIES = 12


@dataclass(kw_only=True)
class Judged:
    """The clips of a store in stored order. place: shard and number in it; flagged: flag -> `(n,)` bool; earlier: as
    `earlier_alike`.
    """

    clip_id: list[str]
    split: list[str]
    place: list[tuple[str, int]]
    quality: Quality
    flagged: dict[str, np.ndarray]
    earlier: dict[str, np.ndarray]


def judge(store: Path) -> Judged:
    """The measures and flags of all clips of a store.

    Of two doubles the later one is flagged, in this order: test splits first, then by clip id; so that of a training
    clip and its double in a test split the training clip is the one to leave out.
    Raises: UserError if there is no finished store, or the measures of a shard are missing or damaged.
    """
    manifest = read_manifest(store)
    columns: dict[str, list[np.ndarray]] = {}
    clip_id: list[str] = []
    split: list[str] = []
    place: list[tuple[str, int]] = []
    names = [field.name for field in fields(Quality)]
    for shard in manifest["shards"]:
        file = store / shard["name"] / QUALITY
        data = file.with_name(DATA)
        if not data.is_file() or data.stat().st_size != shard["bytes"]:
            raise UserError(f"{data} is missing or cut short; run `python -m preprocess verify {store}`")
        try:
            index = msgpack.unpackb(file.with_name(INDEX).read_bytes())
            clip_id += index["clip_id"]
            split += index["split"]
            place += [(shard["name"], number) for number in range(shard["clips"])]
            found = msgpack.unpackb(file.read_bytes())
            lengths = {len(found[name]) for name in names} if shard["clips"] else {0}
        except (OSError, ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
            raise UserError(
                f"{file} or {INDEX} beside it is missing or damaged ({error!r}); copy the store again, or pack it anew"
            ) from error
        if lengths != {shard["clips"]}:
            raise UserError(
                f"{file} measures {lengths} clips, the manifest says {shard['clips']}; copy the store again"
            )
        for name in names if shard["clips"] else ():
            columns.setdefault(name, []).append(np.array(found[name], _dtype(name)))
    quality = Quality(**{name: np.concatenate(parts) for name, parts in columns.items()})
    order = np.array(sorted(range(len(clip_id)), key=lambda n: (not is_test_split(split[n]), clip_id[n])))
    in_order = earlier_alike(Quality(**{name: values[order] for name, values in vars(quality).items()}))
    earlier = {}
    for name, found in in_order.items():
        earlier[name] = np.full(len(order), -1)
        earlier[name][order] = np.where(found >= 0, order[found], -1)
    waveform = manifest["waveform"]
    flagged = clip_flags(
        quality, manifest["frames"]["short_side_px"], waveform["sample_rate_hz"] if waveform is not None else 0
    )
    flagged |= {name: numbers >= 0 for name, numbers in earlier.items()}
    return Judged(clip_id=clip_id, split=split, place=place, quality=quality, flagged=flagged, earlier=earlier)


def _dtype(name: str) -> type:
    if name in ("picture", "picture_look", "sound", "sound_run"):
        return np.uint64
    if name in ("width", "height", "sample_rate_hz", "channels"):
        return np.int64
    return np.bool_ if name == "rotated" else np.float64


def ids_with(judged: Judged, flags: Sequence[str]) -> list[str]:
    """Ids of the clips with any of the flags, sorted. Raises: UserError for a flag that there is not."""
    for name in flags:
        check_name("flag", name, list(FLAGS))
    chosen = np.logical_or.reduce([judged.flagged[name] for name in flags])
    return sorted(judged.clip_id[number] for number in np.flatnonzero(chosen))


def write_report(store: Path) -> Judged:
    """Write `quality.csv` and `report.html` into a store. Raises: UserError, as `judge` does."""
    judged = judge(store)
    temporary = store / f"{CSV}.tmp"
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(_rows(judged))
        temporary.replace(store / CSV)
        write_bytes(store / HTML, _page(store, judged).encode())
    except OSError as error:
        raise UserError(f"cannot write {error.filename or store}: {error.strerror}") from error
    return judged


def _rows(judged: Judged) -> Iterator[list[Any]]:
    quality = judged.quality
    for n in np.argsort(np.array(judged.clip_id, object), kind="stable"):
        heard = quality.sample_rate_hz[n] > 0
        yield [
            judged.clip_id[n],
            judged.split[n],
            " ".join(name for name in FLAGS if judged.flagged[name][n]),
            *(judged.clip_id[found[n]] if found[n] >= 0 else "" for found in judged.earlier.values()),
            _number(quality.duration_s[n], 3),
            _number(quality.asked_s[n], 3),
            quality.sample_rate_hz[n] if heard else "",
            quality.channels[n] if heard else "",
            _number(quality.rms_dbfs[n], 1),
            _number(quality.clipped_share[n], 6),
            quality.width[n],
            quality.height[n],
            int(quality.rotated[n]),
            _number(quality.motion[n], 4),
            _number(quality.deviation[n], 1),
            f"{quality.picture[n]:016x}",
            f"{quality.sound[n]:016x}" if heard else "",
        ]


def _number(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


# -- the page --------------------------------------------------------------------------------------------------------

_STYLE = """
:root{color-scheme:light dark;--line:#8884;--bar:#3b7dd8;--soft:#8882}
body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:62rem;padding:1rem}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin:2rem 0 .5rem}p{margin:.4rem 0}
.wide{overflow-x:auto}table{border-collapse:collapse}
td,th{padding:.2rem .6rem;border-bottom:1px solid var(--line);text-align:right;font-variant-numeric:tabular-nums}
td:first-child,th:first-child,td.text{text-align:left}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(17rem,1fr));gap:1rem}
figure{margin:0}figcaption{font-size:.85rem}svg{width:100%;height:auto}svg rect{fill:var(--bar)}
svg text{font:9px system-ui,sans-serif;fill:currentColor}
.clips{display:flex;flex-wrap:wrap;gap:.6rem}.clips figure{width:7rem;overflow-wrap:anywhere}
.clips img{max-width:100%;display:block;background:var(--soft)}.clips figcaption{font-size:.7rem;line-height:1.25}
.none{opacity:.65}
"""


def _page(store: Path, judged: Judged) -> str:
    manifest = read_manifest(store)
    quality = judged.quality
    count = len(judged.clip_id)
    size = sum(shard["bytes"] for shard in manifest["shards"])
    refused = "".join(
        f"<tr><td>{escape(name)}</td><td>{number:,}</td><td class=text>{escape(REASONS.get(name, ''))}</td></tr>"
        for name, number in manifest["refused"].items()
    )
    heard = quality.sample_rate_hz > 0
    moving = ~np.isnan(quality.motion)
    short_side = np.minimum(quality.width, quality.height)
    charts = [
        _histogram("duration of the sound, s", quality.duration_s),
        _histogram("loudness, dB of full scale (RMS)", quality.rms_dbfs[heard]),
        _categories("sample rate of the file, Hz", quality.sample_rate_hz[heard]),
        _categories("channels of the file", quality.channels[heard]),
        _categories("short side of the picture before packing, px", short_side),
        _histogram("width over height", quality.width / quality.height),
        _histogram("share of the picture that changes", quality.motion[moving]),
        _histogram("contrast of the picture, levels", quality.deviation),
    ]
    unknown = [
        f"{int((~known).sum()):,} clips: {text}"
        for known, text in (
            (
                moving,
                "whether the picture moves is not known; fewer than three pictures half a second apart were decoded",
            ),
            (heard, "the sound was not measured; they came as spectrograms"),
            (~np.isnan(quality.asked_s), "whether the sound is too short is not known; the input gives no duration"),
        )
        if not known.all()
    ]
    sections = "".join(_section(store, judged, name) for name in FLAGS)
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>{escape(manifest['dataset'])}: quality</title><style>{_STYLE}</style>"
        f"<h1>{escape(manifest['dataset'])}</h1>"
        f"<p>{count:,} of {manifest['expected']:,} clips are packed, {size / 2**20:,.1f} MiB, "
        f"{size / count / 1024:,.0f} KiB a clip. Measures of every clip: <code>{CSV}</code>.</p>"
        + (f"<h2>Refused</h2><div class=wide><table>{refused}</table></div>" if refused else "")
        + f"<h2>Flags</h2><div class=wide>{_flag_table(judged)}</div>"
        + "<p>Nothing is left out by a flag unless you ask: <code>pack --drop FLAG</code> refuses while packing, "
        "<code>python -m preprocess report STORE --list FLAG</code> prints the ids.</p>"
        + "".join(f"<p>{text}.</p>" for text in unknown)
        + f"<h2>Measures</h2><div class=charts>{''.join(charts)}</div>"
        + sections
        + "</html>\n"
    )


def _flag_table(judged: Judged) -> str:
    splits = sorted(set(judged.split))
    of_split = {name: np.array([split == name for split in judged.split]) for name in splits}
    head = "".join(f"<th>{escape(name)}</th>" for name in splits)
    rows = [f"<tr><th>flag</th>{head}<th>all</th><th style='text-align:left'>meaning</th></tr>"]
    for name, meaning in FLAGS.items():
        marks = judged.flagged[name]
        cells = "".join(f"<td>{int((marks & of_split[split]).sum()):,}</td>" for split in splits)
        label = f"<a href=#{name}>{name}</a>" if marks.any() else name
        style = "" if marks.any() else " class=none"
        rows.append(
            f"<tr{style}><td>{label}</td>{cells}<td>{int(marks.sum()):,}</td><td class=text>{meaning}</td></tr>"
        )
    totals = "".join(f"<td>{int(of_split[split].sum()):,}</td>" for split in splits)
    rows.append(f"<tr><td>clips</td>{totals}<td>{len(judged.clip_id):,}</td><td></td></tr>")
    return f"<table>{''.join(rows)}</table>"


def _section(store: Path, judged: Judged, flag: str) -> str:
    """Some clips with a flag, spread evenly over their ids; doubles beside the clip that they are doubles of."""
    numbers = sorted(np.flatnonzero(judged.flagged[flag]).tolist(), key=judged.clip_id.__getitem__)
    if not numbers:
        return ""
    shown = [numbers[place * len(numbers) // min(_SHOWN, len(numbers))] for place in range(min(_SHOWN, len(numbers)))]
    figures = []
    for number in shown:
        if flag in judged.earlier:
            first = int(judged.earlier[flag][number])
            figures += [_thumbnail(store, judged, first, ""), _thumbnail(store, judged, number, "as the one before")]
        else:
            figures.append(_thumbnail(store, judged, number, ""))
    head = f"<h2 id={flag}>{flag}: {len(numbers):,}</h2><p>{FLAGS[flag]}</p>"
    return f"{head}<div class=clips>{''.join(figures)}</div>"


def _thumbnail(store: Path, judged: Judged, number: int, note: str) -> str:
    shard, place = judged.place[number]
    import cv2  # here, because it takes longer to load than the commands that write no thumbnail take

    pixels = _first_picture(store / shard, place)
    if pixels is None:
        raise UserError(
            f"the picture of clip {judged.clip_id[number]} in {store / shard} cannot be read; run "
            f"`python -m preprocess verify {store}`"
        )
    scale = _THUMBNAIL_PX / max(pixels.shape[:2])
    size = [max(1, round(side * scale)) for side in pixels.shape[1::-1]]
    _, small = cv2.imencode(
        ".jpg", cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), [cv2.IMWRITE_JPEG_QUALITY, 70]
    )
    quality = judged.quality
    facts = [f"{quality.duration_s[number]:.1f} s", f"{quality.width[number]} x {quality.height[number]}"]
    if quality.sample_rate_hz[number]:
        facts.append(f"{quality.rms_dbfs[number]:.0f} dB")
    text = "<br>".join(
        escape(line) for line in (judged.clip_id[number], judged.split[number], ", ".join(facts), note) if line
    )
    data = base64.b64encode(small.tobytes()).decode()
    return f'<figure><img alt="" src="data:image/jpeg;base64,{data}"><figcaption>{text}</figcaption></figure>'


def _first_picture(shard: Path, place: int) -> np.ndarray | None:
    """`(H, W, 3)` uint8 BGR, or None if the shard is damaged there."""
    import cv2

    try:
        with lmdb.open(str(shard), readonly=True, lock=False, create=False) as environment:
            with environment.begin() as transaction:
                view = RecordView(transaction.get(key_of(place)) or b"")
            jpeg = view.get("frames/0")
            return view.blob("raw/0")[:, :, ::-1] if jpeg is None else cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
    except (lmdb.Error, KeyError, ValueError):
        return None


def _histogram(title: str, values: np.ndarray) -> str:
    if not len(values):
        return ""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return _bars(title, [(f"{low:g}", len(values))])
    counts, edges = np.histogram(values, _BARS, (low, high))
    return _bars(title, [(f"{edge:.3g}", int(number)) for edge, number in zip(edges, counts)], last=f"{high:.3g}")


def _categories(title: str, values: np.ndarray) -> str:
    if not len(values):
        return ""
    found, counts = np.unique(values, return_counts=True)
    if len(found) > _CATEGORIES:
        return _histogram(title, values)
    return _bars(title, [(f"{value:g}", int(number)) for value, number in zip(found, counts)], each=True)


def _bars(title: str, bars: list[tuple[str, int]], last: str = "", each: bool = False) -> str:
    """Bars with the number of clips as their height; labels under each, or under the first and (`last`) the last."""
    width, height = 300, 90
    step = width / len(bars)
    highest = max(number for _, number in bars)
    parts = [f"<text x=0 y=9>{highest:,}</text>"]
    for place, (label, number) in enumerate(bars):
        tall = (height - 12) * number / highest
        parts.append(
            f"<rect x={place * step:.1f} y={height - tall:.1f} width={max(step - 1, 1):.1f} height={tall:.1f}>"
            f"<title>{label}: {number:,}</title></rect>"
        )
        if each or place == 0:
            anchor, x = ("middle", (place + 0.5) * step) if each else ("start", 0)
            parts.append(f"<text x={x:.1f} y={height + 10} text-anchor={anchor}>{label}</text>")
    if last:
        parts.append(f"<text x={width} y={height + 10} text-anchor=end>{last}</text>")
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {width} {height + 14}" role=img>'
        f"{''.join(parts)}</svg></figure>"
    )
