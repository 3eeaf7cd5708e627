from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from configs.load import load_config
from configs.schema import RunConfig
from pipeline.__main__ import main
from pipeline.batch import InputSpec
from pipeline.loader import build_loader
from pipeline.show import EPOCHS, collect
from preprocess.__main__ import main as preprocess
from tests.pipeline.stores import textured_record, write_store
from tests.pipeline.streams import EZ, MEL, take

SMALL = ("data.image.size_px=64", "data.audio.duration_s=1.5", "data.batch_size=6")


def config_of(preset: str, store: Path, *overrides: str) -> RunConfig:
    config = load_config([preset, *SMALL, *overrides])
    return config.model_copy(update={"data": config.data.model_copy(update={"store": store})})


@pytest.mark.parametrize("loader", ["reference", "dali"])
def test_a_sheet_holds_what_training_and_tests_get(textured_store: Path, loader: str):
    config = config_of("ez_vsl_demo", textured_store, f"data.loader={loader}", "seed=3")
    sheet = collect(config, "train", 2)
    assert [list(clip.columns) for clip in sheet.clips] == [["as in a test", "epoch 0", "epoch 1", "epoch 2"]] * 2
    found = {(clip.about[0], title): inputs for clip in sheet.clips for title, inputs in clip.columns.items()}
    seen = 0
    for train in (True, False):
        source = build_loader(config.data, InputSpec(), "train", train=train, seed=3)
        for epoch in range(EPOCHS if train else 1):
            source.set_epoch(epoch)
            for batch in take(source):
                for row, clip_id in enumerate(batch.clip_id):
                    shown = found.get((clip_id, f"epoch {epoch}" if train else "as in a test"))
                    if shown is not None:
                        assert torch.equal(shown["picture"], batch.image[row])
                        torch.testing.assert_close(shown["sound"], batch.spectrogram[row])
                        seen += 1
        source.close()
    assert seen == len(found) == 2 * (1 + EPOCHS)
    first, second = (found[sheet.clips[0].about[0], f"epoch {epoch}"]["picture"] for epoch in (0, 1))
    assert not torch.equal(first, second), "every epoch draws anew"
    pictures = torch.stack([inputs["picture"] for (_, title), inputs in found.items() if title != "as in a test"])
    shape, least, mean, greatest, _ = sheet.numbers["picture, training"]
    assert shape == "3 x 64 x 64" and (float(least), float(greatest)) == (pictures.min(), pictures.max())
    assert float(mean) == pytest.approx(pictures.double().mean().item(), rel=1e-3)
    assert "random_resized_crop (scale (0.5, 1.0)" in sheet.facts["augmentation"]
    assert "logmel64: 1.5 s at 16000 Hz, 64 mel bins x 76 frames of 20 ms" in sheet.facts["sound"]
    assert sheet.facts["loader"].startswith(loader)


def test_the_preset_says_which_inputs_are_shown(tmp_path: Path):
    records = [textured_record(number, [EZ], flow=True) for number in range(8)]
    flow = {"encoding": "signed", "px_per_code": 0.125}
    store = write_store(tmp_path / "store", records, [EZ], flow=flow)
    np.save(tmp_path / "embeddings.npy", np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32))
    options = [word for kind in ("--image", "--audio") for word in (kind, str(tmp_path / "embeddings.npy"))]
    preprocess(["neighbours", str(store), "--k", "3", *options])
    small = ("data.loader=reference", "data.audio.frontend=ez_vsl")
    sheet = collect(config_of("sira_ssl_vggsound144k", store, *small), "train", 1)
    (clip,) = sheet.clips
    assert all(list(inputs) == ["picture", "sound", "flow"] for inputs in clip.columns.values())
    assert clip.columns["epoch 0"]["flow"].shape == (2, 64, 64) and sheet.facts["flow"] == "px of the stored frame"

    sheet = collect(config_of("ssl_align_vggsound144k", store, *small), "train", 1)
    (clip,) = sheet.clips
    further = ["view 2, picture", "view 2, sound", "neighbour 1, picture", "neighbour 1, sound"]
    assert list(clip.columns["epoch 1"]) == ["picture", "sound", *further]
    assert list(clip.columns["as in a test"]) == ["picture", "sound"]
    assert "spectrogram_mask" in sheet.facts["of view 2"] and "flow" not in sheet.facts

    out = tmp_path / "sheet.png"
    overrides = [*SMALL, *small]
    main(["show", str(store), "--config", "ssl_align_vggsound144k", "--clips", "2", "--out", str(out), *overrides])
    two = cv2.imread(str(out))
    main(["show", str(store), *overrides, "--config", "ssl_align_vggsound144k", "--clips", "1", "--out", str(out)])
    one = cv2.imread(str(out))
    assert two is not None and one is not None and two.shape[1] == one.shape[1]
    assert two.shape[0] > one.shape[0] > one.shape[1], "a block of six rows a clip"


def greens(path: Path) -> np.ndarray:
    """Where a sheet has the colour of the truth, `(H, W)` bool."""
    picture = cv2.imread(str(path))
    assert picture is not None
    return (np.abs(picture.astype(int) - (94, 222, 74)) < 25).all(2)


def test_the_truth_is_drawn_where_it_holds(packed_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "sheet.png"
    common = ["show", str(packed_store), "--config", "ez_vsl_demo", "--clips", "2", "--out", str(out), *SMALL]
    main([*common, "--split", "test", "data.loader=reference"])
    tested = greens(out)
    said = capsys.readouterr().out
    assert "2 of the 8 of split 'test'" in said and "wrote" in said
    assert tested[:, : tested.shape[1] // 2].sum() > 100 and tested[:, tested.shape[1] // 2 :].sum() > 100
    main([*common, "data.loader=reference"])
    trained = greens(out)
    columns = np.array_split(trained.sum(0), 5)
    assert all(part.sum() > 100 for part in columns[:2]), "as stored, and as in a test"
    assert not any(part.sum() for part in columns[2:]), "an augmented picture is another part of the frame"


def test_what_cannot_be_shown(textured_store: Path, tmp_path: Path):
    def refused(text: str, *arguments: str, store: Path = textured_store) -> None:
        with pytest.raises(ValueError, match=text):
            main(
                ["show", str(store), "--out", str(tmp_path / "sheet.png"), *SMALL, "data.loader=reference", *arguments]
            )

    refused("has no split 'val'; it has: test, train", "--split", "val")
    refused("asks for optical flow", "--config", "htf_vggsound144k", "data.audio.frontend=ez_vsl")
    refused("asks for neighbours", "--config", "ssl_align_vggsound144k", "data.audio.frontend=ez_vsl")
    refused("no config 'ez_vs'", "--config", "ez_vs")
    refused("has another ending", "--out", str(tmp_path / "sheet.doc"))
    refused("no folder .*none", "--out", str(tmp_path / "none" / "sheet.png"))
    refused("not give the clips of the split in their order", "data.loader=synthetic")
    refused("is no finished store", store=tmp_path)
    mute = write_store(tmp_path / "mute", [textured_record(0, [MEL], waveform=False)], [MEL])
    refused("has neither the front-end 'ez_vsl' nor waveforms .*its front-ends: logmel64", store=mute)
    assert not (tmp_path / "sheet.png").exists()
