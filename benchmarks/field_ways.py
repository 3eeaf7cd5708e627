"""How the released systems read a training clip, rewritten from descriptions of their code: for comparison.

Each class is a data set of PyTorch over the files that the system wants; an item holds fields of a `Batch`, pictures
standardised in float32. `write_clips` writes plain pictures, sounds and flow once; each class makes of them what its
system prepares beforehand. Everything is read and computed clip by clip on every visit, with Pillow and scipy.
"""

import json
import wave
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms.functional import normalize, resize, to_tensor

from configs.errors import UserError
from model.standardise import IMAGENET

_SIZE_PX = 224
_BICUBIC = transforms.InterpolationMode.BICUBIC
RATE_HZ = 16_000


def read_clips(store: Any, numbers: Iterable[int]) -> Iterator[tuple[str, bytes, np.ndarray]]:
    """Clips of a `pipeline.store.Store`, copied out of it: id, JPEG, waveform `(n,)` int16 at `RATE_HZ`.

    Raises: UserError if it holds no JPEGs or no such waveforms.
    """
    for number in numbers:
        view = store.view(int(number))
        rate_hz = (store.manifest.get("waveform") or {}).get("sample_rate_hz", RATE_HZ)
        if "frames/0" not in view or "waveform" not in view or rate_hz != RATE_HZ:
            raise UserError(f"{store.path} must hold JPEGs and waveforms at {RATE_HZ} Hz: pack it with the defaults")
        yield store.index["clip_id"][number], bytes(view.blob("frames/0")), view.blob("waveform").copy()


def write_clips(folder: Path, clips: Iterable[tuple[str, bytes, np.ndarray]]) -> list[str]:
    """Write clips (id, JPEG, waveform int16 at `RATE_HZ`) as files, and a manifest for `preprocess pack`; their ids.

    The flow is that from the picture to itself moved by a few pixels.
    """
    import cv2  # here, as all that a machine with a GPU may lack

    from preprocess.flow import coded, flow_between

    names, lines = [], []
    for kind in ("frames", "audio", "flow_x", "flow_y"):
        (folder / kind).mkdir(parents=True)
    for clip_id, jpeg, waveform in clips:
        files = {"image": f"frames/{clip_id}.jpg", "audio": f"audio/{clip_id}.wav"}
        files |= {axis: f"{axis}/{clip_id}.jpg" for axis in ("flow_x", "flow_y")}
        picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None
        flow = coded(flow_between(picture, np.roll(picture, (2, 3), (0, 1))), "published")
        for name, data in zip(("image", "flow_x", "flow_y"), (jpeg, *flow)):
            (folder / files[name]).write_bytes(data)
        _write_wav(folder / files["audio"], waveform, RATE_HZ)
        names.append(clip_id)
        lines.append(json.dumps({"clip_id": clip_id, **files}) + "\n")
    (folder / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")
    return names


class FieldWay(torch.utils.data.Dataset, ABC):
    """A system's data set. preset: ours with the same work. about: what is done for a clip, in a few words."""

    preset: ClassVar[str]
    about: ClassVar[str]

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder, self.names = folder, names
        self.prepare()

    def prepare(self) -> None:
        """Make the files that the system makes before training."""

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def __getitem__(self, row: int) -> dict[str, Any]:
        """The fields of a clip's item."""

    def picture(self, row: int, kind: str = "frames") -> Image.Image:
        return Image.open(self.folder / kind / f"{self.names[row]}.jpg").convert("RGB" if kind == "frames" else "L")


def _finished(*changes: Any) -> transforms.Compose:
    return transforms.Compose([*changes, transforms.ToTensor(), transforms.Normalize(*IMAGENET)])


class EZVSL(FieldWay):
    preset = "ez_vsl_vggsound144k"
    about = "PyAV frame by frame, middle 3 s"
    change = _finished(
        transforms.Resize(int(_SIZE_PX * 1.1), _BICUBIC),
        transforms.RandomCrop(_SIZE_PX),
        transforms.RandomHorizontalFlip(),
    )

    def __getitem__(self, row: int) -> dict[str, Any]:
        samples, rate_hz = _read_by_av(self.folder / "audio" / f"{self.names[row]}.wav", 3.0)
        return {"image": self.change(self.picture(row)), "spectrogram": _spectrogram(samples, rate_hz).float()}


class SSLAlign(FieldWay):
    """The released test loader, the only one that was published. How it reads a file is not described: here by the
    cheapest way, the standard library. The picture is resized as a float tensor.
    """

    preset = "ssl_align_vggsound144k"
    about = "test loader: all 10 s read, float tensor resized"

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"image": self.plain(row), "spectrogram": self.sound(row)}

    def plain(self, row: int) -> Tensor:
        pixels = to_tensor(self.picture(row))
        mean, std = map(list, IMAGENET)
        return normalize(resize(pixels, [_SIZE_PX, _SIZE_PX], _BICUBIC), mean, std)

    def sound(self, row: int) -> Tensor:
        samples, rate_hz = _read_wav(self.folder / "audio" / f"{self.names[row]}.wav")
        samples = _tiled(samples / 32768, 10 * rate_hz).clip(-1, 1)
        middle = samples[int(3.5 * rate_hz) : int(6.5 * rate_hz)]
        return _spectrogram(middle, rate_hz, overlap=353)


class SSLAlignViews(SSLAlign):
    """Three views of picture and sound, as its papers train: the clip, a SimCLR view of it, and a neighbour's."""

    about = "its papers' three views by the same means"
    change = EZVSL.change
    simclr = _finished(
        transforms.RandomResizedCrop(_SIZE_PX, (0.2, 1.0), interpolation=_BICUBIC),
        transforms.RandomHorizontalFlip(),
        transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
        transforms.RandomGrayscale(0.2),
        transforms.RandomApply([transforms.GaussianBlur(23, (0.1, 2.0))], 0.5),
    )

    def __getitem__(self, row: int) -> dict[str, Any]:
        other = (row + 1) % len(self)
        return {
            "image": self.change(self.picture(row)),
            "spectrogram": self.sound(row),
            "more_images": (self.simclr(self.picture(row)), self.change(self.picture(other))),
            "more_spectrograms": (_masked(self.sound(row)), self.sound(other)),
        }


class SIRA(FieldWay):
    preset = "sira_ssl_vggsound144k"
    about = "frame and two flow pictures, 3 s wav read whole"
    rate_hz = 22_050
    change = transforms.Compose([transforms.Resize((_SIZE_PX, _SIZE_PX), _BICUBIC), transforms.ToTensor()])

    def prepare(self) -> None:
        folder = self.folder / "audio_22050"
        folder.mkdir(exist_ok=True)
        for name in self.names:
            samples = _resampled(_read_wav(self.folder / "audio" / f"{name}.wav")[0], self.rate_hz)
            first = max(0, len(samples) // 2 - 33_075)
            cut = samples[first : first + 66_150].round().clip(-32_768, 32_767).astype(np.int16)
            _write_wav(folder / f"{name}.wav", cut, self.rate_hz)

    def __getitem__(self, row: int) -> dict[str, Any]:
        samples, rate_hz = _read_wav(self.folder / "audio_22050" / f"{self.names[row]}.wav")
        flow: list[Any] = [self.change(self.picture(row, axis)) for axis in ("flow_x", "flow_y")]
        return {
            "image": self.change(self.picture(row)),
            "flow": torch.cat(flow),
            "spectrogram": _spectrogram(_tiled(samples / 32767, 3 * rate_hz), rate_hz),
        }


class JSA(FieldWay):
    preset = "jsa_vggsound144k"
    about = "ready spectrogram (.npy); colour jitter and blur by Pillow"
    change = _finished(
        transforms.Resize(int(_SIZE_PX * 1.1), _BICUBIC),
        transforms.RandomCrop(_SIZE_PX),
        transforms.RandomApply([transforms.GaussianBlur(5, (0.1, 2.0))], 0.8),
        transforms.RandomHorizontalFlip(),
        transforms.RandomApply([transforms.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
        transforms.RandomGrayscale(0.2),
    )

    def prepare(self) -> None:
        import torchaudio

        power = torchaudio.transforms.Spectrogram(n_fft=512, hop_length=160)
        (self.folder / "power").mkdir(exist_ok=True)
        for name in self.names:
            samples, rate_hz = _read_wav(self.folder / "audio" / f"{name}.wav")
            samples = _tiled(samples / 32768, 5 * rate_hz)
            first = (len(samples) - 5 * rate_hz) // 2
            middle = torch.from_numpy(samples[first : first + 5 * rate_hz]).float()
            np.save(self.folder / "power" / f"{name}.npy", power(middle)[None].numpy())

    def __getitem__(self, row: int) -> dict[str, Any]:
        power = torch.from_numpy(np.load(self.folder / "power" / f"{self.names[row]}.npy"))
        return {"image": self.change(self.picture(row)), "spectrogram": _masked(torch.log(power + 1e-8)) / 12}


class VCS(FieldWay):
    preset = "vcs_vggsound144k"
    about = "LMDB of raw 256 px pictures and float32 sound at 24 kHz"
    rate_hz = 24_000
    side_px = 256
    change = _finished(
        transforms.Resize((int(_SIZE_PX * 1.1), int(_SIZE_PX * 1.1)), _BICUBIC),
        transforms.RandomCrop(_SIZE_PX),
        transforms.RandomHorizontalFlip(),
    )

    def prepare(self) -> None:
        size = self.side_px**2 * 3 + 4 * 60 * self.rate_hz
        for kind in ("images", "audios"):
            with self._opened(kind, map_size=max(2**26, size * len(self)), readonly=False) as environment:
                for row, name in enumerate(self.names):
                    if kind == "images":
                        side = (self.side_px, self.side_px)
                        pixels = np.asarray(self.picture(row).resize(side, Image.Resampling.BILINEAR))
                        value = np.ascontiguousarray(pixels[..., ::-1])
                    else:
                        samples, rate_hz = _read_wav(self.folder / "audio" / f"{name}.wav")
                        whole = _tiled(samples / 32768, 10 * rate_hz)
                        value = _resampled(whole, self.rate_hz).astype(np.float32)
                    with environment.begin(write=True) as transaction:
                        transaction.put(name.encode(), value.tobytes())

    def _opened(self, kind: str, **options: Any) -> Any:
        import lmdb

        path = str(self.folder / f"train_{kind}.lmdb")
        return lmdb.open(path, lock=False, readahead=False, sync=False, **options)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "environments"}

    def __getitem__(self, row: int) -> dict[str, Any]:
        if "environments" not in self.__dict__:
            self.environments = [self._opened(kind, readonly=True) for kind in ("images", "audios")]
        values = []
        for environment in self.environments:
            with environment.begin() as transaction:
                values.append(transaction.get(self.names[row].encode()))
        pixels = np.frombuffer(values[0], np.uint8).reshape(self.side_px, self.side_px, 3)[..., ::-1]
        samples = np.frombuffer(values[1], np.float32)
        middle = samples[len(samples) // 2 - 36_000 : len(samples) // 2 + 36_000].clip(-1, 1)
        return {"image": self.change(Image.fromarray(pixels)), "spectrogram": _spectrogram(middle, self.rate_hz)}


WAYS: dict[str, type[FieldWay]] = {
    "EZ-VSL": EZVSL,
    "SSL-Align": SSLAlign,
    "SSL-Align, 3 views": SSLAlignViews,
    "SIRA": SIRA,
    "JSA": JSA,
    "VCS": VCS,
}


def field_batches(dataset: FieldWay, batch: int, steps: int, workers: int = 0) -> torch.utils.data.DataLoader:
    """So many batches of clips, in an order drawn anew at every iteration, as PyTorch's loader collates them.

    workers: processes, which stay; 0: none, clips are read where they are asked for.
    """
    draw = torch.Generator().manual_seed(0)
    sampler = torch.utils.data.RandomSampler(dataset, num_samples=batch * steps, generator=draw)
    kept: dict[str, Any] = {"persistent_workers": True, "multiprocessing_context": "spawn"} if workers else {}
    return torch.utils.data.DataLoader(dataset, batch, sampler=sampler, num_workers=workers, **kept)


def _write_wav(path: Path, samples: np.ndarray, rate_hz: int) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(samples.astype("<i2").tobytes())


def _read_wav(path: Path) -> tuple[np.ndarray, int]:
    """`(n,)` int16 and the rate."""
    with wave.open(str(path), "rb") as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2"), file.getframerate()


def _read_by_av(path: Path, seconds: float) -> tuple[np.ndarray, int]:
    """`(n,)` float64: the middle of a file, by seeking to it and decoding frame by frame."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        assert stream.duration is not None and stream.time_base is not None
        rate_hz, length_s = stream.rate, float(stream.duration * stream.time_base)
        start_s = max(0.0, (length_s - seconds) / 2)
        container.seek(int(start_s * av.time_base))
        resampler = av.AudioResampler(format="s16", layout="mono", rate=rate_hz)
        pieces, kept, skip = [], 0, None
        for frame in container.decode(audio=0):
            for piece in resampler.resample(frame):
                if skip is None:
                    assert frame.pts is not None and frame.time_base is not None
                    skip = max(0, round((start_s - float(frame.pts * frame.time_base)) * rate_hz))
                pieces.append(piece.to_ndarray()[0])
                kept += len(pieces[-1])
            if kept >= seconds * rate_hz + (skip or 0):
                break
    samples = np.concatenate(pieces)[skip or 0 :]
    return (_tiled(samples, round(seconds * rate_hz))[: round(seconds * rate_hz)] / 32767).clip(-1, 1), rate_hz


def _tiled(samples: np.ndarray, count: int) -> np.ndarray:
    """At least `count` samples: the clip again and again."""
    return samples if len(samples) >= count else np.tile(samples, -(-count // len(samples)))[:count]


def _resampled(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    from math import gcd

    from scipy.signal import resample_poly

    common = gcd(rate_hz, RATE_HZ)
    return resample_poly(samples.astype(np.float64), rate_hz // common, RATE_HZ // common)


def _spectrogram(samples: np.ndarray, rate_hz: int, overlap: int = 274) -> Tensor:
    """`(1, 257, T)`, in the precision of the samples, as the loaders hand it out."""
    from scipy.signal import spectrogram

    _, _, power = spectrogram(samples, rate_hz, nperseg=512, noverlap=overlap)
    return torch.from_numpy(np.log(power + 1e-7) / 12).unsqueeze(0)


def _masked(log_power: Tensor) -> Tensor:
    """One band of bins and one stretch of frames set to 0."""
    for axis in (1, 2):
        width = int(torch.randint(10, ()))
        first = int(torch.randint(log_power.shape[axis] - width, ()))
        log_power.narrow(axis, first, width).zero_()
    return log_power
