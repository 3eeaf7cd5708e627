"""`python -m preprocess report STORE`: what may be wrong with the clips of a store."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from preprocess.report import CSV, FLAGS, HTML, ids_with, judge, write_report


def add(commands: Any) -> None:
    """Add this command to the parser."""
    command = commands.add_parser(
        "report",
        help="write quality.csv and report.html into a store, or list the clips with a flag",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(["flags:", *(f"  {name:13} {meaning}" for name, meaning in FLAGS.items())]),
    )
    command.set_defaults(run=_report)
    command.add_argument("store", metavar="STORE", type=Path)
    command.add_argument(
        "--list", metavar="FLAG,...", help="only print the ids of the clips with any of these flags, one a line"
    )


def _report(options: argparse.Namespace, rest: list[str]) -> int:
    if options.list is not None:
        for clip_id in ids_with(judge(options.store), options.list.split(",")):
            print(clip_id)
        return 0
    judged = write_report(options.store)
    console = Console()
    table = Table("flag", "clips", "meaning", title=f"{options.store}: {len(judged.clip_id)} clips")
    for name, meaning in FLAGS.items():
        if judged.flagged[name].any():
            table.add_row(name, str(int(judged.flagged[name].sum())), meaning)
    console.print(table if table.row_count else f"{options.store}: none of {len(judged.clip_id)} clips has a flag")
    console.print(f"measures: {options.store / CSV}; to look at: {options.store / HTML}", soft_wrap=True)
    return 0
