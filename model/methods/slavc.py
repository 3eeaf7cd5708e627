"""SLAVC: separate features for which sound it is and where it is, taught by slow copies of the network."""

from copy import deepcopy
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import get_ema_multi_avg_fn

from configs.schema import named_parts
from model.base import Localization, LocalizationModel, Progress
from model.similarity import own_pair_map, widen
from model.two_stream import TwoStreamConfig, build_encoders, hear, start_norms, start_projection
from pipeline.batch import Batch


class SLAVC(LocalizationModel):
    """EZ-VSL's encoders, two heads a modality, and a momentum copy of all of it; the map is the mean of two cosines.

    The slow copy gets no gradient. Its parameters move towards the trained ones before each step; its BatchNorm
    statistics do not, they follow its own passes, which are made in training mode and with dropout, as published.
    The authors' optional term on annotated clips is not part of this.
    Source: Mo and Morgado, "A Closer Look at Weakly-Supervised Audio-Visual Source Localization", NeurIPS 2022; the
    numbers are those of the authors' scripts. Their score is (map + 1) / 2 on our map, and they use no best checkpoint
    but the last.
    """

    class Config(TwoStreamConfig):
        feature_dim: int = Field(512, ge=1, description="size D of the common spaces")  # type: ignore[assignment]
        image_dropout: float = Field(0.9, ge=0, lt=1, description="before the heads; authors' scripts")
        momentum: float = Field(0.999, ge=0, le=1, description="authors' scripts; the default of their code is 0.9")
        localize_with: Literal["slow", "trained"] = Field("slow", description="slow: as in the authors' tests")
        losses: named_parts("model.losses") = {"factorised": {"tau": 0.03}}  # type: ignore[valid-type]

    outputs = frozenset(
        f"{speed}{modality}_{head}"
        for speed in ("", "slow_")
        for modality in ("image", "audio")
        for head in ("which", "where")
    )
    published_names: ClassVar[dict[str, str]] = {
        f"{theirs}{part}.": f"{ours}.{place}."
        for theirs, ours in (("", "trained"), ("momentum_", "slow"))
        for part, place in (
            ("imgnet", "image_encoder.net"),
            ("img_proj1", "image_heads.which"),
            ("img_proj2", "image_heads.where"),
            ("audnet", "audio_encoder.net"),
            ("aud_proj1", "audio_heads.which"),
            ("aud_proj2", "audio_heads.where"),
        )
    }

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.trained = _Network(config)
        self.slow = deepcopy(self.trained).requires_grad_(False)

    def before_step(self, progress: Progress) -> None:
        """Move the slow parameters: momentum * slow + (1 - momentum) * trained."""
        move = get_ema_multi_avg_fn(self.config.momentum)
        move(list(self.slow.parameters()), list(self.trained.parameters()), progress.step)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`image_which`, `image_where` (B, D, h, w), `audio_which`, `audio_where` (B, D), of unit length over D, and
        the same of the slow copy as `slow_*`, without gradient.
        """
        features = self.trained(batch)
        with torch.no_grad():
            slow = self.slow(batch)
        return {**features, **{f"slow_{name}": value for name, value in slow.items()}}

    def localize(self, batch: Batch) -> Localization:
        """embeddings: of the heads "which": the mean over the picture's cells, and the sound."""
        features = (self.slow if self.config.localize_with == "slow" else self.trained)(batch)
        which = own_pair_map(features["image_which"], features["audio_which"])
        where = own_pair_map(features["image_where"], features["audio_where"])
        return Localization(
            map=(which + where) / 2,
            bounds=(-1.0, 1.0),
            extra={"which": which, "where": where},
            embeddings=(features["image_which"].mean(dim=(2, 3)), features["audio_which"]),
        )


class _Network(nn.Module):
    """Two encoders with two heads each, "which" and "where"; (B, D, h, w) and (B, D) of unit length over D."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.image_encoder, self.audio_encoder = build_encoders(config)
        self.image_dropout, self.audio_dropout = nn.Dropout(config.image_dropout), nn.Dropout(config.audio_dropout)
        seen, heard, size = self.image_encoder.channels, self.audio_encoder.channels, config.feature_dim
        self.image_heads = nn.ModuleDict({head: nn.Conv2d(seen, size, 1) for head in ("which", "where")})
        self.audio_heads = nn.ModuleDict({head: nn.Linear(heard, size) for head in ("which", "where")})
        for layer in (*self.image_heads.values(), *self.audio_heads.values()):
            start_projection(layer)  # type: ignore[arg-type]
        start_norms(self.audio_encoder, config.audio_encoder)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        image = self.image_dropout(self.image_encoder(batch.image))
        sound = self.audio_dropout(hear(self.audio_encoder, batch.spectrogram))
        found: dict[str, Tensor] = {}
        for modality, heads, x in (("image", self.image_heads, image), ("audio", self.audio_heads, sound)):
            found |= {f"{modality}_{name}": functional.normalize(widen(head(x)), dim=1) for name, head in heads.items()}
        return found
