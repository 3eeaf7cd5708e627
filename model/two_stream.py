"""One image and one audio encoder into one unit sphere: the network of LVS, which its followers keep."""

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from configs.errors import UserError
from configs.resolve import resolve
from configs.schema import named
from model.base import Localization, LocalizationModel, MethodConfig
from model.similarity import own_pair_map, widen
from pipeline.batch import Batch


class TwoStreamConfig(MethodConfig):
    """Options of the network; the defaults are EZ-VSL's."""

    feature_dim: int | None = Field(
        512, ge=1, description="size D of the common space; null: no projections, D is the encoders' own size"
    )
    image_dropout: float = Field(0.0, ge=0, lt=1, description="share of the image encoder's values set to 0")
    audio_dropout: float = Field(0.0, ge=0, lt=1, description="share of the pooled audio values set to 0")
    image_encoder: named("model.encoders") = {"name": "resnet", "depth": 18, "weights": "imagenet"}  # type: ignore[valid-type]
    audio_encoder: named("model.encoders") = {"name": "resnet", "depth": 18, "in_channels": 1}  # type: ignore[valid-type]


def build_encoders(config: TwoStreamConfig) -> tuple[Any, Any]:
    """The image and the audio encoder, in this order."""
    image, audio = config.image_encoder, config.audio_encoder
    return resolve("model.encoders", image.name)(image), resolve("model.encoders", audio.name)(audio)


def build_equal_encoders(config: Any) -> tuple[Any, Any]:
    """As `build_encoders`, for a method that compares their features as they are.

    Raises: UserError if they differ in size.
    """
    image, audio = build_encoders(config)
    if image.channels != audio.channels:
        narrow, wide = sorted((image.channels, audio.channels))
        which = "image" if image.channels == wide else "audio"
        projections = "set model.feature_dim, or " if hasattr(config, "feature_dim") else ""
        raise UserError(
            f"image encoder '{config.image_encoder.name}' has {image.channels} channels and audio encoder "
            f"'{config.audio_encoder.name}' has {audio.channels}; method '{config.name}' compares them as they are, so "
            f"they must be equal. Choose others, {projections}put a trained projection behind one: "
            f"model.{which}_encoder={{name: projected, channels: {narrow}, encoder: {{name: ...}}}}"
        )
    return image, audio


def start_projection(layer: nn.Conv2d | nn.Linear) -> None:
    """The weights of a projection at the start of training: small and without bias, as the authors of EZ-VSL draw."""
    nn.init.trunc_normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


def start_norms(encoder: Any, config: Any) -> None:
    """BatchNorm scales from N(1, 0.02), as LVS and its followers start an encoder that has no weights yet."""
    if config.name == "projected":
        encoder, config = encoder.encoder, config.encoder
    if config.frozen or config.weights != "none":
        return
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)


def hear(encoder: nn.Module, spectrogram: Tensor) -> Tensor:
    """The audio encoder's largest value in each channel: (B, C). Args: spectrogram (B, 1, F, T)."""
    return torch.amax(encoder(spectrogram), dim=(2, 3))


class TwoStream(LocalizationModel):
    """A 1x1 convolution on the image map and a linear layer on the pooled sound, or neither; the map is a cosine."""

    outputs = frozenset({"image_features", "audio_features"})
    published_names: ClassVar[dict[str, str]] = {
        "imgnet.": "image_encoder.net.",
        "img_proj.": "image_projection.",
        "audnet.": "audio_encoder.net.",
        "aud_proj.": "audio_projection.",
    }

    def __init__(self, config: Any) -> None:
        """Raises: UserError if there are no projections and the encoders differ in size."""
        super().__init__(config)
        build = build_encoders if config.feature_dim else build_equal_encoders
        self.image_encoder, self.audio_encoder = build(config)
        seen, heard = self.image_encoder.channels, self.audio_encoder.channels
        self.image_dropout, self.audio_dropout = nn.Dropout(config.image_dropout), nn.Dropout(config.audio_dropout)
        if config.feature_dim is not None:
            self.image_projection = nn.Conv2d(seen, config.feature_dim, 1)
            self.audio_projection = nn.Linear(heard, config.feature_dim)
            start_projection(self.image_projection)
            start_projection(self.audio_projection)
        else:
            self.image_projection = self.audio_projection = nn.Identity()
        start_norms(self.audio_encoder, config.audio_encoder)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """image_features (B, D, h, w) and audio_features (B, D), both of unit length over D."""
        image, sound = self.image_encoder(batch.image), hear(self.audio_encoder, batch.spectrogram)
        # Little work, whose roundings the small temperatures of the losses magnify.
        with torch.autocast(image.device.type, enabled=False):
            image = self.image_projection(self.image_dropout(widen(image)))
            sound = self.audio_projection(self.audio_dropout(widen(sound)))
        return {
            "image_features": functional.normalize(image, dim=1),
            "audio_features": functional.normalize(sound, dim=1),
        }

    def localize(self, batch: Batch) -> Localization:
        """embeddings: the mean of the picture's cells, each of which the loss compares with the sound; the sound."""
        found = self.forward(batch)
        embeddings = (found["image_features"].mean((2, 3)), found["audio_features"])
        return Localization(map=own_pair_map(**found), bounds=(-1.0, 1.0), embeddings=embeddings)
