"""Authors' checkpoints into ours and back: names, wrappers, and nothing dropped that is not known to be unused."""

import argparse
import hashlib
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray
from torch import Tensor

from configs.errors import UserError
from model.base import LocalizationModel

LVS_NAMES = {
    "imgnet.": "image_encoder.net.",
    "audnet.": "audio_encoder.net.",
    "audnet.conv1_a.": "audio_encoder.net.conv1.",
}
"""Names of the two encoders in the code of LVS, which VCS and SSL-Align took over."""

LVS_UNUSED = (
    "imgnet.conv1_a.",
    "imgnet.conv1_flow.",
    "imgnet.fc.",
    "audnet.conv1.",
    "audnet.conv1_flow.",
    "audnet.fc.",
)
"""What these encoders hold without using it: the stems of other inputs, and classifiers."""

_WRAPPERS = ("model_state_dict", "state_dict", "model")
_PREFIXES = ("module.", "model.")  # of DataParallel and DistributedDataParallel, and of Lightning's modules
_COUNTER = "num_batches_tracked"  # absent from old files, and without effect on the outputs
# What authors save beside the tensors: scores as numpy numbers, options as a namespace. Plain values, no code.
_PLAIN = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.bool_)),
    (multiarray.scalar, "numpy.core.multiarray.scalar"),
    (multiarray.scalar, "numpy._core.multiarray.scalar"),
]


def read_published(path: Path) -> dict[str, Tensor]:
    """The state dict inside an authors' file, without wrappers and common prefixes, on the CPU.

    Raises: UserError if the file is missing or damaged, holds what could run code, or holds no state dict.
    """
    if not path.is_file():
        raise UserError(f"no file {path}")
    try:
        with torch.serialization.safe_globals(_PLAIN):
            found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors and plain values, and is not loaded: what else it holds could run code. "
            f"torch says: {str(error).strip().splitlines()[0][:200]}"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged or no file of tensors") from error
    while isinstance(found, dict) and not _is_state(found):
        inner = next((key for key in _WRAPPERS if isinstance(found.get(key), dict)), None)
        if inner is None:
            break
        found = found[inner]
    if not _is_state(found):
        raise UserError(f"{path} holds no state dict, neither at its top nor under {', '.join(_WRAPPERS)}")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found


def _is_state(found: Any) -> bool:
    return isinstance(found, dict) and bool(found) and all(isinstance(value, Tensor) for value in found.values())


def published_name(model: LocalizationModel, name: str) -> str:
    """The authors' name of an entry of our state dict; our own where they have none."""
    return _renamed(name, {ours: theirs for theirs, ours in model.published_names.items()})


def _renamed(name: str, names: dict[str, str]) -> str:
    start = max((start for start in names if name.startswith(start)), key=len, default=None)
    return name if start is None else names[start] + name.removeprefix(start)


def load_published(model: LocalizationModel, state: dict[str, Tensor], *, drop: Sequence[str], where: str) -> list[str]:
    """Load a state dict in the authors' names; returns the names that were dropped.

    drop: beginnings of further names to drop, beside those that the method knows to be unused.
    Raises: UserError naming what is missing, unknown or of another shape, in the authors' names.
    """
    own = {published_name(model, name): (name, value) for name, value in model.state_dict().items()}
    unused = (*model.published_unused, *drop)
    dropped = [name for name in state if name not in own and name.startswith(unused)]
    optional = tuple(name for name in own if name.endswith(_COUNTER) or name.startswith(model.published_absent))
    problems = {
        "missing": [name for name in own if name not in state and name not in optional],
        "unknown": [name for name in state if name not in own and name not in dropped],
        "of another shape": [name for name in own if name in state and state[name].shape != own[name][1].shape],
    }
    found = [f"{len(names)} {kind} ({_some(names)})" for kind, names in problems.items() if names]
    if found:
        raise UserError(
            f"{where} does not fit method '{model.config.name}': {'; '.join(found)}. If the config is not that of the "
            "file, name another with --config or change it with key=value; entries that are known to be without use "
            "can be named with --drop"
        )
    model.load_state_dict({own[name][0]: value for name, value in state.items() if name in own}, strict=False)
    return dropped


def as_published(model: LocalizationModel) -> dict[str, Tensor]:
    """The state dict of a method in its authors' names. Unused entries of theirs are not in it."""
    return {published_name(model, name): value for name, value in model.state_dict().items()}


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
