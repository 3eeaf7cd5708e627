"""What an ImageNet network finds striking in the picture: a map that never heard the sound."""

from typing import Any

import torch
from torch import Tensor

from configs.resolve import resolve
from configs.schema import ComponentConfig, named
from model.base import Localization
from model.protocol import Protocol, Source
from model.refinement import PRIOR, Mixtures, Refinement
from pipeline.batch import Batch


class ObjectPrior(Refinement):
    """`object`: the object prior alone, a floor that hears nothing.

    The prior is the mean over channels of the absolute features of the last stage, `(B, h, w)`: 7 x 7 for 224 pixels.
    It is computed once a clip and kept for further protocols, methods and epochs.
    Source: Mo and Morgado, Localizing Visual Sounds the Easy Way (ECCV 2022), with ResNet-18, as `ogl` has it; the
    network here is one whose weights come with the installation.
    """

    class Config(ComponentConfig):
        network: named("model.encoders") = {  # type: ignore[valid-type]
            "name": "efficientnet_lite0",
            "weights": "imagenet",
            "frozen": True,
        }

    provides = (PRIOR,)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.network = resolve("model.encoders", config.network.name)(config.network).eval()
        self._kept: dict[tuple[str, torch.Size], Tensor] = {}

    def train(self, mode: bool = True) -> "ObjectPrior":
        return super().train(False)

    def sources(self, batch: Batch, localization: Localization) -> dict[str, Source]:
        return {PRIOR: Source(self.prior(batch.clip_id, batch.image), (0.0, 2.5), prior=True)}

    @torch.inference_mode()
    def prior(self, clip_ids: list[str], image: Tensor) -> Tensor:
        """`(B, h, w)` float32 on the device of the pictures `(B, 3, H, W)`; clips are known by id and size."""
        keys = [(clip_id, image.shape[2:]) for clip_id in clip_ids]
        new = [place for place, key in enumerate(keys) if key not in self._kept]
        if new:
            with torch.autocast(image.device.type, enabled=False):
                found = self.network(image[new]).abs().mean(1).cpu()
            self._kept |= {keys[place]: each for place, each in zip(new, found, strict=True)}
        return torch.stack([self._kept[key] for key in keys]).to(image.device)

    def mixtures(self, protocol: Protocol) -> Mixtures:
        return {PRIOR: {PRIOR: 1.0}}

    def settings(self) -> str:
        network = self.config.network
        options = ", ".join(f"{key} {value}" for key, value in network.model_dump().items() if key != "name")
        return f"object prior: mean |features| of {network.name} ({options})"
