"""Options that several benchmarks have, and the checks of their values."""

from argparse import ArgumentParser
from collections.abc import Sequence

import torch

from configs.errors import UserError
from configs.resolve import check_name, names


def device_option(parser: ArgumentParser, default: str = "auto") -> None:
    """Add `--device auto|cpu|cuda`; `chosen_device` reads its value."""
    text = "auto: a GPU if there is one; default " + default
    parser.add_argument("--device", default=default, choices=["auto", "cpu", "cuda"], help=text)


def chosen_device(device: str) -> torch.device:
    """The device of an option `--device`. Raises: UserError for a GPU that is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no CUDA GPU; use --device cpu")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def methods_option(parser: ArgumentParser) -> None:
    """Add `--methods NAME ...`; `chosen_methods` reads its value."""
    parser.add_argument("--methods", nargs="+", help="default: all")


def chosen_methods(methods: Sequence[str] | None) -> list[str]:
    """The methods of an option `--methods`; all if it was not given. Raises: UserError for a name that is none."""
    known = names("model.methods")
    for name in methods or []:
        check_name("method", name, known)
    return list(methods or known)
