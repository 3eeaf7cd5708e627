"""Every method made small: repeatable, free of downloads, and batches to feed it."""

from dataclasses import fields, replace

import torch
from torch import Tensor

from configs.resolve import resolve
from model.build import build_objective
from model.objective import Objective
from pipeline.batch import Batch

OPTIONS: dict[str, dict] = {
    "ez_vsl": {"image_encoder": {"name": "resnet"}, "feature_dim": 32},
    "fnac": {"image_encoder": {"name": "resnet"}, "feature_dim": 32},
    "htf": {
        "image_encoder": {"name": "resnet", "frozen": True, "frozen_statistics": False},
        "flow_encoder": {"name": "resnet", "in_channels": 2},
    },
    "jsa": {
        "image_encoder": {"name": "resnet"},
        "feature_dim": 32,
        "update_hidden": 32,
        "mask_share": 0.5,  # else no token of so few may be hidden, and the learned one gets no gradient
        "losses": {
            "mutual_neighbour_contrast": {"neighbours": 2},
            "slot_reconstruction": {},
            "slot_divergence": {},
            "attention_matching": {},
        },
    },
    "lvs": {},
    "sira_ssl": {
        "image_encoder": {"name": "resnet", "frozen": True, "frozen_statistics": False},
        "flow_encoder": {"name": "resnet", "in_channels": 2},
    },
    "slavc": {"image_encoder": {"name": "resnet"}, "feature_dim": 32},
    "ssl_align": {"embedding_dim": 32},
    "vcs": {},
}
"""Options that make a method small, repeatable and free of downloads; every method needs an entry."""

WITHOUT_GRADIENT: dict[str, set[str]] = {
    # Added to all logits of a query alike, they cancel in its softmax.
    "htf": {"attention.key.bias"},
    "sira_ssl": {f"{each}_attention.key.bias" for each in ("visual", "gated", "recursive")},
    # Added to all slots' queries alike, they cancel in the softmax over slots: what they get is rounding.
    "jsa": {f"{side}_attention.{part}.bias" for side in ("image", "audio") for part in ("to_q", "norm_slots")},
}
"""Published parameters without effect, which stay because published weights have them."""


def build(name: str) -> Objective:
    torch.manual_seed(0)
    config = resolve("model.methods", name).Config.model_validate({"name": name, **OPTIONS[name]})
    return build_objective(config)


def make_batch(count: int = 4, seed: int = 0, size: int = 64, views: int = 1) -> Batch:
    """Noise for every field that a method may ask for; `views` of picture and sound, the clip's own included."""
    draw = torch.Generator().manual_seed(seed)

    def picture() -> Tensor:
        whole = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=draw)
        return whole.permute(0, 3, 1, 2)

    def sound() -> Tensor:
        return torch.randn(count, 1, 64, 50, generator=draw)

    return Batch(
        clip_id=[str(index) for index in range(count)],
        valid=torch.ones(count, dtype=torch.bool),
        image=picture(),
        spectrogram=sound(),
        flow=torch.rand(count, 2, size, size, generator=draw),
        more_images=tuple(picture() for _ in range(views - 1)),
        more_spectrograms=tuple(sound() for _ in range(views - 1)),
    )


def take(source: Batch, order: list[int]) -> Batch:
    """The clips of a batch in another order, or some of them."""

    def chosen(value):
        if isinstance(value, tuple):
            return tuple(chosen(each) for each in value)
        return [value[index] for index in order] if isinstance(value, list) else value[order]

    values = {item.name: getattr(source, item.name) for item in fields(source)}
    return replace(source, **{name: chosen(value) for name, value in values.items() if value is not None})
