"""What batches hold beside one picture and one sound: more views, neighbours, flow; and other stored forms."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from configs.errors import UserError
from configs.load import load_config
from pipeline.batch import Batch, InputSpec
from pipeline.frontends import code_range, from_codes, to_codes
from pipeline.loader import build_loader
from pipeline.store import Store, id_hash
from pipeline.training_data import TrainingData
from tests.pipeline.stores import textured_record, write_store
from tests.pipeline.streams import ALL, EZ, clips_of, data_config, stream, take, tensors_of, train_loader

EACH = pytest.mark.parametrize("loader", ["dali", "reference", "resident"])
VIEWS = InputSpec(image_views=3, audio_views=2, neighbours=2)
SIGNED = {"encoding": "signed", "px_per_code": 0.125}
COUNT, NEAR = 12, 4


@pytest.fixture(scope="module")
def rich_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 clips of split train with pixels and flow, 3 of split test; neighbours: the next three and, for even clips, a
    fourth.
    """
    records = [textured_record(number, [EZ], flow=True, pixels=True) for number in range(COUNT)]
    records += [textured_record(number, [EZ], flow=True, pixels=True, split="test") for number in range(100, 103)]
    folder = tmp_path_factory.mktemp("rich") / "store"
    store = write_store(folder, records, [EZ], frames={"pixels": "both"}, flow=SIGNED)
    write_neighbours(store)
    return store


def write_neighbours(folder: Path) -> None:
    with Store(folder) as store:
        ids = store.index["clip_id"]
    number = {int(clip_id[5:]): place for place, clip_id in enumerate(ids)}
    tables = {kind: np.full((len(ids), NEAR), -1, np.int32) for kind in ("image", "audio")}
    for clip, place in number.items():
        if clip < COUNT:
            for step in range(NEAR if clip % 2 == 0 else NEAR - 1):
                tables["image"][place, step] = number[(clip + 1 + step) % COUNT]
                tables["audio"][place, step] = number[(clip - 1 - step) % COUNT]
    (folder / "neighbours").mkdir(exist_ok=True)
    for kind, table in tables.items():
        np.save(folder / "neighbours" / f"{kind}.npy", table)
    (folder / "neighbours" / "neighbours.json").write_text(json.dumps({"id_hash": id_hash(ids), "k": NEAR}))


def numbers_of(batch: Batch) -> np.ndarray:
    return np.array([int(clip_id[5:]) for clip_id in batch.clip_id])


@EACH
def test_views_are_further_draws_of_the_same_clip(rich_store: Path, loader: str):
    views = [{"flip": {"p": 0.0}}, {"random_resized_crop": {"scale": [0.5, 0.6]}, "greyscale": {"p": 1.0}}]
    config = data_config(rich_store, loader, views=views, batch_size=COUNT, image={"size_px": 48, "pixels": "jpeg"})
    (batch,) = stream(config, 1, InputSpec(image_views=3, audio_views=2))
    (single,) = stream(config, 1)
    assert torch.equal(single.image, batch.image) and torch.equal(single.spectrogram, batch.spectrogram)
    plain, grey = batch.more_images
    (only,) = batch.more_spectrograms
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in (plain, grey))
    (whole,) = stream(data_config(rich_store, loader, augment={}, batch_size=COUNT, image={"size_px": 48}), 1)
    assert torch.equal(plain, whole.image), "the second view neither crops nor flips"
    assert torch.equal(only, whole.spectrogram), "and hears the middle"
    assert (grey.float().std(1) <= 1).all() and not torch.equal(grey[:, :1].expand_as(plain), plain)
    (again,) = stream(data_config(rich_store, loader, batch_size=COUNT, image={"size_px": 48}), 1, VIEWS)
    assert not torch.equal(again.image, again.more_images[0]), "views that are not given draw anew from augment"


@EACH
def test_views_and_flow_depend_on_clip_and_epoch_alone(rich_store: Path, loader: str):
    config = data_config(rich_store, loader, augment={**ALL, "blur": {}, "greyscale": {}}, batch_size=6)
    spec = InputSpec(fields=frozenset({"image", "spectrogram", "flow"}), image_views=2, audio_views=2, neighbours=1)
    wanted = clips_of(stream(config, 2, spec))
    assert len(wanted) == 2 * COUNT
    for options in ({"batch_size": 4}, {"batch_size": 12}):
        assert clips_of(stream(config, 2, spec, **options)) == wanted, options
    ranks = [stream(config, 2, spec, batch_size=2, rank=rank, world_size=3) for rank in range(3)]
    assert clips_of([batch for step in zip(*ranks) for batch in step]) == wanted
    resumed = train_loader(config, spec, batch_size=3)
    resumed.load_state_dict({"epoch": 1, "samples": 6})
    assert clips_of(take(resumed)) == wanted[COUNT + 6 :]
    resumed.close()


def test_excluded_clips_are_neither_drawn_nor_neighbours_in_training_alone(rich_store: Path, tmp_path: Path):
    (tmp_path / "bad.txt").write_text("clip_001\nclip_100\n")
    config = data_config(rich_store, "reference", exclude=str(tmp_path / "bad.txt"), batch_size=COUNT - 1)
    with Store(rich_store) as store:
        known = set(store.index["clip_id"])
    assert "clip_001" in known
    (batch,) = stream(config, 1, InputSpec(neighbours=1))
    assert "clip_001" not in batch.clip_id and len(set(batch.clip_id)) == COUNT - 1
    loader = build_loader(config, InputSpec(), "train", train=False)
    assert "clip_001" in {clip_id for each in take(loader) for clip_id in each.clip_id}
    loader.close()


def test_loaders_agree_on_views_and_flow(rich_store: Path):
    spec = InputSpec(fields=frozenset({"image", "spectrogram", "flow"}), image_views=2, audio_views=2, neighbours=1)
    for pixels in ("jpeg", "raw"):
        for image in ({}, {"interpolation": "cubic", "antialias": True}):
            changes: dict[str, Any] = {
                "image": {"size_px": 64, "pixels": pixels, **image},
                "augment": {**ALL, "blur": {}},
            }
            loaders = {"reference": "reference", "dali": "dali", "graph": {"name": "dali", "change": "dali"}}
            found = {
                name: stream(data_config(rich_store, loader, **changes), 1, spec)
                for name, loader in {**loaders, "resident": "resident"}.items()
            }
            assert clips_of(found["dali"]) == clips_of(found["reference"])
            for loader in ("graph", "resident"):
                for one, other in zip(found[loader], found["reference"], strict=True):
                    assert one.clip_id == other.clip_id
                    for mine, theirs in zip(tensors_of(one), tensors_of(other), strict=True):
                        assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
                        gap = (mine.double() - theirs.double()).abs()
                        if mine.dtype == torch.uint8:
                            assert gap.mean() < 0.5  # of 255, with colour factors of up to 1.4 * 1.4
                        elif mine.shape[1] == 2:
                            assert gap.mean() < 0.15 * SIGNED["px_per_code"]  # 0.15 of a code
                        else:
                            assert gap.max() < 1e-5


@EACH
def test_flow_is_decoded_cut_and_flipped_with_the_picture(rich_store: Path, tmp_path: Path, loader: str):
    spec = InputSpec(fields=frozenset({"image", "spectrogram", "flow"}))
    augment = {"random_crop": {}, "flip": {"p": 0.5}}
    drawn = data_config(rich_store, loader, augment=augment, batch_size=COUNT)
    (batch,) = stream(drawn, 1, spec)
    assert batch.flow is not None and batch.flow.shape == (COUNT, 2, 64, 64) and batch.flow.dtype == torch.float32
    (straight,) = stream(data_config(rich_store, loader, augment={"random_crop": {}}, batch_size=COUNT), 1, spec)
    assert straight.flow is not None
    turned = torch.tensor([not torch.equal(*pair) for pair in zip(batch.image, straight.image)])
    assert 0 < turned.sum() < COUNT
    torch.testing.assert_close(batch.flow[~turned], straight.flow[~turned])
    mirrored = straight.flow[turned].flip(3) * torch.tensor([-1.0, 1.0])[:, None, None]
    torch.testing.assert_close(batch.flow[turned], mirrored)

    whole = build_loader(data_config(rich_store, loader), spec, "test", train=False, batch_size=3, size_px=64)
    (batch,) = take(whole)
    whole.close()
    assert batch.flow is not None
    record = textured_record(100, flow=True).frames[0]
    assert record.flow is not None
    codes = cv2.imdecode(np.frombuffer(record.flow[0], np.uint8), cv2.IMREAD_GRAYSCALE).astype(np.float32)
    wanted = (cv2.resize(codes, (64, 64)) - 128) * SIGNED["px_per_code"]
    assert np.abs(batch.flow[0, 0].numpy() - wanted).max() < SIGNED["px_per_code"] / 2
    assert batch.flow.min() < -1 and batch.flow.max() > 1

    records = [textured_record(number, [EZ], flow=True) for number in range(4)]
    store = write_store(tmp_path / "store", records, [EZ], flow={"encoding": "published"})
    (published,) = stream(data_config(store, loader, augment={"flip": {"p": 1}}, batch_size=4), 1, spec)
    (plain,) = stream(data_config(store, loader, augment={}, batch_size=4), 1, spec)
    assert published.flow is not None and plain.flow is not None
    assert plain.flow.min() >= 0 and plain.flow.max() <= 1 and plain.flow.max() > 0.9
    torch.testing.assert_close(published.flow, plain.flow.flip(3))


@EACH
def test_neighbours_are_drawn_anew_at_every_use(rich_store: Path, loader: str):
    config = data_config(rich_store, loader, augment={}, batch_size=COUNT, image={"size_px": 32})
    (whole,) = stream(config, 1)
    image = {whole.image[row].numpy().tobytes(): number for row, number in enumerate(numbers_of(whole))}
    sound = {whole.spectrogram[row].numpy().tobytes(): number for row, number in enumerate(numbers_of(whole))}
    found = stream(config, 40, InputSpec(neighbours=2))
    steps: dict[int, set[int]] = {number: set() for number in range(COUNT)}
    for batch in found:
        numbers = numbers_of(batch)
        assert len(batch.more_images) == len(batch.more_spectrograms) == 2
        for pictures, sounds in zip(batch.more_images, batch.more_spectrograms):
            near = np.array([image[picture.numpy().tobytes()] for picture in pictures])
            heard = np.array([sound[spectrogram.numpy().tobytes()] for spectrogram in sounds])
            for number, step in zip(numbers, (near - numbers) % COUNT):
                steps[number].add(int(step))
            assert set((numbers - heard) % COUNT) <= {1, 2, 3, 4}
            assert ((near - numbers) % COUNT != (numbers - heard) % COUNT).any(), "sounds are drawn apart"
    assert steps == {number: set(range(1, 5 if number % 2 == 0 else 4)) for number in range(COUNT)}
    tested = build_loader(data_config(rich_store, loader), VIEWS, "test", train=False, batch_size=3)
    (batch,) = take(tested)
    tested.close()
    assert batch.more_images == batch.more_spectrograms == (), "batches for scoring hold one view"


def test_neighbours_of_other_clips_are_refused(rich_store: Path, tmp_path: Path):
    spec = InputSpec(neighbours=1)
    records = [textured_record(number, [EZ]) for number in range(COUNT)]
    store = write_store(tmp_path / "store", records, [EZ])
    write_neighbours(store)
    stream(data_config(store, "reference", augment={}), 1, spec)
    said = store / "neighbours" / "neighbours.json"
    kept = said.read_text()
    said.write_text(json.dumps({"id_hash": "another"}))
    with pytest.raises(UserError, match=r"those of other clips than the store's; `python -m preprocess neighbours"):
        train_loader(data_config(store, "reference"), spec)
    said.write_text(kept)
    table = np.load(store / "neighbours" / "image.npy")
    table[3] = -1
    np.save(store / "neighbours" / "image.npy", table)
    with pytest.raises(UserError, match=r"1 of 12 clips .* lack a neighbour \(image\)"):
        train_loader(data_config(store, "reference"), spec)
    (store / "neighbours" / "image.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match=r"neighbours in .* are damaged"):
        train_loader(data_config(store, "reference"), spec)


@EACH
def test_raw_pictures_are_the_decoded_ones(rich_store: Path, tmp_path: Path, loader: str):
    config = {"batch_size": COUNT, "augment": {"random_resized_crop": {}, "flip": {}, "blur": {}}}
    raw = stream(data_config(rich_store, loader, image={"size_px": 64, "pixels": "raw"}, **config))
    jpeg = stream(data_config(rich_store, loader, image={"size_px": 64, "pixels": "jpeg"}, **config))
    assert clips_of(raw) == clips_of(jpeg)
    records = [textured_record(number, [EZ], pixels=True) for number in range(COUNT)]
    for record in records:
        record.frames[0].jpeg = None
    store = write_store(tmp_path / "store", records, [EZ], frames={"pixels": "raw"})
    source = train_loader(data_config(store, loader, image={"size_px": 64}, **config))
    assert source.describe()["pictures"] == "stored pixels"
    assert clips_of(take(source)) == clips_of(raw[:1])
    source.close()


@EACH
def test_codes_of_eight_bits_are_decoded(tmp_path: Path, loader: str):
    low, high = code_range(EZ)
    records = [textured_record(number, [EZ], seconds=(2.5, 1.2)[number % 2]) for number in range(8)]
    augment = {"time_crop": {}, "spectrogram_mask": {"fill": "floor"}}
    for short in ("tile", "pad"):
        audio = {"frontend": EZ.model_copy(update={"short": short}).model_dump(), "duration_s": 2.0}
        fine = stream(
            data_config(
                write_store(tmp_path / f"fine_{short}", records, [EZ]),
                loader,
                augment=augment,
                audio=audio,
                batch_size=8,
            )
        )
        coarse = []
        for number in range(8):
            record = textured_record(number, [EZ], seconds=(2.5, 1.2)[number % 2])
            record.spectrograms["ez_vsl"] = to_codes(torch.from_numpy(record.spectrograms["ez_vsl"]), low, high).numpy()
            coarse.append(record)
        storage = {"ez_vsl": {"dtype": "uint8", "low": low, "high": high, "max_error": (high - low) / 510}}
        store = write_store(tmp_path / f"coarse_{short}", coarse, [EZ], spectrogram_storage=storage)
        found = stream(data_config(store, loader, augment=augment, audio=audio, batch_size=8))
        for one, other in zip(found, fine, strict=True):
            gap = (one.spectrogram - other.spectrogram).abs().max() * 12
            assert (high - low) / 1020 < gap < (high - low) / 510 + 0.01  # half a step, and rounding to 16 bits
    assert from_codes(torch.tensor([0, 255]), low, high).tolist() == pytest.approx([low, high])


@EACH
def test_stats_say_what_was_handed_out(rich_store: Path, loader: str):
    source = train_loader(data_config(rich_store, loader, batch_size=4))
    assert len(take(source)) == 3
    seen = source.stats()
    assert (seen.batches, seen.clips) == (3, 12) and seen.wait_s > 0 and 0 <= seen.ready <= 3
    if loader == "resident":
        assert seen.bytes_per_clip == 0
    else:
        window = EZ.window_frames(2.0) * 257 * 2
        assert window < seen.bytes_per_clip < window + 3 * 128 * 100
    assert source.stats().batches == 0
    assert {"loader", "pictures", "sounds", "decodes"} <= source.describe().keys()
    source.close()


def test_held_out_clips_are_not_augmented_in_any_view(packed_store: Path):
    audio = {"frontend": "logmel64", "duration_s": 1.0}
    flips = {"augment": {}, "views": [{"flip": {"p": 1.0}}]}
    data = data_config(packed_store, "reference", batch_size=2, audio=audio, **flips)
    selection = "train.selection={by: held_out, share: 0.5, metric: loss}"
    config = load_config(["ez_vsl_realset", selection, "evaluate.sets={dev: null, mosaic: null}"])
    config = config.model_copy(update={"data": data})
    training = TrainingData(config, InputSpec(image_views=2), torch.device("cpu"), 0, 1)
    (first, *_), held_out = take(training.loader), training.held_out_loader()
    assert not torch.equal(first.image, first.more_images[0])
    for batch in take(held_out):
        assert torch.equal(batch.image, batch.more_images[0])
    training.loader.close()
    held_out.close()
