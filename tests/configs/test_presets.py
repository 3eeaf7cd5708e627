"""Every preset of a published training: it loads, and its header's commands pack what it asks for."""

import re
from pathlib import Path

import pytest

from configs.id_lists import list_names
from configs.load import CONFIG_FOLDER, load_config
from configs.resolve import names

OURS = ("_demo", "_realset")
"""Endings of presets of no paper: for the example clips, and for a small set of photos and sounds."""

PRESETS = sorted(path.stem for path in CONFIG_FOLDER.glob("*.yaml") if not path.stem.endswith(OURS))
PROTOCOLS = {"slavc": "slavc_rel", "sira_ssl": "sira"}
"""Protocols whose name is not that of their method."""


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_of_one_piece(preset: str):
    config = load_config([preset])
    header = (CONFIG_FOLDER / f"{preset}.yaml").read_text(encoding="utf-8")
    method, _, training = preset.rpartition("_")
    assert config.model.name == method and config.evaluate.protocol.name == PROTOCOLS.get(method, method)
    assert config.data.store == Path("stores") / training
    family = "flickr" if training.startswith("flickr") else "vggss"
    assert config.evaluate.sets and all(options.family == family for options in config.evaluate.sets.values())

    assert "# Paper: " in header and f"python train.py configs/{preset}.yaml" in header
    (pack,) = re.findall(r"python -m preprocess pack auto FOLDER (\S+) --frontend (\w+)(.*?)\n#  +python", header, re.S)
    store, frontend, rest = pack
    assert Path(store) == config.data.store and frontend == config.data.audio.frontend.name
    lists = re.findall(r"--list (\S+)", rest)
    assert len(lists) == 2 and set(lists) <= {*list_names(), "train=FILE"}
    assert ("train=FILE" in lists) == (training == "vggsoundfull")
    assert ("--flow published" in rest) == (method in ("htf", "sira_ssl"))
    assert ("preprocess neighbours" in header) == (method == "ssl_align")


def test_every_method_has_presets():
    assert {path.stem.removesuffix("_realset") for path in CONFIG_FOLDER.glob("*_realset.yaml")} == set(
        names("model.methods")
    )
    assert {preset.rpartition("_")[0] for preset in PRESETS} == set(names("model.methods"))
