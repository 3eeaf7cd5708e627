"""Measure this machine on your store: `python -m benchmarks list | NAME | all [--store STORE] [--out DIR]`."""

import argparse
import importlib
from pathlib import Path

from configs.errors import UserError, run_command
from configs.resolve import names, nearest

_NO_BENCHMARK = {"harness"}


def main(argv: list[str]) -> int:
    known = [name for name in names("benchmarks") if name not in _NO_BENCHMARK]
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("name", help="list, all, or one of: " + ", ".join(known))
    parser.add_argument("--store", type=Path, default=Path("stores/demo"), help="default: the store of `make demo`")
    parser.add_argument("--rounds", type=int, default=5, help="at least 3")
    parser.add_argument("--out", type=Path, help="folder for rows as CSV")
    arguments = parser.parse_args(argv)
    if arguments.name not in (*known, "list", "all"):
        hint = nearest(arguments.name, known)
        raise UserError(f"no benchmark '{arguments.name}'; there are: {', '.join(known)}.{hint}")
    for name in known if arguments.name in ("list", "all") else [arguments.name]:
        module = importlib.import_module(f"benchmarks.{name}")
        if arguments.name == "list":
            print(f"{name}\n    {(module.__doc__ or '').strip().splitlines()[0]}")
        else:
            module.run(arguments.store, arguments.rounds, arguments.out)
    return 0


if __name__ == "__main__":
    run_command(main)
