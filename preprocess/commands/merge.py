"""`python -m preprocess merge OUT STORE STORE ...`: several stores into one."""

import argparse
from pathlib import Path
from typing import Any

from preprocess.merge import merge
from preprocess.report import write_report


def add(commands: Any) -> None:
    """Add this command to the parser."""
    command = commands.add_parser("merge", help="join stores of the same options into one; nothing is coded anew")
    command.set_defaults(run=_merge)
    command.add_argument("out", metavar="OUT", type=Path, help="folder to write; new or empty")
    command.add_argument("stores", metavar="STORE", type=Path, nargs="+")
    command.add_argument("--dataset", metavar="NAME", help="name kept in the manifest; default: theirs")
    command.add_argument("--copy", action="store_true", help="copy the shards, where they would be hard links")


def _merge(options: argparse.Namespace, rest: list[str]) -> int:
    merged = merge(options.out, options.stores, dataset=options.dataset, copy=options.copy)
    for note in merged.notes:
        print(f"note: {note}")
    print(
        f"merged {len(options.stores)} stores into {options.out}: {merged.packed} clips, {merged.refused} refused; "
        f"{merged.linked} files linked, {merged.copied} copied"
    )
    write_report(options.out)
    return 0
