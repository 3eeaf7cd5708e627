"""`python -m preprocess features STORE --frontend NAME ...`: further front-ends for a store, from its waveforms."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from configs.load import check, load_frontend
from preprocess.engines.local import Local
from preprocess.extend import extend
from preprocess.progress import PackProgress


def add(commands: Any) -> None:
    """Add this command to the parser."""
    command = commands.add_parser(
        "features",
        help="add front-ends to a store from its waveforms; the same command again goes on where it stopped",
    )
    command.set_defaults(run=_features)
    command.add_argument("store", metavar="STORE", type=Path)
    command.add_argument(
        "--frontend", metavar="NAME", nargs="+", required=True, help="log-spectrograms: files of configs/frontends"
    )
    command.add_argument("--uint8", action="store_true", help="8 bits a value instead of 16; the error is measured")
    command.add_argument("--workers", type=int, metavar="N", help="processes; default: one a core; 0: in this process")


def _features(options: argparse.Namespace, rest: list[str]) -> int:
    workers = {} if options.workers is None else {"workers": options.workers}
    engine = Local(check(Local.Config, {**workers, "name": "local"}, "--workers"))
    frontends = [load_frontend(name) for name in dict.fromkeys(options.frontend)]
    console = Console()
    progress = PackProgress(console)
    try:
        with progress:
            result = extend(
                options.store,
                frontends,
                "uint8" if options.uint8 else "float16",
                engine,
                report=progress.report,
                found=progress.found,
            )
    except KeyboardInterrupt:
        console.print("stopped; the store is as it was; run the same command to go on")
        return 130
    for name in result.there:
        console.print(f"{options.store} has front-end {name} already, with the same parameters", soft_wrap=True)
    for note in result.notes:
        console.print(f"note: {note}", soft_wrap=True)
    if result.added:
        console.print(f"added {', '.join(result.added)} to {options.store} ({progress.rate()})", soft_wrap=True)
    return 0
