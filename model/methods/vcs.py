"""VCS: region maps of the picture, ranked by the sound, beside an audio-visual map with a learned scale."""

from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from configs.schema import named, named_parts
from model.base import Localization, LocalizationModel, MethodConfig
from model.published import LVS_NAMES, LVS_UNUSED
from model.similarity import own_pair_map, widen
from model.two_stream import build_equal_encoders, hear
from pipeline.batch import Batch


class VCS(LocalizationModel):
    """Two ResNet-18 at stride 16 and a learned scale give the map; a 1x1 convolution proposes regions of the picture.

    Each region map pools the image features into a node; the nodes most like the sound are the foreground, as many of
    the least like it the background. The losses set the two apart and bring the foreground's map and the audio-visual
    map together; only the latter is the published result. `localize` adds two maps whose values come from the picture
    alone: `foreground`, the mean of the foreground's maps (the sound only chooses among them), and `regions`, the mean
    of all region maps, which needs no sound: ours, as the paper's sound-free choice of nodes is not in the code.
    Source: Zhou et al., "Exploiting Visual Context Semantics for Sound Source Localization", WACV 2023, in the form of
    the authors' code (commit 385ae88), which starts from scratch and gives every number below.
    """

    class Config(MethodConfig):
        image_encoder: named("model.encoders") = {"name": "resnet", "depth": 18, "last_stride": 1}  # type: ignore[valid-type]
        audio_encoder: named("model.encoders") = {  # type: ignore[valid-type]
            "name": "resnet",
            "depth": 18,
            "in_channels": 1,
            "last_stride": 1,
        }
        nodes: int = Field(16, ge=2, description="region maps; authors' code: 16")
        foreground: int = Field(8, ge=1, description="nodes most like the sound; authors' code: 8")
        background: int = Field(8, ge=1, description="nodes least like the sound; authors' code: 8")
        node_dropout: float = Field(0.1, ge=0, lt=1, description="of image features in the nodes; authors' code: 0.1")
        region_dropout: float = Field(0.0, ge=0, lt=1, description="of region maps; authors' code: 0")
        initial_scale: float = Field(1.0, description="of the cosines; learned; authors' code: 1")
        decay_scale: bool = Field(True, description="weight decay reaches the scale too; authors' code: yes")
        losses: named_parts("model.losses") = {  # type: ignore[valid-type]
            "scaled_mil": {"weight": 1.0},
            "node_contrast": {"weight": 0.1},
            "map_consistency": {"weight": 0.1},
        }

        @model_validator(mode="after")
        def _check(self) -> "VCS.Config":
            if self.foreground + self.background > self.nodes:
                raise ValueError(f"{self.foreground} foreground and {self.background} background of {self.nodes} nodes")
            return self

    outputs = frozenset(
        {
            "image_features",
            "audio_features",
            "scale",
            "localization_map",
            "region_maps",
            "node_similarity",
            "foreground_similarity",
            "background_similarity",
            "foreground_map",
        }
    )

    published_names: ClassVar[dict[str, str]] = {
        **LVS_NAMES,
        "gluenet.conv_proj.": "region_projection.",
        "scale": "scale",
    }
    published_unused = LVS_UNUSED

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.image_encoder, self.audio_encoder = build_equal_encoders(config)
        self.region_projection = nn.Conv2d(self.image_encoder.channels, config.nodes, 1, bias=False)
        self.region_dropout = nn.Dropout(config.region_dropout)
        self.node_dropout = nn.Dropout(config.node_dropout)
        self.scale = nn.Parameter(torch.tensor([config.initial_scale]))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Features, maps and nodes of every clip.

        image_features (B, D, h, w) and audio_features (B, D), unit length over D. scale (1,). localization_map
        (B, h, w): scale times cosine. region_maps (B, N, h, w). node_similarity (B, N): cosine of node and sound;
        foreground_similarity and background_similarity: the best and the worst of them, descending. foreground_map
        (B, h, w): mean of the best nodes' region maps.
        """
        config: Any = self.config
        image, sound = self.image_encoder(batch.image), hear(self.audio_encoder, batch.spectrogram)
        # A small part of the work, in which a rounding can put one node before another.
        with torch.autocast(image.device.type, enabled=False):
            image, sound = widen(image), functional.normalize(widen(sound), dim=1)
            regions = self.region_dropout(self.region_projection(image))
            nodes = regions.flatten(2) @ self.node_dropout(image).flatten(2).transpose(1, 2)
            similarity = (functional.normalize(nodes, dim=2) * sound[:, None]).sum(dim=2)
            ordered, order = similarity.sort(dim=1, descending=True)
            best = order[:, : config.foreground, None, None].expand(-1, -1, *regions.shape[2:])
            features = functional.normalize(image, dim=1)
            localization = self.scale * own_pair_map(features, sound)
        return {
            "image_features": features,
            "audio_features": sound,
            "scale": self.scale,
            "localization_map": localization,
            "region_maps": regions,
            "node_similarity": similarity,
            "foreground_similarity": ordered[:, : config.foreground],
            "background_similarity": ordered[:, config.nodes - config.background :],
            "foreground_map": regions.gather(1, best).mean(dim=1),
        }

    def localize(self, batch: Batch) -> Localization:
        """embeddings: the mean of the picture's cells, each of which the loss compares with the sound; the sound."""
        found = self.forward(batch)
        reach = abs(float(self.scale.detach()))
        return Localization(
            map=found["localization_map"],
            bounds=(-reach, reach),
            extra={"foreground": found["foreground_map"], "regions": found["region_maps"].mean(dim=1)},
            embeddings=(found["image_features"].mean(dim=(2, 3)), found["audio_features"]),
        )

    def param_groups(self) -> list[dict[str, Any]]:
        others = [
            parameter for parameter in self.parameters() if parameter.requires_grad and parameter is not self.scale
        ]
        scale: dict[str, Any] = {"params": [self.scale]}
        return [{"params": others}, scale if self.config.decay_scale else {**scale, "weight_decay": 0.0}]
