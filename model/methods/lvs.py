"""LVS: sounding cells against the background of the same picture."""

from typing import Any

from pydantic import Field

from configs.schema import named, named_parts
from model.published import LVS_NAMES, LVS_UNUSED
from model.two_stream import TwoStream, TwoStreamConfig, start_norms


class LVS(TwoStream):
    """Two encoders with a last stage at stride 1 and nothing behind them; the map is their cosine.

    Only the authors' test code is public. It makes the image encoder without weights, which says little because it
    loads a trained one; the paper starts from ImageNet for some of its settings. So that is an option. `feature_dim` is
    ours, for encoders of different sizes.
    Source: Chen et al., "Localizing Visual Sounds the Hard Way", CVPR 2021.
    """

    class Config(TwoStreamConfig):
        feature_dim: int | None = Field(None, ge=1, description="null: as published, no projections")
        image_encoder: named("model.encoders") = {"name": "resnet", "depth": 18, "last_stride": 1}  # type: ignore[valid-type]
        audio_encoder: named("model.encoders") = {  # type: ignore[valid-type]
            "name": "resnet",
            "depth": 18,
            "in_channels": 1,
            "last_stride": 1,
        }
        losses: named_parts("model.losses") = {"trimap": {}}  # type: ignore[valid-type]

    published_names = LVS_NAMES
    published_unused = LVS_UNUSED

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        start_norms(self.image_encoder, config.image_encoder)
