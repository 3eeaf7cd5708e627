"""What a clip costs a loader, counted: records read, pictures decoded, bytes copied. Times are for benchmarks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.batch import InputSpec
from pipeline.loader import PlannedLoader
from pipeline.store import Store
from tests.pipeline.stores import textured_record, write_store
from tests.pipeline.streams import CLIPS, EZ, data_config, take, train_loader

CROP = {"random_resized_crop": {}, "flip": {}}
EACH = pytest.mark.parametrize("loader", ["dali", "reference"])
Counter = Callable[[Any, str], list[Any]]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Has an attribute note its calls in the list that is returned, and do what it did."""

    def count(owner: Any, name: str) -> list[Any]:
        calls, work = [], getattr(owner, name)

        def noted(*args: Any, **options: Any) -> Any:
            calls.append(args)
            return work(*args, **options)

        monkeypatch.setattr(owner, name, noted)
        return calls

    return count


@EACH
@pytest.mark.parametrize("views", [1, 3])
def test_a_clip_is_looked_up_once_whatever_is_taken_of_it(
    textured_store: Path, counted: Counter, loader: str, views: int
):
    spec = InputSpec(image_views=views, audio_views=views)
    source = train_loader(data_config(textured_store, loader, augment=CROP), spec)
    lookups = counted(Store, "value")
    assert len(take(source)) == CLIPS // 6
    source.close()
    assert len(lookups) == CLIPS


def test_the_resident_loader_reads_and_decodes_in_the_first_epoch_alone(textured_store: Path, counted: Counter):
    decodings, lookups = counted(cv2, "imdecode"), counted(Store, "value")
    source = train_loader(data_config(textured_store, "resident", augment=CROP))
    take(source)
    assert len(decodings) == CLIPS
    lookups.clear()
    source.set_epoch(1)
    assert len(take(source)) == CLIPS // 6
    source.close()
    assert len(decodings) == CLIPS and not lookups


@pytest.mark.parametrize("views", [1, 2])
def test_opencv_decodes_a_picture_once_for_each_view(textured_store: Path, counted: Counter, views: int):
    decodings = counted(cv2, "imdecode")
    source = train_loader(data_config(textured_store, "reference", augment=CROP), InputSpec(image_views=views))
    take(source)
    source.close()
    assert len(decodings) == views * CLIPS


@pytest.mark.parametrize("views", [1, 2])
def test_dalis_graph_decodes_only_the_crop_once_for_each_view(textured_store: Path, counted: Counter, views: int):
    from nvidia.dali import fn

    whole, crops = counted(fn.decoders, "image"), counted(fn.decoders, "image_slice")
    train_loader(data_config(textured_store, "dali", augment=CROP), InputSpec(image_views=views)).close()
    assert (len(whole), len(crops)) == (0, views)


@EACH
def test_stored_pixels_are_not_decoded(tmp_path: Path, counted: Counter, loader: str):
    from nvidia.dali import fn

    records = [textured_record(number, [EZ], pixels=True) for number in range(6)]
    for record in records:
        record.frames[0].jpeg = None
    store = write_store(tmp_path / "store", records, [EZ], frames={"pixels": "raw"})
    decoders = [counted(cv2, "imdecode"), counted(fn.decoders, "image"), counted(fn.decoders, "image_slice")]
    source = train_loader(data_config(store, loader, augment=CROP))
    assert len(take(source)) == 1
    source.close()
    assert not any(decoders)


def test_blobs_are_read_where_the_file_is_mapped(textured_store: Path):
    source = train_loader(data_config(textured_store, "reference", augment=CROP)).source  # type: ignore[attr-defined]
    blobs = source.read(source.sheet(0, source.order(0), 0, 0))
    ranges = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith("data.mdb")
    ]
    read = [*blobs.pictures[0], *blobs.sounds[0]]
    assert len(read) == 12
    for blob in read:
        first = blob.ctypes.data
        assert any(begin <= first and first + blob.nbytes <= end for begin, end in ranges)
    source.close()


class Storages(TorchDispatchMode):
    """Bytes of every piece of memory that torch's operations on this thread gave back, each counted once."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[int, int] = {}
        self._kept: list[torch.UntypedStorage] = []  # so that no address is used twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._kept.append(storage)
                self.bytes[storage.data_ptr()] = storage.nbytes()
        return found


@EACH
def test_torch_holds_a_batch_once(textured_store: Path, loader: str):
    """And one clip's sound, which is read and widened in a buffer that the next one overwrites."""
    source = train_loader(data_config(textured_store, loader, augment=CROP))
    assert isinstance(source, PlannedLoader)
    source._begin(0, 0, len(source))
    source._next()  # the first batch may bring more
    with Storages() as storages:
        batch = source._next()
    source.close()
    pictures, sounds = batch.image.nbytes, batch.spectrogram.nbytes
    buffers = (2 + 4) * batch.spectrogram[0].numel()
    assert pictures + sounds <= sum(storages.bytes.values()) <= pictures + sounds + buffers + 256
