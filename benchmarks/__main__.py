"""Measure this machine on your store: `python -m benchmarks list | NAME | all [--store STORE] [--out DIR]`."""

import argparse
import importlib
from pathlib import Path
from types import ModuleType

from configs.errors import UserError, run_command
from configs.resolve import names, nearest

_NO_BENCHMARK = {"harness", "published_losses"}
_TOOLS = {"make_store"}  # run by name only: they measure nothing


def main(argv: list[str]) -> int:
    known = [name for name in names("benchmarks") if name not in _NO_BENCHMARK]
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__, add_help=False)
    parser.add_argument("name", help="list, all, or one of: " + ", ".join(known))
    parser.add_argument("--store", type=Path, default=Path("stores/demo"), help="default: the store of `make demo`")
    parser.add_argument("--rounds", type=int, default=5, help="at least 3")
    parser.add_argument("--out", type=Path, help="folder for rows as CSV")
    named = [argument for argument in argv if argument in known]
    own = _options(named[0], parser) if named else []
    parser.add_argument("-h", "--help", action="help")
    arguments = parser.parse_args(argv)
    if arguments.name not in (*known, "list", "all"):
        hint = nearest(arguments.name, known)
        raise UserError(f"no benchmark '{arguments.name}'; there are: {', '.join(known)}.{hint}")
    every = [name for name in known if arguments.name == "list" or name not in _TOOLS]
    for name in every if arguments.name in ("list", "all") else [arguments.name]:
        module = _module(name)
        if arguments.name == "list":
            print(f"{name}\n    {(module.__doc__ or '').strip().splitlines()[0]}")
        else:
            options = {key: getattr(arguments, key) for key in own}
            module.run(arguments.store, arguments.rounds, arguments.out, **options)
    return 0


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"benchmarks.{name}")


def _options(name: str, parser: argparse.ArgumentParser) -> list[str]:
    """Let a benchmark that has an `add_options` add its own; their names."""
    module = _module(name)
    if not hasattr(module, "add_options"):
        return []
    group = parser.add_argument_group(name)
    module.add_options(group)
    return [action.dest for action in group._group_actions]


if __name__ == "__main__":
    run_command(main)
