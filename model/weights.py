"""Weights from files and downloads into modules: strictly, and with names for what does not fit."""

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.errors import UserError


def read_tensors(path: Path) -> Any:
    """What a file of tensors holds, on the CPU. Raises: UserError if it is missing, damaged or holds code."""
    if not path.is_file():
        raise UserError(f"no file {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is no file of tensors and plain values, and is not loaded: what else it holds could run code"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, LookupError) as error:
        raise UserError(f"{path} is damaged or no file of tensors: {_line(error)}") from error


def _line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def read_weights(source: str, imagenet: Callable[..., Any]) -> dict[str, Tensor]:
    """The state dict that a `weights` option names: "imagenet" asks `imagenet`, anything else is a file.

    Raises: UserError if the file is missing or unsafe, or the download fails.
    """
    if source != "imagenet":
        return read_tensors(Path(source))
    try:
        return imagenet(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # no connection, no room, or a file with another checksum
        raise UserError(
            f"cannot download the ImageNet weights ({error}). Fetch the file on a machine with a connection and set "
            "weights to its path, or set weights=none to start from scratch"
        ) from error


def load_weights(module: nn.Module, state: dict[str, Tensor], unused: Sequence[str], where: str) -> None:
    """Load a state dict into a module; only the keys in `unused` may be left over.

    Raises: UserError naming missing and unexpected keys, and shapes that differ.
    """
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"the weights for {where} are not a state dict: a mapping from names to tensors was expected")
    own = module.state_dict()
    given = {key: value for key, value in state.items() if key not in unused}
    # BatchNorm's step counter is absent from old files; it has no effect on the outputs.
    missing = [key for key in own if key not in given and not key.endswith("num_batches_tracked")]
    extra = [key for key in given if key not in own]
    shapes = [key for key in own if key in given and own[key].shape != given[key].shape]
    problems = [
        f"{len(keys)} {kind} ({', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''})"
        for kind, keys in (("missing", missing), ("unexpected", extra), ("of another shape", shapes))
        if keys
    ]
    if problems:
        raise UserError(f"the weights do not fit {where}: {'; '.join(problems)}")
    module.load_state_dict(given, strict=False)
