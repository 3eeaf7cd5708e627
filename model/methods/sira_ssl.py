"""SIRA-SSL: a map of the picture, one of the picture weighted by the sound, and a second look where both agree."""

import copy
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from configs.schema import named, named_parts
from model.base import Localization, LocalizationModel, MethodConfig
from model.cross_attention import CrossAttention, build_flow_encoder
from model.distributed import gathered
from model.similarity import own_pair_map, widen
from model.two_stream import build_equal_encoders, start_norms
from pipeline.batch import Batch, InputSpec

_EPS = 1e-5  # added to the range by which a map is divided


class SIRASSL(LocalizationModel):
    """The sum of three cosine maps of attended picture features with one audio vector.

    visual: of the image features. gated: of the image features weighted by the sound's own feature map, taken as a
    picture. recursive: of the features of the picture multiplied by the first two maps, in a second pass. The image
    encoder gets no gradient; as published, its BatchNorm nevertheless uses and collects batch statistics, twice a step.
    In training the gate and the mask are brought to 0 .. 1 over the whole batch, as published, or for each clip;
    `localize` does it for each clip, which is what the authors' test at batch size 1 does.

    With `flow`, the keys of the attention come from an encoder of optical flow, `Batch.flow`; the authors' is x first,
    displacement in px / 255, negative ones 0 (a store with the encoding "published"). Without it, the keys come from
    the attended features themselves and nothing else changes: our choice, as the paper's figure shows no flow and its
    code no other variant.
    Attention, gate and the step in the mask make much of little: in half precision the picture and the flow, whose
    products decide where the attention looks, and the first stages of the sound stay in float32 (`float32_stages`).
    Source: Um, Kim, Kim, "Audio-Visual Spatial Integration and Recursive Attention for Robust Sound Source
    Localization", ACM MM 2023 (arXiv 2308.06087), in the form of the authors' code (commit 41aa1f1), which gives every
    number below. The figure weighs the three maps; the code adds them. Their maxpool variant of the flow is not built.
    """

    class Config(MethodConfig):
        flow: bool = Field(
            True, description="keys of the attention from optical flow, as published; else: own features"
        )
        image_encoder: named("model.encoders") = {  # type: ignore[valid-type]
            "name": "resnet",
            "depth": 18,
            "weights": "imagenet",
            "frozen": True,
            "frozen_statistics": False,
            "float32_stages": 5,
        }
        audio_encoder: named("model.encoders") = {  # type: ignore[valid-type]
            "name": "resnet",
            "depth": 18,
            "in_channels": 1,
            "float32_stages": 2,
        }
        flow_encoder: named("model.encoders") = {  # type: ignore[valid-type]
            "name": "resnet",
            "depth": 18,
            "in_channels": 2,
            "weights": "imagenet",
            "float32_stages": 5,
        }
        key_dim: int = Field(64, ge=1, description="size of queries and keys; authors' code: 64")
        saturation: float = Field(0.8, ge=0, le=1, description="mask values above this become 1; authors' code: 0.8")
        normalise_over: Literal["batch", "clip"] = Field(
            "batch", description="in training: what gate and mask are brought to 0 .. 1 over; authors' code: the batch"
        )
        map_weights: tuple[float, float, float] = Field(
            (1.0, 1.0, 1.0), description="of the visual, gated and recursive map; authors' code: 1, 1, 1"
        )
        losses: named_parts("model.losses") = {  # type: ignore[valid-type]
            "trimap": {},
            "trimap_gated": {},
            "trimap_recursive": {},
            "pair_matching": {},
            "region_alignment": {"weight": 10.0},
        }

        @property
        def inputs(self) -> InputSpec:
            return InputSpec(fields=frozenset({"image", "spectrogram"} | ({"flow"} if self.flow else set())))

    outputs = frozenset(
        {"image_features", "gated_features", "recursive_features", "audio_features", "second_look", "audio_grid"}
    )

    published_names: ClassVar[dict[str, str]] = {
        "imgnet.": "image_encoder.net.",
        "audnet.": "audio_encoder.net.",
        "flownet.": "flow_encoder.net.",
        **{
            f"{theirs}.{part}_conv.": f"{ours}.{part}."
            for theirs, ours in {
                "attmodule": "visual_attention",
                "attmodule_2nd": "gated_attention",
                "attmodule_3rd": "recursive_attention",
            }.items()
            for part in ("query", "key", "value")
        },
    }

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.image_encoder, self.audio_encoder = build_equal_encoders(config)
        start_norms(self.audio_encoder, config.audio_encoder)
        channels = key_channels = self.image_encoder.channels
        if config.flow:
            self.flow_encoder = build_flow_encoder(config.flow_encoder)
            key_channels = self.flow_encoder.channels
        self.visual_attention = CrossAttention(channels, key_channels, config.key_dim)
        # They start equal and are trained apart.
        self.gated_attention = copy.deepcopy(self.visual_attention)
        self.recursive_attention = copy.deepcopy(self.visual_attention)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Features of every clip.

        image_features, gated_features, recursive_features (B, D, h, w) and audio_features (B, D), unit length over D.
        second_look (B, D, h, w): of the masked picture, before the attention; audio_grid (B, D, h, w): the sound's
        feature map at the size of the picture's.
        """
        return self._look(batch, self.config.normalise_over)

    def localize(self, batch: Batch) -> Localization:
        """extra: the maps `visual`, `gated` and `recursive`, each within -1 .. 1. embeddings: the mean of the picture's
        cells at the first look; the sound.
        """
        found = self._look(batch, "clip")
        weights = self.config.map_weights
        maps = {
            name: own_pair_map(found[features], found["audio_features"])
            for name, features in (
                ("visual", "image_features"),
                ("gated", "gated_features"),
                ("recursive", "recursive_features"),
            )
        }
        total = torch.stack([weight * each for weight, each in zip(weights, maps.values())]).sum(dim=0)
        reach = sum(abs(weight) for weight in weights)
        embeddings = (found["image_features"].mean(dim=(2, 3)), found["audio_features"])
        return Localization(map=total, bounds=(-reach, reach), extra=maps, embeddings=embeddings)

    def mask(self, maps: Tensor, size: torch.Size, over: str) -> Tensor:
        """What the picture is multiplied by for the second look, (B, 1, H, W) in 0 .. 1, without gradient.

        Args: maps (B, h, w), the sum of the first two; size (H, W); over "batch" or "clip".
        """
        large = functional.interpolate(maps.detach()[:, None], size, mode="bilinear", align_corners=False)
        scaled = _to_unit_range(large, over)
        return torch.where(scaled > self.config.saturation, 1.0, scaled)

    def _look(self, batch: Batch, over: str) -> dict[str, Tensor]:
        picture = batch.image.float() / 255 if batch.image.dtype == torch.uint8 else batch.image
        image, sound = self.image_encoder(picture), self.audio_encoder(batch.spectrogram)
        flow = None
        if self.config.flow:
            assert batch.flow is not None, "the loader must give the flow that `inputs` asks for"
            flow = self.flow_encoder(batch.flow)
        # The encoders are nearly all of the work; what is between them feels every rounding.
        with torch.autocast(image.device.type, enabled=False):
            image, sound = widen(image), widen(sound)
            heard = functional.normalize(sound.amax(dim=(2, 3)), dim=1)
            grid = functional.interpolate(sound, image.shape[2:], mode="bilinear", align_corners=False)
            gated = image + image * _to_unit_range(grid, over)
            visual_features = self.visual_attention.attend(image, flow)
            gated_features = self.gated_attention.attend(gated, flow)
            maps = own_pair_map(visual_features, heard) + own_pair_map(gated_features, heard)
            masked = picture * self.mask(maps, picture.shape[2:], over)
        second = self.image_encoder(masked)
        return {
            "image_features": visual_features,
            "gated_features": gated_features,
            "recursive_features": self.recursive_attention.attend(second, flow),
            "audio_features": heard,
            "second_look": widen(second),
            "audio_grid": grid,
        }


def _to_unit_range(values: Tensor, over: str) -> Tensor:
    """Values (B, C, H, W) moved and scaled to 0 .. 1, over the whole batch or for each clip."""
    dims = (0, 1, 2, 3) if over == "batch" else (1, 2, 3)
    low, high = values.amin(dims, keepdim=True), values.amax(dims, keepdim=True)
    if over == "batch":
        low, high = gathered(low).amin(0, keepdim=True), gathered(high).amax(0, keepdim=True)
    return (values - low) / (high - low + _EPS)
