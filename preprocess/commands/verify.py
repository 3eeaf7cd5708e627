"""`python -m preprocess verify STORE`: every byte of a store against what was written."""

import argparse
import sys
from pathlib import Path
from typing import Any

from pipeline.store import read_manifest
from preprocess.verify import verify


def add(commands: Any) -> None:
    """Add this command to the parser."""
    command = commands.add_parser("verify", help="read every byte of a store and compare it with what was written")
    command.set_defaults(run=_verify)
    command.add_argument("store", metavar="STORE", type=Path)


def _verify(options: argparse.Namespace, rest: list[str]) -> int:
    manifest = read_manifest(options.store)
    problems = verify(options.store)
    for text in problems:
        print(text)
    if problems:
        print(f"damaged: {len(problems)} problems in {options.store}", file=sys.stderr)
        return 1
    size = sum(shard["bytes"] for shard in manifest["shards"])
    print(f"whole: {manifest['packed']} clips in {len(manifest['shards'])} shards, {size / 2**20:.1f} MiB read")
    return 0
