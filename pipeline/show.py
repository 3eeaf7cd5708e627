"""A sheet of what a model sees: clips as stored, as a test gives them and as epochs of training do, by the run's own
loader.
"""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from configs.errors import UserError
from configs.schema import DataConfig, RunConfig
from pipeline.batch import Batch, InputSpec, Truth
from pipeline.excerpts import Excerpts
from pipeline.loader import Loader, build_loader
from pipeline.outline import outline
from pipeline.sampler import epoch_order
from pipeline.store import Store, training_numbers

EPOCHS = 3
"""Of training that are shown."""

_TESTED = "as in a test"
_FORMATS = (".png", ".jpg", ".pdf", ".svg")
_SIDE_IN, _SOUND_IN, _GAP_IN, _MARGIN_IN, _TITLE_IN, _LINE_IN = 1.9, 0.8, 0.06, 0.25, 0.3, 0.14


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A clip. stored: `(H, W, 3)` uint8 RGB. about: lines of text. columns: title -> row title -> what a batch of this
    clip alone holds, without the batch axis.
    """

    stored: np.ndarray
    truth: Truth | None
    about: list[str]
    columns: dict[str, dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """facts: what the inputs are made of. numbers: row title -> shape, least, mean, greatest value and deviation."""

    clips: list[Shown]
    facts: dict[str, str]
    numbers: dict[str, tuple[str, ...]]


def collect(config: RunConfig, split: str, count: int) -> Sheet:
    """`count` clips of a split of `config.data.store` as the loader of the config makes them, drawn by its seed.

    The split to train on is shown as in a test and in the first epochs: what a training of this config and seed gets.
    Others are shown as in a test, with their truth.
    Raises: UserError as `build_loader`, and for a loader that makes its batches up.
    """
    data, spec = config.data, config.model.inputs
    assert data.store is not None
    train = split == data.train_split
    device = torch.device("cuda" if config.train.device != "cpu" and torch.cuda.is_available() else "cpu")
    where: dict[str, Any] = {"seed": config.seed, "device": device, "batch_size": 1}
    with Store(data.store) as store:
        ids = [store.index["clip_id"][number] for number in store.select(split)]
        numbers = training_numbers(store, split, data.exclude if train else None)
        used = [store.index["clip_id"][number] for number in numbers]
        order = epoch_order(config.seed, 0, len(used), shuffle=True)
        chosen = [used[row] for row in order[:count]]

        columns: dict[str, dict[str, dict[str, Tensor]]] = {name: {} for name in chosen}
        tested = build_loader(data, spec, split, train=False, **where)
        try:
            described = tested.describe()
            for name in chosen:
                batch = _batch_at(tested, 0, ids.index(name), name)
                columns[name][_TESTED] = _inputs(batch, spec)
        finally:
            tested.close()
        if train:
            trained = build_loader(data, spec, split, train=True, **where)
            try:
                described = trained.describe()
                for epoch in range(EPOCHS):
                    order = epoch_order(config.seed, epoch, len(used), shuffle=True)
                    for name in chosen:
                        place = int(np.flatnonzero(order == used.index(name))[0])
                        batch = _batch_at(trained, epoch, place, name)
                        columns[name][f"epoch {epoch}"] = _inputs(batch, spec)
            finally:
                trained.close()

        excerpts = Excerpts(store, data.image)
        clips = []
        for name in chosen:
            stored, truth = excerpts.picture(name), excerpts.truth(name)
            about = [name, f"{stored.shape[1]} x {stored.shape[0]} px as stored"]
            if truth is not None and truth.label:
                about.append(truth.label)
            clips.append(Shown(stored=stored, truth=truth, about=about, columns=columns[name]))
        flow = store.manifest.get("flow") if "flow" in spec.fields else None
    facts = {
        "clips": f"{len(chosen)} of the {len(used):,} of split '{split}', by seed {config.seed}",
        "loader": ", ".join(f"{key} {value}" if key != "loader" else str(value) for key, value in described.items()),
        **_data_facts(data, train),
    }
    if flow is not None:
        facts["flow"] = "published codes, 0 .. 1" if flow["encoding"] == "published" else "px of the stored frame"
    return Sheet(clips=clips, facts=facts, numbers=_numbers(clips))


def _batch_at(loader: Loader, epoch: int, place: int, clip_id: str) -> Batch:
    loader.load_state_dict({"epoch": epoch, "samples": place})
    batch = next(iter(loader))
    if batch.clip_id != [clip_id]:
        raise UserError(
            f"the loader '{loader.describe()['loader']}' does not give the clips of the split in their order; show "
            "another one, as with data.loader=reference"
        )
    return batch


def _inputs(batch: Batch, spec: InputSpec) -> dict[str, Tensor]:
    """Row title -> the only clip's tensor, on the CPU: the clip's own view, its others, its neighbours."""
    found = {"picture": batch.image, "sound": batch.spectrogram}
    if batch.flow is not None:
        found["flow"] = batch.flow
    others = [
        (number > own, number - own if number > own else number, kind, values)
        for kind, own, more in (
            ("picture", spec.image_views, batch.more_images),
            ("sound", spec.audio_views, batch.more_spectrograms),
        )
        for number, values in enumerate(more, start=2)
    ]
    for neighbour, number, kind, values in sorted(others, key=lambda each: each[:3]):
        found[f"{'neighbour' if neighbour else 'view'} {number}, {kind}"] = values
    return {title: values[0].cpu() for title, values in found.items()}


def _data_facts(data: DataConfig, train: bool) -> dict[str, str]:
    image, frontend = data.image, data.audio.frontend
    frames = frontend.window_frames(data.audio.duration_s)
    bins = f"{frontend.bins} {'mel' if frontend.mel_bins else 'linear'} bins"
    scaled = f"(ln(power) + {frontend.offset:g}) / {frontend.divisor:g}"
    facts = {
        "picture": f"{image.size_px} x {image.size_px} px, {image.frame} frame, {image.interpolation}"
        f"{', antialiased' if image.antialias else ''}, {image.test_fit} in tests",
        "sound": f"front-end {frontend.name}: {data.audio.duration_s:g} s at {frontend.sample_rate_hz} Hz, {bins} x "
        f"{frames} frames of {1000 * frontend.hop / frontend.sample_rate_hz:.4g} ms",
        "values": f"{scaled}; silence is {_silence(data):.4g}",
    }
    if train:
        facts["augmentation"] = _options(data.augment)
        facts |= {f"of view {number}": _options(parts) for number, parts in enumerate(data.views, start=2)}
    return facts


def _silence(data: DataConfig) -> float:
    frontend = data.audio.frontend
    return (float(np.log(frontend.floor)) + frontend.offset) / frontend.divisor


def _options(parts: dict[str, Any]) -> str:
    texts = []
    for name, part in parts.items():
        options = ", ".join(f"{key} {value}" for key, value in part.model_dump(exclude={"name"}).items())
        texts.append(f"{name} ({options})" if options else name)
    return "; ".join(texts) or "none"


def _numbers(clips: list[Shown]) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[Tensor]] = {}
    for clip in clips:
        for title, inputs in clip.columns.items():
            for name, values in inputs.items():
                found.setdefault(f"{name}, {'test' if title == _TESTED else 'training'}", []).append(values)
    numbers = {}
    for name, parts in found.items():
        values = torch.stack(parts).double()
        each = (values.min(), values.mean(), values.max(), values.std())
        numbers[name] = (" x ".join(map(str, parts[0].shape)), *(f"{float(value):.4g}" for value in each))
    return numbers


def check_name(path: Path) -> None:
    """Raises: UserError if a sheet cannot be written under this name."""
    if path.suffix.lower() not in _FORMATS:
        raise UserError(f"a sheet is written as {', '.join(_FORMATS)}; '{path}' has another ending")
    if not path.parent.is_dir():
        raise UserError(f"no folder {path.parent} to write {path.name} to")


def write_sheet(sheet: Sheet, path: Path) -> None:
    """Draw it: a block of rows a clip, a column each way to see it, the facts below.

    Raises: UserError as `check_name`, and if the file cannot be written.
    """
    check_name(path)
    columns = list(sheet.clips[0].columns)
    rows = list(max(sheet.clips[0].columns.values(), key=len))
    heights = [_SOUND_IN if name.endswith("sound") else _SIDE_IN for name in rows]
    tops = [_TITLE_IN + sum(heights[:row]) + _GAP_IN * row for row in range(len(rows))]
    block = _TITLE_IN + sum(heights) + _GAP_IN * len(rows)
    width = 2 * _GAP_IN + _MARGIN_IN + (_SIDE_IN + _GAP_IN) * (1 + len(columns))
    wrapped = [textwrap.wrap(line, int(13 * width), subsequent_indent="    ") for line in _lines(sheet)]
    lines = [part for parts in wrapped for part in parts]
    height = block * len(sheet.clips) + _LINE_IN * (len(lines) + 2)
    figure = Figure(figsize=(width, height))

    def axes(left: float, top: float, tall: float) -> Any:
        """Of a picture's width; everything in inches from the upper left corner."""
        place = (left / width, 1 - (top + tall) / height, _SIDE_IN / width, tall / height)
        return figure.add_axes(place, xticks=[], yticks=[])

    loudness = _loudness(sheet)
    for number, clip in enumerate(sheet.clips):
        stored = axes(_GAP_IN, number * block + _TITLE_IN, _SIDE_IN)
        stored.imshow(_outlined(clip.stored, clip.truth))
        stored.set_anchor("N")
        stored.set_title("as stored", fontsize=8)
        about = axes(_GAP_IN, number * block + tops[1], heights[1])
        about.set_axis_off()
        about.text(0, 1, "\n".join(clip.about), fontsize=7, va="top")
        fastest = max((float(_speed(each).max()) for each in _all(clip, "flow")), default=0.0)
        for row, name in enumerate(rows):
            top = number * block + tops[row]
            middle = ((2 * _GAP_IN + _SIDE_IN + _MARGIN_IN / 2) / width, 1 - (top + heights[row] / 2) / height)
            figure.text(*middle, name, rotation=90, fontsize=7, ha="center", va="center")
            for column, title in enumerate(columns, start=1):
                values = clip.columns[title].get(name)
                if values is None:
                    continue
                shown = axes(_GAP_IN + _MARGIN_IN + column * (_SIDE_IN + _GAP_IN), top, heights[row])
                if row == 0:
                    shown.set_title(title, fontsize=8)
                if name.endswith("sound"):
                    shown.imshow(
                        values[0].numpy(),
                        origin="lower",
                        aspect="auto",
                        cmap="magma",
                        vmin=loudness[0],
                        vmax=loudness[1],
                    )
                elif name == "flow":
                    shown.imshow(_coloured(values, fastest))
                else:
                    picture = values.permute(1, 2, 0).numpy()
                    shown.imshow(_outlined(picture, clip.truth if title == _TESTED else None))
    figure.text(_GAP_IN / width, _LINE_IN / height, "\n".join(lines), fontsize=7, family="monospace", va="bottom")
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def _lines(sheet: Sheet) -> Iterator[str]:
    for name, text in sheet.facts.items():
        yield f"{name}: {text}"
    for name, (shape, least, mean, greatest, deviation) in sheet.numbers.items():
        yield f"{name}: {shape}, from {least} to {greatest}, mean {mean}, deviation {deviation}"


def _all(clip: Shown, kind: str) -> list[Tensor]:
    return [values for inputs in clip.columns.values() for name, values in inputs.items() if name.endswith(kind)]


def _loudness(sheet: Sheet) -> tuple[float, float]:
    """The least and the greatest value of all sounds: they share their colours."""
    sounds = [values for clip in sheet.clips for values in _all(clip, "sound")]
    return min(float(each.min()) for each in sounds), max(float(each.max()) for each in sounds)


def _outlined(picture: np.ndarray, truth: Truth | None) -> np.ndarray:
    return outline(np.ascontiguousarray(picture[:, :, ::-1]), truth)[:, :, ::-1]


def _speed(flow: Tensor) -> np.ndarray:
    """`(H, W)` of a flow `(2, H, W)`."""
    return np.hypot(*flow.numpy())


def _coloured(flow: Tensor, fastest: float) -> np.ndarray:
    """`(H, W, 3)` RGB of a flow `(2, H, W)`: hue as its direction, the brighter the nearer to `fastest`."""
    right, down = flow.numpy()
    angle = np.rad2deg(np.arctan2(down, right)) % 360
    bright = _speed(flow) / max(fastest, 1e-12)
    hsv = np.stack([angle, np.ones_like(angle), bright], axis=2).astype(np.float32)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
