"""python -m preprocess COMMAND ...: one command a file of `preprocess.commands`; see `--help`."""

import argparse
import importlib

from configs.errors import run_command
from configs.resolve import names

_COMMANDS = "preprocess.commands"
_FIRST = ("pack", "verify", "info")


def main(argv: list[str]) -> int:
    """Run one command; see `python -m preprocess --help`. 0: fine; 1: incomplete or damaged; 130: stopped."""
    parser = argparse.ArgumentParser(
        prog="python -m preprocess",
        description="Pack clips into a store, and look at stores.",
        epilog="Exit codes: 0 fine; 1 incomplete (see pack --help) or damaged; 2 wrong input; 130 stopped.",
    )
    found = names(_COMMANDS)
    known = [*_FIRST, *(name for name in found if name not in _FIRST)]
    commands = parser.add_subparsers(dest="command", required=True, metavar="{" + ",".join(known) + "}")
    # Only the command that is run is loaded, so that none pays for what another one needs.
    for name in argv[:1] if argv[:1] and argv[0] in known else known:
        importlib.import_module(f"{_COMMANDS}.{name}").add(commands)
    options, rest = parser.parse_known_args(argv)
    if rest and not getattr(options, "options_of_its_own", False):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options.run(options, rest)


if __name__ == "__main__":
    run_command(main)
