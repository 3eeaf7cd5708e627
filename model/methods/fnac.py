"""FNAC: EZ-VSL that knows of clips which sound or look alike."""

from pydantic import Field

from configs.schema import named, named_parts
from model.two_stream import TwoStream, TwoStreamConfig


class FNAC(TwoStream):
    """EZ-VSL's network with nine tenths of the image encoder's values dropped while it trains.

    Source: Sun et al., "Learning Audio-Visual Source Localization via False Negative Aware Contrastive Learning", CVPR
    2023; the numbers are those of the authors' scripts for 10k and 144k clips. Their three terms join after five
    epochs, each with weight 100. Ours: in half precision both encoders stay in float32 (`float32_stages`): these
    terms are small differences, and rounding moves cells over the border of a region, which moved the third by up to a
    third of its value.
    """

    class Config(TwoStreamConfig):
        image_encoder: named("model.encoders") = {  # type: ignore[valid-type]
            "name": "resnet",
            "depth": 18,
            "weights": "imagenet",
            "float32_stages": 5,
        }
        audio_encoder: named("model.encoders") = {  # type: ignore[valid-type]
            "name": "resnet",
            "depth": 18,
            "in_channels": 1,
            "float32_stages": 5,
        }
        image_dropout: float = Field(0.9, ge=0, lt=1, description="before the projection; authors' scripts")
        losses: named_parts("model.losses") = {  # type: ignore[valid-type]
            "max_mil": {"tau": 0.03},
            "false_negatives_audio": {"weight": 100, "start_epoch": 5, "tau": 0.03},
            "true_negatives": {"weight": 100, "start_epoch": 5, "tau": 0.03},
            "false_negatives_image": {"weight": 100, "start_epoch": 5, "tau": 0.03},
        }
