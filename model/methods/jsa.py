"""JSA: joint slot attention on image and audio; the sound's target slot asks the picture where it is."""

import math
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from configs.resolve import resolve
from configs.schema import named, named_parts
from model.base import Localization, LocalizationModel, MethodConfig
from model.similarity import widen
from pipeline.batch import Batch

_EPS = 1e-8  # added to each attention before it is divided by its sum over the tokens


class JSA(LocalizationModel):
    """Slots compete for the tokens of each modality; slot 0 is the target (the source), the others take the rest.

    Both modalities start from the same learned slots, without noise. In training some tokens are hidden behind a
    learned one, and the slots are decoded back into all tokens. The map is the attention of the sound's target query to
    the picture.
    Source: "Improving Sound Source Localization with Joint Slot Attention on Image and Audio", CVPR 2025 (arXiv
    2504.15118), and its released code (commit 359aa33), from which the numbers below are; where its scripts and its
    argument defaults differ, the scripts. Our choices: a decoder meets another grid size than its own by interpolating
    its position table (the released one fails); both 1x1 projections start like the audio encoder's convolutions.

    In half precision the audio encoder and the first stages of the image encoder stay in float32 (`float32_stages`):
    the matching loss squares small differences of attentions, and most of its error came from there.

    What is added to all slots' queries alike cancels in the softmax over slots: `to_q.bias` and `norm_slots.bias` have
    no effect and no gradient but rounding. They stay, because published weights have them.
    """

    class Config(MethodConfig):
        feature_dim: int = Field(512, ge=2, description="size D of tokens and slots")
        slots: int = Field(2, ge=2, description="N: the target and what is not the target")
        iterations: int = Field(5, ge=1, description="slot updates, each with gradient")
        update_hidden: int = Field(1024, ge=1, description="hidden size of the network behind the GRU")
        mask_share: float = Field(0.1, ge=0, le=1, description="probability that a token is hidden in training")
        sharpening: float = Field(
            0.1, gt=0, description="factor on the logits of the maps; the in-training test of the 144k sets uses 1"
        )
        iqr_share: float = Field(
            0.6, ge=0, le=1, description="weight of the image query's map in `iqr`; the released code's 1 - 0.4"
        )
        image_cells: tuple[int, int] = Field((7, 7), description="rows, columns of the position table: 224 px / 32")
        audio_cells: int = Field(16, ge=1, description="length of the position table: 501 frames (5 s) / 32")
        image_encoder: named("model.encoders") = {  # type: ignore[valid-type]
            "name": "resnet",
            "depth": 18,
            "weights": "imagenet",
            "float32_stages": 2,
        }
        audio_encoder: named("model.encoders") = {  # type: ignore[valid-type]
            "name": "resnet",
            "depth": 18,
            "in_channels": 1,
            "float32_stages": 5,
        }
        losses: named_parts("model.losses") = {  # type: ignore[valid-type]
            "mutual_neighbour_contrast": {"tau": 0.03, "neighbours": 20},
            "slot_reconstruction": {"weight": 0.1},
            "slot_divergence": {"weight": 0.1},
            "attention_matching": {"weight": 100.0},
        }

        @model_validator(mode="after")
        def _check(self):
            if self.feature_dim % 2:
                raise ValueError(f"feature_dim {self.feature_dim} must be even: half is for rows, half for columns")
            if min(self.image_cells) < 1:
                raise ValueError(f"image_cells {self.image_cells} must be at least 1")
            return self

    outputs = frozenset(
        {
            *("image_slots", "audio_slots"),
            *("image_tokens", "audio_tokens", "image_reconstruction", "audio_reconstruction"),
            *("image_query_on_image", "audio_query_on_image", "image_query_on_audio", "audio_query_on_audio"),
        }
    )

    published_names: ClassVar[dict[str, str]] = {
        "imgnet.": "image_encoder.net.",
        "imgnet.proj.": "image_projection.",
        "audnet.": "audio_encoder.net.",
        "audnet.conv1_1.": "audio_encoder.net.conv1.",
        "audnet.proj.0.": "audio_projection.",
        "slot_attn.slots": "slots",
        "slot_attn.mask_token_img": "image_attention.mask_token",
        "slot_attn.mask_token_aud": "audio_attention.mask_token",
        "slot_attn.img_": "image_attention.",
        "slot_attn.aud_": "audio_attention.",
        "img_decoder.": "image_decoder.",
        "img_decoder.pos_emb.row_embed.weight": "image_decoder.rows",
        "img_decoder.pos_emb.col_embed.weight": "image_decoder.columns",
        "aud_decoder.": "audio_decoder.",
        "aud_decoder.pos_emb.row_embed.weight": "audio_decoder.rows",
        "aud_decoder.pos_emb.col_embed.weight": "audio_decoder.columns",
    }

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        dim = config.feature_dim
        self.image_encoder = resolve("model.encoders", config.image_encoder.name)(config.image_encoder)
        self.audio_encoder = resolve("model.encoders", config.audio_encoder.name)(config.audio_encoder)
        self.image_projection = nn.Conv2d(self.image_encoder.channels, dim, 1)
        self.audio_projection = nn.Conv2d(self.audio_encoder.channels, dim, 1)
        for layer in (self.image_projection, self.audio_projection):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        self.slots = nn.Parameter(torch.randn(1, config.slots, dim))
        self.image_attention = SlotAttention(dim, config.update_hidden)
        self.audio_attention = SlotAttention(dim, config.update_hidden)
        self.image_decoder = SlotDecoder(dim, *config.image_cells)
        self.audio_decoder = SlotDecoder(dim, 1, config.audio_cells)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """What `decode` gives; in training mode with tokens hidden at random, drawn from torch's generator."""
        image, sound = self.encode(batch)
        if not self.training:
            return self.decode(image, sound, None, None)
        # Image first, then audio, as the released code draws them.
        return self.decode(image, sound, self._draw_hidden(image), self._draw_hidden(sound))

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Features of the picture (B, D, h, w), and of the sound (B, D, 1, t), the largest over its frequencies."""
        image, sound = self.image_encoder(batch.image), self.audio_encoder(batch.spectrogram)
        # From here to the attentions in full precision: it is a small part of the work, and the matching loss squares
        # differences between attentions, so that it feels every rounding.
        with torch.autocast(image.device.type, enabled=False):
            image, sound = self.image_projection(widen(image)), self.audio_projection(widen(sound))
        return image, sound.max(dim=2, keepdim=True).values

    def decode(
        self, image: Tensor, sound: Tensor, image_hidden: Tensor | None, audio_hidden: Tensor | None
    ) -> dict[str, Tensor]:
        """What the losses need, from the features of `encode`; L is h w for the picture and t for the sound.

        Args: image_hidden and audio_hidden (B, L, 1) bool, the tokens to replace by the learned one; None: none.
        Returns: image_slots and audio_slots (B, N, D), unit length over D; `*_tokens` as they were before hiding, and
        `*_reconstruction`, (B, L, D); `<query>_query_on_<keys>` (B, N, L), attentions that sum to 1 over L.
        """
        image_tokens, audio_tokens = _tokens(image), _tokens(sound)
        with torch.autocast(image.device.type, enabled=False):
            steps = self.config.iterations
            seen = self.image_attention(self.slots, image_tokens, image_hidden, steps)
            heard = self.audio_attention(self.slots, audio_tokens, audio_hidden, steps)
            attentions = {
                "image_query_on_image": attention(seen.queries, seen.keys),
                "audio_query_on_image": attention(heard.queries, seen.keys),
                "image_query_on_audio": attention(seen.queries, heard.keys),
                "audio_query_on_audio": attention(heard.queries, heard.keys),
            }
        return {
            "image_slots": functional.normalize(seen.slots, dim=2),
            "audio_slots": functional.normalize(heard.slots, dim=2),
            "image_tokens": image_tokens,
            "audio_tokens": audio_tokens,
            "image_reconstruction": self.image_decoder(seen.slots, *image.shape[2:]),
            "audio_reconstruction": self.audio_decoder(heard.slots, *sound.shape[2:]),
            **attentions,
        }

    def localize(self, batch: Batch) -> Localization:
        """The attention of the sound's target query (called AUD in the released code).

        extra: `image_query` (OBJ), the same of the picture's own target query; `iqr`, both mixed as in the paper's
        headline results, at the size of the picture. embeddings: the target slots, for retrieval.
        """
        image, sound = self.encode(batch)
        with torch.autocast(image.device.type, enabled=False):
            seen = self.image_attention(self.slots, _tokens(image), None, self.config.iterations)
            heard = self.audio_attention(self.slots, _tokens(sound), None, self.config.iterations)
            by_sound, by_image = (
                attention(queries, seen.keys, self.config.sharpening)[:, 0].unflatten(1, image.shape[2:])
                for queries in (heard.queries, seen.queries)
            )
            extra = {"image_query": by_image, "iqr": self._refine(by_sound, by_image, batch.image.shape[2:])}
            embeddings = (functional.normalize(seen.slots[:, 0], dim=1), functional.normalize(heard.slots[:, 0], dim=1))
        return Localization(map=by_sound, bounds=(0.0, 1.0), extra=extra, embeddings=embeddings)

    def _refine(self, by_sound: Tensor, by_image: Tensor, size: torch.Size) -> Tensor:
        """Image-query refinement, (B, H, W) in 0 .. 1: both maps (B, h, w) at the picture's size, each brought to
        0 .. 1, then their weighted mean, brought to 0 .. 1 again.
        """
        share = self.config.iqr_share
        sound, image = (
            _full_range(functional.interpolate(each[:, None], size, mode="bicubic", align_corners=False)[:, 0])
            for each in (by_sound, by_image)
        )
        return _full_range((1 - share) * sound + share * image)

    def _draw_hidden(self, features: Tensor) -> Tensor:
        """(B, L, 1) bool: which tokens to hide."""
        shape = (len(features), features[0, 0].numel(), 1)
        return torch.rand(shape, device=features.device) < self.config.mask_share


class Attended(NamedTuple):
    """slots (B, N, D) after the last update; queries (B, N, D) and keys (B, L, D) of the last iteration, so that the
    queries are of the slots before that update.
    """

    slots: Tensor
    queries: Tensor
    keys: Tensor


class SlotAttention(nn.Module):
    """The slots of one modality. Source: Locatello et al., NeurIPS 2020; parameter names as in their pseudocode."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.randn(1, 1, dim))
        self.norm_input, self.norm_slots, self.norm_pre_ff = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q, self.to_k, self.to_v = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.gru = nn.GRUCell(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))

    def forward(self, initial: Tensor, tokens: Tensor, hidden: Tensor | None, iterations: int) -> Attended:
        """Args: initial (1, N, D), tokens (B, L, D), hidden (B, L, 1) bool or None."""
        if hidden is not None:
            tokens = torch.where(hidden, self.mask_token, tokens)
        tokens = self.norm_input(tokens)
        keys, values = self.to_k(tokens), self.to_v(tokens)
        slots = initial.expand(tokens.shape[0], -1, -1)
        queries = slots
        for _ in range(iterations):
            queries = self.to_q(self.norm_slots(slots))
            update = attention(queries, keys) @ values
            slots = self.gru(update.flatten(0, 1), slots.flatten(0, 1)).view_as(update)
            slots = slots + self.mlp(self.norm_pre_ff(slots))
        return Attended(slots, queries, keys)


class SlotDecoder(nn.Module):
    """Slots (B, N, D) back to the tokens of a grid (B, rows columns, D), each slot weighed by its own last channel."""

    def __init__(self, dim: int, rows: int, columns: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.rand(rows, dim // 2))
        self.columns = nn.Parameter(torch.rand(columns, dim // 2))
        layers: list[nn.Module] = []
        for _ in range(3):
            layers += [nn.Linear(dim, dim), nn.ReLU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(dim, dim + 1))

    def forward(self, slots: Tensor, height: int, width: int) -> Tensor:
        rows, columns = _stretch(self.rows, height), _stretch(self.columns, width)
        place = torch.cat([columns.expand(height, -1, -1), rows[:, None].expand(-1, width, -1)], dim=2).flatten(0, 1)
        # The first layer is linear in slot plus place: taken apart, it sees N + L vectors instead of N L.
        first: Any = self.mlp[0]
        x = first(slots)[:, :, None] + functional.linear(place, first.weight)
        x = self.mlp[1:](x)
        return (x[..., -1:].softmax(dim=1) * x[..., :-1]).sum(dim=1)


def attention(queries: Tensor, keys: Tensor, sharpening: float = 1.0) -> Tensor:
    """How each slot spreads over the tokens, (B, N, L): a softmax over slots, then divided by the sum over tokens.

    Args: queries (B, N, D) and keys (B, L, D); sharpening multiplies the logits.
    """
    logits = queries @ keys.mT * (sharpening / math.sqrt(queries.shape[2]))
    shares = logits.softmax(dim=1) + _EPS
    return shares / shares.sum(dim=2, keepdim=True)


def _tokens(features: Tensor) -> Tensor:
    """(B, D, h, w) to (B, h w, D)."""
    return features.flatten(2).transpose(1, 2)


def _stretch(table: Tensor, count: int) -> Tensor:
    """A table (n, D) as (count, D): itself, or interpolated between its first and its last row."""
    if len(table) == count:
        return table
    return functional.interpolate(table.T[None], count, mode="linear", align_corners=True)[0].T


def _full_range(maps: Tensor) -> Tensor:
    """Maps (B, H, W), each moved and scaled to 0 .. 1; a constant one stays as it is."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    varies = high > low
    return (maps - torch.where(varies, low, 0)) / torch.where(varies, high - low, 1)
