"""`python -m preprocess verify STORE`: every byte of a store against what was written."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from configs.errors import UserError
from pipeline.store import read_manifest
from preprocess.files import ADDING
from preprocess.verify import verify


def add(commands: Any) -> None:
    """Add this command to the parser."""
    command = commands.add_parser("verify", help="read every byte of a store and compare it with what was written")
    command.set_defaults(run=_verify)
    command.add_argument("store", metavar="STORE", type=Path)
    command.add_argument("--workers", type=int, metavar="N", help="shards read at a time; default: one a core")


def _verify(options: argparse.Namespace, rest: list[str]) -> int:
    if options.workers is not None and options.workers < 1:
        raise UserError(f"--workers must be at least 1, found {options.workers}")
    manifest = read_manifest(options.store)
    start = time.monotonic()
    problems = verify(options.store, workers=options.workers)
    for text in problems:
        print(text)
    if (options.store / ADDING).is_dir():
        print(
            "note: a `features` command was stopped or is running; the same command goes on. It does not touch what "
            "the manifest names"
        )
    if problems:
        print(f"damaged: {len(problems)} problems in {options.store}", file=sys.stderr)
        return 1
    size = sum(shard["bytes"] for shard in manifest["shards"])
    rate = size / 1e9 / max(time.monotonic() - start, 1e-3)
    counts = f"{manifest['packed']} clips in {len(manifest['shards'])} shards"
    print(f"whole: {counts}, {size / 2**20:.1f} MiB read at {rate:.2f} GB/s")
    return 0
