from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from configs.errors import UserError
from configs.load import check
from configs.resolve import names, resolve
from configs.schema import DataConfig
from pipeline.augmentation import Clips, Crop, ImageAugmentation, SoundAugmentation, TimeCrop
from pipeline.loaders.dali import import_dali
from pipeline.sampler import Draws, clip_keys

COUNT = 6000
IMAGE_PARTS = [
    name for name in names("pipeline.augment") if issubclass(resolve("pipeline.augment", name), ImageAugmentation)
]


def make(name: str, **options: Any) -> Any:
    """The augmentation `name` with these options."""
    kind = resolve("pipeline.augment", name)
    return kind(kind.Config(name=name, **options))


def clips(count: int = COUNT, **changes: Any) -> Clips:
    random = np.random.default_rng(0)
    given = {
        "width": random.integers(40, 500, count),
        "height": random.integers(40, 500, count),
        "frames": random.integers(20, 600, count),
        "window": 100,
        "bins": 40,
        "size_px": 64,
        "log_floor": -16.0,
    }
    return Clips(**(given | changes))


def draws(count: int = COUNT, epoch: int = 0) -> Draws:
    return Draws(0, epoch, clip_keys([str(number) for number in range(count)]))


def rows_of(known: Clips, rows: np.ndarray) -> Clips:
    return Clips(
        width=known.width[rows],
        height=known.height[rows],
        frames=known.frames[rows],
        window=known.window,
        bins=known.bins,
        size_px=known.size_px,
        log_floor=known.log_floor,
    )


@pytest.mark.parametrize("name", names("pipeline.augment"))
def test_every_augmentation_keeps_the_contract(name: str):
    part, known = make(name), clips()
    assert isinstance(part, Crop | TimeCrop | ImageAugmentation | SoundAugmentation)
    drawn = part.draw(draws(), known)
    rows = np.array([17, 3, 5999, 3])
    few = part.draw(Draws(0, 0, draws().keys[rows]), rows_of(known, rows))
    later = part.draw(draws(epoch=1), known)
    assert drawn and drawn.keys() == few.keys()
    for key, value in drawn.items():
        assert value.dtype in (np.int32, np.float32) and len(value) == COUNT
        assert np.array_equal(few[key], value[rows]), "a clip's numbers depend on its neighbours"
    anew = any(not np.array_equal(later[key], value) for key, value in drawn.items())
    assert anew == (name != "middle_crop"), "it draws nothing"
    if isinstance(part, Crop):
        start, shape = drawn["start"], drawn["shape"]
        assert (start >= 0).all() and (shape >= 1).all()
        assert (start + shape <= np.stack([known.height, known.width], 1)).all()
    if isinstance(part, TimeCrop):
        assert (drawn["start"] >= 0).all()
        assert (drawn["start"] <= np.maximum(known.frames - known.window, 0)).all()


@pytest.mark.parametrize("name", IMAGE_PARTS)
def test_dali_and_reference_change_a_picture_alike(name: str):
    dali = import_dali()
    fn, types = dali.fn, dali.types
    part, count = make(name), 32
    pictures = np.random.default_rng(1).integers(0, 256, (count, 24, 31, 3), np.uint8)
    drawn = part.draw(draws(count), clips(count))
    dtypes = {np.dtype(np.int32): types.INT32, np.dtype(np.float32): types.FLOAT}

    @dali.pipeline_def(batch_size=count, num_threads=1, device_id=None)
    def graph():
        images, *nodes = fn.external_source(
            lambda: [pictures, *drawn.values()],
            num_outputs=1 + len(drawn),
            batch=True,
            dtype=[types.UINT8, *(dtypes[value.dtype] for value in drawn.values())],
            ndim=[3, *(value.ndim - 1 for value in drawn.values())],
            layout=["HWC", *(None for _ in drawn)],
        )
        return part.dali(images, dict(zip(drawn, nodes)))

    found = graph().run()[0].as_array()
    rows = [{key: value[row] for key, value in drawn.items()} for row in range(count)]
    wanted = np.stack([part.reference(pictures[row].copy(), rows[row]) for row in range(count)])
    assert found.dtype == wanted.dtype == np.uint8 and found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).max() <= 1  # rounding; at most 1 of 255 was measured
    assert any(not np.array_equal(wanted[row], pictures[row]) for row in range(count))


@pytest.mark.parametrize("name", IMAGE_PARTS)
def test_a_whole_batch_changes_as_its_pictures_do(name: str):
    part, count = make(name), 32
    pictures = np.random.default_rng(2).integers(0, 256, (count, 24, 24, 3), np.uint8)
    drawn = part.draw(draws(count), clips(count))
    rows = [{key: value[row] for key, value in drawn.items()} for row in range(count)]
    wanted = np.stack([part.reference(pictures[row].copy(), rows[row]) for row in range(count)])
    tensors = {key: torch.from_numpy(value) for key, value in drawn.items()}
    found = part.batched(torch.from_numpy(pictures.copy()), tensors).numpy()
    assert found.dtype == np.uint8 and found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).max() <= 1


def largest_gap(a: np.ndarray, b: np.ndarray) -> float:
    """The two-sample Kolmogorov-Smirnov distance."""
    both = np.sort(np.concatenate([a, b]))
    share_a = np.searchsorted(np.sort(a), both, side="right") / len(a)
    share_b = np.searchsorted(np.sort(b), both, side="right") / len(b)
    return np.abs(share_a - share_b).max()


@pytest.mark.parametrize(("width", "height"), [(455, 256), (256, 256), (100, 400)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.9, 1.0)])
def test_random_resized_crop_has_torchvisions_distribution(width: int, height: int, scale: tuple[float, float]):
    known = clips(width=np.full(COUNT, width), height=np.full(COUNT, height))
    drawn = make("random_resized_crop", scale=scale).draw(draws(), known)
    torch.manual_seed(0)
    picture = torch.empty(3, height, width)
    wanted = np.array([RandomResizedCrop.get_params(picture, list(scale), [3 / 4, 4 / 3]) for _ in range(COUNT)])
    found = np.concatenate([drawn["start"], drawn["shape"]], 1)
    for column in range(4):
        # The 1e-5 quantile of the distance of two samples of this size.
        assert largest_gap(found[:, column], wanted[:, column]) < 2.4 * np.sqrt(2 / COUNT), column


def test_random_crop_is_ez_vsls():
    known = clips(width=np.full(COUNT, 455), height=np.full(COUNT, 256), size_px=224)
    drawn = make("random_crop").draw(draws(), known)
    assert (drawn["shape"] == round(256 * 224 / 246)).all()
    top, left = drawn["start"].T
    assert (top.min(), top.max(), left.min(), left.max()) == (0, 256 - 233, 0, 455 - 233)
    counts = np.bincount(top)
    assert np.abs(counts - COUNT / 24).max() < 5 * np.sqrt(COUNT / 24)


@pytest.mark.parametrize("p", [0.0, 0.25, 1.0])
def test_probabilities_are_kept(p: float):
    share = make("flip", p=p).draw(draws(), clips())["on"].mean()
    assert share == pytest.approx(p, abs=0.03)
    drawn = make("color_jitter", p=p).draw(draws(), clips())
    assert (drawn["brightness"] != 1).mean() == pytest.approx(p, abs=0.03)
    assert (drawn["hue"] != 0).mean() == pytest.approx(p, abs=0.03)


def test_colour_factors_stay_in_their_ranges():
    drawn = make("color_jitter", p=1, brightness=0.3, contrast=2, saturation=0.5, hue=0.25).draw(draws(), clips())
    for name, low, high in (("brightness", 0.7, 1.3), ("contrast", 0, 3), ("saturation", 0.5, 1.5), ("hue", -90, 90)):
        assert drawn[name].min() >= np.float32(low) and drawn[name].max() <= np.float32(high), name
        assert drawn[name].max() > high - 0.02 * (high - low), name


def test_no_colour_change_is_no_change():
    picture = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    same = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
    assert np.array_equal(make("color_jitter").reference(picture, same), picture)


def test_time_crop_is_uniform_over_whole_frames():
    known = clips(frames=np.full(COUNT, 109))
    counts = np.bincount(make("time_crop").draw(draws(), known)["start"], minlength=10)
    assert len(counts) == 10 and np.abs(counts - COUNT / 10).max() < 5 * np.sqrt(COUNT / 10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("fill", [0.0, "floor"])
def test_spectrogram_masks_cover_what_was_drawn(fill: Any, dtype: torch.dtype):
    part = make("spectrogram_mask", frequency_masks=2, time_masks=3, frequency_width=30, time_width=200, fill=fill)
    known = clips(64)
    drawn = part.draw(draws(64), known)
    log_power = torch.randn(64, known.window, known.bins).to(dtype)
    wanted = log_power.numpy().copy()
    value = known.log_floor if fill == "floor" else 0.0
    for row in range(64):
        for start, stop in zip(drawn["frequency_start"][row], drawn["frequency_stop"][row]):
            assert 0 <= start <= stop <= known.bins and stop - start <= 30
            wanted[row, :, start:stop] = value
        for start, stop in zip(drawn["time_start"][row], drawn["time_stop"][row]):
            assert 0 <= start <= stop <= known.window
            wanted[row, start:stop, :] = value
    tensors = {key: torch.from_numpy(value) for key, value in drawn.items()}
    assert np.array_equal(part.apply(log_power, tensors, known).numpy(), wanted)
    widths = drawn["frequency_stop"] - drawn["frequency_start"]
    assert widths.min() == 0 and widths.max() > 20


def test_no_masks_no_change():
    part = make("spectrogram_mask", frequency_masks=0, time_masks=0)
    log_power = torch.randn(2, 100, 40)
    assert part.draw(draws(2), clips(2)) == {}
    assert torch.equal(part.apply(log_power.clone(), {}, clips(2)), log_power)


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ({"random_resized_crop": {"scale": [0.5, 0.2]}}, "scale"),
        ({"random_resized_crop": {"ratio": [0, 1]}}, "ratio"),
        ({"flip": {"p": 1.5}}, "less than or equal to 1"),
        ({"flp": {}}, "Did you mean 'flip'"),
        ({"color_jitter": {"hue": 0.7}}, "less than or equal to 0.5"),
        ({"spectrogram_mask": {"fill": "zero"}}, "floor"),
    ],
)
def test_wrong_options_are_named(augment: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        check(DataConfig, {"augment": augment}, "test")
