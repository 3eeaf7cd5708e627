"""Weights and inputs of the golden cases, made again from their rules: no file holds them.

Every entry of a state has its own generator, seeded with the checksum of its published name.
"""

import zlib

import numpy as np
import torch
from torch import Tensor

from model.base import LocalizationModel
from model.published import load_published, published_name
from model.standardise import IMAGENET
from pipeline.batch import Batch


def checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    """An entry of a state, from its published name."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    z = generator(zlib.crc32(name.encode())).standard_normal(shape)
    norm = ".bn" in name or ".downsample.1." in name
    if name == "scale":
        value = 8 + z
    elif name.endswith("running_var"):
        value = 1 + 0.1 * np.abs(z)
    elif norm and name.endswith(".weight"):
        value = 1 + 0.1 * z
    elif norm or name.endswith("running_mean"):
        value = 0.1 * z
    elif name.endswith(".bias"):
        value = 0.01 * z
    else:
        value = z * np.sqrt(2 / np.prod(shape[1:]))
    return torch.from_numpy(value.astype(np.float32))


def load_drawn(model: LocalizationModel, unused: dict[str, tuple[int, ...]]) -> list[str]:
    """Put the golden weights into a method, by way of a state dict in the authors' names. Returns those names.

    unused: further names and shapes of the authors' state dict, which the method must know and drop.
    """
    published = drawn_state(model, unused)
    assert set(load_published(model, published, drop=(), where="the golden state")) == set(unused)
    return sorted(published)


def drawn_state(model: LocalizationModel, unused: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The golden weights as a state dict in the authors' names."""
    shapes = {
        published_name(model, key): tuple(value.shape)
        for key, value in model.state_dict().items()
        if not key.startswith(model.published_absent)
    }
    return {name: drawn(name, shape) for name, shape in (shapes | unused).items()}


def smooth(rng: np.random.Generator, lead: tuple[int, ...], coarse: tuple[int, int], fine: tuple[int, int]):
    """Uniform values on a coarse grid, interpolated linearly to a fine one, end points kept: `(*lead, *fine)`."""
    values = rng.random(lead + coarse)
    for axis, count in ((-2, fine[0]), (-1, fine[1])):
        size = values.shape[axis]
        position = np.linspace(0.0, size - 1.0, count)
        low = np.minimum(np.floor(position).astype(int), size - 2)
        share = position - low
        share = share[:, None] if axis == -2 else share
        values = np.take(values, low, axis=axis) * (1.0 - share) + np.take(values, low + 1, axis=axis) * share
    return values


def plane_waves(seed: int, shape: tuple[int, int, int, int], scale: float, offset: float) -> Tensor:
    """Half white noise and four plane waves in every channel."""
    rng = generator(seed)
    b, c, h, w = shape
    x = rng.standard_normal(shape) / 2
    row, column = np.arange(h)[:, None] / h, np.arange(w)[None, :] / w
    for plane in x.reshape(b * c, h, w):
        for _ in range(4):
            k_column, k_row = rng.integers(-6, 7, size=2)
            height, phase = rng.uniform(0.2, 1.0), rng.uniform(0.0, 2 * np.pi)
            plane += height * np.cos(2 * np.pi * (k_column * column + k_row * row) + phase)
    return torch.from_numpy((scale * x + offset).astype(np.float32))


def plane_wave_batch(image_seed: int, sound_seed: int, frames: int) -> Batch:
    """Four clips; the rule's pictures are already standardised, which the encoder would do once more."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    return Batch(
        clip_id=list("abcd"),
        valid=torch.ones(4, dtype=torch.bool),
        image=plane_waves(image_seed, (4, 3, 224, 224), 1.0, 0.0) * std + mean,
        spectrogram=plane_waves(sound_seed, (4, 1, 257, frames), 0.35, -0.6),
    )


def smooth_photo(height: int, width: int, seed: int) -> np.ndarray:
    """`(height, width, 3)` uint8 RGB: plane waves."""
    rng = generator(seed)
    row, column = np.arange(height)[:, None] / height, np.arange(width)[None, :] / width
    frame = np.zeros((height, width, 3))
    for channel in range(3):
        for _ in range(12):
            k_column, k_row = rng.integers(-40, 41, size=2)
            size, phase = rng.uniform(2.0, 20.0), rng.uniform(0.0, 2 * np.pi)
            frame[:, :, channel] += size * np.cos(2 * np.pi * (k_column * column + k_row * row) + phase)
    return np.clip(np.round(frame + 128), 0, 255).astype(np.uint8)


def pictures(rng: np.random.Generator, count: int, channels: int, noise: float) -> np.ndarray:
    """`(count, channels, 224, 224)` float64 in [0, 1]."""
    shape = (count, channels, 224, 224)
    return np.clip(smooth(rng, shape[:2], (7, 7), shape[2:]) + noise * rng.standard_normal(shape), 0, 1)


def spectrograms(rng: np.random.Generator, count: int, shape: tuple[int, int]) -> np.ndarray:
    """`(count, 1, *shape)` float32: log-spectrograms, divided by 12."""
    values = smooth(rng, (count, 1), (9, 12), shape) + 0.1 * rng.standard_normal((count, 1, *shape))
    return ((-16.0 + 14.0 * values) / 12.0).astype(np.float32)


def waves(rate_hz: int, seconds: float, seed: int) -> dict[str, np.ndarray]:
    """int16: a chirp from 100 Hz to 8 kHz, noise, silence."""
    count = round(rate_hz * seconds)
    time_s = np.arange(count) / rate_hz
    chirp = 0.6 * np.sin(2 * np.pi * (100.0 * time_s + 0.5 * (8000.0 - 100.0) / seconds * time_s * time_s))
    noise = np.clip(0.2 * generator(seed).standard_normal(count), -1, 1)
    signals = {"chirp": chirp, "noise": noise, "silence": np.zeros(count)}
    return {name: np.round(signal * 32767).astype(np.int16) for name, signal in signals.items()}


def photo(height: int, width: int, seed: int) -> np.ndarray:
    """`(height, width, 3)` uint8 RGB."""
    rng = generator(seed)
    values = smooth(rng, (3,), (9, 11), (height, width)) + 0.08 * rng.standard_normal((3, height, width))
    return np.round(np.clip(values, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0).copy()


def assert_near(found: Tensor | np.ndarray, expected: np.ndarray, tolerance: float, what: str) -> None:
    """Largest difference, relative to the largest value of `expected`, within `tolerance`."""
    found = np.asarray(found.detach().numpy() if isinstance(found, Tensor) else found, np.float64)
    assert found.shape == expected.shape, f"{what}: {found.shape} is not {expected.shape}"
    worst = np.abs(found - expected).max() / np.abs(expected).max()
    assert worst <= tolerance, f"{what}: differs by {worst:.2g} of its largest value, allowed {tolerance:.2g}"
