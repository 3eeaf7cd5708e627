"""Which tile of a mosaic the map points at."""

from collections.abc import Mapping

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from configs.schema import ComponentConfig
from model.metric import Metric
from model.pixel_sets import Pixels
from model.protocol import Maps, Protocol
from model.truth_maps import TruthMaps


class Quadrant(Metric):
    """`quadrant`: share of clips whose largest pixel lies in the tile of the truth's centre of mass.

    For pictures made of rows x cols tiles of which one sounds: it asks for the right thing and forgives the outline.
    Several largest pixels count by share, as in `pointing`; a clip with empty truth counts 0.
    """

    class Config(ComponentConfig):
        rows: int = Field(2, ge=1)
        cols: int = Field(2, ge=1)

    columns = ("quadrant",)

    def per_clip(self, maps: Maps, truth: TruthMaps, protocol: Protocol) -> dict[str, Tensor]:
        side = truth.weights.shape[1]
        middle = torch.arange(side, dtype=torch.float64, device=truth.weights.device) + 0.5
        area = truth.area.clamp_min(1 / 256)
        row = self._tile((truth.weights.sum(2) * middle).sum(1) / area, side, self.config.rows)
        col = self._tile((truth.weights.sum(1) * middle).sum(1) / area, side, self.config.cols)
        in_row = self._tile(middle, side, self.config.rows) == row[:, None]
        in_col = self._tile(middle, side, self.config.cols) == col[:, None]
        hits = torch.einsum("byx,by,bx->b", maps.best.float(), in_row.float(), in_col.float())
        return {"quadrant": torch.where(truth.area > 0, hits.double() / Pixels(maps.best).count, 0.0)}

    @staticmethod
    def _tile(position: Tensor, side: int, count: int) -> Tensor:
        """Number of the tile, 0 to count - 1, that holds a position in pixels."""
        return (position * count / side).long().clamp(0, count - 1)

    def reduce(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {"quadrant": float(rows["quadrant"].mean())}
