"""From configs to modules."""

from typing import Any

from configs.errors import UserError
from configs.resolve import resolve
from model.base import LocalizationModel
from model.objective import Objective


def build_model(config: Any) -> LocalizationModel:
    """The method that `config` (RunConfig.model) names, freshly initialised."""
    return resolve("model.methods", config.name)(config)


def build_objective(config: Any) -> Objective:
    """The method with the losses of its config. Raises: UserError if there are none, or one that does not fit."""
    if not config.losses:
        raise UserError(f"model.losses is empty: nothing to train method '{config.name}' with")
    losses = {name: resolve("model.losses", name)(options) for name, options in config.losses.items()}
    return Objective(build_model(config), losses)
