import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from configs.load import check
from configs.resolve import names
from configs.schema import RunConfig
from model.build import build_model, main
from model.checkpoint import Checkpoint, save_checkpoint
from model.onnx_export import FromWaveform, run_onnx
from pipeline.frontends import lengthen, resample
from pipeline.loader import build_loader
from pipeline.store import Store
from preprocess.engines.local import Local
from preprocess.layouts.manifest import Manifest
from preprocess.options import PackConfig
from preprocess.writer import pack
from tests.model.small_methods import OPTIONS

FRONTENDS = {
    "ez_vsl": "logmel64",
    "fnac": "ez_vsl",
    "htf": "sira",
    "jsa": "jsa",
    "lvs": "lvs",
    "sira_ssl": "sira",
    "slavc": "logmel",
    "ssl_align": "ssl_align",
    "vcs": "vcs",
}
"""Between them, every front-end there is."""


@pytest.fixture(scope="module")
def real_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of the example clips, with flow and the waveform."""
    folder = tmp_path_factory.mktemp("real")
    clips = Path(__file__).parents[2] / "examples" / "clips"
    lines = (clips / "manifest.jsonl").read_text().splitlines()[:3]
    for line in lines:
        shutil.copy(clips / json.loads(line)["video"], folder)
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    layout = Manifest(Manifest.Config(name="manifest"), folder)
    config = PackConfig(flow="signed", short_side_px=64)
    result = pack(layout, folder / "store", config, Local(Local.Config(name="local", workers=0)), dataset="real")
    assert result.packed == 3
    return folder / "store"


@pytest.fixture
def run_of(tmp_path: Path) -> Callable[..., tuple[Path, RunConfig, FromWaveform]]:
    """A function that gives the run folder of a method with random weights, its config, and the same in torch."""

    def build(name: str, **data) -> tuple[Path, RunConfig, FromWaveform]:
        mapping = {
            "model": {"name": name, **OPTIONS[name]},
            "data": {"image": {"size_px": 64}, "audio": {"frontend": FRONTENDS[name], "duration_s": 1.0}, **data},
        }
        config = check(RunConfig, mapping, "test")
        torch.manual_seed(0)
        model = build_model(config.model).eval()
        checkpoint = Checkpoint(
            config=config, model=model.state_dict(), optimizer={}, step=7, loader={}, rng={}, history=[],
            record={"selection": "last epoch"},
        )  # fmt: skip
        save_checkpoint(tmp_path / name / "checkpoints", checkpoint, keep=1)
        return tmp_path / name, config, FromWaveform(model, config.data)

    return build


def real_inputs(store: Path, config: RunConfig, net: FromWaveform) -> dict[str, Tensor]:
    """What the exported file of a method takes, for all clips of a store."""
    data = config.data.model_copy(update={"store": store, "loader": check(RunConfig, {
        "model": "ez_vsl", "data": {"loader": "reference"}}, "test").data.loader})  # fmt: skip
    loader = build_loader(data, net.model.inputs, "train", train=False, batch_size=3)
    (batch,) = loader
    loader.close()
    frontend = data.audio.frontend
    count = round(data.audio.duration_s * frontend.sample_rate_hz)
    sounds = []
    with Store(store) as opened:
        for number in opened.select("train").tolist():
            view = opened.view(number)
            waveform = torch.from_numpy(view.blob("waveform").copy()).float() / 32767
            heard = lengthen(
                resample(waveform, view.fields()["sample_rate_hz"], frontend.sample_rate_hz), count, "tile"
            )
            first = (len(heard) - count) // 2
            sounds.append(heard[first : first + count])
    given = {"image": batch.image.contiguous(), "waveform": torch.stack(sounds)}
    return given if batch.flow is None else {**given, "flow": batch.flow}


def check_export(name: str, run_of: Callable, store: Path, out: Path) -> None:
    import onnx

    run, config, net = run_of(name)
    main(["export-onnx", str(run), str(out)])
    given = real_inputs(store, config, net)
    with torch.no_grad():
        wanted = net(**given)
    found = run_onnx(out, given)
    assert wanted.std() > 1e-3 or name == "jsa"
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    one = run_onnx(out, {key: value[1:2] for key, value in given.items()})
    torch.testing.assert_close(one, wanted[1:2], atol=1e-4, rtol=0)
    said = {item.key: item.value for item in onnx.load(out).metadata_props}
    assert said["method"] == name and said["step"] == "7" and said["selection"] == "last epoch"
    assert json.loads(said["frontend"])["name"] == FRONTENDS[name]
    assert set(given) <= set(said) and "(batch, 3, 64, 64)" in said["image"]


def test_a_method_behind_its_front_end(run_of: Callable, real_store: Path, tmp_path: Path):
    pytest.importorskip("onnxruntime")
    check_export("ez_vsl", run_of, real_store, tmp_path / "map.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in names("model.methods") if name != "ez_vsl"])
def test_every_method_behind_its_front_end(name: str, run_of: Callable, real_store: Path, tmp_path: Path):
    pytest.importorskip("onnxruntime")
    check_export(name, run_of, real_store, tmp_path / "map.onnx")


def test_what_cannot_be_exported(run_of: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "map.onnx"
    with pytest.raises(ValueError, match=r"no checkpoint at .*none"):
        main(["export-onnx", str(tmp_path / "none"), str(out)])
    run, _, _ = run_of("ez_vsl")
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(ValueError, match=r"text\.pt is no file of tensors|text\.pt is damaged"):
        main(["export-onnx", str(tmp_path / "text.pt"), str(out)])
    monkeypatch.setattr("model.onnx_export.find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ValueError, match="needs onnxscript: pip install onnx onnxscript onnxruntime"):
        main(["export-onnx", str(run), str(out)])
    monkeypatch.setattr("model.onnx_export.find_spec", lambda name: name)
    out.write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"map\.onnx exists already"):
        main(["export-onnx", str(run), str(out)])
    assert out.read_bytes() == b"mine"
