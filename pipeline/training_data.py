"""The clips that a run learns from, and those of the same split that it holds out."""

from typing import Any

import torch

from configs.errors import UserError
from configs.schema import RunConfig
from pipeline.batch import Batch, InputSpec
from pipeline.loader import Loader, build_loader
from pipeline.store import part_of, training_list
from pipeline.test_sets import check_sets


class TrainingData:
    """loader: of the training clips. held_out: the split of the held-out clips, "" if there are none. clip_ids: of the
    training clips. facts: what the record of the run says of them.
    """

    def __init__(self, config: RunConfig, spec: InputSpec, device: torch.device, rank: int, world_size: int) -> None:
        """Raises: UserError as `build_loader`, if a set that the run scores is not in the store, and if the clips do
        not fill a step, or the held-out ones a batch.
        """
        self._config, self._spec = config, spec
        self._where = {"seed": config.seed, "rank": rank, "world_size": world_size, "device": device}
        self.split, self.held_out = config.data.train_split, ""
        if config.train.selection.by == "held_out":
            share = config.train.selection.share
            self.held_out = part_of(self.split, "held_out", share)
            self.split = part_of(self.split, "kept", share)
        if config.evaluate.sets:
            check_sets(config.data.store, config.evaluate.sets)
        self.facts, self.clip_ids = training_list(config.data.store, self.split, config.data.exclude)
        if self.held_out:
            held_out, _ = training_list(config.data.store, self.held_out, config.data.exclude)
            self.facts["held_out_clips"] = held_out["train_clips"]
            if held_out["train_clips"] < config.data.batch_size * world_size:
                raise UserError(
                    f"the {held_out['train_clips']} held-out clips ('{self.held_out}') do not fill a batch of "
                    f"{config.data.batch_size} on {world_size} rank(s); raise train.selection.share or lower "
                    "data.batch_size"
                )
        self.loader = build_loader(config.data, spec, self.split, train=True, **self._where)
        if len(self.loader) < config.optim.accumulate:
            self.loader.close()
            raise UserError(
                f"split '{self.split}' of {config.data.store} has too few clips for one step of "
                f"{config.data.batch_size} x {config.optim.accumulate} clips; lower data.batch_size"
            )
        self.facts["loader"] = self.loader.describe()

    def held_out_loader(self) -> Loader:
        """The held-out clips in batches as in training, but without augmentation."""
        data = self._config.data.model_copy(update={"augment": {}, "views": []})
        return build_loader(data, self._spec, self.held_out, train=True, **self._where)

    def batch_at(self, place: dict[str, Any]) -> Batch:
        """The training batch of a place that `loader.state_dict()` gave, once more; the loader is moved there."""
        self.loader.load_state_dict(place)
        return next(iter(self.loader))
