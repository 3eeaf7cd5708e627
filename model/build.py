"""From configs to modules."""

from typing import Any

from configs.errors import UserError
from configs.resolve import resolve
from configs.schema import Config
from model.base import LocalizationModel
from model.objective import Objective


def build_model(config: Any) -> LocalizationModel:
    """The method that `config` (RunConfig.model) names, freshly initialised."""
    return resolve("model.methods", config.name)(config)


def without_initial_weights(config: Any) -> Any:
    """The config of a method (RunConfig.model) whose parts load no weights when built: a checkpoint gives them all.

    Every `weights` option below it becomes "none", so that the files and downloads that training began with need not
    be at hand.
    """
    changed: dict[str, Any] = {}
    for key in type(config).model_fields:
        value = getattr(config, key)
        if key == "weights" and isinstance(value, str):
            changed[key] = "none"
        elif isinstance(value, Config):
            changed[key] = without_initial_weights(value)
        elif isinstance(value, dict):
            changed[key] = {
                name: without_initial_weights(part) if isinstance(part, Config) else part
                for name, part in value.items()
            }
    return config.model_copy(update=changed)


def build_objective(config: Any) -> Objective:
    """The method with the losses of its config. Raises: UserError if there are none, or one that does not fit."""
    if not config.losses:
        raise UserError(f"model.losses is empty: nothing to train method '{config.name}' with")
    losses = {name: resolve("model.losses", name)(options) for name, options in config.losses.items()}
    return Objective(build_model(config), losses)
