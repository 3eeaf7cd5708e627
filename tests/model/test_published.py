"""Authors' checkpoints: what is read, what is refused, and that import and export undo each other."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_states import assert_near, drawn_state, plane_wave_batch

from configs.errors import UserError
from configs.load import load_config
from configs.resolve import names, resolve
from model.base import LocalizationModel
from model.build import build_model, main, without_initial_weights
from model.checkpoint import load_checkpoint, resumable
from model.published import as_published, load_published, read_published

GOLDEN = Path(__file__).parents[1] / "golden"
UNUSED = {
    "imgnet.conv1_a.weight": (64, 1, 7, 7),
    "imgnet.conv1_flow.weight": (64, 6, 7, 7),
    "imgnet.fc.bias": (1000,),
    "audnet.conv1.weight": (64, 3, 7, 7),
}
"""Entries that the networks of LVS, VCS and SSL-Align hold and never use."""

OWN_NAMES = {
    "ez_vsl": {"imgnet.conv1.weight", "img_proj.bias", "audnet.layer4.1.bn2.bias", "aud_proj.weight"},
    "fnac": {"imgnet.conv1.weight", "img_proj.bias", "audnet.layer4.1.bn2.bias", "aud_proj.weight"},
    "htf": {"imgnet.conv1.weight", "audnet.conv1.weight", "flownet.conv1.weight", "flowatt.key_conv.bias"},
    "jsa": {"imgnet.proj.weight", "audnet.conv1_1.weight", "slot_attn.slots", "aud_decoder.mlp.0.weight"},
    "lvs": {"imgnet.conv1.weight", "audnet.conv1_a.weight"},
    "sira_ssl": {"imgnet.conv1.weight", "attmodule.query_conv.weight", "attmodule_3rd.value_conv.bias"},
    "slavc": {"img_proj1.bias", "aud_proj2.weight", "momentum_imgnet.bn1.bias", "momentum_img_proj2.weight"},
    "ssl_align": {"imgnet.conv1.weight", "audnet.conv1_a.weight"},
    "vcs": {"imgnet.conv1.weight", "audnet.conv1_a.weight", "gluenet.conv_proj.weight", "scale"},
}
"""Some names of each method's authors, from their code; every method needs an entry."""


def build(name: str) -> LocalizationModel:
    return build_model(without_initial_weights(resolve("model.methods", name).Config.model_validate({"name": name})))


def published_state(name: str) -> dict[str, torch.Tensor]:
    model = build(name)
    return drawn_state(model, UNUSED if model.published_unused else {})


def save(path: Path, value) -> Path:
    torch.save(value, path)
    return path


@pytest.mark.parametrize("name", names("model.methods"))
def test_every_method_takes_its_authors_names(name: str):
    model = build(name)
    unused = UNUSED if model.published_unused else {}
    state = drawn_state(model, unused)
    assert OWN_NAMES[name] <= set(state)
    dropped = load_published(model, state, drop=(), where="the file")
    assert set(dropped) == set(unused)
    back = {key: value for key, value in as_published(model).items() if not key.startswith(model.published_absent)}
    assert set(back) == set(state) - set(dropped)
    assert all(torch.equal(back[key], state[key]) for key in back)


@pytest.mark.parametrize("name", ["ez_vsl", "ssl_align"])
def test_import_and_export_undo_each_other(name: str, tmp_path: Path):
    state = published_state(name)
    first = save(tmp_path / "theirs.pth", state)
    main(["import", name, str(first), str(tmp_path / "run")])
    main(["export", name, str(tmp_path / "run"), str(tmp_path / "back.pth")])
    main(["import", name, str(tmp_path / "back.pth"), str(tmp_path / "again")])
    back = read_published(tmp_path / "back.pth")
    kept = {key: value for key, value in state.items() if name == "ez_vsl" or key not in UNUSED}
    absent = {key for key in back if key.startswith(("image_head.", "audio_head."))}
    assert set(back) == set(kept) | absent and bool(absent) == (name == "ssl_align")
    assert all(torch.equal(back[key], value) for key, value in kept.items())
    one, other = (load_checkpoint(tmp_path / folder).model for folder in ("run", "again"))
    assert list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


def test_imported_weights_give_the_golden_map(tmp_path: Path):
    """The golden cases of the other methods load their weights in the authors' names too."""
    source = save(tmp_path / "theirs.pth", {"model_state_dict": published_state("ssl_align")})
    main(["import", "ssl_align", str(source), str(tmp_path / "run")])
    checkpoint = load_checkpoint(tmp_path / "run")
    model = build_model(without_initial_weights(checkpoint.config.model)).eval()
    model.load_state_dict(checkpoint.model)
    with torch.inference_mode():
        found = model.localize(plane_wave_batch(111, 112, frames=299)).map
    with np.load(GOLDEN / "ssl_align" / "case_a.npz") as arrays:
        assert_near(found, arrays["map"][:, 0], 1e-3, "map")


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "model_state_dict"])
def test_wrappers_and_prefixes_are_taken_off(prefix: str, wrapper: str | None, tmp_path: Path):
    state = {f"{prefix}a.weight": torch.ones(2), f"{prefix}b.bias": torch.zeros(1)}
    # Scores as numpy numbers and options as a namespace are what the authors' files hold beside the tensors.
    extras = {"best_cIoU": np.float64(0.4), "epoch": 3, "hyper_parameters": {"args": argparse.Namespace(lr=1e-4)}}
    path = save(tmp_path / "file.pth", state if wrapper is None else {**extras, wrapper: state})
    assert set(read_published(path)) == {"a.weight", "b.bias"}


def test_what_could_run_code_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="could run code"):
        read_published(save(tmp_path / "code.pth", {"model": {"a": torch.ones(1)}, "run": print}))
    with pytest.raises(UserError, match="no state dict"):
        read_published(save(tmp_path / "other.pth", {"epoch": 3}))
    with pytest.raises(UserError, match="no file"):
        read_published(tmp_path / "gone.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "other.pth").read_bytes()[:200])
    with pytest.raises(UserError, match=r"cut\.pth"):
        read_published(tmp_path / "cut.pth")


def test_what_does_not_fit_is_named(tmp_path: Path):
    state = published_state("ez_vsl")
    wrong = {key: value for key, value in state.items() if key != "img_proj.bias"}
    wrong |= {"extra.weight": torch.ones(1), "aud_proj.bias": torch.ones(7)}
    path, out = save(tmp_path / "file.pth", wrong), str(tmp_path / "run")
    pattern = r"1 missing \(img_proj.bias\); 1 unknown \(extra.weight\); 1 of another shape \(aud_proj.bias\)"
    with pytest.raises(UserError, match=pattern):
        main(["import", "ez_vsl", str(path), out])
    assert not Path(out).exists()
    path = save(tmp_path / "more.pth", {**state, "extra.weight": torch.ones(1)})
    main(["import", "ez_vsl", str(path), out, "--drop", "extra."])
    with pytest.raises(UserError, match="holds checkpoints already"):
        main(["import", "ez_vsl", str(path), out, "--drop", "extra."])
    with pytest.raises(UserError, match="is a checkpoint of method 'ez_vsl', not 'fnac'"):
        main(["export", "fnac", out, str(tmp_path / "back.pth")])
    with pytest.raises(UserError, match="of method 'ez_vsl', not 'vcs'"):
        main(["import", "vcs", str(path), str(tmp_path / "other"), "--config", "ez_vsl_demo"])


def test_old_files_lack_counters_alone(tmp_path: Path):
    state = {key: value for key, value in published_state("lvs").items() if not key.endswith("num_batches_tracked")}
    main(["import", "lvs", str(save(tmp_path / "file.pth", state)), str(tmp_path / "run"), "data.batch_size=7"])
    checkpoint = load_checkpoint(tmp_path / "run")
    assert checkpoint.config.data.batch_size == 7 and checkpoint.config.out == tmp_path / "run"
    assert checkpoint.config.model == load_config(["lvs_vggsound144k"]).model
    assert checkpoint.record["imported_from"] == "file.pth" and len(checkpoint.record["imported_sha256"]) == 64
    assert set(checkpoint.record["imported_without"]) == set(UNUSED)
    with pytest.raises(UserError, match=r"holds the weights of file\.pth, without the optimizer"):
        resumable(tmp_path / "run", checkpoint.config)
