"""The figure and the gallery of the README, drawn by checkpoints of a real store."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from configs.errors import UserError
from configs.load import load_config
from examples.figure import draw, localize, main, picture_clips
from model.build import build_model
from model.checkpoint import Checkpoint, capture_rng, save_checkpoint
from pipeline.store import Store

CONFIG = """
model:
  name: {method}
  image_encoder: {{name: resnet}}
  audio_encoder: {{name: resnet, in_channels: 1}}
data:
  image: {{size_px: 32}}
  audio: {{frontend: logmel64, duration_s: 0.5}}
  loader: {{name: reference, workers: 1}}
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two untrained methods as checkpoints, the second after two epochs as it says."""
    folder = tmp_path_factory.mktemp("checkpoints")
    paths = []
    for method, history in (("ez_vsl", []), ("lvs", [{"epoch": 1}, {"epoch": 2}])):
        file = folder / f"{method}.yaml"
        file.write_text(CONFIG.format(method=method))
        config = load_config([str(file)])
        torch.manual_seed(0)
        checkpoint = Checkpoint(
            config=config,
            model=build_model(config.model).state_dict(),
            optimizer={},
            step=7,
            loader={},
            rng=capture_rng(),
            record={},
            history=history,
        )
        paths.append(save_checkpoint(folder / method, checkpoint, keep=1))
    return paths


def test_pictures_hold_what_the_checkpoints_say(packed_store: Path, checkpoints: list[Path]):
    with Store(packed_store) as store:
        labels, pictures, sounds = picture_clips(store, ["clip_20", "clip_03"], checkpoints)
        _, _, maps, _ = localize(checkpoints[1], store, ["clip_20"])
        assert "clip_16" in maps and "clip_03" not in maps  # of its split, and no other
    assert labels == ["ez_vsl, step 7", "lvs, epoch 2"]
    assert [picture.clip_id for picture in pictures] == ["clip_20", "clip_03"]
    assert all(picture.truth is not None and len(picture.layers) == 2 for picture in pictures)
    assert sounds["clip_20"].shape == (64, 26)  # 0.5 s every 20 ms
    native = maps.of(["clip_20"])[0]
    side = native.shape[-1]
    assert side == 7  # of the 224 px that it got
    heat = pictures[0].layers[1].heat
    assert heat.min() == 0 and heat.max() == 255
    coarse = cv2.resize(heat, (side, side), interpolation=cv2.INTER_AREA).astype(float)
    assert np.corrcoef(coarse.ravel(), native.numpy().ravel())[0, 1] > 0.9


def test_figure_has_a_column_a_clip_and_a_row_a_map(packed_store: Path, checkpoints: list[Path]):
    with Store(packed_store) as store:
        labels, pictures, sounds = picture_clips(store, ["clip_03", "clip_20", "clip_21"], checkpoints)
    upright = draw(pictures, sounds, labels, upright=True)
    assert [axes.get_title() for axes in upright.axes[:3]] == ["clip_03", "clip_20", "clip_21"]
    assert [axes.get_ylabel() for axes in upright.axes[::3]] == ["frame", "log-mel", *labels]
    assert np.array_equal(upright.axes[0].images[0].get_array(), pictures[0].plain()[:, :, ::-1])
    overlay = pictures[2].overlay(pictures[2].layers[1])
    assert np.array_equal(upright.axes[11].images[0].get_array(), overlay[:, :, ::-1])
    lying = draw(pictures[:1], sounds, labels, upright=False)
    assert len(lying.axes) == 4 and {axes.get_title() for axes in lying.axes} == {"frame", "log-mel", *labels}


def test_command_writes_a_figure_and_a_gallery(packed_store: Path, checkpoints: list[Path], tmp_path: Path):
    arguments = [*map(str, checkpoints), "--clips", "clip_16,clip_17"]
    assert main([str(packed_store), str(tmp_path / "made" / "figure.jpg"), *arguments]) == 0
    assert main([str(packed_store), str(tmp_path / "gallery"), *arguments]) == 0
    figure = cv2.imread(str(tmp_path / "made" / "figure.jpg"))
    assert figure is not None and figure.shape[0] > figure.shape[1] and figure.std() > 20
    assert sorted(path.name for path in (tmp_path / "gallery").iterdir()) == ["clip_16.jpg", "clip_17.jpg"]


def test_wrong_input_is_said(packed_store: Path, checkpoints: list[Path], tmp_path: Path):
    with pytest.raises(UserError, match="has no clip none, nobody; it has clip_00, clip_01"):
        main([str(packed_store), str(tmp_path), str(checkpoints[0]), "--clips", "none,clip_00,nobody"])
    with pytest.raises(UserError, match=r"figure\.gif is neither a folder nor a picture: end it with \.jpg"):
        main([str(packed_store), "figure.gif", str(checkpoints[0])])
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="cannot write the figure to"):
        main([str(packed_store), str(tmp_path / "taken"), str(checkpoints[0]), "--clips", "clip_00"])
