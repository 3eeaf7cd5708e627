"""Question: what do the field's loaders and the general formats cost for the same clips?

Method: pictures and sounds of a store are written once more as each way wants them, in a temporary folder, and read
from a warm page cache in this process, on one thread; batches of 64. The field's loaders are written from descriptions
of EZ-VSL's, SSL-Align's, SIRA-SSL's, JSA's and VCS's (`benchmarks.field_ways`). Beside each stands ours with the preset
of that method, from a store of the same clips: the same crops, sizes, colours, views and front-end, but drawn, cut and
resized by our loader, and uint8 where they give float32. The general formats (WebDataset, LitData, MosaicML streaming)
keep the JPEG and the finished float16 window, and do with them what the reference loader does: OpenCV, uint8 out. Those
whose packages are not installed (extra `bench`) are left out; MosaicML streaming asks for an older numpy and needs an
environment of its own. The ceiling is the bare JPEG decode of the same pictures.
A good answer: each of the field's 5 times our CPU time or more; the general formats not below ours.
"""

import importlib
import importlib.util
import io
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from rich.console import Console

from benchmarks.ceilings import bare_decode
from benchmarks.field_ways import WAYS, FieldWay, field_batches, read_clips, write_clips
from benchmarks.harness import measure, report, time_left_s
from benchmarks.loader_rate import sound_of, split_of, training, windows
from benchmarks.suite import missing
from configs.allocator import keep_freed_memory
from configs.errors import UserError
from configs.load import load_config, load_frontend
from configs.resolve import check_name
from configs.schema import DataConfig, component_config
from pipeline.augmentation import Clips, Recipe
from pipeline.batch import InputSpec
from pipeline.loader import Loader, build_loader
from pipeline.sampler import Draws, clip_keys
from pipeline.source import ClipSource
from pipeline.store import Store

QUICK: dict[str, Any] = {"ways": ["EZ-VSL"], "clips": 32}
NEEDS = ("scipy", "av", "lmdb", "nvidia.dali")
_BATCH = 64
_WINDOW_CLIPS = 128
_GENERAL_CLIPS = 512  # more, as some of these formats begin an epoch with work that a short window may hold or not
_SIZE_PX = 224
_AS_IN_TESTS = {"SSL-Align"}
"""One view, nothing drawn."""


def add_options(parser: Any) -> None:
    """The options of this benchmark."""
    parser.add_argument("--ways", nargs="+", help=f"of the field, of: {', '.join(WAYS)}; default: all")
    parser.add_argument("--clips", type=int, default=256, help="of the store that are used; default 256")
    parser.add_argument("--loader", default="dali", choices=["dali", "reference"], help="of ours; default dali")


def run(
    store: Path,
    rounds: int,
    out: Path | None,
    ways: list[str] | None = None,
    clips: int = 256,
    loader: str = "dali",
) -> None:
    """Measure on `store`, print, and append rows to `out`."""
    for name in ways or []:
        check_name("loader of the field named", name, list(WAYS))
    if clips < 4:
        raise UserError(f"--clips must be at least 4, found {clips}")
    if lacking := missing(NEEDS):
        raise UserError(f"field_loaders needs {', '.join(lacking)}: install the extra `bench` of this project")
    keep_freed_memory()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with ExitStack() as stack:
        opened = stack.enter_context(Store(store))
        split = split_of(opened)
        numbers = opened.select(split)[:clips].tolist()
        taken = list(read_clips(opened, numbers))
        batch = min(_BATCH, len(taken))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="whence-field-")))
        names = write_clips(folder / "files", taken)
        pack_clips(folder / "files", folder / "store")
        jpegs = [np.frombuffer(jpeg, np.uint8) for _, jpeg, _ in taken]
        floor: dict[str, Callable[[], int]] = {"bare decode": lambda: bare_decode(jpegs, _WINDOW_CLIPS)}
        notes = {"bare decode": "the floor of JPEGs"}
        facts = {"clips": len(taken), "batch": batch, "size_px": _SIZE_PX}
        for number, name in enumerate(ways or WAYS):
            if number and time_left_s() < 0:
                Console().print(f"left out: {name}, no time was left")
                continue
            dataset = WAYS[name](folder / "files", names)
            with closing(our_loader(name, folder / "store", batch, loader)) as ours:
                pair = {f"ours for {name}": windows(ours, batch, _WINDOW_CLIPS), name: field_windows(dataset, batch)}
                figures = measure("field_loaders", floor | pair, rounds, notes | {name: dataset.about})
            report(figures, "bare decode", out, facts | {"loader": loader}, name)
        if time_left_s() < 0:
            Console().print("left out: the general formats, no time was left")
            return
        data = training(store, sound_of(opened), batch_size=batch, image={"pixels": "jpeg"})
        general = _general(stack, data, split, folder, numbers, [(clip_id, jpeg) for clip_id, jpeg, _ in taken])
        figures = measure("field_loaders", floor | general, rounds, notes)
        report(figures, "bare decode", out, facts | {"loader": "reference"}, about="general formats")


Clip = tuple[str, bytes, np.ndarray]
"""Id, JPEG, the middle window of the spectrogram `(T, F)` float16."""


def pack_clips(folder: Path, store: Path) -> None:
    """The clips of `write_clips` as a store with all that the methods' presets ask for."""
    from preprocess.engines.local import Local
    from preprocess.layouts.manifest import Manifest
    from preprocess.neighbours import neighbours, write_neighbours
    from preprocess.options import PackConfig
    from preprocess.writer import pack

    frontends = tuple(load_frontend(name) for name in ("ez_vsl", "ssl_align", "sira", "jsa", "vcs"))
    config = PackConfig(frontends=frontends, flow="published", pixels="both", waveform=False)
    engine = Local(Local.Config(name="local", workers=0))  # type: ignore[call-arg]
    pack(Manifest(Manifest.Config(name="manifest"), folder), store, config, engine, dataset="field")
    with Store(store) as packed:
        vectors = np.random.default_rng(0).normal(size=(len(packed), 16)).astype(np.float32)
        k = min(8, len(packed) - 1)
        table = neighbours(vectors, packed, k, torch.device("cpu"))
        write_neighbours(packed, {"image": table, "audio": table}, k, {"image": "drawn", "audio": "drawn"})


def our_loader(name: str, store: Path, batch: int, loader: str) -> Loader:
    """Our loader on one thread, with the preset of a way of the field, over a store of `pack_clips`."""
    pixels = "raw" if name == "VCS" else "jpeg"
    options = {"dali": "threads", "reference": "workers"}
    given = [f"data.store={store}", f"data.batch_size={batch}", f"data.image.pixels={pixels}"]
    given.append(f"data.loader={{name: {loader}, {options[loader]}: 1}}")
    config = load_config([WAYS[name].preset, *given])
    if name in _AS_IN_TESTS:
        return build_loader(config.data.model_copy(update={"augment": {}}), InputSpec(), "train", train=True)
    return build_loader(config.data, config.model.inputs, "train", train=True)


def field_windows(dataset: FieldWay, batch: int) -> Callable[[], int]:
    """A variant that takes as many clips as those of our loaders, in another order each time."""
    loader = field_batches(dataset, batch, max(1, _WINDOW_CLIPS // batch))
    return lambda: sum(len(each["image"]) for each in loader)


def _general(
    stack: ExitStack, data: DataConfig, split: str, folder: Path, numbers: list[int], pictures: list[tuple[str, bytes]]
) -> dict[str, Callable[[], int]]:
    """Variants of the general formats, and of our loaders with the same work.

    numbers: of the clips in the store; pictures: their ids and JPEGs.
    """
    batch = data.batch_size
    variants: dict[str, Callable[[], int]] = {}
    loaders: dict[str, Any] = {}
    for name, option in (("reference", "workers"), ("dali", "threads")):
        chosen = component_config("pipeline.loaders", name, {option: 1})
        loaders[name] = build_loader(data.model_copy(update={"loader": chosen}), InputSpec(), split, train=True)
        stack.callback(loaders[name].close)
        variants[name] = windows(loaders[name], batch, _GENERAL_CLIPS)
    source: ClipSource = loaders["reference"].source
    sounds = (source.window_of(source.store.view(number).blob(source.sound_blob), -1) for number in numbers)
    clips = [(*each, sound) for each, sound in zip(pictures, sounds)]
    recipe = Recipe(data.augment, "data.augment")
    for name, package, make in (
        ("WebDataset", "webdataset", _webdataset),
        ("LitData", "litdata", _litdata),
        ("MosaicML streaming", "streaming", _mosaic),
    ):
        if importlib.util.find_spec(package):
            batches = _changed(make(folder / package, clips), clips, recipe, batch)
            variants[name] = _window(batches, max(1, _GENERAL_CLIPS // batch))
        else:
            Console().print(f"{name} is left out: the package {package} is not installed")
    return variants


def _window(batches: Iterator[Any], steps: int) -> Callable[[], int]:
    return lambda: sum(len(next(batches)[0]) for _ in range(steps))


def _changed(
    samples: Iterable[tuple[str, bytes, np.ndarray]], clips: list[Clip], recipe: Recipe, batch: int
) -> Iterator[Any]:
    """Batches of pictures, decoded, cropped, resized and flipped as the reference loader does it, and spectrograms."""
    sizes = {clip_id: Image.open(io.BytesIO(jpeg)).size for clip_id, jpeg, _ in clips}
    samples = iter(samples)
    crop_part = recipe.crop
    assert crop_part is not None
    for count in itertools.count():
        block = list(itertools.islice(samples, batch))
        draws = Draws(0, count, clip_keys([clip_id for clip_id, _, _ in block]))
        width, height = np.array([sizes[clip_id] for clip_id, _, _ in block]).T
        frames, (window, bins) = np.array([len(item[2]) for item in block]), block[0][2].shape
        known = Clips(width, height, frames, window, bins, _SIZE_PX, log_floor=0.0)
        crop, flip = crop_part.draw(draws, known), recipe.image[0].draw(draws, known)
        images = np.empty((len(block), _SIZE_PX, _SIZE_PX, 3), np.uint8)
        for row, (_, jpeg, _) in enumerate(block):
            picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
            assert picture is not None
            (y, x), (tall, wide) = crop["start"][row], crop["shape"][row]
            cv2.resize(picture[y : y + tall, x : x + wide], (_SIZE_PX, _SIZE_PX), dst=images[row])
            recipe.image[0].reference(images[row], {"on": flip["on"][row]})
        sounds = torch.from_numpy(np.stack([item for _, _, item in block])).float()
        sounds /= 12
        yield torch.from_numpy(images), sounds


def _webdataset(folder: Path, clips: list[Clip]) -> Iterator[Any]:
    webdataset: Any = importlib.import_module("webdataset")  # it does not tell a type checker what it exports
    folder.mkdir()
    with webdataset.TarWriter(str(folder / "clips.tar")) as tar:
        for clip_id, jpeg, window in clips:
            tar.write({"__key__": clip_id, "jpg": jpeg, "f16": window.tobytes()})
    shape = clips[0][2].shape
    data = webdataset.WebDataset(str(folder / "clips.tar"), shardshuffle=False).shuffle(200).repeat()
    for item in data:
        yield item["__key__"], item["jpg"], np.frombuffer(item["f16"], np.float16).reshape(shape)


def _litdata(folder: Path, clips: list[Clip]) -> Iterator[Any]:
    import litdata
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes="64MB")
    for number, (clip_id, jpeg, window) in enumerate(clips):
        writer[number] = {"id": clip_id, "jpg": jpeg, "sound": window}
    writer.done()
    writer.merge()
    data = litdata.StreamingDataset(str(folder), shuffle=True)
    for _ in itertools.count():
        for item in data:
            yield item["id"], item["jpg"], np.asarray(item["sound"])


def _mosaic(folder: Path, clips: list[Clip]) -> Iterator[Any]:
    import streaming

    shape = clips[0][2].shape
    with streaming.MDSWriter(out=str(folder), columns={"id": "str", "jpg": "bytes", "sound": "bytes"}) as writer:
        for clip_id, jpeg, window in clips:
            writer.write({"id": clip_id, "jpg": jpeg, "sound": window.tobytes()})
    data = streaming.StreamingDataset(local=str(folder), shuffle=True, batch_size=_BATCH)
    for _ in itertools.count():
        for item in data:
            yield item["id"], item["jpg"], np.frombuffer(item["sound"], np.float16).reshape(shape)
