"""Every preset of a published training: it loads, and its header's commands pack what it asks for."""

import re
from pathlib import Path

import pytest

from configs.id_lists import list_names, load_list
from configs.load import CONFIG_FOLDER, load_config
from configs.resolve import names

OURS = ("_demo", "_realset")
"""Endings of presets of no paper: for the example clips, and for a small set of photos and sounds."""

PRESETS = sorted(path.stem for path in CONFIG_FOLDER.glob("*.yaml") if not path.stem.endswith(OURS))
TRAININGS = ("vggsound144k", "vggsound144k_clean", "vggsoundfull", "heard110", "flickr144k")
"""Lists that every method has a preset for."""

PROTOCOLS = {"slavc": "slavc_rel", "sira_ssl": "sira"}
"""Protocols whose name is not that of their method."""


def parts(preset: str) -> tuple[str, str]:
    """The method and the training list in a preset's name."""
    (method,) = (name for name in names("model.methods") if preset.startswith(f"{name}_"))
    return method, preset.removeprefix(f"{method}_")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_of_one_piece(preset: str):
    config = load_config([preset])
    header = (CONFIG_FOLDER / f"{preset}.yaml").read_text(encoding="utf-8")
    method, training = parts(preset)
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
    wanted = {f"{method}_{training}" for method in names("model.methods") for training in TRAININGS}
    assert wanted <= set(PRESETS)


def test_what_extends_a_preset_changes_the_data_alone():
    """But for the number of epochs, which the authors of several methods raise for the small lists."""
    for preset in PRESETS:
        base, config = load_config([f"{parts(preset)[0]}_vggsound144k"]), load_config([preset])
        assert config.model == base.model and config.optim == base.optim, preset
        assert config.train.model_copy(update={"epochs": base.train.epochs}) == base.train, preset
        assert config.data.model_copy(update={"store": base.data.store}) == base.data, preset


def test_clean_presets_train_on_no_test_clip():
    for preset in (name for name in PRESETS if parts(name)[1] == "vggsound144k_clean"):
        assert "--list vggsound_144k_clean " in (CONFIG_FOLDER / f"{preset}.yaml").read_text(encoding="utf-8")
    assert not set(load_list("vggsound_144k_clean")) & set(load_list("vggss_test"))
