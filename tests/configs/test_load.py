"""Configs: order of force, types by field, and messages that name the key and the nearest name."""

from pathlib import Path

import pytest

from configs.errors import UserError
from configs.load import as_mapping, as_yaml, check, load_config, load_frontend, load_mapping, refuse_other_config
from configs.resolve import names, resolve
from configs.schema import EvaluateConfig, FrontendConfig, RunConfig

PRESETS = sorted(path for path in (Path(__file__).parents[2] / "configs").glob("*.yaml"))


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_is_valid_and_survives_being_written(preset: Path):
    config = load_config([preset.stem])
    assert check(RunConfig, as_mapping(config), "round trip") == config
    assert config.out == Path("runs") / f"{preset.stem}-s{config.seed}"


def test_the_resolved_file_is_itself_a_config(tmp_path: Path):
    config = load_config(["ez_vsl_realset", "optim.lr=2e-4"])
    path = write(tmp_path, "config.yaml", as_yaml(config))
    assert load_config([str(path)]) == config


def test_order_of_force(tmp_path: Path):
    write(tmp_path, "first.yaml", "optim: {lr: 1e-2, weight_decay: 0.5}\ndata: {batch_size: 2}\n")
    write(tmp_path, "second.yaml", "optim: {lr: 2e-2}\n")
    path = write(tmp_path, "run.yaml", "extends: [first.yaml, second.yaml]\nmodel: ez_vsl\ndata: {batch_size: 3}\n")
    config = load_config([str(path), "data.batch_size=4"])
    assert (config.optim.lr, config.optim.weight_decay, config.data.batch_size) == (2e-2, 0.5, 4)


def test_extends_is_one_level_deep(tmp_path: Path):
    write(tmp_path, "a.yaml", "seed: 1\n")
    write(tmp_path, "b.yaml", "extends: a.yaml\n")
    path = write(tmp_path, "c.yaml", "extends: b.yaml\nmodel: ez_vsl\ndata: {}\n")
    with pytest.raises(UserError, match="only one level"):
        load_config([str(path)])


def test_scalars_are_read_by_the_type_of_their_field(tmp_path: Path):
    text = "model: ez_vsl\nseed: 012\noptim: {lr: 1e-4}\ntrain: {compile: no, channels_last: yes}\ndata: {}\n"
    config = load_config([str(write(tmp_path, "run.yaml", text))])
    assert (config.seed, config.optim.lr) == (12, 1e-4)
    assert config.train.compile is False and config.train.channels_last is True


def test_null_removes_a_named_part():
    config = load_config(["ez_vsl_realset", "data.augment.flip=null"])
    assert "flip" not in config.data.augment and "time_crop" in config.data.augment


def test_another_name_starts_the_part_afresh():
    config = load_config(["ez_vsl_realset", "model.image_encoder={name: resnet, depth: 34}"])
    assert config.model.image_encoder.depth == 34
    assert config.model.image_encoder.weights == "none"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optim.lerning_rate=1", ["optim", "lerning_rate", "Known keys", "lr"]),
        ("optm.lr=1", ["optm", "Did you mean 'optim'"]),
        ("optim.lr=-1", ["optim.lr", "greater than 0", "-1"]),
        ("optim.lr=fast", ["optim.lr", "number", "fast"]),
        ("train.epochs=1.5", ["train.epochs", "integer"]),
        ("model.name=ezvsl", ["model", "no 'ezvsl' in methods", "Did you mean 'ez_vsl'"]),
        ("model.losses.max_mul={}", ["no 'max_mul' in losses", "Did you mean 'max_mil'"]),
        ("model.losses.max_mil.tau=0", ["model.losses", "tau", "greater than 0"]),
        ("model.image_encoder.depth=19", ["image_encoder", "depth", "18, 34, 50"]),
        ("data.augment.flip.prob=1", ["data.augment", "prob", "Known keys"]),
        ("data.audio.frontend=logmell", ["no front-end 'logmell'", "Did you mean 'logmel"]),
        ("data.loader=dalli", ["no 'dalli' in loaders", "Did you mean 'dali'"]),
        ("evaluate.protocol=ez", ["no 'ez' in protocols"]),
        ("evaluate.metrics.cioo={}", ["no 'cioo' in metrics", "Did you mean 'ciou'"]),
        ("seed", ["'seed' is not an override", "key=value"]),
        ("data=[", ["not valid YAML"]),
    ],
)
def test_what_is_wrong_is_named(override: str, parts: list[str]):
    with pytest.raises(UserError) as error:
        load_config(["ez_vsl_realset", override] if "model.image_encoder.depth" not in override else
                    ["ez_vsl_realset", "model.image_encoder={name: resnet}", override])  # fmt: skip
    for part in parts:
        assert part in str(error.value)


def test_all_problems_are_told_at_once():
    with pytest.raises(UserError) as error:
        load_config(["ez_vsl_realset", "optim.lr=-1", "train.epochs=0"])
    assert "optim.lr" in str(error.value) and "train.epochs" in str(error.value)


def test_missing_files_are_named(tmp_path: Path):
    with pytest.raises(UserError, match="neither a file nor one of"):
        load_config(["no_such_preset"])
    with pytest.raises(UserError, match="name a config"):
        load_config([])
    path = write(tmp_path, "run.yaml", "extends: gone.yaml\n")
    with pytest.raises(UserError, match=r"gone\.yaml"):
        load_config([str(path)])
    with pytest.raises(UserError, match="mapping at its top level"):
        load_mapping(write(tmp_path, "list.yaml", "- 1\n"))


def test_required_values_have_no_default():
    with pytest.raises(UserError, match="model: Field required"):
        check(RunConfig, {"data": {}}, "here")


@pytest.mark.parametrize(
    "package", ["model.methods", "model.losses", "model.encoders", "model.metrics", "model.protocols",
                "pipeline.augment", "pipeline.loaders", "preprocess.layouts"],
)  # fmt: skip
def test_every_extension_file_resolves_by_its_name(package: str):
    assert names(package)
    for name in names(package):
        assert resolve(package, name).Config.model_config["extra"] == "forbid"


@pytest.mark.parametrize("path", sorted((PRESETS[0].parent / "frontends").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_front_end_is_valid(path: Path):
    frontend = load_frontend(path.stem)
    assert frontend.name == path.stem
    assert check(FrontendConfig, as_mapping(frontend), "round trip") == frontend


def test_configs_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        EvaluateConfig().batch_size = 3  # type: ignore[misc]


def test_a_run_goes_on_only_with_its_own_config():
    old, new = load_config(["ez_vsl_realset"]), load_config(["ez_vsl_realset", "optim.lr=5e-4", "out=elsewhere"])
    with pytest.raises(UserError) as error:
        refuse_other_config(new, old, free=("out",), where=Path("x"))
    assert "optim.lr: 0.001 in the checkpoint, 0.0005 now" in str(error.value) and "out:" not in str(error.value)
    refuse_other_config(new, old, free=("out", "optim"), where=Path("x"))
