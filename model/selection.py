"""What the epochs of a run score, and which one's weights are kept as the best."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from configs.errors import UserError
from configs.schema import EvaluateSet, RunConfig
from model.base import Progress
from model.distributed import Ranks
from model.ema import WeightAverage
from model.objective import Objective

LAST = "last epoch"
HELD_OUT = "held_out"


class HeldOutStopped(Exception):
    """Scoring ended early because it was asked to."""


class Selection:
    """The rule of `train.selection`, and the best value so far.

    best: `{"value": v, "epoch": e}`, which a checkpoint carries; None before the first epoch is scored.
    """

    def __init__(self, config: RunConfig) -> None:
        self.rule = config.train.selection
        self.best: dict[str, Any] | None = None
        self.key = f"{self.rule.set or HELD_OUT}/{self.rule.metric}"
        self._where = f"{self.rule.share:.4g} of the training list, not trained on"
        if self.rule.set:
            self._where = f"a set that is scored (split {', '.join(config.evaluate.sets[self.rule.set].splits)})"

    @property
    def text(self) -> str:
        """For reports: how the weights of the best epoch were chosen."""
        assert self.best is not None
        return f"best {self.key} on {self._where}, epoch {self.best['epoch']}"

    def better(self, row: dict[str, Any]) -> bool:
        """Whether the epoch of a row of the history is the best so far; then it is remembered.

        Raises: UserError if the row lacks the metric.
        """
        if self.rule.by == "last":
            return False
        if self.key not in row:
            group = self.key.partition("/")[0]
            known = [key.partition("/")[2] for key in row if key.startswith(f"{group}/")]
            if not known:  # the run ends between two scorings of its sets
                return False
            raise UserError(f"train.selection.metric={self.rule.metric}: {group} has no such score; it has {known}")
        sign = -1 if self.rule.metric == "loss" else 1
        value = row[self.key]
        if not math.isfinite(value) or (self.best and sign * value <= sign * self.best["value"]):
            return False
        self.best = {"value": value, "epoch": row["epoch"]}
        return True


class EpochScores:
    """What is scored at the end of an epoch: the sets that are due, and the held-out clips."""

    def __init__(
        self,
        config: RunConfig,
        objective: Objective,
        ranks: Ranks,
        device: torch.device,
        *,
        held_out: str,
        score_sets: Callable[[RunConfig], dict[str, Any]],
        load_held_out: Callable[[], Any],
        asked_to_stop: Callable[[], bool],
    ) -> None:
        """held_out: the split of the held-out clips, "" if there are none. score_sets: the table of every set of a
        config. load_held_out: a new loader over the held-out clips, at least one batch, without augmentation.
        asked_to_stop: asked before every batch.
        """
        self.config, self._objective, self._ranks, self._device = config, objective, ranks, device
        self._held_out, self._score_sets, self._load = held_out, score_sets, load_held_out
        self._asked_to_stop = asked_to_stop

    def due(self, epoch: int, last: bool) -> bool:
        """Whether anything is scored after an epoch. last: of the run."""
        return bool(self._held_out or self._sets_due(epoch, last))

    def _sets_due(self, epoch: int, last: bool) -> dict[str, EvaluateSet]:
        every = self.config.train.evaluate_every_epochs
        return dict(self.config.evaluate.sets) if last or (every and epoch % every == 0) else {}

    def after(self, epoch: int, last: bool, average: WeightAverage | None) -> dict[str, float]:
        """`set/score` -> value, of the averaged weights if there are any; the same on every rank, all of which call it.

        Raises: UserError as the scoring of sets does; HeldOutStopped.
        """
        config, found, sets = self.config, {}, self._sets_due(epoch, last)
        model = self._objective.model
        with average.applied(model) if average else nullcontext():
            self._ranks.share_buffers(model)
            if self._held_out and config.train.selection.metric == "loss":
                found[f"{HELD_OUT}/loss"] = self.held_out_loss()
            elif self._held_out:
                sets[HELD_OUT] = EvaluateSet(splits=(self._held_out,))
            chosen = config.evaluate.model_copy(update={"sets": sets})
            tables = self._score_sets(config.model_copy(update={"evaluate": chosen}))
        for name, table in tables.items():
            found |= {f"{name}/{metric}": value for metric, value in table.scores.items()}
        return found

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """The mean loss in eval mode on the held-out clips, each loss with its weight of the end of training, so that
        epochs compare.

        What a method draws at random is drawn alike at every call, and the run's own generators are left alone. The
        clips of an incomplete last batch are left out, the same ones always.
        """
        config, device, objective = self.config, self._device, self._objective
        weights = objective.weights_at(Progress(step=0, epoch=math.inf, total_steps=0), device)
        totals = []
        loader = self._load()
        objective.eval()
        try:
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(config.seed)
                for batch in loader:
                    if self._asked_to_stop():
                        raise HeldOutStopped
                    with torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
                        totals.append(objective(batch, weights).total)
        finally:
            objective.train()
            loader.close()
        return float(self._ranks.mean(torch.stack(totals).float().cpu()).mean())
