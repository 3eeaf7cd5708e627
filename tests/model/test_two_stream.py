"""The network that EZ-VSL, FNAC and LVS share: what its cosines and first losses must be, and what it refuses."""

import math

import pytest
import torch

from configs.errors import UserError
from configs.resolve import resolve
from model.build import build_model, build_objective
from model.similarity import all_pairs, all_pairs_max, own_pair_map
from pipeline.batch import Batch


def batch(count: int, seed: int = 0, size: int = 64) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    return Batch(
        clip_id=[str(index) for index in range(count)],
        valid=torch.ones(count, dtype=torch.bool),
        image=torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=draw),
        spectrogram=torch.randn(count, 1, 64, 50, generator=draw),
    )


def config(name: str, **options):
    return resolve("model.methods", name).Config.model_validate({"name": name, **options})


def test_the_first_loss_is_chance_and_the_cosines_are_cosines():
    torch.manual_seed(0)
    objective = build_objective(config("ez_vsl", image_encoder="resnet")).eval()
    clips = batch(8)
    with torch.no_grad():
        features = objective.model(clips)
        total = objective(clips, torch.ones(1)).total
    cells = all_pairs(features["image_features"], features["audio_features"])
    assert cells.abs().max() <= 1 + 1e-6
    assert float(total) == pytest.approx(2 * math.log(8), abs=0.5)


def test_all_pairs_holds_the_own_pairs_and_the_best_cells():
    draw = torch.Generator().manual_seed(0)
    image, sound = torch.randn(3, 8, 2, 4, generator=draw), torch.randn(3, 8, generator=draw)
    cells = all_pairs(image, sound)
    assert cells.shape == (3, 8, 3)
    torch.testing.assert_close(cells.diagonal(dim1=0, dim2=2).T, own_pair_map(image, sound).flatten(1))
    torch.testing.assert_close(cells.amax(1), all_pairs_max(image, sound))


def test_fnac_is_ez_vsl_when_it_does_not_train():
    options = {"image_encoder": {"name": "resnet"}, "feature_dim": 16}
    ez_vsl, fnac = build_model(config("ez_vsl", **options)).eval(), build_model(config("fnac", **options)).eval()
    fnac.load_state_dict(ez_vsl.state_dict())
    clips = batch(2)
    with torch.inference_mode():
        assert torch.equal(ez_vsl.localize(clips).map, fnac.localize(clips).map)


def test_dropout_falls_on_the_encoder_output_before_the_projection():
    torch.manual_seed(0)
    model = build_model(config("fnac", image_encoder={"name": "resnet"})).train()
    seen: dict[str, torch.Tensor] = {}
    model.image_encoder.register_forward_hook(lambda module, given, out: seen.update(before=out.detach()))
    model.image_projection.register_forward_pre_hook(lambda module, given: seen.update(after=given[0].detach()))
    model(batch(2))
    before, after = seen["before"], seen["after"]
    kept = after != 0
    torch.testing.assert_close(after[kept], before[kept] * 10)
    assert float(kept.sum() / (before != 0).sum()) == pytest.approx(0.1, abs=0.03)
    assert model.audio_dropout.p == 0


def test_lvs_has_a_map_of_14_cells_and_no_projection():
    model = build_model(config("lvs")).eval()
    assert {key.split(".")[0] for key in model.state_dict()} == {"image_encoder", "audio_encoder"}
    with torch.inference_mode():
        found = model.localize(batch(1, size=224)).map
    assert found.shape == (1, 14, 14) and found.abs().max() <= 1 + 1e-6


def test_without_projections_the_encoders_must_fit():
    wide = {"name": "efficientnet_lite0", "weights": "none"}
    with pytest.raises(UserError, match=r"1280 channels .*512.* set model\.feature_dim.*name: projected"):
        build_model(config("lvs", image_encoder=wide))
    model = build_model(config("lvs", image_encoder=wide, feature_dim=16)).eval()
    with torch.inference_mode():
        assert model(batch(1))["image_features"].shape == (1, 16, 2, 2)


@pytest.mark.parametrize("name", ["htf", "sira_ssl", "ssl_align", "vcs"])
def test_methods_without_projections_name_the_remedy(name: str):
    wide = {"name": "efficientnet_lite0", "weights": "none"}
    flow = {"flow_encoder": {"name": "resnet", "in_channels": 2}} if name in ("htf", "sira_ssl") else {}
    with pytest.raises(UserError, match=r"channels: 512, encoder: ") as raised:
        build_model(config(name, image_encoder=wide, **flow))
    assert "model.image_encoder={name: projected" in str(raised.value) and "feature_dim" not in str(raised.value)
    model = build_model(config(name, image_encoder={"name": "projected", "encoder": wide}, **flow)).eval()
    clips = batch(2)
    clips.flow = torch.rand(2, 2, 64, 64)
    with torch.inference_mode():
        assert model.localize(clips).map.shape == (2, 2, 2)


def test_norms_of_a_projected_encoder_start_as_those_of_a_bare_one():
    projected = {"name": "projected", "channels": 16, "encoder": {"name": "resnet", "in_channels": 1}}
    model = build_model(config("ez_vsl", image_encoder="resnet", audio_encoder=projected))
    scales = model.audio_encoder.encoder.net.layer1[0].bn1.weight
    assert 0.01 < float(scales.detach().std()) < 0.04
    assert model.image_encoder.net.layer1[0].bn1.weight.eq(1).all()
    lvs = build_model(config("lvs"))
    assert not lvs.image_encoder.net.layer1[0].bn1.weight.eq(1).any()


def test_flow_of_another_stride_is_refused():
    encoders = {"image_encoder": {"name": "resnet"}, "flow_encoder": {"name": "resnet", "in_channels": 2}}
    encoders["flow_encoder"]["last_stride"] = 1
    model = build_model(config("htf", **encoders)).eval()
    clips = batch(1)
    clips.flow = torch.rand(1, 2, 64, 64)
    with pytest.raises(UserError, match=r"4 x 4 cells, the image encoder of 2 x 2"):
        model(clips)
