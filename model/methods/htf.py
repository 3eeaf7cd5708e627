"""Hear The Flow: what moves tells the picture's attention where a sound may come from."""

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from configs.schema import named, named_parts
from model.base import Localization, LocalizationModel, MethodConfig
from model.cross_attention import CrossAttention, build_flow_encoder
from model.similarity import own_pair_map, widen
from model.two_stream import build_equal_encoders, hear, start_norms
from pipeline.batch import Batch, InputSpec


class HTF(LocalizationModel):
    """The cosine of the sound with picture features that attend to each other under keys from optical flow.

    The image encoder gets no gradient; as published, its BatchNorm nevertheless uses and collects batch statistics. The
    flow, `Batch.flow`, is x first; the authors' is displacement in px / 255, negative ones 0 (a store with the encoding
    "published").
    In half precision the picture and the flow, whose products decide where the attention looks, stay in float32
    (`float32_stages`).
    Source: Fedorishin et al., "Hear The Flow: Optical Flow-Based Self-Supervised Visual Sound Source Localization",
    WACV 2023, in the form of the authors' code, which gives every number below. Their maxpool variant of the flow is
    not built.
    """

    class Config(MethodConfig):
        image_encoder: named("model.encoders") = {  # type: ignore[valid-type]
            "name": "resnet",
            "depth": 18,
            "weights": "imagenet",
            "frozen": True,
            "frozen_statistics": False,
            "float32_stages": 5,
        }
        audio_encoder: named("model.encoders") = {"name": "resnet", "depth": 18, "in_channels": 1}  # type: ignore[valid-type]
        flow_encoder: named("model.encoders") = {  # type: ignore[valid-type]
            "name": "resnet",
            "depth": 18,
            "in_channels": 2,
            "weights": "imagenet",
            "float32_stages": 5,
        }
        key_dim: int = Field(64, ge=1, description="size of queries and keys; authors' code: 64")
        losses: named_parts("model.losses") = {"trimap": {}}  # type: ignore[valid-type]

        @property
        def inputs(self) -> InputSpec:
            return InputSpec(fields=frozenset({"image", "spectrogram", "flow"}))

    outputs = frozenset({"image_features", "audio_features"})
    published_names: ClassVar[dict[str, str]] = {
        "imgnet.": "image_encoder.net.",
        "audnet.": "audio_encoder.net.",
        "flownet.": "flow_encoder.net.",
        "flowatt.query_conv.": "attention.query.",
        "flowatt.key_conv.": "attention.key.",
        "flowatt.value_conv.": "attention.value.",
    }

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.image_encoder, self.audio_encoder = build_equal_encoders(config)
        start_norms(self.audio_encoder, config.audio_encoder)
        self.flow_encoder = build_flow_encoder(config.flow_encoder)
        self.attention = CrossAttention(self.image_encoder.channels, self.flow_encoder.channels, config.key_dim)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """image_features (B, D, h, w), attended, and audio_features (B, D), both of unit length over D."""
        assert batch.flow is not None, "the loader must give the flow that `inputs` asks for"
        image, flow = self.image_encoder(batch.image), self.flow_encoder(batch.flow)
        sound = hear(self.audio_encoder, batch.spectrogram)
        return {
            "image_features": self.attention.attend(image, flow),
            "audio_features": functional.normalize(widen(sound), dim=1),
        }

    def localize(self, batch: Batch) -> Localization:
        """embeddings: the mean of the attended cells, each of which the loss compares with the sound; the sound."""
        found = self.forward(batch)
        embeddings = (found["image_features"].mean((2, 3)), found["audio_features"])
        return Localization(map=own_pair_map(**found), bounds=(-1.0, 1.0), embeddings=embeddings)
