"""Retrieval of sounds by pictures and of pictures by sounds."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.functional import normalize

from configs.schema import ComponentConfig
from model.metric import Metric
from model.protocol import Maps, Protocol
from model.rows import Rows
from model.truth_maps import TruthMaps

_RANKS = ("rank_i2a", "rank_a2i", "class_rank_i2a", "class_rank_a2i")


class Retrieval(Metric):
    """`r1_i2a`, `r5_i2a`, `r10_i2a`: share of pictures whose own sound is among the 1, 5 or 10 most alike of all clips
    of the set by cosine; `_a2i` the same of sounds; `class_r1_i2a` ...: where any sound of the same label counts, the
    own one included. Ties go to the lower clip id.

    Clips with a negative sound are not among them. No paper of the field releases its code for these numbers; both
    readings stand side by side. Scores of fewer clips (another list, clips left out afterwards) rank among all clips
    that were scored.
    """

    class Config(ComponentConfig):
        pass

    columns = ("image_embedding", "audio_embedding")
    wants_embeddings = True

    @property
    def final_columns(self) -> tuple[str, ...]:
        return _RANKS

    def per_clip(self, maps: Maps, truth: TruthMaps, protocol: Protocol) -> dict[str, Tensor]:
        if maps.embeddings is None:
            return {}
        image, audio = (normalize(each.double(), dim=1) for each in maps.embeddings)
        return {"image_embedding": image, "audio_embedding": audio}

    def finish(self, rows: Rows) -> Rows:
        """Ranks from 0, of the own partner and of the first clip of the same label, in place of the embeddings."""
        if "image_embedding" not in rows:
            return rows
        rows = dict(rows)
        image, audio = rows.pop("image_embedding"), rows.pop("audio_embedding")
        rows |= {name: np.full(len(image), np.nan) for name in _RANKS}
        chosen = np.flatnonzero(rows["negative"] == 0)
        labels = np.unique(rows["label"][chosen], return_inverse=True)[1]
        for way, queries, answers in (("i2a", image, audio), ("a2i", audio, image)):
            own, same = _ranks(queries[chosen], answers[chosen], labels)
            rows[f"rank_{way}"][chosen], rows[f"class_rank_{way}"][chosen] = own, same
        return rows

    def reduce(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {
            name.replace("rank", f"r{count}"): float(np.mean(rows[name] < count))
            for name in _RANKS
            for count in (1, 5, 10)
        }


def _ranks(queries: np.ndarray, answers: np.ndarray, labels: np.ndarray) -> tuple[Any, Any]:
    """`(n,)` twice: how many answers `(n, D)` come before the query's own, and before the first of its label."""
    own, same = np.empty(len(queries)), np.empty(len(queries))
    for first in range(0, len(queries), 256):
        alike = queries[first : first + 256] @ answers.T
        order = np.argsort(-alike, axis=1, kind="stable")
        number = np.arange(first, first + len(alike))[:, None]
        own[first : first + 256] = (order == number).argmax(1)
        same[first : first + 256] = (labels[order] == labels[number]).argmax(1)
    return own, same
