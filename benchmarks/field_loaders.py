"""Question: what do the field's usual loader and the general formats cost for the same clips?

Method: the pictures and sounds of a store are written once more as each way wants them, in a temporary folder, and read
from a warm page cache in this process, on one thread; batches of 64. All crop, flip and give a spectrogram of 3 s. The
usual loader is written from the description of EZ-VSL's: Pillow, bicubic to 246 px, crop 224, flip, normalised float32;
the middle of the wav by PyAV, frame by frame; scipy's spectrogram on every visit. The general formats keep the JPEG and
the finished float16 window, and do with them what the reference loader does: OpenCV, uint8 out. Those whose packages
are not installed (extra `bench`) are left out; MosaicML streaming asks for an older numpy and needs an environment of
its own.
A good answer: the usual loader 10 times our CPU time or more; the general formats not below ours.
"""

import importlib.util
import io
import itertools
import tempfile
import wave
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from benchmarks.harness import measure, report
from benchmarks.loader_rate import bare_decode, sound_of, split_of, training, windows
from configs.errors import UserError
from model.allocator import keep_freed_memory
from pipeline.augmentation import Clips, Recipe
from pipeline.batch import InputSpec
from pipeline.loader import build_loader
from pipeline.sampler import Draws, clip_keys
from pipeline.store import Store

_BATCH = 64
_WINDOW_CLIPS = 512
_SECONDS = 3.0
_SIZE_PX = 224


def run(store: Path, rounds: int, out: Path | None) -> None:
    """Measure on `store`, print, and append rows to `out`."""
    if importlib.util.find_spec("scipy") is None:
        raise UserError("field_loaders needs scipy, which is in the extra `bench` of this project")
    keep_freed_memory()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with ExitStack() as stack:
        opened = stack.enter_context(Store(store))
        frontend, split = sound_of(opened), split_of(opened)
        numbers = opened.select(split)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="whence-field-")))
        clips = list(_clips(opened, numbers, frontend["name"]))
        data = training(store, frontend, batch_size=min(_BATCH, len(clips)), image={"pixels": "jpeg"})
        recipe = Recipe(data.augment, "data.augment")
        jpegs = [np.frombuffer(jpeg, np.uint8) for _, jpeg, _, _ in clips]
        variants: dict[str, Callable[[], int]] = {"bare decode": lambda: bare_decode(jpegs, _WINDOW_CLIPS)}
        for name in ("reference", "dali"):
            option = {"reference": "workers", "dali": "threads"}[name]
            ours = data.model_copy(
                update={"loader": training(store, frontend, loader={"name": name, option: 1}).loader}
            )
            loader = build_loader(ours, InputSpec(), split, train=True)
            stack.callback(loader.close)
            variants[name] = windows(loader, data.batch_size)
        variants["usual (EZ-VSL's)"] = _window(_usual(folder / "files", clips))
        for name, package, make in (
            ("WebDataset", "webdataset", _webdataset),
            ("LitData", "litdata", _litdata),
            ("MosaicML streaming", "streaming", _mosaic),
        ):
            if importlib.util.find_spec(package):
                variants[name] = _window(_changed(make(folder / package, clips), clips, recipe))
        notes = {"bare decode": "the floor", "usual (EZ-VSL's)": "Pillow, PyAV, scipy; float32 out"}
        figures = measure("field_loaders", variants, rounds, notes)
    report(figures, "reference", out, {"clips": len(clips), "batch": data.batch_size, "size_px": _SIZE_PX})


Clip = tuple[str, bytes, np.ndarray, np.ndarray]
"""Id, JPEG, the middle window of the spectrogram `(T, F)` float16, the whole waveform int16 at 16 kHz."""


def _clips(store: Store, numbers: np.ndarray, frontend: str) -> Iterator[Clip]:
    for number in numbers.tolist():
        view = store.view(number)
        if "frames/0" not in view or "waveform" not in view:
            raise UserError(f"{store.path} must hold JPEGs and waveforms for this benchmark; pack it with its defaults")
        rows = view.blob(f"spectrogram/{frontend}")
        wanted = min(len(rows), 200)
        window = rows[(len(rows) - wanted) // 2 :][:wanted]
        yield store.index["clip_id"][number], bytes(view.blob("frames/0")), window.copy(), view.blob("waveform").copy()


def _window(batches: Iterator[Any]) -> Callable[[], int]:
    """A variant that takes as many clips as those of our loaders."""
    return lambda: sum(len(next(batches)[0]) for _ in range(_WINDOW_CLIPS // _BATCH))


def _usual(folder: Path, clips: list[Clip]) -> Iterator[Any]:
    """Endless batches of (images, spectrograms) as the field's loaders make them."""
    from scipy import signal

    folder.mkdir()
    for clip_id, jpeg, _, waveform in clips:
        (folder / f"{clip_id}.jpg").write_bytes(jpeg)
        with wave.open(str(folder / f"{clip_id}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16000)
            file.writeframes(waveform.tobytes())
    change = transforms.Compose(
        [
            transforms.Resize(int(_SIZE_PX * 1.1), transforms.InterpolationMode.BICUBIC),
            transforms.RandomCrop(_SIZE_PX),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )

    def sound(path: Path) -> torch.Tensor:
        with av.open(str(path)) as container:
            stream = container.streams.audio[0]
            assert stream.duration is not None and stream.time_base is not None
            rate, length_s = stream.rate, float(stream.duration * stream.time_base)
            start_s = max(0.0, (length_s - _SECONDS) / 2)
            container.seek(int(start_s * av.time_base))
            resampler = av.AudioResampler(format="s16", layout="mono", rate=rate)
            pieces, kept, skip = [], 0, None
            for frame in container.decode(audio=0):
                for piece in resampler.resample(frame):
                    if skip is None:
                        assert frame.pts is not None and frame.time_base is not None
                        skip = round((start_s - float(frame.pts * frame.time_base)) * rate)
                    pieces.append(piece.to_ndarray()[0])
                    kept += len(pieces[-1])
                if kept >= _SECONDS * rate + (skip or 0):
                    break
        samples = np.concatenate(pieces)[max(0, skip or 0) :][: int(_SECONDS * rate)]
        samples = np.clip(samples / 32767, -1, 1)
        _, _, power = signal.spectrogram(samples, rate, nperseg=512, noverlap=274)
        return torch.from_numpy(np.log(power + 1e-7) / 12).float().unsqueeze(0)

    def samples_of() -> Iterator[Any]:
        for epoch in itertools.count():
            for row in np.random.default_rng(epoch).permutation(len(clips)):
                stem = folder / clips[row][0]
                picture = Image.open(f"{stem}.jpg").convert("RGB")
                yield change(picture), sound(Path(f"{stem}.wav"))

    return _stacked(samples_of(), torch.stack)


def _changed(samples: Iterable[tuple[str, bytes, np.ndarray]], clips: list[Clip], recipe: Recipe) -> Iterator[Any]:
    """Batches of pictures, decoded, cropped, resized and flipped as the reference loader does it, and spectrograms."""
    sizes = {clip_id: Image.open(io.BytesIO(jpeg)).size for clip_id, jpeg, _, _ in clips}
    samples = iter(samples)
    crop_part = recipe.crop
    assert crop_part is not None
    for count in itertools.count():
        block = list(itertools.islice(samples, _BATCH))
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
    import webdataset

    folder.mkdir()
    with webdataset.TarWriter(str(folder / "clips.tar")) as tar:
        for clip_id, jpeg, window, _ in clips:
            tar.write({"__key__": clip_id, "jpg": jpeg, "f16": window.tobytes()})
    shape = clips[0][2].shape
    data = webdataset.WebDataset(str(folder / "clips.tar"), shardshuffle=False).shuffle(200).repeat()
    for item in data:
        yield item["__key__"], item["jpg"], np.frombuffer(item["f16"], np.float16).reshape(shape)


def _litdata(folder: Path, clips: list[Clip]) -> Iterator[Any]:
    import litdata
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes="64MB")
    for number, (clip_id, jpeg, window, _) in enumerate(clips):
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
        for clip_id, jpeg, window, _ in clips:
            writer.write({"id": clip_id, "jpg": jpeg, "sound": window.tobytes()})
    data = streaming.StreamingDataset(local=str(folder), shuffle=True, batch_size=_BATCH)
    for _ in itertools.count():
        for item in data:
            yield item["id"], item["jpg"], np.frombuffer(item["sound"], np.float16).reshape(shape)


def _stacked(samples: Iterator[Any], stack: Any) -> Iterator[Any]:
    while block := list(itertools.islice(samples, _BATCH)):
        yield tuple(stack(column) for column in zip(*block))
