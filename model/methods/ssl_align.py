"""SSL-Align: localization and alignment of picture and sound learned together, over several views of both."""

from dataclasses import replace
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from configs.schema import named, named_parts
from model.base import Localization, LocalizationModel, MethodConfig
from model.published import LVS_NAMES, LVS_UNUSED
from model.similarity import own_pair_map, widen
from model.two_stream import build_equal_encoders, hear, start_norms
from pipeline.batch import Batch, InputSpec


class SSLAlign(LocalizationModel):
    """LVS's two encoders; a head a modality for the alignment of whole clips, which the map does not need.

    Every clip comes as itself, augmented, and as a near neighbour, in picture and sound; every view of the picture is a
    positive of every view of the sound.
    Source: Senocak et al., "Sound Source Localization is All about Cross-Modal Alignment", ICCV 2023 (arXiv
    2309.10724), and "Aligning Sight and Sound", arXiv 2407.13676. The network and the map are those of the released
    code (commit e7ae3c5). The training code was never released: the two similarities, the 3 x 3 pairs of views and
    the neighbours are the paper's, as far as it is known to us; these are our choices:

    - heads: one linear layer with bias, 512 to 512, from the largest audio values and the mean of the picture's cells,
      both before they are brought to unit length;
    - the localization similarity is the mean cosine over all cells (`view_localization.pool`), tau 0.07 for both;
    - all pairs of views, both directions and both similarities weigh the same, and are added;
    - the negatives of a pair of views are the other clips in these two views;
    - all views of a modality pass its encoder together, so that they share one set of batch statistics.
    """

    class Config(MethodConfig):
        image_encoder: named("model.encoders") = {"name": "resnet", "depth": 18, "last_stride": 1}  # type: ignore[valid-type]
        audio_encoder: named("model.encoders") = {  # type: ignore[valid-type]
            "name": "resnet",
            "depth": 18,
            "in_channels": 1,
            "last_stride": 1,
        }
        augmented: int = Field(1, ge=0, description="further views that are other draws of the clip itself; paper: 1")
        neighbours: int = Field(1, ge=0, description="further views that are neighbours of the clip; paper: 1")
        view_weights: tuple[float, float, float] = Field(
            (1.0, 1.0, 1.0), description="of own, augmented and neighbour views; a pair has the product of its two"
        )
        head_layers: int = Field(1, ge=1, description="linear layers of a head, with ReLU between them")
        embedding_dim: int = Field(512, ge=1, description="size P of the heads' outputs")
        losses: named_parts("model.losses") = {  # type: ignore[valid-type]
            "view_localization": {"tau": 0.07},
            "view_alignment": {"tau": 0.07},
        }

        @model_validator(mode="after")
        def _check(self) -> "SSLAlign.Config":
            if min(self.view_weights) < 0:
                raise ValueError(f"view_weights {self.view_weights} must not be negative")
            return self

        @property
        def inputs(self) -> InputSpec:
            own = 1 + self.augmented
            return InputSpec(image_views=own, audio_views=own, neighbours=self.neighbours)

    outputs = frozenset(
        {
            *("image_features", "audio_features", "image_views", "audio_views"),
            *("image_embeddings", "audio_embeddings", "pair_weights"),
        }
    )
    published_names = LVS_NAMES
    published_unused = LVS_UNUSED
    published_absent = ("image_head.", "audio_head.")

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.image_encoder, self.audio_encoder = build_equal_encoders(config)
        start_norms(self.image_encoder, config.image_encoder)
        start_norms(self.audio_encoder, config.audio_encoder)
        self.image_head = _head(self.image_encoder.channels, config)
        self.audio_head = _head(self.audio_encoder.channels, config)
        own, augmented, neighbour = config.view_weights
        weights = torch.tensor([own] + [augmented] * config.augmented + [neighbour] * config.neighbours)
        self.register_buffer("view_weights", weights, persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Features and embeddings, all of unit length, of V views of the picture and W of the sound.

        image_features (B, D, h, w) and audio_features (B, D): of the clip itself. image_views (V, B, D, h, w) and
        audio_views (W, B, D): of all views, the clip itself first. image_embeddings (V, B, P) and audio_embeddings
        (W, B, P): of the heads. pair_weights (V, W). A batch for scoring has one view of each.
        """
        images, spectrograms = (batch.image, *batch.more_images), (batch.spectrogram, *batch.more_spectrograms)
        seen = widen(self.image_encoder(torch.cat(images)))
        heard = widen(hear(self.audio_encoder, torch.cat(spectrograms)))
        embeddings = self.image_head(seen.mean(dim=(2, 3))), self.audio_head(heard)
        image_views = functional.normalize(seen, dim=1).unflatten(0, (len(images), -1))
        audio_views = functional.normalize(heard, dim=1).unflatten(0, (len(spectrograms), -1))
        weights: Any = self.view_weights
        return {
            "image_features": image_views[0],
            "audio_features": audio_views[0],
            "image_views": image_views,
            "audio_views": audio_views,
            "image_embeddings": functional.normalize(widen(embeddings[0]), dim=1).unflatten(0, (len(images), -1)),
            "audio_embeddings": functional.normalize(widen(embeddings[1]), dim=1).unflatten(0, (len(spectrograms), -1)),
            "pair_weights": weights[: len(images), None] * weights[None, : len(spectrograms)],
        }

    def localize(self, batch: Batch) -> Localization:
        """embeddings: of the heads, for retrieval."""
        found = self.forward(replace(batch, more_images=(), more_spectrograms=()))
        return Localization(
            map=own_pair_map(found["image_features"], found["audio_features"]),
            bounds=(-1.0, 1.0),
            embeddings=(found["image_embeddings"][0], found["audio_embeddings"][0]),
        )


def _head(channels: int, config: Any) -> nn.Module:
    """(n, channels) to (n, P)."""
    hidden: list[nn.Module] = []
    for _ in range(config.head_layers - 1):
        hidden += [nn.Linear(channels, channels), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(channels, config.embedding_dim))
