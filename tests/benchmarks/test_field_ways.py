"""The field's loaders: what they hand out has the shapes and values that their descriptions give."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.field_ways import RATE_HZ, WAYS, FieldWay, field_batches, read_clips, write_clips
from configs.errors import UserError
from pipeline.store import Store

SHAPES = {
    "EZ-VSL": (1, 257, 200),
    "SSL-Align": (1, 257, 299),
    "SSL-Align, 3 views": (1, 257, 299),
    "SIRA": (1, 257, 276),
    "JSA": (1, 257, 501),
    "VCS": (1, 257, 301),
}


@pytest.fixture(scope="module")
def files(packed_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("field") / "files"
    with Store(packed_store) as store:
        names = write_clips(folder, read_clips(store, store.select("train")[:3].tolist()))
    return folder, names


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, files: tuple[Path, list[str]]) -> tuple[str, FieldWay]:
    pytest.importorskip("scipy")
    return request.param, WAYS[request.param](*files)


def test_an_item_has_the_published_shapes(way: tuple[str, FieldWay]):
    name, dataset = way
    torch.manual_seed(0)
    item = dataset[1]
    assert item["image"].shape == (3, 224, 224) and item["image"].dtype == torch.float32
    sounds: list[Tensor] = [item["spectrogram"], *item.get("more_spectrograms", ())]
    assert all(sound.shape == SHAPES[name] and torch.isfinite(sound).all() for sound in sounds)
    assert all(image.shape == (3, 224, 224) for image in item.get("more_images", ()))
    assert ("flow" in item) == (name == "SIRA") and ("more_images" in item) == ("views" in name)
    if name != "JSA":  # whose masks put 0 on the logarithm
        assert sounds[0].min() >= np.log(1e-7) / 12 - 1e-6
    # A tone is heard at its own pitch, whatever the rate that the way works at.
    rate_hz = getattr(dataset, "rate_hz", RATE_HZ)
    heard_hz = float(sounds[0][0].double().exp().mean(1)[2:].argmax() + 2) * rate_hz / 512
    assert abs(heard_hz - 2520) < 2 * rate_hz / 512


def test_batches_hold_every_clip_as_often(files: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(WAYS["SSL-Align"], "__getitem__", lambda self, row: {"image": torch.tensor(row)})
    batches = field_batches(WAYS["SSL-Align"](*files), 2, 3)
    first, second = (torch.cat([each["image"] for each in batches]).tolist() for _ in range(2))
    assert sorted(first) == [0, 0, 1, 1, 2, 2] and len(second) == 6


def test_a_store_without_sounds_is_refused(files: tuple[Path, list[str]], tmp_path: Path):
    from benchmarks.make_store import run

    run(tmp_path / "store", 3, None, clips=2, seconds=1.0, frontend=["ez_vsl"], no_waveform=True, workers=0)
    with Store(tmp_path / "store") as store, pytest.raises(UserError, match="must hold JPEGs and waveforms"):
        list(read_clips(store, [0]))
