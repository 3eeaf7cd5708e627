"""No question: makes a store of any size, so that scale is tried without data.

Pictures like photos and sounds like speech or noise, with the sizes of VGGSound's frames and clips. A few hundred
distinct ones are made; the clips are hard links to them under as many ids as asked.
`python -m benchmarks make_store --store OUT --clips 144000` packs them, 0.6 MB a clip with its log-mel and waveform.
"""

import json
import os
import shutil
import tempfile
import wave
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from rich.console import Console

from configs.errors import UserError
from configs.load import load_frontend
from preprocess.engines.local import Local
from preprocess.layouts.manifest import MANIFEST_NAME, Manifest
from preprocess.options import PackConfig
from preprocess.task import Report
from preprocess.writer import default_shard_clips, pack

DISTINCT = 256
RATE_HZ = 16_000
_SIZES_PX = ((455, 256), (341, 256), (340, 256), (256, 455))
_SHARES = (0.5, 0.3, 0.15, 0.05)
_MEDIAN_BYTES, _SPREAD = 26_000, 0.3  # of a JPEG; spread of its logarithm: 9 of 10 lie within 16 and 42 kB
_SHORT_SHARE = 0.03  # clips that end early
_TEST_SHARE = 0.04


def picture(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """`(height, width, 3)` uint8 BGR: clouds with a 1/f spectrum, as photos have, and a few things with edges."""
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    falloff = 1 / np.maximum(np.hypot(rows, columns), 1 / max(width, height)) ** rng.uniform(1.1, 1.7)
    noise = rng.normal(size=(3, height, width // 2 + 1)) + 1j * rng.normal(size=(3, height, width // 2 + 1))
    clouds = np.fft.irfft2(noise * falloff, (height, width))
    clouds = (clouds - clouds.mean((1, 2), keepdims=True)) / clouds.std((1, 2), keepdims=True)
    mixed = np.tensordot(np.eye(3) * 0.4 + 0.6, clouds, 1)  # channels of photos go together
    pixels = np.ascontiguousarray((118 + 30 * mixed).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
    for _ in range(rng.integers(2, 7)):
        centre = int(rng.integers(width)), int(rng.integers(height))
        axes = int(rng.integers(8, width // 4)), int(rng.integers(8, height // 4))
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        cv2.ellipse(pixels, centre, axes, float(rng.uniform(0, 180)), 0, 360, colour, -1, cv2.LINE_AA)
    return pixels


def jpeg(rng: np.random.Generator) -> bytes:
    """A picture of one of the usual sizes as a baseline 4:2:0 JPEG whose length is drawn first."""
    width, height = _SIZES_PX[rng.choice(len(_SIZES_PX), p=_SHARES)]
    wanted = _MEDIAN_BYTES * np.exp(_SPREAD * rng.normal())
    pixels = picture(rng, width, height)
    coded = b""
    for quality in range(95, 30, -5):
        options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR]
        coded = cv2.imencode(".jpg", pixels, [*options, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420])[1].tobytes()
        if len(coded) <= wanted:
            break
    return coded


def sound(rng: np.random.Generator, seconds: float, rate_hz: int = RATE_HZ) -> np.ndarray:
    """`(n,)` int16: harmonics in syllables (as speech) or coloured noise that swells and fades."""
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    spectrum = np.fft.rfft(rng.normal(size=len(time_s)))
    spectrum /= np.maximum(np.arange(len(spectrum)), 50) ** rng.uniform(0.3, 1.0)
    values = np.fft.irfft(spectrum, len(time_s))
    values /= np.abs(values).max()
    if rng.random() < 0.5:
        pitch_hz = rng.uniform(90, 260) * (1 + 0.1 * np.sin(2 * np.pi * rng.uniform(0.2, 0.8) * time_s))
        phase = 2 * np.pi * np.cumsum(pitch_hz) / rate_hz
        voice = sum(np.sin(order * phase) / order for order in range(1, 9)) / 3
        values = 0.2 * values + voice * (np.sin(2 * np.pi * rng.uniform(2.5, 5) * time_s) > -0.3)
    values *= 1 + 0.7 * np.sin(2 * np.pi * rng.uniform(0.05, 0.5) * time_s + rng.uniform(0, 6))
    level = 10 ** (rng.uniform(-24, -3) / 20)
    return np.round(values / np.abs(values).max() * level * 32767).astype(np.int16)


def make_input(folder: Path, clips: int, *, distinct: int = DISTINCT, seconds: float = 10.0, seed: int = 0) -> None:
    """Pictures, sounds and a manifest of so many clips; the distinct files are hard-linked."""
    rng = np.random.default_rng(seed)
    (folder / "made").mkdir(parents=True)
    for number in range(min(distinct, clips)):
        (folder / "made" / f"{number}.jpg").write_bytes(jpeg(rng))
        lasts_s = seconds * (rng.uniform(0.3, 1) if rng.random() < _SHORT_SHARE else 1)
        with wave.open(str(folder / "made" / f"{number}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE_HZ)
            file.writeframes(sound(rng, lasts_s).tobytes())
    with (folder / MANIFEST_NAME).open("w", encoding="utf-8") as lines:
        for number in range(clips):
            clip_id = f"made_{number:06d}"
            if number % 1000 == 0:
                (folder / f"{number // 1000:03d}").mkdir()
            names = {kind: f"{number // 1000:03d}/{clip_id}.{kind}" for kind in ("jpg", "wav")}
            for kind, name in names.items():
                os.link(folder / "made" / f"{number % distinct}.{kind}", folder / name)
            split = "test" if number < clips * _TEST_SHARE else "train"
            line: dict[str, Any] = {"clip_id": clip_id, "split": split, "image": names["jpg"], "audio": names["wav"]}
            if split == "test":
                line["boxes"] = [[0.25, 0.25, 0.75, 0.75]]
            lines.write(json.dumps(line) + "\n")


def payload_bytes(folder: Path, clips: int, config: PackConfig) -> int:
    """Bytes of the JPEGs and sounds that a store of `make_input`'s clips will hold: counted, before it is packed."""
    sizes = []
    for number in range(len(list((folder / "made").glob("*.jpg")))):
        with wave.open(str(folder / "made" / f"{number}.wav"), "rb") as file:
            samples = file.getnframes()
        sounds = sum(
            2 * frontend.frames(samples * frontend.sample_rate_hz // RATE_HZ) * frontend.bins
            for frontend in config.frontends
        )
        picture = (folder / "made" / f"{number}.jpg").stat().st_size
        sizes.append(picture + sounds + (2 * samples if config.waveform else 0))
    rounds, rest = divmod(clips, len(sizes))
    return rounds * sum(sizes) + sum(sizes[:rest])


def add_options(parser: Any) -> None:
    """The options of this command."""
    parser.add_argument("--clips", type=int, default=1000, help="default 1000")
    parser.add_argument("--seconds", type=float, default=10.0, help="of sound a clip; default 10")
    parser.add_argument("--frontend", nargs="+", default=["logmel"], help="default logmel")
    parser.add_argument("--no-waveform", action="store_true", help="half the size")
    parser.add_argument("--pixels", choices=["jpeg", "raw", "both"], default="jpeg", help="as for pack; default jpeg")
    parser.add_argument("--workers", type=int, help="default: one a core")


def run(
    store: Path | None,
    rounds: int,
    out: Path | None,
    clips: int = 1000,
    seconds: float = 10.0,
    frontend: list[str] | None = None,
    no_waveform: bool = False,
    pixels: Literal["jpeg", "raw", "both"] = "jpeg",
    workers: int | None = None,
) -> None:
    """Make clips and pack them into `store`, which must be new or empty. Raises: UserError."""
    if store is None or out is not None:
        raise UserError("make_store writes a store, no rows: name a new folder with --store, and leave --out out")
    config = PackConfig(
        frontends=tuple(load_frontend(name) for name in frontend or ["logmel"]),
        waveform=not no_waveform,
        pixels=pixels,
    )
    packed, _ = make(store, clips, seconds, config, workers)
    Console().print(f"made {packed} clips: {store}", soft_wrap=True)


def make(
    store: Path,
    clips: int,
    seconds: float,
    config: PackConfig,
    workers: int | None,
    report: Report = lambda kind, what: None,
) -> tuple[int, int]:
    """Make clips and pack them; how many were packed, and `payload_bytes`. report: as for `preprocess.writer.pack`.

    Raises: UserError if `store` is there, or a number makes no sense.
    """
    if clips < 1 or seconds < 1:
        raise UserError(f"--clips and --seconds must be at least 1, found {clips} and {seconds:g}")
    if store.exists() and any(store.iterdir()):
        raise UserError(f"{store} is there already; name a new folder with --store")
    store.parent.mkdir(parents=True, exist_ok=True)
    source = Path(tempfile.mkdtemp(prefix=f".{store.name}-", dir=store.parent))
    try:
        make_input(source / "input", clips, seconds=seconds)
        payload = payload_bytes(source / "input", clips, config)
        engine = Local(Local.Config(name="local", **({} if workers is None else {"workers": workers})))
        layout = Manifest(Manifest.Config(name="manifest"), source / "input")
        packed = pack(
            layout, store, config, engine, dataset="made", shard_clips=default_shard_clips(clips), report=report
        )
    finally:
        shutil.rmtree(source)
    return packed.packed, payload
